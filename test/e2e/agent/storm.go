// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// storm forks, and does not start another program: that would take longer than
// all that a storm is about.
func storm(step attempt.Step, report *attempt.Report) error {
	dst := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: step.Dst.Addr().As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&dst.Port))[:], step.Dst.Port())
	for range step.Count {
		pid, errno := forkAndSend(&dst)
		if errno != 0 {
			return fmt.Errorf("fork, after %d: %w", report.Packets, errno)
		}
		var status unix.WaitStatus
		if _, err := unix.Wait4(int(pid), &status, 0, nil); err != nil {
			return fmt.Errorf("wait, after %d: %w", report.Packets, err)
		}
		if status.ExitStatus() != 0 {
			return fmt.Errorf("sendto of a child, after %d: %w", report.Packets, unix.Errno(status.ExitStatus()))
		}
		report.Packets++
	}
	return nil
}

// forkAndSend has a child send a datagram and end. The child has one thread, and
// nothing of Go's runtime: it may do no more than call the kernel.
//
//go:norace
//go:nosplit
func forkAndSend(dst *unix.RawSockaddrInet4) (pid uintptr, errno unix.Errno) {
	pid, _, errno = unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM, 0)
	if errno == 0 {
		_, _, errno = unix.RawSyscall6(unix.SYS_SENDTO, fd, 0, 0, 0, uintptr(unsafe.Pointer(dst)), unix.SizeofSockaddrInet4)
	}
	for {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(errno), 0, 0)
	}
}
