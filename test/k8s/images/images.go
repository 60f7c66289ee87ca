// SPDX-License-Identifier: Apache-2.0

// Package images writes images of containers from files of this machine, without a builder or a registry: archives in OCI's
// layout, as `ctr image import` takes them.
package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// nameAnnotation is where containerd looks for the image's full name.
const nameAnnotation = "io.containerd.image.name"

// Image is what an image is made of.
type Image struct {
	// Name is its full name, with a host and a tag.
	Name string
	// Files are those of its only layer, in order; folders are made as they are needed. All belong to root.
	Files []File
	// Config says what it runs.
	Config v1.ImageConfig
}

// File is one entry. Exactly one of Host, Link and Data says what it is.
type File struct {
	// Path is its path in the image.
	Path string
	// Host is a file of this machine, whose mode is kept.
	Host string
	// Link is the target of a symbolic link.
	Link string
	// Data is the content of a file; its mode is 0644.
	Data []byte
}

// Write writes the image's archive for this machine's architecture.
func Write(file string, image Image) (err error) {
	layer, err := layer(image.Files)
	if err != nil {
		return fmt.Errorf("image %s: %w", image.Name, err)
	}
	blobs := blobs{}
	content := blobs.add(v1.MediaTypeImageLayer, layer)
	config, err := blobs.addJSON(v1.MediaTypeImageConfig, v1.Image{
		Platform: v1.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   image.Config,
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{content.Digest}}, // the layer is not compressed
	})
	if err != nil {
		return err
	}
	manifest, err := blobs.addJSON(v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: config, Layers: []v1.Descriptor{content},
	})
	if err != nil {
		return err
	}
	manifest.Annotations = map[string]string{nameAnnotation: image.Name}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return blobs.writeLayout(f, manifest)
}

// blobs are an archive's, by digest.
type blobs map[digest.Digest][]byte

func (b blobs) add(mediaType string, content []byte) v1.Descriptor {
	d := digest.FromBytes(content)
	b[d] = content
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
}

func (b blobs) addJSON(mediaType string, value any) (v1.Descriptor, error) {
	content, err := json.Marshal(value)
	return b.add(mediaType, content), err
}

func (b blobs) writeLayout(to io.Writer, manifest v1.Descriptor) error {
	index, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []v1.Descriptor{manifest}})
	if err != nil {
		return err
	}
	layout, err := json.Marshal(v1.ImageLayout{Version: v1.ImageLayoutVersion})
	if err != nil {
		return err
	}
	a := newArchive(to)
	for d, content := range b {
		a.file(path.Join("blobs", d.Algorithm().String(), d.Encoded()), 0o644, content)
	}
	a.file(v1.ImageIndexFile, 0o644, index)
	a.file(v1.ImageLayoutFile, 0o644, layout)
	return a.close()
}

func layer(files []File) ([]byte, error) {
	var b bytes.Buffer
	a := newArchive(&b)
	for _, f := range files {
		switch {
		case f.Host != "":
			content, err := os.ReadFile(f.Host)
			if err != nil {
				return nil, err
			}
			info, err := os.Stat(f.Host)
			if err != nil {
				return nil, err
			}
			a.file(f.Path, info.Mode().Perm(), content)
		case f.Link != "":
			a.write(tar.Header{Typeflag: tar.TypeSymlink, Name: f.Path, Linkname: f.Link, Mode: 0o777}, nil)
		default:
			a.file(f.Path, 0o644, f.Data)
		}
	}
	return b.Bytes(), a.close()
}

// archive is a tar archive with parents before children. Its first error stays.
type archive struct {
	w     *tar.Writer
	known map[string]bool
	err   error
}

func newArchive(to io.Writer) *archive {
	return &archive{w: tar.NewWriter(to), known: map[string]bool{".": true}}
}

func (a *archive) file(name string, mode fs.FileMode, content []byte) {
	a.write(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(mode), Size: int64(len(content))}, content)
}

func (a *archive) write(h tar.Header, content []byte) {
	h.Name = strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if parent := path.Dir(h.Name); !a.known[parent] {
		a.write(tar.Header{Typeflag: tar.TypeDir, Name: parent, Mode: 0o755}, nil)
	}
	if a.err != nil {
		return
	}
	a.known[h.Name] = true
	if a.err = a.w.WriteHeader(&h); a.err == nil {
		_, a.err = a.w.Write(content)
	}
}

func (a *archive) close() error {
	if a.err != nil {
		return a.err
	}
	return a.w.Close()
}
