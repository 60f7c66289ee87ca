// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// setEnding says whether what is received waits for no answer any more.
func (g *gadget) setEnding(tb testing.TB, ends bool) {
	tb.Helper()
	if err := g.books[endingBook].Put(uint32(0), bit(ends)); err != nil {
		tb.Fatal(err)
	}
}

// arrived is what the gadget counts of what is received and waits.
type arrived struct{ begun, ended, answered, unserved uint64 }

func (g *gadget) arrived(tb testing.TB) arrived {
	tb.Helper()
	b := g.books[arrivingBook]
	value := make([]byte, b.value.size)
	if err := b.Lookup(uint32(0), value); err != nil {
		tb.Fatal(err)
	}
	number := func(name string) uint64 { return b.value.field(name).uint(value) }
	return arrived{number("begun"), number("ended"), number("answered"), number("unserved")}
}

// expectArrived compares the counters.
func (g *gadget) expectArrived(tb testing.TB, what string, want arrived) {
	tb.Helper()
	if got := g.arrived(tb); got != want {
		tb.Errorf("%s the gadget counts\n got %+v\nwant %+v", what, got, want)
	}
}

// ageArrivals makes it a time ago that they were seen.
func (g *gadget) ageArrivals(tb testing.TB, by time.Duration) {
	tb.Helper()
	b := g.books[arrivalBook]
	now := b.value.field("now")
	b.rewrite(tb, func(value []byte) { now.putUint(value, now.uint(value)-uint64(by)) })
}

// settled is what the clock reports until nothing waits.
func (g *gadget) settled(t *testing.T) (events []event) {
	t.Helper()
	for c := g.arrived(t); c.begun != c.ended; {
		events = append(events, g.ticked(t)...)
		before := c
		if c = g.arrived(t); c == before {
			t.Fatalf("the clock settles nothing: %+v", c)
		}
	}
	return events
}

// awaiting is a gadget in which what is received waits, on one CPU.
func awaiting(t *testing.T, params parameters) *gadget {
	t.Helper()
	stayOnOneCPU(t)
	return setup{params: params, clock: true, awaits: true}.load(t)
}

func TestAReceivedSYNIsNobodysWhenNoAnswerComes(t *testing.T) {
	for _, p := range []packet{tcp4, tcp6} {
		t.Run(p.title(), func(t *testing.T) {
			g := awaiting(t, nil)
			nobodys := eventsOf([]packet{p}, process{})
			// The port names no listener.
			g.bookPort(t, entry{netns: someNetNS, local: p.to(), proto: p.proto, owner: someone})
			before := bootTime(t)
			if err := g.test(p.frame(), someNetNS); err != nil {
				t.Fatal(err)
			}
			after := bootTime(t)
			g.ageArrivals(t, -time.Hour)
			compare(t, "before its time", g.ticked(t), nil)
			g.expectArrived(t, "before its time", arrived{begun: 1})
			g.expect(t, counted{})

			g.ageArrivals(t, time.Hour+time.Second)
			if err := g.tick(); err != nil {
				t.Fatal(err)
			}
			e, at, err := g.next(time.Now().Add(patience))
			if err != nil {
				t.Fatal(err)
			}
			compare(t, "at its time", []event{e}, nobodys)
			if at < before || at > after {
				t.Errorf("the event that waited is of time %d, want one from %d to %d", at, before, after)
			}
			compare(t, "after it", g.ticked(t), nil)
			g.expectArrived(t, "after it", arrived{begun: 1, ended: 1})
			g.expect(t, counted{reported: 1})
		})
	}
}

func TestAReceivedSYNWaitsHalfASecond(t *testing.T) {
	g := awaiting(t, nil)
	earliest := bootTime(t) + uint64(time.Second/2)
	got := append(g.give(t, tcp4), g.ticked(t)...)
	// A machine may be too slow to ask in time.
	if bootTime(t) < earliest {
		compare(t, "at once", got, nil)
	}
	g.ageArrivals(t, time.Second/2)
	compare(t, "after half a second", append(got, g.ticked(t)...), eventsOf([]packet{tcp4}, process{}))
}

// TestNothingWaitsWhenARunEnds: what does is settled, by the clock or by packets, and
// what comes then at once.
func TestNothingWaitsWhenARunEnds(t *testing.T) {
	const packets = 10
	g := awaiting(t, nil)
	waiting := series(tcp4, packets)
	compare(t, "before the end", g.give(t, waiting...), nil)
	g.setEnding(t, true)
	compare(t, "a datagram at the end", g.give(t, udp4), eventsOf([]packet{udp4, waiting[0], waiting[1]}, process{}))
	compare(t, "a tick at the end", g.ticked(t), eventsOf(waiting[2:6], process{}))
	compare(t, "by and by", g.settled(t), eventsOf(waiting[6:], process{}))
	compare(t, "a SYN at the end", g.give(t, tcp6), eventsOf([]packet{tcp6}, process{}))
	g.expectArrived(t, "at the end", arrived{begun: packets + 1, ended: packets + 1})
	g.expect(t, counted{reported: packets + 2})
}

// TestWhatNeedsNoAnswerDoesNotWait: nor does it wait for what does.
func TestWhatNeedsNoAnswerDoesNotWait(t *testing.T) {
	g := awaiting(t, nil)
	self := between(protoTCP, here4, here4)
	g.bookConnection(t, entry{netns: someNetNS, local: here4, remote: here4, proto: protoTCP, owner: someone})
	g.bookPort(t, entry{netns: someNetNS, local: udp4.to(), proto: protoUDP, owner: someone})
	g.give(t, tcp4)
	compare(t, "a SYN to oneself", g.give(t, self), eventsOf([]packet{self}, someone))
	compare(t, "a datagram", g.give(t, udp4), eventsOf([]packet{udp4}, someone))
	g.expectArrived(t, "after them", arrived{begun: 1})
}

// TestTooManyThatWaitAreSettledByPackets: the oldest first, and none is lost.
func TestTooManyThatWaitAreSettledByPackets(t *testing.T) {
	const packets, most = 700, 512
	g := awaiting(t, nil)
	all := series(tcp4, packets)
	for i, p := range all {
		if err := g.test(p.frame(), someNetNS); err != nil {
			t.Fatal(err)
		}
		if c := g.arrived(t); c.begun != uint64(i+1) || c.begun-c.ended > most {
			t.Fatalf("after %d SYNs the gadget counts %+v, want %d at most that wait", i+1, c, most)
		}
	}
	got, err := g.drain(nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) < packets-most {
		t.Errorf("of %d SYNs %d were settled by the others, want %d", packets, len(got), packets-most)
	}
	g.setEnding(t, true)
	compare(t, "of more than can wait", append(got, g.settled(t)...), eventsOf(all, process{}))
	g.expectArrived(t, "at the end", arrived{begun: packets, ended: packets})
	g.expect(t, counted{reported: packets})
}

// TestTheSameSYNTwiceIsReportedTwice: the second does not wait with the first.
func TestTheSameSYNTwiceIsReportedTwice(t *testing.T) {
	g := awaiting(t, nil)
	one := eventsOf([]packet{tcp4}, process{})
	for round := range uint64(3) {
		g.setEnding(t, false)
		compare(t, fmt.Sprintf("round %d, the first", round), g.give(t, tcp4), nil)
		compare(t, fmt.Sprintf("round %d, the second", round), g.give(t, tcp4), one)
		if want := 2*round + 1; g.retries != want {
			t.Errorf("round %d: the second has %d retries, want %d", round, g.retries, want)
		}
		// The second does not wait.
		g.expectArrived(t, "between them", arrived{begun: 2*round + 2, ended: 2*round + 1})
		g.setEnding(t, true)
		compare(t, fmt.Sprintf("round %d, by the clock", round), g.settled(t), one)
		if want := 2 * round; g.retries != want {
			t.Errorf("round %d: the first has %d retries, want %d", round, g.retries, want)
		}
	}
}

// TestTheFiltersApplyToWhatHasWaited when it is known whose it is: nobody's.
func TestTheFiltersApplyToWhatHasWaited(t *testing.T) {
	g := awaiting(t, parameters{"targ_pid": uint32(someone.PID)})
	compare(t, "at once", g.give(t, tcp4), nil)
	g.expect(t, counted{})
	g.setEnding(t, true)
	compare(t, "by the clock", g.settled(t), nil)
	g.expect(t, counted{leftOutReceived: 1})
}

// TestTwoClocksSettleEachSYNOnce has both CPUs settle what waits, while packets do.
func TestTwoClocksSettleEachSYNOnce(t *testing.T) {
	const packets = 500
	g := setup{clock: true, awaits: true}.load(t)
	all := series(tcp4, packets)
	g.give(t, all...)
	g.setEnding(t, true)
	got := g.tickOnTwoCPUs(t, packets)
	compare(t, "of both clocks", got, eventsOf(all, process{}))
	g.expectArrived(t, "after them", arrived{begun: packets, ended: packets})
}

// TestTwoCPUsSettleEachOthersSYNs as more come than can wait: each once, and as it was.
func TestTwoCPUsSettleEachOthersSYNs(t *testing.T) {
	const packets = 20_000 // on each CPU
	g := setup{ring: 16 << 20, clock: true, awaits: true}.load(t)
	var ports atomic.Uint32 // one for each CPU
	onTwoCPUs(t, func() error {
		one := giver{program: g.program}
		p := tcp4.with(toPort(uint16(ports.Add(1))))
		for n := range packets {
			p.sport = uint16(n)
			if err := one.test(p.frame(), someNetNS); err != nil {
				return err
			}
		}
		return nil
	})
	got, err := g.drain(nil)
	if err != nil {
		t.Fatal(err)
	}
	g.setEnding(t, true)
	got = append(got, g.settled(t)...)
	g.expectArrived(t, "of two CPUs' SYNs", arrived{begun: 2 * packets, ended: 2 * packets})
	seen := map[event]int{}
	for _, e := range got {
		seen[e]++
	}
	for port := range uint16(2) {
		for n := range packets {
			p := tcp4.with(func(p *packet) { p.sport, p.dport = uint16(n), port+1 })
			if e := p.event(false, someNetNS); seen[e] != 1 {
				t.Errorf("%v was reported %d times, want once", e, seen[e])
			}
		}
	}
	if len(got) != 2*packets {
		t.Errorf("of %d SYNs there are %d events", 2*packets, len(got))
	}
}
