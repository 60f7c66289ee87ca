// SPDX-License-Identifier: Apache-2.0

//go:build hooks

package unit

import (
	"slices"
	"testing"
	"time"
)

// await returns the next n events, in the order of their initiators' ports: each
// CPU may send some.
func (g *gadget) await(t *testing.T, n int) (events []event) {
	t.Helper()
	for end := time.Now().Add(patience); len(events) < n; {
		e, _, err := g.next(end)
		if err != nil {
			t.Fatalf("waiting for event %d of %d, with %+v: %v", len(events)+1, n, g.counted(t), err)
		}
		events = append(events, e)
	}
	slices.SortFunc(events, func(a, b event) int { return a.Src.Compare(b.Src.AddrPort) })
	return events
}

// TestSystemCallsAreNotNeededToSendWhatWaits: nor are packets. The kernel's own
// clock does it.
func TestSystemCallsAreNotNeededToSendWhatWaits(t *testing.T) {
	const packets = 5
	g := hook(t, parameters{"rate_limit": uint32(1000)}, filterProgram, clockProgram, "network_shepherd")
	g.pause(t)
	g.give(t, series(udp4, packets)...)
	g.expect(t, counted{unsent: packets})
	g.resume(t)
	compare(t, "of what had no ring", g.await(t, packets), eventsOf(series(udp4, packets), process{}))

	g.emptyBuckets(t)
	events := g.give(t, series(udp4, packets)...) // none, unless it takes the clock's half a second
	for c := g.counted(t); c.announced > 0 || told(events) < c.withheld; c = g.counted(t) {
		events = append(events, g.await(t, 1)...)
	}
	n := uint64(len(events))
	g.expect(t, counted{reported: packets + n, withheld: packets - n})
	if got := told(events); got != packets-n {
		t.Errorf("with no token, of %d attempts %d were reported: got %d told, want the others", packets, n, got)
	}
}
