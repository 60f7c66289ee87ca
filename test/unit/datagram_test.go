// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A senderCase has one of some sockets of a port send a datagram.
type senderCase struct {
	name    string
	sockets []realSocket
	sends   int // index of the one that does
	to      netip.AddrPort
	nobody  bool // it is not known which of them did
}

func senderCases() []senderCase {
	socket := func(local netip.AddrPort) realSocket {
		return realSocket{proto: protoUDP, local: local, shares: true}
	}
	waiting := func(s realSocket) realSocket { s.waits = true; return s }
	only := func(s realSocket) realSocket { s.ipv6only = true; return s }
	connected := func(s realSocket, to netip.AddrPort) realSocket { s.remote = to; return s }
	all := func(s ...realSocket) []realSocket { return s }
	return []senderCase{
		{name: "the address", sockets: all(socket(here4)), to: there4},
		{name: "every address", sockets: all(socket(any4)), to: there4},
		{name: "the IPv6 address", sockets: all(socket(here6)), to: there6},
		{name: "every IPv6 address", sockets: all(only(socket(any6))), to: there6},
		{name: "a dual-stack socket", sockets: all(socket(any6)), to: mappedTo(there4)},
		{name: "a dual-stack socket over IPv6", sockets: all(socket(any6)), to: there6},
		{name: "a connected one, to its peer", sockets: all(connected(socket(here4), there4)), to: there4},
		{name: "a connected one, to another", sockets: all(connected(socket(here4), there4)), to: stranger4},
		{name: "a connected IPv6 one", sockets: all(connected(socket(here6), there6)), to: there6},

		{name: "the first of three", sockets: all(socket(any4), socket(any4), socket(any4)), to: there4},
		{name: "the last of three", sockets: all(socket(any4), socket(any4), socket(any4)), sends: 2, to: there4},
		{name: "the second of two IPv6 ones", sockets: all(socket(here6), socket(here6)), sends: 1, to: there6},
		{name: "every address beside the address", sockets: all(socket(here4), socket(any4)), sends: 1, to: there4},
		{name: "the address beside every address", sockets: all(socket(any4), socket(here4)), sends: 1, to: there4},
		{name: "a dual-stack one beside the address", sockets: all(socket(here4), socket(any6)), sends: 1, to: mappedTo(there4)},
		{name: "a server beside a connected one", sockets: all(connected(socket(here4), there4), socket(here4)), sends: 1, to: there4},
		{name: "a connected one beside a server", sockets: all(socket(here4), connected(socket(here4), there4)), sends: 1, to: there4},
		{name: "it, of which another one waits", sockets: all(waiting(socket(any4))), to: there4},
		{name: "one of which another one waits, beside another", sockets: all(waiting(socket(any4)), socket(any4)), to: there4},
		{
			name:    "one beside another, of which one waits",
			sockets: all(waiting(socket(any4)), socket(any4)), sends: 1, to: there4, nobody: true,
		},
		{
			name:    "the address beside a dual-stack one, of which one waits",
			sockets: all(waiting(socket(any6)), socket(here4)), sends: 1, to: there4, nobody: true,
		},
		{
			name:    "one beside an IPv6-only one, of which one waits",
			sockets: all(waiting(only(socket(any6))), socket(here4)), sends: 1, to: there4,
		},
	}
}

// mappedTo is an IPv4 address as an IPv6 socket has it.
func mappedTo(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
}

// newCrossroads is a namespace from which datagrams leave, but for those that wait.
func newCrossroads(tb testing.TB) netns.NsHandle {
	tb.Helper()
	ns := newHome(tb)
	newWayOut(tb, ns)
	newSilence(tb, ns)
	return ns
}

// open opens a socket in a namespace, and books it for a process.
func (g *gadget) open(tb testing.TB, ns netns.NsHandle, s realSocket, e entry) (fd int) {
	tb.Helper()
	fd, e.sk = s.openIn(tb, ns)
	e.netns, e.proto, e.local, e.ipv6only = inode(tb, ns), s.proto, s.local, s.ipv6only
	if s.remote.IsValid() {
		e.remote = s.remote
		g.bookConnection(tb, e)
		e.connected = true
		e.since = madeUp
	}
	g.bookPort(tb, e)
	return fd
}

// TestADatagramIsItsSockets has real sockets send real datagrams.
func TestADatagramIsItsSockets(t *testing.T) {
	for _, c := range senderCases() {
		t.Run(c.name, func(t *testing.T) {
			ns := newCrossroads(t)
			g := load(t, parameters{"egress_only": true})
			var sockets []int
			for i, s := range c.sockets {
				e := entry{slot: uint64(i), owner: called(fmt.Sprint("number ", i))}
				sockets = append(sockets, g.open(t, ns, s, e))
			}
			g.watch(t, ns)
			if err := unix.Sendto(sockets[c.sends], []byte("question"), 0, socketAddress(c.to)); err != nil {
				t.Fatalf("sending a datagram to %v: %v", c.to, err)
			}

			from, to := here6, netip.AddrPortFrom(c.to.Addr().Unmap(), c.to.Port())
			if to.Addr().Is4() {
				from = here4
			}
			want := between(protoUDP, from, to).event(true, inode(t, ns))
			if !c.nobody {
				want = owned(want, called(fmt.Sprint("number ", c.sends)))
			}
			got, err := g.drain(nil)
			if err := errors.Join(err, difference(nil, got, []event{want})); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestADatagramThatHasWaitedIsItsSockets also when that is closed, and another one
// has its port.
func TestADatagramThatHasWaitedIsItsSockets(t *testing.T) {
	for _, c := range []struct {
		name     string
		local    netip.AddrPort
		from, to netip.AddrPort
	}{
		{"over IPv4", any4, here4, silent4},
		{"over IPv6", any6, here6, silent6},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := newCrossroads(t)
			g := load(t, parameters{"egress_only": true})
			s := realSocket{proto: protoUDP, local: c.local, shares: true, waits: true}
			closed := g.open(t, ns, s, entry{owner: called("closed"), closed: true})
			s.waits = false
			g.open(t, ns, s, entry{owner: called("alive"), slot: 1})
			g.watch(t, ns)
			closeSocket(t, closed)
			answer(t, ns, c.to.Addr())

			want := owned(between(protoUDP, c.from, c.to).event(true, inode(t, ns)), called("closed"))
			got, err := g.drain(nil)
			if err := errors.Join(err, difference(nil, got, []event{want})); err != nil {
				t.Error(err)
			}
		})
	}
}

// closeSocket puts another file in the place of a socket, which the test closes.
func closeSocket(tb testing.TB, fd int) {
	tb.Helper()
	null, err := os.Open(os.DevNull)
	if err == nil {
		defer func() { _ = null.Close() }()
		err = unix.Dup3(int(null.Fd()), fd, unix.O_CLOEXEC)
	}
	if err != nil {
		tb.Fatalf("closing a socket: %v", err)
	}
}

// answer is what a silent neighbour does in the end.
func answer(tb testing.TB, ns netns.NsHandle, neighbour netip.Addr) {
	tb.Helper()
	withNetlink(tb, ns, func(h *netlink.Handle) error {
		silent, err := h.LinkByName("silent")
		if err != nil {
			return err
		}
		return h.NeighSet(&netlink.Neigh{
			LinkIndex: silent.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: neighbour.AsSlice(), HardwareAddr: net.HardwareAddr{0x02, 0, 0, 0, 0, 0x63},
		})
	})
}
