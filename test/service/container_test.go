// SPDX-License-Identifier: Apache-2.0

package service

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gadget.example/network/test/e2e/attempt"
)

const containerID = "service-test"

// containerSpec is a container with the host's process IDs, and with the mount and network namespaces by which IG tells containers.
func containerSpec() specs.Spec {
	capabilities := []string{"CAP_NET_BIND_SERVICE"}
	return specs.Spec{
		Version: "1.0.2", // of the specification
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: []string{"/agent"}, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
		},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
		}},
	}
}

// startContainer starts an agent in a container of runc's. It ends with the test.
func startContainer(t *testing.T) *agent {
	t.Helper()
	const bundle = "/opt/" + containerID // not below /run, where no device can be opened
	config, err := json.Marshal(containerSpec())
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(guestAgent)
	if err != nil {
		t.Fatal(err)
	}
	do(t, "mkdir", "-p", bundle+"/rootfs/proc", bundle+"/rootfs/sys")
	t.Cleanup(func() { do(t, "rm", "-r", bundle) })
	for file, content := range map[string][]byte{"config.json": config, "rootfs/agent": program} {
		if err := os.WriteFile(filepath.Join(systemRoot, bundle, file), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	pidFile := bundle + "/pid"
	a := &agent{}
	create := inSystem("runc", "create", "--bundle", bundle, "--pid-file", pidFile, containerID)
	wait, err := a.start(create)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { do(t, "runc", "delete", "--force", containerID); do(t, "rmdir", "/run/runc") })
	if err := wait(); err != nil {
		t.Fatalf("runc create: %v", err)
	}
	// As container managers do: when they read it, IG has learnt of the container.
	pid := do(t, "cat", pidFile)
	if a.netNS, err = netNSOf(strings.TrimSpace(pid)); err != nil {
		t.Fatal(err)
	}
	do(t, "runc", "start", containerID)
	return a
}

// TestAContainerIsKnownToTheService, whose confinement leaves IG the watch for container runtimes.
func TestAContainerIsKnownToTheService(t *testing.T) {
	needsGuest(t)
	before := tree(t, places)
	do(t, "netgadget", "install", "--now")
	invocation := show(t, "InvocationID")
	t.Run("as soon as it starts", func(t *testing.T) {
		container := startContainer(t)
		dst := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), closedPort)
		report := container.do(t, attempt.Request{Protocol: attempt.UDP, Dst: dst})
		do(t, "systemctl", "stop", unit)
		var found []event
		for _, e := range journal(t, invocation) {
			if e.container != "" {
				found = append(found, e)
			}
		}
		sent := event{
			netNS: container.netNS, egress: true, protocol: "UDP", src: report.Src, dst: report.Dst, kind: "attempt",
			comm: report.Process.Comm, pid: report.Process.PID, uid: report.Process.UID, container: containerID,
		}
		// Nobody's, but in the container's network namespace.
		received := event{
			netNS: container.netNS, protocol: "UDP", src: report.Src, dst: report.Dst, kind: "attempt", container: containerID,
		}
		compare(t, found, []event{sent, received})
	})
	if said := do(t, "journalctl", "--output=cat", "_SYSTEMD_INVOCATION_ID="+invocation); strings.Contains(said, "warning") {
		t.Errorf("wanted containers to be watched, the service said\n%s", said)
	}
	do(t, "netgadget", "uninstall")
	wantSame(t, places, before)
}
