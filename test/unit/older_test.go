// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"testing"

	bpflink "github.com/cilium/ebpf/link"
)

// bookOlder books the sockets that are there when the gadget starts.
func (g *gadget) bookOlder(tb testing.TB) {
	tb.Helper()
	iterator, err := bpflink.AttachIter(bpflink.IterOptions{Program: g.collection.Programs[olderProgram]})
	if err != nil {
		tb.Fatalf("attaching the iterator of open files: %v", err)
	}
	defer iterator.Close()
	r, err := iterator.Open()
	if err != nil {
		tb.Fatalf("opening the iterator of open files: %v", err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || len(b) > 0 {
		tb.Fatalf("iterating over open files: got %x, %v, want nothing", b, err)
	}
}

// An olderCase is a socket that is older than the gadget, and whether it is named
// for a packet between two ends: received by the local one, and sent by it.
type olderCase struct {
	name           string
	socket         realSocket
	local, remote  netip.AddrPort
	received, sent bool
}

func olderCases() []olderCase {
	server := func(local netip.AddrPort) realSocket {
		return realSocket{proto: protoUDP, local: local, waits: true}
	}
	listener := func(local netip.AddrPort) realSocket {
		return realSocket{proto: protoTCP, local: local, listens: true}
	}
	idle := func(s realSocket) realSocket { s.waits = false; return s }
	only := func(s realSocket) realSocket { s.ipv6only = true; return s }
	connected := func(s realSocket) realSocket { s.remote, s.listens = there4, false; return s }
	return []olderCase{
		{"a UDP server", server(here4), here4, there4, true, true},
		{"a UDP server of another address", server(here4), other4, there4, false, false},
		{"a UDP server of every address", server(any4), here4, there4, true, true},
		{"an IPv6 UDP server", server(here6), here6, there6, true, true},
		{"an IPv6 UDP server of another address", server(here6), other6, there6, false, false},
		{"a dual-stack UDP server", server(any6), here4, there4, true, true},
		{"a dual-stack UDP server, over IPv6", server(any6), here6, there6, true, true},
		{"an IPv6-only UDP server", only(server(any6)), here4, there4, false, false},
		{"a UDP server that has sent nothing", idle(server(here4)), here4, there4, true, false},
		{"a UDP client, of its peer", connected(server(here4)), here4, there4, true, true},
		{"a UDP client, of another", connected(server(here4)), here4, stranger4, false, true},
		{"a UDP client that has sent nothing", idle(connected(server(here4))), here4, there4, true, false},
		{"a listener, which its port does not name", listener(any4), here4, there4, false, false},
		{"a TCP client that meets a SYN", connected(listener(here4)), here4, there4, true, false},
	}
}

// nameSelf puts this process into an event that should have it.
func nameSelf(want event, got []event) event {
	pid := uint64(os.Getpid())
	if len(got) == 1 && got[0].Proc.PID == pid && got[0].Proc.TID == pid {
		return owned(want, got[0].Proc)
	}
	return owned(want, process{PID: pid, TID: pid, Set: true})
}

func TestOlderSocketIsNamedForWhatFitsItAlone(t *testing.T) {
	w := newVeth(t, false)
	for _, c := range olderCases() {
		t.Run(c.name, func(t *testing.T) {
			e := c.socket.entry(t)
			g := setup{older: true}.load(t)
			g.bookOlder(t)
			w.attachAs(t, g, e.netns)
			for _, egress := range []bool{true, false} {
				p, known := between(e.proto, c.remote, c.local), c.received
				if egress {
					p, known = between(e.proto, c.local, c.remote), c.sent
				}
				got, err := w.seen(g, p, egress)
				want := p.event(egress, e.netns)
				if known {
					want = nameSelf(want, got)
				}
				if err := errors.Join(err, difference(p.frame(), got, []event{want})); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestOlderListenerIsBookedByItsNumber(t *testing.T) {
	home := newHome(t)
	fd, _ := realSocket{proto: protoTCP, local: here4, listens: true}.openIn(t, home)
	g := setup{older: true}.load(t)
	g.bookOlder(t)
	b := g.books[listenerBook]
	value := make([]byte, b.value.size)
	if err := b.Lookup(socketNumber(t, fd), value); err != nil {
		t.Fatalf("looking up the listener: %v", err)
	}
	for name, want := range map[string]uint64{
		"number": socketNumber(t, fd), "is_older": 1, "opener.process.pid": uint64(os.Getpid()),
		"opener.descriptor": uint64(fd), "server.process.pid": 0,
	} {
		if got := b.value.field(name).uint(value); got != want {
			t.Errorf("an older listener has the %s %d, want %d", name, got, want)
		}
	}
}
