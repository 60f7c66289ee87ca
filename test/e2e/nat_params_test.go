// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"gadget.example/network/test/e2e/attempt"
)

// TestPortBehindNAT: the parameter goes by the port on the wire and by the one
// that the program asked for.
func TestPortBehindNAT(t *testing.T) {
	s := newStage(t, 4*callers)
	tcp, udp := newPort(attempt.TCP), newPort(attempt.UDP)
	for _, test := range []struct {
		name     string
		protocol attempt.Protocol
		port     int
	}{
		{"that TCP asks for", attempt.TCP, tcp},
		{"that TCP has on the wire", attempt.TCP, tcp ^ turnedPort},
		{"that UDP asks for", attempt.UDP, udp},
		{"that UDP has on the wire", attempt.UDP, udp ^ turnedPort},
	} {
		s.keep = func(f fact) bool { return int(f.dst.Port()) == test.port || int(f.remote.Port()) == test.port }
		s.watch(map[string]string{"port": fmt.Sprint(test.port)}, func() {
			for _, n := range []translation{toService, toProxy} {
				remove := s.pair.ends[0].addRules(t, n.write)
				for _, asked := range []int{udp, tcp, newPort(test.protocol)} { // the last one is neither
					s.translated(fmt.Sprintf("port %s, calls of %d, %s", test.name, asked, n.name), test.protocol, n, asked)
				}
				remove()
			}
			s.translated("without translation, "+test.name, test.protocol, plain, test.port)
		})
	}
	s.score.check(t)
}

// plain is no translation.
var plain = translation{asked: ofPath(overVeth, 2), becomes: ofPath(overVeth, 2)}

// toHigh makes high ports of the low ones that are asked for.
const toHigh = 0x8000

// TestUDPFlowsBehindNAT has flows whose two directions do not look alike.
func TestUDPFlowsBehindNAT(t *testing.T) {
	const asked = 53
	redirected := translation{
		name: "redirected to a high port here", asked: ofPath(ofServices, 7), becomes: loopback, bits: toHigh, local: true,
		write: func(r *rules) {
			r.add(natOutput, r.transport(), r.to(ofServices.prefix(r.family, 0)), r.redirect(toHigh))
		},
	}
	toHighService := translation{
		name: "a service's address, to a high port", asked: ofPath(ofServices, 7), becomes: ofPath(overVeth, 2), bits: toHigh,
		write: func(r *rules) {
			r.add(natOutput, r.transport(), r.to(ofServices.prefix(r.family, 0)), r.dnat(overVeth.address(r.family, 2), toHigh))
		},
	}
	for _, test := range []struct {
		name   string
		params map[string]string
		keep   func(fact) bool
	}{
		{"each is reported once", map[string]string{"udp-flows": "true"}, nil},
		// What is on the wire says whether a port is low.
		{"none without the parameter", nil, func(fact) bool { return false }},
		{"of one port", map[string]string{"udp-flows": "true", "port": fmt.Sprint(asked)}, func(f fact) bool { return f.remote.Port() == asked }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStage(t, 0)
			s.keep = test.keep
			s.watch(test.params, func() {
				for _, n := range []translation{redirected, toHighService} {
					s.flowsBy(n, asked)
				}
				if test.keep == nil {
					s.flowsBy(toOtherSource, flowsPort)
				}
			})
			s.score.check(t)
		})
	}
}

// flowsBy has callers exchange several datagrams by a translation.
func (s *stage) flowsBy(n translation, port int) {
	s.t.Helper()
	defer s.pair.ends[0].addRules(s.t, n.write)()
	server, beyond := s.away[0], s.pair.ends[1]
	if n.local {
		server, beyond = s.servers[0], nil
	}
	var acts []act
	for i := range 2 * callers {
		family := families[i/callers]
		if i%callers == 0 {
			// At the very address, else the answers come from another.
			addr := netip.AddrPortFrom(n.becomes(family), uint16(n.servedPort(port)))
			server.do(s.t, attempt.Request{Serve: true, Protocol: attempt.UDP, Dst: addr})
		}
		acts = append(acts, act{by: s.callers[i%callers], beyond: beyond, to: s.is(server), nat: n.onWire, step: attempt.Step{
			Do: attempt.Flows, Socket: fmt.Sprint(n.name, family), Protocol: attempt.UDP, Connected: i%2 == 0,
			Sockets: 4, Count: 3, Dst: at(n.asked(family), port),
		}})
	}
	s.wave("UDP flows, NAT: "+n.name, acts)
}
