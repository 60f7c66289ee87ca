// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tree is the project's own tree.
func tree(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// igBinary is the ig to test with: IG, or the pinned one that make builds.
func igBinary(t *testing.T) string {
	t.Helper()
	ig := os.Getenv("IG")
	if ig == "" {
		ig = filepath.Join(tree(t), "build", "ig")
	}
	if _, err := os.Stat(ig); err != nil {
		t.Fatalf("wanted an ig: %v; `make image` builds it", err)
	}
	return ig
}

// builder is how the image is compiled: BUILDER, or this machine's clang.
func builder() string {
	if b := os.Getenv("BUILDER"); b != "" {
		return b
	}
	return "local"
}

// run runs a command and returns its standard output.
func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: wanted success, got %v\n%s%s", strings.Join(cmd.Args, " "), err, &stdout, &stderr)
	}
	return stdout.String()
}

func ig(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, exec.Command(igBinary(t), args...))
}

// sources copies what the image is built from into a directory of its own.
func sources(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"program.bpf.c", "program.h", "gadget.yaml"} {
		copyFile(t, filepath.Join(tree(t), name), filepath.Join(dir, name))
	}
	for _, name := range []string{"ebpf", "connections"} {
		if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(tree(t), name))); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, to, text)
}

func writeFile(t *testing.T, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// addSource puts text behind a source file.
func addSource(t *testing.T, name, text string) {
	t.Helper()
	old, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, name, append(old, text...))
}

// script is the command line of the project's script that builds an image, with
// the environment that the Makefile gives it.
func script(t *testing.T, image, dir string, date time.Time, flags ...string) *exec.Cmd {
	t.Helper()
	root := tree(t)
	cmd := exec.Command(filepath.Join(root, "test", "build-image"),
		append([]string{builder(), image, dir}, flags...)...)
	cmd.Env = append(os.Environ(), buildEnv(t)...)
	cmd.Env = append(cmd.Env, fmt.Sprintf("SOURCE_DATE_EPOCH=%d", date.Unix()))
	return cmd
}

func buildEnv(t *testing.T) []string {
	t.Helper()
	return []string{
		"SUDO=",
		"IG=" + igBinary(t),
		"IG_VERSION=" + strings.TrimSpace(ig(t, "version")),
		"INCLUDE=" + filepath.Join(tree(t), "build", "include"),
	}
}

// commitDate is the date that the test images carry.
var commitDate = time.Unix(1_700_000_000, 0)

// pristine is the name of the image of the project's sources as they are, which
// is built once for all tests.
func pristine(t *testing.T) string {
	t.Helper()
	const image = "image-test:pristine"
	if digestOf(t, image) == "" {
		build(t, image, sources(t))
	}
	return image
}

// pristineCounting is the same of the image that counts connections.
func pristineCounting(t *testing.T) string {
	t.Helper()
	const image = "image-test-connections:pristine"
	if digestOf(t, image) == "" {
		dir := sources(t)
		build(t, image, dir, "-f", filepath.Join(dir, "connections", "build.yaml"))
	}
	return image
}

// build builds the sources in dir and returns the image's digest.
func build(t *testing.T, image, dir string, flags ...string) string {
	t.Helper()
	return buildAt(t, image, dir, commitDate, flags...)
}

func buildAt(t *testing.T, image, dir string, date time.Time, flags ...string) string {
	t.Helper()
	run(t, script(t, image, dir, date, flags...))
	return stored(t, image)
}

// stored returns the digest of an image that must be in the store.
func stored(t *testing.T, image string) string {
	t.Helper()
	digest := digestOf(t, image)
	if digest == "" {
		t.Fatalf("wanted %s in ig's store, got\n%s", image, ig(t, "image", "list"))
	}
	return digest
}

// digestOf returns the digest that ig lists for an image; "" when it has none.
func digestOf(t *testing.T, image string) string {
	t.Helper()
	var list []struct{ Repository, Tag, Digest string }
	text := ig(t, "image", "list", "-o", "json")
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatalf("reading ig's list of images: %v\n%s", err, text)
	}
	for _, l := range list {
		if l.Repository+":"+l.Tag == image {
			return l.Digest
		}
	}
	return ""
}
