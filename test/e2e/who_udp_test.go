// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"

	"gadget.example/network/test/e2e/attempt"
)

func udpOutCases() []whoCase {
	return []whoCase{
		{name: "UDP out: auto-bound", play: udpOut(false, attempt.Step{})},
		{name: "UDP out: bound", play: udpOut(true, attempt.Step{})},
		{name: "UDP out: connected", play: udpOut(false, attempt.Step{Connected: true})},
		{name: "UDP out: bound and connected", play: udpOut(true, attempt.Step{Connected: true})},
		{name: "UDP out: from threads", play: udpOut(false, attempt.Step{Thread: true})},
		{name: "UDP out: IPv4 from IPv6 sockets", play: udpOut(false, attempt.Step{DualStack: true})},
		{name: "UDP out: one source port of many addresses", play: udpSharedPort},
		{name: "UDP out: one source of many processes", play: udpSharedSource},
		{name: "UDP out: one source, one process after the other", play: udpTakenSource},
		{name: "UDP out: several datagrams", play: udpSeveral},
		{name: "UDP out: closed before it is sent", play: unresolved},
		{name: "UDP out: closed before it is sent, source taken over", play: takenUnresolved},
	}
}

// udpOut has all callers call a server in their own way, and close at once.
func udpOut(bound bool, how attempt.Step) func(*stage, string) {
	return func(s *stage, name string) {
		port := newPort(attempt.UDP)
		var open []handle
		for _, family := range families {
			open = append(open, s.open(s.servers[0], attempt.Step{Protocol: attempt.UDP, Src: at(anyHost(family), port)}))
		}
		var acts []act
		for i := range s.attempts {
			family := families[i/callers%2]
			step := how
			step.Do, step.Protocol, step.Dst = attempt.Call, attempt.UDP, at(host(family, i%hosts), port)
			if bound {
				step.Src = at(host(family, (i+1)%hosts), 0)
			}
			acts = append(acts, act{by: s.callers[i%callers], step: step, to: s.is(s.servers[0])})
		}
		s.wave(name, acts)
		s.shut(open...)
	}
}

// udpSharedPort has processes send from one port, each from its own address.
func udpSharedPort(s *stage, name string) {
	port := newPort(attempt.UDP)
	open := []handle{s.open(s.servers[0], attempt.Step{Protocol: attempt.UDP, Src: at(anyHost(4), port)})}
	var acts []act
	for i := range s.attempts {
		h := handle{by: s.callers[i%callers], name: fmt.Sprint(name, i)}
		open = append(open, h)
		acts = append(acts, act{by: h.by, to: s.is(s.servers[0]), step: attempt.Step{
			Do: attempt.Call, Protocol: attempt.UDP, Socket: h.name,
			Src: at(host(4, i%callers), 20_000+i/callers), Dst: at(host(4, 7), port),
		}})
	}
	s.wave(name, acts)
	s.shut(open...)
}

// udpSharedSource has processes send from one source at the same time: what two
// have on its way at once may be nobody's.
func udpSharedSource(s *stage, name string) {
	port := newPort(attempt.UDP)
	open := []handle{s.open(s.servers[0], attempt.Step{Protocol: attempt.UDP, Src: at(anyHost(4), port)})}
	var sockets []handle
	for _, caller := range s.callers {
		sockets = append(sockets, s.open(caller, attempt.Step{Protocol: attempt.UDP, ReuseAddr: true, Src: at(host(4, 0), 20_000)}))
	}
	var acts []act
	for i := range s.attempts {
		h := sockets[i%callers]
		acts = append(acts, act{by: h.by, to: s.is(s.servers[0]), spared: sameSource, step: attempt.Step{
			Do: attempt.Call, Protocol: attempt.UDP, Socket: h.name, Dst: at(host(4, i/callers%hosts), port),
		}})
	}
	s.wave(name, acts)
	s.shut(append(open, sockets...)...)
}

// udpTakenSource has processes use one source, each as soon as it is free.
func udpTakenSource(s *stage, name string) {
	port := newPort(attempt.UDP)
	server := s.open(s.servers[0], attempt.Step{Protocol: attempt.UDP, Src: at(anyHost(4), port)})
	for i := range max(callers, s.attempts/20) {
		var acts []act
		for j := range 20 {
			acts = append(acts, act{by: s.callers[i%callers], to: s.is(s.servers[0]), step: attempt.Step{
				Do: attempt.Call, Protocol: attempt.UDP, Src: at(host(4, 0), 20_000+j), Dst: at(host(4, 1), port), Connected: (i+j)%2 == 0,
			}})
		}
		s.wave(name, acts)
	}
	s.shut(server)
}

// udpSeveral sends to changing destinations from sockets that stay.
func udpSeveral(s *stage, name string) {
	port := newPort(attempt.UDP)
	open := []handle{s.open(s.servers[0], attempt.Step{Protocol: attempt.UDP, Src: at(anyHost(4), port)})}
	var acts []act
	for i := range s.attempts {
		h := handle{by: s.callers[i%callers], name: fmt.Sprint(name, i%(2*callers))}
		if i < 2*callers {
			open = append(open, h)
		}
		acts = append(acts, act{by: h.by, to: s.is(s.servers[0]), step: attempt.Step{
			Do: attempt.Call, Protocol: attempt.UDP, Socket: h.name, Dst: at(host(4, i/callers%hosts), port),
			Connected: i/(2*callers)%2 == 1,
		}})
	}
	s.wave(name, acts)
	s.shut(open...)
}

// unresolved sends to a neighbour whose link address is not known, and closes at
// once: the datagrams leave when nobody owns the socket any more.
func unresolved(s *stage, name string) {
	const each = 5
	port := newPort(attempt.UDP)
	server := s.open(s.away[0], attempt.Step{Protocol: attempt.UDP, Src: at(anyHost(4), port)})
	for range max(1, s.attempts/(each*callers*4)) {
		var acts []act
		for i := range each * callers {
			acts = append(acts, act{by: s.callers[i%callers], beyond: s.pair.ends[1], to: s.is(s.away[0]), step: attempt.Step{
				Do: attempt.Call, Protocol: attempt.UDP, Dst: at(overVeth.address(4, 2), port), Connected: i%2 == 0,
			}})
		}
		answer := s.forgetNeighbour()
		reports := s.perform(acts)
		answer()
		spareShared(acts, reports)
		s.settle(name, acts, reports)
	}
	s.shut(server)
}

// spareShared lets acts be nobody's that had one source with another process's:
// the kernel gives a port to the next one as soon as its socket is closed.
func spareShared(acts []act, reports []attempt.Report) {
	for i, mine := range reports {
		if slices.ContainsFunc(reports, func(r attempt.Report) bool {
			return r.Src == mine.Src && r.Process != mine.Process
		}) {
			acts[i].spared = sameSource
		}
	}
}

// takenUnresolved does the same from sources that another process uses before
// the datagrams leave: nothing in a packet tells then whose it is.
func takenUnresolved(s *stage, name string) {
	const each = 8
	port := newPort(attempt.UDP)
	server := s.open(s.away[0], attempt.Step{Protocol: attempt.UDP, Src: at(anyHost(4), port)})
	for range max(1, s.attempts/(each*callers*4)) {
		answer := s.forgetNeighbour()
		var acts []act
		var reports []attempt.Report
		for _, caller := range s.callers {
			var turn []act
			for i := range each {
				turn = append(turn, act{by: caller, beyond: s.pair.ends[1], to: s.is(s.away[0]), spared: sameSource, step: attempt.Step{
					Do: attempt.Call, Protocol: attempt.UDP, Connected: i%2 == 0,
					Src: at(overVeth.address(4, 1), 20_000+i), Dst: at(overVeth.address(4, 2), port),
				}})
			}
			acts, reports = append(acts, turn...), append(reports, s.perform(turn)...)
		}
		answer()
		s.settle(name, acts, reports)
	}
	s.shut(server)
}

// forgetNeighbour makes the first end ask for the other's link address, which
// answers when it is told to.
func (s *stage) forgetNeighbour() (answer func()) {
	s.t.Helper()
	left, right := s.pair.ends[0], s.pair.ends[1]
	left.sysctl(s.t, "ipv4/neigh/"+overVeth.device+"/retrans_time_ms", "100")
	left.sysctl(s.t, "ipv4/neigh/"+overVeth.device+"/mcast_solicit", "600")
	right.sysctl(s.t, "ipv4/conf/all/arp_ignore", "8")
	err := left.links.NeighDel(&netlink.Neigh{
		LinkIndex: left.link(s.t, overVeth.device).Attrs().Index, IP: overVeth.address(4, 2).AsSlice(),
	})
	if err != nil {
		s.t.Fatalf("forgetting a neighbour: %v", err)
	}
	return func() { right.sysctl(s.t, "ipv4/conf/all/arp_ignore", "0") }
}
