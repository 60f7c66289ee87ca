// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// counted is what the gadget says has become of the attempts that it was given.
type counted struct {
	reported, lost, withheld     uint64
	withoutRing                  uint64 // of the withheld
	leftOutSent, leftOutReceived uint64
	unsent, announced            uint64 // wait in the queues
}

// attempts are all that passed the filters.
func (c counted) attempts() uint64 {
	return c.reported + c.lost + c.withheld + c.unsent + c.announced
}

// counted sums up the counters of all CPUs.
func (g *gadget) counted(tb testing.TB) (sum counted) {
	tb.Helper()
	var values [][]byte
	counters, queued := g.books[counterBook], g.books[queuedBook]
	queues := make([]byte, queued.value.size)
	if err := errors.Join(counters.Lookup(uint32(0), &values), queued.Lookup(uint32(0), queues)); err != nil {
		tb.Fatal(err)
	}
	for _, value := range values {
		for name, n := range map[string]*uint64{
			"reported": &sum.reported, "lost": &sum.lost, "withheld": &sum.withheld, "without_ring": &sum.withoutRing,
			"left_out_sent": &sum.leftOutSent, "left_out_received": &sum.leftOutReceived,
		} {
			*n += counters.value.field(name).uint(value)
		}
	}
	number := func(name string) uint64 { return queued.value.field(name).uint(queues) }
	sum.unsent = number("unsent_in") - number("unsent_out")
	sum.announced = number("announced_in") - number("announced_out")
	return sum
}

// expect compares the counters.
func (g *gadget) expect(tb testing.TB, want counted) {
	tb.Helper()
	if got := g.counted(tb); got != want {
		tb.Errorf("the gadget counts\n got %+v\nwant %+v", got, want)
	}
}

// told are the attempts that were withheld, by events.
func told(events []event) (n uint64) {
	for _, e := range events {
		n += e.Suppressed
	}
	return n
}

// telling is an event that tells of n that were withheld.
func telling(e event, n uint64) event {
	e.Suppressed = n
	return e
}

// setBuckets sets the time at which the buckets of all owners are full again, in
// nanoseconds since the boot.
func (g *gadget) setBuckets(tb testing.TB, full uint64) {
	tb.Helper()
	limits := g.books[limitBook]
	limits.rewrite(tb, func(value []byte) { limits.value.field("attempts").putUint(value, full) })
}

// emptyBuckets leaves no owner a token, for as long as a test can last.
func (g *gadget) emptyBuckets(tb testing.TB) {
	tb.Helper()
	g.setBuckets(tb, bootTime(tb)+uint64(time.Hour))
}

// crowd leaves a family, of which nothing is known yet, no limit for another young
// process, for as long as a test can last.
func (g *gadget) crowd(tb testing.TB, netns, family uint32) {
	tb.Helper()
	limits := g.books[limitBook]
	key, value := make([]byte, limits.key.size), make([]byte, limits.value.size)
	for name, n := range map[string]uint64{"netns": uint64(netns), "pid": uint64(family), "family": 1} {
		limits.key.field(name).putUint(key, n)
	}
	limits.value.field("newcomers").putUint(value, bootTime(tb)+uint64(time.Hour))
	if err := limits.Update(key, value, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		tb.Fatal(err)
	}
}

func (g *gadget) fillBuckets(tb testing.TB) {
	tb.Helper()
	g.setBuckets(tb, 0)
}

// age makes the events that wait in a queue older; negative: younger.
func (g *gadget) age(tb testing.TB, queue string, by time.Duration) {
	tb.Helper()
	q := g.books[queue]
	at := field{q.value.field("event").offset + g.events.timestamp.offset, g.events.timestamp.size}
	var all [][]byte
	for {
		value := make([]byte, q.value.size)
		err := q.LookupAndDelete(nil, value)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			break
		}
		if err != nil {
			tb.Fatal(fmt.Errorf("taking an event out of %s: %w", queue, err))
		}
		at.putUint(value, at.uint(value)-uint64(by))
		all = append(all, value)
	}
	for _, value := range all {
		if err := q.Put(nil, value); err != nil {
			tb.Fatal(fmt.Errorf("putting an event back into %s: %w", queue, err))
		}
	}
}

// forgetFlows makes the next datagram between any two ends the first one.
func (g *gadget) forgetFlows(tb testing.TB) {
	tb.Helper()
	g.books[flowBook].clear(tb)
}

// ageFlows makes it a time ago that anything was seen of the flows.
func (g *gadget) ageFlows(tb testing.TB, by time.Duration) {
	tb.Helper()
	flows := g.books[flowBook]
	flows.rewrite(tb, func(value []byte) {
		for _, name := range []string{"last", "answered"} {
			if f := flows.value.field(name); f.uint(value) != 0 {
				f.putUint(value, f.uint(value)-uint64(by))
			}
		}
	})
}

// series are n attempts that differ in the initiator's port.
func series(p packet, n int) (all []packet) {
	for i := range n {
		all = append(all, p.with(ports(p.sport+uint16(i), p.dport)))
	}
	return all
}

// eventsOf are what is reported of packets that were received.
func eventsOf(packets []packet, by process) (all []event) {
	for _, p := range packets {
		all = append(all, owned(p.event(false, someNetNS), by))
	}
	return all
}

// compare fails the test when events are not those that are wanted.
func compare(tb testing.TB, what string, got, want []event) {
	tb.Helper()
	if !slices.Equal(got, want) {
		tb.Errorf("%s\n got %v\nwant %v", what, got, want)
	}
}

// give gives the program packets and returns what it reports, by and by.
func (g *gadget) give(tb testing.TB, packets ...packet) (events []event) {
	tb.Helper()
	for _, p := range packets {
		got, err := g.verdict(p.frame(), someNetNS)
		if err != nil {
			tb.Fatal(err)
		}
		events = append(events, got...)
	}
	return events
}

// pause takes the rings away from all CPUs.
func (g *gadget) pause(tb testing.TB) {
	tb.Helper()
	if err := g.reader.Pause(); err != nil {
		tb.Fatal(err)
	}
}

// resume gives the rings back.
func (g *gadget) resume(tb testing.TB) {
	tb.Helper()
	if err := g.reader.Resume(); err != nil {
		tb.Fatal(err)
	}
}
