// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestThePictureHasWhatThePodsDid draws the events as docs/connections.jq says, and leaves the picture, connections.svg.
func TestThePictureHasWhatThePodsDid(t *testing.T) {
	watched(t)
	drawn := pipe(t, linesOf(t, "events", isNoProbe), "jq", "-rsf", filepath.Join("..", "..", "docs", "connections.jq"))
	for _, edge := range []string{
		`"pod shop/buyer" -> "pod shop/web" [label="TCP 8080", color=darkgreen`,
		`"pod shop/buyer" -> "svc depot/stock" [label="TCP 80", color=darkgreen`,
		`"pod depot/clerk" -> "address /192.0.2.10" [label="UDP 53", color=gray40`,
		`"pod shop/buyer" -> "pod depot/stock" [label="TCP 9999\nECONNREFUSED (rst)", color=firebrick`,
		`"pod depot/clerk" -> "svc shop/empty" [label="TCP 80\nECONNREFUSED (icmp)", color=firebrick`,
	} {
		if !strings.Contains(string(drawn), edge) {
			t.Errorf("missing: %s", edge)
		}
	}
	picture := pipe(t, drawn, "dot", "-Tsvg")
	if err := os.WriteFile(filepath.Join(theCluster.Dir, "connections.svg"), picture, 0o644); err != nil {
		t.Fatal(err)
	}
}

// pipe is what a command makes of its standard input.
func pipe(t *testing.T, in []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, stderr.String())
	}
	return out
}
