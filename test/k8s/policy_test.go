// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// write puts a file beside what the runs have printed.
func (c *cluster) write(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(c.Dir, name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// describe writes what `netgadget policy` reads of the cluster.
func (c *cluster) describe(t *testing.T) string {
	t.Helper()
	return c.write(t, "cluster.json", []byte(c.must(t, "get", "services,endpointslices,pods,namespaces", "-A", "-o", "json")))
}

// policy runs `netgadget policy`, and returns what it prints and its exit status.
func policy(t *testing.T, args ...string) (out string, status int) {
	t.Helper()
	cmd := exec.Command(*netgadget, append([]string{"policy"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	printed, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if status != 0 {
		t.Logf("netgadget policy %s: exit status %d: %s%s", strings.Join(args, " "), status, printed, stderr.String())
	}
	return string(printed), status
}

// TestPoliciesAllowWhatThePodsDid makes them of events and of rows, which is the same, has the API server judge them, and
// asks what they would have blocked.
func TestPoliciesAllowWhatThePodsDid(t *testing.T) {
	all := watched(t)
	c, cluster := theCluster, theCluster.describe(t)
	made := map[string]string{}
	for _, run := range []string{"events", "counts"} {
		seen := c.write(t, "seen-"+run+".json", linesOf(t, run, all.traffic.isCall))
		policies, status := policy(t, "--format", "k8s", "--cluster", cluster, seen)
		if status != 0 {
			t.Fatal("no policies")
		}
		made[run] = policies
		file := c.write(t, "policies-"+run+".yaml", []byte(policies))
		c.must(t, "apply", "--dry-run=server", "-f", file)
		for _, app := range []string{"buyer", "web", "clerk", "stock"} {
			if !strings.Contains(policies, "app: "+app) {
				t.Errorf("of %s: no policy of %s", run, app)
			}
		}
		if blocked, status := policy(t, "--check", file, "--cluster", cluster, seen); status != 0 {
			t.Errorf("of %s: they block what they were made of: %s", run, blocked)
		}
		probed := c.write(t, "probes-"+run+".json", linesOf(t, run, func(e event) bool { return all.traffic.has(e) && !isNoProbe(e) }))
		if _, status := policy(t, "--check", file, "--cluster", cluster, probed); status != 1 {
			t.Errorf("of %s: wanted what was not seen to be blocked, got exit status %d", run, status)
		}
	}
	if made["events"] != made["counts"] {
		t.Errorf("of events they are\n%s\nof counts\n%s", made["events"], made["counts"])
	}
}

// TestIGMakesPoliciesOfTheCounts has the API server judge those of IG's own operator, and asks what they would have blocked:
// IG takes the port of a Service for that of its pods, and an address of IPv6 for a prefix of 32 bits.
func TestIGMakesPoliciesOfTheCounts(t *testing.T) {
	all := watched(t)
	c := theCluster
	file := c.printedBy(advice.name)
	c.must(t, "apply", "--dry-run=server", "-f", file)
	policies, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if wide := outside[1].Addr().String() + "/32"; !strings.Contains(string(policies), wide) {
		t.Errorf("wanted %s in\n%s", wide, policies)
	}
	seen := c.write(t, "seen-all.json", linesOf(t, "counts", all.traffic.isCall))
	const wanted = "shop/buyer (wget) -> the Service depot/stock at 80/TCP (pods' 8080): not in shop/buyer-network\n"
	if blocked, _ := policy(t, "--check", file, "--cluster", c.describe(t), seen); blocked != wanted {
		t.Errorf("they would block:\n%swanted:\n%s", blocked, wanted)
	}
}
