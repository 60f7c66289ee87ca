// SPDX-License-Identifier: Apache-2.0

//go:build hooks

package unit

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	bpflink "github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// connectHooks are those that see a connect(), and the filter.
var connectHooks = []string{
	filterProgram, "network_tcp_connect",
	"network_tcp_v4", "network_tcp_v4_return", "network_tcp_v6", "network_tcp_v6_return",
	"network_pre_v4", "network_pre_v4_return", "network_pre_v6", "network_pre_v6_return",
}

// Where a connect() goes that fails.
var (
	lost4      = netip.MustParseAddrPort("203.0.113.1:80") // without a route
	lost6      = netip.MustParseAddrPort("[2001:db8:3::1]:80")
	forbidden4 = netip.MustParseAddrPort("203.0.113.2:80")
	forbidden6 = netip.MustParseAddrPort("[2001:db8:3::2]:80")
	ended4     = netip.MustParseAddrPort("203.0.113.3:80")
)

// newDeadEnds is a home with routes that lead nowhere.
func newDeadEnds(t *testing.T) netns.NsHandle {
	t.Helper()
	home := newHome(t)
	withNetlink(t, home, func(h *netlink.Handle) error {
		for to, kind := range map[netip.AddrPort]int{
			forbidden4: unix.RTN_PROHIBIT, forbidden6: unix.RTN_PROHIBIT, ended4: unix.RTN_UNREACHABLE,
		} {
			prefix, err := netlink.ParseIPNet(netip.PrefixFrom(to.Addr(), to.Addr().BitLen()).String())
			if err != nil {
				return err
			}
			if err := h.RouteAdd(&netlink.Route{Dst: prefix, Type: kind, Priority: 1}); err != nil {
				return fmt.Errorf("adding a route of type %d to %v: %w", kind, to, err)
			}
		}
		return nil
	})
	return home
}

// A connectCase is a connect(), how it fails, and the ends that are reported.
type connectCase struct {
	name          string
	domain        int
	bind          netip.AddrPort // none: it is not bound
	to            netip.AddrPort // what the program asks for
	err           error
	local, remote netip.AddrPort
}

func connectCases() []connectCase {
	const v4, v6 = unix.AF_INET, unix.AF_INET6
	none4 := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	none6 := netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	var unbound netip.AddrPort
	return []connectCase{
		{"no route", v4, unbound, lost4, unix.ENETUNREACH, none4, lost4},
		{"no route, on a bound socket", v4, here4, lost4, unix.ENETUNREACH, here4, lost4},
		{"no IPv6 route", v6, unbound, lost6, unix.ENETUNREACH, none6, lost6},
		{"no IPv6 route, on a bound socket", v6, here6, lost6, unix.ENETUNREACH, here6, lost6},
		{"no route, of an IPv6 socket", v6, unbound, mappedTo(lost4), unix.ENETUNREACH, none4, lost4},
		{"no route, of a bound IPv6 socket", v6, mapped4, mappedTo(lost4), unix.ENETUNREACH, here4, lost4},
		{"denied by a route", v4, unbound, forbidden4, unix.EACCES, none4, forbidden4},
		{"denied by a route, of an IPv6 socket", v6, unbound, mappedTo(forbidden4), unix.EACCES, none4, forbidden4},
		{"denied by an IPv6 route", v6, here6, forbidden6, unix.EACCES, here6, forbidden6},
		{"unreachable", v4, here4, ended4, unix.EHOSTUNREACH, here4, ended4},
	}
}

// call opens the socket and connects it.
func (c connectCase) call() error {
	fd, err := unix.Socket(c.domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if c.bind.IsValid() {
		if err := unix.Bind(fd, socketAddress(c.bind)); err != nil {
			return fmt.Errorf("binding to %v: %w", c.bind, err)
		}
	}
	if err := unix.Connect(fd, socketAddress(c.to)); !errors.Is(err, c.err) {
		return fmt.Errorf("connecting to %v: got %w, want %w", c.to, err, c.err)
	}
	return nil
}

// event is what is reported of it.
func (c connectCase) event(netns uint32, by process) event {
	proto, version := uint8(protoTCP), uint8(version(c.remote.Addr()))
	e := newEvent(true, netns, version, proto, c.local, c.remote)
	e.Local, e.Remote = endpoint{c.local, proto, version}, endpoint{c.remote, proto, version}
	e.Proc = by
	return e
}

// expectCall makes a call, and compares what is reported of it.
func (g *gadget) expectCall(t *testing.T, home netns.NsHandle, c connectCase, watched bool) {
	t.Helper()
	self, err := inThreadOf(t, home, c.call)
	if err != nil {
		t.Fatal(err)
	}
	got, err := g.drain(nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		got[i].Proc = withoutParentTID(got[i].Proc)
	}
	var want []event
	if watched {
		want = append(want, c.event(inode(t, home), self))
	}
	compare(t, c.name, got, want)
	if n := len(g.books[askedBook].keys(t)); n != 0 {
		t.Errorf("after the call, %d threads are said to be in one", n)
	}
}

// TestSystemCallsThatFailAreReportedWhereTheFilterIs: called by another program, as
// it is too long for a socket of Linux before 6.7: see sk_filter_charge().
func TestSystemCallsThatFailAreReportedWhereTheFilterIs(t *testing.T) {
	g := hook(t, nil, connectHooks...)
	for _, on := range []struct {
		name    string
		filter  func(home netns.NsHandle) *ebpf.Program
		watched bool
	}{
		{"netgadget's", func(netns.NsHandle) *ebpf.Program { return g.dispatched(t, 0) }, true},
		{"IG's", func(home netns.NsHandle) *ebpf.Program { return g.dispatched(t, inode(t, home)) }, true},
		{"another filter", func(netns.NsHandle) *ebpf.Program { return passAll(t) }, false},
		{"no filter", func(netns.NsHandle) *ebpf.Program { return nil }, false},
	} {
		home := newDeadEnds(t)
		if filter := on.filter(home); filter != nil {
			attachIn(t, home, filter)
		}
		for _, c := range connectCases() {
			t.Run(on.name+", "+c.name, func(t *testing.T) { g.expectCall(t, home, c, on.watched) })
		}
	}
}

// attachIn has a program see all packets of a namespace.
func attachIn(t *testing.T, ns netns.NsHandle, filter *ebpf.Program) {
	t.Helper()
	err := inside(ns, func() error {
		fd, err := listen(filter.FD())
		if err == nil {
			t.Cleanup(func() { _ = unix.Close(fd) })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (g *gadget) dispatched(t *testing.T, netns uint32) *ebpf.Program {
	t.Helper()
	p, err := g.dispatch(netns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// passAll is somebody else's socket filter.
func passAll(t *testing.T) *ebpf.Program {
	t.Helper()
	return returning(t, ebpf.SocketFilter, 0, 0)
}

// returning is a program that returns a number.
func returning(t *testing.T, kind ebpf.ProgramType, attach ebpf.AttachType, result int32) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: kind, AttachType: attach, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, result), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// TestSystemCallsThatACgroupForbidsAreReported has all processes forbidden to
// connect, for a moment.
func TestSystemCallsThatACgroupForbidsAreReported(t *testing.T) {
	g := hook(t, nil, connectHooks...)
	home := newHome(t)
	attachIn(t, home, g.dispatched(t, 0))
	root := t.TempDir()
	if err := unix.Mount("none", root, "cgroup2", 0, ""); err != nil {
		t.Fatalf("mounting cgroup2: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	for _, attach := range []ebpf.AttachType{ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect} {
		l, err := bpflink.AttachCgroup(bpflink.CgroupOptions{
			Path: root, Attach: attach, Program: returning(t, ebpf.CGroupSockAddr, attach, 0),
		})
		if err != nil {
			t.Fatalf("forbidding connect() to a cgroup: %v", err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}
	none4 := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	for _, c := range []connectCase{
		{"over IPv4", unix.AF_INET, here4, there4, unix.EPERM, here4, there4},
		{"over IPv6", unix.AF_INET6, here6, there6, unix.EPERM, here6, there6},
		{"over IPv4, of an IPv6 socket", unix.AF_INET6, mapped4, mappedTo(there4), unix.EPERM, here4, there4},
		{"over IPv4, not bound", unix.AF_INET, netip.AddrPort{}, there4, unix.EPERM, none4, there4},
	} {
		t.Run(c.name, func(t *testing.T) { g.expectCall(t, home, c, true) })
	}
}

// TestSystemCallsThatSendASYNAreReportedByIt: once, and with their ends.
func TestSystemCallsThatSendASYNAreReportedByIt(t *testing.T) {
	g := hook(t, parameters{"egress_only": true}, connectHooks...)
	home := newHome(t)
	attachIn(t, home, g.dispatched(t, 0))
	for _, c := range []connectCase{
		{"over IPv4", unix.AF_INET, here4, there4, unix.EINPROGRESS, here4, there4},
		{"of an IPv6 socket", unix.AF_INET6, mapped4, mappedTo(there4), unix.EINPROGRESS, here4, there4},
		{"over IPv6", unix.AF_INET6, here6, netip.AddrPortFrom(here6.Addr(), 1), unix.EINPROGRESS, here6, netip.AddrPortFrom(here6.Addr(), 1)},
	} {
		t.Run(c.name, func(t *testing.T) { g.expectCall(t, home, c, true) })
	}
}

// TestSystemCallsWithoutAnAddressAreNoAttempts, also where the thread has made
// another one before, which has not come to its end.
func TestSystemCallsWithoutAnAddressAreNoAttempts(t *testing.T) {
	g := hook(t, nil, connectHooks...)
	home := newDeadEnds(t)
	attachIn(t, home, g.dispatched(t, 0))
	_, earlier := realSocket{proto: protoTCP, local: here4, listens: true}.openIn(t, home)
	for _, c := range []struct {
		name string
		addr []byte
	}{
		{"none", make([]byte, 16)},
		{"too short", []byte{unix.AF_INET, 0, 0, 80}},
		{"of another family", append([]byte{unix.AF_UNIX, 0}, make([]byte, 30)...)},
		{"too short for IPv6", append([]byte{unix.AF_INET6, 0}, make([]byte, 18)...)},
	} {
		for _, domain := range []int{unix.AF_INET, unix.AF_INET6} {
			t.Run(fmt.Sprintf("%s, family %d", c.name, domain), func(t *testing.T) {
				_, err := inThreadOf(t, home, func() error {
					g.leaveAsked(t, earlier)
					fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
					if err != nil {
						return err
					}
					defer func() { _ = unix.Close(fd) }()
					_ = rawConnect(fd, c.addr) // with an error or without
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				got, err := g.drain(nil)
				if err != nil {
					t.Fatal(err)
				}
				compare(t, c.name, got, nil)
			})
		}
	}
}

// leaveAsked leaves a call of this thread, for a socket, that has not come to its end:
// with TCP Fast Open, connect() can put off the SYN.
func (g *gadget) leaveAsked(t *testing.T, sk uint64) {
	t.Helper()
	b := g.books[askedBook]
	b.clear(t)
	value := make([]byte, b.value.size)
	b.value.encodeTuple(value, "ends.", entry{local: netip.AddrPortFrom(netip.IPv4Unspecified(), 0), remote: lost4, proto: protoTCP})
	b.value.field("sk").putUint(value, sk)
	thread := uint64(unix.Getpid())<<32 | uint64(unix.Gettid())
	if err := b.Put(thread, value); err != nil {
		t.Error(err)
	}
}
