// SPDX-License-Identifier: Apache-2.0

package image

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestTheSameSourcesGiveTheSameDigest(t *testing.T) {
	want := stored(t, pristine(t))

	elsewhere := sources(t)
	for _, image := range []string{"image-test:elsewhere", "image-test:again"} {
		if got := build(t, image, elsewhere); got != want {
			t.Errorf("built as %s in another directory: wanted %s, got %s", image, want, got)
		}
	}
	if got := build(t, "image-test:tree", tree(t)); got != want {
		t.Errorf("built in the project's tree: wanted %s, got %s", want, got)
	}
}

func TestAChangeGivesAnotherDigest(t *testing.T) {
	dir := sources(t)
	before := stored(t, pristine(t))

	if got := buildAt(t, "image-test:later", dir, commitDate.Add(time.Second)); got == before {
		t.Errorf("built with another date: wanted a digest other than %s, got it", before)
	}
	addSource(t, filepath.Join(dir, "program.bpf.c"), "\nconst volatile int added = 1;\n")
	if got := build(t, "image-test:after", dir); got == before {
		t.Errorf("built from other sources: wanted a digest other than %s, got it", before)
	}
}

// TestMakeBuildsTheSameImageInAnotherTree is what a second clone does.
func TestMakeBuildsTheSameImageInAnotherTree(t *testing.T) {
	want := stored(t, pristine(t))

	clone := cloneTree(t)
	run(t, makeTarget(t, clone, "image", "image-test:make"))
	if got := stored(t, "image-test:make"); got != want {
		t.Errorf("wanted the script's digest %s, got %s", want, got)
	}
	layout := filepath.Join(clone, "internal", "gadget", "image", "layout")
	if _, err := os.Stat(filepath.Join(layout, "blobs", "sha256", strings.TrimPrefix(want, "sha256:"))); err != nil {
		t.Errorf("wanted the image for netgadget in %s, got %v", layout, err)
	}
}

func TestMakeOfABrokenProgramLeavesNoImage(t *testing.T) {
	clone := cloneTree(t)
	addSource(t, filepath.Join(clone, "program.bpf.c"), "\nint broken = ;\n")

	out, err := makeTarget(t, clone, "image", "image-test:broken").CombinedOutput()
	if err == nil {
		t.Errorf("wanted make to fail, got success\n%s", out)
	}
	for _, want := range []string{"error: expected expression", "image-test:broken was not built"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("wanted %q in make's output, got\n%s", want, out)
		}
	}
	if got := digestOf(t, "image-test:broken"); got != "" {
		t.Errorf("wanted no image, got %s", got)
	}
	for _, name := range []string{"image.stamp", "network.tar"} {
		if _, err := os.Stat(filepath.Join(clone, "build", name)); err == nil {
			t.Errorf("wanted no build/%s, got one", name)
		}
	}
}

// makeTarget is a make that builds an image of this name in dir.
func makeTarget(t *testing.T, dir, target, image string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("make", "-C", dir, target, "IMAGE="+image, "BUILDER="+builder(),
		"IG="+filepath.Join(dir, "build", "ig"))
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.FormatInt(commitDate.Unix(), 10))
	return cmd
}

// cloneTree copies the project as a clone has it, and lends it the ig that is
// already built.
func cloneTree(t *testing.T) string {
	t.Helper()
	clone, root := t.TempDir(), tree(t)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch {
		case name == ".git" && !d.IsDir(): // of a worktree; to skip it would skip all after it
			return nil
		case name == ".git" || name == "build" || name == filepath.Join("internal", "gadget", "image", "layout", "blobs"):
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(clone, name), 0o755)
		case d.Type().IsRegular():
			return copyOld(path, filepath.Join(clone, name))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(clone, "build"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(igBinary(t), filepath.Join(clone, "build", "ig")); err != nil {
		t.Fatal(err)
	}
	return clone
}

// copyOld copies a file and makes it old, so that make takes the lent ig, which
// is newer than go.mod, as it is.
func copyOld(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, text, info.Mode()); err != nil {
		return err
	}
	old := time.Unix(1, 0)
	return os.Chtimes(to, old, old)
}
