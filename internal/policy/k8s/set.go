// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"gadget.example/network/internal/policy"
)

// Endpoint is one end of a connection, as a policy engine sees it: a pod, or an
// address that is nobody's (then the namespace is empty).
type Endpoint struct {
	Namespace string
	Labels    map[string]string
	Addr      netip.Addr // zero: not known
}

// Set is NetworkPolicies, ready to decide.
type Set struct {
	policies   []compiled
	namespaces map[string]map[string]string
}

// compiled is one direction of one policy.
type compiled struct {
	name     name
	selector labels.Selector
	egress   bool
	rules    []compiledRule
}

type compiledRule struct {
	peers []compiledPeer // none: everybody
	ports []networkingv1.NetworkPolicyPort
}

type compiledPeer struct {
	pods, namespaces labels.Selector // both nil: a block
	sameNamespace    bool
	block            netip.Prefix
	except           []netip.Prefix
}

// NewSet prepares policies to decide. Of namespaces it knows the label with their
// name, and what the cluster, which may be nil, tells. An error says which policy
// cannot be decided, and why.
func NewSet(policies []networkingv1.NetworkPolicy, cluster *Cluster) (*Set, error) {
	s := &Set{}
	if cluster != nil {
		s.namespaces = cluster.namespaces
	}
	for i := range policies {
		if err := s.add(&policies[i]); err != nil {
			return nil, fmt.Errorf("policy %s/%s: %w", policies[i].Namespace, policies[i].Name, err)
		}
	}
	return s, nil
}

func (s *Set) add(p *networkingv1.NetworkPolicy) error {
	selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
	if err != nil {
		return err
	}
	one := compiled{name: name{namespaceOf(p), p.Name}, selector: selector}
	if isOf(p, networkingv1.PolicyTypeIngress, true) {
		one.rules = nil
		for _, r := range p.Spec.Ingress {
			if err := s.addRule(&one, r.From, r.Ports); err != nil {
				return err
			}
		}
		s.policies = append(s.policies, one)
	}
	// Where it says nothing, it is one of egress if it has rules for that.
	if isOf(p, networkingv1.PolicyTypeEgress, len(p.Spec.Egress) > 0) {
		one.rules, one.egress = nil, true
		for _, r := range p.Spec.Egress {
			if err := s.addRule(&one, r.To, r.Ports); err != nil {
				return err
			}
		}
		s.policies = append(s.policies, one)
	}
	return nil
}

// namespaceOf is where kubectl puts what says nothing.
func namespaceOf(p *networkingv1.NetworkPolicy) string {
	if p.Namespace == "" {
		return corev1.NamespaceDefault
	}
	return p.Namespace
}

func isOf(p *networkingv1.NetworkPolicy, kind networkingv1.PolicyType, unsaid bool) bool {
	if len(p.Spec.PolicyTypes) == 0 {
		return unsaid
	}
	return slices.Contains(p.Spec.PolicyTypes, kind)
}

func (s *Set) addRule(to *compiled, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) error {
	r := compiledRule{ports: ports}
	for _, p := range ports {
		if p.Port != nil && p.Port.Type == intstr.String {
			return fmt.Errorf("port %q is a name, which each pod has for a number of its own: write the number", p.Port.StrVal)
		}
	}
	for _, p := range peers {
		one, err := s.peer(p)
		if err != nil {
			return err
		}
		r.peers = append(r.peers, one)
	}
	to.rules = append(to.rules, r)
	return nil
}

func (s *Set) peer(p networkingv1.NetworkPolicyPeer) (c compiledPeer, err error) {
	if p.IPBlock != nil {
		if c.block, err = netip.ParsePrefix(p.IPBlock.CIDR); err != nil {
			return c, fmt.Errorf("ipBlock %q is no CIDR", p.IPBlock.CIDR)
		}
		for _, except := range p.IPBlock.Except {
			prefix, err := netip.ParsePrefix(except)
			if err != nil {
				return c, fmt.Errorf("ipBlock except %q is no CIDR", except)
			}
			c.except = append(c.except, prefix)
		}
		return c, nil
	}
	c.pods, c.namespaces = labels.Everything(), labels.Everything()
	c.sameNamespace = p.NamespaceSelector == nil
	if p.PodSelector != nil {
		if c.pods, err = metav1.LabelSelectorAsSelector(p.PodSelector); err != nil {
			return c, err
		}
	}
	if p.NamespaceSelector == nil {
		return c, nil
	}
	if c.namespaces, err = metav1.LabelSelectorAsSelector(p.NamespaceSelector); err != nil {
		return c, err
	}
	requirements, _ := c.namespaces.Requirements()
	for _, r := range requirements {
		if r.Key() != corev1.LabelMetadataName && s.namespaces == nil {
			return c, fmt.Errorf("the label %s of namespaces is not known: tell with --cluster", r.Key())
		}
	}
	return c, nil
}

// Allows tells whether policies let a pod send to a peer, or receive from it, at a
// port, and if not, which of them have isolated it. Only the pod's own side is
// decided: the peer, if it is a pod, has policies too.
func (s *Set) Allows(pod Endpoint, egress bool, peer Endpoint, protocol policy.Protocol, port uint16) (bool, []string) {
	var isolated []string
	for _, p := range s.policies {
		if p.egress != egress || p.name.namespace != pod.Namespace || !p.selector.Matches(labels.Set(pod.Labels)) {
			continue
		}
		for _, r := range p.rules {
			if r.hasPort(protocol, port) && s.hasPeer(r, pod, peer) {
				return true, nil
			}
		}
		isolated = append(isolated, p.name.String())
	}
	return len(isolated) == 0, isolated
}

func (r compiledRule) hasPort(protocol policy.Protocol, port uint16) bool {
	if len(r.ports) == 0 {
		return true
	}
	return slices.ContainsFunc(r.ports, func(p networkingv1.NetworkPolicyPort) bool {
		if protocolOf(p.Protocol) != protocol {
			return false
		}
		if p.Port == nil {
			return true
		}
		last := p.Port.IntVal
		if p.EndPort != nil {
			last = *p.EndPort
		}
		return p.Port.IntVal <= int32(port) && int32(port) <= last
	})
}

func (s *Set) hasPeer(r compiledRule, pod, peer Endpoint) bool {
	if len(r.peers) == 0 {
		return true
	}
	return slices.ContainsFunc(r.peers, func(p compiledPeer) bool {
		if p.pods == nil {
			return peer.Addr.IsValid() && p.block.Contains(peer.Addr) &&
				!slices.ContainsFunc(p.except, func(e netip.Prefix) bool { return e.Contains(peer.Addr) })
		}
		if peer.Namespace == "" || p.sameNamespace && peer.Namespace != pod.Namespace {
			return false
		}
		return p.namespaces.Matches(s.labelsOf(peer.Namespace)) && p.pods.Matches(labels.Set(peer.Labels))
	})
}

func (s *Set) labelsOf(namespace string) labels.Set {
	if known, ok := s.namespaces[namespace]; ok {
		return known
	}
	return labels.Set{corev1.LabelMetadataName: namespace}
}
