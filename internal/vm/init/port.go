// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"gadget.example/network/internal/vm/guest"
)

// openPort loads the port's drivers and opens the port when it is there. The kernel finds the port and learns its name
// on its own time; it announces both, so wait for its announcements.
func openPort(drivers []guest.Module) (*os.File, error) {
	events, err := listenUevents()
	if err != nil {
		return nil, fmt.Errorf("listen to device events: %w", err)
	}
	defer unix.Close(events)
	if err := loadModules(drivers); err != nil {
		return nil, err
	}
	for {
		dev, err := findPort()
		if err != nil {
			return nil, fmt.Errorf("find the port to the host: %w", err)
		}
		if dev != "" {
			return os.OpenFile(dev, os.O_RDWR, 0)
		}
		if err := awaitUevent(events); err != nil {
			return nil, fmt.Errorf("wait for the port to the host: %w", err)
		}
	}
}

// listenUevents opens the kernel's stream of device events (see lib/kobject_uevent.c; group 1 is the kernel's own).
func listenUevents() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// awaitUevent returns after one more event. What it says does not matter, nor that some were lost (ENOBUFS): the caller
// looks again.
func awaitUevent(fd int) error {
	for {
		_, err := unix.Read(fd, make([]byte, 8<<10))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ENOBUFS) {
			return nil
		}
		return err
	}
}

// findPort returns the device of the port to the host; empty if it is not there yet.
func findPort() (string, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return "", err
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		if strings.TrimSpace(string(b)) == guest.PortName {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(name))), nil
		}
	}
	return "", nil
}
