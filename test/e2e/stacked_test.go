// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// Ports of the servers that are bound to the device which has the address.
const (
	boundTCPPort = 7778
	boundUDPPort = 778
)

// lane is a stack, who calls whom over it, and what they call.
type lane struct {
	stack  stack
	actors *actors
	calls  []call
	bridge *namespace // that the packets pass, if any
}

// newLanes are all stacks between two namespaces, a pair within the first, and
// the way between the second and a third.
func newLanes(t *testing.T) []lane {
	t.Helper()
	x, y, z := newNamespace(t, "x"), newNamespace(t, "y"), newNamespace(t, "z")
	p := &pair{ends: [2]*namespace{x, y}}
	for _, s := range allStacks {
		s.add(t, p)
	}
	x.addItself(t)
	yz := &pair{ends: [2]*namespace{y, z}}
	yz.addBridged(t, x)

	xy := newActors(t, p)
	var lanes []lane
	for _, s := range allStacks {
		lanes = append(lanes, lane{stack: s, actors: xy, calls: append(stackedCalls(s.path, 0, 2), stackedCalls(s.path, 1, 1)...)})
	}
	itself := &actors{pair: &pair{ends: [2]*namespace{x, x}}, callers: xy.callers}
	itself.servers = [2]map[serverKey]attempt.Process{xy.servers[0], xy.servers[0]}
	lanes = append(lanes, lane{stack: overItself, actors: itself, calls: onNoDevice(stackedCalls(overItself.path, 0, 2))})

	far := startAgent(t, z, agentOptions{name: "far"})
	beyond := &actors{pair: yz, callers: [2]*agent{xy.callers[1], far}}
	beyond.servers = [2]map[serverKey]attempt.Process{xy.servers[1], serve(t, far)}
	calls := append(stackedCalls(overBridged.path, 0, 2), stackedCalls(overBridged.path, 1, 1)...)
	return append(lanes, lane{stack: overBridged, actors: beyond, calls: onNoDevice(calls), bridge: x})
}

// onNoDevice are calls without those of servers on a device: of one port and
// address the gadget knows eight sockets, and the stacks have as many devices.
func onNoDevice(calls []call) []call {
	return slices.DeleteFunc(calls, func(c call) bool {
		return c.request.Dst.Port() == boundTCPPort || c.request.Dst.Port() == boundUDPPort
	})
}

// serveOnDevices opens ports on every device that has an address.
func serveOnDevices(t *testing.T, lanes []lane) {
	t.Helper()
	servers := map[*namespace]*agent{}
	for _, l := range lanes {
		if l.stack.path == overItself.path || l.stack.path == overBridged.path {
			continue // see onNoDevice
		}
		for i, ns := range l.actors.pair.ends {
			if servers[ns] == nil {
				servers[ns] = startAgent(t, ns, agentOptions{name: "bound-" + ns.name})
			}
			l.actors.serveOn(t, i, servers[ns], l.stack.device(i))
		}
	}
}

// serveOn opens ports that take what comes by one device.
func (a *actors) serveOn(t *testing.T, end int, server *agent, device string) {
	t.Helper()
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		for protocol, port := range map[attempt.Protocol]uint16{attempt.TCP: boundTCPPort, attempt.UDP: boundUDPPort} {
			report := server.do(t, attempt.Request{Serve: true, Protocol: protocol, Device: device, Dst: netip.AddrPortFrom(any, port)})
			a.servers[end][serverKey{protocol, any.Is6(), port}] = report.Process
		}
	}
}

// stackedCalls are calls from an end to a host on a path.
func stackedCalls(path path, from, to int) []call {
	var calls []call
	for _, family := range families {
		add := func(name string, answered bool, port uint16, r attempt.Request) {
			c := call{name: name, from: from, path: path, to: to, request: r, arrives: true, answered: answered}
			calls = append(calls, c.aim(family, port, true))
		}
		add("TCP", true, tcpPort, attempt.Request{Protocol: attempt.TCP})
		add("TCP to a server on the device", true, boundTCPPort, attempt.Request{Protocol: attempt.TCP})
		add("refused TCP", false, closedPort, attempt.Request{Protocol: attempt.TCP})
		add("UDP", true, udpPort, attempt.Request{Protocol: attempt.UDP, Answered: true})
		add("UDP to a server on the device", true, boundUDPPort, attempt.Request{Protocol: attempt.UDP, Answered: true})
		add("like datagrams in a row", false, lastLowPort, attempt.Request{Protocol: attempt.UDP, Count: 20})
		add("a datagram larger than the MTU", true, udpPort, attempt.Request{Protocol: attempt.UDP, Answered: true, Payload: 3 * mtu})
	}
	return calls
}

// copied is the truth of a lane if each device were an attempt's own. It names
// nobody: where a copy is seen is not always where a socket is bound.
func (l lane) copied(truth []want) []want {
	var all []want
	for _, w := range truth {
		w.owner, w.ends = attempt.Process{}, ends{}
		n := l.stack.received
		if w.egress {
			n = l.stack.sent
		}
		for range n {
			all = append(all, w)
		}
		if l.bridge != nil && w.egress {
			w.netNS = l.bridge.inode
			all = append(all, w)
		}
	}
	return all
}

// tally is how many events of a lane there are.
type tally struct {
	sent, received int // by the ends
	passed         int // by the bridge between them
}

func (l lane) tally(events []seen) (n tally) {
	for _, e := range events {
		switch {
		case !l.stack.path.prefix(4, 0).Contains(e.dst.Addr()) && !l.stack.path.prefix(6, 0).Contains(e.dst.Addr()):
		case l.bridge != nil && l.bridge.inode == e.netNS:
			n.passed++
		case e.egress:
			n.sent++
		default:
			n.received++
		}
	}
	return n
}

// anonymous leaves of events what copies have in common.
func anonymous(events []seen) []seen {
	var all []seen
	for _, e := range events {
		e.owner, e.ends, e.retries = attempt.Process{}, ends{}, 0
		all = append(all, e)
	}
	return all
}

// TestStackedDevices has packets pass several devices of a namespace, which sees
// each packet at each of them. It is one attempt, unless copies are asked for.
func TestStackedDevices(t *testing.T) {
	lanes := newLanes(t)
	pids := append(lanes[0].actors.netNSOf(), lanes[len(lanes)-1].actors.netNSOf()...)
	tallies := map[bool][]tally{}
	for _, copies := range []bool{false, true} {
		t.Run(fmt.Sprintf("copies=%t", copies), func(t *testing.T) {
			var truth []want
			o := gadget.Options{NetNSOf: pids, Params: map[string]string{
				"copies": fmt.Sprint(copies), "forwarded": fmt.Sprint(copies),
				"rate-limit": "0", // fast machines make them all in a second
			}}
			events := watch(t, o, func() {
				serveOnDevices(t, lanes) // the gadget sees by which device they are bound
				for _, l := range lanes {
					made := l.actors.make(t, l.calls)
					if copies {
						made = l.copied(made)
					}
					truth = append(truth, made...)
				}
			})
			if copies {
				events = anonymous(events)
			}
			compare(t, events, truth)
			for _, l := range lanes {
				tallies[copies] = append(tallies[copies], l.tally(events))
			}
		})
	}
	if len(tallies[false]) == len(tallies[true]) {
		t.Logf("events:\n%s", table(lanes, tallies[false], tallies[true]))
	}
}

func table(lanes []lane, once, copies []tally) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "path\tsent\treceived\tbridged\tcopies: sent\treceived\tbridged\t")
	for i, l := range lanes {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t\n", l.stack.path,
			once[i].sent, once[i].received, once[i].passed, copies[i].sent, copies[i].received, copies[i].passed)
	}
	w.Flush()
	return b.String()
}
