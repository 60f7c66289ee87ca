// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// patience bounds, in seconds, how long an agent waits for what the test says
// will come. It is no part of any result.
const patience = 60

// connect makes one TCP connection, sends the payload and reads it back.
func connect(request attempt.Request, report *attempt.Report) error {
	s, err := open(request, unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer s.close()
	if request.SYNRetries > 0 {
		if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, request.SYNRetries); err != nil {
			return fmt.Errorf("TCP_SYNCNT: %w", err)
		}
	}
	// A socket that is bound has its port now, and may have lost it when the
	// connect has failed; one that is not has it only then.
	if report.Src, err = s.name(); err != nil {
		return err
	}
	connectErr := s.connect(request.Dst, request.NonBlocking)
	if report.Src.Port() == 0 {
		if report.Src, err = s.name(); err != nil {
			return err
		}
	}
	info, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return fmt.Errorf("TCP_INFO: %w", err)
	}
	// Nothing but SYN segments was sent yet. (A blocking connect that fails takes
	// the count with it: who expects several does not block.)
	report.Packets = 1 + int(info.Total_retrans)
	if connectErr != nil {
		setError(report, connectErr)
		return nil
	}
	return s.exchange(request.Payload)
}

// setError tells what the application got.
func setError(report *attempt.Report, err error) {
	report.Error = err.Error()
	if errno := unix.Errno(0); errors.As(err, &errno) {
		report.Errno = int(errno)
	}
}

// exchange sends bytes, and reads as many and then the end.
func (s *socket) exchange(payload int) error {
	if err := unix.SetNonblock(s.fd, false); err != nil {
		return err
	}
	if payload > 0 {
		if _, err := s.Write(make([]byte, payload)); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	if err := unix.Shutdown(s.fd, unix.SHUT_WR); err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	n, err := io.Copy(io.Discard, s)
	if err == nil && n != int64(payload) {
		err = fmt.Errorf("%d bytes came back of %d", n, payload)
	}
	return err
}

// send sends datagrams from one socket, and reads an answer to each if there is
// to be one.
func send(request attempt.Request, report *attempt.Report) error {
	s, err := open(request, unix.SOCK_DGRAM)
	if err != nil {
		return err
	}
	defer s.close()
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
		return fmt.Errorf("SO_BROADCAST: %w", err)
	}
	if !request.Src.IsValid() {
		// Who does not choose an address learns it from the kernel by a connect.
		if err := unix.Connect(s.fd, sockaddr(request.Dst)); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
	}
	if report.Src, err = s.name(); err != nil {
		return err
	}
	return onCPUs(request.EachCPU, func() error {
		for range max(request.Count, 1) {
			if err := s.sendOne(request); err != nil {
				return err
			}
			report.Packets++
		}
		return nil
	})
}

func (s *socket) sendOne(request attempt.Request) error {
	payload := make([]byte, request.Payload)
	var err error
	if request.Src.IsValid() {
		err = unix.Sendto(s.fd, payload, 0, sockaddr(request.Dst))
	} else {
		err = unix.Send(s.fd, payload, 0)
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		// The answer to the datagram before: this one was not sent.
		return s.sendOne(request)
	}
	if err != nil || !request.Answered {
		return err
	}
	_, err = s.Read(make([]byte, 1))
	return err
}

// onCPUs calls f on each processor in turn, or once wherever it is.
func onCPUs(each bool, f func() error) error {
	if !each {
		return f()
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	for cpu := range cpus {
		var set unix.CPUSet
		set.Set(cpu)
		err := unix.SchedSetaffinity(0, &set)
		if errors.Is(err, unix.EINVAL) {
			continue // offline
		}
		if err := errors.Join(err, f()); err != nil {
			return err
		}
	}
	return nil
}

// ping sends an ICMP echo request and waits for the reply.
func ping(request attempt.Request, report *attempt.Report) error {
	kind, protocol := byte(8), unix.IPPROTO_ICMP
	if request.Dst.Addr().Is6() {
		kind, protocol = 128, unix.IPPROTO_ICMPV6
	}
	s, err := openRaw(request, protocol)
	if err != nil {
		return err
	}
	defer s.close()
	// Type, code, checksum (ICMPv4's; the kernel fills in ICMPv6's), identifier
	// and sequence number zero.
	message := []byte{kind, 0, ^kind, 0xff, 0, 0, 0, 0}
	report.Packets = 1
	if err := unix.Sendto(s.fd, message, 0, sockaddr(netip.AddrPortFrom(request.Dst.Addr(), 0))); err != nil {
		return err
	}
	_, err = s.Read(make([]byte, 128))
	return err
}
