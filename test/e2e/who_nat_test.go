// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"gadget.example/network/test/e2e/attempt"
)

// Addresses that are on no path between the ends.
var (
	ofServices = path{"e2e-services", 30} // that nobody has, as those of a cluster's services
	ofNAT      = path{"e2e-nat", 31}      // that the first end translates its own to
)

// What translations make of ports: bits that they turn. A low port stays one.
const (
	turnedPort   = 0x200
	turnedSource = 0x2000
)

// addServices has the first end send what is for services to the other one, and
// the answers to translated addresses come back.
func (p *pair) addServices(t *testing.T) {
	t.Helper()
	for i, beyond := range []path{ofServices, ofNAT} {
		ns := p.ends[i]
		for _, family := range families {
			ns.addRoute(t, &netlink.Route{
				LinkIndex: ns.link(t, overVeth.device).Attrs().Index, Dst: ipNet(beyond.prefix(family, 0).Masked()),
				Gw: overVeth.address(family, 2-i).AsSlice(),
			})
		}
	}
	for _, family := range families {
		addr := ofNAT.address(family, 1)
		p.ends[0].address(t, "lo", netip.PrefixFrom(addr, addr.BitLen()))
	}
}

// translation is what a namespace does to what its own processes send.
type translation struct {
	name string
	// asked is what the program calls, becomes what is called on the wire.
	asked, becomes func(family int) netip.Addr
	bits           int // of the port that are turned
	// source is the source's address on the wire, if that is translated; its port
	// is turned, or any.
	source  func(family int) netip.Addr
	anyPort bool
	local   bool // who serves is in the same namespace
	closed  bool // nobody serves
	write   func(*rules)
}

func ofPath(p path, number int) func(int) netip.Addr {
	return func(family int) netip.Addr { return p.address(family, number) }
}

func loopback(family int) netip.Addr {
	if family == 4 {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// Who is called in the same namespace.
var aHost = ofPath(overLoopback, firstHost+1)

var (
	toService = translation{
		name: "a service's address", asked: ofPath(ofServices, 7), becomes: ofPath(overVeth, 2), bits: turnedPort,
		write: func(r *rules) { r.service(overVeth.address(r.family, 2)) },
	}
	toClosed = translation{
		name: "a service's address, refused", asked: ofPath(ofServices, 7), becomes: ofPath(overVeth, 2), bits: turnedPort,
		closed: true,
		write:  func(r *rules) { r.service(overVeth.address(r.family, 2)) },
	}
	toServiceHere = translation{
		name: "a service's address, served here", asked: ofPath(ofServices, 7), becomes: aHost, bits: turnedPort, local: true,
		write: func(r *rules) { r.service(aHost(r.family)) },
	}
	toProxy = translation{
		name: "redirected to a proxy here", asked: ofPath(overVeth, 2), becomes: loopback, bits: turnedPort, local: true,
		write: func(r *rules) {
			r.add(natOutput, r.transport(), r.to(overVeth.prefix(r.family, 0)), r.redirect(turnedPort))
		},
	}
	toOtherSource = translation{
		name: "source of another address", asked: ofPath(overVeth, 2), becomes: ofPath(overVeth, 2),
		source: ofPath(ofNAT, 1),
		write: func(r *rules) {
			r.add(natPostrouting, r.transport(), r.to(overVeth.prefix(r.family, 0)), r.snat(ofNAT.address(r.family, 1)))
		},
	}
	toMasquerade = translation{
		name: "masqueraded", asked: ofPath(overVeth, 2), becomes: ofPath(overVeth, 2),
		source: ofPath(overVeth, 1), anyPort: true,
		write: func(r *rules) {
			r.add(natPostrouting, r.transport(), r.to(overVeth.prefix(r.family, 0)), r.masquerade())
		},
	}
	toServiceMasqueraded = translation{
		name: "a service's address, masqueraded", asked: ofPath(ofServices, 7), becomes: ofPath(overVeth, 2), bits: turnedPort,
		source: ofPath(overVeth, 1), anyPort: true,
		write: func(r *rules) {
			toService.write(r)
			toMasquerade.write(r)
		},
	}
	toItself = translation{
		name: "a service's address, served here, source of another (hairpin)", asked: ofPath(ofServices, 7), becomes: aHost,
		bits: turnedPort, local: true, source: ofPath(ofNAT, 1),
		write: func(r *rules) {
			toServiceHere.write(r)
			r.add(natPostrouting, r.transport(), r.to(overLoopback.prefix(r.family, firstHost+1)), r.snat(ofNAT.address(r.family, 1)))
		},
	}

	translations = []translation{
		toService, toClosed, toServiceHere, toProxy, toOtherSource, toMasquerade, toServiceMasqueraded, toItself,
	}
)

// onWire is what becomes of the ends that a socket has.
func (n translation) onWire(socket ends) ends {
	family := 4
	if socket.remote.Addr().Is6() {
		family = 6
	}
	wire := ends{local: socket.local, remote: at(n.becomes(family), n.servedPort(int(socket.remote.Port())))}
	if n.source != nil {
		wire.local = netip.AddrPortFrom(n.source(family), socket.local.Port()^turnedSource)
	}
	if n.anyPort {
		wire.local = netip.AddrPortFrom(wire.local.Addr(), 0)
	}
	return wire
}

// servedPort is the port on the wire.
func (n translation) servedPort(port int) int { return port ^ n.bits }

func natCases() []whoCase {
	var cases []whoCase
	for _, protocol := range []attempt.Protocol{attempt.TCP, attempt.UDP} {
		for _, n := range translations {
			cases = append(cases, whoCase{name: string(protocol) + " out, NAT: " + n.name, play: func(s *stage, name string) {
				defer s.pair.ends[0].addRules(s.t, n.write)()
				s.translated(name, protocol, n, newPort(protocol))
			}})
		}
	}
	return append(cases, forwardCases()...)
}

// translated has all callers call a port by a translation.
func (s *stage) translated(name string, protocol attempt.Protocol, n translation, port int) {
	s.t.Helper()
	server, beyond := s.away[0], s.pair.ends[1]
	if n.local {
		server, beyond = s.servers[0], nil
	}
	var open []handle
	for _, family := range families {
		if !n.closed {
			open = append(open, s.open(server, attempt.Step{Protocol: protocol, Src: at(anyHost(family), n.servedPort(port))}))
		}
	}
	var acts []act
	for i := range s.attempts {
		family := families[i/callers%2]
		a := act{by: s.callers[i%callers], beyond: beyond, nat: n.onWire, step: attempt.Step{
			Do: attempt.Call, Protocol: protocol, Dst: at(n.asked(family), port), Connected: i%3 == 0,
		}}
		if n.source != nil || n.closed {
			a.step.Src, a.step.ReuseAddr = at(overVeth.address(family, 1), newSource()), true
		}
		if n.source != nil && i%2 == 0 { // of an address that the other end would not answer
			a.step.Src = at(host(family, i%hosts), int(a.step.Src.Port()))
		}
		if !n.closed {
			a.to = s.is(server)
		}
		acts = append(acts, a)
	}
	s.wave(name, acts)
	s.shut(open...)
}

// lastSource is the last source port given out.
var lastSource = 20_000

// newSource is one that no other call has had lately: what a translation makes of
// two of them is not the same.
func newSource() int {
	const many = 4000
	lastSource++
	return 20_000 + lastSource%many
}
