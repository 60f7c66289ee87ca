// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// resources are what a run of the gadget could leave behind, by kind.
type resources map[string][]string

// readResources lists what there is on this machine now.
func readResources() (resources, error) {
	r := resources{}
	var err error
	for kind, list := range map[string]func() ([]string, error){
		"eBPF programs":   programs,
		"eBPF maps":       ebpfMaps,
		"mounts":          mounts,
		"temporary files": func() ([]string, error) { return names(os.TempDir()) },
		"pinned objects":  func() ([]string, error) { return names("/sys/fs/bpf") },
		"namespaces":      func() ([]string, error) { return names("/run/netns") },
	} {
		var listErr error
		r[kind], listErr = list()
		err = errors.Join(err, listErr)
	}
	return r, err
}

// wantNothingLeft runs f and waits, within a bound, until all that is there was
// there before: the kernel frees programs and maps in its own time.
func wantNothingLeft(t *testing.T, f func()) {
	t.Helper()
	before, err := readResources()
	if err != nil {
		t.Fatal(err)
	}
	f()
	if err := awaitResources(before); err != nil {
		t.Error(err)
	}
}

func awaitResources(before resources) error {
	return eventually(func() error {
		runtime.GC() // IG leaves some maps to it
		now, err := readResources()
		for kind, list := range now {
			left := slices.DeleteFunc(list, func(name string) bool { return slices.Contains(before[kind], name) })
			if len(left) > 0 {
				err = errors.Join(err, fmt.Errorf("left behind: %s %q", kind, left))
			}
		}
		return err
	})
}

// patience is far above what a loaded machine takes under emulation: ig alone loads for
// three quarters of a minute there.
const patience = 5 * time.Minute

// eventually waits, within a bound, until f has no error, and returns its last.
func eventually(f func() error) error {
	bound := time.After(patience)
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-bound:
			return err
		case <-again.C:
		}
	}
}

func programs() ([]string, error) {
	var all []string
	for id, err := ebpf.ProgramGetNextID(0); ; id, err = ebpf.ProgramGetNextID(id) {
		if errors.Is(err, fs.ErrNotExist) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, fmt.Sprint(id))
	}
}

func ebpfMaps() ([]string, error) {
	var all []string
	for id, err := ebpf.MapGetNextID(0); ; id, err = ebpf.MapGetNextID(id) {
		if errors.Is(err, fs.ErrNotExist) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, fmt.Sprint(id))
	}
}

func mounts() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	return strings.Split(strings.TrimSpace(string(text)), "\n"), err
}

// names lists a folder that need not be there.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	var all []string
	for _, e := range entries {
		all = append(all, filepath.Join(dir, e.Name()))
	}
	return all, err
}
