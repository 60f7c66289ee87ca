// SPDX-License-Identifier: Apache-2.0

// Package unit tests the gadget's socket filter alone: one packet, one verdict.
package unit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
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
	}
	return nil
}

// A gadget is the socket filter, loaded on its own.
type gadget struct {
	program *ebpf.Program
	books   map[string]*book
	// counters are those of struct counters, by CPU.
	counters *book
	reader   *perf.Reader
	targets  *ebpf.Map // of dispatch

	events *eventLayout

	record perf.Record
	skb    [17]uint32 // struct __sk_buff up to cb[0..4]
	run    ebpf.RunOptions
}

// cb0 is the index of cb[0] in struct __sk_buff, counted in 4 bytes.
const cb0 = 12

// load loads the gadget for a test, and unloads it when the test ends.
func load(tb testing.TB, params parameters) *gadget {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: loads eBPF programs")
	}
	g, err := newGadget(params)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(g.close)
	return g
}

func newGadget(params parameters) (*gadget, error) {
	spec, err := object.Read()
	if err != nil {
		return nil, err
	}
	program, err := keepSocketFilter(spec)
	if err != nil {
		return nil, err
	}
	limit := parameters{"rate_limit": uint32(0)} // tests are floods
	if err := errors.Join(limit.set(spec), params.set(spec)); err != nil {
		return nil, err
	}
	g := &gadget{}
	if g.events, err = newEventLayout(spec.Types); err != nil {
		return nil, err
	}
	return g, g.load(spec, program)
}

func (g *gadget) load(spec *ebpf.CollectionSpec, program string) error {
	c, err := object.Load(spec)
	if err != nil {
		return err
	}
	defer c.Close()

	g.reader, err = perf.NewReader(c.Maps["events"], ringSize)
	if err != nil {
		return fmt.Errorf("opening the events: %w", err)
	}
	g.program = c.DetachProgram(program)
	if g.counters, err = newBook(spec.Maps["counters"], c.DetachMap("counters")); err != nil {
		return err
	}
	g.books = map[string]*book{}
	for _, name := range []string{connectionBook, portBook, pageBook, igBook} {
		if g.books[name], err = newBook(spec.Maps[name], c.DetachMap(name)); err != nil {
			return err
		}
	}
	return nil
}

func (g *gadget) close() {
	_ = g.reader.Close()
	_ = g.program.Close()
	_ = g.counters.Close()
	if g.targets != nil {
		_ = g.targets.Close()
	}
	for _, b := range g.books {
		_ = b.Close()
	}
}

// keepSocketFilter leaves the socket filter and its maps, and returns its name:
// the object's other programs may be of kinds that this kernel cannot load.
func keepSocketFilter(spec *ebpf.CollectionSpec) (name string, err error) {
	needed := map[string]bool{}
	for n, p := range spec.Programs {
		if p.Type != ebpf.SocketFilter {
			delete(spec.Programs, n)
			continue
		}
		if name != "" {
			return "", fmt.Errorf("the eBPF object has two socket filters: %s and %s", name, n)
		}
		name = n
		for _, ins := range p.Instructions {
			if ins.IsLoadFromMap() {
				needed[ins.Reference()] = true
			}
		}
	}
	for n := range spec.Maps {
		if !needed[n] {
			delete(spec.Maps, n)
		}
	}
	for n, v := range spec.Variables {
		if !needed[v.SectionName] {
			delete(spec.Variables, n)
		}
	}
	if name == "" {
		return "", errors.New("the eBPF object has no socket filter")
	}
	return name, nil
}

// test runs the program for an Ethernet frame that the loopback device of this
// network namespace receives, as the namespace netns.
func (g *gadget) test(frame []byte, netns uint32) error {
	g.skb[cb0] = netns
	g.run.Data = frame
	g.run.Context = g.skb[:]
	_, err := g.program.Run(&g.run)
	if errors.Is(err, unix.EINVAL) && isTooShortToTest(frame) {
		return errRejected
	}
	return err
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
	if want := g.events.sent(); len(b) != want {
		return event{}, 0, fmt.Errorf("an event has %d bytes, want %d", len(b), want)
	}
	return g.events.decode(b), g.events.timestamp.uint(b), nil
}

// verdict gives the program a frame and returns what it reports.
func (g *gadget) verdict(frame []byte, netns uint32) ([]event, error) {
	if err := g.test(frame, netns); err != nil && !errors.Is(err, errRejected) {
		return nil, err
	}
	return g.drain(nil)
}
