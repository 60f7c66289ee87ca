// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// identify describes the calling thread.
func identify(p *attempt.Process) error {
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		return err
	}
	thread, err := os.ReadFile("/proc/thread-self/comm")
	if err != nil {
		return err
	}
	parent, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", os.Getppid()))
	if err != nil && os.Getppid() != 0 { // 0: the parent is in another PID namespace
		return err
	}
	var mountNS unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/mnt", &mountNS); err != nil {
		return err
	}
	*p = attempt.Process{
		Comm: strings.TrimSpace(string(comm)), Thread: strings.TrimSpace(string(thread)),
		PID: uint32(os.Getpid()), TID: uint32(unix.Gettid()),
		UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
		MountNS:   mountNS.Ino,
		ParentPID: uint32(os.Getppid()), ParentComm: strings.TrimSpace(string(parent)),
	}
	return nil
}
