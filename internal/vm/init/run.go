// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"gadget.example/network/internal/vm/guest"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// run runs the command to its end, then ends every process that it left behind, so that its output has an end too.
func run(c guest.Config, out *frames) (int, error) {
	p, copied, err := start(c, out)
	if err != nil {
		return 0, err
	}
	status, err := reap(p.Pid)
	if err != nil {
		return 0, err
	}
	if err := killRest(); err != nil {
		return 0, err
	}
	for range 2 {
		if err := <-copied; err != nil {
			return 0, fmt.Errorf("send the command's output: %w", err)
		}
	}
	return status, nil
}

// start starts the command. copied gives one result for stdout and one for stderr, when each has reached its end.
func start(c guest.Config, out *frames) (p *os.Process, copied chan error, err error) {
	env, err := environment(c.Env)
	if err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, nil, err
	}
	if err := os.Chdir(c.Dir); err != nil {
		return nil, nil, err
	}
	path, err := exec.LookPath(c.Command[0])
	if err != nil {
		return nil, nil, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	copied = make(chan error, 2)
	files := []*os.File{null}
	for _, kind := range []guest.Kind{guest.Stdout, guest.Stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		defer w.Close()
		files = append(files, w)
		go func() { copied <- out.copy(kind, r) }()
	}
	p, err = os.StartProcess(path, c.Command, &os.ProcAttr{Env: env, Files: files})
	return p, copied, err
}

// environment makes env PID 1's own, on top of defaults, so that the command is looked up in the PATH that it gets.
func environment(env []string) ([]string, error) {
	for _, kv := range append([]string{"PATH=" + defaultPath, "HOME=/root", "TERM=dumb"}, env...) {
		k, v, _ := strings.Cut(kv, "=")
		if err := os.Setenv(k, v); err != nil {
			return nil, fmt.Errorf("environment %q: %w", kv, err)
		}
	}
	return os.Environ(), os.MkdirAll(os.Getenv("HOME"), 0o700)
}

// reap collects every child that ends, orphans too, until pid has, and returns its status as a shell would give it.
func reap(pid int) (int, error) {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for the command: %w", err)
		case got == pid && ws.Signaled():
			return 128 + int(ws.Signal()), nil
		case got == pid:
			return ws.ExitStatus(), nil
		}
	}
}

// killRest kills every process but this one and collects them all.
func killRest() error {
	if err := unix.Kill(-1, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill what the command left: %w", err)
	}
	for {
		_, err := unix.Wait4(-1, nil, 0, nil)
		switch {
		case errors.Is(err, unix.ECHILD):
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for what the command left: %w", err)
		}
	}
}
