// SPDX-License-Identifier: Apache-2.0

//go:build soak

package e2e

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// soakFor is not read from the environment, which a VM does not share.
var soakFor = flag.Duration("soak", 30*time.Minute, "how long TestSoak makes traffic")

const (
	soakSamples = 30
	// How much more memory the last third may take than the first, by the medians: a
	// tenth and soakMargin, as Go gives pages back late, and huge ones whole.
	soakGrowth = 1.1
	soakMargin = 4 << 20 // bytes
)

// TestSoak makes traffic of all kinds for long, and then none: no entry is left
// of what is over, and no memory has grown.
func TestSoak(t *testing.T) {
	f := newFlooded(t, aFlood{flooders: 1})
	known, err := ebpfMaps()
	if err != nil {
		t.Fatal(err)
	}
	events := uint64(0)
	o := gadget.Options{
		NetNSOf: f.netNSOf(), Params: map[string]string{"udp-flows": "true", "paths": "true"},
		OnEvent: func(gadget.Event) { events++ },
	}
	summary, err := account(t, o, func() {
		b := newBooks(t, known, f.pair)
		defer b.close()
		f.soak(t, b)
	})
	if err != nil {
		t.Fatalf("the gadget: %v", err)
	}
	t.Logf("%s; %d events", summary, events)
	if events != summary.Reported {
		t.Errorf("wanted as many events as attempts reported, got %d: %s", events, summary)
	}
}

func (f *flooded) soak(t *testing.T, b *books) {
	t.Helper()
	before := b.entriesOfPair(t)
	header := append([]string{"after"}, countedMaps...)
	t.Logf("%s", row(append(header, "heap KiB", "RSS KiB", "maps KiB")))
	var samples []sample
	every, started := *soakFor/soakSamples, time.Now()
	for round := 0; time.Since(started) < *soakFor; round++ {
		f.makeRound(t, round)
		if time.Since(started) >= every*time.Duration(len(samples)) {
			samples = append(samples, b.sample(t, time.Since(started)))
			t.Logf("%s", samples[len(samples)-1])
		}
	}
	// A connection that was closed last is still there for TIME_WAIT's minute.
	err := eventually(func() error {
		if now := b.entriesOfPair(t); now != before {
			return fmt.Errorf("wanted as many entries of the test's namespaces as before all traffic, %+v, got %+v", before, now)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("%s, idle; of the test's namespaces %+v, before all traffic %+v", b.sample(t, time.Since(started)), b.entriesOfPair(t), before)
	checkFlat(t, "heap", samples, func(s sample) uint64 { return s.heap })
	checkFlat(t, "RSS", samples, func(s sample) uint64 { return s.rss })
	checkFlat(t, "maps", samples, func(s sample) uint64 { return s.maps })
}

// checkFlat compares the medians of the first and the last third.
func checkFlat(t *testing.T, what string, samples []sample, of func(sample) uint64) {
	t.Helper()
	median := func(some []sample) uint64 {
		var values []uint64
		for _, s := range some {
			values = append(values, of(s))
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	if len(samples) < 3 {
		t.Fatalf("%d samples are too few to compare: take a longer time", len(samples))
	}
	first, last := median(samples[:len(samples)/3]), median(samples[len(samples)-len(samples)/3:])
	most := uint64(soakGrowth*float64(first)) + soakMargin
	t.Logf("%s: median %d KiB in the first third, %d KiB in the last", what, first>>10, last>>10)
	if last > most {
		t.Errorf("%s: wanted at most %d KiB in the last third, got %d KiB; in the first %d KiB", what, most>>10, last>>10, first>>10)
	}
}

// makeRound makes a little of everything, from both ends at once.
func (f *flooded) makeRound(t *testing.T, round int) {
	t.Helper()
	failed := make(chan error, 2)
	for end := range 2 {
		go func() {
			_, err := f.callers[end].ask(mixed(2 - end))
			failed <- err
		}()
	}
	if round%5 == 0 {
		f.flooders[0].do(t, attempt.Request{Steps: soakFloods(round)})
	}
	if err := errors.Join(<-failed, <-failed); err != nil {
		t.Fatal(err)
	}
}

// mixed are calls of a host over the veth pair.
func mixed(to int) attempt.Request {
	var steps []attempt.Step
	for _, family := range families {
		host := overVeth.address(family, to)
		calls := []attempt.Step{
			{Do: attempt.Call, Protocol: attempt.TCP, Dst: at(host, tcpPort)},
			{Do: attempt.Call, Protocol: attempt.TCP, Dst: at(host, closedPort)},
			{Do: attempt.Call, Protocol: attempt.UDP, Dst: at(host, udpPort)},
			{Do: attempt.Call, Protocol: attempt.UDP, Dst: at(host, closedPort), Connected: true},
		}
		steps = append(steps, slices.Repeat(calls, 5)...)
		flows := attempt.Step{Do: attempt.Flows, Socket: "flow", Protocol: attempt.UDP, Sockets: 16, Count: 3, Dst: at(host, udpPort)}
		steps = append(steps, attempt.Step{Do: attempt.Child, Steps: append(calls, flows)})
	}
	return attempt.Request{Steps: steps}
}

// soakFloods are each of other sources.
func soakFloods(round int) []attempt.Step {
	victim := at(overVeth.address(4, 2), victimPort)
	sources := forgedSource.Addr().As4()
	sources[1], sources[2] = byte(18+round&1), byte(round)
	return []attempt.Step{
		{Do: attempt.Flood, Protocol: attempt.UDP, Count: 2000, Dst: victim},
		{Do: attempt.Flood, Protocol: attempt.TCP, Count: 2000, Dst: victim, Src: at(netip.AddrFrom4(sources), 4000)},
	}
}

// sample is what the gadget takes at one time.
type sample struct {
	after   time.Duration
	entries map[string]int // by map
	heap    uint64         // live objects of this process, which runs the gadget, in bytes
	rss     uint64         // of this process, in bytes
	maps    uint64         // memory of the gadget's maps, in bytes
}

func (s sample) String() string {
	cells := []string{s.after.Round(time.Second).String()}
	for _, name := range countedMaps {
		cells = append(cells, fmt.Sprint(s.entries[name]))
	}
	return row(append(cells, fmt.Sprint(s.heap>>10), fmt.Sprint(s.rss>>10), fmt.Sprint(s.maps>>10)))
}

func row(cells []string) string {
	var b strings.Builder
	for _, cell := range cells {
		fmt.Fprintf(&b, "%13s", cell)
	}
	return b.String()
}

// countedMaps are those whose entries come and go, by the names that the kernel
// has for them (BPF_OBJ_NAME_LEN).
var countedMaps = []string{"connections", "ports", "sockets", "calls", "attempts", "flows", "socket_paths", "limits", "telling"}

// books are the maps of a running gadget.
type books struct {
	maps    map[string]*ebpf.Map
	memory  []*ebpf.Map // all of them
	network map[uint32]bool
}

// newBooks finds the maps that were not known before.
func newBooks(t *testing.T, known []string, p *pair) *books {
	t.Helper()
	b := &books{maps: map[string]*ebpf.Map{}, network: map[uint32]bool{}}
	for _, ns := range p.ends {
		b.network[ns.inode] = true
	}
	ids, err := ebpfMaps()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if slices.Contains(known, id) {
			continue
		}
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		m, err := ebpf.NewMapFromID(ebpf.MapID(n))
		if err != nil {
			t.Fatalf("map %s: %v", id, err)
		}
		info, err := m.Info()
		if err != nil {
			t.Fatalf("map %s: %v", id, err)
		}
		b.memory = append(b.memory, m)
		b.maps[info.Name] = m
	}
	for _, name := range countedMaps {
		if b.maps[name] == nil {
			t.Fatalf("the gadget has no map %q", name)
		}
	}
	return b
}

func (b *books) close() {
	for _, m := range b.memory {
		m.Close()
	}
}

func (b *books) sample(t *testing.T, after time.Duration) sample {
	t.Helper()
	s := sample{after: after, entries: map[string]int{}}
	for _, name := range countedMaps {
		s.entries[name] = b.count(t, name, func(_, _ []byte) bool { return true })
	}
	for _, m := range b.memory {
		info, err := m.Info()
		if err != nil {
			t.Fatal(err)
		}
		bytes, _ := info.Memlock()
		s.maps += bytes
	}
	s.heap, s.rss = memory(t)
	return s
}

// memory is this process's, without what is garbage: live objects and RSS, in
// bytes.
func memory(t *testing.T) (heap, rss uint64) {
	t.Helper()
	debug.FreeOSMemory()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size, resident uint64
	if _, err := fmt.Sscan(string(statm), &size, &resident); err != nil {
		t.Fatalf("reading %q: %v", statm, err)
	}
	return stats.HeapAlloc, resident * uint64(os.Getpagesize())
}

// count counts entries. A map that changes meanwhile is counted again.
func (b *books) count(t *testing.T, name string, counts func(key, value []byte) bool) int {
	t.Helper()
	n := 0
	err := eventually(func() error {
		n = 0
		var key, value []byte
		entries := b.maps[name].Iterate()
		for entries.Next(&key, &value) {
			if counts(key, value) {
				n++
			}
		}
		return entries.Err()
	})
	if err != nil {
		t.Fatalf("counting the entries of %s: %v", name, err)
	}
	return n
}

// tuple, portKey and entries are those of ebpf/socket.h and ebpf/books.h.
type tuple struct {
	_                     [2][16]byte
	NetNS                 uint32
	LocalPort, RemotePort uint16
	Version, Protocol     uint8
	_                     [6]uint8
}

type portKey struct {
	Local tuple
	_     [2]uint64
}

type entries struct {
	_          uint64
	Connection tuple
	Port       portKey
}

// bookEntries are how many entries each of the gadget's books has.
type bookEntries struct{ Connections, Ports, Sockets int }

// entriesOfPair are those of the test's namespaces.
func (b *books) entriesOfPair(t *testing.T) bookEntries {
	t.Helper()
	return bookEntries{
		Connections: b.count(t, "connections", func(key, _ []byte) bool {
			return b.network[decode[tuple](t, key).NetNS]
		}),
		Ports: b.count(t, "ports", func(key, _ []byte) bool {
			return b.network[decode[portKey](t, key).Local.NetNS]
		}),
		Sockets: b.count(t, "sockets", func(_, value []byte) bool {
			e := decode[entries](t, value)
			return b.network[e.Connection.NetNS] || b.network[e.Port.Local.NetNS]
		}),
	}
}

// decode reads all of data, and no more.
func decode[T any](t *testing.T, data []byte) (v T) {
	t.Helper()
	if n, err := binary.Decode(data, binary.NativeEndian, &v); err != nil || n != len(data) {
		t.Fatalf("%T has %d bytes, the gadget's %d: %v", v, n, len(data), err)
	}
	return v
}
