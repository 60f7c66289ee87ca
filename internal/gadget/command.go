// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit statuses of a command that could not be started, as shells have them.
const (
	StatusNotExecutable = 126
	StatusNotFound      = 127
)

// StartError says that a command could not be started.
type StartError struct {
	Status int // StatusNotExecutable or StatusNotFound
	Err    error
}

func (e *StartError) Error() string { return "starting the command: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Err }

func newStartError(err error) *StartError {
	status := StatusNotExecutable
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		status = StatusNotFound
	}
	return &StartError{Status: status, Err: err}
}

// RunCommand runs a command and reports what it and its children attempt, in
// the network namespace of this process. It returns the command's exit status,
// 128 + N if signal N ended it, and what Run does.
//
// The command gets a mount namespace of its own, by which IG tells its
// processes from others; what it mounts is seen outside as ever. SIGTERM and
// SIGHUP are passed on to it; SIGINT and SIGQUIT it gets from the terminal.
// A child that enters another mount namespace is not followed.
func RunCommand(ctx context.Context, o Options, cmd *exec.Cmd) (status int, s Summary, err error) {
	if cmd.Err != nil {
		return 0, s, newStartError(cmd.Err)
	}
	ns, err := newMountNS()
	if err != nil {
		return 0, s, err
	}
	defer ns.close()

	o.Params = maps.Clone(o.Params)
	if o.Params == nil {
		o.Params = map[string]string{}
	}
	o.Params["host"] = "true"
	o.MountNS = ns.inode
	o.NetNSOf = append(o.NetNSOf, os.Getpid())
	o.OnReady = func(context.Context) (err error) {
		status, err = ns.run(cmd)
		return err
	}
	s, err = Run(ctx, o)
	return status, s, err
}

// mountNS is a mount namespace and the thread that is in it.
type mountNS struct {
	inode uint64
	calls chan func()
}

func newMountNS() (*mountNS, error) {
	ns := &mountNS{calls: make(chan func())}
	entered := make(chan error)
	go func() {
		// The thread cannot go back, and so ends with the goroutine.
		runtime.LockOSThread()
		entered <- ns.enter()
		for call := range ns.calls {
			call()
		}
	}()
	if err := <-entered; err != nil {
		ns.close()
		return nil, fmt.Errorf("making a mount namespace for the command: %w", err)
	}
	return ns, nil
}

func (ns *mountNS) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/mnt", &stat); err != nil {
		return err
	}
	ns.inode = stat.Ino
	return nil
}

func (ns *mountNS) close() { close(ns.calls) }

// run runs a command in the namespace and returns its exit status.
func (ns *mountNS) run(cmd *exec.Cmd) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)

	// A child is forked from the thread that starts it.
	started := make(chan error)
	ns.calls <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return 0, newStartError(err)
	}

	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			if s == unix.SIGTERM || s == unix.SIGHUP {
				_ = cmd.Process.Signal(s) // it may have ended meanwhile
			}
		case err := <-ended:
			return exitStatus(cmd, err)
		}
	}
}

func exitStatus(cmd *exec.Cmd, err error) (int, error) {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, fmt.Errorf("waiting for the command: %w", err)
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}
