// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// Ports of the servers at both ends, and some that nobody serves.
const (
	tcpPort       = 7777
	udpPort       = 777
	closedPort    = 7
	lastLowPort   = 1023
	firstHighPort = 1024
)

// call is one attempt, and who should see it.
type call struct {
	name     string
	from     int // end
	path     path
	to       int // host on the path; an end's is its number and one
	request  attempt.Request
	dst      netip.Addr // in place of a host on the path
	arrives  bool       // at the end that is to
	answered bool       // by the server of that end, which owns the socket
	silent   bool       // no event: it is nothing that is reported
}

func (c call) String() string {
	family := 4
	if c.request.Dst.Addr().Is6() {
		family = 6
	}
	return fmt.Sprintf("%s, IPv%d over %s from end %d: %s", c.name, family, c.path, c.from, c.request)
}

// actors are the processes of a pair: at each end one that calls and one that
// serves.
type actors struct {
	pair    *pair
	callers [2]*agent
	servers [2]map[serverKey]attempt.Process
}

type serverKey struct {
	protocol attempt.Protocol
	is6      bool
	port     uint16
}

func newActors(t *testing.T, p *pair) *actors {
	t.Helper()
	a := &actors{pair: p}
	for i, ns := range p.ends {
		a.callers[i] = startAgent(t, ns, agentOptions{name: fmt.Sprintf("caller-%d", i)})
		a.servers[i] = serve(t, startAgent(t, ns, agentOptions{name: fmt.Sprintf("server-%d", i)}))
	}
	return a
}

// serve opens the servers' ports, and returns who owns each.
func serve(t *testing.T, server *agent) map[serverKey]attempt.Process {
	t.Helper()
	owners := map[serverKey]attempt.Process{}
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		for protocol, port := range map[attempt.Protocol]uint16{attempt.TCP: tcpPort, attempt.UDP: udpPort} {
			report := server.do(t, attempt.Request{Serve: true, Protocol: protocol, Dst: netip.AddrPortFrom(any, port)})
			owners[serverKey{protocol, any.Is6(), port}] = report.Process
		}
	}
	return owners
}

// netNSOf are processes in the ends, for the gadget to watch.
func (a *actors) netNSOf() []int { return []int{a.callers[0].pid, a.callers[1].pid} }

// make makes calls, and returns the events that follow from them.
func (a *actors) make(t *testing.T, calls []call) []want {
	t.Helper()
	var truth []want
	for _, c := range calls {
		truth = append(truth, a.makeOne(t, c)...)
	}
	return truth
}

func (a *actors) makeOne(t *testing.T, c call) []want {
	t.Helper()
	return a.follows(c, a.callers[c.from].do(t, c.request))
}

// follows are the events that follow from a call, by its caller's report.
func (a *actors) follows(c call, report attempt.Report) []want {
	if c.silent {
		return nil
	}
	var receiver *namespace
	var server attempt.Process
	if c.arrives {
		receiver = a.pair.ends[c.to-1]
	}
	if c.answered {
		server = a.servers[c.to-1][serverKey{c.request.Protocol, c.request.Dst.Addr().Is6(), c.request.Dst.Port()}]
	}
	return wants(report, c.request.Protocol, a.pair.ends[c.from], receiver, server, c.String())
}

// aim fills in the addresses of a call.
func (c call) aim(family int, port uint16, bound bool) call {
	dst := c.dst
	if !dst.IsValid() {
		dst = c.path.address(family, c.to)
	}
	c.request.Dst = netip.AddrPortFrom(dst, port)
	if bound {
		c.request.Src = netip.AddrPortFrom(c.path.address(family, c.from+1), 0)
	}
	return c
}

// attempts are calls on every path, in both directions, with both families.
func attempts() []call {
	var calls []call
	for _, path := range allPaths {
		for _, family := range families {
			for from := range 2 {
				to := 2 - from // the other end
				if path == overLoopback {
					to = from + 1
				}
				base := call{from: from, path: path, to: to, arrives: true}
				calls = append(calls, answered(base, family)...)
				calls = append(calls, refused(base, family)...)
			}
		}
	}
	return calls
}

// answered are calls of a server. They are over when it has answered, and so
// have arrived.
func answered(base call, family int) []call {
	base.answered = true
	tcp := func(name string, bound bool, r attempt.Request) call {
		c := base
		c.name, c.request = name, r
		c.request.Protocol, c.request.Payload = attempt.TCP, 20_000
		return c.aim(family, tcpPort, bound)
	}
	udp := func(name string, bound bool, r attempt.Request) call {
		c := base
		c.name, c.request = name, r
		c.request.Protocol, c.request.Answered = attempt.UDP, true
		return c.aim(family, udpPort, bound)
	}
	return []call{
		tcp("TCP", false, attempt.Request{}),
		tcp("TCP from a bound socket", true, attempt.Request{}),
		tcp("TCP from another thread", true, attempt.Request{Thread: true}),
		tcp("non-blocking TCP", false, attempt.Request{NonBlocking: true}),
		udp("UDP from a bound socket", true, attempt.Request{Payload: 10}),
		udp("UDP from a connected socket", false, attempt.Request{}),
		udp("several datagrams from one socket", true, attempt.Request{Count: 3, Thread: true}),
		udp("a datagram larger than the MTU", true, attempt.Request{Payload: 3 * mtu}),
	}
}

// refused are calls of ports that nobody serves.
func refused(base call, family int) []call {
	var calls []call
	for _, nonBlocking := range []bool{false, true} {
		c := base
		c.name = "refused TCP"
		c.request = attempt.Request{Protocol: attempt.TCP, NonBlocking: nonBlocking}
		calls = append(calls, c.aim(family, closedPort, true))
	}
	if base.path == overTun {
		return calls // nothing tells when a datagram that nobody answers has arrived
	}
	for _, port := range []uint16{0, 1, lastLowPort, firstHighPort, 40_000} {
		c := base
		c.name = fmt.Sprintf("UDP to port %d", port)
		c.request.Protocol = attempt.UDP
		c.silent = port >= firstHighPort
		if port != 0 { // the kernel sends nothing there
			calls = append(calls, c.aim(family, port, true))
		}
	}
	return calls
}

// elsewhere are calls that reach nobody, or more than one.
func elsewhere() []call {
	var calls []call
	for _, family := range families {
		base := call{path: overVeth, to: nobody}
		udp := base
		udp.name, udp.request.Protocol = "UDP to another host", attempt.UDP
		calls = append(calls, udp.aim(family, udpPort, true))

		tcp := base
		tcp.name = "TCP into a black hole"
		tcp.request = attempt.Request{Protocol: attempt.TCP, NonBlocking: true, SYNRetries: 1}
		calls = append(calls, tcp.aim(family, tcpPort, true))

		echo := base
		echo.name, echo.silent, echo.to = "ICMP echo", true, 2
		echo.request.Protocol = attempt.ICMP
		calls = append(calls, echo.aim(family, 0, false))
	}
	for name, dst := range map[string]netip.Addr{
		"UDP multicast":                netip.MustParseAddr("224.0.0.77"),
		"IPv6 UDP multicast":           netip.MustParseAddr("ff02::77"),
		"UDP limited broadcast":        netip.MustParseAddr("255.255.255.255"),
		"UDP to the subnet, broadcast": overVeth.address(4, broadcast),
	} {
		c := call{name: name, path: overVeth, dst: dst, silent: true}
		c.request = attempt.Request{Protocol: attempt.UDP, Device: overVeth.device}
		family := 4
		if dst.Is6() {
			family = 6
		}
		calls = append(calls, c.aim(family, udpPort, true))
	}
	return calls
}

func TestEveryAttemptIsReportedOnceWhereItIsSentAndWhereItArrives(t *testing.T) {
	a := newActors(t, newPair(t, newNamespace(t, "left"), newNamespace(t, "right")))
	calls := append(attempts(), elsewhere()...)
	var truth []want
	events := watch(t, gadget.Options{NetNSOf: a.netNSOf()}, func() { truth = a.make(t, calls) })
	t.Logf("%d calls, %d events", len(calls), len(events))
	compare(t, events, truth)
}
