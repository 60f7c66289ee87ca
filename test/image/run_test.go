// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"gadget.example/network/internal/preflight"
	"gadget.example/network/internal/vm"
)

// runLimit is far above what a VM takes, to boot and to run ig, on a loaded machine.
const runLimit = 5 * time.Minute

// TestIgHasNothingToUpdateInTheMetadata: ig builds the same images when it is asked
// to update their metadata, and the stock ig runs the gadget.
func TestIgHasNothingToUpdateInTheMetadata(t *testing.T) {
	want, counting := stored(t, pristine(t)), stored(t, pristineCounting(t))
	clone := cloneTree(t)
	run(t, makeTarget(t, clone, "image-with-metadata", "image-test:updated"))

	for _, metadata := range []string{"gadget.yaml", "connections/gadget.yaml"} {
		diff, err := exec.Command("diff", "-u", filepath.Join(tree(t), metadata), filepath.Join(clone, metadata)).CombinedOutput()
		if err != nil {
			t.Errorf("wanted %s as it was, got %v\n%s", metadata, err, diff)
		}
	}
	if got := stored(t, "image-test-connections:updated"); got != counting {
		t.Errorf("wanted the digest of a build without an update, %s, got %s", counting, got)
	}
	if got := stored(t, "image-test:updated"); got != want {
		t.Errorf("wanted the digest of a build without an update, %s, got %s", want, got)
	}
	wantRuns(t, filepath.Join(clone, "build", "network.tar"), "image-test:updated")
}

// wantRuns runs an image out of its archive until ig has reported a connection.
func wantRuns(t *testing.T, archive, image string) {
	t.Helper()
	const script = `"$1" image import "$2" >/dev/null && exec "$0" "$1" run "$3" --verify-image=false --pull never --host -o json`
	wantConnection(t, runThere(t,
		[]vm.File{firstEvent, {Guest: "/bin/ig", Host: igBinary(t)}, {Guest: "/image.tar", Host: archive}},
		"/bin/sh", "-c", script, firstEvent.Guest, "/bin/ig", "/image.tar", image))
}

// firstEvent is a script: see there.
var firstEvent = vm.File{Guest: "/first-event", Host: "testdata/first-event"}

// wantConnection reads the event that the script prints.
func wantConnection(t *testing.T, text string) {
	t.Helper()
	var event struct {
		Dst struct {
			Addr string
			Port int
		}
		Proc struct{ Comm string }
	}
	err := json.Unmarshal([]byte(text), &event)
	if err != nil || event.Dst.Addr != "127.0.0.1" || event.Dst.Port != 99 || event.Proc.Comm != "busybox" {
		t.Errorf("wanted busybox's connection to 127.0.0.1:99, got %v, %s", err, text)
	}
}

// runThere returns what a command prints: on this machine if it can run ig, where the
// files are those of their own names here, else in a VM with the kernel of the e2e tests.
func runThere(t *testing.T, files []vm.File, command ...string) string {
	t.Helper()
	lacking := preflight.Missing(preflight.Run())
	if lacking == nil {
		for i, arg := range command {
			for _, f := range files {
				if arg == f.Guest {
					command[i] = f.Host
				}
			}
		}
		return run(t, exec.CommandContext(t.Context(), command[0], command[1:]...))
	}
	if testing.Short() {
		t.Skip("boots a virtual machine, which takes half a minute: not with -short")
	}
	commands, err := vm.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	config := vm.Config{Kernel: kernel(t), Files: append(files, commands...), Command: command, Stdout: &stdout, Stderr: &stderr}
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	result, err := vm.Run(ctx, config)
	if err != nil || result.ExitStatus != 0 {
		t.Fatalf("%v; in a VM with Linux %s: wanted an event, got status %d, %v\n%s",
			lacking, config.Kernel.Release, result.ExitStatus, err, &stderr)
	}
	t.Logf("in a VM with Linux %s: %+v", config.Kernel.Release, result)
	return stdout.String()
}

func kernel(t *testing.T) vm.Kernel {
	t.Helper()
	cache := os.Getenv("KERNEL_CACHE")
	if cache == "" {
		dir, err := vm.DefaultCache()
		if err != nil {
			t.Fatal(err)
		}
		cache = dir
	}
	k, err := vm.Fetch(t.Context(), os.Getenv("E2E_KERNEL"), cache, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
