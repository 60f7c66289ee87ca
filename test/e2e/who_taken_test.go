// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// takenCases are what the receiving kernel does between the device and the socket:
// who has the port on the wire is not who takes what comes to it.
func takenCases() []whoCase {
	var cases []whoCase
	for _, protocol := range []attempt.Protocol{attempt.TCP, attempt.UDP} {
		in := string(protocol) + " in: "
		cases = append(cases,
			whoCase{name: in + "translated to another address and port here", play: translatedIn(protocol)},
			whoCase{name: in + "published: handed on to a container", play: published(protocol)},
			whoCase{name: in + "dropped by the firewall", play: droppedIn(protocol)},
		)
	}
	return append(cases,
		whoCase{name: "TCP in: redirected to another port", play: redirectedIn},
		whoCase{name: "TCP in: source translated", play: sourceTranslatedIn},
		whoCase{name: "TCP in: translated by a rule without conntrack", play: stateless},
		whoCase{name: "TCP in: TPROXY", play: tproxy("0")},
		whoCase{name: "TCP in: TPROXY, where it is forwarded else", play: tproxy("1")},
		whoCase{name: "TCP in: a VRF", play: vrf},
		whoCase{name: "TCP in: the very member of a SO_REUSEPORT group", play: members},
		whoCase{name: "TCP forwarded, and dropped on its way", play: droppedOnItsWay},
	)
}

// handedCases are listeners that one process has opened and another one serves.
func handedCases() []whoCase {
	var cases []whoCase
	for _, h := range []struct {
		name string
		step attempt.Step
	}{
		{"handed on: to a child, by who ends", attempt.Step{Count: 1}},
		{"handed on: to a child of another user and name", attempt.Step{Count: 1, UID: 1007, Comm: "worker"}},
		{"handed on: to a grandchild, by who forks twice and waits", attempt.Step{Count: 2}},
		{"handed on: over three generations", attempt.Step{Count: 3}},
		{"handed on: to the program that a thread executes", attempt.Step{Count: 1, Becomes: true, Comm: "became"}},
		{"handed on: Go's listener, to a child", attempt.Step{Count: 1, Go: true}},
	} {
		cases = append(cases, whoCase{name: h.name, play: func(s *stage, name string) { s.handedOn(name, h.step) }})
		var port int
		var before daemon
		cases = append(cases, whoCase{
			name: "older, " + h.name,
			before: func(s *stage) {
				port = newPort(attempt.TCP)
				before = s.daemon(h.step, 4, port)
			},
			play: func(s *stage, name string) { s.callDaemon(name, before, 4, port) },
		})
	}
	return cases
}

// daemon is a program that has handed its listener on, and who has it now.
type daemon struct {
	handle
	process attempt.Process
}

func (s *stage) daemon(step attempt.Step, family, port int) daemon {
	s.t.Helper()
	s.opened++
	step.Do, step.Protocol, step.Src = attempt.Daemon, attempt.TCP, at(anyHost(family), port)
	step.Socket = fmt.Sprint("daemon ", s.opened)
	by := s.servers[s.opened%servers]
	reports := s.perform([]act{{by: by, step: step}})
	return daemon{handle{by, step.Socket}, reports[0].Process}
}

func (s *stage) handedOn(name string, step attempt.Step) {
	for i := range max(2, s.attempts/40) {
		family, port := families[i%2], newPort(attempt.TCP)
		s.callDaemon(name, s.daemon(step, family, port), family, port)
	}
}

// callDaemon calls a listener on which nobody has accepted.
func (s *stage) callDaemon(name string, d daemon, family, port int) {
	var acts []act
	for i := range callers {
		acts = append(acts, act{by: s.callers[i], to: []attempt.Process{d.process}, step: attempt.Step{
			Do: attempt.Call, Protocol: attempt.TCP, Dst: at(host(family, i%hosts), port),
		}})
	}
	s.wave(name, acts)
	s.shut(d.handle)
}

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

// callAway has all callers call a port of the other end's, and says of each act what
// else is to be known.
func (s *stage) callAway(name string, protocol attempt.Protocol, port int, know func(i, family int, a *act)) {
	s.t.Helper()
	var acts []act
	for i := range s.attempts {
		family := families[i/callers%2]
		a := act{by: s.callers[i%callers], beyond: s.pair.ends[1], step: attempt.Step{
			Do: attempt.Call, Protocol: protocol, Dst: at(overVeth.address(family, 2), port),
		}}
		know(i, family, &a)
		acts = append(acts, a)
	}
	s.wave(name, acts)
}

// openAt has an agent of the other end open a port of both families.
func (s *stage) openAt(by *agent, protocol attempt.Protocol, port int, how attempt.Step) (open []handle) {
	s.t.Helper()
	for _, family := range families {
		step := how
		step.Protocol, step.Src = protocol, at(anyHost(family), port)
		open = append(open, s.open(by, step))
	}
	return open
}

// translatedIn: the other end has its own listener on the port that is called, and
// another one gets it. Of a datagram the first is named: see the README's limits.
func translatedIn(protocol attempt.Protocol) func(*stage, string) {
	return func(s *stage, name string) {
		port := newPort(protocol)
		becomes := port ^ turnedPort
		defer s.pair.ends[1].addRules(s.t, func(r *rules) {
			r.add(natPrerouting, r.transport(), matchPort(portAt, port), r.dnat(overLoopback.address(r.family, 2), turnedPort))
		})()
		open := append(s.openAt(s.away[0], protocol, becomes, none), s.openAt(s.away[1], protocol, port, none)...)
		s.callAway(name, protocol, port, func(_, family int, a *act) {
			if protocol == attempt.UDP {
				a.to = s.is(s.away[1])
				return
			}
			a.to = s.is(s.away[0])
			a.taken = func(netip.AddrPort) netip.AddrPort { return at(overLoopback.address(family, 2), becomes) }
		})
		s.shut(open...)
	}
}

func redirectedIn(s *stage, name string) {
	port := newPort(attempt.TCP)
	defer s.pair.ends[1].addRules(s.t, func(r *rules) {
		r.add(natPrerouting, r.transport(), matchPort(portAt, port), r.redirect(turnedPort))
	})()
	open := append(s.openAt(s.away[0], attempt.TCP, port^turnedPort, none), s.openAt(s.away[1], attempt.TCP, port, none)...)
	s.callAway(name, attempt.TCP, port, func(_, family int, a *act) {
		a.to = s.is(s.away[0])
		a.taken = func(netip.AddrPort) netip.AddrPort { return at(overVeth.address(family, 2), port^turnedPort) }
	})
	s.shut(open...)
}

// sourceTranslatedIn: the listener sees another source than the wire has.
func sourceTranslatedIn(s *stage, name string) {
	port := newPort(attempt.TCP)
	defer s.pair.ends[1].addRules(s.t, func(r *rules) {
		r.add(natInput, r.transport(), matchPort(portAt, port), r.snat(ofNAT.address(r.family, 9)))
	})()
	open := s.openAt(s.away[0], attempt.TCP, port, none)
	s.callAway(name, attempt.TCP, port, func(_, family int, a *act) {
		a.to = s.is(s.away[0])
		a.seenFrom = func(src netip.AddrPort) netip.AddrPort {
			return netip.AddrPortFrom(ofNAT.address(family, 9), src.Port()^turnedSource)
		}
	})
	s.shut(open...)
}

// stateless has a rule write another port into the packet, and one back into the
// answer, of which conntrack knows nothing.
func stateless(s *stage, name string) {
	port := newPort(attempt.TCP)
	becomes := port ^ turnedPort
	rewrite := func(at uint32, to int) []expr.Any {
		return []expr.Any{
			&expr.Immediate{Register: 1, Data: []byte{byte(to >> 8), byte(to)}},
			&expr.Payload{
				OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: at, Len: 2,
				CsumType: expr.CsumTypeInet, CsumOffset: 16,
			},
		}
	}
	untracked := []expr.Any{&expr.Notrack{}}
	defer s.pair.ends[1].addRules(s.t, func(r *rules) {
		r.add(rawPrerouting, r.transport(), matchPort(portAt, port), untracked, rewrite(portAt, becomes))
		r.add(rawOutput, r.transport(), matchPort(sourcePortAt, becomes), untracked, rewrite(sourcePortAt, port))
	})()
	open := append(s.openAt(s.away[0], attempt.TCP, becomes, none), s.openAt(s.away[1], attempt.TCP, port, none)...)
	s.callAway(name, attempt.TCP, port, func(_, family int, a *act) {
		a.to = s.is(s.away[0])
		a.taken = func(netip.AddrPort) netip.AddrPort { return at(overVeth.address(family, 2), becomes) }
	})
	s.shut(open...)
}

// droppedIn: a port that the firewall protects is received by nobody. Of a datagram
// who has the port is named: see the README's limits.
func droppedIn(protocol attempt.Protocol) func(*stage, string) {
	return func(s *stage, name string) {
		port := newPort(protocol)
		defer s.pair.ends[1].addRules(s.t, func(r *rules) {
			r.add(filterInput, r.transport(), matchPort(portAt, port), drop())
		})()
		open := s.openAt(s.away[0], protocol, port, none)
		s.callAway(name, protocol, port, func(_, _ int, a *act) {
			a.step.NonBlocking = true
			if protocol == attempt.UDP {
				a.to = s.is(s.away[0])
			}
		})
		s.shut(open...)
	}
}

// published has the first end hand on what comes to a port to the namespace behind
// it, as a container's; its own listener on that port gets nothing.
func published(protocol attempt.Protocol) func(*stage, string) {
	return func(s *stage, name string) {
		port := newPort(protocol)
		becomes := port ^ turnedPort
		defer s.forward()()
		defer s.pair.ends[0].addRules(s.t, func(r *rules) {
			r.add(natPrerouting, r.transport(), matchPort(portAt, port), r.dnat(overInner.address(r.family, 2), turnedPort))
		})()
		open := append(s.openAt(s.inner[0], protocol, becomes, none), s.openAt(s.servers[0], protocol, port, none)...)
		var acts []act
		for i := range s.attempts {
			family := families[i/aways%2]
			acts = append(acts, act{
				by: s.away[i%aways], beyond: s.inner[0].ns, to: s.is(s.inner[0]),
				passed: func(e ends) ends {
					e.remote = at(overInner.address(family, 2), becomes)
					return e
				},
				step: attempt.Step{Do: attempt.Call, Protocol: protocol, Dst: at(overVeth.address(family, 1), port)},
			})
		}
		s.wave(name, acts)
		s.shut(open...)
	}
}

// droppedOnItsWay is for somebody else, and does not get there: it is no attempt of
// the host that forwards.
func droppedOnItsWay(s *stage, name string) {
	port := newPort(attempt.TCP)
	defer s.forward()()
	defer s.pair.ends[0].addRules(s.t, func(r *rules) {
		r.add(filterForward, r.transport(), matchPort(portAt, port), drop())
	})()
	open := s.openAt(s.servers[0], attempt.TCP, port, none)
	var acts []act
	for i := range s.attempts {
		acts = append(acts, act{by: s.inner[i%inners], lost: true, step: attempt.Step{
			Do: attempt.Call, Protocol: attempt.TCP, NonBlocking: true, Dst: at(overVeth.address(families[i/inners%2], 2), port),
		}})
	}
	s.wave(name, acts)
	s.shut(open...)
}

// tproxy has the other end take what is for services, whose addresses nobody has.
func tproxy(forwarding string) func(*stage, string) {
	const mark, table = 1, 100
	return func(s *stage, name string) {
		right := s.pair.ends[1]
		right.sysctl(s.t, "ipv4/ip_forward", forwarding)
		right.sysctl(s.t, "ipv6/conf/all/forwarding", forwarding)
		defer right.sysctl(s.t, "ipv4/ip_forward", "0")
		defer right.sysctl(s.t, "ipv6/conf/all/forwarding", "0")
		defer right.localByMark(s.t, mark, table)()
		port := newPort(attempt.TCP)
		becomes := port ^ turnedPort
		defer right.addRules(s.t, func(r *rules) {
			r.add(manglePrerouting, r.transport(), matchPort(portAt, port), r.to(ofServices.prefix(r.family, 0)), []expr.Any{
				&expr.Immediate{Register: 1, Data: []byte{byte(becomes >> 8), byte(becomes)}},
				&expr.TProxy{Family: byte(r.nfproto()), TableFamily: byte(r.nfproto()), RegPort: 1},
				&expr.Immediate{Register: 1, Data: []byte{mark, 0, 0, 0}},
				&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
			})
		})()
		open := append(s.openAt(s.away[0], attempt.TCP, becomes, attempt.Step{Transparent: true}), s.openAt(s.away[1], attempt.TCP, port, none)...)
		s.callAway(name, attempt.TCP, port, func(i, family int, a *act) {
			a.step.Dst = at(ofServices.address(family, 1+i%9), port)
			a.to = s.is(s.away[0])
		})
		s.shut(open...)
	}
}

// localByMark takes what has a mark for the namespace's own.
func (ns *namespace) localByMark(t *testing.T, mark uint32, table int) (end func()) {
	t.Helper()
	var undo []func() error
	for _, family := range families {
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Table = map[int]int{4: unix.AF_INET, 6: unix.AF_INET6}[family], mark, table
		route := &netlink.Route{
			LinkIndex: ns.link(t, "lo").Attrs().Index, Type: unix.RTN_LOCAL, Table: table, Scope: netlink.SCOPE_HOST,
			Dst: map[int]*net.IPNet{4: {IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, 6: {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}}[family],
		}
		if err := ns.links.RuleAdd(rule); err != nil {
			t.Fatalf("a rule in %s: %v", ns.name, err)
		}
		ns.addRoute(t, route)
		undo = append(undo, func() error { return errors.Join(ns.links.RuleDel(rule), ns.links.RouteDel(route)) })
	}
	return func() {
		for _, u := range undo {
			if err := u(); err != nil {
				t.Errorf("removing a rule from %s: %v", ns.name, err)
			}
		}
	}
}

var overVRF = path{"e2e-vrf-port", 33}

// vrf has a device of the other end in a VRF, which has a listener of its own on the
// same port as all the others.
func vrf(s *stage, name string) {
	const device = "e2e-vrf"
	right := s.pair.ends[1]
	macs := [2]net.HardwareAddr{{2, 0x77, 0, 0, 0, 5}, {2, 0x77, 0, 0, 0, 6}}
	joinVeth(s.t, s.pair.ends, [2]string{overVRF.device, overVRF.device}, macs)
	right.add(s.t, &netlink.Vrf{LinkAttrs: netlink.LinkAttrs{Name: device}, Table: 77})
	right.setUp(s.t, device)
	right.enslave(s.t, overVRF.device, device)
	for i, ns := range s.pair.ends {
		for _, family := range families {
			ns.address(s.t, overVRF.device, overVRF.prefix(family, i+1))
			ns.neighbour(s.t, overVRF.device, overVRF.address(family, 2-i), macs[1-i])
		}
	}
	both, one := newPort(attempt.TCP), newPort(attempt.TCP)
	open := append(s.openAt(s.away[0], attempt.TCP, both, attempt.Step{Device: device}), s.openAt(s.away[1], attempt.TCP, both, none)...)
	open = append(open, s.openAt(s.away[1], attempt.TCP, one, none)...)
	s.callAway(name, attempt.TCP, both, func(i, family int, a *act) {
		a.step.Dst = at(overVRF.address(family, 2), both)
		a.to = s.is(s.away[0])
		if i%3 == 0 { // who is in no VRF does not get it
			a.step.Dst, a.to, a.step.NonBlocking = at(overVRF.address(family, 2), one), nil, true
			a.step.Src = at(overVRF.address(family, 1), 0)
		}
	})
	s.shut(open...)
}

// members of a group take turns as the kernel has it: who has got a connection is who
// can accept it.
func members(s *stage, name string) {
	for _, family := range families {
		port := newPort(attempt.TCP)
		var open []handle
		for _, server := range s.servers {
			open = append(open, s.open(server, attempt.Step{Protocol: attempt.TCP, Src: at(anyHost(family), port), ReusePort: true}))
		}
		var acts []act
		for i := range min(s.attempts, mostInWave) {
			// Closed with FIN: a RST of another CPU's can overtake the ACK of the handshake,
			// and then nobody can accept what a member has got.
			acts = append(acts, act{by: s.callers[i%callers], step: attempt.Step{
				Do: attempt.Call, Protocol: attempt.TCP, Dst: at(host(family, i%hosts), port), Lingers: true,
			}})
		}
		reports := s.perform(acts)
		took := map[netip.AddrPort][]attempt.Process{}
		for _, h := range open {
			drained := s.perform([]act{{by: h.by, step: attempt.Step{Do: attempt.Drain, Socket: h.name}}})
			for _, accepted := range drained[0].Steps {
				took[accepted.Src] = s.is(h.by)
			}
		}
		for i := range acts {
			acts[i].to = took[reports[i].Src]
		}
		s.settle(name, acts, reports)
		s.shut(open...)
	}
}

// olderOnes are how many sockets are there before the gadget.
func olderOnes() int { return min(2000, max(200, *wantedAttempts/5)) }

// manyOlder are sockets of every kind that were there before the gadget, each of
// which is called.
func manyOlder() whoCase {
	var acts []act
	var open []handle
	kinds := []attempt.Step{
		{Protocol: attempt.TCP, Src: at(anyHost(4), 0)},
		{Protocol: attempt.TCP, Src: at(host(6, 1), 0)},
		{Protocol: attempt.TCP, Src: at(anyHost(6), 0), DualStack: true},
		{Protocol: attempt.TCP, Src: at(anyHost(4), 0), ReusePort: true},
		{Protocol: attempt.TCP, Src: at(anyHost(6), 0), Go: true},
		{Protocol: attempt.UDP, Src: at(anyHost(4), 0)},
		{Protocol: attempt.UDP, Src: at(host(6, 1), 0)},
		{Protocol: attempt.UDP, Src: at(host(4, 1), 0), ReusePort: true},
	}
	return whoCase{
		name: "older, many of every kind",
		before: func(s *stage) {
			for i := range olderOnes() {
				step, by := kinds[i%len(kinds)], s.servers[i/2%servers]
				port := 2000 + i // of TCP; datagrams to low ports are attempts
				if step.Protocol == attempt.UDP {
					port = 300 + i/len(kinds)
				}
				if step.ReusePort && step.Protocol == attempt.UDP {
					port += 2000 / len(kinds)
				}
				addr := host(4, 1)
				if step.Src.Addr().Is6() && !step.DualStack {
					addr = host(6, 1)
				}
				step.Src = netip.AddrPortFrom(step.Src.Addr(), uint16(port))
				open = append(open, s.open(by, step))
				acts = append(acts, act{by: s.callers[i%callers], to: s.is(by), step: attempt.Step{
					Do: attempt.Call, Protocol: step.Protocol, Dst: netip.AddrPortFrom(addr, uint16(port)),
				}})
			}
		},
		play: func(s *stage, name string) {
			s.wave(name, acts)
			s.shut(open...)
		},
	}
}

// TestWhatIsOpenedWhileTheGadgetStartsIsKnown has processes take ports from each
// other all the while: who has one in the end is named.
func TestWhatIsOpenedWhileTheGadgetStartsIsKnown(t *testing.T) {
	const ports, firstPort = 100, 5000
	s := newStage(t, 0)
	var open [ports]handle
	started, ended := make(chan struct{}), make(chan int)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-started:
				ended <- n
				return
			default:
			}
			if old := open[n%ports]; old.by != nil {
				s.shut(old)
			}
			open[n%ports] = s.open(s.servers[n%servers], attempt.Step{Protocol: attempt.TCP, Src: at(anyHost(4), firstPort+n%ports)})
		}
	}()
	s.watch(nil, func() {
		close(started)
		t.Logf("%d ports were opened meanwhile", <-ended)
		var acts []act
		for i, h := range open {
			if h.by != nil {
				acts = append(acts, act{by: s.callers[i%callers], to: s.is(h.by), step: attempt.Step{
					Do: attempt.Call, Protocol: attempt.TCP, Dst: at(host(4, i%hosts), firstPort+i),
				}})
			}
		}
		s.wave("opened while the gadget starts", acts)
		for _, h := range open {
			if h.by != nil {
				s.shut(h)
			}
		}
	})
	s.score.check(t)
}
