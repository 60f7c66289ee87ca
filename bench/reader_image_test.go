// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"github.com/cilium/ebpf"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"gopkg.in/yaml.v3"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/oci"

	"gadget.example/network/internal/gadget/image"
	"gadget.example/network/test/object"
)

// notAttached is what IG does not attach a program to, see its pkg/operators/ebpf/attach.go.
const notAttached = "gadget_program_disabled"

// withoutKprobes writes the embedded image to an archive that differs from it in one
// thing: its metadata asks for no kprobe to be attached, so that a kernel without them
// can run it. They are loaded all the same. It returns the image's name in there.
func withoutKprobes(ctx context.Context, archive string) (name string, err error) {
	folder, err := os.MkdirTemp("", "bench")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(folder)
	store, err := oci.New(folder)
	if err != nil {
		return "", err
	}
	layout, err := image.Layout()
	if err != nil {
		return "", err
	}
	from, err := oci.NewFromFS(ctx, layout)
	if err != nil {
		return "", err
	}
	if name, err = image.Name(); err != nil {
		return "", err
	}
	root, err := from.Resolve(ctx, name)
	if err != nil {
		return "", err
	}
	index, err := fetch[ocispec.Index](ctx, from, root)
	if err != nil {
		return "", err
	}
	for _, m := range index.Manifests {
		if m.Platform == nil || m.Platform.Architecture != runtime.GOARCH {
			continue
		}
		if index.Manifests, err = copyManifest(ctx, store, from, m); err != nil {
			return "", err
		}
		root, err = push(ctx, store, ocispec.MediaTypeImageIndex, index)
		if err == nil {
			err = store.Tag(ctx, root, name)
		}
		if err != nil {
			return "", err
		}
		return name, pack(folder, archive)
	}
	return "", fmt.Errorf("the gadget image has nothing for %s", runtime.GOARCH)
}

// copyManifest copies an image, but for its metadata.
func copyManifest(ctx context.Context, to content.Pusher, from content.Fetcher, m ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	manifest, err := fetch[ocispec.Manifest](ctx, from, m)
	if err != nil {
		return nil, err
	}
	for _, layer := range manifest.Layers {
		blob, err := content.FetchAll(ctx, from, layer)
		if err != nil {
			return nil, err
		}
		if err := to.Push(ctx, layer, bytes.NewReader(blob)); err != nil {
			return nil, err
		}
	}
	metadata, err := content.FetchAll(ctx, from, manifest.Config)
	if err != nil {
		return nil, err
	}
	if metadata, err = detachKprobes(metadata); err != nil {
		return nil, err
	}
	config := content.NewDescriptorFromBytes(manifest.Config.MediaType, metadata)
	if err := to.Push(ctx, config, bytes.NewReader(metadata)); err != nil {
		return nil, err
	}
	manifest.Config.Digest, manifest.Config.Size = config.Digest, config.Size
	copied, err := push(ctx, to, m.MediaType, manifest)
	copied.Platform, copied.Annotations = m.Platform, m.Annotations
	return []ocispec.Descriptor{copied}, err
}

// detachKprobes adds to an image's metadata that no kprobe is attached.
func detachKprobes(metadata []byte) ([]byte, error) {
	spec, err := object.Read()
	if err != nil {
		return nil, err
	}
	all := map[string]any{}
	if err := yaml.Unmarshal(metadata, &all); err != nil {
		return nil, err
	}
	programs := map[string]any{}
	for name, p := range spec.Programs {
		if p.Type == ebpf.Kprobe {
			programs[name] = map[string]string{"attach_to": notAttached}
		}
	}
	all["programs"] = programs
	return yaml.Marshal(all)
}

func fetch[T any](ctx context.Context, from content.Fetcher, d ocispec.Descriptor) (value T, err error) {
	blob, err := content.FetchAll(ctx, from, d)
	if err != nil {
		return value, err
	}
	return value, json.Unmarshal(blob, &value)
}

func push(ctx context.Context, to content.Pusher, mediaType string, value any) (ocispec.Descriptor, error) {
	blob, err := json.Marshal(value)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := content.NewDescriptorFromBytes(mediaType, blob)
	return d, to.Push(ctx, d, bytes.NewReader(blob))
}

// pack makes an archive of a folder.
func pack(folder, archive string) error {
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	if err := w.AddFS(os.DirFS(folder)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(archive, buffer.Bytes(), 0o600)
}
