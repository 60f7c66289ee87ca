// SPDX-License-Identifier: Apache-2.0

// Package k8s writes Kubernetes NetworkPolicies that allow what was recorded and
// nothing else, and tells what given policies would block of a recording.
package k8s

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"gadget.example/network/internal/policy"
)

// Note is what a user must know of policies: of one, by its namespace/name, or of
// all.
type Note struct{ Policy, Text string }

func (n Note) String() string {
	if n.Policy == "" {
		return n.Text
	}
	return n.Policy + ": " + n.Text
}

// managedBy says where a policy is from, in Kubernetes' own words.
var managedBy = map[string]string{"app.kubernetes.io/managed-by": "netgadget"}

// Generate makes a NetworkPolicy for each workload of a recording. It allows what
// its pods sent, whether or not it was answered, and what they received at ports
// where somebody listened. Workloads with the same labels, which no policy can tell
// apart, share one. The order is that of namespaces and names. The cluster may be
// nil.
func Generate(recorded []policy.Connection, cluster *Cluster) ([]networkingv1.NetworkPolicy, []Note) {
	w := newWorld(recorded, cluster)
	decided, notes := w.decided()
	drafts := map[string]*draft{}
	for _, c := range decided {
		of := w.pods[name{c.Local.Namespace, c.Local.Name}].workload
		key := of.namespace + "/" + text(of.selector)
		if drafts[key] == nil {
			drafts[key] = newDraft(of)
		}
		drafts[key].owners[of.owner] = true
		flows, doubt := w.flows(c.Connection)
		if doubt != "" {
			drafts[key].doubts[doubt] = true
		}
		for _, f := range flows {
			drafts[key].allow(c.Egress, f, c.Protocol)
		}
	}
	var policies []networkingv1.NetworkPolicy
	for _, d := range named(drafts) {
		w.doubtOverlaps(d)
		policies = append(policies, d.policy())
		for _, doubt := range slices.Sorted(maps.Keys(d.doubts)) {
			notes = append(notes, Note{Policy: d.namespace + "/" + d.name, Text: doubt})
		}
	}
	return policies, notes
}

// draft is a policy that is being written.
type draft struct {
	namespace string
	name      string
	selector  map[string]string
	owners    map[policy.Owner]bool
	ingress   rules
	egress    rules
	doubts    map[string]bool
}

func newDraft(of *workload) *draft {
	return &draft{
		namespace: of.namespace, selector: of.selector, owners: map[policy.Owner]bool{},
		ingress: rules{}, egress: rules{}, doubts: map[string]bool{},
	}
}

// doubtOverlaps says which other workloads the policy's selector selects as well:
// labels cannot leave out pods that have all of them and more.
func (w *world) doubtOverlaps(d *draft) {
	for _, p := range w.pods {
		if p.namespace == d.namespace && !p.hostNetwork && !d.owners[p.workload.owner] && selects(d.selector, p.labels) {
			d.doubts[fmt.Sprintf("its selector %s also selects the pods of %s %s",
				text(d.selector), p.workload.owner.Kind, p.workload.owner.Name)] = true
		}
	}
}

func (d *draft) allow(egress bool, f flow, protocol policy.Protocol) {
	if egress {
		d.egress.add(f, protocol)
	} else {
		d.ingress.add(f, protocol)
	}
}

func (d *draft) policy() networkingv1.NetworkPolicy {
	p := networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Name: d.name, Namespace: d.namespace, Labels: managedBy},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: d.selector},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
		},
	}
	for _, r := range d.ingress.merged() {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: d.peers(r.peers), Ports: r.ports()})
	}
	for _, r := range d.egress.merged() {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: d.peers(r.peers), Ports: r.ports()})
	}
	return p
}

func (d *draft) peers(all []peer) []networkingv1.NetworkPolicyPeer {
	var peers []networkingv1.NetworkPolicyPeer
	for _, p := range all {
		if !p.isPods() {
			cidr := netip.PrefixFrom(p.addr, p.addr.BitLen()).String()
			peers = append(peers, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr}})
			continue
		}
		to := networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: p.selector}}
		if p.namespace != d.namespace {
			to.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: p.namespace}}
		}
		peers = append(peers, to)
	}
	return peers
}

// rules are the ports of each peer, by its key.
type rules map[string]*allowed

type allowed struct {
	peer  peer
	ports map[portOf]bool
}

type portOf struct {
	protocol policy.Protocol
	port     uint16
}

func (r rules) add(f flow, protocol policy.Protocol) {
	if r[f.peer.key()] == nil {
		r[f.peer.key()] = &allowed{peer: f.peer, ports: map[portOf]bool{}}
	}
	r[f.peer.key()].ports[portOf{protocol, f.port}] = true
}

// rule allows every one of its ports to every one of its peers.
type rule struct {
	sorted []portOf
	peers  []peer
}

// merged is a rule for each set of ports, by ports, with the peers that have it:
// pods first, then addresses.
func (r rules) merged() []rule {
	byPorts := map[string]*rule{}
	for _, key := range slices.Sorted(maps.Keys(r)) {
		sorted := slices.SortedFunc(maps.Keys(r[key].ports), comparePorts)
		id := fmt.Sprint(sorted)
		if byPorts[id] == nil {
			byPorts[id] = &rule{sorted: sorted}
		}
		byPorts[id].peers = append(byPorts[id].peers, r[key].peer)
	}
	var all []rule
	for _, merged := range byPorts {
		slices.SortFunc(merged.peers, comparePeers)
		all = append(all, *merged)
	}
	slices.SortFunc(all, func(a, b rule) int { return slices.CompareFunc(a.sorted, b.sorted, comparePorts) })
	return all
}

func (r rule) ports() []networkingv1.NetworkPolicyPort {
	var ports []networkingv1.NetworkPolicyPort
	for _, p := range r.sorted {
		protocol, port := corev1.Protocol(p.protocol), intstr.FromInt32(int32(p.port))
		ports = append(ports, networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &port})
	}
	return ports
}

func comparePorts(a, b portOf) int {
	return cmp.Or(cmp.Compare(a.port, b.port), cmp.Compare(a.protocol, b.protocol))
}

func comparePeers(a, b peer) int {
	return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.key(), b.key()))
}
