// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A translation is a rule of nftables, and what it makes of a packet.
type translation struct {
	name  string
	chain nftables.Chain
	rule  func(family nftables.TableFamily) []expr.Any
	wire  func(packet) packet
}

var (
	natOutput = nftables.Chain{
		Name: "output", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	}
	natPostrouting = nftables.Chain{
		Name: "postrouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	}
)

// of takes the address of a family.
func of(family nftables.TableFamily, v4, v6 netip.AddrPort) netip.AddrPort {
	if family == nftables.TableFamilyIPv4 {
		return v4
	}
	return v6
}

// translate is a rule that gives a packet another address and port.
func translate(kind expr.NATType, v4, v6 netip.AddrPort) func(nftables.TableFamily) []expr.Any {
	return func(family nftables.TableFamily) []expr.Any {
		to := of(family, v4, v6)
		return []expr.Any{
			&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
			&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
			&expr.NAT{Type: kind, Family: uint32(family), RegAddrMin: 1, RegProtoMin: 2},
		}
	}
}

// fromAddr and toAddr change an end of a packet.
func fromAddr(v4, v6 netip.AddrPort) func(packet) packet {
	return func(p packet) packet {
		from := v6
		if p.src.Is4() {
			from = v4
		}
		p.src, p.sport = from.Addr(), from.Port()
		return p
	}
}

func toAddr(v4, v6 netip.AddrPort) func(packet) packet {
	return func(p packet) packet {
		to := v6
		if p.src.Is4() {
			to = v4
		}
		p.dst, p.dport = to.Addr(), to.Port()
		return p
	}
}

func translations() []translation {
	own4, own6 := netip.MustParseAddrPort("192.0.2.77:999"), netip.MustParseAddrPort("[2001:db8::77]:999")
	server4, server6 := netip.MustParseAddrPort("203.0.113.7:700"), netip.MustParseAddrPort("[2001:db8:7::7]:700")
	lo4, lo6 := netip.MustParseAddrPort("127.0.0.1:701"), netip.MustParseAddrPort("[::1]:701")
	redirect := func(nftables.TableFamily) []expr.Any {
		return []expr.Any{
			&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, lo4.Port())},
			&expr.Redir{RegisterProtoMin: 1},
		}
	}
	tracked := func(nftables.TableFamily) []expr.Any {
		return []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, &expr.Verdict{Kind: expr.VerdictAccept}}
	}
	same := func(p packet) packet { return p }
	return []translation{
		{"nothing", natOutput, tracked, same},
		{"the destination", natOutput, translate(expr.NATTypeDestNAT, server4, server6), toAddr(server4, server6)},
		{"the source", natPostrouting, translate(expr.NATTypeSourceNAT, own4, own6), fromAddr(own4, own6)},
		{"to this host", natOutput, redirect, toAddr(lo4, lo6)},
	}
}

// newWayOut gives a namespace a device that takes what goes to anybody, without
// asking for a neighbour's address.
func newWayOut(tb testing.TB, ns netns.NsHandle) {
	tb.Helper()
	newPair(tb, ns, "out", "void")
	withNetlink(tb, ns, func(h *netlink.Handle) error {
		out, err := h.LinkByName("out")
		if err != nil {
			return err
		}
		return h.LinkSetARPOff(out)
	})
	addRoutes(tb, ns, setUp(tb, ns, "out"), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
}

// newTranslator is a namespace that translates what it sends, to anybody.
func newTranslator(tb testing.TB, c translation) netns.NsHandle {
	tb.Helper()
	ns := newHome(tb)
	newWayOut(tb, ns)
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		tb.Fatal(err)
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		table := conn.AddTable(&nftables.Table{Name: "unit", Family: family})
		chain := c.chain
		chain.Table = table
		conn.AddRule(&nftables.Rule{Table: table, Chain: conn.AddChain(&chain), Exprs: c.rule(family)})
	}
	if err := conn.Flush(); err != nil {
		tb.Fatalf("translating %s: %v", c.name, err)
	}
	return ns
}

// sendIP sends a packet from its IP header on, as this thread's namespace will have
// it.
func sendIP(p packet) error {
	domain := unix.AF_INET6
	if p.src.Is4() {
		domain = unix.AF_INET
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("opening a raw socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Sendto(fd, p.frame()[ethernetLen:], 0, socketAddress(netip.AddrPortFrom(p.dst, 0))); err != nil {
		return fmt.Errorf("sending a packet to %v: %w", p.to(), err)
	}
	return nil
}

// watch has g see all that a namespace sends.
func (g *gadget) watch(tb testing.TB, ns netns.NsHandle) {
	tb.Helper()
	err := inside(ns, func() error {
		fd, err := listen(g.program.FD())
		if err == nil {
			tb.Cleanup(func() { _ = unix.Close(fd) })
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// sent is what g reports of a packet that a namespace sends.
func (g *gadget) sent(ns netns.NsHandle, p packet) ([]event, error) {
	if err := inside(ns, func() error { return sendIP(p) }); err != nil {
		return nil, err
	}
	return g.drain(nil)
}

// bookSender books who has a socket with the packet's ends: of a datagram, with one
// on its way.
func (g *gadget) bookSender(tb testing.TB, p packet, netns uint32, busy uint64) {
	tb.Helper()
	e := entry{netns: netns, local: p.from(), remote: p.to(), proto: p.proto, owner: someone}
	if p.proto == protoUDP {
		e.sk = busy
		g.bookPort(tb, e)
		return
	}
	g.bookConnection(tb, e)
}

func ownPackets() []packet {
	return []packet{
		between(protoTCP, here4, there4), between(protoUDP, here4, there4),
		between(protoTCP, here6, there6), between(protoUDP, here6, there6),
	}
}

func TestTranslatedTrafficIsItsSockets(t *testing.T) {
	busy := busySockets(t)
	for _, c := range translations() {
		for _, p := range ownPackets() {
			t.Run(c.name+", "+p.title(), func(t *testing.T) {
				ns := newTranslator(t, c)
				g := load(t, parameters{"egress_only": true})
				g.bookSender(t, p, inode(t, ns), busy[0])
				g.watch(t, ns)
				want := c.wire(p).event(true, inode(t, ns))
				want.Proc = someone
				want.Local.AddrPort, want.Remote.AddrPort = p.from(), p.to()
				got, err := g.sent(ns, p)
				if err := errors.Join(err, difference(p.frame(), got, []event{want})); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestAPortIsTheOneAskedForOrTheOneOnTheWire where a Service's has another one.
func TestAPortIsTheOneAskedForOrTheOneOnTheWire(t *testing.T) {
	c := translations()[1]
	for _, p := range ownPackets() {
		wire := c.wire(p)
		ns := newTranslator(t, c)
		for port, want := range map[uint16]bool{p.dport: true, wire.dport: true, p.sport: false, 1: false} {
			g := load(t, parameters{"egress_only": true, "port": port})
			g.watch(t, ns)
			got, err := g.sent(ns, p)
			if err != nil {
				t.Fatal(err)
			}
			if reported := len(got) == 1; reported != want || len(got) > 1 {
				t.Errorf("%s to port %d, on the wire %d: reported for port %d: got %v, want %t",
					p.title(), p.dport, wire.dport, port, got, want)
			}
		}
	}
}
