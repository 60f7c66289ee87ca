// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestThePictureHasWhatThePodsDid draws the events as docs/connections.jq says, and leaves the picture, connections.svg.
func TestThePictureHasWhatThePodsDid(t *testing.T) {
	watched(t)
	drawn := pipe(t, withoutProbes(t, filepath.Join(theCluster.Dir, "events.jsonl")), "jq", "-rsf", filepath.Join("..", "..", "docs", "connections.jq"))
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

// withoutProbes are the events of a file without those by which the runs tell how far they are.
func withoutProbes(t *testing.T, file string) (lines []byte) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(content) {
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if !slices.Contains(probes, e.Endpoint.Port) {
			lines = append(lines, line...)
		}
	}
	return lines
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
