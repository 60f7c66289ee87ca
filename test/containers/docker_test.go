// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// manager is a program with docker's command line.
type manager struct{ program, runtime string }

func (m manager) ask(t *testing.T, format string, args ...any) string {
	t.Helper()
	return sh(t, m.program+" "+format, args...)
}

func (m manager) start(t *testing.T, name, options, command string) container {
	t.Helper()
	m.ask(t, "run --detach --name %s %s %s %s", name, options, imageName, command)
	t.Cleanup(func() { m.ask(t, "rm --force %s", name) })
	pid, err := strconv.Atoi(m.ask(t, "inspect --format '{{.State.Pid}}' %s", name))
	if err != nil {
		t.Fatal(err)
	}
	return container{name: name, pid: pid, at: addresses(t, pid, "eth0")}
}

// TestDocker and TestPodman publish a port of a container: who calls it finds the container's process, once.
func TestDocker(t *testing.T) {
	prepare(t)
	start(t, "dockerd", "--storage-driver", "vfs")
	t.Cleanup(func() { sh(t, "iptables -P FORWARD ACCEPT") }) // it drops what is not its own
	docker := manager{"docker", "docker"}
	eventually(t, func() error { return exec.Command("docker", "version").Run() })
	publishedBy(t, docker)
}

func TestPodman(t *testing.T) {
	prepare(t)
	podman := manager{"podman --cgroup-manager cgroupfs --storage-driver vfs --events-backend file", "podman"}
	start(t, "sh", "-c", "exec podman --cgroup-manager cgroupfs --storage-driver vfs --events-backend file system service --time 0")
	eventually(t, func() error { return exec.Command("test", "-S", "/run/podman/podman.sock").Run() })
	publishedBy(t, podman)
}

func publishedBy(t *testing.T, m manager) {
	t.Helper()
	m.ask(t, "load --input %s", writeImage(t))
	older := m.start(t, "older", fmt.Sprintf("--publish %d:%d", publishedPort, servedPort), "httpd -f -p 80 -h /www")
	gateway := netip.MustParseAddr(strings.Fields(sh(t, "nsenter -t %d -n ip route show default", older.pid))[2])
	w := watch(t)
	ready := event{"older", "httpd", false, "TCP", netip.AddrPortFrom(gateway, servedPort)}
	w.await(t, ready, func() { onHost(t, get(older.at[0], servedPort)) })
	last := event{"older", "", false, "TCP", netip.AddrPortFrom(gateway, ownPort)}
	closed := func() { onHost(t, get(older.at[0], ownPort)) }
	w.await(t, last, closed) // and so what was before
	known := w.count(wanted)

	s := &scene{}
	sh(t, "ip netns exec outside busybox %s", get(hostAddress, publishedPort))
	s.received("older", "httpd", outsideAddress, servedPort)
	younger := m.start(t, "younger", "", "sh -c '"+get(older.at[0], servedPort)+"; exec sleep 1000000'")
	s.sent("younger", "wget", older.at[0], servedPort)
	s.received("older", "httpd", younger.at[0], servedPort)
	eventually(t, func() error { // its first command has ended
		if text := sh(t, "cat /proc/%d/comm", younger.pid); text != "sleep" {
			return fmt.Errorf("the container is at %s", text)
		}
		return nil
	})
	// Docker's proxy on the host takes it; with CNI it is translated, and comes from the host as well.
	m.ask(t, "exec younger %s", get(gateway, publishedPort))
	s.sent("younger", "wget", gateway, publishedPort)
	s.received("older", "httpd", gateway, servedPort)

	w.again(t, last, closed)
	got := w.stop(t, wanted)
	compare(t, got[min(known, len(got)):], s.wanted)
	id := m.ask(t, "inspect --format '{{.Id}}' older")
	for _, l := range w.all() {
		if l.Runtime.Named == "older" && (l.Runtime.Name != m.runtime || l.Runtime.ID != id || l.Runtime.Image == "") {
			t.Errorf("wanted %s, the ID %s and an image, got %+v", m.runtime, id, l.Runtime)
		}
	}
}
