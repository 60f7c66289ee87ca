// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// gadgetImage is the gadget's image in ig's store.
const gadgetImage = "network:latest"

// sh runs a shell's command on the host, and returns what it says.
func sh(t *testing.T, script string, args ...any) string {
	t.Helper()
	script = fmt.Sprintf(script, args...)
	out, err := exec.Command("/bin/sh", "-euc", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// start starts what goes on until the test ends: a daemon. Its words are shown when the test has failed.
func start(t *testing.T, command string, args ...string) {
	t.Helper()
	said, err := os.Create(filepath.Join(t.TempDir(), "said"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(command, args...)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		if words, err := os.ReadFile(said.Name()); t.Failed() && err == nil {
			t.Logf("%s: %s", command, words)
		}
		said.Close()
	})
}

var prepared sync.Once

// prepare has the host forward, puts the image of the gadget where ig looks for it, and gives the host a peer outside.
func prepare(t *testing.T) {
	t.Helper()
	prepared.Do(func() { prepareOnce(t) })
}

func prepareOnce(t *testing.T) {
	t.Helper()
	sh(t, "ip link set lo up; echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	sh(t, "ig image import %s", imageFile)
	sh(t, `ip netns add outside
		ip link add to-outside type veth peer name eth0 netns outside
		ip addr add %[1]s/24 dev to-outside; ip link set to-outside up
		ip -n outside addr add %[2]s/24 dev eth0; ip -n outside link set eth0 up; ip -n outside route add default via %[1]s`,
		hostAddress, outsideAddress)
}

// Addresses between the host and what is outside.
var (
	hostAddress    = netip.MustParseAddr("10.99.0.1")
	outsideAddress = netip.MustParseAddr("10.99.0.2")
)

// addresses are those of a device in the network namespace of a process, by their family: IPv4, IPv6.
func addresses(t *testing.T, pid int, device string) (found [2]netip.Addr) {
	t.Helper()
	var links []struct {
		Addrs []struct {
			Local netip.Addr `json:"local"`
			Scope string     `json:"scope"`
		} `json:"addr_info"`
	}
	text := sh(t, "nsenter -t %d -n ip -j addr show dev %s", pid, device)
	if err := json.Unmarshal([]byte(text), &links); err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		for _, a := range l.Addrs {
			if a.Scope == "global" && a.Local.Is4() {
				found[0] = a.Local
			} else if a.Scope == "global" {
				found[1] = a.Local
			}
		}
	}
	return found
}

// sockets is how many a process has open.
func sockets(t *testing.T, pid int) (n int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}
