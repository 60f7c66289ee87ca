// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// clock makes the gadget send what waits, see tick() in ebpf/deliver.h: it does at
// each timeout in the kernel, and here are some. A CPU without a ring sends
// nothing, so each has one.
type clock struct {
	socket int
	cpus   int
}

// shortestTimeout of a socket is a tick of the kernel's timer.
var shortestTimeout = unix.Timeval{Usec: 1}

func newClock() (*clock, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("counting the CPUs: %w", err)
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a socket to wait at: %w", err)
	}
	c := &clock{socket: socket, cpus: cpus}
	if err := unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &shortestTimeout); err != nil {
		return nil, errors.Join(fmt.Errorf("setting a socket's timeout: %w", err), c.close())
	}
	return c, nil
}

func (c *clock) close() error { return unix.Close(c.socket) }

// until has the clock tick until done is true, or ctx.
func (c *clock) until(ctx context.Context, done func() (bool, error)) error {
	ended := make(chan error, 1)
	go func() {
		// This thread gets an affinity of its own, and so ends with the goroutine.
		runtime.LockOSThread()
		ended <- c.tick(ctx, done)
	}()
	return <-ended
}

func (c *clock) tick(ctx context.Context, done func() (bool, error)) error {
	for cpu := 0; ctx.Err() == nil; cpu = (cpu + 1) % c.cpus {
		if ok, err := done(); ok || err != nil {
			return err
		}
		if there, err := moveTo(cpu); err != nil || !there {
			if err != nil {
				return err
			}
			continue
		}
		_, _, err := unix.Recvfrom(c.socket, make([]byte, 1), 0)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("waiting at a socket: %w", err)
		}
	}
	return nil
}
