// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// openFast sends the first bytes with the SYN, or as soon as the kernel lets them go.
func (s *socket) openFast(step attempt.Step, dst unix.Sockaddr) (err error) {
	if step.Deferred {
		if err = unix.Connect(s.fd, dst); err == nil {
			_, err = s.Write([]byte(attempt.Hello))
		}
	} else {
		err = unix.Sendto(s.fd, []byte(attempt.Hello), unix.MSG_FASTOPEN|unix.MSG_NOSIGNAL, dst)
	}
	if err != nil || step.Talk == nil {
		return err
	}
	return s.connected()
}

// goOn is what follows a call.
func (s *socket) goOn(step attempt.Step, report *attempt.Report) error {
	if step.GivesUp {
		err := s.giveUp(step)
		report.Took = time.Since(s.began)
		return err
	}
	if step.Talk == nil || report.Error != "" {
		return nil
	}
	said := 0
	if step.FastOpen {
		said = len(attempt.Hello)
	}
	if step.Src == step.Dst {
		return s.talkToItself(*step.Talk, report)
	}
	return s.talk(*step.Talk, false, said, report)
}

// giveUp ends a call.
func (s *socket) giveUp(step attempt.Step) error {
	if step.Socket != "" {
		return s.disconnect()
	}
	s.close()
	s.end = func() {} // it is closed
	return nil
}

// disconnect takes the connection from a socket by AF_UNSPEC, the zero family.
func (s *socket) disconnect() error {
	var none [unix.SizeofSockaddrInet4]byte
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(s.fd), uintptr(unsafe.Pointer(&none[0])), uintptr(len(none)))
	if errno != 0 {
		return fmt.Errorf("disconnecting: %w", errno)
	}
	return nil
}

// talk is one side of it, that of who serves or of who has called, who has said so
// much already. The socket is to be closed next.
func (s *socket) talk(t attempt.Talk, serves bool, said int, report *attempt.Report) error {
	if err := s.beginTalk(); err != nil {
		return err
	}
	begun := time.Now()
	for i, n := range t.Turns {
		if serves == (i%2 == 1) {
			if n > said {
				report.Talked = time.Since(begun)
			}
			if _, err := s.Write(make([]byte, n-said)); err != nil {
				return err
			}
			report.Sent += n
			said = 0
			continue
		}
		unread := t.Unread && !serves && !t.ServerEnds && i == len(t.Turns)-1
		if err := s.hear(n, unread); err != nil {
			return err
		}
		report.Received += n
	}
	if serves == t.ServerEnds {
		return s.setReset(t)
	}
	more, err := io.Copy(io.Discard, s)
	if (t.Reset || t.Unread) && errors.Is(err, unix.ECONNRESET) {
		err = nil
	}
	if more > 0 {
		err = errors.Join(err, fmt.Errorf("%d bytes more than were to come", more))
	}
	return err
}

// hear waits for a turn, and reads it or, if it is short enough to be there as a whole,
// leaves it unread.
func (s *socket) hear(n int, unread bool) error {
	const short = 1000
	if unread && 0 < n && n <= short {
		_, _, err := unix.Recvfrom(s.fd, make([]byte, n), unix.MSG_PEEK|unix.MSG_WAITALL)
		return err
	}
	_, err := io.CopyN(io.Discard, s, int64(n))
	return err
}

// beginTalk lets neither side wait for ever.
func (s *socket) beginTalk() error {
	bound := unix.Timeval{Sec: patience}
	return errors.Join(unix.SetNonblock(s.fd, false), unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &bound))
}

func (s *socket) setReset(t attempt.Talk) error {
	if !t.Reset {
		return nil
	}
	return unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// talkToItself has a socket get what it has sent.
func (s *socket) talkToItself(t attempt.Talk, report *attempt.Report) error {
	if err := s.beginTalk(); err != nil {
		return err
	}
	begun := time.Now()
	for _, n := range t.Turns {
		if _, err := s.Write(make([]byte, n)); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, s, int64(n)); err != nil {
			return err
		}
		report.Sent += n
		report.Received += n
	}
	report.Talked = time.Since(begun)
	return s.setReset(t)
}

// converse talks on a connection that is there, as who has called, and closes it.
func (k *keeper) converse(step attempt.Step, report *attempt.Report) error {
	s := k.sockets[step.Socket]
	delete(k.sockets, step.Socket)
	defer s.close()
	return s.talk(*step.Talk, false, 0, report)
}

// serveTalks listens, and talks with as many as are to come.
func (k *keeper) serveTalks(step attempt.Step) error {
	s, err := k.open(step)
	if err != nil {
		return err
	}
	s.served = make(chan served, step.Count)
	go func() {
		for range step.Count {
			fd, from, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC)
			for errors.Is(err, unix.EINTR) {
				fd, from, err = unix.Accept4(s.fd, unix.SOCK_CLOEXEC)
			}
			if err != nil {
				s.served <- served{err: fmt.Errorf("accept: %w", err)}
				return
			}
			go serveTalk(&socket{fd: fd}, from, *step.Talk, s.served)
		}
	}()
	return nil
}

// served is a connection whose talk is over.
type served struct {
	report attempt.Report
	err    error
}

func serveTalk(s *socket, from unix.Sockaddr, t attempt.Talk, done chan<- served) {
	var result served
	var timeErr error
	result.report.Began, timeErr = sinceBoot()
	result.report.Src, result.err = addrPort(from)
	// As an event has it.
	result.report.Src = netip.AddrPortFrom(result.report.Src.Addr().Unmap(), result.report.Src.Port())
	result.err = errors.Join(result.err, timeErr, s.talk(t, true, 0, &result.report))
	s.close()
	done <- result
}

// awaitTalks reports on as many of them as are to end.
func (s *socket) awaitTalks(count int, report *attempt.Report) error {
	bound := time.After(patience * time.Second)
	for range count {
		select {
		case one := <-s.served:
			if one.err != nil {
				return fmt.Errorf("serving %s: %w", one.report.Src, one.err)
			}
			report.Steps = append(report.Steps, one.report)
		case <-bound:
			return fmt.Errorf("%d of %d have talked", len(report.Steps), count)
		}
	}
	return nil
}

// signalWhenConnecting sends this process a signal while another thread connects. Who
// is killed has reported before.
func (s *socket) signalWhenConnecting(signal unix.Signal, report attempt.Report) {
	const synSent = 2 // TCP_SYN_SENT in the kernel's include/net/tcp_states.h
	for {
		info, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			fmt.Fprintln(os.Stderr, "agent: TCP_INFO:", err)
			return
		}
		if info.State == synSent {
			report.Packets += int(info.Total_retrans)
			break
		}
		runtime.Gosched()
	}
	var err error
	if signal == unix.SIGKILL {
		err = json.NewEncoder(os.Stdout).Encode(attempt.Report{Steps: []attempt.Report{report}})
	}
	if err = errors.Join(err, unix.Kill(os.Getpid(), signal)); err != nil {
		fmt.Fprintln(os.Stderr, "agent: signal:", err)
	}
}

// runChild waits for the end of a process, which stops itself, or kills itself, if a
// signal is given.
func runChild(cmd *exec.Cmd, signal unix.Signal) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	if signal == unix.SIGSTOP {
		if err := wakeStopped(cmd.Process.Pid); err != nil {
			return err
		}
	}
	err := cmd.Wait()
	if exit := (*exec.ExitError)(nil); signal == unix.SIGKILL && errors.As(err, &exit) {
		return nil // what it has reported tells more
	}
	return err
}

func wakeStopped(pid int) error {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, unix.WUNTRACED, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("waiting until it stops: %w", err)
		case !status.Stopped():
			return fmt.Errorf("it has ended, and not stopped: status %#x", status)
		default:
			return unix.Kill(pid, unix.SIGCONT)
		}
	}
}
