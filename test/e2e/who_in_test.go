// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"

	"gadget.example/network/test/e2e/attempt"
)

// opening is a port that a server opens, and called one at which callers aim.
type opening struct {
	server int
	family int
	host   int // or wildcard
	how    attempt.Step
}

type called struct {
	family, host int
	to           []int // servers who may be named
	how          attempt.Step
}

const wildcard = -1

// arrangement is who serves one port, and who is to be named for whom.
type arrangement struct {
	name     string
	protocol attempt.Protocol
	opens    []opening
	calls    []called
	needs    func() error
}

// Short names for what the tables below say often.
var (
	shared   = attempt.Step{ReuseAddr: true}
	grouped  = attempt.Step{ReusePort: true}
	dual     = attempt.Step{DualStack: true}
	sharedUp = attempt.Step{ReuseAddr: true, DualStack: true}
	// The peer of a connected socket, and how it calls.
	peer      = at(host(4, 7), 7777)
	connected = attempt.Step{ReuseAddr: true, Connected: true, Dst: peer}
	asPeer    = attempt.Step{Src: peer, ReuseAddr: true}
)

var tcpArrangements = []arrangement{
	{
		name: "TCP in: one port of two addresses", protocol: attempt.TCP,
		opens: []opening{{0, 4, 1, none}, {1, 4, 2, none}, {0, 6, 1, none}, {1, 6, 2, none}},
		calls: []called{{4, 1, []int{0}, none}, {4, 2, []int{1}, none}, {4, 3, nil, none}, {6, 1, []int{0}, none}, {6, 2, []int{1}, none}, {6, 3, nil, none}},
	},
	{
		name: "TCP in: wildcard beside exact address", protocol: attempt.TCP,
		opens: []opening{{0, 4, wildcard, grouped}, {1, 4, 1, grouped}, {2, 6, wildcard, grouped}, {3, 6, 1, grouped}},
		calls: []called{{4, 1, []int{1}, none}, {4, 2, []int{0}, none}, {6, 1, []int{3}, none}, {6, 2, []int{2}, none}},
	},
	{
		name: "TCP in: dual-stack", protocol: attempt.TCP,
		opens: []opening{{0, 6, wildcard, dual}},
		calls: []called{{4, 1, []int{0}, none}, {6, 1, []int{0}, none}},
	},
	{
		name: "TCP in: dual-stack beside exact IPv4", protocol: attempt.TCP,
		opens: []opening{{0, 6, wildcard, attempt.Step{DualStack: true, ReusePort: true}}, {1, 4, 2, grouped}},
		calls: []called{{4, 1, []int{0}, none}, {4, 2, []int{1}, none}, {6, 1, []int{0}, none}},
	},
	{
		name: "TCP in: IPv6 only beside IPv4", protocol: attempt.TCP,
		opens: []opening{{0, 6, wildcard, none}, {1, 4, wildcard, none}},
		calls: []called{{4, 1, []int{1}, none}, {6, 1, []int{0}, none}},
	},
	{
		name: "TCP in: IPv6 only", protocol: attempt.TCP,
		opens: []opening{{0, 6, wildcard, none}},
		calls: []called{{4, 1, nil, none}, {6, 1, []int{0}, none}},
	},
	{
		name: "TCP in: v4-mapped address", protocol: attempt.TCP,
		opens: []opening{{0, 4, 1, dual}, {1, 4, 2, none}},
		calls: []called{{4, 1, []int{0}, none}, {4, 2, []int{1}, none}, {4, 3, nil, none}},
	},
	{
		name: "TCP in: MPTCP listener", protocol: attempt.TCP, needs: lacksMPTCP,
		opens: []opening{{0, 4, wildcard, attempt.Step{MPTCP: true}}, {1, 6, 1, attempt.Step{MPTCP: true}}},
		calls: []called{{4, 1, []int{0}, none}, {6, 1, []int{1}, attempt.Step{MPTCP: true}}},
	},
	{
		name: "TCP in: Go's listener", protocol: attempt.TCP,
		opens: []opening{{0, 6, wildcard, attempt.Step{Go: true}}},
		calls: []called{{4, 1, []int{0}, none}, {6, 1, []int{0}, none}},
	},
	{
		name: "TCP in: SO_REUSEPORT group", protocol: attempt.TCP,
		opens: []opening{{0, 4, wildcard, grouped}, {1, 4, wildcard, grouped}, {2, 4, wildcard, grouped}},
		calls: []called{{4, 1, []int{0, 1, 2}, none}, {4, 2, []int{0, 1, 2}, none}},
	},
}

var udpArrangements = []arrangement{
	{
		name: "UDP in: one port of two addresses", protocol: attempt.UDP,
		opens: []opening{{0, 4, 1, none}, {1, 4, 2, none}, {0, 6, 1, none}, {1, 6, 2, none}},
		calls: []called{{4, 1, []int{0}, none}, {4, 2, []int{1}, none}, {4, 3, nil, none}, {6, 1, []int{0}, none}, {6, 2, []int{1}, none}, {6, 3, nil, none}},
	},
	{
		name: "UDP in: wildcard beside exact addresses", protocol: attempt.UDP,
		opens: []opening{{0, 4, wildcard, shared}, {1, 4, 1, shared}, {2, 4, 2, shared}, {3, 6, wildcard, shared}, {2, 6, 1, shared}},
		calls: []called{{4, 1, []int{1}, none}, {4, 2, []int{2}, none}, {4, 3, []int{0}, none}, {6, 1, []int{2}, none}, {6, 2, []int{3}, none}},
	},
	{
		name: "UDP in: dual-stack beside exact IPv4", protocol: attempt.UDP,
		opens: []opening{{0, 6, wildcard, sharedUp}, {1, 4, 2, shared}},
		calls: []called{{4, 1, []int{0}, none}, {4, 2, []int{1}, none}, {6, 1, []int{0}, none}},
	},
	{
		name: "UDP in: IPv6 only beside IPv4", protocol: attempt.UDP,
		opens: []opening{{0, 6, wildcard, none}, {1, 4, wildcard, none}},
		calls: []called{{4, 1, []int{1}, none}, {6, 1, []int{0}, none}},
	},
	{
		name: "UDP in: IPv6 only", protocol: attempt.UDP,
		opens: []opening{{0, 6, wildcard, none}},
		calls: []called{{4, 1, nil, none}, {6, 1, []int{0}, none}},
	},
	{
		name: "UDP in: SO_REUSEPORT group", protocol: attempt.UDP,
		opens: []opening{{0, 4, wildcard, grouped}, {1, 4, wildcard, grouped}, {2, 4, wildcard, grouped}},
		calls: []called{{4, 1, []int{0, 1, 2}, none}, {4, 2, []int{0, 1, 2}, none}},
	},
	{
		name: "UDP in: connected socket beside another", protocol: attempt.UDP,
		opens: []opening{{0, 4, wildcard, shared}, {1, 4, 1, connected}},
		calls: []called{{4, 1, []int{0}, none}, {4, 1, []int{1}, asPeer}, {4, 2, []int{0}, none}},
	},
	{
		name: "UDP in: connected socket alone", protocol: attempt.UDP,
		opens: []opening{{1, 4, 1, connected}},
		calls: []called{{4, 1, nil, none}, {4, 1, []int{1}, asPeer}, {4, 2, nil, none}},
	},
}

var none attempt.Step

func inCases() []whoCase {
	var cases []whoCase
	for _, a := range slices.Concat(tcpArrangements, udpArrangements) {
		cases = append(cases, whoCase{name: a.name, needs: a.needs, play: func(s *stage, name string) {
			port := newPort(a.protocol)
			open := a.open(s, port, 0)
			s.wave(name, a.acts(s, port, 0, s.attempts))
			s.shut(open...)
		}})
	}
	return append(cases,
		whoCase{name: "TCP in: port taken over by another process", play: takenOver(tcpArrangements[:4])},
		whoCase{name: "UDP in: port taken over by another process", play: takenOver(udpArrangements[:4])},
		whoCase{name: "TCP in: sent again, to a listener that closes then", play: sentAgain})
}

// open has the servers open a port; they take turns.
func (a arrangement) open(s *stage, port, turn int) []handle {
	var all []handle
	for _, o := range a.opens {
		step := o.how
		step.Protocol, step.Src = a.protocol, at(anyHost(o.family), port)
		if o.host != wildcard {
			step.Src = at(host(o.family, o.host), port)
		}
		all = append(all, s.open(s.servers[(o.server+turn)%servers], step))
	}
	return all
}

// acts are calls, n in all, from all callers.
func (a arrangement) acts(s *stage, port, turn, n int) []act {
	var acts []act
	for i := range n {
		c := a.calls[i/callers%len(a.calls)]
		step := c.how
		step.Do, step.Protocol, step.Dst = attempt.Call, a.protocol, at(host(c.family, c.host), port)
		called := act{by: s.callers[i%callers], step: step}
		if step.Src == peer {
			called.by = s.callers[0] // there is one
		}
		if c.to == nil && a.protocol == attempt.TCP {
			called.step.Src = at(host(c.family, 0), 0) // a refused connect loses what it was not bound to
		}
		for _, server := range c.to {
			called.to = append(called.to, s.is(s.servers[(server+turn)%servers])...)
		}
		acts = append(acts, called)
	}
	return acts
}

// takenOver has servers hand ports to each other: each time, one closes and
// another opens the same at once.
func takenOver(arrangements []arrangement) func(*stage, string) {
	return func(s *stage, name string) {
		const turns = 5
		for _, a := range arrangements {
			port := newPort(a.protocol)
			for turn := range turns {
				open := a.open(s, port, turn)
				s.wave(name, a.acts(s, port, turn, max(len(a.calls), s.attempts/turns/len(arrangements))))
				s.shut(open...)
			}
		}
	}
}

// sentAgain has SYN segments sent again while their handshakes go on: the kernel asks
// no listener about those, and the one that took the first is gone when they are told.
func sentAgain(s *stage, name string) {
	const nobodys = 77 // has no neighbour: what answers waits
	for i := range 4 {
		family, server, port := families[i%2], s.away[i/2], newPort(attempt.TCP)
		open := s.openAt(server, attempt.TCP, port, none)
		var acts []act
		for range max(1, s.attempts/20) {
			a := s.madeAct(attempt.TCP, attempt.Step{Do: attempt.Packet, Again: 1}, i%2*rawCallers, port, newSource())
			a.step.Src, a.to = at(overVeth.address(family, nobodys), int(a.step.Src.Port())), s.is(server)
			acts = append(acts, a)
		}
		reports := s.perform(acts)
		s.shut(open...)
		s.settle(name, acts, reports)
	}
}

// olderCases are ports that were opened before the gadget started. Then they are
// taken over.
func olderCases() []whoCase {
	var cases []whoCase
	for _, a := range slices.Concat(tcpArrangements, udpArrangements) {
		port := newPort(a.protocol)
		var open []handle
		cases = append(cases, whoCase{
			name: "older, " + a.name, needs: a.needs,
			before: func(s *stage) { open = a.open(s, port, 0) },
			play: func(s *stage, name string) {
				s.wave(name, a.acts(s, port, 0, s.attempts/4))
				s.shut(open...)
				open = a.open(s, port, 1)
				s.wave("taken over, "+name, a.acts(s, port, 1, s.attempts/4))
				s.shut(open...)
			},
		})
	}
	return append(cases, besideOlder(), manyOlder())
}

// besideOlder has a port opened beside older ones of more exact addresses.
func besideOlder() whoCase {
	older := arrangement{protocol: attempt.UDP, opens: []opening{{1, 4, 1, shared}, {2, 4, 2, shared}}}
	younger := arrangement{
		protocol: attempt.UDP, opens: []opening{{0, 4, wildcard, shared}},
		calls: []called{{4, 1, []int{1}, none}, {4, 2, []int{2}, none}, {4, 3, []int{0}, none}},
	}
	port := newPort(attempt.UDP)
	var open []handle
	return whoCase{
		name:   "older, UDP in: exact addresses beside a younger wildcard",
		before: func(s *stage) { open = older.open(s, port, 0) },
		play: func(s *stage, name string) {
			open = append(open, younger.open(s, port, 0)...)
			s.wave(name, younger.acts(s, port, 0, s.attempts/4))
			s.shut(open...)
		},
	}
}
