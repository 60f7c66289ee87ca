// SPDX-License-Identifier: Apache-2.0

// Package image holds the gadget image "network" in memory, so that a binary
// which links it needs neither a registry nor a local image store.
package image

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrMissing is returned when the binary was built before the image was.
var ErrMissing = errors.New("this binary holds no gadget image: build it with `make build`")

//go:embed all:layout
var layout embed.FS

// Layout returns the image as an OCI image layout (index.json, oci-layout and
// blobs/), for every architecture it was built for.
func Layout() (fs.FS, error) {
	sub, err := fs.Sub(layout, "layout")
	if err != nil {
		return nil, fmt.Errorf("opening the embedded gadget image: %w", err)
	}
	if _, err := fs.Stat(sub, "index.json"); err != nil {
		return nil, ErrMissing
	}
	return sub, nil
}

// Name returns the embedded image's name, as ig completed the one that it was
// built under.
func Name() (string, error) {
	m, err := manifest()
	return m.Annotations[ocispec.AnnotationRefName], err
}

// Digest returns the digest of the embedded image, of all its architectures.
func Digest() (string, error) {
	m, err := manifest()
	return m.Digest.String(), err
}

// manifest is the entry of the layout's index that has a name: the image.
func manifest() (ocispec.Descriptor, error) {
	layout, err := Layout()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	text, err := fs.ReadFile(layout, ocispec.ImageIndexFile)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("reading the embedded gadget image: %w", err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("reading the embedded gadget image: %w", err)
	}
	for _, m := range index.Manifests {
		if m.Annotations[ocispec.AnnotationRefName] != "" {
			return m, nil
		}
	}
	return ocispec.Descriptor{}, ErrMissing
}
