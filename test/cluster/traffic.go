// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"maps"
	"net/netip"
	"slices"

	"gadget.example/network/internal/policy"
)

// End is one end of a Flow: a workload's pods, or an address.
type End struct {
	Workload *Workload // nil: Addr is not of a pod with a network of its own
	Addr     netip.Addr
}

// Flow is something that a policy of a workload decides.
type Flow struct {
	Of     *Workload
	Egress bool
	Peer   End
	Port   Port
}

// Traffic is what was recorded, and the flows which that is.
type Traffic struct {
	Rows  []policy.Connection
	Flows map[Flow]bool
	// May are those that nobody can tell from it: of a Service's pods, others than
	// those that were reached, at ports that were.
	May map[Flow]bool
}

// Traffic makes n random calls. Services are called at ports that are served
// behind them; of pods and addresses outside, any port may be called.
func (c *Cluster) Traffic(n int) *Traffic {
	t := &Traffic{Flows: map[Flow]bool{}, May: map[Flow]bool{}}
	pods := c.Pods()
	for range n {
		from := pods[c.random.IntN(len(pods))]
		switch c.random.IntN(4) {
		case 0:
			c.callService(t, from, c.Services[c.random.IntN(len(c.Services))])
		case 1:
			to := c.Outside[c.random.IntN(len(c.Outside))]
			t.send(from, policy.Peer{Addr: to, Kind: policy.PeerAddress}, c.port(), End{Addr: to})
		case 2: // from outside
			at := pods[c.random.IntN(len(pods))]
			addr := c.Outside[c.random.IntN(len(c.Outside))]
			t.receive(at, policy.Peer{Addr: addr, Kind: policy.PeerAddress}, c.port(), End{Addr: addr})
		default:
			to := pods[c.random.IntN(len(pods))]
			if to == from || to.Addr == from.Addr || to.Addr == from.Node || from.Addr == to.Node {
				continue // with itself, or its own node
			}
			port := c.port()
			t.send(from, to.peer(), port, to.end())
			t.receive(to, from.peer(), port, from.end())
		}
	}
	return t
}

func (c *Cluster) port() Port { return Ports[c.random.IntN(len(Ports))] }

// callService calls a port of a Service, and arrives at one of the pods behind.
func (c *Cluster) callService(t *Traffic, from *Pod, s *Service) {
	ports := slices.SortedFunc(maps.Keys(s.Ports), func(a, b Port) int { return int(a.Number) - int(b.Number) })
	port := ports[c.random.IntN(len(ports))]
	target := Port{port.Protocol, s.Ports[port]}
	behind := slices.DeleteFunc(c.Behind(s), func(w *Workload) bool { return !w.Serves[target] })
	w := behind[c.random.IntN(len(behind))]
	to := w.Pods[c.random.IntN(len(w.Pods))]
	if to == from || to.Addr == from.Addr || from.Addr == to.Node || to.Addr == from.Node {
		return
	}
	t.Rows = append(t.Rows, from.row("client", true, policy.Peer{
		Addr: s.Addr, Kind: policy.PeerService, Namespace: s.Namespace, Name: s.Name, Selector: s.Selector,
	}, port))
	t.receive(to, from.peer(), target, from.end())
	t.may(from, c.Behind(s))
	if w.HostNetwork {
		t.flow(from, true, to.end(), target)
		return
	}
	// It could have been any of them.
	for _, w := range c.Behind(s) {
		t.flow(from, true, End{Workload: w}, target)
	}
}

// may is what a call of a Service leaves open: with pods of several workloads
// behind it, any of them at any port that one of them serves; on nodes, which.
func (t *Traffic) may(from *Pod, behind []*Workload) {
	for _, w := range behind {
		for _, other := range behind {
			for port := range other.Serves {
				for _, p := range w.Pods {
					if len(behind) > 1 || w.HostNetwork {
						t.May[Flow{from.Workload, true, p.end(), port}] = true
					}
				}
			}
		}
	}
}

func (t *Traffic) send(from *Pod, to policy.Peer, port Port, end End) {
	t.Rows = append(t.Rows, from.row("client", true, to, port))
	t.flow(from, true, end, port)
}

// receive is an attempt of nobody, and nothing to allow, where nobody listens.
func (t *Traffic) receive(at *Pod, from policy.Peer, port Port, end End) {
	if !at.Serves[port] {
		t.Rows = append(t.Rows, at.row("", false, from, port))
		return
	}
	t.Rows = append(t.Rows, at.row("server", false, from, port))
	t.flow(at, false, end, port)
}

func (t *Traffic) flow(of *Pod, egress bool, end End, port Port) {
	if !of.HostNetwork {
		t.Flows[Flow{of.Workload, egress, end, port}] = true
	}
}

func (p *Pod) end() End {
	if p.HostNetwork {
		return End{Addr: p.Addr}
	}
	return End{Workload: p.Workload}
}

// peer is the pod as Inspektor Gadget names its address: not at all where it is in
// its node's network.
func (p *Pod) peer() policy.Peer {
	if p.HostNetwork {
		return policy.Peer{Addr: p.Addr}
	}
	return policy.Peer{Addr: p.Addr, Kind: policy.PeerPod, Namespace: p.Namespace, Name: p.Name, Labels: p.Labels}
}

func (p *Pod) row(process string, egress bool, peer policy.Peer, port Port) policy.Connection {
	return policy.Connection{
		Process: process, Egress: egress, Protocol: port.Protocol, Peer: peer, Port: port.Number, Attempts: 1,
		Local: policy.Pod{
			Namespace: p.Namespace, Name: p.Name, Owner: p.Owner, Labels: p.Labels,
			HostNetwork: p.HostNetwork, IP: p.Addr, NodeIP: p.Node,
		},
	}
}
