// SPDX-License-Identifier: Apache-2.0

// Package object loads the gadget's eBPF object by hand, as Inspektor Gadget
// (IG) does, for tests and benchmarks of its parts.
package object

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing/fstest"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"

	"gadget.example/network/internal/gadget/image"
)

// programMediaType is the layer that holds the eBPF object, see IG's pkg/oci.
const programMediaType = "application/vnd.gadget.ebpf.program.v1+binary"

// Read reads the embedded image's object for this machine's architecture.
func Read() (*ebpf.CollectionSpec, error) {
	layout, err := image.Layout()
	if err != nil {
		return nil, err
	}
	return readFrom(layout)
}

// ReadArchive reads the same of an image in a file, as `ig image export` writes it.
func ReadArchive(file string) (*ebpf.CollectionSpec, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	layout := fstest.MapFS{}
	for archive := tar.NewReader(f); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return readFrom(layout)
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
		layout[path.Clean(header.Name)] = &fstest.MapFile{Data: content}
	}
}

func readFrom(layout fs.FS) (*ebpf.CollectionSpec, error) {
	// Before Linux 5.11, maps are locked memory.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, err
	}
	object, err := objectOf(layout, runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return nil, fmt.Errorf("parsing the eBPF object: %w", err)
	}
	return spec, nil
}

// Keep leaves these programs of an object, and the maps and variables that they use:
// the other programs may be of kinds that this kernel cannot load.
func Keep(spec *ebpf.CollectionSpec, programs ...string) error {
	for _, name := range programs {
		if spec.Programs[name] == nil {
			return fmt.Errorf("the eBPF object lacks the program %s", name)
		}
	}
	maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return !slices.Contains(programs, name) })
	needed := map[string]bool{}
	for _, p := range spec.Programs {
		for _, ins := range p.Instructions {
			if ins.IsLoadFromMap() {
				needed[ins.Reference()] = true
			}
		}
	}
	maps.DeleteFunc(spec.Maps, func(name string, _ *ebpf.MapSpec) bool { return !needed[name] })
	maps.DeleteFunc(spec.Variables, func(_ string, v *ebpf.VariableSpec) bool { return !needed[v.SectionName] })
	return nil
}

// Load loads the programs and maps of an object. The caller closes them.
func Load(spec *ebpf.CollectionSpec) (*ebpf.Collection, error) {
	return load(spec, 0)
}

func load(spec *ebpf.CollectionSpec, level ebpf.LogLevel) (*ebpf.Collection, error) {
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: level}})
	if err != nil {
		return nil, fmt.Errorf("loading the eBPF object: %w", err)
	}
	return c, nil
}

// processed is what the verifier says of each program (print_verification_stats
// in kernel/bpf/verifier.c). The program's info has the number too, but only from
// Linux 5.16 on.
var processed = regexp.MustCompile(`processed (\d+) insns`)

// Verified loads the programs of an object, and returns how many instructions
// the verifier went through for each, by its name.
func Verified(spec *ebpf.CollectionSpec) (map[string]int, error) {
	c, err := load(spec, ebpf.LogLevelStats)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	costs := map[string]int{}
	for name, p := range c.Programs {
		found := processed.FindStringSubmatch(p.VerifierLog)
		if found == nil {
			return nil, fmt.Errorf("program %s: the verifier's log has no count of instructions: %q", name, p.VerifierLog)
		}
		if costs[name], err = strconv.Atoi(found[1]); err != nil {
			return nil, fmt.Errorf("program %s: %w", name, err)
		}
	}
	return costs, nil
}

// notAttached is what IG does not attach a program to, see pkg/operators/ebpf/attach.go.
const notAttached = "gadget_program_disabled"

// AttachHooks attaches the kprobes, kretprobes and tracepoints of a loaded object,
// and returns what detaches them.
func AttachHooks(spec *ebpf.CollectionSpec, c *ebpf.Collection) (detach func() error, err error) {
	var links []link.Link
	detach = func() error {
		var errs []error
		for _, l := range links {
			errs = append(errs, l.Close())
		}
		return errors.Join(errs...)
	}
	for name, p := range spec.Programs {
		if (p.Type != ebpf.Kprobe && p.Type != ebpf.TracePoint) || p.AttachTo == notAttached {
			continue
		}
		l, err := attachHook(p, c.Programs[name])
		if err != nil {
			return nil, errors.Join(fmt.Errorf("attaching %s: %w", p.SectionName, err), detach())
		}
		links = append(links, l)
	}
	return detach, nil
}

func attachHook(spec *ebpf.ProgramSpec, p *ebpf.Program) (link.Link, error) {
	if spec.Type == ebpf.TracePoint {
		group, name, _ := strings.Cut(spec.AttachTo, "/")
		return link.Tracepoint(group, name, p, nil)
	}
	if strings.HasPrefix(spec.SectionName, "kretprobe/") {
		return link.Kretprobe(spec.AttachTo, p, nil)
	}
	return link.Kprobe(spec.AttachTo, p, nil)
}

// objectOf finds the eBPF object of an architecture in an OCI layout.
func objectOf(layout fs.FS, arch string) ([]byte, error) {
	type descriptor struct {
		MediaType, Digest string
		Platform          struct{ Architecture string }
	}
	var index struct{ Manifests []descriptor }
	if err := readJSON(layout, "index.json", &index); err != nil {
		return nil, err
	}
	for _, m := range index.Manifests {
		if m.Platform.Architecture != arch {
			continue
		}
		var manifest struct{ Layers []descriptor }
		if err := readJSON(layout, blob(m.Digest), &manifest); err != nil {
			return nil, err
		}
		for _, l := range manifest.Layers {
			if l.MediaType == programMediaType {
				return fs.ReadFile(layout, blob(l.Digest))
			}
		}
	}
	return nil, fmt.Errorf("the gadget image has no eBPF object for %s", arch)
}

func blob(digest string) string {
	return path.Join("blobs", strings.Replace(digest, ":", "/", 1))
}

func readJSON(fsys fs.FS, name string, v any) error {
	b, err := fs.ReadFile(fsys, name)
	if err != nil {
		return fmt.Errorf("reading the gadget image: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("reading %s of the gadget image: %w", name, err)
	}
	return nil
}
