// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// argv0 is how the process is called, and how it knows itself.
const argv0 = "netgadget: taps"

// Requests and replies, a line each.
const (
	requestAttach = "attach "
	requestLate   = "late"
	replyDone     = "done "
	replyFailed   = "failed "
)

// priority is among those of real time (1 to 99) where Linux has its own threads
// for interrupts.
const priority = 50

func init() {
	if len(os.Args) == 1 && os.Args[0] == argv0 {
		if err := serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "netgadget:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// serve is what the process does, until there can be no more requests.
func serve(requests io.Reader, replies io.Writer) error {
	// It ends with who started it, and not before.
	signal.Ignore(unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP)
	debug.SetGCPercent(-1)
	config := Config{Filter: 3, Entered: 4, Watched: 5, Mark: 6, Count: 7}
	for _, fd := range config.list() {
		unix.CloseOnExec(fd)
	}
	taps, err := newTaps(config)
	if err != nil {
		return err
	}
	w := &watchers{taps: taps, ended: make(chan error, 1), watched: map[int]bool{}}
	unprivileged := haveComeFirst()
	if err := w.start(); err != nil {
		_, err = fmt.Fprintln(replies, replyFailed+err.Error())
		return err
	}
	fmt.Fprintln(replies, replyDone+reason(unprivileged))
	go w.startLate()
	go func() { w.ended <- taps.releaseLeft() }()

	served := make(chan error, 1)
	go func() { served <- answer(taps, requests, replies) }()
	select {
	case err := <-served:
		return err
	case err := <-w.ended:
		return err
	}
}

func reason(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// haveComeFirst gives all threads real-time priority: also those of Go's runtime,
// which others can have to wait for. Threads to come have it from those.
func haveComeFirst() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			return err
		}
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: priority}
		if err := unix.SchedSetAttr(tid, &attr, 0); err != nil {
			return fmt.Errorf("getting real-time priority: %w", err)
		}
	}
	return nil
}

func answer(taps *taps, requests io.Reader, replies io.Writer) error {
	// This thread goes to namespaces.
	runtime.LockOSThread()
	lines := bufio.NewScanner(requests)
	for lines.Scan() {
		said, err := taps.answer(lines.Text())
		if err != nil {
			said = replyFailed + err.Error()
		} else {
			said = replyDone + said
		}
		if _, err := fmt.Fprintln(replies, said); err != nil {
			break // nobody is there any more
		}
	}
	return lines.Err()
}

func (t *taps) answer(request string) (string, error) {
	if quoted, ok := strings.CutPrefix(request, requestAttach); ok {
		file, err := strconv.Unquote(quoted)
		if err != nil {
			return "", err
		}
		_, err = t.attachFile(file)
		return "", err
	}
	if request == requestLate {
		return strconv.FormatUint(t.late.Load(), 10), nil
	}
	return "", errors.New("no such request: " + request)
}
