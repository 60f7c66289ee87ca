// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/u-root/u-root/pkg/cpio"

	"gadget.example/network/internal/vm/guest"
)

// packInitramfs writes the guest's root file system into a file that has no name any more, so that nothing is left
// however this process ends.
func packInitramfs(ctx context.Context, c Config) (*os.File, error) {
	f, err := os.CreateTemp("", "vm-initramfs-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	buffer := bufio.NewWriterSize(f, 1<<20)
	a := &archive{w: cpio.Newc.Writer(buffer), known: map[string]bool{"/": true}}
	if err := errors.Join(a.fill(ctx, c), buffer.Flush()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// archive writes cpio records: parents before children, each path once.
type archive struct {
	w     cpio.RecordWriter
	known map[string]bool
}

func (a *archive) fill(ctx context.Context, c Config) error {
	if err := checkCommand(c); err != nil {
		return err
	}
	config, err := a.addModules(c)
	if err != nil {
		return err
	}
	for _, f := range c.Files {
		if err := a.addFile(f); err != nil {
			return err
		}
	}
	b, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := a.add(cpio.StaticFile(guest.ConfigPath, string(b), 0o644)); err != nil {
		return err
	}
	initBinary, err := readInit(ctx, c)
	if err != nil {
		return err
	}
	// Last, so that a guest too small for its files does not get as far as its init.
	if err := a.add(cpio.StaticFile(guest.InitPath, string(initBinary), 0o755)); err != nil {
		return err
	}
	return cpio.WriteTrailer(a.w)
}

// addModules adds the modules that are needed and returns the init's configuration, which has their order.
func (a *archive) addModules(c Config) (guest.Config, error) {
	g := guest.Config{Command: c.Command, Env: c.Env, Dir: c.Dir, Root: c.Root, System: c.System}
	tree, err := openModules(c.Kernel.ModulesDir)
	if err != nil {
		return g, err
	}
	if g.PortModules, err = a.addClosure(tree, c.Kernel.Release, portModules); err != nil {
		return g, err
	}
	names := c.Modules
	if c.Tap != "" {
		names = append([]string{tapModule}, names...)
	}
	g.Modules, err = a.addClosure(tree, c.Kernel.Release, names)
	return g, err
}

// addClosure adds modules and what they depend on, and returns them in load order.
func (a *archive) addClosure(tree *moduleTree, release string, names []string) ([]guest.Module, error) {
	modules, err := tree.closure(names)
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", release, err)
	}
	var list []guest.Module
	for _, m := range modules {
		p := path.Join("/lib/modules", release, m.name+".ko")
		list = append(list, guest.Module{Path: p, Optional: m.optional})
		b, err := tree.read(m.name)
		if err != nil {
			return nil, err
		}
		if err := a.add(cpio.StaticFile(p, string(b), 0o644)); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// add writes a record, after its parents, unless its path is there already.
func (a *archive) add(r cpio.Record) error {
	p := path.Join("/", r.Name)
	if a.known[p] {
		if c, ok := r.ReaderAt.(io.Closer); ok {
			return c.Close()
		}
		return nil
	}
	if parent := path.Dir(p); !a.known[parent] {
		if err := a.add(cpio.Directory(parent, 0o755)); err != nil {
			return err
		}
	}
	a.known[p] = true
	return a.w.WriteRecord(r)
}

func (a *archive) addFile(f File) error {
	if !path.IsAbs(f.Guest) {
		return fmt.Errorf("guest path %q of a file: it has to be absolute", f.Guest)
	}
	switch {
	case f.Host != "" && f.Link == "" && f.Data == nil:
		return a.addHost(f)
	case f.Link != "" && f.Host == "" && f.Data == nil:
		return a.add(cpio.Symlink(f.Guest, f.Link))
	case f.Data != nil && f.Host == "" && f.Link == "":
		mode := f.Mode
		if mode == 0 {
			mode = 0o755
		}
		return a.add(cpio.StaticFile(f.Guest, string(f.Data), unixMode(mode)))
	}
	return fmt.Errorf("file %s: exactly one of Host, Link and Data says what it is", f.Guest)
}

// addHost adds a file of the host, or a directory with all that is in it.
func (a *archive) addHost(f File) error {
	host, err := filepath.EvalSymlinks(f.Host)
	if err != nil {
		return err
	}
	return filepath.WalkDir(host, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(host, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return a.addEntry(p, path.Join(f.Guest, filepath.ToSlash(rel)), info)
	})
}

func (a *archive) addEntry(host, guestPath string, info fs.FileInfo) error {
	switch info.Mode().Type() {
	case fs.ModeDir:
		return a.add(cpio.Directory(guestPath, unixMode(info.Mode())))
	case fs.ModeSymlink:
		target, err := os.Readlink(host)
		if err != nil {
			return err
		}
		return a.add(cpio.Symlink(guestPath, target))
	case 0:
		f, err := os.Open(host)
		if err != nil {
			return err
		}
		defer f.Close() // the writer closes it too, if it comes so far
		return a.add(cpio.Record{ReaderAt: f, Info: cpio.Info{
			Name:     guestPath,
			Mode:     cpio.S_IFREG | unixMode(info.Mode()),
			MTime:    uint64(info.ModTime().Unix()),
			FileSize: uint64(info.Size()),
		}})
	}
	return fmt.Errorf("%s: a %s cannot be put into a guest", host, info.Mode().Type())
}

// unixMode gives the permission bits as the kernel has them.
func unixMode(m fs.FileMode) uint64 {
	bits := uint64(m.Perm())
	for flag, bit := range map[fs.FileMode]uint64{
		fs.ModeSetuid: cpio.S_ISUID, fs.ModeSetgid: cpio.S_ISGID, fs.ModeSticky: cpio.S_ISVTX,
	} {
		if m&flag != 0 {
			bits |= bit
		}
	}
	return bits
}

// checkCommand refuses a dynamically linked command without its loader, which the guest could only call "not found".
func checkCommand(c Config) error {
	for _, f := range c.Files {
		if f.Host == "" || f.Guest != c.Command[0] {
			continue
		}
		loader, err := interpreter(f.Host)
		if err != nil || loader == "" {
			return err
		}
		for _, other := range c.Files {
			if other.Guest == loader {
				return nil
			}
		}
		return fmt.Errorf("%s is dynamically linked and %s is not among the guest's files: build it with CGO_ENABLED=0",
			f.Host, loader)
	}
	return nil
}

// interpreter returns the dynamic loader that an ELF file asks for; empty for static ones and for other files.
func interpreter(p string) (string, error) {
	f, err := os.Open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	e, err := elf.NewFile(f)
	if err != nil {
		return "", nil // no ELF file
	}
	for _, prog := range e.Progs {
		if prog.Type == elf.PT_INTERP {
			b, err := io.ReadAll(prog.Open())
			if err != nil {
				return "", fmt.Errorf("%s: %w", p, err)
			}
			return string(b[:max(0, len(b)-1)]), nil
		}
	}
	return "", nil
}
