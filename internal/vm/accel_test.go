// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// withoutKVM keeps a test's QEMU, which is a fake, out of what is known of this machine.
func withoutKVM(t *testing.T) {
	t.Helper()
	old := trials.device
	t.Cleanup(func() { trials.device = old })
	trials.device = filepath.Join(t.TempDir(), "none")
}

func TestKVMIsUsedWhereTheKernelCameUpWithIt(t *testing.T) {
	const works = "echo 'Kernel panic - not syncing: VFS: Unable to mount root fs'"
	tests := []struct {
		name, device, arch, qemu string
		canceled                 bool
		want                     string
		trials                   int // of two processes that each boot two kernels, twice
	}{
		{name: "works", qemu: works, want: kvm, trials: 2},
		{name: "QEMU fails", qemu: works + "; exit 1", want: tcg, trials: 1},
		{name: "the kernel fails", qemu: "echo 'Linux version 9.9'", want: tcg, trials: 1},
		{name: "no KVM", device: "/missing", qemu: works, want: tcg},
		{name: "no use of KVM", device: "/", qemu: works, want: tcg},
		{name: "another architecture", arch: "other", qemu: works, want: tcg},
		{name: "stopped while it tried: nothing is known", canceled: true, qemu: works, want: tcg},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			qemu := filepath.Join(dir, "qemu")
			write(t, qemu, "#!/bin/sh\necho \"$*\" >> "+dir+"/log\n"+test.qemu+"\n", 0o755)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if test.canceled {
				cancel()
			}
			if test.device == "" {
				test.device = os.DevNull
			}
			if test.arch == "" {
				test.arch = runtime.GOARCH
			}
			for range 2 {
				process := kvmTrials{device: test.device, file: filepath.Join(dir, "cache", "kvm")}
				for _, image := range []string{"one", "two", "one", "two"} {
					c := Config{Kernel: Kernel{Image: image, Arch: test.arch}, MemoryMiB: 256, CPUs: 2}
					if got := process.accelerator(ctx, machines[runtime.GOARCH], qemu, c); got != test.want {
						t.Errorf("kernel %s: got %s, want %s", image, got, test.want)
					}
				}
			}
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			if got := strings.Count(string(log), "-accel kvm"); got != test.trials {
				t.Errorf("%d trials, want %d:\n%s", got, test.trials, log)
			}
		})
	}
}

func TestTrialIsForgottenWhenTheMachineChanges(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "qemu"), "#!/bin/sh\nexit 1\n", 0o755)
	file := filepath.Join(dir, "kvm")
	write(t, file, "another boot\n"+kvm+" one\n", 0o644)
	process := kvmTrials{device: os.DevNull, file: file}
	c := Config{Kernel: Kernel{Image: "one", Arch: runtime.GOARCH}}
	if got := process.accelerator(t.Context(), machines[runtime.GOARCH], filepath.Join(dir, "qemu"), c); got != tcg {
		t.Errorf("got %s from a trial before this boot, want %s", got, tcg)
	}
}

// TestKernelWithNothingToRunShowsThatItCameUp has what a trial of KVM looks for, where there may be no KVM.
func TestKernelWithNothingToRunShowsThatItCameUp(t *testing.T) {
	t.Parallel()
	c, m, err := shell(t, "").complete()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := m.find()
	if err != nil {
		t.Fatal(err)
	}
	if !comesUp(limit(t, bootLimit), m, binary, c, tcg) {
		t.Errorf("kernel %s did not come up without an initramfs", c.Kernel.Release)
	}
}
