// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// guestRunc is one of the places where ig looks for container runtimes.
const guestRunc = "/usr/bin/runc"

func wantRunc(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skipf("needs a container runtime: %v (Debian, Ubuntu: apt-get install runc)", err)
	}
}

// startContainer starts an agent in a container of runc's with a network
// namespace of its own. It ends with the test.
func startContainer(t *testing.T, name string) *agent {
	t.Helper()
	bundle := filepath.Join(t.TempDir(), name)
	rootfs := filepath.Join(bundle, "rootfs")
	for _, dir := range []string{"proc", "sys"} {
		if err := os.MkdirAll(filepath.Join(rootfs, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile(artifact(agentBinary))
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(containerSpec(name))
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string][]byte{"rootfs/agent": program, "config.json": config} {
		if err := os.WriteFile(filepath.Join(bundle, file), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// ig holds up who executes runc until it has taken note, and this process is
	// ig: it cannot wait for itself (Go's fork holds up its garbage collector).
	runc := func(args ...string) *exec.Cmd {
		return exec.Command("/bin/sh", append([]string{"-c", `exec runc "$@"`, "sh"}, args...)...)
	}
	t.Cleanup(func() {
		if out, err := runc("delete", "--force", name).CombinedOutput(); err != nil {
			t.Errorf("runc delete: %v: %s", err, out)
		}
	})
	// As container managers start one: when they read the file with the process
	// ID, IG has learnt of it. The guest's root is an initramfs, which cannot be
	// pivoted away.
	pid := filepath.Join(bundle, "pid")
	a := startAgentCommand(t, hostNamespace(t), runc("create", "--no-pivot", "--bundle", bundle, "--pid-file", pid, name))
	if err := a.created(); err != nil {
		t.Fatalf("runc create: %v", err)
	}
	if _, err := os.ReadFile(pid); err != nil {
		t.Fatal(err)
	}
	if out, err := runc("start", name).CombinedOutput(); err != nil {
		t.Fatalf("runc start: %v: %s", err, out)
	}
	return a
}

// containerSpec is a container with the host's process IDs, so that an agent
// knows its own as IG does, and with the mount and network namespaces of its own
// by which IG tells containers.
func containerSpec(name string) specs.Spec {
	capabilities := []string{"CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW"}
	return specs.Spec{
		Version: "1.0.2", // of the specification, as the oldest runc of use takes it
		Root:    &specs.Root{Path: "rootfs"},
		// By which containerd names containers, and ig finds the names.
		Annotations: map[string]string{
			"io.kubernetes.cri.container-type":    "container",
			"io.kubernetes.cri.container-name":    name,
			"io.kubernetes.cri.sandbox-name":      "e2e",
			"io.kubernetes.cri.sandbox-namespace": "e2e",
		},
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

// TestAContainerIsWatchedFromItsStartAndByItsName starts two containers while
// the gadget watches, by the name of one: it reports that one's attempts, and what
// arrives where nobody in it listens.
func TestAContainerIsWatchedFromItsStartAndByItsName(t *testing.T) {
	wantRunc(t)
	for _, filter := range []string{"", "e2e-one"} {
		t.Run("k8s-containername="+filter, func(t *testing.T) {
			params := map[string]string{"host": "false"}
			if filter != "" {
				// --containername is by the name that a runtime's daemon gives.
				params["k8s-containername"] = filter
			}
			var truth []want
			events := watch(t, gadget.Options{Params: params}, func() {
				for _, name := range []string{"e2e-one", "e2e-two"} {
					calls := callFrom(t, startContainer(t, name))
					if filter == "" || filter == name {
						truth = append(truth, calls...)
					}
				}
			})
			compare(t, events, truth)
		})
	}
}

// callFrom makes calls within a container, and returns the events that follow.
func callFrom(t *testing.T, container *agent) []want {
	t.Helper()
	self := netip.MustParseAddr("127.77.0.1")
	var truth []want
	for _, protocol := range []attempt.Protocol{attempt.TCP, attempt.UDP} {
		request := attempt.Request{
			Protocol: protocol, Src: netip.AddrPortFrom(self, 0), Dst: netip.AddrPortFrom(self, closedPort),
		}
		report := container.do(t, request)
		var stat unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", report.Process.PID), &stat); err != nil {
			t.Fatal(err)
		}
		ns := &namespace{name: "container", inode: uint32(stat.Ino)}
		truth = append(truth, wants(report, protocol, ns, ns, attempt.Process{}, request.String())...)
	}
	return truth
}
