// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"gadget.example/network/internal/policy/k8s"
	"gadget.example/network/test/cluster"
)

// TestPoliciesAllowWhatWasSeenAndNothingElse asks of each pod, direction, peer and
// port of random clusters whether the policies that are made of their traffic allow
// it, and compares with what there was.
func TestPoliciesAllowWhatWasSeenAndNothingElse(t *testing.T) {
	var asked, allowed int
	for seed := range uint64(300) {
		c := cluster.New(seed)
		traffic := c.Traffic(30)
		policies, _ := k8s.Generate(traffic.Rows, nil)
		set, err := k8s.NewSet(policies, nil)
		require.NoError(t, err)
		for q := range c.Questions(traffic) {
			ok, by := set.Allows(endpoint(q.Pod), q.Egress, k8s.Endpoint{
				Namespace: q.PeerNamespace(), Labels: q.PeerLabels(), Addr: q.Peer.Addr,
			}, q.Port.Protocol, q.Port.Number)
			asked++
			if ok {
				allowed++
			}
			if !q.May && ok != q.Want {
				t.Fatalf("cluster %d: %s: allowed %t, want %t, by %v", seed, q, ok, q.Want, by)
			}
		}
		report, err := k8s.Check(policies, traffic.Rows, nil)
		require.NoError(t, err)
		require.Empty(t, report.Blocked, "cluster %d: of its own recording", seed)
	}
	require.NotZero(t, allowed)
	require.Greater(t, asked, 10*allowed)
	t.Logf("%d questions, %d of them allowed", asked, allowed)
}

func endpoint(p *cluster.Pod) k8s.Endpoint {
	return k8s.Endpoint{Namespace: p.Namespace, Labels: p.Labels, Addr: p.Addr}
}
