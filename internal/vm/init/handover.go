// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"gadget.example/network/internal/vm/guest"
)

// deputy is how the process is called that does what PID 1 does where another program becomes that, and deputyPort its
// descriptor of the port to the host.
const (
	deputy     = "init: deputy"
	deputyPort = 3
)

// handOver starts the deputy, and becomes the system's first program. It returns why it could not.
func handOver(c guest.Config, port *os.File) error {
	_, err := os.StartProcess(guest.InitPath, []string{deputy}, &os.ProcAttr{
		Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, port},
	})
	if err != nil {
		return fmt.Errorf("start the deputy: %w", err)
	}
	// As switch_root(8) does: what has namespaces of its own wants a root that is a mount over another one.
	if err := unix.Mount(c.Root, c.Root, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", c.Root, err)
	}
	if err := os.Chdir(c.Root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", c.Root, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("make %s the root: %w", c.Root, err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", c.System[0], unix.Exec(c.System[0], c.System, []string{"PATH=" + defaultPath, "TERM=dumb"}))
}
