// SPDX-License-Identifier: Apache-2.0

package service

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// limit bounds each wait: an emulated guest is slow.
const limit = 5 * time.Minute

// await waits until done says so.
func await(t *testing.T, what string, done func() (bool, error)) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		ok, err := done()
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come within %v", what, limit)
		}
	}
}

// inSystem is a command in the system's root.
func inSystem(name string, args ...string) *exec.Cmd {
	path := name
	if !strings.Contains(name, "/") {
		for _, dir := range []string{"/usr/local/bin", "/usr/sbin", "/usr/bin", "/bin"} {
			if _, err := os.Stat(systemRoot + dir + "/" + name); err == nil {
				path = dir + "/" + name
				break
			}
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/bin", "LC_ALL=C", "SYSTEMD_PAGER=cat"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: systemRoot}
	return cmd
}

// do runs a command in the system's root, which has to succeed, and returns what it says.
func do(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := inSystem(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s\n%s", name, args, err, out, lastWords())
	}
	return strings.TrimSpace(string(out))
}

// lastWords are what the service has said last.
func lastWords() string {
	out, _ := inSystem("journalctl", "-u", unit, "-n", "30", "-o", "cat").CombinedOutput() // for a message
	return string(out)
}

// booted waits until systemd has started all that it starts by itself.
func booted(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/.vm/config.json"); err != nil || os.Getppid() == 0 {
		t.Fatalf("this is no guest of internal/vm: %v", err)
	}
	await(t, "systemd", func() (bool, error) {
		_, err := os.Stat(systemRoot + "/run/systemd/private")
		return err == nil, nil
	})
	out, err := inSystem("systemctl", "is-system-running", "--wait").CombinedOutput()
	if said := strings.TrimSpace(string(out)); said != "running" {
		failed, _ := inSystem("systemctl", "--failed").CombinedOutput() // for a message
		t.Fatalf("systemd: wanted it running, got %q, %v\n%s", said, err, failed)
	}
}

// volatile are folders in which others write at any time.
var volatile = []string{"/var/log", "/var/lib/systemd", "/run/log", "/run/systemd/journal", "/run/udev"}

// places are where a service can leave something.
var places = []string{"/etc", "/home", "/opt", "/root", "/run", "/srv", "/tmp", "/usr", "/var"}

// tree lists all files of the system's folders with what they are, and the units that systemd knows.
func tree(t *testing.T, folders []string) []string {
	t.Helper()
	var all []string
	for _, place := range folders {
		err := filepath.WalkDir(systemRoot+place, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(path, systemRoot)
			if slices.Contains(volatile, name) {
				return fs.SkipDir
			}
			target, _ := os.Readlink(path) // "" for what is no link
			all = append(all, d.Type().String()+" "+name+" "+target)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for line := range strings.Lines(do(t, "systemctl", "list-unit-files", "--no-legend")) {
		all = append(all, "unit "+strings.TrimSpace(line))
	}
	for line := range strings.Lines(do(t, "systemctl", "list-units", "--all", "--plain", "--no-legend", unit)) {
		all = append(all, "loaded "+strings.TrimSpace(line))
	}
	return all
}

// wantSame wants the system's folders to be as they were.
func wantSame(t *testing.T, folders, before []string) {
	t.Helper()
	after := tree(t, folders)
	for _, line := range after {
		if !slices.Contains(before, line) {
			t.Errorf("left behind: %s", line)
		}
	}
	for _, line := range before {
		if !slices.Contains(after, line) {
			t.Errorf("gone: %s", line)
		}
	}
}
