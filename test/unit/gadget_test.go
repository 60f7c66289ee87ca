// SPDX-License-Identifier: Apache-2.0

// Package unit tests the gadget's socket filter alone: one packet, one verdict.
package unit

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/perf"
	"golang.org/x/sys/unix"

	"gadget.example/network/test/object"
)

const (
	// Enough for every event of a batch of the fuzzer, in bytes per CPU.
	ringSize = 1 << 20
	// What a condition may take before it counts as failed.
	patience = 10 * time.Second
)

// errRejected: the kernel did not take the frame, so there is no verdict.
var errRejected = errors.New("the kernel rejects this frame")

// parameters are values for the object's variables, by their names.
type parameters map[string]any

func (p parameters) set(spec *ebpf.CollectionSpec) error {
	for name, value := range p {
		v := spec.Variables[name]
		if v == nil {
			return fmt.Errorf("the eBPF object has no parameter %s", name)
		}
		if err := v.Set(value); err != nil {
			return fmt.Errorf("setting parameter %s: %w", name, err)
		}
		// A map's size is a parameter by its name alone, see IG's ebpf.go.
		if name, found := strings.CutSuffix(name, "_max_entries"); found {
			spec.Maps[name].MaxEntries = value.(uint32)
		}
	}
	return nil
}

// A setup is how a test loads the gadget.
type setup struct {
	params parameters
	ring   int  // bytes per CPU; 0: ringSize
	clock  bool // with the clock, which is still: see gadget.tick()
	older  bool // with what books the sockets that are there, see gadget.bookOlder()
	awaits bool // what is received waits for the kernel's answer, which never comes
}

// A gadget is the socket filter, loaded on its own.
type gadget struct {
	giver // for one thread
	clock *ebpf.Program

	collection *ebpf.Collection
	books      map[string]*book
	reader     *perf.Reader
	targets    []*ebpf.Map // of dispatch

	events *eventLayout
	paths  bool // events have them

	record  perf.Record
	retries uint64 // of the last event, but for sentinels
}

// load loads the gadget for a test, and unloads it when the test ends.
func load(tb testing.TB, params parameters) *gadget {
	tb.Helper()
	return setup{params: params}.load(tb)
}

func (s setup) load(tb testing.TB) *gadget {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: loads eBPF programs")
	}
	spec, err := object.Read()
	if err != nil {
		tb.Fatal(err)
	}
	limit := parameters{"rate_limit": uint32(0)} // tests are floods
	if err := errors.Join(limit.set(spec), s.params.set(spec), s.reduce(spec)); err != nil {
		tb.Fatal(err)
	}
	c, err := object.Load(spec)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	g := s.open(tb, spec, c)
	if !s.awaits {
		g.setEnding(tb, true)
	}
	return g
}

// open takes the gadget from what is loaded.
func (s setup) open(tb testing.TB, spec *ebpf.CollectionSpec, c *ebpf.Collection) *gadget {
	tb.Helper()
	g := &gadget{collection: c, books: map[string]*book{}, paths: s.params["paths"] == true}
	var err error
	if g.events, err = newEventLayout(spec.Types); err != nil {
		tb.Fatal(err)
	}
	for _, name := range allBooks {
		if g.books[name], err = newBook(spec.Maps[name], c.Maps[name]); err != nil {
			tb.Fatal(err)
		}
	}
	g.program, g.clock = c.Programs[filterProgram], c.Programs[clockProgram]
	if g.reader, err = perf.NewReader(c.Maps["events"], cmp.Or(s.ring, ringSize)); err != nil {
		tb.Fatalf("opening the events: %v", err)
	}
	tb.Cleanup(g.close)
	return g
}

func (g *gadget) close() {
	_ = g.reader.Close()
	for _, m := range g.targets {
		_ = m.Close()
	}
}

// The programs by their names in the object.
const (
	filterProgram = "network"
	clockProgram  = "network_timeout"
	olderProgram  = "network_older"
)

// reduce leaves the socket filter, and what else is asked for: the object's other
// programs may be of kinds that this kernel cannot load.
func (s setup) reduce(spec *ebpf.CollectionSpec) error {
	filter, clock, older := spec.Programs[filterProgram], spec.Programs[clockProgram], spec.Programs[olderProgram]
	if filter == nil || filter.Type != ebpf.SocketFilter || clock == nil || older == nil {
		return fmt.Errorf("the eBPF object lacks the socket filter %s, %s or %s", filterProgram, clockProgram, olderProgram)
	}
	kept := []string{filterProgram}
	if s.clock {
		// A test can run the program of a raw tracepoint, but none of a kprobe; the
		// clock reads nothing of what either is given.
		clock.Type, clock.AttachTo = ebpf.RawTracepoint, ""
		kept = append(kept, clockProgram)
	}
	if s.older {
		kept = append(kept, olderProgram)
	}
	return object.Keep(spec, kept...)
}

// A giver gives the program frames, one after the other.
type giver struct {
	program *ebpf.Program
	skb     [17]uint32 // struct __sk_buff up to cb[0..4]
	run     ebpf.RunOptions
}

// cb0 is the index of cb[0] in struct __sk_buff, counted in 4 bytes.
const cb0 = 12

// test runs the program for an Ethernet frame that the loopback device of this
// network namespace receives, as the namespace netns.
func (g *giver) test(frame []byte, netns uint32) error {
	g.skb[cb0] = netns
	g.run.Data = frame
	g.run.Context = g.skb[:]
	_, err := g.program.Run(&g.run)
	if errors.Is(err, unix.EINVAL) && isTooShortToTest(frame) {
		return errRejected
	}
	return err
}

// tick runs the clock on this CPU.
func (g *gadget) tick() error {
	if _, err := g.clock.Run(&ebpf.RunOptions{}); err != nil {
		return fmt.Errorf("running the clock: %w", err)
	}
	return nil
}

// isTooShortToTest finds the frames that bpf_prog_test_run_skb() may reject:
// without anything behind the link header, or without a whole IP header.
func isTooShortToTest(frame []byte) bool {
	if len(frame) <= ethernetLen {
		return true
	}
	switch binary.BigEndian.Uint16(frame[ethernetLen-2:]) {
	case typeIPv4:
		return len(frame) < ethernetLen+20
	case typeIPv6:
		return len(frame) < ethernetLen+40
	default:
		return false
	}
}

// drain appends the events that were reported so far. An event is in the ring
// when the run that made it returns, so that there is nothing to wait for.
func (g *gadget) drain(to []event) ([]event, error) {
	for {
		e, _, err := g.next(time.Unix(1, 0))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return to, nil
		}
		if err != nil {
			return to, err
		}
		to = append(to, e)
	}
}

// next returns the next event and its time, in nanoseconds since the boot.
func (g *gadget) next(deadline time.Time) (event, uint64, error) {
	g.reader.SetDeadline(deadline)
	if err := g.reader.ReadInto(&g.record); err != nil {
		return event{}, 0, err
	}
	if g.record.LostSamples > 0 {
		return event{}, 0, fmt.Errorf("the kernel lost %d events", g.record.LostSamples)
	}
	b := g.record.RawSample
	if want := g.events.sent(g.paths); len(b) != want {
		return event{}, 0, fmt.Errorf("an event has %d bytes, want %d", len(b), want)
	}
	e, err := g.events.decode(b)
	if !isSentinel(e) {
		g.retries = g.events.retries.uint(b)
	}
	return e, g.events.timestamp.uint(b), err
}

// verdict gives the program a frame and returns what it reports.
func (g *gadget) verdict(frame []byte, netns uint32) ([]event, error) {
	if err := g.test(frame, netns); err != nil && !errors.Is(err, errRejected) {
		return nil, err
	}
	return g.drain(nil)
}
