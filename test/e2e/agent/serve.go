// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// serve opens a port, and answers what comes until the process ends.
func serve(request attempt.Request) error {
	request.Src = request.Dst
	if request.Protocol == attempt.UDP {
		s, err := open(request, unix.SOCK_DGRAM)
		if err == nil {
			go answer(s)
		}
		return err
	}
	s, err := open(request, unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	if err := unix.Listen(s.fd, 128); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	go accept(s)
	return nil
}

// accept sends each connection back what comes, one after the other.
func accept(listener *socket) {
	for {
		fd, _, err := unix.Accept4(listener.fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "agent: accept:", err)
			return
		}
		s := &socket{fd: fd}
		// A caller that resets the connection is no failure here.
		_, _ = io.Copy(struct{ io.Writer }{s}, struct{ io.Reader }{s})
		s.close()
	}
}

// answer sends one byte for each datagram.
func answer(s *socket) {
	buf := make([]byte, 64<<10)
	for {
		_, from, err := unix.Recvfrom(s.fd, buf, 0)
		if err == nil {
			err = unix.Sendto(s.fd, buf[:1], 0, from)
		}
		// What the previous answer met, or nothing to read in time.
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ECONNREFUSED) {
			fmt.Fprintln(os.Stderr, "agent: answer:", err)
			return
		}
	}
}
