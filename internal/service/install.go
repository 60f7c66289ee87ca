// SPDX-License-Identifier: Apache-2.0

// Package service makes netgadget a service of systemd, and takes it back.
package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Path is where the unit is: an administrator's units are there.
const Path = "/etc/systemd/system/" + Name

// Options say how much install does.
type Options struct {
	Now   bool // start it at once, not at the next boot alone
	Force bool // replace a unit of this name that install did not write
}

// Install writes the unit and enables it. Called again, it changes what is different: with Now, the service is started
// again only if it was. What it has done is undone if it fails, but for a unit that was there before.
func Install(ctx context.Context, u Unit, o Options) (changed bool, err error) {
	if err := Available(); err != nil {
		return false, err
	}
	if err := trusted(u.Binary); err != nil {
		return false, err
	}
	before, err := readUnit()
	if err != nil {
		return false, err
	}
	if before != "" && !isOwn(before) && !o.Force {
		return false, fmt.Errorf("%s was not written by netgadget: remove it, or give --force to replace it", Path)
	}
	changed = before != u.String()
	if err := u.apply(ctx, changed, o); err != nil {
		if before == "" {
			err = errors.Join(err, remove(context.WithoutCancel(ctx)))
		}
		return changed, err
	}
	return changed, nil
}

func (u Unit) apply(ctx context.Context, changed bool, o Options) error {
	if changed {
		if err := writeFile(Path, u.String()); err != nil {
			return err
		}
		if err := systemctl(ctx, "daemon-reload"); err != nil {
			return err
		}
	}
	if err := systemctl(ctx, "--quiet", "enable", Name); err != nil {
		return err
	}
	switch {
	case !o.Now:
		return nil
	case changed:
		return start(ctx, "restart")
	default:
		return start(ctx, "start")
	}
}

// start says why the service did not start by the last that it has said.
func start(ctx context.Context, verb string) error {
	err := systemctl(ctx, verb, Name)
	if err == nil {
		return nil
	}
	if said := lastSaid(ctx); said != "" {
		return fmt.Errorf("the service does not start: %s", said)
	}
	return err
}

// Uninstall stops and disables the service, and removes the unit; false: there was none.
func Uninstall(ctx context.Context, force bool) (removed bool, err error) {
	if err := Available(); err != nil {
		return false, err
	}
	text, err := readUnit()
	if err != nil || text == "" {
		return false, err
	}
	if !isOwn(text) && !force {
		return false, fmt.Errorf("%s was not written by netgadget: remove it yourself, or give --force", Path)
	}
	return true, remove(ctx)
}

func remove(ctx context.Context) error {
	err := systemctl(ctx, "--quiet", "disable", "--now", Name)
	if removeErr := os.Remove(Path); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
		return errors.Join(err, removeErr)
	}
	err = errors.Join(err, systemctl(ctx, "daemon-reload"))
	// That it has failed is kept as well, and no error if it has not.
	_ = systemctl(ctx, "reset-failed", Name)
	return err
}

func isOwn(text string) bool { return strings.HasPrefix(text, mark+"\n") }

// readUnit is the unit's text; "" if there is none.
func readUnit() (string, error) {
	info, err := os.Lstat(Path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() { // a mask, for one: a link to /dev/null
		return "", fmt.Errorf("%s is no file but a %s: remove it first (systemctl unmask, if it is masked)", Path, info.Mode().Type())
	}
	text, err := os.ReadFile(Path)
	if err == nil && len(text) == 0 {
		return "\n", nil
	}
	return string(text), err
}

// writeFile replaces a file at once: nobody sees a part of it.
func writeFile(path, text string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".netgadget-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
