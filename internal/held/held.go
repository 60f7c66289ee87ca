// SPDX-License-Identifier: Apache-2.0

// Package held starts a command that is held before its first instruction: its
// process is there, and has its ID, and does not go on before it is released.
//
// The process is this program, which waits and then becomes the command. What
// imports this package can be started so: it has to end up in its init, before
// anything else of the program runs. For that it imports next to nothing.
package held

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// argv0 is how the process that waits is called, and how it knows itself.
const argv0 = "netgadget: held"

// statusNobody is the exit status of a process that is not released: nobody
// reads it.
const statusNobody = 125

func init() {
	if len(os.Args) > 4 && os.Args[0] == argv0 {
		becomeCommand(os.Args[1], os.Args[2], os.Args[3], os.Args[4:])
		os.Exit(statusNobody)
	}
}

// becomeCommand waits at the first descriptor, and reports at the second why it
// could not become the command: it returns if so.
func becomeCommand(wait, report, path string, argv []string) {
	waitFD, err := strconv.Atoi(wait)
	if err != nil {
		return
	}
	reportFD, err := strconv.Atoi(report)
	if err != nil {
		return
	}
	syscall.CloseOnExec(waitFD)
	syscall.CloseOnExec(reportFD)
	if !isReleased(waitFD) {
		return
	}
	var errno syscall.Errno
	if errors.As(syscall.Exec(path, argv, os.Environ()), &errno) {
		_, _ = syscall.Write(reportFD, binary.NativeEndian.AppendUint32(nil, uint32(errno)))
	}
}

// isReleased waits for a byte; the end of the pipe is that of who holds it.
func isReleased(fd int) bool {
	for {
		n, err := syscall.Read(fd, make([]byte, 1))
		if !errors.Is(err, syscall.EINTR) {
			return n == 1
		}
	}
}

// Command is a command that was started and is held.
type Command struct {
	*exec.Cmd
	path   string
	wait   *os.File // what is written there releases it
	report *os.File // where it says why it could not be executed
}

// Start starts a command and holds it. The command is changed: it can be waited
// for, and nothing else. Close it when it has ended.
func Start(cmd *exec.Cmd) (*Command, error) {
	waitHere, wait, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	defer waitHere.Close()
	report, reportHere, err := os.Pipe()
	if err != nil {
		wait.Close()
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	defer reportHere.Close()

	c := &Command{Cmd: cmd, path: cmd.Path, wait: wait, report: report}
	next := 3 + len(cmd.ExtraFiles)
	cmd.ExtraFiles = append(cmd.ExtraFiles, waitHere, reportHere)
	cmd.Args = append([]string{argv0, strconv.Itoa(next), strconv.Itoa(next + 1), cmd.Path}, cmd.Args...)
	cmd.Path = "/proc/self/exe"
	if err := cmd.Start(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Release has the command go on, and returns when it does, or why it does not.
func (c *Command) Release() error {
	if _, err := c.wait.Write([]byte{0}); err != nil && !errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("releasing the command: %w", err)
	}
	var errno [4]byte
	_, err := io.ReadFull(c.report, errno[:])
	if errors.Is(err, io.EOF) { // it is closed when another program runs
		return nil
	}
	if err != nil {
		return fmt.Errorf("releasing the command: %w", err)
	}
	return &os.PathError{Op: "fork/exec", Path: c.path, Err: syscall.Errno(binary.NativeEndian.Uint32(errno[:]))}
}

// Close ends a command that was not released.
func (c *Command) Close() {
	c.wait.Close()
	c.report.Close()
	if c.Process != nil && c.ProcessState == nil {
		_ = c.Wait() // its status says nothing
	}
}
