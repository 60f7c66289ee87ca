// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// daemonCommand has an agent be a program that listens and hands its socket on.
const daemonCommand = "daemon"

// A handover is what such a program is told.
type handover struct {
	Step attempt.Step
	// Parent is the process that has handed the socket on, which is to end; 0: it is
	// the first one, and opens it.
	Parent int
	Left   int // processes that are to come
}

// listenerFD is where a process has the socket that was handed to it.
const listenerFD = 3

// daemon starts a program that listens on Src and hands its socket on, Count times,
// each time to a process that it starts before it ends, or to the program that it
// becomes. The report is of the process that has it then.
func (k *keeper) daemon(step attempt.Step, report *attempt.Report) error {
	told, err := json.Marshal(handover{Step: step, Left: step.Count})
	if err != nil {
		return err
	}
	cmd := exec.Command(os.Args[0], daemonCommand, string(told))
	cmd.Stderr = os.Stderr
	lifetime, err1 := cmd.StdinPipe()
	reports, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		return err
	}
	if err := json.NewDecoder(reports).Decode(&report.Process); err != nil {
		return fmt.Errorf("the daemon: %w", err)
	}
	reap := func() { _, _ = cmd.Process.Wait() } // how it ends, its report has told
	if step.Count > 0 && !step.Becomes {
		reap()
		reap = func() {}
	}
	k.sockets[step.Socket] = &socket{fd: -1, end: func() {
		lifetime.Close()
		_, _ = io.Copy(io.Discard, reports) // until all of them have ended
		reap()
	}}
	return nil
}

// beDaemon is one of the processes.
func beDaemon(told string) error {
	var h handover
	if err := json.Unmarshal([]byte(told), &h); err != nil {
		return err
	}
	fd := listenerFD
	if h.Parent == 0 {
		s, err := kept.open(attempt.Step{Do: attempt.Listen, Protocol: h.Step.Protocol, Src: h.Step.Src, Go: h.Step.Go, Socket: "it"})
		if err != nil {
			return err
		}
		fd = s.fd
	}
	if h.Left > 0 {
		return h.handOn(fd)
	}
	for h.Parent == os.Getppid() && !h.Step.Becomes {
		runtime.Gosched() // it is about to end
	}
	if h.Step.Comm != "" {
		if err := rename(h.Step.Comm, &attempt.Report{}); err != nil {
			return err
		}
	}
	var self attempt.Process
	if err := errors.Join(identify(&self), json.NewEncoder(os.Stdout).Encode(self)); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func (h handover) handOn(fd int) error {
	next := handover{Step: h.Step, Parent: os.Getpid(), Left: h.Left - 1}
	told, err := json.Marshal(next)
	if err != nil {
		return err
	}
	args := []string{os.Args[0], daemonCommand, string(told)}
	if h.Step.Becomes {
		return become(fd, args)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "listener")}
	if h.Left == 1 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: h.Step.UID, Gid: h.Step.UID}}
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if h.Parent == 0 && h.Left > 1 {
		return cmd.Wait() // as who forks twice does
	}
	return nil
}

// become executes a program from another thread than the first, as it can be in Go.
func become(fd int, args []string) error {
	if fd != listenerFD {
		if err := unix.Dup3(fd, listenerFD, 0); err != nil {
			return err
		}
	} else if _, err := unix.FcntlInt(listenerFD, unix.F_SETFD, 0); err != nil {
		return err
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread()
		failed <- unix.Exec("/proc/self/exe", args, os.Environ())
	}()
	return <-failed
}

// drain accepts what waits, and reports from where each connection came.
func (k *keeper) drain(step attempt.Step, report *attempt.Report) error {
	fd := k.sockets[step.Socket].fd
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	for {
		connection, from, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		unix.Close(connection)
		src, err := addrPort(from)
		if err != nil {
			return err
		}
		report.Steps = append(report.Steps, attempt.Report{Src: src})
	}
}
