// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"flag"
	"regexp"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

var (
	wantedAttempts = flag.Int("attempts", 3_000, "how many attempts TestWho and TestOutcomes make each, at least")
	wantedCases    = flag.String("cases", "", "a regular expression; TestWho and TestOutcomes play the cases of such names alone")
)

// whoCase is a way in which attempts are made.
type whoCase struct {
	name string
	// before is played, if not nil, when the gadget has not started.
	before func(*stage)
	play   func(s *stage, name string)
	// needs says why the kernel cannot play it.
	needs func() error
}

func whoCases() []whoCase {
	return slices.Concat(tcpOutCases(), inCases(), takenCases(), handedCases(), olderCases(), udpOutCases(), passedCases(), otherCases(), namesCases(), rawCases(), natCases(), iptablesCases(), tcCases(), neverCases())
}

// TestWho makes attempts whose owners are known: no event may name another one,
// and none may name nobody who can be known.
func TestWho(t *testing.T) {
	names, err := regexp.Compile(*wantedCases)
	if err != nil {
		t.Fatal(err)
	}
	cases := casesHere(t, whoCases(), names)
	// Cases that are slow make fewer, so that the others must make more.
	s := newStage(t, max(2*callers, *wantedAttempts*4/3/len(cases)))
	for _, c := range cases {
		if c.before != nil {
			c.before(s)
		}
	}
	s.watch(nil, func() {
		for _, c := range cases {
			c.play(s, c.name)
		}
	})
	s.score.check(t)
}

// casesHere are those of such names that this kernel can play.
func casesHere(t *testing.T, all []whoCase, names *regexp.Regexp) []whoCase {
	t.Helper()
	return slices.DeleteFunc(all, func(c whoCase) bool {
		if c.needs == nil || !names.MatchString(c.name) {
			return !names.MatchString(c.name)
		}
		err := c.needs()
		if err != nil {
			t.Logf("%s: not here: %v", c.name, err)
		}
		return err != nil
	})
}

// TestWhoWithFullBooks has more sockets than are remembered: some are unknown
// then, and none is taken for another.
func TestWhoWithFullBooks(t *testing.T) {
	s := newStage(t, 0)
	s.watch(map[string]string{"max-connections": "64", "max-ports": "64", "max-sockets": "64"}, func() {
		for range 2 {
			manySockets(s, "more sockets than remembered")
		}
	})
	s.score.check(t, unknown)
}

// The last ports given out; none meets the leavings of another case.
var lastPort = map[attempt.Protocol]uint16{attempt.TCP: 1100, attempt.UDP: 100}

// newPort is one whose attempts are reported.
func newPort(p attempt.Protocol) int {
	lastPort[p]++
	return int(lastPort[p])
}

func lacksMPTCP() error {
	const protocol = 262 // IPPROTO_MPTCP
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, protocol)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// passedCases are sockets that were passed on: who sends, or accepts, is named.
func passedCases() []whoCase {
	return []whoCase{
		{name: "passed on: listener, by SCM_RIGHTS", play: passedListener},
		{name: "passed on: bound UDP socket, by SCM_RIGHTS", play: passedCaller(attempt.UDP, true)},
		{name: "passed on: bound TCP socket, by SCM_RIGHTS", play: passedCaller(attempt.TCP, true)},
		{name: "passed on: listener, and its opener is gone", play: goneListener},
		{name: "passed on: bound UDP socket, to a child", play: passedCaller(attempt.UDP, false)},
		{name: "passed on: bound TCP socket, to a child", play: passedCaller(attempt.TCP, false)},
	}
}

// passedListener has who was given a listener accept on it: from then on it is known.
func passedListener(s *stage, name string) {
	port := newPort(attempt.TCP)
	h := s.open(s.servers[0], attempt.Step{Protocol: attempt.TCP, Src: at(anyHost(4), port)})
	h = s.pass(h, s.servers[1])
	s.callPassed(name, h, port)
	s.shut(h)
}

// callPassed calls before who has the listener accepts, and thereafter.
func (s *stage) callPassed(name string, h handle, port int) {
	s.t.Helper()
	for _, spared := range []excuse{passedOn, ""} {
		var acts []act
		for i := range max(callers, s.attempts/20) {
			acts = append(acts, act{
				by: s.callers[i%callers], to: s.is(h.by), spared: spared,
				step: attempt.Step{Do: attempt.Call, Protocol: attempt.TCP, Dst: at(host(4, i%hosts), port)},
			})
		}
		s.wave(name, acts)
		s.perform([]act{{by: h.by, step: attempt.Step{Do: attempt.Drain, Socket: h.name}}})
	}
}

// goneListener has a child open the port, give it to another process, and end.
func goneListener(s *stage, name string) {
	for range max(1, s.attempts/100) {
		port := newPort(attempt.TCP)
		s.childThatListens(s.servers[2], port)
		h := handle{by: s.servers[3], name: "gone"}
		s.callPassed(name, h, port)
		s.shut(h)
	}
}

func (s *stage) childThatListens(parent *agent, port int) {
	s.t.Helper()
	steps := []attempt.Step{
		{Do: attempt.Listen, Comm: "opener", Protocol: attempt.TCP, Src: at(anyHost(4), port), Socket: "gone"},
		{Do: attempt.Give, Socket: "gone", To: s.servers[3].pid},
	}
	parent.do(s.t, attempt.Request{Steps: []attempt.Step{{Do: attempt.Child, Steps: steps}}})
	s.perform([]act{{by: s.servers[3], step: attempt.Step{Do: attempt.Take, Socket: "gone"}}})
}

// passedCaller has somebody else call from a socket that an agent has bound.
func passedCaller(protocol attempt.Protocol, given bool) func(*stage, string) {
	return func(s *stage, name string) {
		n := s.attempts
		if !given {
			n /= 10 // a child for each
		}
		port := newPort(protocol)
		server := s.open(s.servers[0], attempt.Step{Protocol: protocol, Src: at(anyHost(4), port)})
		for start := 0; start < n; start += 20 {
			var acts []act
			var open []handle
			for i := range min(20, n-start) {
				a, h := s.passOn(protocol, given, i)
				a.step.Dst, a.to = at(host(4, i%hosts), port), s.is(s.servers[0])
				acts, open = append(acts, a), append(open, h)
			}
			s.wave(name, acts)
			s.shut(open...)
		}
		s.shut(server)
	}
}

func (s *stage) passOn(protocol attempt.Protocol, given bool, i int) (act, handle) {
	opener, other := s.callers[i%callers], s.callers[(i+2)%callers]
	h := s.open(opener, attempt.Step{Do: attempt.Open, Protocol: protocol, Src: at(host(4, 0), 0)})
	a := act{by: opener, step: attempt.Step{Do: attempt.Call, Protocol: protocol, Socket: h.name}}
	if given {
		h = s.pass(h, other)
		a.by = other
	} else {
		a.child, a.inherit = true, []string{h.name}
	}
	return a, h
}

func otherCases() []whoCase {
	return []whoCase{
		{name: "short-lived processes: TCP", play: shortLived(attempt.TCP)},
		{name: "short-lived processes: UDP", play: shortLived(attempt.UDP)},
		{name: "one tuple in two namespaces: TCP", play: twoNamespaces(attempt.TCP)},
		{name: "one tuple in two namespaces: UDP", play: twoNamespaces(attempt.UDP)},
	}
}

// shortLived are processes that exist for one attempt, and are gone, their exit
// status read, when the events are.
func shortLived(protocol attempt.Protocol) func(*stage, string) {
	return func(s *stage, name string) {
		port := newPort(protocol)
		server := s.open(s.servers[0], attempt.Step{Protocol: protocol, Src: at(anyHost(4), port)})
		var acts []act
		for i := range max(callers, s.attempts/5) {
			acts = append(acts, act{by: s.callers[i%callers], child: true, to: s.is(s.servers[0]), step: attempt.Step{
				Do: attempt.Call, Comm: "short-lived", Protocol: protocol, Dst: at(host(4, i%hosts), port), Thread: i%4 == 3,
			}})
		}
		s.wave(name, acts)
		s.shut(server)
	}
}

// twoNamespaces has the same source call the same destination in both.
func twoNamespaces(protocol attempt.Protocol) func(*stage, string) {
	return func(s *stage, name string) {
		port := newPort(protocol)
		source := attempt.Step{Protocol: protocol, Src: at(anyHost(4), port)}
		open := []handle{s.open(s.servers[0], source), s.open(s.away[0], source)}
		var acts []act
		for i := range s.attempts / 2 {
			step := attempt.Step{
				Do: attempt.Call, Protocol: protocol, ReuseAddr: true,
				Src: at(host(4, i%hosts), 20_000+i%10_000), Dst: at(host(4, (i+1)%hosts), port),
			}
			acts = append(acts,
				act{by: s.callers[i%callers], step: step, to: s.is(s.servers[0])},
				act{by: s.away[1], step: step, to: s.is(s.away[0])})
		}
		s.wave(name, acts)
		s.shut(open...)
	}
}

// manySockets keeps open what it calls from and what it calls.
func manySockets(s *stage, name string) {
	const ports = 100
	for _, protocol := range []attempt.Protocol{attempt.TCP, attempt.UDP} {
		var open []handle
		var acts []act
		for i := range ports {
			port := newPort(protocol)
			server := s.servers[i%servers]
			open = append(open, s.open(server, attempt.Step{Protocol: protocol, Src: at(host(4, 1), port)}))
			h := handle{by: s.callers[i%callers], name: open[i].name}
			acts = append(acts, act{by: h.by, to: s.is(server), step: attempt.Step{
				Do: attempt.Call, Protocol: protocol, Dst: at(host(4, 1), port), Socket: h.name, Connected: i%2 == 0,
			}})
			defer s.shut(h)
		}
		s.wave(name, acts)
		s.shut(open...)
	}
}
