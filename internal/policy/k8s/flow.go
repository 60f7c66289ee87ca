// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"gadget.example/network/internal/policy"
)

// flow is a connection as a policy engine sees it, which judges after DNAT: a
// Service's address is one of the pods behind it by then, and its port theirs.
type flow struct {
	peer peer
	port uint16
}

// peer is pods of a namespace, or an address that is not a pod's.
type peer struct {
	namespace string
	selector  map[string]string // that a policy selects the pods by
	pods      []*pod            // those that they are known to be
	via       netip.Addr        // the pod's address that was used, if it was one
	addr      netip.Addr        // where it is not pods
}

func (p peer) isPods() bool { return len(p.selector) > 0 }

func (p peer) key() string {
	if p.isPods() {
		return p.namespace + "/" + text(p.selector)
	}
	return p.addr.String()
}

// flows are what a connection is to a policy engine, and what is not certain of
// that. There may be several: all ports at which the client was seen behind a
// Service.
func (w *world) flows(c policy.Connection) ([]flow, string) {
	other := w.peer(c)
	switch other.Kind {
	case policy.PeerPod:
		p := w.pods[name{other.Namespace, other.Name}]
		if p.hostNetwork {
			break
		}
		if len(p.workload.selector) == 0 {
			return []flow{{peer{addr: other.Addr}, c.Port}},
				fmt.Sprintf("the pod %s has no label of its workload: it is allowed by its address %s, which it loses with its end", p.name, other.Addr)
		}
		return []flow{{peer{namespace: p.namespace, selector: p.workload.selector, pods: []*pod{p}, via: other.Addr}, c.Port}}, ""
	case policy.PeerService:
		if c.Egress {
			return w.behind(other, c)
		}
	}
	return []flow{{peer{addr: other.Addr}, c.Port}}, ""
}

// behind is what a call of a Service's address becomes.
func (w *world) behind(service policy.Peer, c policy.Connection) ([]flow, string) {
	if known := w.cluster.services[name{service.Namespace, service.Name}]; known != nil {
		return w.endpoints(known, c)
	}
	if len(service.Selector) == 0 {
		return []flow{{peer{addr: service.Addr}, c.Port}}, fmt.Sprintf(
			"the Service %s/%s has no selector: its own address %s is allowed, which engines that judge after DNAT do not see; with --cluster those of its endpoints are",
			service.Namespace, service.Name, service.Addr)
	}
	client := w.pods[name{c.Local.Namespace, c.Local.Name}].workload
	targets := w.targetsOf(call{service.Namespace, text(service.Selector), c.Protocol, client}, service.Selector)
	ports, certain := targets.ports(c.Port)
	if len(targets.nodes) > 0 && len(targets.seen) == 0 && len(targets.others) == 0 {
		return targets.onNodes(), ""
	}
	var flows []flow
	for _, port := range ports {
		flows = append(flows, flow{
			peer{namespace: service.Namespace, selector: service.Selector, pods: w.podsOf(service.Namespace, service.Selector)}, port,
		})
	}
	if certain {
		return flows, ""
	}
	return flows, fmt.Sprintf("the Service %s/%s was called at %d/%s, and at which port its pods got that was not seen: %d is allowed; with --cluster theirs is",
		service.Namespace, service.Name, c.Port, c.Protocol, ports[0])
}

// podsOf are the pods of a namespace that a selector selects, by name, without
// those that are in their node's network.
func (w *world) podsOf(namespace string, selector map[string]string) []*pod {
	var found []*pod
	for _, p := range w.pods {
		if p.namespace == namespace && !p.hostNetwork && selects(selector, p.labels) {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b *pod) int { return cmp.Compare(a.name.name, b.name.name) })
	return found
}

// targets are the ports at which pods behind a Service were seen to be called.
type targets struct {
	seen   map[uint16]bool // by the client
	direct map[uint16]bool // those that the client called by the pods' own addresses
	others map[uint16]bool // by anybody: whose calls came by way of a node
	nodes  map[netip.AddrPort]bool
	called map[string]bool // ports of Services with these pods that the client called
}

// call is a workload's use of a Service.
type call struct {
	namespace, selector string
	protocol            policy.Protocol
	client              *workload
}

// targetsOf looks for what arrived behind a Service. Kubernetes' DNAT is not in the
// client's network namespace, so its own rows have the Service's port.
func (w *world) targetsOf(of call, selector map[string]string) *targets {
	if known := w.targets[of]; known != nil {
		return known
	}
	t := &targets{map[uint16]bool{}, map[uint16]bool{}, map[uint16]bool{}, map[netip.AddrPort]bool{}, map[string]bool{}}
	w.targets[of] = t
	for _, c := range w.rows {
		local := w.pods[name{c.Local.Namespace, c.Local.Name}]
		if c.Protocol != of.protocol || local == nil {
			continue
		}
		var other *pod
		peer := w.peer(c.Connection)
		if peer.Kind == policy.PeerPod {
			other = w.pods[name{peer.Namespace, peer.Name}]
		}
		isBehind := func(p *pod) bool { return p != nil && p.namespace == of.namespace && selects(selector, p.labels) }
		switch {
		case c.Egress && local.workload == of.client && isBehind(other):
			t.direct[c.Port] = true
		case c.Egress && local.workload == of.client && peer.Kind == policy.PeerService &&
			peer.Namespace == of.namespace && text(peer.Selector) == of.selector:
			t.called[fmt.Sprint(peer.Name, " ", c.Port)] = true
		case c.Egress || !isBehind(local) || !w.served[socket{local.name, c.Protocol, c.Port}]:
		case local.hostNetwork:
			for addr := range local.addrs {
				t.nodes[netip.AddrPortFrom(addr, c.Port)] = true
			}
		default:
			t.others[c.Port] = true
			if other != nil && other.workload == of.client {
				t.seen[c.Port] = true
			}
		}
	}
	return t
}

// ports are those that a call of a Service's port reaches. Which of several it is
// the rows do not tell, but all at which the client arrived there may be allowed,
// but for those that it called itself, if the rest is enough. Where it did not
// arrive (nobody answered, or its address became a node's), what the pods serve to
// others is the answer: the same port, or likely the only one.
func (t *targets) ports(called uint16) (ports []uint16, certain bool) {
	byService := maps.Clone(t.seen)
	maps.DeleteFunc(byService, func(port uint16, _ bool) bool { return t.direct[port] })
	switch {
	case len(byService) > 0 && len(byService) >= len(t.called):
		return slices.Sorted(maps.Keys(byService)), true
	case len(t.seen) > 0:
		return slices.Sorted(maps.Keys(t.seen)), true
	case t.others[called]:
		return []uint16{called}, true
	case len(t.others) == 1:
		return slices.Sorted(maps.Keys(t.others)), false
	}
	return []uint16{called}, false
}

// onNodes are the targets of a Service whose pods are in their nodes' networks.
func (t *targets) onNodes() []flow {
	var flows []flow
	for _, at := range slices.SortedFunc(maps.Keys(t.nodes), netip.AddrPort.Compare) {
		flows = append(flows, flow{peer{addr: at.Addr()}, at.Port()})
	}
	return flows
}
