// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"strings"
	"testing"

	"gadget.example/network/test/k8s/binaries"
	"gadget.example/network/test/k8s/controlplane"
)

// TestTheServerChecksAPolicy has the API server say what it thinks of two objects, one of which is wrong.
func TestTheServerChecksAPolicy(t *testing.T) {
	programs, err := binaries.Kubernetes(t.Context(), "kube-apiserver", "kubectl")
	if err != nil {
		t.Fatal(err)
	}
	c, err := controlplane.Start(t.Context(), controlplane.Config{Programs: programs, Dir: t.TempDir(), APIServerOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	for _, test := range []struct{ cidr, says string }{
		{"192.0.2.1/32", "networkpolicy.networking.k8s.io/seen created (server dry run)"},
		{"2001:db8::1/128", "networkpolicy.networking.k8s.io/seen created (server dry run)"},
		{"192.0.2.1/33", "spec.egress[0].to[0].ipBlock.cidr: Invalid value"},
	} {
		cmd := c.Kubectl(t.Context(), "apply", "--dry-run=server", "-f", "-")
		cmd.Stdin = strings.NewReader(`{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "seen"},
			"spec": {"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "` + test.cidr + `"}}]}]}}`)
		out, err := cmd.CombinedOutput()
		if !strings.Contains(string(out), test.says) {
			t.Errorf("%s: wanted %q, got %q, %v", test.cidr, test.says, out, err)
		}
	}
}
