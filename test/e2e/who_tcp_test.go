// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"

	"gadget.example/network/test/e2e/attempt"
)

func tcpOutCases() []whoCase {
	return []whoCase{
		{name: "TCP out: plain", play: tcpOut(attempt.Step{})},
		{name: "TCP out: closed with FIN", play: tcpOut(attempt.Step{Lingers: true})},
		{name: "TCP out: non-blocking, closed at once", play: tcpOut(attempt.Step{NonBlocking: true})},
		{name: "TCP out: from threads", play: tcpOut(attempt.Step{Thread: true})},
		{name: "TCP out: IPv4 from IPv6 sockets", play: tcpOut(attempt.Step{DualStack: true})},
		{name: "TCP out: MPTCP", play: tcpOut(attempt.Step{MPTCP: true}), needs: lacksMPTCP},
		{name: "TCP out: fast open", play: tcpOut(attempt.Step{FastOpen: true})},
		{name: "TCP out: refused", play: tcpRefused},
		{name: "TCP out: one source port, many processes", play: sharedSourcePort},
		{name: "TCP out: 20 source ports", play: fewSourcePorts},
	}
}

// tcpOut has all callers call a server in their own way.
func tcpOut(how attempt.Step) func(*stage, string) {
	return func(s *stage, name string) {
		port := newPort(attempt.TCP)
		var open []handle
		for _, family := range families {
			open = append(open, s.open(s.servers[0], attempt.Step{
				Protocol: attempt.TCP, Src: at(anyHost(family), port), FastOpen: how.FastOpen,
			}))
		}
		var acts []act
		for i := range s.attempts {
			step := how
			step.Do, step.Protocol = attempt.Call, attempt.TCP
			step.Dst = at(host(families[i/callers%2], i%hosts), port)
			acts = append(acts, act{by: s.callers[i%callers], step: step, to: s.is(s.servers[0])})
		}
		s.wave(name, acts)
		s.shut(open...)
	}
}

// tcpRefused calls a port that nobody serves at that address, and somebody at
// another.
func tcpRefused(s *stage, name string) {
	port := newPort(attempt.TCP)
	h := s.open(s.servers[0], attempt.Step{Protocol: attempt.TCP, Src: at(host(4, 0), port)})
	var acts []act
	for i := range s.attempts {
		family := families[i/callers%2]
		acts = append(acts, act{by: s.callers[i%callers], step: attempt.Step{
			Do: attempt.Call, Protocol: attempt.TCP, Src: at(host(family, 2), 0), Dst: at(host(family, 1), port), NonBlocking: i%2 == 0,
		}})
	}
	s.wave(name, acts)
	s.shut(h)
}

// sharedSourcePort has processes call different destinations from one source at
// the same time.
func sharedSourcePort(s *stage, name string) {
	var open []handle
	var ports [callers]int
	for i := range callers {
		ports[i] = newPort(attempt.TCP)
		open = append(open, s.open(s.servers[i%servers], attempt.Step{Protocol: attempt.TCP, Src: at(anyHost(4), ports[i])}))
	}
	var acts []act
	for i := range s.attempts {
		h := handle{by: s.callers[i%callers], name: fmt.Sprint(name, i)}
		open = append(open, h)
		acts = append(acts, act{by: h.by, to: s.is(s.servers[i%callers%servers]), step: attempt.Step{
			Do: attempt.Call, Protocol: attempt.TCP, ReuseAddr: true, Socket: h.name,
			Src: at(host(4, 0), 20_000+i/callers), Dst: at(host(4, 1), ports[i%callers]),
		}})
	}
	s.wave(name, acts)
	s.shut(open...)
}

// fewSourcePorts leaves callers so few ports that each is used again as soon as
// it is free, and by several for different destinations.
func fewSourcePorts(s *stage, name string) {
	const destinations = 8
	left := s.pair.ends[0]
	left.sysctl(s.t, "ipv4/ip_local_port_range", "40000 40019")
	left.sysctl(s.t, "ipv4/tcp_tw_reuse", "1")
	defer left.sysctl(s.t, "ipv4/ip_local_port_range", "32768 60999")
	var ports [destinations]int
	for i := range destinations {
		ports[i] = newPort(attempt.TCP)
		// It accepts until the server ends.
		s.open(s.servers[i%servers], attempt.Step{
			Do: attempt.Accept, Protocol: attempt.TCP, Src: at(anyHost(4), ports[i]),
		})
	}
	var acts []act
	for i := range s.attempts {
		to := i / callers % destinations
		acts = append(acts, act{by: s.callers[i%callers], to: s.is(s.servers[to%servers]), step: attempt.Step{
			Do: attempt.Call, Protocol: attempt.TCP, Dst: at(host(4, 1), ports[to]), Lingers: i%5 == 0,
		}})
	}
	s.wave(name, acts)
}
