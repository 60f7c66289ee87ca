// SPDX-License-Identifier: Apache-2.0

// Package artifacthub tests the files by which Artifact Hub lists the gadget: against
// its own description of them (docs/metadata in its repository), and against the gadget.
package artifacthub

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	metadatav1 "github.com/inspektor-gadget/inspektor-gadget/pkg/metadata/v1"
	"gopkg.in/yaml.v3"
)

const root = "../.."

// link is a name and an address.
type link struct{ Name, URL string }

// pkg has the fields of artifacthub-pkg.yml that a gadget has a use for; Artifact Hub
// ignores others in silence, and so a misspelt one.
type pkg struct {
	Version          string
	Name             string
	Category         string
	DisplayName      string `yaml:"displayName"`
	CreatedAt        string `yaml:"createdAt"`
	Description      string
	LogoURL          string `yaml:"logoURL"`
	Digest           string
	License          string
	HomeURL          string `yaml:"homeURL"`
	ContainersImages []struct {
		Name, Image string
		Platforms   []string
	} `yaml:"containersImages"`
	Prerelease bool
	Keywords   []string
	Links      []link
	Install    string
	Changes    []struct {
		Kind, Description string
		Links             []link
	}
	Provider struct{ Name string }
}

type repo struct {
	RepositoryID string `yaml:"repositoryID"`
	Owners       []struct{ Name, Email string }
	Ignore       []struct{ Name, Version string }
}

func read(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("%s: wanted Artifact Hub's fields, got %v", name, err)
	}
}

func TestThePackageIsTheGadget(t *testing.T) {
	var p pkg
	var gadget metadatav1.GadgetMetadata
	read(t, "artifacthub-pkg.yml", &p)
	text, err := os.ReadFile(filepath.Join(root, "gadget.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &gadget); err != nil {
		t.Fatal(err)
	}
	for field, pair := range map[string][2]string{
		"name": {p.Name, gadget.Name}, "description": {p.Description, gadget.Description}, "homeURL": {p.HomeURL, gadget.HomepageURL},
	} {
		if pair[0] != pair[1] {
			t.Errorf("artifacthub-pkg.yml, %s: wanted gadget.yaml's %q, got %q", field, pair[1], pair[0])
		}
	}
	if !slices.Contains(p.Links, link{"source", gadget.SourceURL}) {
		t.Errorf("artifacthub-pkg.yml, links: wanted gadget.yaml's source, %s, got %v", gadget.SourceURL, p.Links)
	}
	program, err := os.ReadFile(filepath.Join(root, "program.bpf.c"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(program, []byte("SPDX-License-Identifier: "+p.License+" ")) && !bytes.Contains(program, []byte("SPDX-License-Identifier: "+p.License+"\n")) {
		t.Errorf("artifacthub-pkg.yml, license: wanted that of program.bpf.c, got %s", p.License)
	}
	image := "ghcr.io/OWNER/" + p.Name + ":v" + p.Version
	if len(p.ContainersImages) != 1 || p.ContainersImages[0].Image != image ||
		!slices.Equal(p.ContainersImages[0].Platforms, []string{"linux/amd64", "linux/arm64"}) {
		t.Errorf("artifacthub-pkg.yml, containersImages: wanted %s for amd64 and arm64, got %+v", image, p.ContainersImages)
	}
	if !strings.Contains(p.Install, "ig run "+image+" --public-keys=") {
		t.Errorf("artifacthub-pkg.yml, install: wanted to run %s verified, got %s", image, p.Install)
	}
}

// What Artifact Hub requires, and the values that it takes.
func TestThePackageIsWhatArtifactHubTakes(t *testing.T) {
	var p pkg
	read(t, "artifacthub-pkg.yml", &p)
	for field, c := range map[string]struct{ value, form string }{
		"version":     {p.Version, `\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?`},
		"name":        {p.Name, `[A-Za-z0-9-]+`},
		"displayName": {p.DisplayName, `.+`},
		"category": {p.Category, `ai-machine-learning|database|integration-delivery|monitoring-logging|networking|security|storage|` +
			`streaming-messaging|skip-prediction`},
		"license":       {p.License, `[A-Za-z0-9.-]+`},
		"provider.name": {p.Provider.Name, `.+`},
	} {
		if !regexp.MustCompile(`^(` + c.form + `)$`).MatchString(c.value) {
			t.Errorf("artifacthub-pkg.yml, %s: wanted the form %s, got %q", field, c.form, c.value)
		}
	}
	if _, err := time.Parse(time.RFC3339, p.CreatedAt); err != nil {
		t.Errorf("artifacthub-pkg.yml, createdAt: %v", err)
	}
	for _, change := range p.Changes {
		if !slices.Contains([]string{"added", "changed", "deprecated", "removed", "fixed", "security"}, change.Kind) || change.Description == "" {
			t.Errorf("artifacthub-pkg.yml, changes: wanted a kind and a description, got %+v", change)
		}
	}
}

func TestTheRepositoryIsWhatArtifactHubTakes(t *testing.T) {
	var r repo
	read(t, "artifacthub-repo.yml", &r)
	if r.RepositoryID != "" && !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(r.RepositoryID) {
		t.Errorf("artifacthub-repo.yml, repositoryID: wanted a UUID, got %q", r.RepositoryID)
	}
}
