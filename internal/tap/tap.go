// SPDX-License-Identifier: Apache-2.0

// Package tap attaches a socket filter to network namespaces: to those that it
// is told of, and to those that a process has just entered, before the process
// goes on.
//
// It does so in a process of its own. There is a thread for each CPU, of real-time
// priority, which waits for what the kernel's side (ebpf/enter.h) writes into the
// ring of that CPU, still within the system call by which a namespace is entered.
// When the kernel is about to leave for user space, that thread comes first, and
// attaches. Nothing in the process may hold it up: no garbage is collected, and
// nothing else is done in it. What imports this package can be started so.
package tap

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Config are descriptors of what is to be attached, and of what tells when.
type Config struct {
	Filter  int // the program, a socket filter
	Entered int // the map of rings that the kernel's side writes to
	Watched int // the map of namespaces that are watched
	Mark    int // the program that adds the namespace of its caller to them
	Count   int // the program that returns how many use one, by its inode number
}

// descriptors are the configuration's in the other process, from 3 on.
const descriptors = 5

func (c Config) list() [descriptors]int {
	return [...]int{c.Filter, c.Entered, c.Watched, c.Mark, c.Count}
}

// Tap is what attaches.
type Tap struct {
	// Unprivileged, if not nil, is why it has no real-time priority: then a
	// process can be faster than it.
	Unprivileged error

	cmd      *exec.Cmd
	requests io.WriteCloser
	replies  *bufio.Reader

	mu sync.Mutex // a request and its reply
}

// Start returns when namespaces that are entered from now on are attached to.
func Start(c Config) (*Tap, error) {
	t := &Tap{cmd: exec.Command("/proc/self/exe")}
	t.cmd.Args = []string{argv0}
	t.cmd.Stderr = os.Stderr
	// What the terminal sends is for others.
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	for _, fd := range c.list() {
		copied, err := syscall.Dup(fd)
		if err != nil {
			return nil, fmt.Errorf("passing on a descriptor: %w", err)
		}
		syscall.CloseOnExec(copied)
		file := os.NewFile(uintptr(copied), "")
		defer file.Close()
		t.cmd.ExtraFiles = append(t.cmd.ExtraFiles, file)
	}
	var err error
	if t.requests, err = t.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	replies, err := t.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	t.replies = bufio.NewReader(replies)
	if err := t.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting what watches network namespaces: %w", err)
	}
	said, err := t.reply()
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	if said != "" {
		t.Unprivileged = errors.New(said)
	}
	return t, nil
}

// PID is the ID of its process.
func (t *Tap) PID() int { return t.cmd.Process.Pid }

// Attach attaches to the namespace that a file stands for, unless it has already.
func (t *Tap) Attach(file string) error {
	_, err := t.ask(requestAttach + strconv.Quote(file))
	return err
}

// Late is how many times a process had gone on in a network namespace that it had
// entered, or had ended, before that was attached to.
func (t *Tap) Late() (uint64, error) {
	said, err := t.ask(requestLate)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(said, 10, 64)
}

// Close detaches from all.
func (t *Tap) Close() error {
	t.requests.Close()
	if err := t.cmd.Wait(); err != nil {
		return fmt.Errorf("what watches network namespaces ended: %w", err)
	}
	return nil
}

func (t *Tap) ask(request string) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := fmt.Fprintln(t.requests, request); err != nil {
		return "", fmt.Errorf("what watches network namespaces has ended: %w", err)
	}
	return t.reply()
}

func (t *Tap) reply() (string, error) {
	line, err := t.replies.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("what watches network namespaces has ended: %w", err)
	}
	said, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), replyDone)
	if !ok {
		return "", errors.New(strings.TrimPrefix(said, replyFailed))
	}
	return said, nil
}
