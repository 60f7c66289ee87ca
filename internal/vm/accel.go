// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// What runs a guest, as Result.Accelerator has it.
const (
	kvm = "kvm"
	// tcg has one thread for all of the guest's processors: with several, the guest panics now and then while it patches its
	// own code.
	tcg = "tcg"
)

// kvmTrial is how long a kernel may take under KVM to find that it has no root file system. It takes a second or two; where
// KVM hangs it takes for ever, and KVM hangs on some machines that have it.
const kvmTrial = 10 * time.Second

// kvmTrials remembers what was seen to work: in the process, and in a file that other processes read.
type kvmTrials struct {
	sync.Mutex
	device string
	file   string // empty: there is no place for one
	// seen is the file's text. Its first line is the machine that it is about; then a line for each kernel that booted with
	// KVM, or one that says that KVM is no good here.
	seen string
}

var trials = kvmTrials{device: "/dev/kvm", file: trialsFile()}

func trialsFile() string {
	dir, err := userCache()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "kvm-trials")
}

// accelerator chooses what runs a guest: KVM if its kernel was seen to boot with it, or else TCG. Each kernel is tried once
// in each boot of this machine, until one fails.
func (t *kvmTrials) accelerator(ctx context.Context, m machine, binary string, c Config) string {
	if c.Counted || c.Kernel.Arch != runtime.GOARCH || !openable(t.device) {
		return tcg
	}
	t.Lock()
	defer t.Unlock()
	t.load(machineID(binary))
	line := kvm + " " + fileID(c.Kernel.Image) + "\n"
	switch {
	case strings.Contains(t.seen, "\n"+tcg+"\n"):
		return tcg
	case strings.Contains(t.seen, "\n"+line):
		return kvm
	}
	trial, cancel := context.WithTimeout(ctx, kvmTrial)
	defer cancel()
	accel := kvm
	if !comesUp(trial, m, binary, c, kvm) {
		accel, line = tcg, tcg+"\n"
	}
	if ctx.Err() == nil { // else the trial may have been cut short
		t.seen += line
		t.save()
	}
	return accel
}

// load reads what is known of this machine, unless that was done.
func (t *kvmTrials) load(id string) {
	if strings.HasPrefix(t.seen, id) {
		return
	}
	t.seen = id
	if b, err := os.ReadFile(t.file); err == nil && strings.HasPrefix(string(b), id) {
		t.seen = string(b)
	}
}

// save writes the file if it can: without, the next process tries again.
func (t *kvmTrials) save() {
	if t.file == "" || os.MkdirAll(filepath.Dir(t.file), 0o755) != nil {
		return
	}
	_ = os.WriteFile(t.file, []byte(t.seen), 0o644)
}

// machineID is what a trial holds for, a line: this boot of this machine, and this QEMU.
func machineID(binary string) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		boot = []byte("unknown")
	}
	return strings.TrimSpace(string(boot)) + " " + fileID(binary) + "\n"
}

func fileID(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return path
	}
	return fmt.Sprintf("%s %d %d", path, info.Size(), info.ModTime().UnixNano())
}

func openable(device string) bool {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

// comesUp boots a kernel with nothing to run. It panics, and with that shows that it came through its start.
func comesUp(ctx context.Context, m machine, binary string, c Config, accel string) bool {
	cmd := exec.CommandContext(ctx, binary, append(m.computer(c, accel, ""), "-serial", "stdio")...)
	// The parent whose death Pdeathsig is about is this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	console, err := cmd.Output()
	return err == nil && bytes.Contains(console, []byte("Kernel panic - not syncing: VFS: "))
}
