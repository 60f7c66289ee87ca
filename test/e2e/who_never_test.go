// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// Addresses that cannot be reached.
var (
	unreachable = path{"e2e-unreachable", 40}
	prohibited  = path{"e2e-prohibited", 41}
	blackholed  = path{"e2e-blackhole", 42}
	routeless   = path{"e2e-routeless", 43}
	overDown    = path{"e2e-down", 44} // a device that is down
)

const absent = 77 // a host that no link address is known of, nor will be

// obstacle is why a SYN segment reaches no device.
type obstacle struct {
	name string
	dst  func(family int) netip.Addr
	// set puts it up until undo is called; who is met by it are the callers, or
	// another whom it returns.
	set func(*stage) (who *agent, undo func())
	// device, if not empty, is the one that the sockets are bound to.
	device string
	quick  bool // the connect fails at once
}

func neverCases() []whoCase {
	obstacles := []obstacle{
		{name: "dropped by a rule", dst: ofPath(ofServices, 7), set: ruled(&expr.Verdict{Kind: expr.VerdictDrop})},
		{name: "rejected with a reset", dst: ofPath(ofServices, 7), quick: true, set: ruled(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})},
		{name: "rejected with ICMP", dst: ofPath(ofServices, 7), set: ruled(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 1})},
		{name: "dropped by a cgroup's program", dst: ofPath(overVeth, 2), set: caged(dropSent)},
		{name: "connect denied by a cgroup's program", dst: ofPath(overVeth, 2), quick: true, set: caged(denyConnect)},
		{name: "no neighbour", dst: ofPath(overVeth, absent), set: noNeighbour, quick: true},
		{name: "unreachable by a route", dst: ofPath(unreachable, 7), set: routed(unreachable, unix.RTN_UNREACHABLE), quick: true},
		{name: "prohibited by a route", dst: ofPath(prohibited, 7), set: routed(prohibited, unix.RTN_PROHIBIT), quick: true},
		{name: "into a route's black hole", dst: ofPath(blackholed, 7), set: routed(blackholed, unix.RTN_BLACKHOLE), quick: true},
		{name: "no route", dst: ofPath(routeless, 7), set: unset, quick: true},
		{name: "the device is down", dst: ofPath(overDown, 7), set: deviceDown, device: overDown.device, quick: true},
	}
	var cases []whoCase
	for _, o := range obstacles {
		cases = append(cases, whoCase{name: "TCP never out: " + o.name, play: func(s *stage, name string) { s.neverOut(name, o) }})
	}
	return append(cases, whoCase{name: "TCP out late: the neighbour is found after a second", play: late})
}

// neverOut has callers call what cannot be reached: from bound sockets and from
// others, which wait for the error, are closed at once, or stay.
func (s *stage) neverOut(name string, o obstacle) {
	who, undo := o.set(s)
	defer undo()
	port := newPort(attempt.TCP)
	var acts []act
	var open []handle
	for i := range max(2*callers, s.attempts/2) {
		family := families[i/callers%2]
		a := act{by: cmp.Or(who, s.callers[i%callers]), never: true, step: attempt.Step{
			Do: attempt.Call, Protocol: attempt.TCP, Dst: at(o.dst(family), port), Device: o.device, Unsure: true,
			NonBlocking: !o.quick || i%3 > 0,
		}}
		if i%2 == 0 {
			a.step.Src, a.step.ReuseAddr = at(overVeth.address(family, 1), newSource()), true
			if o.device != "" { // which does not have that address
				a.step.Src = at(anyHost(family), int(a.step.Src.Port()))
			}
		}
		if i%3 == 2 {
			a.step.Socket = fmt.Sprint(name, i)
			open = append(open, handle{by: a.by, name: a.step.Socket})
		}
		acts = append(acts, a)
	}
	s.wave(name, acts)
	s.shut(open...)
}

// asFarAsKnown accepts the source that a socket was bound to, and of another that
// which the kernel had chosen, or nothing.
func asFarAsKnown(bound, reported netip.AddrPort) func(netip.AddrPort) bool {
	known := func(a netip.Addr) bool { return a.IsValid() && !a.IsUnspecified() }
	return func(src netip.AddrPort) bool {
		port := src.Port() == reported.Port() || bound.Port() == 0 && (src.Port() == 0 || reported.Port() == 0)
		addr := src.Addr() == reported.Addr() || !known(bound.Addr()) && (!known(src.Addr()) || !known(reported.Addr()))
		return port && addr
	}
}

func unset(*stage) (*agent, func()) { return nil, func() {} }

// ruled has the firewall do something with what is for services.
func ruled(what expr.Any) func(*stage) (*agent, func()) {
	return func(s *stage) (*agent, func()) {
		return nil, s.pair.ends[0].addRules(s.t, func(r *rules) {
			r.add(filterOutput, r.transport(), r.to(ofServices.prefix(r.family, 0)), []expr.Any{what})
		})
	}
}

// routed has a route lead nowhere.
func routed(p path, kind int) func(*stage) (*agent, func()) {
	return func(s *stage) (*agent, func()) {
		left := s.pair.ends[0]
		var routes []*netlink.Route
		for _, family := range families {
			route := &netlink.Route{Dst: ipNet(p.prefix(family, 0).Masked()), Type: kind}
			left.addRoute(s.t, route)
			routes = append(routes, route)
		}
		return nil, func() {
			for _, route := range routes {
				if err := left.links.RouteDel(route); err != nil {
					s.t.Fatalf("removing route %s: %v", route, err)
				}
			}
		}
	}
}

func noNeighbour(s *stage) (*agent, func()) {
	s.pair.ends[0].giveUpNeighboursSoon(s.t, overVeth.device)
	return nil, func() {}
}

// giveUpNeighboursSoon has the kernel ask for a link address for 0.3 s.
func (ns *namespace) giveUpNeighboursSoon(t *testing.T, device string) {
	t.Helper()
	for _, ip := range []string{"ipv4", "ipv6"} {
		ns.sysctl(t, ip+"/neigh/"+device+"/retrans_time_ms", "100")
		ns.sysctl(t, ip+"/neigh/"+device+"/mcast_solicit", "3")
	}
}

func deviceDown(s *stage) (*agent, func()) {
	left := s.pair.ends[0]
	remove := left.addUntil(s.t, &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: overDown.device}})
	for _, family := range families {
		left.address(s.t, overDown.device, overDown.prefix(family, 1))
	}
	return nil, remove
}

// Programs of a cgroup that let nothing pass: one for each kind of attachment.
var (
	dropSent    = map[ebpf.AttachType]ebpf.ProgramType{ebpf.AttachCGroupInetEgress: ebpf.CGroupSKB}
	denyConnect = map[ebpf.AttachType]ebpf.ProgramType{
		ebpf.AttachCGroupInet4Connect: ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Connect: ebpf.CGroupSockAddr,
	}
)

// caged has an agent in a cgroup of its own with such programs.
func caged(programs map[ebpf.AttachType]ebpf.ProgramType) func(*stage) (*agent, func()) {
	return func(s *stage) (*agent, func()) {
		dir := newCgroup(s.t)
		a := s.start(s.pair.ends[0], agentOptions{name: "caged"})
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, a.pid), 0); err != nil {
			s.t.Fatal(err)
		}
		var attached []link.Link
		for at, kind := range programs {
			attached = append(attached, attachDenial(s.t, dir, at, kind))
		}
		return a, func() {
			for _, l := range attached {
				if err := l.Close(); err != nil {
					s.t.Fatalf("detaching from the cgroup: %v", err)
				}
			}
		}
	}
}

var cgroups int // so far

// newCgroup goes with the test, after who is in it.
func newCgroup(t *testing.T) string {
	t.Helper()
	cgroups++
	dir := fmt.Sprintf("/sys/fs/cgroup/e2e-%d-%d", os.Getpid(), cgroups)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Errorf("removing a cgroup: %v", err)
		}
	})
	return dir
}

func attachDenial(t *testing.T, cgroup string, at ebpf.AttachType, kind ebpf.ProgramType) link.Link {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: kind, AttachType: at, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatalf("a program that denies: %v", err)
	}
	defer program.Close()
	attached, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: at, Program: program})
	if err != nil {
		t.Fatalf("attaching to a cgroup: %v", err)
	}
	return attached
}

// late has the neighbour answer when the attempts are reported: their segments
// leave then, and are not reported again but for those that were sent again.
func late(s *stage, name string) {
	port := newPort(attempt.TCP)
	server := s.open(s.away[0], attempt.Step{Protocol: attempt.TCP, Src: at(anyHost(4), port)})
	var acts, awaits []act
	var open []handle
	for i := range callers {
		h := handle{by: s.callers[i], name: fmt.Sprint(name, i)}
		open = append(open, h)
		acts = append(acts, act{by: h.by, beyond: s.pair.ends[1], to: s.is(s.away[0]), step: attempt.Step{
			Do: attempt.Call, Protocol: attempt.TCP, NonBlocking: true, Socket: h.name, Dst: at(overVeth.address(4, 2), port),
		}})
		awaits = append(awaits, act{by: h.by, step: attempt.Step{Do: attempt.Await, Socket: h.name}})
	}
	answer := s.forgetNeighbour()
	reports := s.perform(acts)
	early := s.take(len(acts))
	answer()
	for i, connected := range s.perform(awaits) {
		reports[i].Packets = connected.Packets
	}
	s.settle(name, acts, reports, early...)
	s.shut(append(open, server)...)
}
