// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/perf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"gadget.example/network/test/object"
)

const (
	// Rounds go through all filters; the medians count.
	attemptRounds = 41
	// attempts of a round of one filter, each from another port.
	attemptsEach = 1_000
	// ringBytes of a CPU hold them all.
	ringBytes = 8 << 20
)

// BenchmarkAttempts measures what the filter takes for an attempt that it reports, as
// it passes a veth pair, by the kernel's statistics: what is sent in one namespace, and
// what is received in the other. On a kernel without kprobes they are of nobody known.
// What is received there has no answer, and waits for it. The delivery, which is the
// kernel's, is measured by a filter that does no more.
func BenchmarkAttempts(b *testing.B) {
	filters, closeAll, err := load(attemptMakers())
	if err != nil {
		b.Fatal(err)
	}
	defer closeAll()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	server, leave, err := enterPair()
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := errors.Join(server.Close(), leave()); err != nil {
			b.Error(err)
		}
	}()
	if err := errors.Join(allowLarge(), within(server, allowLarge)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		rows := [][]string{append([]string{"ns an attempt"}, attemptParts...)}
		var kinds []string
		parts := make([][]float64, len(attemptParts))
		for _, k := range attempts() {
			for _, side := range []string{"sent", "received"} {
				name := k.name + ", " + side
				costs, err := measureAttempts(k, server, side == "received", filters)
				if err != nil {
					b.Fatalf("%s: %v", name, err)
				}
				row := []string{name}
				for i, ns := range costs {
					row = append(row, fmt.Sprintf("%.0f", ns))
					parts[i] = append(parts[i], ns)
				}
				rows, kinds = append(rows, row), append(kinds, lines.Replace(name))
			}
		}
		const plotted = 4 // with nothing more asked for
		err := errors.Join(tell("attempts", rows),
			writeBars("attempts", "An attempt", "ns, net of an empty filter", kinds, attemptParts[:plotted], parts[:plotted]))
		if err != nil {
			b.Fatal(err)
		}
	}
}

// allowLarge lets sockets of this thread's namespace have large filters: the gadget's is
// called by a small one, whose statistics would leave it out.
func allowLarge() error {
	return os.WriteFile("/proc/sys/net/core/optmem_max", []byte("1048576"), 0)
}

// attemptMakers are the empty filter, the floor, and then by turns one that delivers
// as many bytes for each attempt, and the gadget's.
func attemptMakers() []maker {
	// Each attempt is let through, but the limit is asked.
	usual := map[string]any{"rate_limit": uint32(1 << 30)}
	all := map[string]any{"rate_limit": uint32(1 << 30), "lifecycle": true, "paths": true}
	return []maker{
		guarded[0], stable,
		{"delivery as IG reads", func() (filter, error) { return delivering("suppressed", true) }},
		{"delivery", func() (filter, error) { return delivering("suppressed", false) }},
		{ourFilter, func() (filter, error) { return withRing(oursWith(usual)) }},
		{"delivery of all", func() (filter, error) { return delivering("", false) }},
		{ourFilter + ", all", func() (filter, error) { return withRing(oursWith(all)) }},
	}
}

// lines makes several of a name, below bars.
var lines = strings.NewReplacer(", ", "\n", " to ", "\nto ")

// attemptParts are what an attempt costs, net of each other.
var attemptParts = []string{
	"floor", "delivery, the reader woken up", "delivery", ourFilter + " but for that",
	"delivery with all asked for", ourFilter + " but for that, with all asked for",
}

// measureAttempts returns the parts, in ns.
func measureAttempts(k kind, server netns.NsHandle, received bool, filters []filter) (parts []float64, err error) {
	send, err := newSender(k, server)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unix.Close(send.socket)) }()
	costs := make([][]float64, len(filters))
	for range attemptRounds {
		for i, f := range filters {
			cost, err := send.measure(f, server, received)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.name, err)
			}
			costs[i] = append(costs[i], cost)
		}
	}
	more := func(filter, than int) float64 { return median(costs[filter]) - median(costs[than]) }
	const empty, floor, waking, delivery, ours, deliveryOfAll, oursAll = 0, 1, 2, 3, 4, 5, 6
	return []float64{more(floor, empty), more(waking, floor), more(delivery, floor), more(ours, delivery), more(deliveryOfAll, floor), more(oursAll, deliveryOfAll)}, nil
}

// sender sends attempts of a kind, each from another port.
type sender struct {
	socket int
	frame  []byte
	to     unix.SockaddrLinklayer
	port   uint16
}

func newSender(k kind, server netns.NsHandle) (*sender, error) {
	var hardware []byte
	err := within(server, func() error {
		device, err := netlink.LinkByName(serverDevice)
		if err == nil {
			hardware = device.Attrs().HardwareAddr
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	client, err := netlink.LinkByName(clientDevice)
	if err != nil {
		return nil, err
	}
	s := &sender{frame: slices.Clone(k.frame), to: unix.SockaddrLinklayer{Ifindex: client.Attrs().Index}}
	copy(s.frame, hardware)
	s.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	return s, err
}

func (s *sender) send() error {
	port := s.frame[ethernetLen+20:]
	if s.frame[ethernetLen]>>4 == 6 {
		port = s.frame[ethernetLen+40:]
	}
	s.port++
	binary.BigEndian.PutUint16(port, s.port|1<<15)
	return unix.Sendto(s.socket, s.frame, 0, &s.to)
}

// measure returns what a filter takes for each attempt, in ns.
func (s *sender) measure(f filter, server netns.NsHandle, received bool) (each float64, err error) {
	var tap int
	open := func() (err error) {
		tap, err = listen(attachProgram(f.program))
		return err
	}
	if received {
		err = within(server, open)
	} else {
		err = open()
	}
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Close(tap)) }()
	runs, took, err := counted(f.program, func() error {
		for range attemptsEach {
			if err := s.send(); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && runs < attemptsEach {
		err = fmt.Errorf("it has seen %d packets of %d", runs, attemptsEach)
	}
	if err == nil && f.ring != nil {
		err = f.ring.empty()
	}
	return float64(took) / attemptsEach, err
}

// counted returns how often a program runs meanwhile, and for how long.
func counted(p *ebpf.Program, do func() error) (runs uint64, took time.Duration, err error) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return 0, 0, err
	}
	defer stats.Close()
	before, err1 := p.Stats()
	err2 := do()
	after, err3 := p.Stats()
	if err := errors.Join(err1, err2, err3); err != nil {
		return 0, 0, err
	}
	return after.RunCount - before.RunCount, after.Runtime - before.Runtime, nil
}

// ring is what a filter delivers to.
type ring struct {
	reader *perf.Reader
	record perf.Record
}

// newRing has its reader be woken up by each event, as IG's is, or never.
func newRing(events *ebpf.Map, wakes bool) (*ring, error) {
	options := perf.ReaderOptions{Watermark: ringBytes - 1}
	if wakes {
		options = perf.ReaderOptions{WakeupEvents: 1}
	}
	reader, err := perf.NewReaderWithOptions(events, ringBytes, options)
	return &ring{reader: reader}, err
}

// empty takes all events; each attempt has one, but for those that wait still.
func (r *ring) empty() error {
	const waiting = 512 // MAX_PENDING
	if err := r.reader.Flush(); err != nil {
		return err
	}
	for events := 0; ; events++ {
		err := r.reader.ReadInto(&r.record)
		if errors.Is(err, perf.ErrFlushed) {
			if events < attemptsEach-waiting {
				return fmt.Errorf("it has delivered %d events for %d attempts", events, attemptsEach)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if r.record.LostSamples > 0 {
			return fmt.Errorf("%d events were lost", r.record.LostSamples)
		}
	}
}

func withRing(f filter, err error) (filter, error) { return withReader(f, err, false) }

func withReader(f filter, err error, wakes bool) (filter, error) {
	if err != nil {
		return f, err
	}
	f.ring, err = newRing(f.maps["events"], wakes)
	unload := f.close
	f.close = func() {
		_ = f.ring.reader.Close()
		unload()
	}
	return f, err
}

// delivering is the floor, which delivers as many bytes for each attempt as the gadget's
// event has: up to a field, or all of them.
func delivering(last string, wakes bool) (filter, error) {
	size, err := eventSize(last)
	if err != nil {
		return filter{}, err
	}
	event, err1 := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: size, MaxEntries: 1})
	events, err2 := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerfEventArray})
	if err := errors.Join(err1, err2); err != nil {
		return filter{}, err
	}
	f, err := fromInstructions(delivered(floor(asm.FnSkbLoadBytesRelative), event, events, size)...)
	f.maps = map[string]*ebpf.Map{"events": events}
	f.close = func() { _ = errors.Join(event.Close(), events.Close()) }
	return withReader(f, err, wakes)
}

// delivered has a filter deliver an event where it goes on at "attempt".
func delivered(program asm.Instructions, event, events *ebpf.Map, size uint32) asm.Instructions {
	const key = -72 // below the headers, bytes from the frame pointer
	verdict := slices.IndexFunc(program, func(i asm.Instruction) bool { return i.Symbol() == "attempt" })
	program[verdict] = asm.Ja.Label("deliver").WithSymbol("attempt")
	program = slices.Delete(program, verdict+1, verdict+2) // the return that came next
	return append(program,
		asm.StoreImm(asm.RFP, key, 0, asm.Word).WithSymbol("deliver"),
		asm.LoadMapPtr(asm.R1, event.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, key),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "none"),
		asm.Mov.Reg(asm.R4, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, events.FD()),
		asm.LoadImm(asm.R3, unix.BPF_F_CURRENT_CPU, asm.DWord),
		asm.Mov.Imm(asm.R5, int32(size)),
		asm.FnPerfEventOutput.Call(),
		asm.Mov.Imm(asm.R0, 1),
		asm.Return(),
	)
}

// eventSize is in bytes, up to a field of the event, or of all of it.
func eventSize(last string) (uint32, error) {
	spec, err := object.Read()
	if err != nil {
		return 0, err
	}
	var event *btf.Struct
	if err := spec.Types.TypeByName("event", &event); err != nil {
		return 0, err
	}
	for _, m := range event.Members {
		if m.Name != last {
			continue
		}
		size, err := btf.Sizeof(m.Type)
		return m.Offset.Bytes() + uint32(size), err
	}
	return event.Size, nil
}
