// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// portModules are the drivers of the port to the host.
var portModules = []string{"virtio_pci", "virtio_console"}

// tapModule is the driver of the guest's end of a tap device.
const tapModule = "virtio_net"

// moduleTree is a kernel's /lib/modules/RELEASE as its package has it: without modules.dep, which depmod makes when a
// package is installed. The modules themselves say what they depend on.
type moduleTree struct {
	dir     string
	files   map[string]string // name: path
	builtin map[string]bool
	aliases map[string][]string // alias without wildcards: names; read when first needed
}

// loadable is a module in load order.
type loadable struct {
	name     string
	optional bool
}

// openModules finds the modules below dir.
func openModules(dir string) (*moduleTree, error) {
	t := &moduleTree{dir: dir, files: map[string]string{}, builtin: map[string]bool{}}
	b, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		t.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			t.files[moduleName(p)] = p
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	return t, nil
}

// moduleName is the kernel's name of the module in a file, or of one that a user wrote with dashes.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// closure returns the modules with what they depend on, dependencies first. What is built into the kernel is left out.
func (t *moduleTree) closure(names []string) ([]loadable, error) {
	c := closure{tree: t, index: map[string]int{}, open: map[string]bool{}}
	for _, n := range names {
		n = moduleName(n)
		if _, ok := t.files[n]; !ok && !t.builtin[n] {
			return nil, fmt.Errorf("no module %q: neither built in nor below %s", n, t.dir)
		}
		if err := c.add(n, false); err != nil {
			return nil, err
		}
	}
	return c.order, nil
}

type closure struct {
	tree  *moduleTree
	order []loadable
	index map[string]int // into order
	open  map[string]bool
}

// add appends what a module needs and then the module.
func (c *closure) add(name string, optional bool) error {
	i, done := c.index[name]
	if c.open[name] || c.tree.builtin[name] || done && (optional || !c.order[i].optional) {
		return nil
	}
	c.open[name] = true
	defer delete(c.open, name)
	info, err := c.tree.info(name)
	if err != nil {
		return err
	}
	soft, err := c.tree.soft(info["softdep"])
	if err != nil {
		return err
	}
	for _, dep := range soft {
		if err := c.add(dep, true); err != nil {
			return err
		}
	}
	for _, dep := range strings.FieldsFunc(strings.Join(info["depends"], ","), func(r rune) bool { return r == ',' }) {
		if err := c.add(moduleName(dep), optional); err != nil {
			return err
		}
	}
	if done {
		c.order[i].optional = false
		return nil
	}
	c.index[name] = len(c.order)
	c.order = append(c.order, loadable{name, optional})
	return nil
}

// soft returns the modules that a "softdep" asks to be loaded before; one may name an alias with several providers, such
// as crc32c. What this kernel does not have is left out.
func (t *moduleTree) soft(softdeps []string) ([]string, error) {
	var names []string
	for _, s := range softdeps {
		_, s, _ = strings.Cut(s, "pre:")
		s, _, _ = strings.Cut(s, "post:")
		for dep := range strings.FieldsSeq(s) {
			if _, ok := t.files[moduleName(dep)]; ok || t.builtin[moduleName(dep)] {
				names = append(names, moduleName(dep))
				continue
			}
			if err := t.readAliases(); err != nil {
				return nil, err
			}
			names = append(names, t.aliases[dep]...)
		}
	}
	return names, nil
}

func (t *moduleTree) readAliases() error {
	if t.aliases != nil {
		return nil
	}
	t.aliases = map[string][]string{}
	for name := range t.files {
		info, err := t.info(name)
		if err != nil {
			return err
		}
		for _, alias := range info["alias"] {
			t.aliases[alias] = append(t.aliases[alias], name)
		}
	}
	return nil
}

// info reads a module's .modinfo section: key=value strings, each ended by a zero byte (see include/linux/module.h).
func (t *moduleTree) info(name string) (map[string][]string, error) {
	p, ok := t.files[name]
	if !ok {
		return nil, fmt.Errorf("no module %q, which another one depends on, below %s", name, t.dir)
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.ReaderAt = f
	if !strings.HasSuffix(p, ".ko") {
		b, err := t.read(name)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	section, err := modinfo(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	info := map[string][]string{}
	for entry := range strings.SplitSeq(string(section), "\x00") {
		if k, v, ok := strings.Cut(entry, "="); ok {
			info[k] = append(info[k], v)
		}
	}
	return info, nil
}

func modinfo(r io.ReaderAt) ([]byte, error) {
	e, err := elf.NewFile(r)
	if err != nil {
		return nil, err
	}
	s := e.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no .modinfo section")
	}
	return s.Data()
}

// read returns a module uncompressed: not every kernel can uncompress modules.
func (t *moduleTree) read(name string) ([]byte, error) {
	p := t.files[name]
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := decompressor(f, filepath.Ext(p))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	return b, nil
}

func decompressor(r io.Reader, ext string) (io.Reader, error) {
	switch ext {
	case ".ko":
		return r, nil
	case ".gz":
		return gzip.NewReader(r)
	case ".xz":
		return xz.NewReader(r)
	case ".zst":
		// One goroutine at most, none left when the caller has read to the end.
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
	}
	return nil, fmt.Errorf("compression %q is not known", ext)
}
