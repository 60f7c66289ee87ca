// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// igDaemon is a running `ig daemon`, which runs gadgets for those who ask it by gRPC:
// the protocol of `kubectl gadget`, without a cluster.
type igDaemon struct {
	t       *testing.T
	address string
}

// startIGDaemon starts one that ends with the test.
func startIGDaemon(t *testing.T) igDaemon {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "ig.sock")
	d := igDaemon{t: t, address: "unix://" + socket}
	cmd := exec.Command(artifact(igBinary), "daemon", "--verify-image=false", "--host", d.address)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(cmd.Process.Signal(unix.SIGTERM), exitedBySignal(cmd.Wait())); err != nil {
			t.Errorf("ig daemon: %v\n%s", err, &said)
		}
	})
	err := eventually(func() error {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		t.Fatalf("ig daemon: %v\n%s", err, &said)
	}
	return d
}

// exitedBySignal has ended as ig daemon does when it is told to: it handles no signal.
func exitedBySignal(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && !exit.Exited() {
		return nil
	}
	return err
}

// args are those of gadgetctl for this daemon.
func (d igDaemon) args(args ...string) []string { return append(args, "--remote-address", d.address) }

// client starts a gadgetctl that prints events.
func (d igDaemon) client(args ...string) *stockIG {
	d.t.Helper()
	return startStock(d.t, (*exec.Cmd).Start, gadgetctlBinary, d.args(append(args, "-o", "json")...)...)
}

// ask runs a gadgetctl that ends by itself, and returns what it prints.
func (d igDaemon) ask(args ...string) string {
	d.t.Helper()
	cmd := exec.Command(artifact(gadgetctlBinary), d.args(args...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		d.t.Fatalf("gadgetctl %s: %v\n%s", strings.Join(args, " "), err, &said)
	}
	return string(out)
}

// TestADaemonsClientsGetTheSameEvents has `ig daemon` run the gadget for a client that
// waits, and once more for one that leaves it running, to which another one attaches.
func TestADaemonsClientsGetTheSameEvents(t *testing.T) {
	a := newActors(t, newPair(t, hostNamespace(t), newNamespace(t, "other")))
	prober := startAgent(t, a.pair.ends[0], agentOptions{name: "prober"})
	serveProbes(t, prober)
	d := startIGDaemon(t)
	const name = "kept"
	d.ask("run", storedImage, "--host", "--detach", "--name", name)
	if out := d.ask("list"); !strings.Contains(out, name) || !strings.Contains(out, "Running") {
		t.Errorf("gadgetctl list: wanted %q to be running, got\n%s", name, out)
	}
	waits, attached := d.client("run", storedImage, "--host"), d.client("attach", name)
	awaitReady(t, a.callers[0], waits, attached)
	awaitKnown(t, a.callers[0], "prober", waits, attached)
	truth := slices.DeleteFunc(a.make(t, attempts()), func(w want) bool { return w.netNS != a.pair.ends[0].inode })
	awaitAll(t, a.callers[0], waits, attached)
	for _, client := range []*stockIG{waits, attached} {
		compare(t, fromJSON(t, client.stop(t)), truth)
	}
	d.ask("delete", name)
	if out := d.ask("list"); strings.Contains(out, name) {
		t.Errorf("gadgetctl list: wanted %q to be gone, got\n%s", name, out)
	}
}
