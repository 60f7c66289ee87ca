// SPDX-License-Identifier: Apache-2.0

package image

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"gadget.example/network/test/registry"
)

// startRegistry starts a registry on the loopback interface and returns its host and
// port, and the folder that it keeps. It ends with the test.
func startRegistry(t *testing.T) (host, dir string) {
	t.Helper()
	dir = t.TempDir()
	server := httptest.NewServer(registry.New(t.Context(), dir))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://"), dir
}

func TestAPulledImageHasTheDigestThatWasPushed(t *testing.T) {
	image := pristine(t)
	built := stored(t, image)
	host, _ := startRegistry(t)
	remote := host + "/gadgets/network:v1"

	ig(t, "image", "tag", image, remote)
	ig(t, "image", "push", "--insecure-registries", host, remote)
	ig(t, "image", "remove", remote)
	ig(t, "image", "remove", image)
	if got := digestOf(t, remote); got != "" {
		t.Fatalf("wanted %s removed before it is pulled, got %s", remote, got)
	}

	ig(t, "image", "pull", "--insecure-registries", host, remote)
	if got := stored(t, remote); got != built {
		t.Errorf("wanted the digest that was built, %s, got %s", built, got)
	}
	if got := len(export(t, remote).objects); got != 2 {
		t.Errorf("wanted objects for 2 architectures in the pulled image, got %d", got)
	}
}

// TestMistakes runs what users do wrong: each session in testdata/script ends in
// one clear error, and leaves nothing behind.
func TestMistakes(t *testing.T) {
	image := pristine(t)
	host, _ := startRegistry(t)
	testscript.RunT(oneByOne{t}, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Vars = append(env.Vars, buildEnv(t)...)
			env.Setenv("BUILDER", builder())
			env.Setenv("BUILD_IMAGE", filepath.Join(tree(t), "test", "build-image"))
			env.Setenv("IMAGE", image)
			env.Setenv("REGISTRY", host)
			env.Setenv("SOURCE_DATE_EPOCH", "0")
			env.Setenv("STORE", store)
			return os.CopyFS(filepath.Join(env.WorkDir, "gadget"), os.DirFS(sources(t)))
		},
	})
}

// oneByOne runs sessions one after the other, where testscript would run them in
// parallel: each compares ig's store before and after.
type oneByOne struct{ *testing.T }

func (oneByOne) Parallel()     {}
func (oneByOne) Verbose() bool { return testing.Verbose() }

func (o oneByOne) Run(name string, session func(testscript.T)) {
	o.T.Run(name, func(t *testing.T) { session(oneByOne{t}) })
}
