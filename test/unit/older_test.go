// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	bpflink "github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// socketsIn finds the addresses of struct sock of all sockets of a protocol in
// a network namespace: a BPF iterator writes them down.
func socketsIn(ns netns.NsHandle, protocol string) (found []uint64, err error) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: protocol, License: "GPL",
		// see struct bpf_iter__tcp and bpf_iter__udp
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R6, asm.R1, 8, asm.DWord), // the socket
			asm.JEq.Imm(asm.R6, 0, "out"),
			asm.LoadMem(asm.R1, asm.R1, 0, asm.DWord), // meta
			asm.LoadMem(asm.R1, asm.R1, 0, asm.DWord), // seq
			asm.StoreMem(asm.RFP, -8, asm.R6, asm.DWord),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -8),
			asm.Mov.Imm(asm.R3, 8),
			asm.FnSeqWrite.Call(),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("loading an iterator of %s sockets: %w", protocol, err)
	}
	defer program.Close()
	err = inside(ns, func() error {
		iterator, err := bpflink.AttachIter(bpflink.IterOptions{Program: program})
		if err != nil {
			return err
		}
		defer iterator.Close()
		r, err := iterator.Open()
		if err != nil {
			return err
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		for ; len(b) >= 8; b = b[8:] {
			found = append(found, binary.NativeEndian.Uint64(b))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("iterating over %s sockets: %w", protocol, err)
	}
	return found, nil
}

// A realSocket is what a test opens.
type realSocket struct {
	proto         uint8
	local, remote netip.AddrPort // remote: connected to it
	ipv6only      bool
	listens       bool
	shares        bool // SO_REUSEPORT
	waits         bool // something that it has sent waits: see newSilence()
}

func (s realSocket) open() (fd int, err error) {
	domain, kind := unix.AF_INET, unix.SOCK_DGRAM
	if s.local.Addr().Is6() {
		domain = unix.AF_INET6
	}
	if s.proto == protoTCP {
		kind = unix.SOCK_STREAM
	}
	if fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return -1, err
	}
	if domain == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, int(bit(s.ipv6only)))
	}
	if s.shares {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}
	err = errors.Join(err, unix.Bind(fd, socketAddress(s.local)))
	if s.remote.IsValid() {
		if e := unix.Connect(fd, socketAddress(s.remote)); !errors.Is(e, unix.EINPROGRESS) {
			err = errors.Join(err, e)
		}
	}
	if s.listens {
		err = errors.Join(err, unix.Listen(fd, 1))
	}
	if s.waits {
		err = errors.Join(err, s.sendIntoSilence(fd))
	}
	return fd, err
}

func socketAddress(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// newHome is a network namespace that has the addresses here4 and here6, and a
// way to there4 where nobody answers.
func newHome(tb testing.TB) netns.NsHandle {
	tb.Helper()
	ns := newNetNS(tb)
	index := setUp(tb, ns, "lo")
	withNetlink(tb, ns, func(h *netlink.Handle) error {
		lo, err := h.LinkByIndex(index)
		if err != nil {
			return err
		}
		for _, a := range []netip.Addr{here4.Addr(), here6.Addr()} {
			addr, err := netlink.ParseAddr(netip.PrefixFrom(a, a.BitLen()).String())
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD // it is of use at once
			if err := h.AddrAdd(lo, addr); err != nil {
				return fmt.Errorf("adding %v: %w", a, err)
			}
		}
		return nil
	})
	addRoutes(tb, ns, index, netip.PrefixFrom(there4.Addr(), 32))
	return ns
}

// Neighbours that do not answer, see newSilence().
var (
	silent4 = netip.MustParseAddrPort("203.0.113.99:9")
	silent6 = netip.MustParseAddrPort("[2001:db8:99::99]:9")
)

// sendIntoSilence has a datagram wait for its neighbour's address.
func (s realSocket) sendIntoSilence(fd int) error {
	to := silent4
	if s.local.Addr().Is6() {
		to = silent6
	}
	if err := unix.Sendto(fd, []byte("waits"), 0, socketAddress(to)); err != nil {
		return fmt.Errorf("sending to %v: %w", to, err)
	}
	return nil
}

// newPair adds two devices to a namespace, of which each receives what the other
// sends, and returns the index of the first.
func newPair(tb testing.TB, ns netns.NsHandle, first, second string) (index int) {
	tb.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = first
	pair := netlink.NewVeth(attrs)
	pair.PeerName = second
	withNetlink(tb, ns, func(h *netlink.Handle) error { return h.LinkAdd(pair) })
	setUp(tb, ns, second)
	return setUp(tb, ns, first)
}

// addRoutes has a device lead to more addresses.
func addRoutes(tb testing.TB, ns netns.NsHandle, index int, prefixes ...netip.Prefix) {
	tb.Helper()
	withNetlink(tb, ns, func(h *netlink.Handle) error {
		for _, p := range prefixes {
			to, err := netlink.ParseIPNet(p.String())
			if err != nil {
				return err
			}
			if err := h.RouteAdd(&netlink.Route{LinkIndex: index, Dst: to, Scope: netlink.SCOPE_LINK}); err != nil {
				return fmt.Errorf("adding a route to %v: %w", p, err)
			}
		}
		return nil
	})
}

// newSilence gives a namespace a device, and behind it neighbours that never
// answer, and are never given up: what is sent to them waits, and counts as its
// socket's as long as it does.
func newSilence(tb testing.TB, ns netns.NsHandle) {
	tb.Helper()
	index := newPair(tb, ns, "silent", "deaf")
	addRoutes(tb, ns, index, netip.PrefixFrom(silent4.Addr(), 32), netip.PrefixFrom(silent6.Addr(), 128))
	err := inside(ns, func() error {
		var errs []error
		for _, version := range []string{"ipv4", "ipv6"} {
			file := fmt.Sprintf("/proc/sys/net/%s/neigh/silent/mcast_solicit", version)
			errs = append(errs, os.WriteFile(file, []byte("1000000"), 0))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		tb.Fatalf("having neighbours be asked for ever: %v", err)
	}
}

// inode is the id that IG's dispatcher has for a network namespace.
func inode(tb testing.TB, ns netns.NsHandle) uint32 {
	tb.Helper()
	var s unix.Stat_t
	if err := unix.Fstat(int(ns), &s); err != nil {
		tb.Fatal(err)
	}
	return uint32(s.Ino)
}

// dispatch makes g's program run in a namespace as IG's dispatcher does it, which
// tells the program the namespace's id; 0: as netgadget's, which does not.
func (g *gadget) dispatch(netns uint32) (*ebpf.Program, error) {
	targets, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: g.program}},
	})
	if err != nil {
		return nil, fmt.Errorf("making a map of the socket filter: %w", err)
	}
	g.targets = append(g.targets, targets) // a map of programs is emptied when nobody has it open
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SocketFilter, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadImm(asm.R2, int64(netns), asm.DWord),
			asm.StoreMem(asm.R1, cb0*4, asm.R2, asm.Word),
			asm.LoadMapPtr(asm.R2, targets.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
	})
}

// An olderCase is a socket that only IG knows, and whether it is named for a
// packet between two ends: received by the local one, and sent by it.
type olderCase struct {
	name           string
	socket         realSocket
	local, remote  netip.AddrPort
	received, sent bool
}

func olderCases() []olderCase {
	listener := func(local netip.AddrPort) realSocket {
		return realSocket{proto: protoTCP, local: local, listens: true}
	}
	server := func(local netip.AddrPort) realSocket {
		return realSocket{proto: protoUDP, local: local, waits: true}
	}
	idle := func(s realSocket) realSocket { s.waits = false; return s }
	only := func(s realSocket) realSocket { s.ipv6only = true; return s }
	connected := func(s realSocket) realSocket { s.remote, s.listens = there4, false; return s }
	return []olderCase{
		{"a listener", listener(here4), here4, there4, true, false},
		{"a listener of another address", listener(here4), other4, there4, false, false},
		{"a listener of every address", listener(any4), here4, there4, true, false},
		{"an IPv6 listener", listener(here6), here6, there6, true, false},
		{"an IPv6 listener of another address", listener(here6), other6, there6, false, false},
		{"a dual-stack listener", listener(any6), here4, there4, true, false},
		{"a dual-stack listener, over IPv6", listener(any6), here6, there6, true, false},
		{"an IPv6-only listener", only(listener(any6)), here4, there4, false, false},
		{"an IPv6-only listener, over IPv6", only(listener(any6)), here6, there6, true, false},
		{"a TCP client", connected(listener(here4)), here4, there4, false, true},
		{"a TCP client of another", connected(listener(here4)), here4, stranger4, false, false},
		{"a UDP server", server(here4), here4, there4, true, true},
		{"a UDP server of another address", server(here4), other4, there4, false, false},
		{"a UDP server of every address", server(any4), here4, there4, true, true},
		{"an IPv6 UDP server", server(here6), here6, there6, true, true},
		{"an IPv6 UDP server of another address", server(here6), other6, there6, false, false},
		{"a dual-stack UDP server", server(any6), here4, there4, true, true},
		{"a dual-stack UDP server, over IPv6", server(any6), here6, there6, true, true},
		{"an IPv6-only UDP server", only(server(any6)), here4, there4, false, false},
		{"a UDP server that has sent nothing", idle(server(here4)), here4, there4, true, false},
		{"a dual-stack UDP server that has sent nothing", idle(server(any6)), here6, there6, true, false},
		{"a UDP client that has sent nothing", idle(connected(server(here4))), here4, there4, true, false},
		{"a UDP client, of its peer", connected(server(here4)), here4, there4, true, true},
		{"a UDP client, of another", connected(server(here4)), here4, stranger4, false, true},
	}
}

// openIn opens the socket in a namespace, for the test, and returns its address of
// struct sock as well.
func (s realSocket) openIn(tb testing.TB, home netns.NsHandle) (fd int, sk uint64) {
	tb.Helper()
	others := s.alike(tb, home)
	err := inside(home, func() (err error) {
		if fd, err = s.open(); fd >= 0 {
			tb.Cleanup(func() { _ = unix.Close(fd) })
		}
		return err
	})
	if err != nil {
		tb.Fatalf("opening %+v: %v", s, err)
	}
	found := slices.DeleteFunc(s.alike(tb, home), func(sk uint64) bool { return slices.Contains(others, sk) })
	if len(found) != 1 {
		tb.Fatalf("found %d sockets of %+v", len(found), s)
	}
	return fd, found[0]
}

// alike are all sockets of the protocol in a namespace.
func (s realSocket) alike(tb testing.TB, home netns.NsHandle) []uint64 {
	tb.Helper()
	found, err := socketsIn(home, map[uint8]string{protoTCP: "tcp", protoUDP: "udp"}[s.proto])
	if errors.Is(err, ebpf.ErrNotSupported) {
		tb.Skip(err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return found
}

// entry opens the socket in a namespace of its own, and returns what IG would
// know of it.
func (s realSocket) entry(t *testing.T) entry {
	t.Helper()
	home := newHome(t)
	if s.waits {
		newSilence(t, home)
	}
	_, sk := s.openIn(t, home)
	return entry{
		netns: inode(t, home), local: s.local, proto: s.proto, sk: sk,
		ipv6only: s.ipv6only, owner: someone,
	}
}

func TestOlderSocketIsNamedForWhatFitsItAlone(t *testing.T) {
	w := newVeth(t, false)
	for _, c := range olderCases() {
		t.Run(c.name, func(t *testing.T) {
			g := load(t, nil)
			e := c.socket.entry(t)
			if err := g.bookForIG(e, false); err != nil {
				t.Fatal(err)
			}
			program, err := g.dispatch(e.netns)
			if err != nil {
				t.Fatal(err)
			}
			defer program.Close()
			w.attachProgram(t, program)
			for _, egress := range []bool{true, false} {
				p, known := between(e.proto, c.remote, c.local), c.received
				if egress {
					p, known = between(e.proto, c.local, c.remote), c.sent
				}
				want := p.event(egress, e.netns)
				if known {
					want = owned(want, byIG(e.owner))
				}
				got, err := w.seen(g, p, egress)
				if err := errors.Join(err, difference(p.frame(), got, []event{want})); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestOlderSocketIsNotNamedWhenItIsNotTheOne(t *testing.T) {
	socket := realSocket{proto: protoUDP, local: any4}
	listener := realSocket{proto: protoTCP, local: any4, listens: true}
	for _, c := range []struct {
		name    string
		socket  realSocket
		change  func(*entry)
		deleted bool
		booked  bool
		known   bool
	}{
		{"as it is", socket, func(*entry) {}, false, false, true},
		{"no address", socket, func(e *entry) { e.sk = 0 }, false, false, false},
		{"a user's address", socket, func(e *entry) { e.sk = 0x10000 }, false, false, false},
		{"an address that is none", socket, func(e *entry) { e.sk = 0xDEAD_0000_0000_0000 }, false, false, false},
		{"an unmapped address", socket, func(e *entry) { e.sk = ^uint64(0xFFF) }, false, false, false},
		{"memory of something else", socket, func(e *entry) { e.sk += 0x100 }, false, false, false},
		{"a listener taken for a UDP socket", listener, overProto(protoUDP), false, false, false},
		{"a UDP socket taken for a listener", socket, overProto(protoTCP), false, false, false},
		{"a socket of another port", socket, func(e *entry) { e.local = otherPort4 }, false, false, false},
		{"a socket of another namespace", socket, inNetNS(elsewhere), false, false, false},
		{"a closed socket", socket, func(*entry) {}, true, false, false},
		{"a socket that is in the books", socket, func(*entry) {}, false, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := load(t, nil)
			e := c.socket.entry(t)
			c.change(&e)
			err := g.bookForIG(e, c.deleted)
			if c.booked {
				err = errors.Join(err, g.books[pageBook].Put(e.sk, make([]byte, g.books[pageBook].value.size)))
			}
			if err != nil {
				t.Fatal(err)
			}
			p := between(e.proto, there4, netip.AddrPortFrom(here4.Addr(), e.local.Port()))
			want := p.event(false, e.netns)
			if c.known {
				want = owned(want, byIG(e.owner))
			}
			got, err := g.verdict(p.frame(), e.netns)
			if err := errors.Join(err, difference(p.frame(), got, []event{want})); err != nil {
				t.Error(err)
			}
		})
	}
}
