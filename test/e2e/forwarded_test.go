// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// Addresses that are on no device between a router and its neighbours, whose
// names here are for messages.
var (
	onRouterLoopback = path{"e2e-lo", 20}
	takenByRoute     = path{"e2e-local-route", 21} // the router takes them all for its own
	nowhere          = path{"e2e-no-route", 22}    // the router has no route to them
)

// The router is host 1 on each path to a neighbour.
const router, neighbour = 1, 2

// node is the router or a neighbour of it.
type node struct {
	ns      *namespace
	path    path // to the router; the router's own is none
	caller  *agent
	servers map[serverKey]attempt.Process
}

func newNode(t *testing.T, ns *namespace, path path) node {
	t.Helper()
	return node{
		ns: ns, path: path,
		caller:  startAgent(t, ns, agentOptions{name: "caller-" + ns.name}),
		servers: serve(t, startAgent(t, ns, agentOptions{name: "server-" + ns.name})),
	}
}

// network is a router and its neighbours.
type network struct {
	router     node
	neighbours []node
}

// newNetwork has a router reach its neighbours by stacks of devices: by one as
// containers have it, too.
func newNetwork(t *testing.T) network {
	t.Helper()
	r := newNamespace(t, "router")
	r.sysctl(t, "ipv4/ip_forward", "1")
	r.sysctl(t, "ipv6/conf/all/forwarding", "1")
	lo := r.link(t, "lo")
	for _, family := range families {
		addr := onRouterLoopback.address(family, router)
		r.address(t, "lo", netip.PrefixFrom(addr, addr.BitLen()))
		r.addRoute(t, &netlink.Route{
			LinkIndex: lo.Attrs().Index, Dst: ipNet(takenByRoute.prefix(family, 0).Masked()),
			Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
		})
	}
	n := network{router: newNode(t, r, path{})}
	for name, s := range map[string]stack{"plain": overPlain, "bridged": overBridge, "tagged": overBondVLAN} {
		ns := newNamespace(t, name)
		s.add(t, &pair{ends: [2]*namespace{r, ns}})
		for _, family := range families {
			ns.addRoute(t, &netlink.Route{
				LinkIndex: ns.link(t, s.path.device).Attrs().Index, Gw: s.path.address(family, router).AsSlice(),
			})
		}
		n.neighbours = append(n.neighbours, newNode(t, ns, s.path))
	}
	return n
}

func (n network) pids() []int {
	pids := []int{n.router.caller.pid}
	for _, h := range n.neighbours {
		pids = append(pids, h.caller.pid)
	}
	return pids
}

// journey is calls of one host to an address of another or of nobody.
type journey struct {
	from  node
	to    *node
	calls []call
	// What the router does that is neither: it receives and it sends.
	receives, sends bool
}

// journeys are calls of everyone to everyone.
func (n network) journeys() []journey {
	var all []journey
	for _, from := range n.neighbours {
		for _, to := range n.neighbours {
			j := journey{from: from, to: &n.router, calls: from.calls(to.path, router, true)}
			all = append(all, j) // the router's address on the path to any neighbour
			if from.ns != to.ns {
				j = journey{from: from, to: &to, calls: from.calls(to.path, neighbour, true), receives: true, sends: true}
				all = append(all, j)
			}
		}
		all = append(all,
			journey{from: from, to: &n.router, calls: from.calls(onRouterLoopback, router, true)},
			journey{from: from, to: &n.router, calls: from.calls(takenByRoute, 7, true)},
			journey{from: from, calls: from.calls(nowhere, 7, false), receives: true},
			journey{from: n.router, to: &from, calls: n.router.calls(from.path, neighbour, true)},
		)
	}
	return all
}

// calls are those of a host to an address, which arrive or which the router
// cannot deliver.
func (h node) calls(path path, number int, arrives bool) []call {
	var calls []call
	for _, family := range families {
		src := h.path.address(family, neighbour)
		if h.path.device == "" {
			src = path.address(family, router)
		}
		add := func(name string, answered bool, port uint16, r attempt.Request) {
			c := call{name: name, path: path, to: neighbour, dst: path.address(family, number), request: r, arrives: arrives, answered: answered}
			c.request.Src = netip.AddrPortFrom(src, 0)
			calls = append(calls, c.aim(family, port, false))
		}
		add("TCP", arrives, tcpPort, attempt.Request{Protocol: attempt.TCP, NonBlocking: !arrives})
		add("UDP", arrives, udpPort, attempt.Request{Protocol: attempt.UDP, Answered: arrives, Count: 2})
		if arrives {
			add("refused TCP", false, closedPort, attempt.Request{Protocol: attempt.TCP})
		}
	}
	return calls
}

// make makes the calls, and returns the events that follow from them, with or
// without what the router forwards.
func (j journey) make(t *testing.T, router *namespace, forwarded bool) []want {
	t.Helper()
	a := &actors{pair: &pair{ends: [2]*namespace{j.from.ns}}}
	if j.to != nil {
		a.pair.ends[1], a.servers[1] = j.to.ns, j.to.servers
	}
	var truth []want
	for _, c := range j.calls {
		report := j.from.caller.do(t, c.request)
		truth = append(truth, a.follows(c, report)...)
		if !forwarded {
			continue
		}
		report.Process = attempt.Process{} // the router does not know it
		var sender, receiver *namespace
		if j.sends {
			sender = router
		}
		if j.receives {
			receiver = router
		}
		truth = append(truth, wants(report, c.request.Protocol, sender, receiver, attempt.Process{}, "forwarded "+c.String())...)
	}
	return truth
}

// TestForwarded has hosts talk to each other and to the router between them.
func TestForwarded(t *testing.T) {
	n := newNetwork(t)
	for _, forwarded := range []bool{false, true} {
		t.Run(fmt.Sprintf("forwarded=%t", forwarded), func(t *testing.T) {
			var truth []want
			o := gadget.Options{NetNSOf: n.pids(), Params: map[string]string{"forwarded": fmt.Sprint(forwarded)}}
			events := watch(t, o, func() {
				for _, j := range n.journeys() {
					truth = append(truth, j.make(t, n.router.ns, forwarded)...)
				}
			})
			t.Logf("%d events", len(events))
			compare(t, events, truth)
		})
	}
}
