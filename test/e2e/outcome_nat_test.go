// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"gadget.example/network/test/e2e/attempt"
)

// toNobody leads to a host that does not answer.
var toNobody = translation{
	name: "a service's address, nobody answers", asked: ofPath(ofServices, 7), becomes: ofPath(overVeth, nobody), bits: turnedPort,
	write: func(r *rules) { r.service(overVeth.address(r.family, nobody)) },
}

// translatedCases are attempts whose ends on the wire are not those of their sockets.
func translatedCases() []whoCase {
	var cases []whoCase
	for _, n := range translations {
		if n.closed {
			cases = append(cases, whoCase{name: "NAT, fails: " + n.name, play: n.refused(nil)})
			continue
		}
		cases = append(cases, whoCase{name: "NAT, talk: " + n.name, play: n.talks})
	}
	return append(cases,
		whoCase{name: "NAT, fails: rejected with ICMP", play: toClosed.refused(prohibits)},
		whoCase{name: "NAT, fails: silence", play: unheardOf},
		whoCase{name: "NAT, arriving: another address and port", play: arrivesAt(natPrerouting, overLoopback, func(r *rules) []expr.Any {
			return r.dnat(overLoopback.address(r.family, 2), turnedPort)
		})},
		whoCase{name: "NAT, arriving: another port", play: arrivesAt(natPrerouting, overVeth, func(r *rules) []expr.Any {
			return r.redirect(turnedPort)
		})},
		whoCase{name: "NAT, arriving: another source", play: fromElsewhere},
	)
}

// talks has all callers talk by a translation.
func (n translation) talks(s *stage, name string) {
	defer s.pair.ends[0].addRules(s.t, n.write)()
	server, beyond := s.away[0], s.pair.ends[1]
	if n.local {
		server, beyond = s.servers[0], nil
	}
	s.talkOver(name, server, n.servedPort, func(i, family, port int, a *act) {
		a.beyond, a.nat, a.step.Dst = beyond, n.onWire, at(n.asked(family), port)
		if n.source == nil {
			return
		}
		a.step.Src, a.step.ReuseAddr = at(overVeth.address(family, 1), newSource()), true
		if i%2 == 0 { // of an address that the other end would not answer
			a.step.Src = at(host(family, i%hosts), int(a.step.Src.Port()))
		}
	})
}

// talkOver has all callers talk with a server that listens on another port than is
// called.
func (s *stage) talkOver(name string, server *agent, servedPort func(int) int, know func(i, family, port int, a *act)) {
	s.t.Helper()
	for i := range max(3, s.attempts/callers) {
		family, dualStack := mixedFamily(i)
		port, t := newPort(attempt.TCP), talkOf(i, attempt.Step{})
		h := s.serve(server, attempt.Step{Src: at(anyHost(family), servedPort(port)), Talk: &t, Count: callers})
		var acts []act
		for j, by := range s.callers {
			a := act{by: by, to: s.is(server), step: attempt.Step{
				Do: attempt.Call, Protocol: attempt.TCP, Talk: &t, Lingers: true, DualStack: dualStack,
			}}
			know(j, family, port, &a)
			acts = append(acts, a)
		}
		s.settleTalks(name, acts, s.perform(acts), h, len(acts))
	}
}

// refused calls get a RST from who is called on the wire, or what else it answers a
// port with.
func (n translation) refused(answer func(s *stage, family, port int) refusal) func(*stage, string) {
	return func(s *stage, name string) {
		defer s.pair.ends[0].addRules(s.t, n.write)()
		port := newPort(attempt.TCP)
		hows := map[int]refusal{}
		for _, family := range families {
			hows[family] = refusal{cause: "rst", by: n.becomes(family)}
		}
		if answer != nil {
			for _, family := range families {
				hows[family] = answer(s, family, n.servedPort(port))
			}
		}
		s.failing(name, 10, func(_, family int, a *act) {
			a.beyond, a.nat = s.pair.ends[1], n.onWire
			a.step.Src, a.step.ReuseAddr = at(overVeth.address(family, 1), newSource()), true
			a.step.Dst, a.step.NonBlocking, a.step.Waits = at(n.asked(family), port), true, true
			a.became = refusedAs(hows[family], failed(hows[family])...)
		})
	}
}

// prohibits has the other end's firewall answer that a port is administratively
// prohibited, however often.
func prohibits(s *stage, family, port int) refusal {
	s.pair.ends[1].sysctl(s.t, "ipv4/icmp_ratemask", "0")
	s.pair.ends[1].sysctl(s.t, "ipv6/icmp/ratelimit", "0")
	code := map[int]uint8{4: 13, 6: 1}[family]
	s.pair.ends[1].addRules(s.t, func(r *rules) {
		if r.family == family {
			ruleFor(r, filterInput, port, reject(code))
		}
	})
	return byICMP(family, code, overVeth.address(family, 2))
}

func unheardOf(s *stage, name string) {
	defer s.pair.ends[0].addRules(s.t, toNobody.write)()
	port := newPort(attempt.TCP)
	s.failing(name, 10, func(_, family int, a *act) {
		unheard(attempt.Step{NonBlocking: true, Waits: true, SYNRetries: 1}, family, a)
		a.nat, a.step.Dst = toNobody.onWire, at(toNobody.asked(family), port)
		a.became = refusedAs(refusal{cause: "silence"})
	})
}

// arrivesAt has the other end lead what comes to a port elsewhere: the address is one
// of a path.
func arrivesAt(chain nftables.Chain, taken path, lead func(*rules) []expr.Any) func(*stage, string) {
	return func(s *stage, name string) {
		defer s.pair.ends[1].addRules(s.t, func(r *rules) {
			r.add(chain, r.transport(), r.to(overVeth.prefix(r.family, 0)), lead(r))
		})()
		s.talkOver(name, s.away[0], func(port int) int { return port ^ turnedPort }, func(_, family, port int, a *act) {
			a.beyond, a.step.Dst = s.pair.ends[1], at(overVeth.address(family, 2), port)
			a.taken = func(netip.AddrPort) netip.AddrPort { return at(taken.address(family, 2), port^turnedPort) }
		})
	}
}

// fromElsewhere: who serves sees another source than the wire has.
func fromElsewhere(s *stage, name string) {
	defer s.pair.ends[1].addRules(s.t, func(r *rules) {
		r.add(natInput, r.transport(), r.to(overVeth.prefix(r.family, 0)), r.snat(ofNAT.address(r.family, 9)))
	})()
	same := func(port int) int { return port }
	s.talkOver(name, s.away[0], same, func(_, family, port int, a *act) {
		a.beyond, a.step.Dst = s.pair.ends[1], at(overVeth.address(family, 2), port)
		a.seenFrom = func(src netip.AddrPort) netip.AddrPort {
			return netip.AddrPortFrom(ofNAT.address(family, 9), src.Port()^turnedSource)
		}
	})
}
