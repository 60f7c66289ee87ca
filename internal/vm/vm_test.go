// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
	"github.com/ulikunitz/xz"
)

func write(t *testing.T, path, content string, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// fakeModule is an ELF file with a .modinfo section and nothing else.
func fakeModule(t *testing.T, info ...string) string {
	t.Helper()
	modinfo := strings.Join(info, "\x00") + "\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	const headerSize, sectionSize = 64, 64
	h := elf.Header64{
		Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: headerSize,
		Shoff: uint64(headerSize + len(modinfo) + len(names)), Shentsize: sectionSize, Shnum: 3, Shstrndx: 2,
	}
	copy(h.Ident[:], []byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1})
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: headerSize, Size: uint64(len(modinfo))},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(headerSize + len(modinfo)), Size: uint64(len(names))},
	}
	var b bytes.Buffer
	for _, part := range []any{h, []byte(modinfo), []byte(names), sections} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// compressed is s as a module file with this ending holds it.
func compressed(t *testing.T, s, ext string) string {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch ext {
	case ".xz":
		w, err = xz.NewWriter(&b)
	case ".zst":
		w, err = zstd.NewWriter(&b)
	case ".gz":
		w = gzip.NewWriter(&b)
	default:
		return s
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// fakeKernel is a kernel that cannot boot, with a few modules that cannot load.
func fakeKernel(t *testing.T) Kernel {
	t.Helper()
	dir := t.TempDir()
	k := Kernel{Image: filepath.Join(dir, "vmlinuz"), ModulesDir: filepath.Join(dir, "modules"), Release: "9.9", Arch: "amd64"}
	write(t, k.Image, "no kernel", 0o644)
	write(t, filepath.Join(k.ModulesDir, "modules.builtin"), "kernel/virtio_pci.ko\nkernel/virtio-console.ko\n", 0o644)
	for file, info := range map[string][]string{
		"net/top.ko":        {"depends=middle-one,virtio_pci", "license=GPL"},
		"net/middle_one.ko": {"depends=base"},
		"net/base.ko":       {"softdep=pre: sum absent post: top", "depends="},
		"sum/sum-a.ko.xz":   {"alias=sum", "depends="},
		"sum/hard.ko.gz":    {"depends=sum_a"},
		"sum/packed.ko.zst": {"depends="},
		"sum/broken.ko":     {"depends=gone"},
	} {
		write(t, filepath.Join(k.ModulesDir, "kernel", file), compressed(t, fakeModule(t, info...), filepath.Ext(file)), 0o644)
	}
	return k
}

func TestModulesComeAfterWhatTheyDependOn(t *testing.T) {
	tree, err := openModules(fakeKernel(t).ModulesDir)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		names []string
		want  []loadable
		err   string
	}{
		{name: "none"},
		{name: "built in", names: []string{"virtio-pci", "virtio_console"}},
		{name: "compressed", names: []string{"packed"}, want: []loadable{{"packed", false}}},
		{
			name: "dependencies, soft ones optional", names: []string{"top"},
			want: []loadable{{"sum_a", true}, {"base", false}, {"middle_one", false}, {"top", false}},
		},
		{
			name: "soft for one and hard for another", names: []string{"base", "hard"},
			want: []loadable{{"sum_a", false}, {"base", false}, {"hard", false}},
		},
		{name: "unknown", names: []string{"base", "no-such"}, err: `no module "no_such"`},
		{name: "unknown dependency", names: []string{"broken"}, err: `no module "gone", which another one depends on`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := tree.closure(test.names)
			if !slices.Equal(got, test.want) || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("modules %q: got %v, %v; want %v, %q", test.names, got, err, test.want, test.err)
			}
		})
	}
}

func TestModuleIsReadUncompressed(t *testing.T) {
	tree, err := openModules(fakeKernel(t).ModulesDir)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"base":   fakeModule(t, "softdep=pre: sum absent post: top", "depends="),
		"sum_a":  fakeModule(t, "alias=sum", "depends="),
		"hard":   fakeModule(t, "depends=sum_a"),
		"packed": fakeModule(t, "depends="),
	} {
		if got, err := tree.read(name); err != nil || string(got) != want {
			t.Errorf("module %s: got %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
}

func TestInitramfsHoldsFilesAfterTheirFolders(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "sub", "tool"), "tool", 0o700)
	write(t, filepath.Join(dir, "init"), "the init", 0o755)
	if err := os.Symlink("sub/tool", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	image, err := packInitramfs(context.Background(), Config{
		Kernel: fakeKernel(t), Command: []string{"x"}, Modules: []string{"hard"}, Init: filepath.Join(dir, "init"),
		Files: []File{
			{Guest: "/a/b/data", Data: []byte("data"), Mode: 0o600},
			{Guest: "/tree", Host: dir},
			{Guest: "/a/b/data", Data: []byte("too late")},
			{Guest: "/bin/tool", Link: "/tree/sub/tool"},
			{Guest: "/followed", Host: filepath.Join(dir, "link")},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(image))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range records {
		content, err := io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize)))
		if err != nil {
			t.Fatal(err)
		}
		line := r.Name + " " + cpio.LSInfoFromRecord(r).Mode.String()
		if r.FileSize > 0 && r.FileSize < 20 {
			line += " " + string(content)
		}
		got = append(got, line)
	}
	want := []string{
		"lib drwxr-xr-x", "lib/modules drwxr-xr-x", "lib/modules/9.9 drwxr-xr-x",
		"lib/modules/9.9/sum_a.ko -rw-r--r--", "lib/modules/9.9/hard.ko -rw-r--r--",
		"a drwxr-xr-x", "a/b drwxr-xr-x", "a/b/data -rw------- data",
		"tree drwxr-xr-x", "tree/init -rwxr-xr-x the init", "tree/link Lrwxrwxrwx sub/tool",
		"tree/sub drwxr-xr-x", "tree/sub/tool -rwx------ tool",
		"bin drwxr-xr-x", "bin/tool Lrwxrwxrwx /tree/sub/tool", "followed -rwx------ tool",
		".vm drwxr-xr-x", ".vm/config.json -rw-r--r--", "init -rwxr-xr-x the init",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestRunRefusesWhatCannotWork needs no QEMU: each of these ends before one starts.
func TestRunRefusesWhatCannotWork(t *testing.T) {
	withoutKVM(t)
	bin := t.TempDir()
	write(t, filepath.Join(bin, "qemu-system-x86_64"), "#!/bin/sh\nexit 1\n", 0o755)
	sh, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		path   string
		change func(*Config)
		err    string
	}{
		{name: "no QEMU", path: t.TempDir(), err: "qemu-system-x86_64 not found: install it (Debian, Ubuntu: apt-get install qemu-system-x86)"},
		{name: "no command", change: func(c *Config) { c.Command = nil }, err: "no command for the guest"},
		{name: "a system without a root", change: func(c *Config) { c.System = []string{"/sbin/init"} }, err: "a System for the guest needs a Root"},
		{name: "no kernel", change: func(c *Config) { c.Kernel.Image = "/missing" }, err: "kernel image: stat /missing"},
		{name: "architecture", change: func(c *Config) { c.Kernel.Arch = "vax" }, err: `kernel architecture "vax"`},
		{name: "more present than possible", change: func(c *Config) { c.CPUs, c.MaxCPUs = 4, 2 }, err: "2 possible processors, 4 present"},
		{
			name: "nothing to plug", err: "3 possible processors, 2 present: QEMU cannot plug any into arm64",
			change: func(c *Config) { c.Kernel.Arch, c.MaxCPUs = "arm64", 3 },
		},
		{name: "module", change: func(c *Config) { c.Modules = []string{"nothing"} }, err: `kernel 9.9: no module "nothing"`},
		{name: "file", change: func(c *Config) { c.Files = []File{{Guest: "/x", Host: "/missing"}} }, err: "lstat /missing"},
		{name: "relative", change: func(c *Config) { c.Files = []File{{Guest: "x", Link: "y"}} }, err: "has to be absolute"},
		{name: "two sources", change: func(c *Config) { c.Files = []File{{Guest: "/x", Host: "/etc", Link: "y"}} }, err: "exactly one of"},
		{name: "device", change: func(c *Config) { c.Files = []File{{Guest: "/x", Host: os.DevNull}} }, err: "cannot be put into a guest"},
		{
			name: "dynamic command", err: "is dynamically linked",
			change: func(c *Config) { c.Files = []File{{Guest: "/x", Host: sh}}; c.Command = []string{"/x"} },
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := Config{Kernel: fakeKernel(t), Command: []string{"x"}}
			if test.change != nil {
				test.change(&c)
			}
			if test.path == "" {
				test.path = bin
			}
			t.Setenv("PATH", test.path)
			_, err := Run(context.Background(), c)
			if err == nil || !strings.Contains(err.Error(), test.err) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, test.err)
			}
		})
	}
}

func TestQEMUThatFailsIsTheReason(t *testing.T) {
	withoutKVM(t)
	bin := t.TempDir()
	write(t, filepath.Join(bin, "qemu-system-x86_64"), "#!/bin/sh\necho 'no such machine' >&2\nexit 1\n", 0o755)
	write(t, filepath.Join(bin, "init"), "the init", 0o755)
	t.Setenv("PATH", bin)
	_, err := Run(context.Background(), Config{Kernel: fakeKernel(t), Command: []string{"x"}, Init: filepath.Join(bin, "init")})
	var failed *GuestError
	if !errors.As(err, &failed) {
		t.Fatalf("got %v, want a GuestError", err)
	}
	defer os.Remove(failed.Console)
	if want := "was ended by QEMU: exit status 1: no such machine"; failed.Reason != want {
		t.Errorf("reason: got %q, want %q", failed.Reason, want)
	}
}
