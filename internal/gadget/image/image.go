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

// Name is the name under which the embedded layout holds the image, as
// `ig image build -t` normalizes it.
const Name = "network:latest"

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

// Digest returns the digest of the embedded image, of all its architectures.
func Digest() (string, error) {
	sub, err := Layout()
	if err != nil {
		return "", err
	}
	text, err := fs.ReadFile(sub, ocispec.ImageIndexFile)
	if err != nil {
		return "", fmt.Errorf("reading the embedded gadget image: %w", err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return "", fmt.Errorf("reading the embedded gadget image: %w", err)
	}
	for _, m := range index.Manifests {
		if m.Annotations[ocispec.AnnotationRefName] != "" {
			return m.Digest.String(), nil
		}
	}
	return "", ErrMissing
}
