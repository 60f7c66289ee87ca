// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

func namesCases() []whoCase {
	return []whoCase{
		{name: "names: thread with a name of its own, TCP", play: namedThreads(attempt.TCP)},
		{name: "names: thread with a name of its own, UDP", play: namedThreads(attempt.UDP)},
		{name: "names: child of such a thread, TCP", play: childOfThread(attempt.TCP)},
		{name: "names: child of such a thread, UDP", play: childOfThread(attempt.UDP)},
		{name: "names: io_uring, submitted", play: byUring(attempt.Submitted), needs: lacksUring},
		{name: "names: io_uring, by a worker", play: byUring(attempt.Worker), needs: lacksUring},
		{name: "names: io_uring, polled for", play: byUring(attempt.Polled), needs: lacksUring},
	}
}

func lacksUring() error {
	params := make([]byte, 120) // struct io_uring_params
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params[0])), 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_setup: %w", errno)
	}
	return unix.Close(int(fd))
}

// namedThreads has threads call that are called otherwise than their process.
func namedThreads(protocol attempt.Protocol) func(*stage, string) {
	return func(s *stage, name string) {
		s.called(name, protocol, func(i int, a *act) {
			a.step.Thread, a.step.Comm = true, fmt.Sprintf("pool-%d-thread", i)
		})
	}
}

// childOfThread has processes call that such a thread has started: their parent
// is its process.
func childOfThread(protocol attempt.Protocol) func(*stage, string) {
	return func(s *stage, name string) {
		s.called(name, protocol, func(i int, a *act) {
			a.child, a.parent = true, attempt.Step{Thread: true, Comm: fmt.Sprintf("fork-%d", i)}
		})
	}
}

func byUring(how attempt.Uring) func(*stage, string) {
	return func(s *stage, name string) {
		s.called(name, attempt.TCP, func(_ int, a *act) { a.step.Uring, a.worker = how, true })
	}
}

// called has all callers call a server, each call changed as the case has it.
func (s *stage) called(name string, protocol attempt.Protocol, change func(i int, a *act)) {
	port := newPort(protocol)
	var open []handle
	for _, family := range families {
		open = append(open, s.open(s.servers[0], attempt.Step{Protocol: protocol, Src: at(anyHost(family), port)}))
	}
	var acts []act
	for i := range max(callers, s.attempts/3) {
		a := act{by: s.callers[i%callers], to: s.is(s.servers[0]), step: attempt.Step{
			Do: attempt.Call, Protocol: protocol, Dst: at(host(families[i/callers%2], i%hosts), port),
		}}
		change(i, &a)
		acts = append(acts, a)
	}
	s.wave(name, acts)
	s.shut(open...)
}
