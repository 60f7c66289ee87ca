// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"gadget.example/network/internal/policy"
)

// Blocked is a connection that policies would not have let through.
type Blocked struct {
	Connection policy.Connection
	Port       uint16   // at which it arrives: of a Service's call that of its pods
	Policies   []string // which have isolated the pod, by namespace/name
}

// Report is what policies would do to a recording.
type Report struct {
	Blocked []Blocked // by pod, direction and peer
	Decided int       // connections that were decided: different processes, peers or ports
	Notes   []Note
}

// Check tells what of a recording policies would block, each connection at the pod
// that saw it. A call of a Service is blocked when any of the pods behind it that
// are known may not be reached. The cluster may be nil.
func Check(policies []networkingv1.NetworkPolicy, recorded []policy.Connection, cluster *Cluster) (Report, error) {
	set, err := NewSet(policies, cluster)
	if err != nil {
		return Report{}, err
	}
	w := newWorld(recorded, cluster)
	decided, notes := w.decided()
	report := Report{Decided: len(decided), Notes: notes}
	doubts := map[string]bool{}
	for _, c := range decided {
		pod := w.pods[name{c.Local.Namespace, c.Local.Name}]
		flows, doubt := w.flows(c.Connection)
		local := Endpoint{Namespace: pod.namespace, Labels: pod.labels}
		port, by := set.blocks(local, c.Connection, flows)
		if len(by) == 0 {
			continue
		}
		report.Blocked = append(report.Blocked, Blocked{Connection: c.Connection, Port: port, Policies: by})
		if doubt != "" && !doubts[doubt] {
			doubts[doubt] = true
			report.Notes = append(report.Notes, Note{Text: doubt})
		}
	}
	slices.SortStableFunc(report.Blocked, func(a, b Blocked) int { return cmp.Compare(a.String(), b.String()) })
	return report, nil
}

// blocks is the port of the first flow that is not allowed, and by which policies.
func (s *Set) blocks(local Endpoint, c policy.Connection, flows []flow) (uint16, []string) {
	for _, f := range flows {
		for _, other := range f.peer.endpoints() {
			if ok, by := s.Allows(local, c.Egress, other, c.Protocol, f.port); !ok {
				return f.port, by
			}
		}
	}
	return 0, nil
}

// endpoints are those that a peer is known to be. Of pods that no row names, the
// labels that they are selected by are known.
func (p peer) endpoints() []Endpoint {
	if !p.isPods() {
		return []Endpoint{{Addr: p.addr}}
	}
	if len(p.pods) == 0 {
		return []Endpoint{{Namespace: p.namespace, Labels: p.selector}}
	}
	var all []Endpoint
	for _, known := range p.pods {
		one := Endpoint{Namespace: known.namespace, Labels: known.labels, Addr: p.via}
		if p.via.IsValid() || len(known.addrs) == 0 {
			all = append(all, one)
			continue
		}
		for one.Addr = range known.addrs {
			all = append(all, one)
		}
	}
	return all
}

// String tells who may not talk to whom, and who forbids it.
func (b Blocked) String() string {
	c := b.Connection
	local := c.Local.Namespace + "/" + c.Local.Name
	if c.Process != "" {
		local += " (" + c.Process + ")"
	}
	arrow := "<-"
	if c.Egress {
		arrow = "->"
	}
	at := fmt.Sprintf("%d/%s", c.Port, c.Protocol)
	if b.Port != c.Port {
		at += fmt.Sprintf(" (pods' %d)", b.Port)
	}
	return fmt.Sprintf("%s %s %s at %s: not in %s", local, arrow, b.peer(), at, strings.Join(b.Policies, ", "))
}

func (b Blocked) peer() string {
	p := b.Connection.Peer
	switch p.Kind {
	case policy.PeerPod:
		return p.Namespace + "/" + p.Name
	case policy.PeerService:
		return fmt.Sprintf("the Service %s/%s", p.Namespace, p.Name)
	}
	return p.Addr.String()
}
