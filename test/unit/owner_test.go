// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netns"
)

// someone is the process that the tests give sockets to: every field is set,
// and no two are alike.
var someone = process{
	Comm: "fifteen-letters", ParentComm: "its-parent", Thread: "one-of-its-many",
	PID: 0x11223344, TID: 0x55667788, ParentPID: 0x0A0B0C0D, ParentTID: 0x0E0F1011,
	UID: 0x01020304, GID: 0x05060708, MntNS: 0xF0000000,
	Set: true,
}

// called is another process for every name; nobody for none.
func called(comm string) process {
	if comm == "" {
		return process{}
	}
	p := someone
	p.Comm = comm
	for _, c := range []byte(comm) { // processes of other names are others
		p.PID = p.PID*31 + uint64(c)
	}
	p.PID &= 0x7FFFFFFF
	return p
}

// owned is an event with the owner of its socket, which has the ends that are on
// the wire.
func owned(e event, by process) event {
	e.Proc = by
	if by == (process{}) {
		return e
	}
	if e.Local, e.Remote = e.Dst, e.Src; e.Egress {
		e.Local, e.Remote = e.Src, e.Dst
	}
	return e
}

// The two ends of the packets that are looked up: the local one is the
// receiver of one packet, and the sender of the other. Both ports are low, so
// that datagrams are attempts.
var (
	here4, there4 = netip.MustParseAddrPort("192.0.2.1:443"), netip.MustParseAddrPort("198.51.100.2:53")
	here6, there6 = netip.MustParseAddrPort("[2001:db8::1]:443"), netip.MustParseAddrPort("[2001:db8:2::2]:53")

	any4, any6   = netip.MustParseAddrPort("0.0.0.0:443"), netip.MustParseAddrPort("[::]:443")
	other4       = netip.MustParseAddrPort("192.0.2.77:443")
	other6       = netip.MustParseAddrPort("[2001:db8::77]:443")
	otherPort4   = netip.MustParseAddrPort("192.0.2.1:444")
	stranger4    = netip.MustParseAddrPort("198.51.100.2:54")
	stranger6    = netip.MustParseAddrPort("[2001:db8:2::77]:53")
	mapped4      = netip.MustParseAddrPort("[::ffff:192.0.2.1]:443")
	elsewhere    = uint32(someNetNS)
	otherDevice  = uint32(0x7FFFFFFF)
	packetDevice = uint32(0xFFFFFFFF) // stands for the one of the packet
)

// between sends from one end to the other.
func between(proto uint8, from, to netip.AddrPort) packet {
	return packet{
		src: from.Addr(), sport: from.Port(), dst: to.Addr(), dport: to.Port(),
		proto: proto, flags: syn,
	}
}

// An ownerCase is what is in the books, and who is named for a packet that the
// local end received, or sent: a datagram, when each of the sockets has one on its
// way that is not idle.
type ownerCase struct {
	name           string
	proto          uint8
	local, remote  netip.AddrPort
	books          []entry
	received, sent string
}

// port is an entry of the ports.
func port(local netip.AddrPort, owner string, changes ...func(*entry)) entry {
	e := entry{local: local, owner: called(owner)}
	for _, change := range changes {
		change(&e)
	}
	return e
}

// connection is an entry of the connections.
func connection(local, remote netip.AddrPort, owner string, changes ...func(*entry)) entry {
	return port(local, owner, append(changes, func(e *entry) { e.remote = remote })...)
}

func slot(n uint64) func(*entry)         { return func(e *entry) { e.slot = n } }
func since(n uint64) func(*entry)        { return func(e *entry) { e.since = n } }
func device(n uint32) func(*entry)       { return func(e *entry) { e.device = n } }
func sequence(n uint32) func(*entry)     { return func(e *entry) { e.isn = n } }
func inNetNS(n uint32) func(*entry)      { return func(e *entry) { e.netns = n } }
func overProto(n uint8) func(*entry)     { return func(e *entry) { e.proto = n } }
func isClosed(e *entry)                  { e.closed = true }
func isConnected(e *entry)               { e.connected = true }
func isIPv6Only(e *entry)                { e.ipv6only = true }
func isCrowded(e *entry)                 { e.crowded = true }
func isUnpaged(e *entry)                 { e.unpaged = true }
func isIdle(e *entry)                    { e.idle = true }
func inThread(id uint64) func(e *entry)  { return func(e *entry) { e.owner.TID = id } }
func atAddress(sk uint64) func(e *entry) { return func(e *entry) { e.sk = sk } }

func ownerCases() []ownerCase {
	return slices.Concat(addressOwnerCases(), stateOwnerCases(), sharedOwnerCases(), connectionOwnerCases(),
		senderOwnerCases())
}

// addressOwnerCases: which address, version, port, protocol and namespace.
func addressOwnerCases() []ownerCase {
	const tcp, udp = protoTCP, protoUDP
	return []ownerCase{
		{"a listener's address", tcp, here4, there4, []entry{port(here4, "listener")}, "", ""},
		{"the address", udp, here4, there4, []entry{port(here4, "exact")}, "exact", "exact"},
		{"the IPv6 address", udp, here6, there6, []entry{port(here6, "exact")}, "exact", "exact"},
		{"every address", udp, here4, there4, []entry{port(any4, "wildcard")}, "wildcard", "wildcard"},
		{"a listener's every address", tcp, here6, there6, []entry{port(any6, "listener")}, "", ""},
		{"every IPv6 address", udp, here6, there6, []entry{port(any6, "wildcard")}, "wildcard", "wildcard"},

		{
			"the address before every address", udp, here4, there4,
			[]entry{port(here4, "exact", since(1)), port(any4, "wildcard"), port(any6, "dual")},
			"exact", "",
		},
		{
			"the IPv6 address before every address", udp, here6, there6,
			[]entry{port(here6, "exact", since(1)), port(any6, "wildcard")},
			"exact", "",
		},
		{
			"every IPv4 address before a dual-stack socket", udp, here4, there4,
			[]entry{port(any4, "wildcard", since(1)), port(any6, "dual")},
			"wildcard", "",
		},
		{"a dual-stack socket has IPv4", udp, here4, there4, []entry{port(any6, "dual")}, "dual", "dual"},
		{"an IPv6-only socket has no IPv4", udp, here4, there4, []entry{port(any6, "only", isIPv6Only)}, "", ""},
		{"an IPv6-only socket has IPv6", udp, here6, there6, []entry{port(any6, "only", isIPv6Only)}, "only", "only"},
		{
			"a dual-stack socket beside an IPv6-only one", udp, here4, there4,
			[]entry{port(any6, "only", isIPv6Only), port(any6, "dual", slot(1), since(1))},
			"dual", "dual",
		},
		{"an IPv4 socket has no IPv6", udp, here6, there6, []entry{port(any4, "wildcard")}, "", ""},
		{"an IPv4 address has no IPv6", udp, mapped4, there6, []entry{port(here4, "exact")}, "", ""},

		{"another address", udp, here4, there4, []entry{port(other4, "other")}, "", ""},
		{"another IPv6 address", udp, here6, there6, []entry{port(other6, "other")}, "", ""},
		{"servers of two addresses", udp, here4, there4, []entry{port(other4, "other"), port(here4, "exact")}, "exact", "exact"},
		{"the remote address", udp, here4, there4, []entry{port(there4, "other")}, "", ""},
		{"another port", udp, here4, there4, []entry{port(otherPort4, "other")}, "", ""},
		{"TCP to a UDP port", tcp, here4, there4, []entry{port(here4, "other", overProto(udp))}, "", ""},
		{"UDP to a TCP port", udp, here4, there4, []entry{port(any4, "other", overProto(tcp))}, "", ""},
		{"another network namespace", udp, here4, there4, []entry{port(any6, "other", inNetNS(elsewhere))}, "", ""},
		{
			"another network namespace, by connection", udp, here4, there4,
			[]entry{connection(here4, there4, "other", inNetNS(elsewhere))},
			"", "",
		},
		{
			"another network namespace, by connection over TCP", tcp, here4, there4,
			[]entry{connection(here4, there4, "other", inNetNS(elsewhere))},
			"", "",
		},
	}
}

// stateOwnerCases: sockets that take nothing in, but may have sent.
func stateOwnerCases() []ownerCase {
	const udp = protoUDP
	return []ownerCase{
		{"a closed port with nothing on its way", udp, here4, there4, []entry{port(here4, "closed", isClosed, isIdle)}, "", ""},
		{"a closed wildcard with nothing on its way", udp, here4, there4, []entry{port(any4, "closed", isClosed, isIdle)}, "", ""},
		{"a closed dual-stack with nothing on its way", udp, here4, there4, []entry{port(any6, "closed", isClosed, isIdle)}, "", ""},
		{"a closed IPv6 port with nothing on its way", udp, here6, there6, []entry{port(any6, "closed", isClosed, isIdle)}, "", ""},
		{
			"a closed IPv6-only socket sent no IPv4", udp, here4, there4,
			[]entry{port(any6, "closed", isClosed, isIPv6Only)},
			"", "",
		},
		{
			"closed, and another one lives on", udp, here4, there4,
			[]entry{port(here4, "closed", isClosed, isIdle), port(any4, "alive")},
			"alive", "alive",
		},
		{
			"connected takes nothing of strangers", udp, here4, stranger4,
			[]entry{port(here4, "connected", isConnected), connection(here4, there4, "connected")},
			"", "connected",
		},
		{
			"connected takes its peer's", udp, here4, there4,
			[]entry{port(here4, "connected", isConnected), connection(here4, there4, "connected")},
			"connected", "connected",
		},
		{
			"connected leaves strangers to another", udp, here4, stranger4,
			[]entry{port(here4, "connected", isConnected), connection(here4, there4, "connected"), port(any4, "server")},
			"server", "",
		},
		{
			"a server beside a connected socket", udp, here6, stranger6,
			[]entry{port(any6, "server", since(1)), port(any6, "connected", slot(1), isConnected)},
			"server", "",
		},
		{
			"another interface", udp, here4, there4,
			[]entry{port(here4, "elsewhere", device(otherDevice))},
			"", "elsewhere",
		},
		{"its interface", udp, here4, there4, []entry{port(here4, "bound", device(packetDevice))}, "bound", "bound"},
		{"its interface over IPv6", udp, here6, there6, []entry{port(any6, "bound", device(packetDevice))}, "bound", "bound"},
		{
			"its interface before none", udp, here4, there4,
			[]entry{port(any4, "bound", device(packetDevice), since(1)), port(any4, "free", slot(1))},
			"bound", "",
		},
		{
			"another interface, and none", udp, here4, there4,
			[]entry{port(any4, "elsewhere", device(otherDevice)), port(any4, "free", slot(1), since(1))},
			"free", "",
		},
		{"without a page", udp, here4, there4, []entry{port(here4, "gone", isUnpaged)}, "", ""},
		{
			"with the page of another socket of its address", udp, here4, there4,
			[]entry{
				port(here4, "gone", atAddress(0xFFFF_8888_0000_0000), since(1)),
				port(otherPort4, "new", atAddress(0xFFFF_8888_0000_0000), since(2)),
			},
			"", "",
		},
	}
}

// sharedOwnerCases: several sockets of one address and port.
func sharedOwnerCases() []ownerCase {
	const udp = protoUDP
	eight := func(owner string, changes ...func(*entry)) (all []entry) {
		for n := range uint64(8) {
			all = append(all, port(here4, fmt.Sprint(owner, n), append(changes, slot(n))...))
		}
		return all
	}
	return []ownerCase{
		{
			"the last one bound", udp, here4, there4,
			[]entry{port(here4, "first"), port(here4, "last", slot(1))},
			"last", "",
		},
		{
			"the last one bound, in the first slot", udp, here4, there4,
			[]entry{port(here4, "first", slot(1), since(1)), port(here4, "last", since(2))},
			"last", "",
		},
		{
			"the last one bound over IPv6", udp, here6, there6,
			[]entry{port(any6, "first"), port(any6, "last", slot(1))},
			"last", "",
		},
		{
			"the first one closed", udp, here4, there4,
			[]entry{port(here4, "first", isClosed, isIdle), port(here4, "last", slot(1))},
			"last", "last",
		},
		{
			"the last one closed", udp, here4, there4,
			[]entry{port(here4, "first"), port(here4, "last", slot(1), isClosed, isIdle)},
			"first", "first",
		},
		{
			"a hole in the slots", udp, here4, there4,
			[]entry{port(here4, "fourth", slot(3)), port(here4, "last", slot(6), isClosed, isIdle)},
			"fourth", "fourth",
		},
		{"the last slot alone", udp, here4, there4, []entry{port(here4, "eighth", slot(7))}, "eighth", "eighth"},
		{"behind the last slot", udp, here4, there4, []entry{port(here4, "ninth", slot(8))}, "", ""},
		{"all of eight", udp, here4, there4, eight("number "), "number 7", ""},
		{"all of eight closed", udp, here4, there4, eight("number ", isClosed), "", ""},
		{
			"all of eight closed, and every address", udp, here4, there4,
			append(eight("number ", isClosed, isIdle), port(any4, "alive")), "alive", "alive",
		},
	}
}

// connectionOwnerCases: by both ends.
func connectionOwnerCases() []ownerCase {
	const tcp, udp = protoTCP, protoUDP
	return []ownerCase{
		{"TCP by both ends", tcp, here4, there4, []entry{connection(here4, there4, "client")}, "client", "client"},
		{"UDP by both ends", udp, here4, there4, []entry{connection(here4, there4, "client")}, "client", "client"},
		{"TCP over IPv6 by both ends", tcp, here6, there6, []entry{connection(here6, there6, "client")}, "client", "client"},
		{"UDP over IPv6 by both ends", udp, here6, there6, []entry{connection(here6, there6, "client")}, "client", "client"},
		{
			"both ends before the port", tcp, here4, there4,
			[]entry{port(here4, "server"), connection(here4, there4, "client", since(1))},
			"client", "client",
		},
		{
			"both ends before the port over UDP", udp, here6, there6,
			[]entry{port(here6, "server"), connection(here6, there6, "client", since(1))},
			"client", "",
		},
		{
			"two clients of one port", tcp, here4, there4,
			[]entry{connection(here4, stranger4, "other"), connection(here4, there4, "client")},
			"client", "client",
		},
		{"another peer's port", tcp, here4, there4, []entry{connection(here4, stranger4, "other")}, "", ""},
		{"another peer", udp, here6, there6, []entry{connection(here6, stranger6, "other")}, "", ""},
		{"another local address", tcp, here4, there4, []entry{connection(other4, there4, "other")}, "", ""},
		{"no local address", tcp, here4, there4, []entry{connection(any4, there4, "other")}, "", ""},
		{"the ends the other way round", tcp, here4, there4, []entry{connection(there4, here4, "other")}, "", ""},
		{"a connection of the other protocol", tcp, here4, there4, []entry{connection(here4, there4, "other", overProto(udp))}, "", ""},
		{
			"a closed one takes nothing in", udp, here4, there4,
			[]entry{connection(here4, there4, "closed", isClosed, isIdle), port(any4, "server")},
			"server", "server",
		},
		{"a closed one over TCP", tcp, here4, there4, []entry{connection(here4, there4, "closed", isClosed)}, "", ""},
		{
			"a SYN of another socket of the same ends", tcp, here4, there4,
			[]entry{connection(here4, there4, "client", sequence(synSequence+1))},
			"client", "",
		},
		{
			"a SYN of another socket over IPv6", tcp, here6, there6,
			[]entry{connection(here6, there6, "client", sequence(synSequence-1)), port(any6, "server")},
			"client", "",
		},
		{"a datagram has no sequence", udp, here4, there4, []entry{connection(here4, there4, "client", sequence(1))}, "client", "client"},
		{"a connection without a page", tcp, here4, there4, []entry{connection(here4, there4, "gone", isUnpaged)}, "", ""},
	}
}

// senderOwnerCases: which of several sockets has sent, by what they have on its way.
func senderOwnerCases() []ownerCase {
	const udp = protoUDP
	return []ownerCase{
		{"a closed port with something on its way", udp, here4, there4, []entry{port(here4, "closed", isClosed)}, "", "closed"},
		{"a closed wildcard with something on its way", udp, here4, there4, []entry{port(any4, "closed", isClosed)}, "", "closed"},
		{"a closed dual-stack with something on its way", udp, here4, there4, []entry{port(any6, "closed", isClosed)}, "", "closed"},
		{"a closed IPv6 port with something on its way", udp, here6, there6, []entry{port(here6, "closed", isClosed)}, "", "closed"},
		{
			"closed with something on its way, and another one has the port", udp, here4, there4,
			[]entry{port(here4, "closed", isClosed), port(here4, "alive", slot(1), isIdle)},
			"alive", "closed",
		},
		{
			"both have something on its way", udp, here4, there4,
			[]entry{port(here4, "closed", isClosed), port(here4, "alive", slot(1))},
			"alive", "",
		},
		{
			"a closed connection with something on its way", udp, here4, there4,
			[]entry{connection(here4, there4, "closed", isClosed), port(any4, "server", isIdle)},
			"server", "closed",
		},
		{
			"every address sends, the address does not", udp, here4, there4,
			[]entry{port(here4, "exact", isIdle), port(any4, "wildcard"), port(any6, "dual", isIdle)},
			"exact", "wildcard",
		},
		{
			"the dual-stack socket sends", udp, here4, there4,
			[]entry{port(here4, "exact", isIdle), port(any4, "wildcard", isIdle), port(any6, "dual")},
			"exact", "dual",
		},
		{
			"the first of a group sends", udp, here6, there6,
			[]entry{port(any6, "first"), port(any6, "second", slot(1), isIdle), port(any6, "third", slot(2), isIdle)},
			"third", "first",
		},
		{
			"a connected socket sends beside a server", udp, here4, there4,
			[]entry{connection(here4, there4, "client"), port(any4, "server", isIdle)},
			"client", "client",
		},
		{
			"a server sends beside a connected socket", udp, here4, there4,
			[]entry{connection(here4, there4, "client", isIdle), port(any4, "server")},
			"client", "server",
		},
		{
			"another peer's socket sends", udp, here4, there4,
			[]entry{connection(here4, stranger4, "other"), port(any4, "server", isIdle)},
			"server", "",
		},
		{"two sockets of a process", udp, here4, there4, []entry{port(here4, "one"), port(any4, "one")}, "one", "one"},
		{
			"two sockets of two threads", udp, here4, there4,
			[]entry{port(here4, "one"), port(any4, "one", inThread(1))},
			"one", "",
		},
		{"one that there was no room beside", udp, here4, there4, []entry{port(here4, "one", isCrowded)}, "", ""},
		{
			"one that sends beside a slot without room", udp, here4, there4,
			[]entry{port(here4, "one"), port(here4, "two", slot(1), isCrowded, isIdle)},
			"", "one",
		},
	}
}

// fill writes the books of a case, of a namespace where packets come by the given
// interface. busy are sockets that have something on its way; without them, no entry
// is of a socket.
func (c ownerCase) fill(tb testing.TB, g *gadget, netns, device uint32, busy []uint64) {
	tb.Helper()
	for i, e := range c.books {
		if e.netns == 0 {
			e.netns = netns
		}
		if e.device == packetDevice {
			e.device = device
		}
		if e.proto == 0 {
			e.proto = c.proto
		}
		if e.sk == 0 && !e.idle && e.proto == protoUDP && busy != nil {
			e.sk = busy[i]
		}
		if e.remote.IsValid() {
			g.bookConnection(tb, e)
		} else {
			g.bookPort(tb, e)
		}
	}
}

func TestReceivedAttemptNamesTheOwnerOfItsSocket(t *testing.T) {
	const loopback, here = 1, someNetNS + 1
	for _, c := range ownerCases() {
		t.Run(c.name, func(t *testing.T) {
			g := load(t, nil)
			c.fill(t, g, here, loopback, nil)
			p := between(c.proto, c.remote, c.local)
			got, err := g.verdict(p.frame(), here)
			want := []event{owned(p.event(false, here), called(c.received))}
			if err := errors.Join(err, difference(p.frame(), got, want)); err != nil {
				t.Error(err)
			}
		})
	}
}

// busyPort is a new socket that has a port, which others can have as well, and
// something on its way.
func busyPort(tb testing.TB, home netns.NsHandle, port uint16) uint64 {
	tb.Helper()
	local := netip.AddrPortFrom(netip.IPv4Unspecified(), port)
	_, sk := realSocket{proto: protoUDP, local: local, shares: true, waits: true}.openIn(tb, home)
	return sk
}

// busySockets have the port of the tests' local ends.
func busySockets(tb testing.TB) (sockets []uint64) {
	tb.Helper()
	home := newHome(tb)
	newSilence(tb, home)
	for range 10 {
		sockets = append(sockets, busyPort(tb, home, here4.Port()))
	}
	return sockets
}

func TestTrafficNamesTheOwnerOfItsSocket(t *testing.T) {
	w, busy := newVeth(t, false), busySockets(t)
	for _, c := range ownerCases() {
		t.Run(c.name, func(t *testing.T) {
			g := load(t, nil)
			w.attach(t, g)
			for _, of := range []struct {
				egress  bool
				sockets []uint64
				owner   string
			}{{true, nil, c.sentByNone()}, {true, busy, c.sent}, {false, busy, c.received}} {
				netns := w.netns(of.egress)
				p := between(c.proto, c.remote, c.local)
				if of.egress {
					p = between(c.proto, c.local, c.remote)
				}
				c.fill(t, g, netns, w.devices[of.egress], of.sockets)
				got, err := w.seen(g, p, of.egress)
				want := []event{owned(p.event(of.egress, netns), called(of.owner))}
				if err := errors.Join(err, difference(p.frame(), got, want)); err != nil {
					t.Errorf("sent: %t, with something on its way: %t: %v", of.egress, of.sockets != nil, err)
				}
			}
		})
	}
}

// sentByNone is who is named for what the local end sends, when no socket has a
// datagram on its way: of a datagram, nobody.
func (c ownerCase) sentByNone() string {
	if c.proto == protoUDP {
		return ""
	}
	return c.sent
}

// seen sends a packet that begins something, and returns what g reports of it at
// one end.
func (w *wire) seen(g *gadget, p packet, egress bool) ([]event, error) {
	g.forgetFlows(w.tb)
	got, err := w.send(g, p)
	if egress {
		return got.egress, err
	}
	return got.ingress, err
}

// send sends a packet and returns what g reports of it.
func (w *wire) send(g *gadget, p packet) (r reports, err error) {
	if _, err := g.drain(nil); err != nil { // of sentinels
		return r, err
	}
	frame, _ := w.adapt(p.frame())
	if _, err := w.exchange(frame); err != nil {
		return r, err
	}
	got, err := g.drain(nil)
	for _, e := range got {
		r.add(e)
	}
	return r, err
}

// TestBookedSocketIsNamedWhileItHasThePort books sockets with their port, and
// with another, as if the call by which they gave it up had been missed.
func TestBookedSocketIsNamedWhileItHasThePort(t *testing.T) {
	for _, c := range []struct {
		name   string
		socket realSocket
	}{
		{"a UDP server", realSocket{proto: protoUDP, local: here4}},
		{"a UDP server of every address", realSocket{proto: protoUDP, local: any4}},
		{"a dual-stack UDP server", realSocket{proto: protoUDP, local: any6}},
		{"a UDP client", realSocket{proto: protoUDP, local: here4, remote: there4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := c.socket.entry(t)
			e.remote = c.socket.remote
			for _, has := range []bool{true, false} {
				g := load(t, nil)
				p := between(e.proto, there4, here4)
				if !has {
					p.dport = otherPort4.Port()
					e.local = netip.AddrPortFrom(e.local.Addr(), p.dport)
				}
				if e.remote.IsValid() {
					g.bookConnection(t, e)
				} else {
					g.bookPort(t, e)
				}
				want := p.event(false, e.netns)
				if has {
					want = owned(want, e.owner)
				}
				got, err := g.verdict(p.frame(), e.netns)
				if err := errors.Join(err, difference(p.frame(), got, []event{want})); err != nil {
					t.Errorf("has the port: %t: %v", has, err)
				}
			}
		})
	}
}

// byBothEnds is the only way of a SYN.
const byBothEnds = "by both ends"

// The ways in which an attempt gets its owner.
func ways() map[string]func(tb testing.TB, g *gadget, netns uint32, p packet, by process) {
	book := func(change func(*entry)) func(testing.TB, *gadget, uint32, packet, process) {
		return func(tb testing.TB, g *gadget, netns uint32, p packet, by process) {
			tb.Helper()
			e := entry{netns: netns, local: p.to(), proto: p.proto, owner: by}
			change(&e)
			if e.remote.IsValid() {
				e.remote = p.from()
				g.bookConnection(tb, e)
			} else {
				g.bookPort(tb, e)
			}
		}
	}
	return map[string]func(testing.TB, *gadget, uint32, packet, process){
		"by the address": book(func(*entry) {}),
		"by every address": book(func(e *entry) {
			zero := netip.IPv6Unspecified()
			if e.local.Addr().Is4() {
				zero = netip.IPv4Unspecified()
			}
			e.local = netip.AddrPortFrom(zero, e.local.Port())
		}),
		byBothEnds: book(func(e *entry) { e.remote = e.local }),
	}
}

// What is left of an event, wherever it was built, must not turn up in the
// next one: on the stack, in a buffer of the CPU, in the ring.
func TestAttemptOfNobodyHasNoProcessWhateverWasReportedBefore(t *testing.T) {
	for way, own := range ways() {
		g := load(t, nil)
		known := []packet{udp4, udp6}
		if way == byBothEnds {
			known = attempts
		}
		for _, p := range known {
			own(t, g, someNetNS, p, someone)
		}
		for _, before := range known {
			for _, p := range attempts {
				nobody := p.with(toPort(p.dport + 1))
				name := fmt.Sprintf("%s after %s %s", p.title(), before.title(), way)
				t.Run(name, func(t *testing.T) { g.followOwned(t, before, nobody) })
			}
		}
	}
}

func toPort(n uint16) func(*packet) { return func(p *packet) { p.dport = n } }

// followOwned sends packets that someone owns and one of nobody by turns, with
// nothing in between that could clean up after the program.
func (g *gadget) followOwned(t *testing.T, before, nobody packet) {
	t.Helper()
	rounds := []uint32{1, 2}
	frames := [][]byte{before.frame(), nobody.frame()}
	err := onOneCPU(func() error {
		for _, n := range rounds {
			g.run.Repeat = n
			if err := g.test(frames[0], someNetNS); err != nil {
				return err
			}
			g.run.Repeat = 1
			if err := g.test(frames[1], someNetNS); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var want []event
	for _, n := range rounds {
		for range n {
			want = append(want, owned(before.event(false, someNetNS), someone))
		}
		want = append(want, nobody.event(false, someNetNS))
	}
	got, err := g.drain(nil)
	if err := errors.Join(err, difference(slices.Concat(frames...), got, want)); err != nil {
		t.Error(err)
	}
}

func TestTrafficOfNobodyHasNoProcessWhateverWasReportedBefore(t *testing.T) {
	w := newVeth(t, false)
	server, client := someone, called("client")
	client.PID, client.UID = 1, 2
	home := newHome(t)
	newSilence(t, home)
	for _, p := range attempts {
		nobody := p.with(ports(p.sport+100, p.dport+100))
		for _, from := range []netip.AddrPort{p.from(), nobody.from()} {
			w.watcher.bookConnection(t, entry{netns: w.netns(false), local: p.to(), remote: from, proto: p.proto, owner: server})
		}
		for _, to := range []netip.AddrPort{p.to(), nobody.to()} {
			e := entry{netns: w.netns(true), local: p.from(), remote: to, proto: p.proto, owner: client}
			if p.proto == protoUDP {
				e.sk = busyPort(t, home, p.sport)
			}
			w.watcher.bookConnection(t, e)
		}
	}
	for _, p := range attempts {
		t.Run(p.title(), func(t *testing.T) {
			nobody := p.with(ports(p.sport+100, p.dport+100))
			w.expect(t, p, client, server)
			w.expect(t, nobody, process{}, process{})
			w.expect(t, p.with(ports(p.sport, nobody.dport)), client, process{})
			w.expect(t, p.with(ports(nobody.sport, p.dport)), process{}, server)
			w.expect(t, nobody, process{}, process{})
		})
	}
}

// expect sends an attempt and compares whose it is said to be.
func (w *wire) expect(t *testing.T, p packet, sender, receiver process) {
	t.Helper()
	frame, _ := w.adapt(p.frame())
	got, err := w.exchange(frame)
	err = errors.Join(err,
		difference(frame, got.egress, []event{owned(p.event(true, w.netns(true)), sender)}),
		difference(frame, got.ingress, []event{owned(p.event(false, w.netns(false)), receiver)}))
	if err != nil {
		t.Error(err)
	}
}
