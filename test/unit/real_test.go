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

// socketNumber is that of a socket's inode.
func socketNumber(tb testing.TB, fd int) uint64 {
	tb.Helper()
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil {
		tb.Fatal(err)
	}
	return s.Ino
}

// entry opens the socket in a namespace of its own, and returns what the books
// have of it.
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
