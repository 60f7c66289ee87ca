// SPDX-License-Identifier: Apache-2.0

// Command sbom tells what an image of gadgets is made of, as a CycloneDX document on
// standard output:
//
//	sbom -version VERSION -library VERSION ARCHIVE
//
// ARCHIVE is made by `ig image export` and holds one image. Its programs are compiled
// from this module's sources with the headers of the Inspektor Gadget that go.mod names,
// and link nothing.
package main

import (
	"context"
	_ "crypto/sha256" // what digests are made with
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/oci"
)

// library is the module whose headers the programs include.
const library = "github.com/inspektor-gadget/inspektor-gadget"

// bom is a CycloneDX document of version 1.6, with the fields that are used.
type bom struct {
	Format      string `json:"bomFormat"`
	SpecVersion string `json:"specVersion"`
	Version     int    `json:"version"`
	Metadata    struct {
		Component component `json:"component"`
	} `json:"metadata"`
	Components []component `json:"components"`
}

type component struct {
	Type        string `json:"type"`
	Name        string `json:"name"`
	Version     string `json:"version,omitempty"`
	Description string `json:"description,omitempty"`
	PURL        string `json:"purl,omitempty"`
	Hashes      []hash `json:"hashes,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

func main() {
	version := flag.String("version", "", "version of the release")
	headers := flag.String("library", "", "version of Inspektor Gadget")
	flag.Parse()
	if err := write(context.Background(), os.Stdout, *version, *headers, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func write(ctx context.Context, w io.Writer, version, headers, archive string) error {
	if version == "" || headers == "" || archive == "" {
		return errors.New("wanted -version VERSION -library VERSION ARCHIVE")
	}
	b := bom{Format: "CycloneDX", SpecVersion: "1.6", Version: 1}
	top, parts, err := inside(ctx, archive)
	if err != nil {
		return fmt.Errorf("reading %s: %w", archive, err)
	}
	name := strings.TrimSuffix(filepath.Base(archive), ".tar")
	b.Metadata.Component = component{
		Type: "container", Name: name, Version: version, Hashes: hashes(top),
		PURL: "pkg:oci/" + name + "@" + strings.ReplaceAll(top.Digest.String(), ":", "%3A") + "?tag=" + version,
	}
	b.Components = append(parts, component{
		Type: "library", Name: library, Version: headers,
		PURL:        "pkg:golang/" + library + "@" + headers + "#include/gadget",
		Description: "headers, the kernel's types (vmlinux.h) and libbpf's among them",
	})
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(b)
}

// inside gives an archive's image, and what it holds for each architecture.
func inside(ctx context.Context, archive string) (top ocispec.Descriptor, parts []component, err error) {
	store, err := oci.NewFromTar(ctx, archive)
	if err != nil {
		return top, nil, err
	}
	var names []string
	if err := store.Tags(ctx, "", func(tags []string) error {
		names = append(names, tags...)
		return nil
	}); err != nil {
		return top, nil, err
	}
	if len(names) != 1 {
		return top, nil, fmt.Errorf("wanted one image, got %q", names)
	}
	if top, err = store.Resolve(ctx, names[0]); err != nil {
		return top, nil, err
	}
	var index ocispec.Index
	if err := fetch(ctx, store, top, &index); err != nil {
		return top, nil, err
	}
	for _, m := range index.Manifests {
		var manifest ocispec.Manifest
		if err := fetch(ctx, store, m, &manifest); err != nil {
			return top, nil, err
		}
		for _, layer := range manifest.Layers {
			parts = append(parts, component{
				Type: "file", Name: path.Join(m.Platform.OS, m.Platform.Architecture, layer.MediaType), Hashes: hashes(layer),
			})
		}
	}
	slices.SortFunc(parts, func(a, b component) int { return strings.Compare(a.Name, b.Name) })
	return top, parts, nil
}

func fetch(ctx context.Context, store content.Fetcher, d ocispec.Descriptor, into any) error {
	text, err := content.FetchAll(ctx, store, d)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

func hashes(d ocispec.Descriptor) []hash {
	return []hash{{Algorithm: "SHA-256", Content: d.Digest.Encoded()}}
}
