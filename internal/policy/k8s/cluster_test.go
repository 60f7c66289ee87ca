// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gadget.example/network/internal/policy"
	"gadget.example/network/internal/policy/k8s"
)

// known is a cluster as kubectl get -o json prints it, but for what is not read.
const known = `{"kind":"List","items":[
{"kind":"Namespace","metadata":{"name":"db","labels":{"kubernetes.io/metadata.name":"db","team":"data"}}},
{"kind":"ConfigMap","metadata":{"name":"left-alone"}},
{"kind":"Service","metadata":{"name":"kubernetes","namespace":"default"},"spec":{"clusterIPs":["10.96.0.1"],
	"ports":[{"name":"https","port":443,"protocol":"TCP","targetPort":6443}]}},
{"kind":"EndpointSlice","metadata":{"name":"kubernetes","namespace":"default","labels":{"kubernetes.io/service-name":"kubernetes"}},
	"addressType":"IPv4","ports":[{"name":"https","port":6443,"protocol":"TCP"}],"endpoints":[{"addresses":["192.0.2.1"]},{"addresses":["192.0.2.2"]}]},
{"kind":"Service","metadata":{"name":"postgres","namespace":"db"},"spec":{"clusterIPs":["10.96.0.20","fd00:96::20"],"externalIPs":["203.0.113.5"],"selector":{"app":"postgres"},
	"ports":[{"name":"sql","port":5432,"targetPort":"sql"},{"name":"dns","port":5432,"protocol":"UDP","targetPort":5353},{"name":"none","port":7,"targetPort":"none"},{"name":"number","port":8,"targetPort":8008},{"name":"same","port":9}]},
	"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.6"},{"hostname":"lb.example"}]}}},
{"kind":"EndpointSlice","metadata":{"name":"postgres-4","namespace":"db","labels":{"kubernetes.io/service-name":"postgres"}},"addressType":"IPv4",
	"ports":[{"name":"sql","port":15432,"protocol":"TCP"},{"name":"dns","port":5353,"protocol":"UDP"}],
	"endpoints":[{"addresses":["10.244.0.8"],"targetRef":{"kind":"Pod","namespace":"db","name":"postgres-0"}}]},
{"kind":"EndpointSlice","metadata":{"name":"postgres-6","namespace":"db","labels":{"kubernetes.io/service-name":"postgres"}},"addressType":"IPv6",
	"ports":[{"name":"sql","port":15436,"protocol":"TCP"}],
	"endpoints":[{"addresses":["fd00:244::8"],"targetRef":{"kind":"Pod","namespace":"db","name":"postgres-0"}}]},
{"kind":"Service","metadata":{"name":"nodes","namespace":"kube-system"},"spec":{"clusterIPs":["10.96.0.40"],"selector":{"app":"node"},"ports":[{"port":80,"targetPort":9100}]}},
{"kind":"EndpointSlice","metadata":{"name":"nodes","namespace":"kube-system","labels":{"kubernetes.io/service-name":"nodes"}},"addressType":"IPv4",
	"ports":[{"name":"","port":9100}],"endpoints":[{"addresses":["192.0.2.1"],"targetRef":{"kind":"Pod","namespace":"kube-system","name":"node-1"}}]},
{"kind":"Pod","metadata":{"name":"node-1","namespace":"kube-system","labels":{"app":"node"}},"spec":{"hostNetwork":true},"status":{"podIPs":[{"ip":"192.0.2.1"}]}},
{"kind":"Pod","metadata":{"name":"postgres-0","namespace":"db","labels":{"app":"postgres"}},"status":{"podIPs":[{"ip":"10.244.0.8"},{"ip":"fd00:244::8"}]}}
]}`

func clusterOf(t *testing.T, text string) *k8s.Cluster {
	t.Helper()
	c, err := k8s.ReadCluster(strings.NewReader(text))
	require.NoError(t, err)
	return c
}

func TestTheClusterTellsWhereCallsArrive(t *testing.T) {
	service := func(namespace, name, at string, selector map[string]string) policy.Peer {
		return policy.Peer{Addr: addr(at), Kind: policy.PeerService, Namespace: namespace, Name: name, Selector: selector}
	}
	const head = "shop/web app=web\n"
	for name, test := range map[string]struct {
		recorded policy.Connection
		want     string
		note     string
	}{
		"a port that has a name":            {sent(web, postgres, 5432), head + "  > db:app=postgres at 15432/TCP\n", ""},
		"the same number of UDP":            {overUDP(sent(web, postgres, 5432)), head + "  > db:app=postgres at 5353/UDP\n", ""},
		"an address of the other family":    {sent(web, raw("fd00:96::20"), 5432), head + "  > db:app=postgres at 15436/TCP\n", ""},
		"an external address":               {sent(web, raw("203.0.113.5"), 5432), head + "  > db:app=postgres at 15432/TCP\n", ""},
		"a load balancer's":                 {sent(web, raw("203.0.113.6"), 5432), head + "  > db:app=postgres at 15432/TCP\n", ""},
		"a pod's address of another family": {received(web, raw("fd00:244::8"), 80), head + "  < db:app=postgres at 80/TCP\n", ""},
		"no endpoint, and the pods' number": {sent(web, postgres, 8), head + "  > db:app=postgres at 8008/TCP\n", ""},
		"no endpoint, and the same number":  {sent(web, postgres, 9), head + "  > db:app=postgres at 9/TCP\n", ""},
		"no endpoint, and a name": {
			sent(web, postgres, 7), head, "shop/web: the Service db/postgres has no endpoint: nothing is allowed for its port 7/TCP",
		},
		"no such port": {
			sent(web, postgres, 1), head, "shop/web: the Service db/postgres has no port 1/TCP: nothing is allowed for it",
		},
		"no selector": {
			sent(web, service("default", "kubernetes", "10.96.0.1", nil), 443), head + "  > 192.0.2.1/32,192.0.2.2/32 at 6443/TCP\n", "",
		},
		"pods in their node's network": {
			sent(web, service("kube-system", "nodes", "10.96.0.40", map[string]string{"app": "node"}), 80), head + "  > 192.0.2.1/32 at 9100/TCP\n", "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, notes := summary(t, []policy.Connection{test.recorded}, clusterOf(t, known))
			require.Equal(t, test.want, got)
			if test.note == "" {
				require.Empty(t, notes)
			} else {
				require.Equal(t, []string{test.note}, notes)
			}
		})
	}
}

func TestTheClusterTellsLabelsOfNamespaces(t *testing.T) {
	set := newSet(t, spec("podSelector: {}", "ingress: [{from: [{namespaceSelector: {matchLabels: {team: data}}}]}]"), clusterOf(t, known))
	pod := k8s.Endpoint{Namespace: "shop"}
	ok, _ := set.Allows(pod, false, k8s.Endpoint{Namespace: "db"}, policy.TCP, 1)
	require.True(t, ok, "from db, of the team data")
	ok, by := set.Allows(pod, false, k8s.Endpoint{Namespace: "shop"}, policy.TCP, 1)
	require.False(t, ok, "from shop, of no team")
	require.Equal(t, []string{"shop/p"}, by)
}

func TestSaysWhatIsNoCluster(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"YAML":              {"kind: List\n", "not JSON as kubectl get -o json prints it: invalid character 'k' looking for beginning of value"},
		"one object":        {`{"kind":"Service"}`, `kind "Service" is not a list: kubectl get services,endpointslices,pods,namespaces -A -o json makes one`},
		"a port of letters": {`{"kind":"List","items":[{"kind":"Service","spec":{"ports":[{"port":"x"}]}}]}`, "item 1, a Service: json: cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := k8s.ReadCluster(strings.NewReader(test.text))
			require.EqualError(t, err, test.want)
		})
	}
}
