// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// apt is a set of package lists that apt's programs work with.
type apt struct {
	env  []string // for apt's programs: which lists these are
	hint string   // what the user can do about lists that are missing or old
}

// systemApt works with the lists of the machine itself.
var systemApt = apt{hint: "are apt's lists there and new? apt-get update fetches them"}

type debPackage struct{ name, version string }

// kernelParts are the packages that a kernel is made of: one package, or (Debian from 7.2 on) the image, the modules and
// the lists of what is built in, each in its own.
var kernelParts = regexp.MustCompile(`^linux-(image-|binary-|modules-|base-[0-9])`)

// resolve follows a meta package to the packages that a kernel is made of, the image first.
func (a apt) resolve(ctx context.Context, meta string) ([]debPackage, error) {
	_, depends, err := a.show(ctx, meta)
	if err != nil {
		return nil, err
	}
	var parts []debPackage
	for queue := depends; len(queue) > 0; queue = queue[1:] {
		name := queue[0]
		if !kernelParts.MatchString(name) || slices.ContainsFunc(parts, func(p debPackage) bool { return p.name == name }) {
			continue
		}
		version, depends, err := a.show(ctx, name)
		if err != nil {
			return nil, err
		}
		parts = append(parts, debPackage{name, version})
		queue = append(queue, depends...)
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("package %s depends on no kernel (it depends on %q)", meta, depends)
	}
	return parts, nil
}

// show returns the version of a package that apt would install, and the names of what it depends on.
func (a apt) show(ctx context.Context, name string) (version string, depends []string, err error) {
	out, err := command(ctx, "", a.env, nil, "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return "", nil, fmt.Errorf("%w (%s)", err, a.hint)
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		switch key, value, _ := strings.Cut(lines.Text(), ": "); key {
		case "Version":
			version = cmp.Or(version, value)
		case "Depends", "Pre-Depends":
			for _, dep := range strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == '|' }) {
				depends = append(depends, strings.Fields(dep)[0])
			}
		}
	}
	if version == "" {
		return "", nil, fmt.Errorf("apt has no package %s (%s)", name, a.hint)
	}
	return version, depends, lines.Err()
}

// download unpacks packages into dir, which is there only once it is complete and check has found no fault with it.
func (a apt) download(ctx context.Context, parts []debPackage, dir string, check func(root string) error, progress io.Writer) (err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), ".fetch-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	root := filepath.Join(temp, "root")
	for _, p := range parts {
		if err := a.downloadOne(ctx, p, temp, root, progress); err != nil {
			return err
		}
	}
	if err := check(root); err != nil {
		return err
	}
	err = os.Rename(root, dir)
	if _, statErr := os.Stat(dir); statErr == nil {
		return nil // whoever was faster has the same
	}
	return err
}

func (a apt) downloadOne(ctx context.Context, p debPackage, temp, root string, progress io.Writer) error {
	args := []string{"download", p.name + "=" + p.version}
	if os.Geteuid() == 0 {
		// apt's own download user cannot write here; apt would do the same, with a warning.
		args = append([]string{"-o", "APT::Sandbox::User=root"}, args...)
	}
	if _, err := command(ctx, temp, a.env, progress, "apt-get", args...); err != nil {
		return fmt.Errorf("%w (%s)", err, a.hint)
	}
	debs, err := filepath.Glob(filepath.Join(temp, p.name+"_*.deb"))
	if err != nil || len(debs) != 1 {
		return errors.Join(fmt.Errorf("package %s: apt-get download left %d files, not one", p.name, len(debs)), err)
	}
	if _, err := command(ctx, temp, nil, progress, "dpkg-deb", "-x", debs[0], root); err != nil {
		return err
	}
	return os.Remove(debs[0])
}

// command runs a program in dir and returns its output, which progress sees too.
func command(ctx context.Context, dir string, env []string, progress io.Writer, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), env...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if progress != nil {
		cmd.Stdout = io.MultiWriter(&out, progress)
	}
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%s not found: this needs Debian's or Ubuntu's package tools", name)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err,
			strings.ReplaceAll(strings.TrimSpace(said.String()), "\n", "; "))
	}
	return out.Bytes(), nil
}
