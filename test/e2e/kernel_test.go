// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"oras.land/oras-go/v2/content/oci"

	"gadget.example/network/internal/gadget/image"
	"gadget.example/network/test/e2e/measured"
	"gadget.example/network/test/object"
)

const (
	// A tenth of what the verifier goes through, BPF_COMPLEXITY_LIMIT_INSNS in
	// include/linux/bpf.h.
	maxVerified = 150_000
	// The program that sees every packet.
	socketFilter = "network"
)

// TestEveryProgramIsAcceptedAndCheap loads the programs on this kernel: its
// verifier counts otherwise than the next one's.
func TestEveryProgramIsAcceptedAndCheap(t *testing.T) {
	spec, err := object.Read()
	if err != nil {
		t.Fatal(err)
	}
	costs, err := object.Verified(spec)
	if refused := (*ebpf.VerifierError)(nil); errors.As(err, &refused) {
		t.Fatalf("%v\n%+v", err, refused) // with the verifier's whole log
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(costs)) {
		t.Logf("%6d instructions verified of %s", costs[name], name)
		if costs[name] > maxVerified {
			t.Errorf("program %s: wanted at most %d instructions verified, got %d", name, maxVerified, costs[name])
		}
	}
	measured.Write(os.Stdout, measured.Verified, fmt.Sprint(costs[socketFilter]))
}

// TestTheImageIsTheOneThatWasBuilt: whatever the kernel and the architecture,
// what is tested has one digest.
func TestTheImageIsTheOneThatWasBuilt(t *testing.T) {
	want, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(artifact(netgadgetBinary), "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(out), "gadget image ")
	embedded, _, _ := strings.Cut(after, "\n")
	measured.Write(os.Stdout, measured.Digest, embedded)
	if embedded != want {
		t.Errorf("image in netgadget: wanted %s, got %s", want, embedded)
	}
	if os.Getenv("IMAGE_FILE") != "" {
		return // another one on purpose
	}
	archive, err := oci.NewFromTar(t.Context(), artifact(imageFile))
	if err != nil {
		t.Fatal(err)
	}
	name, err := image.Name()
	if err != nil {
		t.Fatal(err)
	}
	stored, err := archive.Resolve(t.Context(), name)
	if err != nil || stored.Digest.String() != want {
		t.Errorf("image %s in %s: wanted %s, got %s, %v", name, imageFile, want, stored.Digest, err)
	}
}

// TestACommandStartsWhenTheGadgetIsReady tells how long that takes.
func TestACommandStartsWhenTheGadgetIsReady(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, artifact(netgadgetBinary), "run", "--", "echo", "ready")
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var before []string
	ready := false
	for lines := bufio.NewScanner(said); lines.Scan(); before = append(before, lines.Text()) {
		if lines.Text() == "ready" {
			ready = true
			measured.Write(os.Stdout, measured.Ready, time.Since(start).String())
		}
	}
	if err := cmd.Wait(); err != nil || !ready {
		t.Errorf("wanted the command's output, got %v\n%s", err, strings.Join(before, "\n"))
	}
}
