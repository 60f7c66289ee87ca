// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gadget.example/network/internal/policy"
	"gadget.example/network/internal/policy/k8s"
)

// spec is a NetworkPolicy p of the namespace shop.
func spec(lines ...string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  " + strings.Join(lines, "\n  ") + "\n"
}

func newSet(t *testing.T, policies string, cluster *k8s.Cluster) *k8s.Set {
	t.Helper()
	read, err := k8s.ReadPolicies(strings.NewReader(policies))
	require.NoError(t, err)
	set, err := k8s.NewSet(read, cluster)
	require.NoError(t, err)
	return set
}

// TestDecidesAsTheAPISays takes the rules one by one that are documented at
// NetworkPolicySpec of networking.k8s.io/v1.
func TestDecidesAsTheAPISays(t *testing.T) {
	pod := k8s.Endpoint{Namespace: "shop", Labels: map[string]string{"app": "web", "tier": "a"}}
	same := k8s.Endpoint{Namespace: "shop", Labels: map[string]string{"app": "x"}, Addr: addr("10.244.0.20")}
	other := k8s.Endpoint{Namespace: "db", Labels: map[string]string{"app": "x"}, Addr: addr("10.244.0.21")}
	outside := k8s.Endpoint{Addr: addr("198.51.100.7")}
	v6 := k8s.Endpoint{Addr: addr("2001:db8::7")}
	const (
		all = "podSelector: {}"
		in  = "policyTypes: [Ingress]"
		out = "policyTypes: [Egress]"
	)
	type ask struct {
		peer     k8s.Endpoint
		egress   bool
		protocol policy.Protocol
		port     uint16
		want     bool
	}
	for name, test := range map[string]struct {
		policies string
		asks     []ask
	}{
		"a pod that no policy selects is not isolated": {
			spec("podSelector: {matchLabels: {app: other}}", in), []ask{{outside, false, policy.TCP, 80, true}},
		},
		"nor is one of another namespace": {
			strings.Replace(spec(all, in), "namespace: shop", "namespace: db", 1), []ask{{outside, false, policy.TCP, 80, true}},
		},
		"a policy without rules allows nothing of its direction": {
			spec(all, in), []ask{{outside, false, policy.TCP, 80, false}, {outside, true, policy.TCP, 80, true}},
		},
		"without types it is one of ingress": {
			spec(all), []ask{{outside, false, policy.TCP, 80, false}, {outside, true, policy.TCP, 80, true}},
		},
		"and of egress, if it has rules for it": {
			spec(all, "egress: [{ports: [{port: 80}]}]"),
			[]ask{{outside, false, policy.TCP, 80, false}, {outside, true, policy.TCP, 80, true}, {outside, true, policy.TCP, 81, false}},
		},
		"an empty rule allows everything": {
			spec(all, in, "ingress: [{}]"), []ask{{outside, false, policy.UDP, 9, true}, {other, false, policy.TCP, 80, true}},
		},
		"policies add up": {
			spec(all, in) + "---\n" + spec(all, in, "ingress: [{ports: [{port: 80}]}]"),
			[]ask{{outside, false, policy.TCP, 80, true}, {outside, false, policy.TCP, 81, false}},
		},
		"a port without a protocol is TCP's": {
			spec(all, in, "ingress: [{ports: [{port: 53}]}]"), []ask{{outside, false, policy.TCP, 53, true}, {outside, false, policy.UDP, 53, false}},
		},
		"a protocol without a port has all": {
			spec(all, in, "ingress: [{ports: [{protocol: UDP}]}]"), []ask{{outside, false, policy.UDP, 53, true}, {outside, false, policy.TCP, 53, false}},
		},
		"a range has both its ends": {
			spec(all, out, "egress: [{ports: [{port: 100, endPort: 200}]}]"),
			[]ask{
				{outside, true, policy.TCP, 99, false},
				{outside, true, policy.TCP, 100, true},
				{outside, true, policy.TCP, 200, true},
				{outside, true, policy.TCP, 201, false},
			},
		},
		"a podSelector is of the policy's namespace": {
			spec(all, in, "ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]}]"),
			[]ask{{same, false, policy.TCP, 1, true}, {other, false, policy.TCP, 1, false}, {outside, false, policy.TCP, 1, false}},
		},
		"a namespaceSelector has all the pods of it": {
			spec(all, in, "ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: db}}}]}]"),
			[]ask{{other, false, policy.TCP, 1, true}, {same, false, policy.TCP, 1, false}, {outside, false, policy.TCP, 1, false}},
		},
		"both must fit, in one peer": {
			spec(all, in, "ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [x]}]}}]}]"),
			[]ask{{other, false, policy.TCP, 1, false}, {same, false, policy.TCP, 1, false}},
		},
		"either, in two": {
			spec(all, in, "ingress: [{from: [{namespaceSelector: {}}, {podSelector: {matchLabels: {app: y}}}]}]"),
			[]ask{{other, false, policy.TCP, 1, true}, {same, false, policy.TCP, 1, true}},
		},
		"an empty namespaceSelector has no addresses outside": {
			spec(all, in, "ingress: [{from: [{namespaceSelector: {}}]}]"), []ask{{outside, false, policy.TCP, 1, false}},
		},
		"a block, without its exceptions": {
			spec(all, out, "egress: [{to: [{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.8/29]}}]}]"),
			[]ask{{outside, true, policy.TCP, 1, true}, {k8s.Endpoint{Addr: addr("198.51.100.9")}, true, policy.TCP, 1, false}, {v6, true, policy.TCP, 1, false}},
		},
		"a block of IPv6": {
			spec(all, out, "egress: [{to: [{ipBlock: {cidr: '2001:db8::/64'}}]}]"), []ask{{v6, true, policy.TCP, 1, true}, {outside, true, policy.TCP, 1, false}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			set := newSet(t, test.policies, nil)
			for _, a := range test.asks {
				got, by := set.Allows(pod, a.egress, a.peer, a.protocol, a.port)
				require.Equal(t, a.want, got, "%+v", a)
				require.Equal(t, !a.want, len(by) > 0, "who isolates, of %+v", a)
			}
		})
	}
}

func TestSaysWhatCannotBeDecided(t *testing.T) {
	for name, test := range map[string]struct{ policies, want string }{
		"a port's name": {
			spec("podSelector: {}", "ingress: [{ports: [{port: http}]}]"),
			`policy shop/p: port "http" is a name, which each pod has for a number of its own: write the number`,
		},
		"labels of namespaces": {
			spec("podSelector: {}", "ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}]}]"),
			"policy shop/p: the label team of namespaces is not known: tell with --cluster",
		},
		"no CIDR": {
			spec("podSelector: {}", "ingress: [{from: [{ipBlock: {cidr: 198.51.100.1}}]}]"),
			`policy shop/p: ipBlock "198.51.100.1" is no CIDR`,
		},
		"no operator": {
			spec("podSelector: {matchExpressions: [{key: app, operator: Like}]}"),
			`policy shop/p: "Like" is not a valid label selector operator`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			read, err := k8s.ReadPolicies(strings.NewReader(test.policies))
			require.NoError(t, err)
			_, err = k8s.NewSet(read, nil)
			require.EqualError(t, err, test.want)
		})
	}
}

func TestReadsPolicies(t *testing.T) {
	one := spec("podSelector: {}")
	list := "apiVersion: v1\nkind: List\nitems:\n- " + strings.ReplaceAll(strings.TrimSpace(one), "\n", "\n  ") + "\n"
	for name, test := range map[string]struct {
		text string
		want int
		err  string
	}{
		"none":                {"# a comment\n", 0, ""},
		"two documents":       {one + "---\n" + one, 2, ""},
		"a list":              {list, 1, ""},
		"JSON":                {`{"kind":"NetworkPolicy","metadata":{"name":"p"},"spec":{"podSelector":{}}}`, 1, ""},
		"another kind":        {one + "---\nkind: Service\n", 0, `document 2: kind "Service" is no NetworkPolicy`},
		"a list of something": {strings.Replace(list, "kind: NetworkPolicy", "kind: Pod", 1), 0, `document 1: a list has a "Pod", which is no NetworkPolicy`},
		"a field it lacks":    {spec("podSelector: {}", "ingres: []"), 0, `document 1: error unmarshaling JSON: while decoding JSON: json: unknown field "ingres"`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := k8s.ReadPolicies(strings.NewReader(test.text))
			if test.err != "" {
				require.ErrorContains(t, err, test.err)
				return
			}
			require.NoError(t, err)
			require.Len(t, got, test.want)
		})
	}
}
