// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"gadget.example/network/test/e2e/attempt"
)

// fact is an event that must come, and who may be named for it.
type fact struct {
	sighting
	owners []attempt.Process // any of them; none at all: nobody
	spared bool              // nobody will do, too
	origin string
}

// verdict is how an event compares with the facts.
type verdict int

const (
	right   verdict = iota
	unknown         // nobody is named where somebody should be
	wrong           // another one is named
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
	problems []string
}

func newScore() *score {
	return &score{attempts: map[string]int{}, counts: map[string]*[verdicts]int{}}
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
	open := map[sighting][]fact{}
	for _, f := range facts {
		open[f.sighting] = append(open[f.sighting], f)
	}
	// Who is named rightly is settled before the rest shares what is left.
	for _, step := range []func(fact, attempt.Process) (verdict, bool){isRight, isUnknown, isWrong} {
		events = slices.DeleteFunc(events, func(e seen) bool {
			for i, f := range open[e.sighting] {
				if v, ok := step(f, e.owner); ok {
					s.add(name, v, "%s\n    sent:   %s\n    wanted: %s\n    got:    %s", e.sighting, f.origin, f.owners, e.owner)
					open[e.sighting] = slices.Delete(open[e.sighting], i, i+1)
					return true
				}
			}
			return false
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

func isRight(f fact, owner attempt.Process) (verdict, bool) {
	if len(f.owners) == 0 {
		return right, owner == attempt.Process{}
	}
	return right, slices.Contains(f.owners, owner)
}

func isUnknown(f fact, owner attempt.Process) (verdict, bool) {
	if f.spared {
		return excused, owner == attempt.Process{}
	}
	return unknown, owner == attempt.Process{}
}

func isWrong(fact, attempt.Process) (verdict, bool) { return wrong, true }

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
