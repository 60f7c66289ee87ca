// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// counted are the gadget's own counters, summed over the CPUs.
type counted struct{ reported, lost, withheld uint64 }

func (g *gadget) counted(t *testing.T) (sum counted) {
	t.Helper()
	var values [][]byte
	if err := g.counters.Lookup(uint32(0), &values); err != nil {
		t.Fatal(err)
	}
	for _, value := range values {
		number := func(name string) uint64 { return g.counters.value.field(name).uint(value) }
		sum.reported += number("reported")
		sum.lost += number("lost")
		sum.withheld += number("withheld")
	}
	return sum
}

// flood gives the program a packet n times, and returns what it reports of it.
func (g *gadget) flood(t *testing.T, p packet, n int) (events []event) {
	t.Helper()
	for range n {
		got, err := g.verdict(p.frame(), someNetNS)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, got...)
	}
	return events
}

func TestAFloodIsWithheldFromItsOwnerAlone(t *testing.T) {
	const packets, limit = 200, 20
	mine := between(protoUDP, there4, here4)
	nobodys := between(protoUDP, there4, otherPort4)

	g := load(t, parameters{"rate_limit": uint32(limit)})
	g.bookPort(t, entry{netns: someNetNS, local: here4, proto: protoUDP, owner: someone})
	start := time.Now()
	flood := g.flood(t, nobodys, packets)
	other := g.flood(t, mine, limit)
	// The bucket is full at first, and gets a token for every 20th of a second.
	most := limit + int(time.Since(start)*limit/time.Second) + 1
	if len(flood) < limit || len(flood) > most {
		t.Errorf("of %d packets of nobody's %d were reported, want %d to %d", packets, len(flood), limit, most)
	}
	if len(other) != limit {
		t.Errorf("beside a flood, of %d packets of another owner %d were reported, want all", limit, len(other))
	}

	want := counted{reported: uint64(len(flood) + limit), withheld: uint64(packets - len(flood))}
	if got := g.counted(t); got != want {
		t.Errorf("the gadget counts %+v, want %+v", got, want)
	}
}

func TestNoLimitWithholdsNothing(t *testing.T) {
	const packets = 2000
	g := load(t, parameters{"rate_limit": uint32(0)})
	g.flood(t, between(protoUDP, there4, here4), packets)
	if got, want := g.counted(t), (counted{reported: packets}); got != want {
		t.Errorf("the gadget counts %+v, want %+v", got, want)
	}
}

// stayOnOneCPU keeps the test's thread where it is: what a CPU has withheld, an
// event on the same CPU tells.
func stayOnOneCPU(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // until the test's goroutine ends, and so for good
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
}

// TestTheNextEventTellsWhatWasWithheld goes on until the owner's bucket has a
// token again.
func TestTheNextEventTellsWhatWasWithheld(t *testing.T) {
	stayOnOneCPU(t)
	p := between(protoTCP, there4, here4)
	g := load(t, parameters{"rate_limit": uint32(10)})
	told, sent := uint64(0), uint64(0)
	for end := time.Now().Add(patience); told == 0; sent++ {
		if time.Now().After(end) {
			t.Fatalf("of %d packets %+v, and no event tells of those that were withheld", sent, g.counted(t))
		}
		for _, e := range g.flood(t, p, 1) {
			told += e.Suppressed
		}
	}
	if got := g.counted(t); got.withheld != told || got.reported+told != sent {
		t.Errorf("of %d packets the gadget counts %+v, and its event tells of %d that were withheld", sent, got, told)
	}
}

// TestWhatALostEventWouldHaveToldTheNextOneTells has the kernel refuse events:
// there is no ring.
func TestWhatALostEventWouldHaveToldTheNextOneTells(t *testing.T) {
	stayOnOneCPU(t)
	p := between(protoTCP, there4, here4)
	g := load(t, parameters{"rate_limit": uint32(10)})
	told, sent := uint64(0), uint64(0)
	floodUntil := func(done func(counted) bool) {
		t.Helper()
		for end := time.Now().Add(patience); !done(g.counted(t)); sent++ {
			if time.Now().After(end) {
				t.Fatalf("of %d packets the gadget counts %+v", sent, g.counted(t))
			}
			for _, e := range g.flood(t, p, 1) {
				told += e.Suppressed
			}
		}
	}
	floodUntil(func(c counted) bool { return c.withheld > 0 })
	if err := g.reader.Pause(); err != nil {
		t.Fatal(err)
	}
	floodUntil(func(c counted) bool { return c.lost > 0 })
	if err := g.reader.Resume(); err != nil {
		t.Fatal(err)
	}
	floodUntil(func(counted) bool { return told > 0 })
	got := g.counted(t)
	if got.withheld != told || got.reported+got.lost+told != sent {
		t.Errorf("of %d packets the gadget counts %+v, and its event tells of %d that were withheld", sent, got, told)
	}
}
