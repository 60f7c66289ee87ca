// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// A host of many processes with sockets, which are there before the gadget.
const (
	processes = 2_000
	perEach   = 10 // sockets of a process: listeners, and as many of UDP
)

// BenchmarkOlder measures how long the gadget takes to find the sockets that are
// older than it: of this process alone, and of many.
func BenchmarkOlder(b *testing.B) {
	all, err := newHooks()
	if err != nil {
		b.Fatal(err)
	}
	defer all.collection.Close()
	look := func(name string) {
		took, err := all.lookForOlder()
		if err != nil {
			b.Fatal(err)
		}
		fmt.Printf("older sockets of %-42s %8.1f ms\n", name, float64(took.Microseconds())/1000)
	}
	for b.Loop() {
		look("this machine as it is")
		end, err := holdMany()
		if err != nil {
			b.Fatal(err)
		}
		look(fmt.Sprintf("%d processes more, with %d sockets", processes, processes*perEach))
		if err := end(); err != nil {
			b.Fatal(err)
		}
	}
}

func (h *hooks) lookForOlder() (took time.Duration, err error) {
	iterator, err := link.AttachIter(link.IterOptions{Program: h.collection.Programs["network_older"]})
	if err != nil {
		return 0, err
	}
	defer iterator.Close()
	r, err := iterator.Open()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	start := time.Now()
	for {
		// The kernel stops after a million objects, see bpf_seq_read().
		_, err := io.Copy(io.Discard, r)
		if !errors.Is(err, unix.EAGAIN) {
			return time.Since(start), err
		}
	}
}

// holdMany starts processes that hold sockets and do nothing, until end is called.
func holdMany() (end func() error, err error) {
	var all []*exec.Cmd
	end = func() error {
		var errs []error
		for _, cmd := range all {
			errs = append(errs, cmd.Process.Kill())
			_ = cmd.Wait() // by the signal
		}
		return errors.Join(errs...)
	}
	for range processes {
		cmd := exec.Command("sleep", "1000000")
		for i := range perEach {
			file, err := openOne(i%2 == 0)
			if err != nil {
				return nil, errors.Join(err, end())
			}
			defer file.Close()
			cmd.ExtraFiles = append(cmd.ExtraFiles, file)
		}
		if err := cmd.Start(); err != nil {
			return nil, errors.Join(err, end())
		}
		all = append(all, cmd)
		for _, file := range cmd.ExtraFiles {
			file.Close()
		}
	}
	return end, nil
}

func openOne(listens bool) (*os.File, error) {
	kind := unix.SOCK_DGRAM
	if listens {
		kind = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "socket")
	err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if listens {
		err = errors.Join(err, unix.Listen(fd, 1))
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}
