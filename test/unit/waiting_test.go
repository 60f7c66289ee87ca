// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// The rate limits with which a CPU without a ring loses nothing.
func limits() map[string]parameters {
	return map[string]parameters{
		"with a rate limit":    {"rate_limit": uint32(1000)},
		"without a rate limit": {"rate_limit": uint32(0)},
	}
}

func TestWithoutARingEventsWaitAndComeOldestFirst(t *testing.T) {
	for name, params := range limits() {
		t.Run(name, func(t *testing.T) {
			stayOnOneCPU(t)
			g := load(t, params)
			g.bookPort(t, entry{netns: someNetNS, local: udp6.to(), proto: udp6.proto, owner: someone})
			nobodys := tcp6
			waiting := slices.Concat(series(udp6, 3), series(nobodys, 2))
			want := slices.Concat(eventsOf(series(udp6, 3), someone), eventsOf(series(nobodys, 2), process{}))

			g.pause(t)
			compare(t, "without a ring", g.give(t, waiting...), nil)
			g.expect(t, counted{unsent: 5})
			g.resume(t)
			// Each event brings up to two of those that wait.
			for i, later := range series(udp4, 4) {
				n := min(2, len(want))
				compare(t, fmt.Sprintf("later event %d", i), g.give(t, later),
					append(eventsOf([]packet{later}, process{}), want[:n]...))
				want = want[n:]
			}
			g.expect(t, counted{reported: 9})
		})
	}
}

// TestAnotherCPUSendsWhatACPUWithoutARingCannot has a CPU that came late: it has
// no ring, as long as the gadget runs.
func TestAnotherCPUSendsWhatACPUWithoutARingCannot(t *testing.T) {
	first, second := twoCPUs(t)
	stayOnOneCPU(t)
	g := load(t, nil)
	if err := g.collection.Maps["events"].Delete(uint32(first)); err != nil {
		t.Fatal(err)
	}
	compare(t, "on the CPU without a ring", g.give(t, series(tcp4, 2)...), nil)
	if err := onCPU(second, func() error { return g.test(tcp6.frame(), someNetNS) }); err != nil {
		t.Fatal(err)
	}
	got, err := g.drain(nil)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "on the other CPU", got, eventsOf(append([]packet{tcp6}, series(tcp4, 2)...), process{}))
}

func TestWhatIsWithheldBringsNothing(t *testing.T) {
	stayOnOneCPU(t)
	g := load(t, parameters{"rate_limit": uint32(10)})
	g.pause(t)
	g.give(t, tcp4)
	g.resume(t)
	g.emptyBuckets(t)
	compare(t, "two that are withheld", g.give(t, tcp4, tcp4), nil)
	g.expect(t, counted{unsent: 1, announced: 1, withheld: 1})
}

func TestAnEventThatWaitedHasTheTimeOfItsAttempt(t *testing.T) {
	stayOnOneCPU(t)
	g := load(t, nil)
	g.pause(t)
	before := bootTime(t)
	g.give(t, tcp4)
	after := bootTime(t)
	g.resume(t)
	if err := g.test(tcp6.frame(), someNetNS); err != nil {
		t.Fatal(err)
	}
	for _, p := range []packet{tcp6, tcp4} {
		e, at, err := g.next(time.Now().Add(patience))
		if err != nil {
			t.Fatal(err)
		}
		compare(t, "after a wait", []event{e}, eventsOf([]packet{p}, process{}))
		if p.src == tcp4.src && (at < before || at > after) {
			t.Errorf("the event that waited is of time %d, want one from %d to %d", at, before, after)
		}
	}
}

// A page is soon full.
const smallRing = 4096

func TestAFullRingLosesNothingWhereThereIsARateLimit(t *testing.T) {
	const packets = 40
	stayOnOneCPU(t)
	g := setup{params: parameters{"rate_limit": uint32(1000)}, ring: smallRing}.load(t)
	all := series(tcp4, packets)
	for _, p := range all {
		if err := g.test(p.frame(), someNetNS); err != nil {
			t.Fatal(err)
		}
	}
	// No more than what there is no room for waits, see ring_buffer_has_space().
	record := uint64(8+4+g.events.sent(false)+7) / 8 * 8
	fits := (smallRing - 1) / record
	before := g.counted(t)
	if want := (counted{reported: fits, unsent: packets - fits}); before != want {
		t.Errorf("of %d packets the gadget counts\n got %+v\nwant %+v", packets, before, want)
	}

	got, err := g.drain(nil)
	if err != nil {
		t.Fatal(err)
	}
	for range packets { // each brings two, as far as there is room
		got = append(got, g.give(t, tcp6)...)
	}
	later := eventsOf([]packet{tcp6}, process{})[0]
	got = slices.DeleteFunc(got, func(e event) bool { return e == later })
	compare(t, "of those that there was and was no room for", got, eventsOf(all, process{}))
	g.expect(t, counted{reported: 2 * packets})
}

// drainLossy is drain, where the kernel has lost events.
func (g *gadget) drainLossy(t *testing.T) (events []event, lost uint64) {
	t.Helper()
	for {
		e, _, err := g.next(time.Unix(1, 0))
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return events, lost
		case g.record.LostSamples > 0:
			lost += g.record.LostSamples
		case err != nil:
			t.Fatal(err)
		default:
			events = append(events, e)
		}
	}
}

func TestAFullRingLosesEventsWhereThereIsNoRateLimit(t *testing.T) {
	const packets = 40
	stayOnOneCPU(t)
	g := setup{ring: smallRing}.load(t)
	for _, p := range series(tcp4, packets) {
		if err := g.test(p.frame(), someNetNS); err != nil {
			t.Fatal(err)
		}
	}
	events, _ := g.drainLossy(t)
	c := g.counted(t)
	if want := (counted{reported: uint64(len(events)), lost: uint64(packets - len(events))}); c != want || c.lost == 0 {
		t.Errorf("of %d packets the gadget counts\n got %+v\nwant %+v, and some lost", packets, c, want)
	}
	compare(t, "those that there was room for", events, eventsOf(series(tcp4, len(events)), process{}))

	// The kernel tells what it has lost with the next one.
	if err := g.test(tcp6.frame(), someNetNS); err != nil {
		t.Fatal(err)
	}
	if _, lost := g.drainLossy(t); lost != c.lost {
		t.Errorf("the kernel tells of %d that it has lost, and the gadget counts %+v", lost, c)
	}
}

// shortQueue is a gadget with places for a few events, and no ring.
func shortQueue(t *testing.T, places, rateLimit uint32) *gadget {
	t.Helper()
	stayOnOneCPU(t)
	g := load(t, parameters{"rate_limit": rateLimit, "unsent_max_entries": places})
	g.pause(t)
	return g
}

// ofProcess are n attempts for a process of its own.
func (g *gadget) ofProcess(t *testing.T, pid uint64, n int) ([]packet, process) {
	t.Helper()
	p, owner := udp4.with(toPort(uint16(pid))), someone
	owner.PID = pid
	g.bookPort(t, entry{netns: someNetNS, local: p.to(), proto: p.proto, owner: owner})
	return series(p, n), owner
}

func TestAnOwnerHasAPartOfTheQueueAlone(t *testing.T) {
	const places, packets = 16, 20
	for name, params := range limits() {
		t.Run(name, func(t *testing.T) {
			g := shortQueue(t, places, params["rate_limit"].(uint32))
			many, greedy := g.ofProcess(t, 1, packets)
			g.give(t, many...)
			got := g.counted(t)
			want := counted{unsent: got.unsent, announced: 1, withheld: packets - got.unsent - 1}
			want.withoutRing = want.withheld
			if got != want || got.unsent < 1 || got.unsent > places/8 {
				t.Errorf("of one owner's %d packets, the gadget counts\n got %+v\nwant %+v, and up to %d unsent",
					packets, got, want, places/8)
			}

			one, modest := g.ofProcess(t, 2, 1)
			g.give(t, one...)
			want.unsent++
			g.expect(t, want)

			g.resume(t)
			n := int(got.unsent)
			waited := append(eventsOf(many[:n], greedy), eventsOf(one, modest)...)
			waited[0].Suppressed = want.withheld // the first of its owner's tells
			nobodys := series(tcp6, n)
			events := slices.DeleteFunc(g.give(t, nobodys...), func(e event) bool { return e.Proc == process{} })
			compare(t, "of those that had a place", events, waited)
		})
	}
}

func TestAnOwnerHasItsPartAgainWhenItsEventsAreSent(t *testing.T) {
	const places, packets = 16, 6
	g := shortQueue(t, places, 1000)
	many, _ := g.ofProcess(t, 1, packets)
	g.give(t, many...)
	first := g.counted(t).unsent
	g.resume(t)
	g.give(t, series(tcp6, packets)...)
	g.pause(t)
	if rest := g.counted(t).unsent; first == 0 || rest != 0 {
		t.Fatalf("%d events waited, and after some of nobody's %d do, want some and none", first, rest)
	}
	g.give(t, many...)
	if again := g.counted(t).unsent; again != first {
		t.Errorf("of %d events of an owner %d wait, want %d as the first time", packets, again, first)
	}
}

// TestThereIsAPlaceForAnotherOwnerUntilTheQueueIsFull: the fewer there are, the
// fewer an owner can have.
func TestThereIsAPlaceForAnotherOwnerUntilTheQueueIsFull(t *testing.T) {
	const places, each = 16, 4
	g := shortQueue(t, places, 1000)
	var parts []uint64
	for pid, full := uint64(1), false; !full; pid++ {
		before := g.counted(t).unsent
		many, _ := g.ofProcess(t, pid, each)
		g.give(t, many...)
		after := g.counted(t).unsent
		parts = append(parts, after-before)
		full = after == places || after == before
	}
	falling := slices.IsSortedFunc(parts, func(a, b uint64) int { return cmp.Compare(b, a) })
	if last := parts[len(parts)-1]; !falling || last != 1 || parts[0] == 1 {
		t.Errorf("of %d places the owners have %v, want ever fewer, and one at last", places, parts)
	}

	want := g.counted(t)
	late, _ := g.ofProcess(t, places+1, each)
	g.give(t, late...)
	want.announced++
	want.withheld += each - 1
	want.withoutRing += each - 1
	g.expect(t, want)
}

func TestWhatAFullRingHasWithheldIsNotForWantOfOne(t *testing.T) {
	const packets = 40
	stayOnOneCPU(t)
	params := parameters{"rate_limit": uint32(1000), "unsent_max_entries": uint32(8)}
	g := setup{params: params, ring: smallRing}.load(t)
	for _, p := range series(tcp4, packets) {
		if err := g.test(p.frame(), someNetNS); err != nil {
			t.Fatal(err)
		}
	}
	got := g.counted(t)
	want := counted{reported: got.reported, unsent: 1, announced: 1, withheld: packets - 2 - got.reported}
	if got != want || got.withheld == 0 {
		t.Errorf("of %d packets the gadget counts\n got %+v\nwant %+v, and some withheld", packets, got, want)
	}
}

// TestWhatWaitsHasNoPaths has what waited follow an event that has some.
func TestWhatWaitsHasNoPaths(t *testing.T) {
	const sk, since = 0xFFFF_8888_0000_0000, 1
	stayOnOneCPU(t)
	g := load(t, parameters{"paths": true})
	g.bookPort(t, entry{
		netns: someNetNS, local: udp4.to(), proto: udp4.proto, owner: someone, sk: sk, since: since,
	})
	book := g.books[pathBook]
	value := make([]byte, book.value.size)
	book.value.field("since").putUint(value, since)
	copy(book.value.field("cwd").of(value), "/home/someone")
	copy(book.value.field("exepath").of(value), "/bin/something")
	if err := book.Put(uint64(sk), value); err != nil {
		t.Fatal(err)
	}

	g.pause(t)
	g.give(t, udp4)
	g.resume(t)
	if err := g.test(udp4.frame(), someNetNS); err != nil {
		t.Fatal(err)
	}
	for _, want := range [][2]string{{"/home/someone", "/bin/something"}, {}} {
		e, _, err := g.next(time.Now().Add(patience))
		if err != nil {
			t.Fatal(err)
		}
		compare(t, "of two attempts", []event{e}, eventsOf([]packet{udp4}, someone))
		path := func(name string) string { return cString(g.events.field(name).of(g.record.RawSample)) }
		if got := [2]string{path("cwd"), path("exepath")}; got != want {
			t.Errorf("an event has the paths %q, want %q", got, want)
		}
	}
}
