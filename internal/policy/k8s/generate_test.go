// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gadget.example/network/internal/policy"
	"gadget.example/network/internal/policy/k8s"
)

// Pods of two namespaces.
var (
	web = policy.Pod{
		Namespace: "shop", Name: "web-5d8f-a", Owner: policy.Owner{Kind: "Deployment", Name: "web"},
		Labels: map[string]string{"app": "web", "pod-template-hash": "5d8f"},
		IP:     addr("10.244.0.7"), NodeIP: addr("192.0.2.1"),
	}
	database = policy.Pod{
		Namespace: "db", Name: "postgres-0", Owner: policy.Owner{Kind: "StatefulSet", Name: "postgres"},
		Labels: map[string]string{"app": "postgres", "statefulset.kubernetes.io/pod-name": "postgres-0", "apps.kubernetes.io/pod-index": "0"},
		IP:     addr("10.244.0.8"),
	}
	proxy = policy.Pod{
		Namespace: "kube-system", Name: "kube-proxy-x", Owner: policy.Owner{Kind: "DaemonSet", Name: "kube-proxy"},
		Labels: map[string]string{"k8s-app": "kube-proxy"}, HostNetwork: true, IP: addr("192.0.2.1"), NodeIP: addr("192.0.2.1"),
	}
	postgres = policy.Peer{
		Addr: addr("10.96.0.20"), Kind: policy.PeerService, Namespace: "db", Name: "postgres", Selector: map[string]string{"app": "postgres"},
	}
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func raw(s string) policy.Peer { return policy.Peer{Addr: addr(s), Kind: policy.PeerAddress} }

func as(p policy.Pod) policy.Peer {
	return policy.Peer{Addr: p.IP, Kind: policy.PeerPod, Namespace: p.Namespace, Name: p.Name, Labels: p.Labels}
}

func sent(from policy.Pod, to policy.Peer, port uint16) policy.Connection {
	return policy.Connection{Process: "client", Egress: true, Local: from, Peer: to, Protocol: policy.TCP, Port: port, Attempts: 1}
}

func received(at policy.Pod, from policy.Peer, port uint16) policy.Connection {
	return policy.Connection{Process: "server", Local: at, Peer: from, Protocol: policy.TCP, Port: port, Attempts: 1}
}

func overUDP(c policy.Connection) policy.Connection { c.Protocol = policy.UDP; return c }

func ofNobody(c policy.Connection) policy.Connection { c.Process = ""; return c }

func own(c policy.Connection, s string) policy.Connection { c.Own = addr(s); return c }

// summary is policies in short: NAME SELECTOR, then < or > for each rule, its peers
// and its ports.
func summary(t *testing.T, recorded []policy.Connection, cluster *k8s.Cluster) (string, []string) {
	t.Helper()
	policies, notes := k8s.Generate(recorded, cluster)
	var text strings.Builder
	for _, p := range policies {
		text.WriteString(p.Namespace + "/" + p.Name + " " + labelsText(p.Spec.PodSelector.MatchLabels) + "\n")
		for _, r := range p.Spec.Ingress {
			text.WriteString("  < " + peersText(r.From) + " at " + portsText(r.Ports) + "\n")
		}
		for _, r := range p.Spec.Egress {
			text.WriteString("  > " + peersText(r.To) + " at " + portsText(r.Ports) + "\n")
		}
	}
	var said []string
	for _, n := range notes {
		said = append(said, n.String())
	}
	return text.String(), said
}

func TestMakesPolicies(t *testing.T) {
	second := web
	second.Name, second.IP = "web-77aa-b", addr("10.244.0.9")
	second.Labels = map[string]string{"app": "web", "pod-template-hash": "77aa", "canary": "yes"}
	alone := policy.Pod{Namespace: "shop", Name: "debug", Labels: map[string]string{"run": "debug"}, IP: addr("10.244.0.10")}
	bare := policy.Pod{Namespace: "shop", Name: "bare", IP: addr("10.244.0.11")}
	cron := policy.Pod{
		Namespace: "shop", Name: "report-29011234-x", Owner: policy.Owner{Kind: "CronJob", Name: "report"},
		Labels: map[string]string{"app": "report", "job-name": "report-29011234", "batch.kubernetes.io/controller-uid": "1"},
	}
	late := policy.Peer{Addr: web.IP, Kind: policy.PeerAddress} // before its pod was known
	const left = "left out: 1 row "
	for name, test := range map[string]struct {
		recorded []policy.Connection
		want     string
		notes    []string
	}{
		"both sides of two pods": {
			[]policy.Connection{sent(web, as(database), 5432), received(database, as(web), 5432)},
			"db/postgres app=postgres\n  < shop:app=web at 5432/TCP\nshop/web app=web\n  > db:app=postgres at 5432/TCP\n", nil,
		},
		"the same namespace needs no namespaceSelector": {
			[]policy.Connection{sent(web, as(alone), 80), received(alone, as(web), 80)},
			"shop/debug run=debug\n  < app=web at 80/TCP\nshop/web app=web\n  > run=debug at 80/TCP\n", nil,
		},
		"a workload is what all its pods have in common": {
			[]policy.Connection{sent(web, raw("198.51.100.1"), 443), sent(second, raw("198.51.100.1"), 443), received(database, as(second), 5432)},
			"db/postgres app=postgres\n  < shop:app=web at 5432/TCP\nshop/web app=web\n  > 198.51.100.1/32 at 443/TCP\n", nil,
		},
		"addresses of both families, and their ports together": {
			[]policy.Connection{
				sent(web, raw("2001:db8::5"), 443), sent(web, raw("198.51.100.1"), 443),
				overUDP(sent(web, raw("198.51.100.9"), 53)), sent(web, raw("198.51.100.9"), 53),
			},
			"shop/web app=web\n  > 198.51.100.9/32 at 53/TCP,53/UDP\n  > 198.51.100.1/32,2001:db8::5/128 at 443/TCP\n", nil,
		},
		"a pod in its node's network is an address": {
			[]policy.Connection{received(web, policy.Peer{Addr: addr("192.0.2.9")}, 80), sent(web, policy.Peer{Addr: addr("192.0.2.9")}, 9100)},
			"shop/web app=web\n  < 192.0.2.9/32 at 80/TCP\n  > 192.0.2.9/32 at 9100/TCP\n", nil,
		},
		"and is selected by no policy": {
			[]policy.Connection{sent(proxy, raw("198.51.100.1"), 443), sent(web, raw("198.51.100.1"), 443)},
			"shop/web app=web\n  > 198.51.100.1/32 at 443/TCP\n",
			[]string{left + "of pods in their node's network, which no NetworkPolicy selects"},
		},
		"loopback, itself, its node, the host": {
			[]policy.Connection{
				sent(web, raw("127.0.0.1"), 80), received(web, raw("::1"), 80), sent(web, as(web), 80), received(web, raw("10.244.0.7"), 80),
				received(web, raw("192.0.2.1"), 8080), sent(policy.Pod{}, raw("198.51.100.1"), 443), sent(web, raw("192.0.2.1"), 10250),
			},
			"shop/web app=web\n  > 192.0.2.1/32 at 10250/TCP\n",
			[]string{
				"left out: 2 rows within a pod (loopback), which no policy blocks",
				left + "of no pod: a NetworkPolicy selects pods",
				"left out: 2 rows of a pod with itself, which no policy blocks",
				left + "from a pod's own node, which no policy blocks",
			},
		},
		"attempts: what was sent is allowed, what came where nobody listens is not": {
			[]policy.Connection{
				sent(web, raw("198.51.100.1"), 81), ofNobody(received(web, as(database), 22)), ofNobody(received(web, as(database), 80)), received(web, raw("198.51.100.1"), 80),
			},
			"shop/web app=web\n  < db:app=postgres,198.51.100.1/32 at 80/TCP\n  > 198.51.100.1/32 at 81/TCP\n",
			[]string{left + "to a port of a pod where nobody was seen to listen: not allowed"},
		},
		"a Service's port is its pods'": {
			[]policy.Connection{sent(web, postgres, 5432), received(database, as(web), 15432)},
			"db/postgres app=postgres\n  < shop:app=web at 15432/TCP\nshop/web app=web\n  > db:app=postgres at 15432/TCP\n", nil,
		},
		"what the client calls itself is told apart": {
			[]policy.Connection{
				sent(web, postgres, 5432), received(database, as(web), 15432), sent(web, as(database), 9090), received(database, as(web), 9090),
			},
			"db/postgres app=postgres\n  < shop:app=web at 9090/TCP,15432/TCP\nshop/web app=web\n  > db:app=postgres at 9090/TCP,15432/TCP\n", nil,
		},
		"a Service's port, when a node's address is in place of the client's": {
			[]policy.Connection{sent(web, postgres, 5432), received(database, policy.Peer{Addr: addr("192.0.2.9")}, 15432)},
			"db/postgres app=postgres\n  < 192.0.2.9/32 at 15432/TCP\nshop/web app=web\n  > db:app=postgres at 15432/TCP\n",
			[]string{"shop/web: the Service db/postgres was called at 5432/TCP, and at which port its pods got that was not seen: 15432 is allowed; with --cluster theirs is"},
		},
		"a Service's port, when nobody answered": {
			[]policy.Connection{sent(web, postgres, 5432)},
			"shop/web app=web\n  > db:app=postgres at 5432/TCP\n",
			[]string{"shop/web: the Service db/postgres was called at 5432/TCP, and at which port its pods got that was not seen: 5432 is allowed; with --cluster theirs is"},
		},
		"a Service of pods in their node's network": {
			[]policy.Connection{
				sent(web, policy.Peer{Addr: addr("10.96.0.30"), Kind: policy.PeerService, Namespace: "kube-system", Name: "proxies", Selector: proxy.Labels}, 80),
				received(proxy, as(web), 10249),
			},
			"shop/web app=web\n  > 192.0.2.1/32 at 10249/TCP\n",
			[]string{left + "of pods in their node's network, which no NetworkPolicy selects"},
		},
		"a Service without a selector": {
			[]policy.Connection{sent(web, policy.Peer{Addr: addr("10.96.0.1"), Kind: policy.PeerService, Namespace: "default", Name: "kubernetes"}, 443)},
			"shop/web app=web\n  > 10.96.0.1/32 at 443/TCP\n",
			[]string{"shop/web: the Service default/kubernetes has no selector: its own address 10.96.0.1 is allowed, which engines that judge after DNAT do not see; with --cluster those of its endpoints are"},
		},
		"an address that became known as a pod's": {
			[]policy.Connection{received(database, late, 5432), received(database, as(web), 5432)},
			"db/postgres app=postgres\n  < shop:app=web at 5432/TCP\n", nil,
		},
		"a pod's address of the other family, which its own events tell": {
			[]policy.Connection{own(sent(web, raw("2001:db8::5"), 443), "fd00:244::7"), received(database, raw("fd00:244::7"), 5432)},
			"db/postgres app=postgres\n  < shop:app=web at 5432/TCP\nshop/web app=web\n  > 2001:db8::5/128 at 443/TCP\n", nil,
		},
		"an address that was one pod's, then another's": {
			[]policy.Connection{
				received(database, late, 5432), received(database, as(web), 5432),
				received(database, policy.Peer{Addr: web.IP, Kind: policy.PeerPod, Namespace: "shop", Name: "debug", Labels: alone.Labels}, 5432),
			},
			"db/postgres app=postgres\n  < shop:app=web,shop:run=debug,10.244.0.7/32 at 5432/TCP\n", nil,
		},
		"labels of one run of a CronJob": {
			[]policy.Connection{sent(cron, raw("198.51.100.1"), 443)},
			"shop/report app=report\n  > 198.51.100.1/32 at 443/TCP\n", nil,
		},
		"no label": {
			[]policy.Connection{sent(bare, raw("198.51.100.1"), 443), received(web, as(bare), 80)},
			"shop/web app=web\n  < 10.244.0.11/32 at 80/TCP\n",
			[]string{
				left + "of pods without a label of their workload, by which a policy could select them",
				"shop/web: the pod shop/bare has no label of its workload: it is allowed by its address 10.244.0.11, which it loses with its end",
			},
		},
		"workloads with the same labels share a policy": {
			[]policy.Connection{
				sent(web, raw("198.51.100.1"), 443),
				sent(policy.Pod{Namespace: "shop", Name: "a-0", Owner: policy.Owner{Kind: "StatefulSet", Name: "a"}, Labels: map[string]string{"app": "web"}}, raw("198.51.100.1"), 80),
			},
			"shop/a app=web\n  > 198.51.100.1/32 at 80/TCP,443/TCP\n", nil,
		},
		"a selector that selects others too": {
			[]policy.Connection{
				sent(web, raw("198.51.100.1"), 443),
				sent(policy.Pod{Namespace: "shop", Name: "b-0", Owner: policy.Owner{Kind: "StatefulSet", Name: "b"}, Labels: map[string]string{"app": "web", "tier": "x"}}, raw("198.51.100.1"), 80),
			},
			"shop/b app=web,tier=x\n  > 198.51.100.1/32 at 80/TCP\nshop/web app=web\n  > 198.51.100.1/32 at 443/TCP\n",
			[]string{"shop/web: its selector app=web also selects the pods of StatefulSet b"},
		},
		"a Deployment and a StatefulSet of one name": {
			[]policy.Connection{
				sent(web, raw("198.51.100.1"), 443),
				sent(policy.Pod{Namespace: "shop", Name: "web-0", Owner: policy.Owner{Kind: "StatefulSet", Name: "web"}, Labels: map[string]string{"app": "x"}}, raw("198.51.100.1"), 80),
			},
			"shop/web-deployment app=web\n  > 198.51.100.1/32 at 443/TCP\nshop/web-statefulset app=x\n  > 198.51.100.1/32 at 80/TCP\n", nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, notes := summary(t, test.recorded, nil)
			require.Equal(t, test.want, got)
			require.Equal(t, test.notes, notes)

			report, err := k8s.Check(policiesOf(test.recorded, nil), test.recorded, nil)
			require.NoError(t, err)
			require.Empty(t, report.Blocked, "of its own recording")
		})
	}
}

func TestOrderOfRowsChangesNothing(t *testing.T) {
	recorded := []policy.Connection{
		sent(web, postgres, 5432), received(database, as(web), 15432), sent(web, raw("2001:db8::5"), 443), sent(web, raw("198.51.100.1"), 443),
		overUDP(sent(web, raw("198.51.100.9"), 53)), received(web, as(database), 80), received(web, raw("198.51.100.1"), 80),
	}
	want, _ := summary(t, recorded, nil)
	for range recorded {
		recorded = append(recorded[1:], recorded[0])
		got, _ := summary(t, append(recorded, recorded...), nil)
		require.Equal(t, want, got)
	}
}
