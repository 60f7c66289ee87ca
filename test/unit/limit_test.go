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

// flooder gives the program one packet again and again, on one CPU.
type flooder struct {
	*gadget
	packet packet

	sent uint64 // packets
	told uint64 // attempts that were withheld, by the events
}

// until goes on until a condition holds, which a token of the bucket can take.
func (f *flooder) until(t *testing.T, done func(counted) bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(f.counted(t)); f.sent++ {
		if time.Now().After(end) {
			t.Fatalf("of %d packets the gadget counts %+v, and its events tell of %d that were withheld", f.sent, f.counted(t), f.told)
		}
		for _, e := range f.flood(t, f.packet, 1) {
			f.told += e.Suppressed
		}
	}
}

// check compares the counters with what was sent and told.
func (f *flooder) check(t *testing.T) {
	t.Helper()
	if got := f.counted(t); got.withheld != f.told || got.reported+got.lost+f.told != f.sent {
		t.Errorf("of %d packets the gadget counts %+v, and its events tell of %d that were withheld", f.sent, got, f.told)
	}
}

func newFlooder(t *testing.T) *flooder {
	t.Helper()
	stayOnOneCPU(t)
	return &flooder{gadget: load(t, parameters{"rate_limit": uint32(10)}), packet: between(protoTCP, there4, here4)}
}

// TestTheNextEventTellsWhatWasWithheld goes on until the owner's bucket has a
// token again.
func TestTheNextEventTellsWhatWasWithheld(t *testing.T) {
	f := newFlooder(t)
	f.until(t, func(counted) bool { return f.told > 0 })
	f.check(t)
	if got := f.counted(t); got.lost != 0 {
		t.Errorf("the gadget counts %+v, want none lost", got)
	}
}

// TestWhatALostEventWouldHaveToldTheNextOneTells has the kernel refuse events:
// there is no ring.
func TestWhatALostEventWouldHaveToldTheNextOneTells(t *testing.T) {
	f := newFlooder(t)
	f.until(t, func(c counted) bool { return c.withheld > 0 })
	if err := f.reader.Pause(); err != nil {
		t.Fatal(err)
	}
	f.until(t, func(c counted) bool { return c.lost > 0 })
	if err := f.reader.Resume(); err != nil {
		t.Fatal(err)
	}
	f.until(t, func(counted) bool { return f.told > 0 })
	f.check(t)
}
