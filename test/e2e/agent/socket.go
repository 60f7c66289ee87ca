// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

type socket struct {
	fd  int
	end func() // in place of closing it, if not nil

	began  time.Time   // its last call
	served chan served // talks that are over, of a listener
}

// open makes a socket of the destination's family, bound as the request says.
func open(request attempt.Request, kind int) (*socket, error) {
	return openAs(request, kind, 0)
}

// openRaw makes a raw socket of an IP protocol.
func openRaw(request attempt.Request, protocol int) (*socket, error) {
	return openAs(request, unix.SOCK_RAW, protocol)
}

func openAs(request attempt.Request, kind, protocol int) (*socket, error) {
	family := unix.AF_INET6
	if request.Dst.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	s := &socket{fd: fd}
	if err := s.prepare(request, family == unix.AF_INET6 && kind != unix.SOCK_RAW); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// prepare sets options, the first of which keeps IPv4 out of an IPv6 socket.
func (s *socket) prepare(request attempt.Request, only6 bool) error {
	if only6 {
		if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fmt.Errorf("IPV6_V6ONLY: %w", err)
		}
	}
	bound := unix.Timeval{Sec: patience}
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if request.Serve {
			break // a server waits for as long as it takes
		}
		if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, option, &bound); err != nil {
			return fmt.Errorf("setting a time limit: %w", err)
		}
	}
	if request.Device != "" {
		if err := unix.BindToDevice(s.fd, request.Device); err != nil {
			return fmt.Errorf("binding to device %s: %w", request.Device, err)
		}
	}
	if !request.Src.IsValid() || request.Protocol == attempt.ICMP {
		return nil
	}
	if err := unix.Bind(s.fd, sockaddr(request.Src)); err != nil {
		return fmt.Errorf("bind to %s: %w", request.Src, err)
	}
	return nil
}

// connect returns what the application gets, at once or after waiting for it.
func (s *socket) connect(dst netip.AddrPort, nonBlocking bool) error {
	if err := unix.SetNonblock(s.fd, nonBlocking); err != nil {
		return err
	}
	err := unix.Connect(s.fd, sockaddr(dst))
	if !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.EINTR) {
		return err
	}
	return s.connected()
}

// connected waits for the end of a connect, and returns how it ended.
func (s *socket) connected() error {
	poll := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}
	for {
		n, err := unix.Poll(poll, patience*1000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = unix.EAGAIN
		}
		if err != nil {
			return fmt.Errorf("poll: %w", err)
		}
		break
	}
	errno, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	return err
}

func (s *socket) name() (netip.AddrPort, error) {
	name, err := unix.Getsockname(s.fd)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("getsockname: %w", err)
	}
	return addrPort(name)
}

func addrPort(name unix.Sockaddr) (netip.AddrPort, error) {
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(name.Addr), uint16(name.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(name.Addr), uint16(name.Port)), nil
	default:
		return netip.AddrPort{}, fmt.Errorf("%T is no IP address", name)
	}
}

// Read and Write are a stream's, with Go's meaning of the end.
func (s *socket) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(s.fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("read: %w", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (s *socket) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		n, err := unix.SendmsgN(s.fd, b[written:], nil, nil, unix.MSG_NOSIGNAL)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return written, fmt.Errorf("write: %w", err)
		}
		written += max(n, 0)
	}
	return written, nil
}

func (s *socket) close() {
	if s.end != nil {
		s.end()
		return
	}
	unix.Close(s.fd)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
