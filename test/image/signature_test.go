// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/registry/remote"

	"gadget.example/network/internal/vm"
	"gadget.example/network/test/guest"
)

// published is a registry to which .ci/publish has pushed the images, signed.
type published struct {
	host, dir string // the registry's address, and its folder
	key       string // the publisher's, as a file without .key and .pub
	digests   map[string]string
}

const publishedVersion = "v0.0.1"

// publish runs .ci/publish, as a release does, in a tree where `make release` has left
// these images. GitHub vouches for nobody here.
func publish(t *testing.T) published {
	t.Helper()
	p := published{key: newKey(t), digests: map[string]string{}}
	p.host, p.dir = startRegistry(t)
	release := filepath.Join(t.TempDir(), "build", "release")
	ci := filepath.Join(release, "..", "..", ".ci")
	for _, dir := range []string{release, ci} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"network", "network-connections"} {
		ig(t, "image", "export", pristine(t), filepath.Join(release, name+".tar"))
	}
	script, err := os.ReadFile(filepath.Join(tree(t), ".ci", "publish"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(ci, "publish"), script, 0o755); err != nil {
		t.Fatal(err)
	}
	private, err := os.ReadFile(p.key + ".key")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(ci, "publish"), p.host+"/gadgets", publishedVersion)
	cmd.Env = append(os.Environ(), "IG="+igBinary(t), "COSIGN="+cosignBinary(t), "COSIGN_PASSWORD=",
		"COSIGN_PRIVATE_KEY="+string(private), "INSECURE_REGISTRIES="+p.host, "ACTIONS_ID_TOKEN_REQUEST_URL=")
	for line := range strings.Lines(run(t, cmd)) {
		name, digest, _ := strings.Cut(strings.TrimSpace(line), "=")
		p.digests[name] = digest
	}
	if got, want := p.digests["network"], stored(t, pristine(t)); got != want {
		t.Fatalf("wanted %s published, got %q", want, p.digests)
	}
	if got, want := read(t, filepath.Join(release, "cosign.pub")), read(t, p.key+".pub"); got != want {
		t.Errorf("wanted the public key beside the images, %s, got %s", want, got)
	}
	// What is in the registry is to be seen, not what was pushed there.
	ig(t, "image", "remove", p.image(publishedVersion))
	return p
}

func (p published) repository() string      { return p.host + "/gadgets/network" }
func (p published) image(tag string) string { return p.repository() + ":" + tag }

// push pushes an image of ig's store.
func (p published) push(t *testing.T, image, tag string) {
	t.Helper()
	ig(t, "image", "tag", image, p.image(tag))
	ig(t, "image", "push", "--insecure-registries", p.host, p.image(tag))
	ig(t, "image", "remove", p.image(tag))
}

// changed pushes an image whose programs are not those that were signed, and returns its
// digest.
func (p published) changed(t *testing.T, tag string) string {
	t.Helper()
	const image = "image-test:changed"
	if digestOf(t, image) == "" {
		dir := sources(t)
		addSource(t, filepath.Join(dir, "program.bpf.c"), "\nint changed SEC(\".data.changed\") = 1;\n")
		build(t, image, dir)
	}
	p.push(t, image, tag)
	return stored(t, image)
}

// remote is the registry's repository, for what neither ig nor cosign does.
func (p published) remote(t *testing.T) *remote.Repository {
	t.Helper()
	repository, err := remote.NewRepository(p.repository())
	if err != nil {
		t.Fatal(err)
	}
	repository.PlainHTTP = true
	return repository
}

// signatureTag is where cosign puts the signature of what has a digest.
func signatureTag(digest string) string { return strings.ReplaceAll(digest, ":", "-") + ".sig" }

// TestAnImageThatIsNotAsItsPublisherSignedItIsRefused: by ig and by netgadget, before
// anything of it is loaded; so it does not depend on what this machine can run.
func TestAnImageThatIsNotAsItsPublisherSignedItIsRefused(t *testing.T) {
	p := publish(t)
	another := newKey(t)
	for _, c := range []struct {
		name string
		// push pushes an image as a tag.
		push func(t *testing.T, tag string)
		key  string // that its user trusts, if it is not the publisher's
		// What ig and netgadget say.
		ig, netgadget string
	}{
		{
			name: "not signed",
			push: func(t *testing.T, tag string) { p.changed(t, tag) },
			ig:   `verifying image: pulling gadget signature .*-[0-9a-f]{64}\.sig: not found`, netgadget: `has no signature, and is not run`,
		},
		{
			name: "signed by another key",
			push: func(t *testing.T, tag string) { cosign(t, signWith(another, p.repository()+"@"+p.changed(t, tag))...) },
			ig:   `verifying image: .*the image was not signed by the provided keys`, netgadget: `is signed by another key, and is not run`,
		},
		{
			name: "signed, but the user trusts another key", key: another,
			push: func(t *testing.T, tag string) { p.push(t, pristine(t), tag) },
			ig:   `the image was not signed by the provided keys`, netgadget: `is signed by another key`,
		},
		{
			name: "changed, with the signature of what it was",
			push: func(t *testing.T, tag string) {
				digest := p.changed(t, tag)
				repository := p.remote(t)
				if _, err := oras.Tag(context.Background(), repository, signatureTag(p.digests["network"]), signatureTag(digest)); err != nil {
					t.Fatal(err)
				}
			},
			ig: `payload digest does not correspond to image`, netgadget: `bears the signature of another image`,
		},
		{
			name: "a layer changed in the registry's own files",
			push: func(t *testing.T, tag string) {
				p.push(t, pristine(t), tag)
				p.flipByte(t)
			},
			ig: `pulling image .*mismatched? digest`, netgadget: `pulling image .*mismatched? digest`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			tag := strings.ReplaceAll(strings.ReplaceAll(c.name, ",", ""), " ", "-")
			tag = strings.ReplaceAll(tag, "'", "")
			c.push(t, tag)
			key := p.key
			if c.key != "" {
				key = c.key
			}
			flags := []string{"--insecure-registries", p.host, "--public-keys=" + read(t, key+".pub")}
			// ig wants its file systems before it looks at an image.
			wantRefused(t, c.ig, igBinary(t), append([]string{"run", "--auto-mount-filesystems", p.image(tag)}, flags...)...)
			wantRefused(t, c.netgadget, filepath.Join(tree(t), "build", "netgadget"), append([]string{"run", "--image", p.image(tag)}, flags...)...)
		})
	}
}

// flipByte changes a layer where the registry keeps it, and leaves its name.
func (p published) flipByte(t *testing.T) {
	t.Helper()
	repository := p.remote(t)
	var index ocispec.Index
	var manifest ocispec.Manifest
	fetchManifest(t, repository, digest.Digest(p.digests["network"]), &index)
	for _, m := range index.Manifests {
		if m.Platform.Architecture == runtime.GOARCH {
			fetchManifest(t, repository, m.Digest, &manifest)
		}
	}
	layer := manifest.Layers[0].Digest.Encoded()
	file := filepath.Join(p.dir, "docker", "registry", "v2", "blobs", "sha256", layer[:2], layer, "data")
	content := []byte(read(t, file))
	content[len(content)/2] ^= 1
	writeFile(t, file, content)
}

func fetchManifest(t *testing.T, repository *remote.Repository, d digest.Digest, into any) {
	t.Helper()
	_, text, err := oras.FetchBytes(t.Context(), repository, d.String(), oras.DefaultFetchBytesOptions)
	if err != nil {
		t.Fatal(err)
	}
	decode(t, text, into)
}

// wantRefused runs a program that must fail and say why. ig's store is empty for it, as
// that of a machine to which the image is new: what is there already is not pulled.
func wantRefused(t *testing.T, why, program string, args ...string) {
	t.Helper()
	const script = `mount -t tmpfs tmpfs ` + store + ` && exec "$0" "$@"`
	out, err := exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, program}, args...)...).CombinedOutput()
	if err == nil || !regexp.MustCompile(`(?s)`+why).Match(out) {
		t.Errorf("%s: wanted it to fail and say %s, got %v\n%s", filepath.Base(program), why, err, out)
	}
}

// TestAnImageThatIsSignedRuns as a release leaves it in a registry: by ig and by
// netgadget, which pull it from there, verify it, and report.
func TestAnImageThatIsSignedRuns(t *testing.T) {
	p := publish(t)
	signed := p.repository() + "@" + p.digests["network"]
	cosign(t, "verify", "--key", p.key+".pub", "--insecure-ignore-tlog", "--offline", signed)
	// What GitHub vouches for is a signature in the newer form beside the key's: ig is
	// not confused. (cosign verifies that form with Sigstore's own roots alone, which it
	// fetches.)
	cosign(t, append(signWith(newKey(t), signed), "--new-bundle-format")...)

	k := kernel(t)
	serve := filepath.Join(t.TempDir(), "serve")
	if err := guest.GoCommand(t.Context(), k.Arch, "build", "-o", serve, "../registry/serve").Run(); err != nil {
		t.Fatal(err)
	}
	const script = `flags="--pull always --insecure-registries $REGISTRY" image=$REGISTRY/gadgets/network:` + publishedVersion + `
"$0" "$1" run $image $flags --public-keys="$(cat "$3")" --host -o json &&
"$0" "$2" run --image $image $flags --public-keys="$(cat "$3")"`
	events := runThere(t, []vm.File{
		firstEvent,
		{Guest: "/bin/ig", Host: igBinary(t)},
		{Guest: "/bin/netgadget", Host: filepath.Join(tree(t), "build", "netgadget")},
		{Guest: "/bin/serve", Host: serve},
		{Guest: "/cosign.pub", Host: p.key + ".pub"},
		{Guest: "/registry", Host: p.dir},
	}, "/bin/serve", "/registry", "/bin/sh", "-c", script, firstEvent.Guest, "/bin/ig", "/bin/netgadget", "/cosign.pub")
	lines := strings.Split(strings.TrimSpace(events), "\n")
	if len(lines) != 2 {
		t.Fatalf("wanted an event of ig and one of netgadget, got %s", events)
	}
	for _, line := range lines {
		wantConnection(t, line)
	}
}

// newKey makes a pair of keys, without a password, and returns the file's name without
// .key and .pub.
func newKey(t *testing.T) string {
	t.Helper()
	prefix := filepath.Join(t.TempDir(), "cosign")
	cosign(t, "generate-key-pair", "--output-key-prefix", prefix)
	return prefix
}

// signWith are the arguments by which cosign signs what a digest names, by a key, and
// tells no log of it.
func signWith(key, image string) []string {
	return []string{"sign", "--key", key + ".key", "--tlog-upload=false", "--yes", image}
}

// cosignBinary is what `make test-image` builds.
func cosignBinary(t *testing.T) string {
	t.Helper()
	name := os.Getenv("COSIGN")
	if _, err := os.Stat(name); err != nil {
		t.Fatalf("wanted COSIGN, the program that signs: %v; `make test-image` builds it", err)
	}
	return name
}

func cosign(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(cosignBinary(t), args...)
	cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=")
	return run(t, cmd)
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
