// SPDX-License-Identifier: Apache-2.0

// Package policies has a Kubernetes API server judge the NetworkPolicies that
// `netgadget policy` makes, and tell of the cluster what that reads.
package policies

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	networkingv1 "k8s.io/api/networking/v1"

	"gadget.example/network/internal/policy"
	"gadget.example/network/internal/policy/k8s"
	"gadget.example/network/test/cluster"
	"gadget.example/network/test/k8s/binaries"
	"gadget.example/network/test/k8s/controlplane"
)

// server is the one that all tests ask.
var server *controlplane.ControlPlane

func TestMain(m *testing.M) {
	status, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "policies:", err)
		status = 1
	}
	os.Exit(status)
}

func run(m *testing.M) (status int, err error) {
	dir, err := os.MkdirTemp("", "policies-*")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	programs, err := binaries.Kubernetes(ctx, "kube-apiserver", "kubectl")
	if err != nil {
		return 1, err
	}
	server, err = controlplane.Start(ctx, controlplane.Config{Programs: programs, Dir: dir, APIServerOnly: true})
	if err != nil {
		return 1, err
	}
	defer func() {
		if stopped := server.Stop(); stopped != nil && err == nil {
			status, err = 1, stopped
		}
	}()
	for _, namespace := range cluster.Namespaces {
		if out, err := server.Kubectl(ctx, "create", "namespace", namespace).CombinedOutput(); err != nil {
			return 1, fmt.Errorf("kubectl create namespace: %w: %s", err, out)
		}
	}
	return m.Run(), nil
}

// ask returns what kubectl prints on its standard output.
func ask(t *testing.T, stdin []byte, args ...string) []byte {
	t.Helper()
	cmd := server.Kubectl(t.Context(), args...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "kubectl %s: %s", strings.Join(args, " "), &stderr)
	return out
}

// validate has the server take policies without keeping them. What it makes of them,
// with all that it fills in, must be the same.
func validate(t *testing.T, policies []networkingv1.NetworkPolicy, notes []k8s.Note) {
	t.Helper()
	var text bytes.Buffer
	require.NoError(t, k8s.Write(&text, policies, notes))
	out := ask(t, text.Bytes(), "apply", "--dry-run=server", "-o", "yaml", "-f", "-")
	got, err := k8s.ReadPolicies(bytes.NewReader(out))
	require.NoError(t, err)
	require.Len(t, got, len(policies))
	for i := range got {
		require.Equal(t, policies[i].Name, got[i].Name)
		require.Equal(t, policies[i].Namespace, got[i].Namespace)
		require.Equal(t, policies[i].Spec, got[i].Spec, "%s/%s", got[i].Namespace, got[i].Name)
	}
}

// TestTheServerTakesWhatIsMadeOfTraffic validates those of random clusters: pods,
// Services, nodes and addresses of both families, of both protocols and directions.
func TestTheServerTakesWhatIsMadeOfTraffic(t *testing.T) {
	var all []networkingv1.NetworkPolicy
	for seed := range uint64(20) {
		policies, _ := k8s.Generate(cluster.New(seed).Traffic(30).Rows, nil)
		all = append(all, policies...)
	}
	require.Greater(t, len(all), 40)
	validate(t, all, nil)
}

// TestTheServerTakesEveryName validates those of workloads whose names are as long as
// Kubernetes lets them be, or are those of others, and what is said of them.
func TestTheServerTakesEveryName(t *testing.T) {
	var rows []policy.Connection
	for i, owner := range []policy.Owner{
		{Kind: "Deployment", Name: strings.Repeat("a", 253)},
		{Kind: "StatefulSet", Name: strings.Repeat("a", 253)},
		{Kind: "Deployment", Name: "b.c"},
		{Kind: "Job", Name: "b.c"},
		{},
	} {
		rows = append(rows, policy.Connection{
			Process: "client", Egress: true, Protocol: policy.TCP, Port: 65535,
			Local: policy.Pod{
				Namespace: "shop", Name: fmt.Sprintf("pod-%d", i), Owner: owner,
				Labels: map[string]string{"example.com/" + strings.Repeat("k", 63): strings.Repeat("v", 62) + fmt.Sprint(i), "empty": ""},
			},
			Peer: policy.Peer{Addr: netip.MustParseAddr("2001:db8::1"), Kind: policy.PeerService, Namespace: "default", Name: "kubernetes"},
		})
	}
	policies, notes := k8s.Generate(rows, nil)
	require.Len(t, policies, 5)
	require.Len(t, notes, 5)
	validate(t, policies, notes)
}

// backend is a Service without a selector, and its endpoints.
const backend = `{"apiVersion": "v1", "kind": "List", "items": [
{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "backend", "namespace": "shop"}, "spec": {"ports": [{"name": "https", "port": 443}]}},
{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "backend", "namespace": "shop", "labels": {"kubernetes.io/service-name": "backend"}},
	"addressType": "IPv4", "ports": [{"name": "https", "port": 6443}], "endpoints": [{"addresses": ["192.0.2.1"]}, {"addresses": ["192.0.2.2"]}]}]}`

// TestTheServerTellsWhereCallsArrive reads what kubectl says of a cluster, as the
// server completes it, for the call of an address that it has given to a Service.
func TestTheServerTellsWhereCallsArrive(t *testing.T) {
	ask(t, []byte(backend), "apply", "-f", "-")
	known := ask(t, nil, "get", "services,endpointslices,pods,namespaces", "-A", "-o", "json")
	c, err := k8s.ReadCluster(bytes.NewReader(known))
	require.NoError(t, err)
	given := ask(t, nil, "get", "service", "backend", "-n", "shop", "-o", "jsonpath={.spec.clusterIP}")
	policies, notes := k8s.Generate([]policy.Connection{{
		Process: "client", Egress: true, Protocol: policy.TCP, Port: 443,
		Local: policy.Pod{Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}},
		Peer:  policy.Peer{Addr: netip.MustParseAddr(string(given)), Kind: policy.PeerAddress},
	}}, c)
	require.Empty(t, notes)
	require.Len(t, policies, 1)
	rule := policies[0].Spec.Egress[0]
	require.Equal(t, "192.0.2.1/32", rule.To[0].IPBlock.CIDR)
	require.Equal(t, "192.0.2.2/32", rule.To[1].IPBlock.CIDR)
	require.Equal(t, "6443", rule.Ports[0].Port.String())
	validate(t, policies, notes)
}
