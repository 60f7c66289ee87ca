// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"math/rand/v2"
	"testing"
	"time"
)

// A trial gives a gadget attempts while its rings come and go, fill up and are
// read, its owners have tokens or none, what is received waits for an answer or does
// not, and its clock ticks: as chance has it.
type trial struct {
	*gadget
	random *rand.Rand
	owners []process // by their ports
	given  []event   // what it would report of each attempt
	got    []event
}

// step does one thing.
func (c *trial) step(t *testing.T) {
	t.Helper()
	switch c.random.IntN(40) {
	case 0:
		c.pause(t)
	case 1, 2:
		c.resume(t)
	case 3:
		c.emptyBuckets(t)
	case 4, 5:
		c.fillBuckets(t)
	case 6:
		c.age(t, announcedBook, time.Second)
	case 7, 8:
		if err := c.tick(); err != nil {
			t.Fatal(err)
		}
	case 9:
		events, _ := c.drainLossy(t)
		c.got = append(c.got, events...)
	case 10:
		c.setEnding(t, false)
	case 11:
		c.setEnding(t, true)
	default: // for one of some owners, and with a port that no other one has
		port := c.random.IntN(len(c.owners))
		p := udp4
		if port == 0 {
			p = tcp4
		}
		p = p.with(ports(uint16(len(c.given)), uint16(port)))
		c.given = append(c.given, owned(p.event(false, someNetNS), c.owners[port]))
		if err := c.test(p.frame(), someNetNS); err != nil {
			t.Fatal(err)
		}
	}
}

// finish has the clock send all that waits.
func (c *trial) finish(t *testing.T) {
	t.Helper()
	c.resume(t)
	c.setEnding(t, true)
	for end := time.Now().Add(patience); ; {
		events, _ := c.drainLossy(t)
		c.got = append(c.got, events...)
		if n := c.counted(t); n.unsent+n.announced+c.waiting(t) == 0 {
			return
		}
		c.age(t, announcedBook, time.Second)
		if err := c.tick(); err != nil || time.Now().After(end) {
			t.Fatalf("after some time of ticking: %+v, %v", c.counted(t), err)
		}
	}
}

// waiting is how many wait for an answer.
func (c *trial) waiting(t *testing.T) uint64 {
	t.Helper()
	n := c.arrived(t)
	return n.begun - n.ended
}

// TestEveryAttemptIsAccountedForOnce: reported, lost, withheld, or waiting.
func TestEveryAttemptIsAccountedForOnce(t *testing.T) {
	const steps, places, ring = 5000, 16, 32 << 10
	for name, params := range limits() {
		t.Run(name, func(t *testing.T) {
			stayOnOneCPU(t)
			params["unsent_max_entries"] = uint32(places)
			c := &trial{
				gadget: setup{params: params, ring: ring, clock: true}.load(t),
				random: rand.New(rand.NewPCG(1, 2)),
				owners: []process{{}}, // port 0 is nobody's
			}
			for pid := range uint64(5) {
				_, owner := c.ofProcess(t, pid+1, 1)
				c.owners = append(c.owners, owner)
			}
			for range steps {
				c.step(t)
				if got := c.counted(t); got.attempts()+c.waiting(t) != uint64(len(c.given)) {
					t.Fatalf("of %d attempts %d wait, and the gadget counts %+v", len(c.given), c.waiting(t), got)
				}
			}
			c.finish(t)
			c.check(t)
		})
	}
}

// check compares what was reported with what was given and counted.
func (c *trial) check(t *testing.T) {
	t.Helper()
	n := c.counted(t)
	want := counted{reported: uint64(len(c.got)), lost: n.lost, withheld: n.withheld, withoutRing: n.withoutRing}
	if n != want || n.attempts() != uint64(len(c.given)) {
		t.Errorf("of %d attempts, of which %d were reported, the gadget counts\n got %+v\nwant %+v",
			len(c.given), len(c.got), n, want)
	}
	if told := told(c.got); told != n.withheld {
		t.Errorf("the events tell of %d that were withheld, want %d", told, n.withheld)
	}
	reported := map[uint16]bool{}
	for _, e := range c.got {
		id := e.Src.Port()
		if want := c.given[id]; telling(e, 0) != want || reported[id] {
			t.Errorf("attempt %d, reported before: %t\n got %v\nwant %v", id, reported[id], e, want)
		}
		reported[id] = true
	}
	t.Logf("%+v", n)
}
