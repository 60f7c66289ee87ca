// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// flowsPort is one that nobody would call low.
const flowsPort = 5353

// newFlowActors serve that port too.
func newFlowActors(t *testing.T) *actors {
	t.Helper()
	a := newActors(t, newPair(t, newNamespace(t, "left"), newNamespace(t, "right")))
	for i, ns := range a.pair.ends {
		server := startAgent(t, ns, agentOptions{name: fmt.Sprintf("mdns-%d", i)})
		for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			report := server.do(t, attempt.Request{Serve: true, Protocol: attempt.UDP, Dst: netip.AddrPortFrom(any, flowsPort)})
			a.servers[i][serverKey{attempt.UDP, any.Is6(), flowsPort}] = report.Process
		}
	}
	return a
}

// flows are UDP flows of the first end, with both families, from connected
// sockets and from others, and how many datagrams go each way in each.
type flows struct {
	name    string // the same sockets are those of the same name
	path    path
	port    uint16
	sockets int // of each kind
	count   int
}

// kinds are of family and of connected or not.
const kinds = 4

func (f flows) steps() []attempt.Step {
	to := 2
	if f.path == overLoopback {
		to = 1
	}
	var steps []attempt.Step
	for _, family := range families {
		for _, connected := range []bool{false, true} {
			steps = append(steps, attempt.Step{
				Do: attempt.Flows, Socket: fmt.Sprint(f.name, family, connected), Protocol: attempt.UDP,
				Connected: connected, Sockets: f.sockets, Count: f.count,
				Dst: netip.AddrPortFrom(f.path.address(family, to), f.port),
			})
		}
	}
	return steps
}

// exchange makes flows, and returns the events that follow if so many of each
// one's datagrams are reported.
func (a *actors) exchange(t *testing.T, f flows, reported int) []want {
	t.Helper()
	to := 1
	if f.path == overLoopback {
		to = 0
	}
	report := a.callers[0].do(t, attempt.Request{Steps: f.steps()})
	var truth []want
	for _, step := range report.Steps {
		for _, flow := range step.Steps {
			flow.Packets = reported
			server := a.servers[to][serverKey{attempt.UDP, flow.Dst.Addr().Is6(), f.port}]
			origin := fmt.Sprintf("%s flow to port %d over %s", f.name, f.port, f.path)
			truth = append(truth, wants(flow, attempt.UDP, a.pair.ends[0], a.pair.ends[to], server, origin)...)
		}
	}
	return truth
}

// watchFlows runs the gadget with the parameters for flows, and more.
func (a *actors) watchFlows(t *testing.T, more map[string]string, traffic func()) []seen {
	t.Helper()
	params := map[string]string{"udp-flows": "true", "rate-limit": "0"}
	maps.Copy(params, more)
	return watch(t, gadget.Options{NetNSOf: a.netNSOf(), Params: params}, traffic)
}

func TestUDPFlows(t *testing.T) {
	a := newFlowActors(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *actors)
	}{
		{"each is reported once", testEachFlowOnce},
		{"one that was silent is reported again", testSilentFlows},
		{"one that wakes by its other side is not", testWokenFlows},
		{"none is lost when the table is full", testTooManyFlows},
		{"an answer is none when only what is sent is reported", testFlowsSent},
		{"without the parameter each datagram to a low port is reported", testNoFlows},
	} {
		t.Run(test.name, func(t *testing.T) {
			fresh := *a // no socket is older than the gadget
			fresh.callers[0] = startAgent(t, a.pair.ends[0], agentOptions{name: "flows"})
			test.run(t, &fresh)
		})
	}
}

func testEachFlowOnce(t *testing.T, a *actors) {
	var truth []want
	events := a.watchFlows(t, nil, func() {
		for _, f := range []flows{
			{"plain", overVeth, flowsPort, 1000 / kinds, 50},
			{"low", overVeth, udpPort, 5, 5},
			{"tagged", overVLAN, flowsPort, 5, 5},
			{"local", overLoopback, flowsPort, 5, 5},
		} {
			truth = append(truth, a.exchange(t, f, 1)...)
		}
		truth = append(truth, a.make(t, besideFlows())...)
	})
	compare(t, events, truth)
}

// besideFlows are calls that nobody answers with a datagram.
func besideFlows() []call {
	var calls []call
	for _, family := range families {
		base := call{path: overVeth, to: 2, arrives: true}
		for _, port := range []uint16{closedPort, 40_000} {
			c := base
			c.name, c.request.Protocol = fmt.Sprintf("UDP to port %d", port), attempt.UDP
			calls = append(calls, c.aim(family, port, true))
		}
		calls = append(calls, answered(base, family)[0])
	}
	return calls
}

// testSilentFlows has some flows go on while others are silent.
func testSilentFlows(t *testing.T, a *actors) {
	const idle = 10 * time.Second
	busy := flows{"busy", overVeth, flowsPort, 1, 1}
	silent := flows{"silent", overVeth, flowsPort, 5, 3}
	var truth []want
	events := a.watchFlows(t, map[string]string{"udp-idle": fmt.Sprint(idle.Seconds())}, func() {
		truth = append(truth, a.exchange(t, silent, 1)...)
		truth = append(truth, a.exchange(t, busy, 1)...)
		a.idleFor(t, idle, busy)
		truth = append(truth, a.exchange(t, silent, 1)...)
	})
	compare(t, events, truth)
}

// testWokenFlows has who was called speak first after the idle time.
func testWokenFlows(t *testing.T, a *actors) {
	const idle = 10 * time.Second
	const port = 4433
	var truth []want
	server := startAgent(t, a.pair.ends[1], agentOptions{name: "woken"})
	events := a.watchFlows(t, map[string]string{"udp-idle": fmt.Sprint(idle.Seconds())}, func() {
		var asks, wakes []attempt.Step
		for _, family := range families {
			name, client := fmt.Sprint(family), at(overVeth.address(family, 1), port+1)
			to := at(overVeth.address(family, 2), port)
			server.do(t, attempt.Request{Steps: []attempt.Step{{Do: attempt.Open, Socket: name, Protocol: attempt.UDP, Src: to}}})
			a.callers[0].do(t, attempt.Request{Steps: []attempt.Step{{Do: attempt.Open, Socket: name, Protocol: attempt.UDP, Src: client}}})
			asks = append(asks, attempt.Step{Do: attempt.Call, Socket: name, Protocol: attempt.UDP, Dst: to})
			wakes = append(wakes, attempt.Step{Do: attempt.Call, Socket: name, Protocol: attempt.UDP, Dst: client})
		}
		said := func(by *agent, steps []attempt.Step) []attempt.Report {
			return by.do(t, attempt.Request{Steps: steps}).Steps
		}
		begun := func() {
			for _, report := range said(a.callers[0], asks) {
				owner := said(server, []attempt.Step{{Do: attempt.Rename}})[0].Process
				truth = append(truth, wants(report, attempt.UDP, a.pair.ends[0], a.pair.ends[1], owner, "flow that is woken")...)
			}
		}
		busy := flows{"busy", overLoopback, flowsPort, 1, 1}
		truth = append(truth, a.exchange(t, busy, 1)...)
		begun()
		said(server, wakes) // an answer
		a.idleFor(t, idle, busy)
		said(server, wakes)
		said(a.callers[0], asks) // goes on with what was woken
		a.idleFor(t, idle, busy)
		begun()
	})
	compare(t, events, truth)
}

// idleFor lets so much time go by, in which other flows go on.
func (a *actors) idleFor(t *testing.T, idle time.Duration, others flows) {
	t.Helper()
	since := time.Now()
	for last := since; time.Since(since) <= idle; last = time.Now() {
		a.exchange(t, others, 0)
		if pause := time.Since(last); pause >= idle/2 {
			t.Fatalf("this machine is too slow: flows that are to go on were silent for %v", pause)
		}
	}
}

// testTooManyFlows has more than the table holds, each of which says something
// again when all others have: a flow that had to make way can be reported as a
// new one, and then nothing tells that what comes next is an answer. How many
// events that makes is not known before, so nothing can wait for them: the ring
// holds those of every datagram and of every answer at both ends, 768, also
// when none is read before all are sent.
func testTooManyFlows(t *testing.T, a *actors) {
	f := flows{"one of many", overVeth, flowsPort, 24, 2}
	var truth []want
	events := a.watchFlows(t, map[string]string{"max-flows": "16"}, func() { truth = a.exchange(t, f, 1) })
	t.Logf("%d flows, %d events of %d", kinds*f.sockets, len(events), len(truth))
	for i, e := range events {
		if e.src.Port() == flowsPort {
			events[i].sighting = e.turned()
		}
	}
	compare(t, distinct(events), truth)
}

// turned is what an answer answers, as the same namespace saw it.
func (s sighting) turned() sighting {
	s.egress, s.src, s.dst = !s.egress, s.dst, s.src
	s.peer = s.dst
	if !s.egress {
		s.peer = netip.AddrPortFrom(s.src.Addr(), s.dst.Port())
	}
	return s
}

// distinct are events without those that are the same.
func distinct(events []seen) []seen {
	is := map[seen]bool{}
	for _, e := range events {
		is[e] = true
	}
	return slices.Collect(maps.Keys(is))
}

func testFlowsSent(t *testing.T, a *actors) {
	var truth []want
	events := a.watchFlows(t, map[string]string{"egress-only": "true"}, func() {
		truth = a.exchange(t, flows{"sent", overVeth, flowsPort, 5, 5}, 1)
	})
	compare(t, events, slices.DeleteFunc(truth, func(w want) bool { return !w.egress }))
}

func testNoFlows(t *testing.T, a *actors) {
	var truth []want
	events := watch(t, gadget.Options{NetNSOf: a.netNSOf()}, func() {
		truth = a.exchange(t, flows{"low", overVeth, udpPort, 5, 5}, 5)
		a.exchange(t, flows{"high", overVeth, flowsPort, 5, 5}, 0)
	})
	compare(t, events, truth)
}

// TestAnswersAreNoAttempts between two low ports, where each datagram to one is
// reported.
func TestAnswersAreNoAttempts(t *testing.T) {
	ports := map[string]uint16{"NTP": 123, "IKE": 500, "DNS": 53}
	a := newActors(t, newPair(t, newNamespace(t, "left"), newNamespace(t, "right")))
	for name, port := range ports {
		server := startAgent(t, a.pair.ends[1], agentOptions{name: name})
		for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			report := server.do(t, attempt.Request{Serve: true, Protocol: attempt.UDP, Dst: netip.AddrPortFrom(any, port)})
			a.servers[1][serverKey{attempt.UDP, any.Is6(), port}] = report.Process
		}
	}
	var calls []call
	for name, port := range ports {
		for _, family := range families {
			for _, count := range []int{1, 3} {
				c := call{name: name, path: overVeth, to: 2, arrives: true, answered: true}
				c.request = attempt.Request{Protocol: attempt.UDP, Answered: true, Count: count, Payload: 48}
				c = c.aim(family, port, true)
				c.request.Src = netip.AddrPortFrom(c.request.Src.Addr(), port)
				calls = append(calls, c)
				// From another low port, within one namespace.
				c.from, c.path = 1, overLoopback
				c = c.aim(family, port, true)
				c.request.Src = netip.AddrPortFrom(c.request.Src.Addr(), port+1)
				calls = append(calls, c)
			}
		}
	}
	for name, test := range map[string]struct {
		params map[string]string
		wanted func(want) bool
	}{
		"all":                         {nil, func(want) bool { return true }},
		"where what is sent is asked": {map[string]string{"egress-only": "true"}, func(w want) bool { return w.egress }},
		"where what is received is":   {map[string]string{"ingress-only": "true"}, func(w want) bool { return !w.egress }},
		"where one port is":           {map[string]string{"port": "123"}, func(w want) bool { return w.dst.Port() == 123 }},
	} {
		t.Run(name, func(t *testing.T) {
			var truth []want
			events := watch(t, gadget.Options{NetNSOf: a.netNSOf(), Params: test.params}, func() { truth = a.make(t, calls) })
			compare(t, events, slices.DeleteFunc(truth, func(w want) bool { return !test.wanted(w) }))
		})
	}
}
