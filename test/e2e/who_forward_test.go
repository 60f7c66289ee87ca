// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"gadget.example/network/test/e2e/attempt"
)

// overInner joins a namespace to the one that forwards for it, as a container to
// its host.
var overInner = path{"e2e-inner", 32}

var innerMACs = [2]net.HardwareAddr{{2, 0x77, 0, 0, 0, 3}, {2, 0x77, 0, 0, 0, 4}}

// newBehind is a namespace that reaches others by a host's.
func newBehind(t *testing.T, host *namespace) *namespace {
	t.Helper()
	ends := [2]*namespace{host, newNamespace(t, "inner")}
	joinVeth(t, ends, [2]string{overInner.device, overInner.device}, innerMACs)
	for i, ns := range ends {
		for _, family := range families {
			ns.address(t, overInner.device, overInner.prefix(family, i+1))
			ns.neighbour(t, overInner.device, overInner.address(family, 2-i), innerMACs[1-i])
		}
	}
	for _, family := range families {
		ends[1].addRoute(t, &netlink.Route{
			LinkIndex: ends[1].link(t, overInner.device).Attrs().Index, Gw: overInner.address(family, 1).AsSlice(),
		})
	}
	return ends[1]
}

func forwardCases() []whoCase {
	return []whoCase{
		{name: "TCP forwarded and masqueraded, beside the same source", play: beside(attempt.TCP)},
		{name: "UDP forwarded and masqueraded, beside the same source", play: beside(attempt.UDP)},
	}
}

// beside has the first end forward and masquerade for the namespace behind it,
// while its own processes send from the same sources: what is forwarded is none
// of theirs.
func beside(protocol attempt.Protocol) func(*stage, string) {
	return func(s *stage, name string) {
		defer s.forward()()
		s.besideForwarded(name, protocol, "", families)
	}
}

// forward has the first end be a host of containers, until it is told not to.
func (s *stage) forward() (end func()) {
	s.t.Helper()
	left := s.pair.ends[0]
	set := func(value string) {
		left.sysctl(s.t, "ipv4/ip_forward", value)
		left.sysctl(s.t, "ipv6/conf/all/forwarding", value)
	}
	set("1")
	remove := left.addRules(s.t, func(r *rules) {
		r.add(natPostrouting, r.from(overInner.prefix(r.family, 0)), r.to(overVeth.prefix(r.family, 0)), []expr.Any{&expr.Masq{}})
	})
	return func() {
		remove()
		set("0")
	}
}

// besideForwarded: nobody may be named for what the host's own processes send if a
// reason is given.
func (s *stage) besideForwarded(name string, protocol attempt.Protocol, spared excuse, families []int) {
	ports := [2]int{newPort(protocol), newPort(protocol)} // called by the inner, and by the host's own
	var open []handle
	for i, port := range ports {
		for _, family := range families {
			open = append(open, s.open(s.away[i], attempt.Step{Protocol: protocol, Src: at(anyHost(family), port)}))
		}
	}
	var acts []act
	for i := range s.attempts / 2 {
		family, source := families[i/callers%len(families)], newSource()
		call := attempt.Step{Do: attempt.Call, Protocol: protocol, ReuseAddr: true}
		own, inner := call, call
		own.Src, own.Dst = at(overVeth.address(family, 1), source), at(overVeth.address(family, 2), ports[1])
		inner.Src, inner.Dst = at(overInner.address(family, 2), source), at(overVeth.address(family, 2), ports[0])
		acts = append(acts,
			act{by: s.callers[i%callers], step: own, beyond: s.pair.ends[1], to: s.is(s.away[1]), spared: spared},
			act{by: s.inner[i%inners], step: inner, beyond: s.pair.ends[1], to: s.is(s.away[0]), passed: masqueraded})
	}
	s.wave(name, acts)
	s.shut(open...)
}

// masqueraded are the ends of what the first end has forwarded.
func masqueraded(e ends) ends {
	family := 4
	if e.local.Addr().Is6() {
		family = 6
	}
	e.local = netip.AddrPortFrom(overVeth.address(family, 1), e.local.Port())
	return e
}
