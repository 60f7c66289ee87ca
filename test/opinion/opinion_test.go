// SPDX-License-Identifier: Apache-2.0

// Package opinion asks a second evaluator of NetworkPolicies, cyclonus, whose tests
// network plugins are checked with, what the policies allow that are made of random
// traffic, and whether it decides others as internal/policy/k8s does. It is a module of
// its own: what that depends on must not move what IG depends on.
package opinion

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/mattfenwick/cyclonus/pkg/matcher"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"gadget.example/network/internal/policy"
	"gadget.example/network/internal/policy/k8s"
	"gadget.example/network/test/cluster"
)

// second decides by cyclonus.
type second struct{ *matcher.Policy }

func newSecond(policies []networkingv1.NetworkPolicy) second {
	all := make([]*networkingv1.NetworkPolicy, len(policies))
	for i := range policies {
		all[i] = &policies[i]
	}
	return second{matcher.BuildNetworkPolicies(false, all)}
}

func (s second) allows(pod k8s.Endpoint, egress bool, peer k8s.Endpoint, protocol policy.Protocol, port uint16) bool {
	traffic := &matcher.Traffic{
		Source: peerOf(peer), Destination: peerOf(pod), ResolvedPort: int(port), Protocol: corev1.Protocol(protocol),
	}
	if egress {
		traffic.Source, traffic.Destination = traffic.Destination, traffic.Source
	}
	return s.IsIngressOrEgressAllowed(traffic, !egress).IsAllowed()
}

func peerOf(e k8s.Endpoint) *matcher.TrafficPeer {
	p := &matcher.TrafficPeer{IP: e.Addr.String()}
	if e.Namespace != "" {
		p.Internal = &matcher.InternalPeer{
			Namespace: e.Namespace, NamespaceLabels: map[string]string{corev1.LabelMetadataName: e.Namespace}, PodLabels: e.Labels,
		}
	}
	return p
}

// TestPoliciesAllowWhatWasSeenAndNothingElse is that of internal/policy/k8s, by the
// other evaluator.
func TestPoliciesAllowWhatWasSeenAndNothingElse(t *testing.T) {
	var asked, allowed int
	for seed := range uint64(300) {
		c := cluster.New(seed)
		traffic := c.Traffic(30)
		policies, _ := k8s.Generate(traffic.Rows, nil)
		judge := newSecond(policies)
		for q := range c.Questions(traffic) {
			ok := judge.allows(podOf(q.Pod), q.Egress, k8s.Endpoint{
				Namespace: q.PeerNamespace(), Labels: q.PeerLabels(), Addr: q.Peer.Addr,
			}, q.Port.Protocol, q.Port.Number)
			asked++
			if ok {
				allowed++
			}
			if !q.May && ok != q.Want {
				t.Fatalf("cluster %d: %s: allowed %t, want %t", seed, q, ok, q.Want)
			}
		}
	}
	require.NotZero(t, allowed)
	t.Logf("%d questions, %d of them allowed", asked, allowed)
}

func podOf(p *cluster.Pod) k8s.Endpoint {
	return k8s.Endpoint{Namespace: p.Namespace, Labels: p.Labels, Addr: p.Addr}
}

// TestBothDecideAlike compares the two on random policies of every form, which are not
// made of traffic.
func TestBothDecideAlike(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var allowed, denied int
	for n := range 500 {
		text := make([]string, 1+random.IntN(3))
		for i := range text {
			text[i] = randomPolicy(random, i)
		}
		policies, err := k8s.ReadPolicies(strings.NewReader(strings.Join(text, "\n---\n")))
		require.NoError(t, err, text)
		set, err := k8s.NewSet(policies, nil)
		require.NoError(t, err, text)
		judge := newSecond(policies)
		for range 100 {
			pod, peer := randomEndpoint(random, true), randomEndpoint(random, random.IntN(3) > 0)
			egress, protocol, port := random.IntN(2) == 0, protocols[random.IntN(2)], uint16(78+random.IntN(5))
			got, _ := set.Allows(pod, egress, peer, protocol, port)
			want := judge.allows(pod, egress, peer, protocol, port)
			require.Equal(t, want, got, "case %d: %+v, egress %t, %+v at %d/%s, of\n%s", n, pod, egress, peer, port, protocol, strings.Join(text, "\n---\n"))
			if got {
				allowed++
			} else {
				denied++
			}
		}
	}
	require.Greater(t, min(allowed, denied), 5000)
	t.Logf("%d allowed, %d not", allowed, denied)
}

var protocols = []policy.Protocol{policy.TCP, policy.UDP}

func randomEndpoint(r *rand.Rand, pod bool) k8s.Endpoint {
	e := k8s.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(16))})}
	if r.IntN(2) == 0 {
		e.Addr = netip.AddrFrom16([16]byte{0xfd, 15: byte(r.IntN(16))})
	}
	if pod {
		e.Namespace = pick(r, "shop", "db")
		e.Labels = map[string]string{"app": pick(r, "a", "b")}
		if r.IntN(2) == 0 {
			e.Labels["tier"] = pick(r, "x", "y")
		}
	}
	return e
}

func pick(r *rand.Rand, from ...string) string { return from[r.IntN(len(from))] }

func randomPolicy(r *rand.Rand, i int) string {
	types := pick(r, "policyTypes: [Ingress]", "policyTypes: [Egress]", "policyTypes: [Ingress, Egress]")
	return fmt.Sprintf(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p%d, namespace: %s}
spec:
  podSelector: %s
  ingress: %s
  egress: %s
  %s`, i, pick(r, "shop", "db"), randomSelector(r), randomRules(r, "from"), randomRules(r, "to"), types)
}

// randomSelector has NotIn for a label that every pod has: of pods without it cyclonus
// says that it does not fit, and Kubernetes that it does.
func randomSelector(r *rand.Rand) string {
	return pick(r, "{}", "{matchLabels: {app: a}}", "{matchLabels: {app: b, tier: x}}",
		"{matchExpressions: [{key: tier, operator: Exists}]}", "{matchExpressions: [{key: tier, operator: DoesNotExist}]}",
		"{matchExpressions: [{key: app, operator: In, values: [a, c]}]}", "{matchExpressions: [{key: app, operator: NotIn, values: [b]}]}")
}

func randomRules(r *rand.Rand, direction string) string {
	rules := make([]string, r.IntN(3))
	for i := range rules {
		var parts []string
		if r.IntN(4) > 0 {
			peers := make([]string, 1+r.IntN(2))
			for j := range peers {
				peers[j] = randomPeer(r)
			}
			parts = append(parts, fmt.Sprintf("%s: [%s]", direction, strings.Join(peers, ", ")))
		}
		if r.IntN(4) > 0 {
			parts = append(parts, fmt.Sprintf("ports: [%s]", randomPort(r)))
		}
		rules[i] = "{" + strings.Join(parts, ", ") + "}"
	}
	return "[" + strings.Join(rules, ", ") + "]"
}

func randomPeer(r *rand.Rand) string {
	switch r.IntN(4) {
	case 0:
		return fmt.Sprintf("{podSelector: %s}", randomSelector(r))
	case 1:
		return fmt.Sprintf("{namespaceSelector: %s}", randomNamespaces(r))
	case 2:
		return fmt.Sprintf("{namespaceSelector: %s, podSelector: %s}", randomNamespaces(r), randomSelector(r))
	default:
		return pick(r, "{ipBlock: {cidr: 10.0.0.0/29}}", "{ipBlock: {cidr: 10.0.0.3/32}}", "{ipBlock: {cidr: 10.0.0.0/28, except: [10.0.0.4/30]}}",
			"{ipBlock: {cidr: 'fd00::/125'}}", "{ipBlock: {cidr: 'fd00::/124', except: ['fd00::8/127']}}")
	}
}

func randomNamespaces(r *rand.Rand) string {
	return pick(r, "{}", "{matchLabels: {kubernetes.io/metadata.name: db}}", "{matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [db]}]}")
}

func randomPort(r *rand.Rand) string {
	return pick(r, "{}", "{port: 80}", "{protocol: UDP}", "{protocol: UDP, port: 80}", "{port: 79, endPort: 81}", "{port: 78}, {protocol: UDP, port: 80, endPort: 82}")
}
