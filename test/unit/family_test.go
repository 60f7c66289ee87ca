// SPDX-License-Identifier: Apache-2.0

//go:build hooks

package unit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// generations in the environment makes this program a process that opens a port,
// or starts another one which does.
const generations = "NETWORK_TEST_GENERATIONS"

func TestMain(m *testing.M) {
	n, err := strconv.Atoi(os.Getenv(generations))
	if err != nil {
		os.Exit(m.Run())
	}
	if err := descend(n); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// descend opens a port in the n-th process from here, and says so; it lasts until
// its standard input ends.
func descend(n int) error {
	if n > 1 {
		child := descendant(n - 1)
		child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
		return child.Run()
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, socketAddress(here4))
	}
	if err == nil {
		_, err = fmt.Println("bound")
	}
	if err != nil {
		return fmt.Errorf("opening a port in a process of a test: %w", err)
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func descendant(generation int) *exec.Cmd {
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), fmt.Sprintf("%s=%d", generations, generation))
	return c
}

// booking is what is in the books of a process that has opened a port.
type booking struct{ pid, parent, family, started uint64 }

// onlyBooking is that of the only open port of a network namespace.
func (g *gadget) onlyBooking(t *testing.T, netns uint32) booking {
	t.Helper()
	b := g.books[portBook]
	keys := b.keysOf(t, netns, "local.")
	if len(keys) != 1 {
		t.Fatalf("one port is open, want one entry, got %d", len(keys))
	}
	value := make([]byte, b.value.size)
	if err := b.Lookup(keys[0], value); err != nil {
		t.Fatal(err)
	}
	number := func(name string) uint64 { return b.value.field(name).uint(value) }
	return booking{pid: number("proc.pid"), parent: number("proc.parent.pid"), family: number("family"), started: number("started")}
}

// bookDescendant has a descendant of this process open a port; sure: it was
// young when it did.
func (g *gadget) bookDescendant(t *testing.T, generation int) (b booking, sure bool) {
	t.Helper()
	home, before := newHome(t), bootTime(t)
	child := descendant(generation)
	child.Stderr = os.Stderr
	stdin, err1 := child.StdinPipe()
	stdout, err2 := child.StdoutPipe()
	if err := errors.Join(err1, err2, inside(home, child.Start)); err != nil {
		t.Fatal(err)
	}
	_, err := bufio.NewReader(stdout).ReadString('\n')
	after := bootTime(t)
	if err == nil {
		b = g.onlyBooking(t, inode(t, home))
	}
	if err := errors.Join(err, stdin.Close(), child.Wait()); err != nil {
		t.Fatal(err)
	}
	if b.started < before || b.started > after {
		t.Errorf("a process started at %d, want a time from %d to %d", b.started, before, after)
	}
	return b, after-before < uint64(time.Second)
}

// bookOwn has this process open a port.
func (g *gadget) bookOwn(t *testing.T) booking {
	t.Helper()
	home := newHome(t)
	fd := -1
	err := inside(home, func() (err error) {
		fd, err = realSocket{proto: protoUDP, local: here4}.open()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	return g.onlyBooking(t, inode(t, home))
}

func TestSystemCallsBookTheFamilyOfAYoungProcess(t *testing.T) {
	g := hook(t, nil, portHooks...)
	self := uint64(os.Getpid())
	started := g.bookOwn(t).started
	eventually(t, func() bool { return bootTime(t)-started >= uint64(time.Second) }, "this process does not get older")
	want := booking{pid: self, parent: uint64(os.Getppid()), started: started}
	if got := g.bookOwn(t); got != want {
		t.Errorf("a process that is older than a second\n got %+v\nwant %+v", got, want)
	}
	for _, generation := range []int{1, 2} {
		b, sure := g.bookDescendant(t, generation)
		for end := time.Now().Add(patience); !sure && time.Now().Before(end); {
			b, sure = g.bookDescendant(t, generation)
		}
		// A machine that is slow makes an elder of the parent: both are right.
		if b.pid == self || b.family != self && b.family != b.parent {
			t.Errorf("a young process of generation %d: got %+v, want the family %d or its parent's, and another pid", generation, b, self)
		}
	}
}
