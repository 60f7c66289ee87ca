// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A guest that works is far below this; one that does not ends here.
const bootLimit = 3 * time.Minute

// starterEnv makes the test binary a program that runs a guest without end: see TestGuestDiesWithItsStarter.
const starterEnv = "VM_TEST_STARTER"

// TestMain gives the tests a temporary folder of their own and fails if a file or a process is left when they are done.
func TestMain(m *testing.M) {
	if os.Getenv(starterEnv) != "" {
		os.Exit(runForever())
	}
	dir, err := os.MkdirTemp("", "vm-test-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Setenv("TMPDIR", dir)
	status := m.Run()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		fmt.Fprintf(os.Stderr, "left in the temporary folder: %v %v, want nothing\n", left, err)
		status = 1
	}
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		fmt.Fprintf(os.Stderr, "child processes left (pid %d, %v), want none\n", pid, err)
		status = 1
	}
	os.RemoveAll(dir)
	os.Exit(status)
}

// fetchOnce gets the kernel that all tests boot.
var fetchOnce = sync.OnceValues(func() (Kernel, error) {
	dir, err := DefaultCache()
	if err != nil {
		return Kernel{}, err
	}
	return FetchKernel(context.Background(), dir, os.Stderr)
})

// shell is a guest whose command is a busybox shell script.
func shell(t *testing.T, script string) Config {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a virtual machine, which takes seconds: not with -short")
	}
	k, err := fetchOnce()
	if err != nil {
		t.Fatal(err)
	}
	files, err := Busybox()
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, File{Guest: "/script", Data: []byte("#!/bin/sh\n" + script)})
	return Config{Kernel: k, Files: files, Command: []string{"/script"}, MemoryMiB: 512}
}

func limit(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestScriptSeesWhatItWasGiven(t *testing.T) {
	t.Parallel()
	c := shell(t, `
		echo "$PWD $GREETING $*"
		cat /given/below/file /given/link
		stat -c %a /given/below/file
		grep -o '^8021q' /proc/modules
		grep -o '^nf_conntrack' /proc/modules
		ls -d /sys/kernel/debug/tracing /sys/kernel/tracing/events
		awk '$2 ~ "^/(sys/fs|tmp|run)" { print $3 }' /proc/mounts
		ping -c 1 127.0.0.1 | grep -o '1 packets received'
		echo problem >&2
		exit 7`)
	given := t.TempDir()
	if err := os.Mkdir(filepath.Join(given, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(given, "below", "file"), []byte("content\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("below/file", filepath.Join(given, "link")); err != nil {
		t.Fatal(err)
	}
	c.Files = append(c.Files, File{Guest: "/given", Host: given})
	c.Modules = []string{"8021q", "nf-conntrack"}
	c.Command = append(c.Command, "two words", "three")
	c.Env = []string{"GREETING=hello"}
	c.Dir = "/some/where"
	c.Console = filepath.Join(t.TempDir(), "console.log")
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	result, err := Run(limit(t, bootLimit), c)
	if err != nil {
		t.Fatal(err)
	}
	want := `/some/where hello two words three
content
content
640
8021q
nf_conntrack
/sys/kernel/debug/tracing
/sys/kernel/tracing/events
tmpfs
tmpfs
cgroup2
bpf
1 packets received
`
	if got := stdout.String(); got != want {
		t.Errorf("standard output\ngot:\n%s\nwant:\n%s", got, want)
	}
	if got := stderr.String(); got != "problem\n" {
		t.Errorf("standard error: got %q, want %q", got, "problem\n")
	}
	if result.ExitStatus != 7 || result.Boot <= 0 || result.Command <= 0 || result.Accelerator == "" {
		t.Errorf("got %+v, want exit status 7, times and what ran it", result)
	}
	if log, err := os.ReadFile(c.Console); err != nil || !bytes.Contains(log, []byte("Linux version")) {
		t.Errorf("console log that was asked for: %d bytes, %v; want a kernel's log", len(log), err)
	}
	t.Logf("boot %v, command %v", result.Boot, result.Command)
}

func TestGuestHasMorePossibleProcessorsThanPresentOnes(t *testing.T) {
	t.Parallel()
	c := shell(t, "cd /sys/devices/system/cpu; cat possible present")
	c.CPUs, c.MaxCPUs = 1, 3
	want := "0-2\n0\n"
	if !machines[c.Kernel.Arch].plugs {
		c.MaxCPUs, want = 0, "0\n0\n"
	}
	var stdout bytes.Buffer
	c.Stdout = &stdout
	if _, err := Run(limit(t, bootLimit), c); err != nil {
		t.Fatal(err)
	}
	if got := stdout.String(); got != want {
		t.Errorf("possible and present processors of Linux %s: got %q, want %q", c.Kernel.Release, got, want)
	}
}

func TestLargeOutputOfAKilledProgramIsComplete(t *testing.T) {
	t.Parallel()
	const size = 5 << 20
	c := shell(t, "")
	program := filepath.Join(t.TempDir(), "talk")
	build := exec.Command("go", "build", "-o", program, "./testdata/talk")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+c.Kernel.Arch)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.Files = []File{{Guest: "/bin/talk", Host: program}}
	c.Command = []string{"talk", strconv.Itoa(size)}
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	result, err := Run(limit(t, bootLimit), c)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(i * 7 >> 3)
	}
	for name, got := range map[string][]byte{"output": stdout.Bytes(), "error": stderr.Bytes()} {
		if !bytes.Equal(got, want) {
			t.Errorf("standard %s: got %d bytes, want %d of the pattern", name, len(got), size)
		}
	}
	if want := 128 + int(syscall.SIGTERM); result.ExitStatus != want {
		t.Errorf("exit status %d, want %d", result.ExitStatus, want)
	}
}

func TestGuestThatFailsGivesItsReason(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, script string
		change       func(*Config)
		stop         bool // when the script says "go on"
		reason       string
		console      string
		is           error
	}{
		{
			name:   "panic",
			script: "echo c > /proc/sysrq-trigger",
			reason: "panicked: sysrq triggered crash", console: "Kernel panic - not syncing",
		},
		{
			name:   "power off",
			script: "poweroff -f",
			reason: "powered off before the command had an exit status", console: "Power down",
		},
		{
			name:   "hang",
			script: "echo go on; while :; do :; done", stop: true,
			reason: "was stopped after", console: "Linux version", is: context.Canceled,
		},
		{
			name:   "out of memory",
			script: "tail /dev/zero",
			change: func(c *Config) { c.MemoryMiB = 256 },
			reason: "ran out of its 256 MiB of memory: Out of memory: Killed process", console: "tail",
		},
		{
			name:   "no such command",
			change: func(c *Config) { c.Command = []string{"/missing"} },
			reason: "could not run the command: ", console: "Linux version",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := shell(t, test.script)
			if test.change != nil {
				test.change(&c)
			}
			ctx, cancel := context.WithCancel(limit(t, bootLimit))
			defer cancel()
			if test.stop {
				c.Stdout = writerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil })
			}
			result, err := Run(ctx, c)
			var failed *GuestError
			if !errors.As(err, &failed) {
				t.Fatalf("got %+v, %v; want a GuestError", result, err)
			}
			defer os.Remove(failed.Console)
			log, logErr := os.ReadFile(failed.Console)
			if logErr != nil || !strings.Contains(string(log), test.console) {
				t.Errorf("console log: %d bytes, %v; want %q in it", len(log), logErr, test.console)
			}
			if !strings.Contains(failed.Reason, test.reason) || len(failed.LastLines) == 0 {
				t.Errorf("got reason %q and %d console lines, want %q and some", failed.Reason, len(failed.LastLines), test.reason)
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("got error %v, want one that is %v", err, test.is)
			}
			if pids := processesWith(t, failed.Console); len(pids) > 0 {
				t.Errorf("QEMU is still there: %v", pids)
			}
		})
	}
}

func TestGuestEndsAtItsDeadline(t *testing.T) {
	t.Parallel()
	// Long before any kernel is up, so that the test need not wait for one.
	_, err := Run(limit(t, 2*time.Second), shell(t, "while :; do :; done"))
	var failed *GuestError
	if errors.As(err, &failed) {
		os.Remove(failed.Console)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want an error that is %v", err, context.DeadlineExceeded)
	}
}

// TestGuestDiesWithItsStarter kills a process that runs a guest, which then can clean up nothing.
func TestGuestDiesWithItsStarter(t *testing.T) {
	t.Parallel()
	c := shell(t, "")
	console := filepath.Join(t.TempDir(), "console.log")
	starter := exec.CommandContext(limit(t, bootLimit), os.Args[0])
	starter.Env = append(os.Environ(), starterEnv+"="+console)
	starter.Stderr = os.Stderr
	out, err := starter.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := starter.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "up\n" {
		t.Fatalf("guest said %q, %v; want up", line, err)
	}
	pids := processesWith(t, console)
	if len(pids) != 1 {
		t.Fatalf("got processes %v with console %s of kernel %s, want one QEMU", pids, console, c.Kernel.Release)
	}
	fd, err := unix.PidfdOpen(pids[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := starter.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = starter.Wait() // says that it was killed
	ended := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(ended, 30_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			t.Errorf("QEMU outlived the process that started it (poll: %d, %v)", n, err)
		}
		return
	}
}

// runForever is the process that TestGuestDiesWithItsStarter kills.
func runForever() int {
	k, err := fetchOnce()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	files, err := Busybox()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_, err = Run(context.Background(), Config{
		Kernel: k, Files: files, Stdout: os.Stdout, Console: os.Getenv(starterEnv),
		Command: []string{"sh", "-c", "echo up; while :; do sleep 1000; done"},
	})
	fmt.Fprintln(os.Stderr, "the guest ended:", err)
	return 1
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// processesWith finds the processes that have a string in their command line.
func processesWith(t *testing.T, s string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended since
		}
		if strings.Contains(string(b), s) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}
