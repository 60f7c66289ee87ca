// SPDX-License-Identifier: Apache-2.0

// Package vm boots a Linux kernel under QEMU with one command as its user space, and returns the command's output and
// exit status.
//
// The guest has no disk, and no network device but one that the caller asks for. It has an initramfs with the files that the
// caller names, and an init of our own (package init beside this one) that mounts what commands expect, loads modules, runs
// the command and powers off. Output comes back through a virtio-serial port, exactly and completely; the kernel's console
// goes to a log of its own.
//
// Kernels come from apt: the machine's own (FetchKernel), or one of Debian's by name (Fetch, Kernels).
//
// QEMU is driven directly: the library for this, hugelgupf/vmtest, has had no release, and no commit since March 2024.
// The initramfs is written by u-root's cpio package.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"gadget.example/network/internal/vm/guest"
)

// Config says what to boot and what to run in it.
type Config struct {
	// Kernel is the kernel to boot; Fetch gives one.
	Kernel Kernel
	// Files are put into the guest's root file system, which is in its memory. Missing parent directories are made. Of two
	// files with one guest path the first counts.
	Files []File
	// Modules are names of kernel modules that are loaded, with what they depend on, before the command starts. One that
	// is built into the kernel is fine. The guest has no modprobe: what the kernel would load by itself belongs here too.
	Modules []string
	// Command is the program, a path in the guest or a name in its PATH, and its arguments. It may be a script whose
	// interpreter is among Files (see Busybox). Its standard input is empty. When it ends, whatever it left running is
	// killed.
	Command []string
	// Env adds KEY=value to the command's environment, which has PATH, HOME=/root and TERM=dumb.
	Env []string
	// Dir is the command's working directory in the guest, made if missing; default "/".
	Dir string
	// System, if not empty, is a program that becomes the guest's PID 1 in place of the init, such as /lib/systemd/systemd, and
	// its arguments. It is started when Command is; its root is Root, a folder of the guest, mounted. Command stays where it is,
	// and finds that root at /proc/1/root.
	System []string
	Root   string
	// MemoryMiB is the guest's memory in MiB, Files included; default 2048. Half of it can hold files.
	MemoryMiB int
	// CPUs is the number of the guest's processors; default 2.
	CPUs int
	// MaxCPUs is the number of processors that the guest's kernel takes for possible: CPUs, its default, are there, and the
	// rest could be plugged in, on amd64 alone.
	MaxCPUs int
	// Counted makes the guest's time that of its instructions, 1 ns each, and idle time passes at once: what it measures does not
	// depend on what else this machine does. It is emulated then, at half the speed. Linux 5.10 does not start a second
	// processor so.
	Counted bool
	// Tap is the name of a tap device of this process's network namespace, which is the other end of the guest's eth0. The
	// guest's init leaves that one as it is: down, without an address. Default: the guest has no network device.
	Tap string
	// Stdout and Stderr receive what the command writes, as it comes; nil discards. They are never written to at
	// once, so both may be one writer. A Write that blocks stops the guest.
	Stdout, Stderr io.Writer
	// Console is the file that receives the log of the guest's serial console, and is kept. Default: a temporary file,
	// kept only when Run fails because of the guest.
	Console string
	// Init is a built internal/vm/init for the kernel's architecture. Default: it is built with the go command, which
	// works where the caller runs inside this module.
	Init string
}

// File is one entry of the guest's root file system. Exactly one of Host, Link and Data says what it is.
type File struct {
	// Guest is its absolute path in the guest.
	Guest string
	// Host is the path of a file on the host, or of a directory, which is taken with everything in it. Symbolic links
	// below a directory stay links; Host itself may be one and is followed. Modes are kept, owners become root.
	Host string
	// Link is the target of a symbolic link.
	Link string
	// Data is the content of a file that the host does not have.
	Data []byte
	// Mode is the mode of a file given as Data; default 0755.
	Mode fs.FileMode
}

// Result is what a guest that ended in good order gives.
type Result struct {
	// ExitStatus is the command's exit status; 128 + the signal if one killed it.
	ExitStatus int
	// Boot is the time from the start of QEMU until the command starts.
	Boot time.Duration
	// Command is the time from there until its end is known.
	Command time.Duration
	// Accelerator is what ran the guest: "kvm" where that works, or else "tcg", which emulates it.
	Accelerator string
}

// GuestError says why a guest gave no exit status: it panicked, did not end in time, ran out of memory, powered off by
// itself, or could not run the command.
type GuestError struct {
	// Reason is one line.
	Reason string
	// Console is the path of the whole console log.
	Console string
	// LastLines are the last lines of the console log.
	LastLines []string
	// Err is the context's error if that is what ended the guest.
	Err error
}

func (e *GuestError) Error() string {
	s := "the guest " + e.Reason + "; its console log is " + e.Console
	if len(e.LastLines) == 0 {
		return s + ", and empty"
	}
	s += ", and ends:"
	for _, l := range e.LastLines {
		s += "\n  | " + l
	}
	return s
}

func (e *GuestError) Unwrap() error { return e.Err }

// Run boots a guest, runs the command in it and waits until the guest is gone. The guest is killed when ctx is done, and
// by the kernel should this process die: give ctx a deadline, as a guest can hang. A command that fails is no error: see
// Result.ExitStatus. The error is a *GuestError if it is about the guest, and leaves the console log behind, nothing else.
func Run(ctx context.Context, c Config) (Result, error) {
	c, m, err := c.complete()
	if err != nil {
		return Result{}, err
	}
	binary, err := m.find()
	if err != nil {
		return Result{}, err
	}
	accel := trials.accelerator(ctx, m, binary, c)
	image, err := packInitramfs(ctx, c)
	if err != nil {
		return Result{}, fmt.Errorf("make the guest's initramfs: %w", err)
	}
	defer image.Close()
	console, err := openConsole(c.Console)
	if err != nil {
		return Result{}, err
	}
	start := time.Now()
	q, err := startQEMU(ctx, binary, m.args(c, accel, console.path), image)
	if err != nil {
		return Result{}, errors.Join(err, console.discard())
	}
	s := session{config: c, start: start, result: Result{Accelerator: accel}}
	talkErr := s.talk(q.port)
	if talkErr != nil {
		q.kill() // what it says makes no sense any more
	}
	qemuErr := q.wait()
	if reason := s.failure(ctx, talkErr, qemuErr, console); reason != "" {
		return Result{}, console.guestError(reason, ctx.Err())
	}
	return s.result, errors.Join(s.writeErr, console.discard())
}

// complete fills in the defaults and refuses what cannot work.
func (c Config) complete() (Config, machine, error) {
	m, err := machineFor(c.Kernel.Arch)
	if err != nil {
		return c, m, err
	}
	if len(c.Command) == 0 {
		return c, m, errors.New("no command for the guest")
	}
	if (c.Root == "") != (len(c.System) == 0) {
		return c, m, errors.New("a System for the guest needs a Root, and a Root a System")
	}
	if c.Stdout == nil {
		c.Stdout = io.Discard
	}
	if c.Stderr == nil {
		c.Stderr = io.Discard
	}
	if c.Dir == "" {
		c.Dir = "/"
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 2048
	}
	if c.CPUs == 0 {
		c.CPUs = 2
	}
	if c.MaxCPUs == 0 {
		c.MaxCPUs = c.CPUs
	}
	if c.MaxCPUs < c.CPUs {
		return c, m, fmt.Errorf("%d possible processors, %d present: as many have to be possible", c.MaxCPUs, c.CPUs)
	}
	if c.MaxCPUs > c.CPUs && !m.plugs {
		return c, m, fmt.Errorf("%d possible processors, %d present: QEMU cannot plug any into %s", c.MaxCPUs, c.CPUs, c.Kernel.Arch)
	}
	if _, err := os.Stat(c.Kernel.Image); err != nil {
		return c, m, fmt.Errorf("kernel image: %w", err)
	}
	return c, m, nil
}

// session is one guest's side of the story.
type session struct {
	config   Config
	start    time.Time
	result   Result
	exit     *guest.Exit
	writeErr error
}

// talk reads what the guest says until its port closes, which it does at the latest when QEMU ends.
func (s *session) talk(port io.ReadWriter) error {
	buf := make([]byte, guest.MaxPayload)
	for {
		kind, payload, err := guest.ReadFrame(port, buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.take(kind, payload, port); err != nil {
			return err
		}
	}
}

func (s *session) take(kind guest.Kind, payload []byte, port io.Writer) error {
	switch kind {
	case guest.Started:
		s.result.Boot = time.Since(s.start)
	case guest.Stdout:
		s.write(s.config.Stdout, payload)
	case guest.Stderr:
		s.write(s.config.Stderr, payload)
	case guest.Exited:
		return s.end(payload, port)
	default:
		return fmt.Errorf("frame of unknown kind %q", kind)
	}
	return nil
}

// write passes output on. A writer that fails gets no more, and the guest goes on.
func (s *session) write(w io.Writer, b []byte) {
	if s.writeErr != nil {
		return
	}
	if _, err := w.Write(b); err != nil {
		s.writeErr = fmt.Errorf("pass on the guest's output: %w", err)
	}
}
