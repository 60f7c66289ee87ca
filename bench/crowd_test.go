// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// leftFiles are for what this process has open besides.
	leftFiles = 1_000
	// The kernel has some 28,000 ports for one address of the other end, or of its own.
	connectionsOf = 20_000
	socketsOf     = 5_000
)

// crowd is sockets that are open, in the network namespace that it was made in, by
// threads of which each has a table of files of its own: the kernel bounds what one holds.
type crowd struct {
	files   int // that a thread may have
	threads []*holder
	ended   sync.WaitGroup
}

// holder is one of the threads.
type holder struct {
	jobs chan func() error
	done chan error
	held int // files
	id   int // of the thread
}

// The process's own thread stays with main(): its table of files is the one that
// /proc/self tells of, and it would not end with a goroutine.
func init() { runtime.LockOSThread() }

// newCrowd starts threads for so many files. What is opened later in this process, and a
// gadget is, they have no copy of.
func newCrowd(files int) (*crowd, error) {
	var most unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &most); err != nil {
		return nil, err
	}
	most.Cur = most.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &most); err != nil {
		return nil, err
	}
	here, err := netns.Get()
	if err != nil {
		return nil, err
	}
	defer here.Close()
	c := &crowd{files: int(most.Max) - leftFiles}
	var errs []error
	for range (files + c.files - 1) / c.files {
		h := &holder{jobs: make(chan func() error), done: make(chan error)}
		c.threads = append(c.threads, h)
		c.ended.Go(h.run)
		errs = append(errs, h.do(func() error { return errors.Join(netns.Set(here), unix.Unshare(unix.CLONE_FILES)) }))
	}
	if err := errors.Join(errs...); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// run ends with its thread, and that with its files.
func (h *holder) run() {
	runtime.LockOSThread()
	h.id = unix.Gettid()
	for job := range h.jobs {
		h.done <- job()
	}
}

func (h *holder) do(job func() error) error {
	h.jobs <- job
	return <-h.done
}

// connect adds connections over loopback, both ends open; numbered from the first on, as
// each address has ports for so many.
func (c *crowd) connect(first, n int) error { return c.add(first, n, 2, openConnections) }

// open adds listeners and UDP sockets, as many of the ones as of the others.
func (c *crowd) open(first, n int) error { return c.add(first, n, 1, openSockets) }

// add has each thread open what it has room for, one after the other.
func (c *crowd) add(first, n, filesEach int, open func(first, n int) error) error {
	for _, h := range c.threads {
		some := min(n, (c.files-h.held)/filesEach)
		if some == 0 {
			continue
		}
		if err := h.do(func() error { return open(first, some) }); err != nil {
			return err
		}
		h.held += some * filesEach
		first, n = first+some, n-some
	}
	if n > 0 {
		return fmt.Errorf("no room for %d more", n)
	}
	return nil
}

func (c *crowd) close() {
	for _, h := range c.threads {
		close(h.jobs)
	}
	c.ended.Wait()
	// The kernel closes their files, for seconds: what is measured next must not be
	// beside that.
	for _, h := range c.threads {
		for exists(fmt.Sprintf("/proc/self/task/%d", h.id)) {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// local is an address of loopback.
func local(kind byte, number int) [4]byte {
	return [4]byte{127, kind, byte(number >> 8), byte(number)}
}

func openConnections(first, n int) (err error) {
	listener, server := -1, unix.Sockaddr(nil)
	for i := first; i < first+n; i++ {
		if listener < 0 || i%connectionsOf == 0 {
			if listener, server, err = listenAt(local(1, i/connectionsOf)); err != nil {
				return err
			}
		}
		client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		// Both ends go at once when it is closed.
		err = unix.SetsockoptLinger(client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		if err := errors.Join(err, unix.Connect(client, server)); err != nil {
			return err
		}
		if _, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC); err != nil {
			return err
		}
	}
	return nil
}

func listenAt(address [4]byte) (socket int, at unix.Sockaddr, err error) {
	socket, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, err
	}
	if err := errors.Join(unix.Bind(socket, &unix.SockaddrInet4{Addr: address}), unix.Listen(socket, 16)); err != nil {
		return -1, nil, err
	}
	at, err = unix.Getsockname(socket)
	return socket, at, err
}

func openSockets(first, n int) error {
	for i := first; i < first+n; i++ {
		if i%2 == 0 {
			if _, _, err := listenAt(local(2, i/socketsOf)); err != nil {
				return err
			}
			continue
		}
		socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Bind(socket, &unix.SockaddrInet4{Addr: local(2, i/socketsOf)}); err != nil {
			return err
		}
	}
	return nil
}
