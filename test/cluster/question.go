// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"iter"
	"net/netip"

	"gadget.example/network/internal/policy"
)

// Question is whether a pod may send to a peer, or receive from it, at a port.
type Question struct {
	Pod    *Pod
	Egress bool
	Peer   Peer
	Port   Port
	Want   bool // it may
	May    bool // or may not: see Traffic
}

// Peer is a pod with a network of its own, or an address.
type Peer struct {
	Pod  *Pod
	Addr netip.Addr
}

// Questions are all that there are of the workloads that traffic makes policies of.
func (c *Cluster) Questions(of *Traffic) iter.Seq[Question] {
	ports := append([]Port{}, Ports...)
	for _, s := range c.Services {
		for port := range s.Ports {
			ports = append(ports, port)
		}
	}
	for _, p := range Ports { // the same number of the other protocol
		ports = append(ports, Port{map[policy.Protocol]policy.Protocol{policy.TCP: policy.UDP, policy.UDP: policy.TCP}[p.Protocol], p.Number})
	}
	return func(yield func(Question) bool) {
		for _, pod := range c.Pods() {
			if !of.decides(pod.Workload) {
				continue
			}
			for _, peer := range c.peers(pod) {
				for _, port := range ports {
					for _, egress := range []bool{true, false} {
						f := Flow{pod.Workload, egress, peer.end(), port}
						if !yield(Question{pod, egress, peer, port, of.Flows[f], of.May[f]}) {
							return
						}
					}
				}
			}
		}
	}
}

func (t *Traffic) decides(w *Workload) bool {
	for f := range t.Flows {
		if f.Of == w {
			return true
		}
	}
	return false
}

// peers are all others: pods, nodes, Services, addresses outside.
func (c *Cluster) peers(of *Pod) []Peer {
	var all []Peer
	nodes := map[netip.Addr]bool{}
	for _, p := range c.Pods() {
		if p != of && !p.HostNetwork {
			all = append(all, Peer{p, p.Addr})
		}
		nodes[p.Node] = true
	}
	for node := range nodes {
		all = append(all, Peer{Addr: node})
	}
	for _, s := range c.Services {
		all = append(all, Peer{Addr: s.Addr})
	}
	for _, addr := range c.Outside {
		all = append(all, Peer{Addr: addr}, Peer{Addr: addr.Next()})
	}
	return all
}

func (p Peer) end() End {
	if p.Pod != nil {
		return End{Workload: p.Pod.Workload}
	}
	return End{Addr: p.Addr}
}

// PeerNamespace is empty of an address.
func (q Question) PeerNamespace() string {
	if q.Peer.Pod == nil {
		return ""
	}
	return q.Peer.Pod.Namespace
}

// PeerLabels are none of an address.
func (q Question) PeerLabels() map[string]string {
	if q.Peer.Pod == nil {
		return nil
	}
	return q.Peer.Pod.Labels
}

func (q Question) String() string {
	direction, peer := "from", q.Peer.Addr.String()
	if q.Egress {
		direction = "to"
	}
	if q.Peer.Pod != nil {
		peer = q.Peer.Pod.Namespace + "/" + q.Peer.Pod.Name
	}
	return fmt.Sprintf("%s/%s %s %s at %d/%s", q.Pod.Namespace, q.Pod.Name, direction, peer, q.Port.Number, q.Port.Protocol)
}
