// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const ebpfMediaType = "application/vnd.gadget.ebpf.program.v1+binary"

// content is what an image holds.
type content struct {
	metadata []byte
	// objects are the eBPF objects by Go's name of their architecture.
	objects map[string][]byte
}

// export reads an image out of ig's store.
func export(t *testing.T, image string) content {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	ig(t, "image", "export", image, file)
	files := untar(t, file)

	blob := func(d digest.Digest) []byte {
		b, ok := files["blobs/sha256/"+d.Encoded()]
		if !ok {
			t.Fatalf("wanted blob %s in %s, got %q", d, image, slices.Sorted(maps.Keys(files)))
		}
		return b
	}
	// The layout's own index lists the image's index and its parts alike.
	var layout, index ocispec.Index
	decode(t, files["index.json"], &layout)
	top := slices.IndexFunc(layout.Manifests, func(d ocispec.Descriptor) bool {
		return d.MediaType == ocispec.MediaTypeImageIndex
	})
	if top < 0 {
		t.Fatalf("wanted an image index in %s, got %s", image, files["index.json"])
	}
	decode(t, blob(layout.Manifests[top].Digest), &index)

	c := content{objects: map[string][]byte{}}
	for _, m := range index.Manifests {
		var manifest ocispec.Manifest
		decode(t, blob(m.Digest), &manifest)
		c.metadata = blob(manifest.Config.Digest)
		for _, l := range manifest.Layers {
			if l.MediaType == ebpfMediaType {
				c.objects[m.Platform.Architecture] = blob(l.Digest)
			}
		}
	}
	return c
}

func untar(t *testing.T, name string) map[string][]byte {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()

	files := map[string][]byte{}
	for r := tar.NewReader(file); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func decode(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("reading the image: %v\n%s", err, text)
	}
}

func collection(t *testing.T, object []byte) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		t.Fatalf("wanted an eBPF object, got %v", err)
	}
	return spec
}

func TestTheImageHoldsTheGadgetForBothArchitectures(t *testing.T) {
	c := export(t, pristine(t))

	architectures := slices.Sorted(maps.Keys(c.objects))
	if want := []string{"amd64", "arm64"}; !slices.Equal(architectures, want) {
		t.Fatalf("wanted objects for %q, got %q", want, architectures)
	}
	for _, arch := range architectures {
		spec := collection(t, c.objects[arch])
		program, ok := spec.Programs["network"]
		if !ok || program.Type != ebpf.SocketFilter || program.SectionName != "socket1" || program.License != "GPL" {
			t.Errorf("%s: wanted the program network, a socket filter in section socket1 under the GPL, got %+v", arch, program)
		}
		events, ok := spec.Maps["events"]
		if !ok || events.Type != ebpf.PerfEventArray {
			t.Errorf("%s: wanted the map events, a perf event array, got %v", arch, events)
		}
	}
}

// TestEachArchitectureHasItsOwnKernelTypes: with one vmlinux.h for both, arm64
// would read a system call's arguments out of x86 registers.
func TestEachArchitectureHasItsOwnKernelTypes(t *testing.T) {
	dir := sources(t)
	addSource(t, filepath.Join(dir, "program.bpf.c"), "\nstruct pt_regs registers;\n")
	build(t, "image-test:registers", dir)

	first := map[string]string{"amd64": "r15", "arm64": ""} // arm64 begins with an unnamed union
	for arch, object := range export(t, "image-test:registers").objects {
		var registers *btf.Struct
		if err := collection(t, object).Types.TypeByName("pt_regs", &registers); err != nil {
			t.Fatalf("%s: wanted struct pt_regs, got %v", arch, err)
		}
		if got := registers.Members[0].Name; got != first[arch] {
			t.Errorf("%s: wanted pt_regs to begin with %q, got %q", arch, first[arch], got)
		}
	}
}
