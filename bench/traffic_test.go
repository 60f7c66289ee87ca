// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Turns go through all the taps; a stream of one lasts so many seconds.
const (
	trafficTurns   = 7
	trafficSeconds = 1
)

// stream is what iperf3 sends.
type stream struct {
	name      string
	arguments []string
}

var streams = []stream{
	{"1 TCP stream", nil},
	{"50 TCP streams", []string{"-P", "50"}},
	{"UDP, 1,200 bytes", []string{"-u", "-b", "0", "-l", "1200"}},
}

// tap is what is attached as packets go by: a packet socket for all of them, which
// takes none.
type tap struct {
	name    string
	attach  func(socket int) error
	program *ebpf.Program // nil: it has no statistics
}

// BenchmarkTraffic measures what filters take of a stream over loopback, and of one
// over a veth pair, in the namespace that sends: in TCP, most packets are super-packets.
func BenchmarkTraffic(b *testing.B) {
	filters, closeAll, err := load([]maker{guarded[0], guarded[3]})
	if err != nil {
		b.Fatal(err)
	}
	defer closeAll()
	classic, err := tcpdump(attemptsFilter)
	if err != nil {
		b.Fatal(err)
	}
	taps := []tap{
		{name: "nothing"},
		{"empty", attachProgram(filters[0].program), filters[0].program},
		{"tcpdump's", attachClassic(classic), nil},
		{ourFilter, attachProgram(filters[1].program), filters[1].program},
	}
	runtime.LockOSThread() // what it starts is in its network namespace
	defer runtime.UnlockOSThread()
	for b.Loop() {
		rows := [][]string{trafficHead(taps)}
		var names, tapNames []string
		var heights [][]float64 // by tap
		for _, t := range taps[1:] {
			tapNames, heights = append(tapNames, t.name), append(heights, nil)
		}
		for _, network := range []struct {
			name string
			make func() (*hostPair, error)
		}{{"loopback", loopback}, {"veth", vethPair}} {
			all, err := measureNetwork(network.make, taps)
			if err != nil {
				b.Fatalf("%s: %v", network.name, err)
			}
			for _, s := range all {
				rows = append(rows, append([]string{network.name + ", " + s.name}, s.row()...))
				names = append(names, network.name+"\n"+s.name)
				for i, ratio := range s.ratios {
					heights[i] = append(heights[i], ratio)
				}
			}
		}
		err := errors.Join(tell("traffic", rows),
			writeBars("traffic", "Throughput with a filter", "of that with none", names, tapNames, heights))
		if err != nil {
			b.Fatal(err)
		}
	}
}

func trafficHead(taps []tap) []string {
	head := []string{"", "nothing, Gbit/s"}
	for _, t := range taps[1:] {
		head = append(head, t.name+", of nothing")
	}
	return append(head, "packets/s seen", "payload of each, bytes", "empty, ns each", ourFilter+", ns each more")
}

// streamed is what became of a stream: medians of the turns.
type streamed struct {
	stream
	bare                         float64   // bits per second with nothing
	ratios                       []float64 // to that, with each tap
	packets, bytes, empty, extra float64   // per second; of each; ns of each; ns more with the gadget's
}

func (s *streamed) row() []string {
	row := []string{fmt.Sprintf("%.1f", s.bare/1e9)}
	for _, ratio := range s.ratios {
		row = append(row, fmt.Sprintf("%.3f", ratio))
	}
	for _, v := range []float64{s.packets, s.bytes, s.empty, s.extra} {
		row = append(row, fmt.Sprintf("%.0f", v))
	}
	return row
}

func measureNetwork(create func() (*hostPair, error), taps []tap) (all []*streamed, err error) {
	hosts, err := create()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, hosts.close()) }()
	for _, s := range streams {
		got, err := hosts.measureStream(s, taps)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		all = append(all, got)
	}
	return all, nil
}

// measureStream returns the throughput with each tap, and, in turns of their own as
// statistics cost much themselves, what each packet takes of the kernel's time.
func (h *hostPair) measureStream(s stream, taps []tap) (*streamed, error) {
	ratios := make([][]float64, len(taps))
	var bare, packets, sizes, empty, more []float64
	for range trafficTurns {
		for i, t := range taps {
			got, err := h.send(s, t)
			if err != nil {
				return nil, fmt.Errorf("with %s: %w", t.name, err)
			}
			if i == 0 {
				bare = append(bare, got.rate)
			}
			ratios[i] = append(ratios[i], got.rate/bare[len(bare)-1])
		}
		var each []time.Duration
		for _, t := range taps {
			if t.program == nil {
				continue
			}
			count, ns, sent, err := h.sendCounted(s, t)
			if err != nil {
				return nil, fmt.Errorf("with %s and statistics: %w", t.name, err)
			}
			each = append(each, ns)
			packets, sizes = append(packets, count/trafficSeconds), append(sizes, sent/count)
		}
		empty, more = append(empty, float64(each[0])), append(more, float64(each[1]-each[0]))
	}
	got := &streamed{s, median(bare), nil, median(packets), median(sizes), median(empty), median(more)}
	for i := range taps[1:] {
		got.ratios = append(got.ratios, median(ratios[i+1]))
	}
	return got, nil
}

// sendCounted returns the packets seen, what each took in the program, and bytes sent.
func (h *hostPair) sendCounted(s stream, t tap) (packets float64, each time.Duration, bytes float64, err error) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return 0, 0, 0, err
	}
	defer stats.Close()
	before, err := t.program.Stats()
	if err != nil {
		return 0, 0, 0, err
	}
	got, err := h.send(s, t)
	if err != nil {
		return 0, 0, 0, err
	}
	after, err := t.program.Stats()
	if err != nil {
		return 0, 0, 0, err
	}
	count := after.RunCount - before.RunCount
	if count == 0 {
		return 0, 0, 0, errors.New("it has seen no packet")
	}
	return float64(count), (after.Runtime - before.Runtime) / time.Duration(count), got.sent, nil
}

// transfer is what iperf3 says of a stream.
type transfer struct {
	rate float64 // bits per second, as they arrived
	sent float64 // bytes
}

// send makes iperf3 send from this thread's network namespace while a tap is attached.
func (h *hostPair) send(s stream, t tap) (transfer, error) {
	if t.attach != nil {
		socket, err := listen(t.attach)
		if err != nil {
			return transfer{}, err
		}
		defer unix.Close(socket)
	}
	arguments := []string{"-J", "-t", strconv.Itoa(trafficSeconds), "-c", h.server}
	out, err := exec.Command("iperf3", append(arguments, s.arguments...)...).Output()
	type sum struct {
		Bytes float64 `json:"bytes"`
		Rate  float64 `json:"bits_per_second"`
		Lost  float64 `json:"lost_percent"`
	}
	var report struct {
		Error string `json:"error"`
		End   struct {
			UDP      sum `json:"sum"`
			Sent     sum `json:"sum_sent"`
			Received sum `json:"sum_received"`
		} `json:"end"`
	}
	if err := errors.Join(err, json.Unmarshal(out, &report)); err != nil {
		return transfer{}, fmt.Errorf("iperf3: %s: %w", report.Error, err)
	}
	if udp := report.End.UDP; udp.Bytes > 0 {
		return transfer{udp.Rate * (1 - udp.Lost/100), udp.Bytes}, nil
	}
	return transfer{report.End.Received.Rate, report.End.Sent.Bytes}, nil
}

// listen opens a packet socket for all packets of this thread's network namespace.
func listen(attach func(socket int) error) (int, error) {
	// With no protocol it gets nothing, until the filter is there.
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	all := unix.SockaddrLinklayer{Protocol: onWire(unix.ETH_P_ALL)}
	if err := errors.Join(attach(socket), unix.Bind(socket, &all)); err != nil {
		return -1, errors.Join(err, unix.Close(socket))
	}
	return socket, nil
}

func attachProgram(p *ebpf.Program) func(int) error {
	return func(socket int) error {
		return unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, p.FD())
	}
}

func attachClassic(program []bpf.RawInstruction) func(int) error {
	return func(socket int) error {
		var filter []unix.SockFilter
		for _, ins := range program {
			filter = append(filter, unix.SockFilter{Code: ins.Op, Jt: ins.Jt, Jf: ins.Jf, K: ins.K})
		}
		return unix.SetsockoptSockFprog(socket, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	}
}

// hostPair is one that sends, in this thread's network namespace, and a server.
type hostPair struct {
	server string // its address
	close  func() error
}

// loopback is both in one namespace.
func loopback() (*hostPair, error) {
	leave, err := enterNew()
	if err != nil {
		return nil, err
	}
	return serve("127.0.0.1", leave)
}

// vethPair is each in a namespace of its own.
func vethPair() (*hostPair, error) {
	server, leave, err := enterPair()
	if err != nil {
		return nil, err
	}
	defer server.Close()
	var pair *hostPair
	err = within(server, func() (err error) {
		pair, err = serve(serverIPv4, leave)
		return err
	})
	return pair, err
}

// The addresses of a pair's ends: those of the frames as well. Over IPv6 these have none:
// what is received is seen all the same.
const (
	clientIPv4 = "192.0.2.1"
	serverIPv4 = "192.0.2.2"
)

// The devices of a pair.
const (
	clientDevice = "client"
	serverDevice = "server"
)

// enterPair brings this thread into a new network namespace, with a device that leads
// to another one's.
func enterPair() (server netns.NsHandle, leave func() error, err error) {
	leave, err = enterNew()
	if err != nil {
		return netns.None(), nil, err
	}
	if server, err = makePair(); err != nil {
		return netns.None(), nil, errors.Join(err, leave())
	}
	return server, leave, nil
}

// makePair makes a device in this thread's network namespace, and one that it leads to
// in a new one.
func makePair() (server netns.NsHandle, err error) {
	client, err := netns.Get()
	if err != nil {
		return netns.None(), err
	}
	defer client.Close()
	leaveServer, err := enterNew()
	if err != nil {
		return netns.None(), err
	}
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: serverDevice})
	veth.PeerName, veth.PeerNamespace = clientDevice, netlink.NsFd(client)
	err = errors.Join(netlink.LinkAdd(veth), raise(serverDevice, serverIPv4+"/24"))
	if err == nil {
		server, err = netns.Get()
	}
	err = errors.Join(err, leaveServer())
	if err == nil {
		err = raise(clientDevice, clientIPv4+"/24")
	}
	return server, err
}

// within does something in another network namespace.
func within(ns netns.NsHandle, do func() error) error {
	before, err := netns.Get()
	if err != nil {
		return err
	}
	defer before.Close()
	if err := netns.Set(ns); err != nil {
		return err
	}
	return errors.Join(do(), netns.Set(before))
}

// enterNew brings this thread into a new network namespace.
func enterNew() (leave func() error, err error) {
	before, err := netns.Get()
	if err != nil {
		return nil, err
	}
	leave = func() error { return errors.Join(netns.Set(before), before.Close()) }
	created, err := netns.New()
	if err != nil {
		return nil, errors.Join(err, leave())
	}
	created.Close() // the thread has it
	if err := raise("lo", ""); err != nil {
		return nil, errors.Join(err, leave())
	}
	return leave, nil
}

func raise(device, address string) error {
	found, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	if address != "" {
		parsed, err := netlink.ParseAddr(address)
		if err := errors.Join(err, netlink.AddrAdd(found, parsed)); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(found)
}

// serve starts iperf3's server in this thread's namespace.
func serve(address string, leave func() error) (*hostPair, error) {
	cmd := exec.Command("iperf3", "-s", "-B", address, "--forceflush")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(err, leave())
	}
	end := func() error {
		err := cmd.Process.Kill()
		_ = cmd.Wait() // by the signal
		return errors.Join(err, leave())
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "listening") {
			go func() { _, _ = io.Copy(io.Discard, out) }() // what it writes must not stop it
			return &hostPair{address, end}, nil
		}
	}
	return nil, errors.Join(errors.New("iperf3 serves nobody"), lines.Err(), end())
}
