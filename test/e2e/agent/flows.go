// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// window is how many sockets have a datagram on its way at once: the server's
// buffer holds as many.
const window = 64

// flows makes every socket send before any sends again.
func (k *keeper) flows(step attempt.Step, report *attempt.Report) error {
	sockets, err := k.flowSockets(step)
	if err != nil {
		return err
	}
	for range step.Count {
		for some := range slices.Chunk(sockets, window) {
			if err := exchange(some, step); err != nil {
				return err
			}
		}
	}
	for _, s := range sockets {
		name, err := s.name()
		if err != nil {
			return err
		}
		src, err := k.source(name, name, step.Dst.Addr())
		if err != nil {
			return err
		}
		report.Steps = append(report.Steps, attempt.Report{Process: report.Process, Src: src, Dst: step.Dst, Packets: step.Count})
	}
	return nil
}

// flowSockets are those that are kept, or new ones. They stay, so that none gets
// the port of another.
func (k *keeper) flowSockets(step attempt.Step) ([]*socket, error) {
	var sockets []*socket
	name := step.Socket
	for i := range step.Sockets {
		step.Socket = fmt.Sprint(name, i)
		s := k.sockets[step.Socket]
		if s == nil {
			var err error
			if s, err = k.open(step); err != nil {
				return nil, err
			}
			bound := unix.Timeval{Sec: patience}
			if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &bound); err != nil {
				return nil, fmt.Errorf("setting a time limit: %w", err)
			}
		}
		sockets = append(sockets, s)
	}
	return sockets, nil
}

func exchange(sockets []*socket, step attempt.Step) error {
	for _, s := range sockets {
		var err error
		if step.Connected {
			err = unix.Send(s.fd, nil, 0)
		} else {
			err = unix.Sendto(s.fd, nil, 0, sockaddrFor(step, step.Dst))
		}
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	for _, s := range sockets {
		if _, err := s.Read(make([]byte, 1)); err != nil {
			return err
		}
	}
	return nil
}
