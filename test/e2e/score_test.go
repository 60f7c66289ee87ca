// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// fact is an event that must come, and who may be named for it.
type fact struct {
	sighting
	owners []attempt.Process // any of them; none at all: nobody
	// ends are of whose socket is named; onWire: as they are on the wire.
	ends
	onWire bool
	// within is how long it can have taken, 0: that is not known; lasted how long it
	// was there for certain; began when its call did, in ns since the boot, or 0.
	within, lasted time.Duration
	began          int64
	// source, if not nil, says whether the attempt may have come from there, where
	// the sighting has none.
	source func(netip.AddrPort) bool
	spared excuse // why nobody will do, too; "" if that will not
	// anyThread: it may be any of the process's, or one of the kernel's that works
	// for it.
	anyThread bool
	origin    string
}

// excuse is why an event names nobody, and rightly so.
type excuse string

const (
	passedOn    excuse = "the listener was passed on, and nobody has accepted since"
	notServed   excuse = "nothing has the port, or gets it"
	sameSource  excuse = "several processes had the source at once"
	missedProbe excuse = "the kernel runs no kprobe in an interrupt in the middle of another one"
	rawBorrowed excuse = "a raw socket used the port of another process"
	ledAway     excuse = "another CPU sent the clone that tc has made"
)

// names says whether an event names one of the owners.
func (f fact) names(owner attempt.Process) bool {
	return slices.ContainsFunc(f.owners, func(wanted attempt.Process) bool {
		if f.anyThread {
			owner.TID, owner.Thread = wanted.TID, wanted.Thread
		}
		return owner == wanted
	})
}

// anySource is a sighting of which the source is not told.
func (s sighting) anySource() sighting {
	s.src = netip.AddrPort{}
	return s
}

// verdict is how an event compares with the facts.
type verdict int

const (
	right   verdict = iota
	unknown         // nobody is named where somebody should be
	wrong           // another one is named, or another socket
	missing
	extra
	excused // unknown, and nobody can know
	verdicts
)

var verdictNames = [verdicts]string{"right", "unknown", "wrong", "missing", "extra", "excused"}

// score counts verdicts by case.
type score struct {
	cases    []string // in their order
	attempts map[string]int
	counts   map[string]*[verdicts]int
	nobody   map[excuse]int // that events rightly name, or may
	problems []string
}

func newScore() *score {
	return &score{attempts: map[string]int{}, counts: map[string]*[verdicts]int{}, nobody: map[excuse]int{}}
}

func (s *score) of(name string) *[verdicts]int {
	if s.counts[name] == nil {
		s.counts[name] = &[verdicts]int{}
		s.cases = append(s.cases, name)
	}
	return s.counts[name]
}

// mostProblems is how many are told of each case and kind.
const mostProblems = 3

func (s *score) add(name string, v verdict, format string, args ...any) {
	counts := s.of(name)
	counts[v]++
	if v != right && v != excused && counts[v] <= mostProblems {
		s.problems = append(s.problems, fmt.Sprintf("%s: %s: ", name, verdictNames[v])+fmt.Sprintf(format, args...))
	}
}

// settle compares events with the facts, both as sets in which an element can be
// several times.
func (s *score) settle(name string, facts []fact, events []seen) {
	open := openFacts{}
	for _, f := range facts {
		open[f.sighting] = append(open[f.sighting], f)
	}
	// Who is named rightly is settled before the rest shares what is left.
	for _, step := range []func(fact, seen) (verdict, bool){isRight, isUnknown, isWrong} {
		events = slices.DeleteFunc(events, func(e seen) bool {
			return open.take(e, func(f fact) bool {
				v, ok := step(f, e)
				if ok {
					s.add(name, v, "%s\n    sent:   %s\n    wanted: %s, %s, within %v, %v at least\n    got:    %s, %s, took %v, lasted %v",
						e.sighting, f.origin, f.owners, f.endsOf(e), f.within, f.lasted, e.owner, e.ends, e.took, e.lasted)
					s.countNobody(f, e)
				}
				return ok
			})
		})
	}
	for _, e := range events {
		s.add(name, extra, "%s, by %s", e.sighting, e.owner)
	}
	for _, left := range open {
		for _, f := range left {
			s.add(name, missing, "%s\n    sent:   %s", f.sighting, f.origin)
		}
	}
}

// openFacts are those that no event has met yet.
type openFacts map[sighting][]fact

// take removes the first fact that an event can be about and that will do.
func (o openFacts) take(e seen, do func(fact) bool) bool {
	for _, key := range []sighting{e.sighting, e.anySource()} {
		for i, f := range o[key] {
			if (f.source == nil || f.source(e.src)) && do(f) {
				o[key] = slices.Delete(o[key], i, i+1)
				return true
			}
		}
	}
	return false
}

// endsOf are the ends that an event must tell.
func (f fact) endsOf(e seen) ends {
	if f.onWire {
		return e.endsFor(e.owner)
	}
	return f.ends
}

func isRight(f fact, e seen) (verdict, bool) {
	if len(f.owners) == 0 {
		return right, e.owner == attempt.Process{} && e.ends == ends{}
	}
	return right, f.names(e.owner) && e.ends == f.endsOf(e) && f.isInTime(e)
}

// isInTime says whether an event's times lie within what the programs measured.
func (f fact) isInTime(e seen) bool {
	if f.kind == gadget.Attempt || f.within == 0 && f.began == 0 {
		return true
	}
	took, least, most := e.took, time.Duration(1), f.within
	if f.kind == gadget.Closed {
		took, least = e.lasted, max(f.lasted, least)
	}
	if most == 0 { // it is over when it is told
		most = time.Duration(e.at - f.began)
	}
	return least <= took && took <= most
}

func isUnknown(f fact, e seen) (verdict, bool) {
	if f.spared != "" {
		return excused, e.owner == attempt.Process{}
	}
	return unknown, e.owner == attempt.Process{}
}

func isWrong(fact, seen) (verdict, bool) { return wrong, true }

func (s *score) countNobody(f fact, e seen) {
	if e.owner != (attempt.Process{}) {
		return
	}
	if len(f.owners) == 0 {
		s.nobody[notServed]++
	} else if f.spared != "" {
		s.nobody[f.spared]++
	}
}

// total is the sum over all cases.
func (s *score) total() (sum [verdicts]int, attempts int) {
	for _, name := range s.cases {
		for v, n := range s.counts[name] {
			sum[v] += n
		}
		attempts += s.attempts[name]
	}
	return sum, attempts
}

// check prints the table, and fails on what must not be.
func (s *score) check(t *testing.T, allowed ...verdict) {
	t.Helper()
	sum, attempts := s.total()
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "attempts\t%s\t  case\n", strings.Join(verdictNames[:], "\t"))
	line := func(name string, attempts int, counts [verdicts]int) {
		fmt.Fprintf(w, "%d\t%s\t  %s\n", attempts, strings.Trim(strings.ReplaceAll(fmt.Sprint(counts), " ", "\t"), "[]"), name)
	}
	for _, name := range s.cases {
		line(name, s.attempts[name], *s.counts[name])
	}
	line("total", attempts, sum)
	if len(s.nobody) > 0 {
		fmt.Fprintln(w, "nobody, rightly")
	}
	for _, why := range slices.Sorted(maps.Keys(s.nobody)) {
		fmt.Fprintf(w, "%d\t%s\t  %s\n", s.nobody[why], strings.Repeat("\t", int(verdicts)-1), why)
	}
	w.Flush()
	t.Logf("events by case\n%s", &b)

	for v := unknown; v < excused; v++ {
		if sum[v] > 0 && !slices.Contains(allowed, v) {
			t.Errorf("wanted no event %s, got %d", verdictNames[v], sum[v])
		}
	}
	if t.Failed() {
		t.Logf("for example:\n%s", strings.Join(s.problems, "\n"))
	}
}
