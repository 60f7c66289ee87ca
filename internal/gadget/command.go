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
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gadget.example/network/internal/held"
)

// Exit statuses of a command that did not end by itself, or could not be started,
// as shells have them.
const (
	StatusTimedOut      = 124 // as timeout(1) has it
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

// Parameters of the gadget by which a command is followed, and how many of each
// there can be unless it is said otherwise: a table takes some 80 bytes for each.
const (
	followParam        = "follow"
	maxFollowedParam   = "max-followed"
	maxNamespacesParam = "max-namespaces"

	maxFollowed   = "32768"
	maxNamespaces = "4096"
)

// followed is the ID of the process that is followed, or nothing.
func (o Options) followed() string {
	if pid := o.Params[followParam]; strings.Trim(pid, "0") != "" {
		return pid
	}
	return ""
}

// Command is what RunCommand runs.
type Command struct {
	*exec.Cmd

	// Wait has the run last until the processes that the command has left have
	// ended, too, or a signal comes.
	Wait bool

	// Timeout, if not 0, is when the command gets SIGTERM, and Wait ends.
	Timeout time.Duration
}

// RunCommand runs a command and reports what it and all that it starts attempt,
// wherever they go: they are followed by fork, and the network namespaces that they
// enter are watched. It returns the command's exit status, 128 + N if signal N
// ended it, StatusTimedOut if its time was over, and what Run does.
//
// SIGTERM and SIGHUP are passed on to the command; SIGINT and SIGQUIT it gets from
// the terminal.
func RunCommand(ctx context.Context, o Options, cmd Command) (status int, s Summary, err error) {
	if cmd.Err != nil {
		return 0, s, newStartError(cmd.Err)
	}
	if o.followed() != "" {
		return 0, s, fmt.Errorf("--%s and a COMMAND exclude each other: it is the command that is followed", followParam)
	}
	process, err := held.Start(cmd.Cmd)
	if err != nil {
		return 0, s, newStartError(err)
	}
	defer process.Close()

	params := map[string]string{maxFollowedParam: maxFollowed, maxNamespacesParam: maxNamespaces}
	maps.Copy(params, o.Params)
	params["host"] = "true"
	params[followParam] = strconv.Itoa(process.Process.Pid)
	o.Params = params
	c := &command{Command: cmd, held: process}
	o.command = c
	o.OnReady = c.run
	s, err = Run(ctx, o)
	s.Running = c.running
	return c.status, s, err
}

// command is a command that is run.
type command struct {
	Command
	held     *held.Command
	followed *followed // once the gadget runs
	status   int
	running  int // processes that it has left
}

// run runs the command, and waits for its end and, when asked to, that of all that
// it has started.
func (c *command) run(ctx context.Context) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	if c.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Timeout)
		defer cancel()
	}

	if err := c.held.Release(); err != nil {
		return newStartError(err)
	}
	if err := c.await(ctx, signals); err != nil {
		return err
	}
	if c.Wait {
		waiting, stop := context.WithCancel(ctx)
		defer stop()
		go func() {
			for s := range signals {
				if s != unix.SIGHUP {
					stop()
				}
			}
		}()
		if err := c.followed.wait(waiting); err != nil {
			return err
		}
	}
	left, err := c.followed.running()
	c.running = len(left)
	return err
}

// await waits for the command itself.
func (c *command) await(ctx context.Context, signals <-chan os.Signal) error {
	ended := make(chan error, 1)
	go func() { ended <- c.held.Wait() }()
	done := ctx.Done()
	for {
		select {
		case s := <-signals:
			if s == unix.SIGTERM || s == unix.SIGHUP {
				_ = c.Process.Signal(s) // it may have ended meanwhile
			}
		case <-done:
			done = nil
			_ = c.Process.Signal(unix.SIGTERM)
		case err := <-ended:
			c.status, err = exitStatus(c.Cmd, err)
			if errors.Is(ctx.Err(), context.DeadlineExceeded) && done == nil {
				c.status = StatusTimedOut
			}
			return err
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
