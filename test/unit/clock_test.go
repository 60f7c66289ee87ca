// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// ticking is a gadget with a rate limit and a clock, on one CPU.
func ticking(t *testing.T, ring int) *gadget {
	t.Helper()
	stayOnOneCPU(t)
	return setup{params: parameters{"rate_limit": uint32(1000)}, ring: ring, clock: true}.load(t)
}

// ticked is what the clock sends at once.
func (g *gadget) ticked(t *testing.T) []event {
	t.Helper()
	if err := g.tick(); err != nil {
		t.Fatal(err)
	}
	events, err := g.drain(nil)
	if err != nil {
		t.Fatal(err)
	}
	return events
}

func TestTheClockTellsWhatWasWithheldLast(t *testing.T) {
	const packets = 5
	g := ticking(t, ringSize)
	own := eventsOf(series(tcp4, packets), process{})
	g.give(t, tcp6)
	for round := range uint64(3) {
		g.emptyBuckets(t)
		compare(t, "with no token", g.give(t, series(tcp4, packets)...), nil)
		g.age(t, announcedBook, -time.Hour)
		compare(t, "before its time", g.ticked(t), nil)
		g.age(t, announcedBook, time.Hour+time.Second)
		compare(t, "at its time", g.ticked(t), []event{telling(own[0], packets-1)})
		compare(t, "after it", g.ticked(t), nil)
		g.expect(t, counted{reported: 2 + round, withheld: (round + 1) * (packets - 1)})
	}
}

func TestTheClockWaitsHalfASecondForAnEventThatTells(t *testing.T) {
	g := ticking(t, ringSize)
	g.give(t, tcp6)
	g.emptyBuckets(t)
	earliest := bootTime(t) + uint64(time.Second/2)
	g.give(t, tcp4, tcp4)
	// A machine may be too slow to ask in time.
	if got := g.ticked(t); bootTime(t) < earliest {
		compare(t, "at once", got, nil)
	}
}

func TestTheClockTellsNothingThatAnEventHasTold(t *testing.T) {
	g := ticking(t, ringSize)
	g.give(t, tcp6)
	g.emptyBuckets(t)
	g.give(t, series(tcp4, 5)...)
	g.fillBuckets(t)
	compare(t, "the owner's next event", g.give(t, tcp6), []event{telling(tcp6.event(false, someNetNS), 4)})
	g.age(t, announcedBook, time.Second)
	compare(t, "the clock", g.ticked(t), []event{tcp4.event(false, someNetNS)})
	g.expect(t, counted{reported: 3, withheld: 4})
}

func TestTheClockAnnouncesEachOwner(t *testing.T) {
	g := ticking(t, ringSize)
	var want []event
	for pid := uint64(1); pid <= 3; pid++ {
		packets, owner := g.ofProcess(t, pid, int(pid)+2)
		g.give(t, packets[0])
		g.emptyBuckets(t)
		g.give(t, packets[1:]...)
		want = append(want, telling(owned(packets[1].event(false, someNetNS), owner), pid))
	}
	g.age(t, announcedBook, time.Second)
	compare(t, "three owners'", g.ticked(t), want)
}

func TestTheClockSendsWhatWaits(t *testing.T) {
	const packets, each = 100, 64
	g := ticking(t, ringSize)
	want := eventsOf(series(tcp4, packets), process{})
	g.pause(t)
	g.give(t, series(tcp4, packets)...)
	compare(t, "without a ring", g.ticked(t), nil)
	g.expect(t, counted{unsent: packets})
	g.resume(t)
	for len(want) > 0 {
		n := min(each, len(want))
		compare(t, fmt.Sprintf("with a ring, %d at once", n), g.ticked(t), want[:n])
		want = want[n:]
	}
	compare(t, "with nothing left", g.ticked(t), nil)
	g.expect(t, counted{reported: packets})
}

// TestTheClockLeavesRoomInARing has packets fill what the clock leaves.
func TestTheClockLeavesRoomInARing(t *testing.T) {
	const ring, leaves = 32 << 10, 16 << 10
	g := ticking(t, ring)
	all := eventsOf(series(tcp4, 200), process{})
	g.pause(t)
	g.give(t, series(tcp4, 200)...)
	g.resume(t)
	var err error
	for range 10 {
		err = errors.Join(err, g.tick())
	}
	if err != nil {
		t.Fatal(err)
	}
	got, err := g.drain(nil)
	if err != nil {
		t.Fatal(err)
	}
	record := (8 + 4 + g.events.sent(false) + 7) / 8 * 8
	most := (ring - leaves) / record
	if len(got) < most-1 || len(got) > most {
		t.Errorf("into a ring of %d bytes the clock has sent %d events, want %d or one less", ring, len(got), most)
	}
	for len(got) < len(all) {
		before := len(got)
		if got = append(got, g.ticked(t)...); len(got) == before {
			t.Fatalf("with a ring that was read, the clock sends nothing: %+v", g.counted(t))
		}
	}
	compare(t, "by and by", got, all)
}

// TestTwoClocksSendEachEventOnce has both CPUs send what waits.
func TestTwoClocksSendEachEventOnce(t *testing.T) {
	const packets = 900
	g := setup{params: parameters{"rate_limit": uint32(packets)}, clock: true}.load(t)
	g.pause(t)
	g.give(t, series(tcp4, packets)...)
	g.expect(t, counted{unsent: packets})
	g.resume(t)
	got := g.tickOnTwoCPUs(t, packets)
	compare(t, "of both clocks", got, eventsOf(series(tcp4, packets), process{}))
	g.expect(t, counted{reported: packets})
}

// tickOnTwoCPUs runs the clock so often on both, and returns what is reported, by the
// initiators' ports.
func (g *gadget) tickOnTwoCPUs(t *testing.T, times int) []event {
	t.Helper()
	onTwoCPUs(t, func() error {
		for range times {
			if err := g.tick(); err != nil {
				return err
			}
		}
		return nil
	})
	got, err := g.drain(nil)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b event) int { return a.Src.Compare(b.Src.AddrPort) })
	return got
}
