// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// keeper carries out lists of steps, and keeps sockets by their names.
type keeper struct {
	self    attempt.Process
	sockets map[string]*socket
	inbox   *socket
	sources map[netip.Addr]netip.Addr // by destination
}

var kept = &keeper{sockets: map[string]*socket{}, sources: map[netip.Addr]netip.Addr{}}

func (k *keeper) carryOut(request attempt.Request, report *attempt.Report) error {
	k.self = report.Process
	for i, name := range request.Inherited {
		k.sockets[name] = &socket{fd: 3 + i}
	}
	for _, step := range request.Steps {
		done, err := k.onThread(step)
		if err != nil {
			return fmt.Errorf("%+v: %w", step, err)
		}
		report.Steps = append(report.Steps, done)
	}
	return nil
}

func (k *keeper) onThread(step attempt.Step) (report attempt.Report, err error) {
	if !step.Thread {
		report.Process = k.self
		err = k.step(step, &report)
		return report, err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and so the thread ends with the goroutine
		done <- errors.Join(identify(&report.Process), k.step(step, &report))
	}()
	err = <-done
	return report, err
}

func (k *keeper) step(step attempt.Step, report *attempt.Report) (err error) {
	if step.Comm != "" && step.Do != attempt.Daemon {
		if err := rename(step.Comm, report); err != nil {
			return err
		}
		if !step.Thread {
			k.self = report.Process
		}
	}
	report.Dst = step.Dst
	switch step.Do {
	case attempt.Open, attempt.Listen, attempt.Accept:
		_, err = k.open(step)
	case attempt.Call:
		err = k.call(step, report)
	case attempt.Flows:
		err = k.flows(step, report)
	case attempt.Flood:
		err = flood(step, report)
	case attempt.Storm:
		err = storm(step, report)
	case attempt.Await:
		err = k.sockets[step.Socket].await(report)
	case attempt.Raw, attempt.Packet:
		err = sendMade(step, report)
	case attempt.Rename:
	case attempt.Chdir:
		err = os.Chdir(step.Dir)
	case attempt.Confine:
		err = confine()
	case attempt.Serve:
		err = k.serveTalks(step)
	case attempt.Served:
		err = k.sockets[step.Socket].awaitTalks(step.Count, report)
	case attempt.Converse:
		err = k.converse(step, report)
	case attempt.Disconnect:
		err = k.sockets[step.Socket].disconnect()
	case attempt.Close:
		k.sockets[step.Socket].close()
		delete(k.sockets, step.Socket)
	case attempt.Inbox:
		k.inbox, err = openInbox()
	case attempt.Give:
		err = k.give(step)
	case attempt.Take:
		err = k.take(step)
	case attempt.Child:
		err = k.child(step, report)
	case attempt.Daemon:
		err = k.daemon(step, report)
	case attempt.Drain:
		err = k.drain(step, report)
	default:
		err = errors.New("no such action")
	}
	return err
}

// rename gives the calling thread another name; the first one's is the process's.
func rename(comm string, report *attempt.Report) error {
	name, err := unix.BytePtrFromString(comm)
	if err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0, 0, 0); err != nil {
		return fmt.Errorf("renaming: %w", err)
	}
	return identify(&report.Process)
}

// open makes a socket, and keeps it if it has a name.
func (k *keeper) open(step attempt.Step) (*socket, error) {
	if step.Go {
		return k.openAsGo(step)
	}
	kind, protocol := unix.SOCK_STREAM, 0
	if step.Protocol == attempt.UDP {
		kind = unix.SOCK_DGRAM
	} else if step.MPTCP {
		protocol = unix.IPPROTO_MPTCP
	}
	fd, err := unix.Socket(family(step), kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	s := &socket{fd: fd}
	if err := s.setUp(step); err != nil {
		s.close()
		return nil, err
	}
	if step.Socket != "" {
		k.sockets[step.Socket] = s
	}
	if step.Do == attempt.Accept {
		go accept(s)
	}
	return s, nil
}

func family(step attempt.Step) int {
	addr := step.Src.Addr()
	if !addr.IsValid() {
		addr = step.Dst.Addr()
	}
	if addr.Is4() && !step.DualStack {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// openAsGo listens by Go's net package: by MPTCP where there is such.
func (k *keeper) openAsGo(step attempt.Step) (*socket, error) {
	listener, err := net.Listen("tcp", step.Src.String())
	if err != nil {
		return nil, err
	}
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := listener.Close(); err != nil { // the duplicate listens on
		return nil, err
	}
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicating: %w", err)
	}
	s := &socket{fd: fd}
	k.sockets[step.Socket] = s
	return s, nil
}

type option struct {
	wanted      bool
	level, name int
	value       int
}

// backlog is as long as the kernel lets it: nothing is accepted.
const backlog = 4096

func (s *socket) setUp(step attempt.Step) error {
	is6, tcp := family(step) == unix.AF_INET6, step.Protocol == attempt.TCP
	only6 := 1
	if step.DualStack {
		only6 = 0
	}
	for _, o := range []option{
		{is6, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only6},
		{step.ReuseAddr, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{step.ReusePort, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
		{step.Transparent && !is6, unix.SOL_IP, unix.IP_TRANSPARENT, 1},
		{step.Transparent && is6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1},
		{step.FastOpen && listens(step), unix.IPPROTO_TCP, unix.TCP_FASTOPEN, backlog},
		{step.FastOpen && step.Deferred, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1},
		{step.SYNRetries > 0, unix.IPPROTO_TCP, unix.TCP_SYNCNT, step.SYNRetries},
	} {
		if !o.wanted {
			continue
		}
		if err := unix.SetsockoptInt(s.fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("option %d of level %d: %w", o.name, o.level, err)
		}
	}
	if tcp && !step.Lingers && !step.MPTCP {
		if err := unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return fmt.Errorf("SO_LINGER: %w", err)
		}
	}
	if step.Device != "" {
		if err := unix.BindToDevice(s.fd, step.Device); err != nil {
			return fmt.Errorf("binding to device %s: %w", step.Device, err)
		}
	}
	if step.Src.IsValid() {
		if err := unix.Bind(s.fd, sockaddrFor(step, step.Src)); err != nil {
			return fmt.Errorf("bind to %s: %w", step.Src, err)
		}
	}
	if (step.Do == attempt.Open || step.Do == attempt.Flows) && step.Connected {
		if err := unix.Connect(s.fd, sockaddrFor(step, step.Dst)); err != nil {
			return fmt.Errorf("connect to %s: %w", step.Dst, err)
		}
	}
	if listens(step) {
		length := backlog
		if step.Narrow {
			length = 0
		}
		if err := unix.Listen(s.fd, length); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	return nil
}

func listens(step attempt.Step) bool {
	return step.Do == attempt.Listen || step.Do == attempt.Accept || step.Do == attempt.Serve
}

// sockaddrFor is the address as the socket's family has it.
func sockaddrFor(step attempt.Step, a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() && family(step) == unix.AF_INET6 {
		a = netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
	}
	return sockaddr(a)
}

// call makes one attempt.
func (k *keeper) call(step attempt.Step, report *attempt.Report) error {
	s := k.sockets[step.Socket]
	if s == nil {
		var err error
		if s, err = k.open(step); err != nil {
			return err
		}
	}
	if step.Socket == "" {
		defer s.close()
	}
	before, err := s.name()
	if err != nil {
		return err
	}
	report.Packets = 1
	if report.Began, err = sinceBoot(); err != nil {
		return err
	}
	if step.Signal != 0 {
		report.Src = named(before, before)
		go s.signalWhenConnecting(unix.Signal(step.Signal), *report)
	}
	if err := s.try(step, report); err != nil || report.Packets == 0 {
		return err
	}
	after, err := s.name()
	if err != nil {
		return err
	}
	if step.Unsure {
		report.Src = named(before, after)
		return nil
	}
	if report.Src, err = k.source(before, after, step.Dst.Addr()); err != nil {
		return err
	}
	return s.goOn(step, report)
}

// sinceBoot is the time as events have it, in ns.
func sinceBoot() (int64, error) {
	var now unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	return now.Nano(), err
}

// try makes the attempt, and counts the SYNs.
func (s *socket) try(step attempt.Step, report *attempt.Report) error {
	s.began = time.Now()
	err := s.attempt(step)
	if !isUnawaited(step) {
		report.Took = time.Since(s.began)
	}
	if err == nil {
		return s.countAgain(step, report)
	}
	setError(report, err)
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE) {
		report.Packets = 0
	} else if step.NonBlocking && step.Waits {
		return s.countAgain(step, report)
	} else if errors.Is(err, unix.ETIMEDOUT) {
		report.Packets += step.SYNRetries // a blocking connect takes its count with it
	}
	return nil
}

// countAgain counts the SYNs that were sent again: the answer was late, or one to
// an earlier connection of the same ends (RFC 9293, 3.5.2). A connect that was not
// waited for has sent none yet; Linux 5.10 tells of none of MPTCP.
func (s *socket) countAgain(step attempt.Step, report *attempt.Report) error {
	if step.Protocol == attempt.UDP || isUnawaited(step) || step.FastOpen || step.MPTCP {
		return nil
	}
	info, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return fmt.Errorf("TCP_INFO: %w", err)
	}
	report.Packets += int(info.Total_retrans)
	return nil
}

// isUnawaited says that the call's end is not known when it is over.
func isUnawaited(step attempt.Step) bool { return step.NonBlocking && !step.Waits && !step.GivesUp }

// await waits until a connect that was not waited for has succeeded.
func (s *socket) await(report *attempt.Report) error {
	if err := s.connected(); err != nil {
		return err
	}
	report.Packets = 1
	return s.countAgain(attempt.Step{}, report)
}

// source is where the attempt came from, by the names of the socket before and
// thereafter: a connect that has failed can take the name with it.
func (k *keeper) source(before, after netip.AddrPort, dst netip.Addr) (src netip.AddrPort, err error) {
	known := named(before, after)
	addr, port := known.Addr(), known.Port()
	if addr.IsUnspecified() {
		addr, err = k.sourceTo(dst)
	}
	if port == 0 {
		err = errors.Join(err, errors.New("the socket has no port"))
	}
	return netip.AddrPortFrom(addr, port), err
}

// named is what either name of a socket tells.
func named(before, after netip.AddrPort) netip.AddrPort {
	addr, port := before.Addr().Unmap(), before.Port()
	if port == 0 {
		port = after.Port()
	}
	if addr.IsUnspecified() {
		addr = after.Addr().Unmap()
	}
	return netip.AddrPortFrom(addr, port)
}

// sourceTo is the address that the kernel chooses for a destination.
func (k *keeper) sourceTo(dst netip.Addr) (netip.Addr, error) {
	if addr, ok := k.sources[dst]; ok {
		return addr, nil
	}
	step := attempt.Step{Protocol: attempt.UDP, Dst: netip.AddrPortFrom(dst, 40_000)}
	s, err := k.open(step)
	if err != nil {
		return netip.Addr{}, err
	}
	defer s.close()
	if err := unix.Connect(s.fd, sockaddr(step.Dst)); err != nil {
		return netip.Addr{}, err
	}
	name, err := s.name()
	k.sources[dst] = name.Addr()
	return name.Addr(), err
}

func (s *socket) attempt(step attempt.Step) error {
	dst := sockaddrFor(step, step.Dst)
	switch {
	case step.Uring != "":
		return connectByUring(s.fd, dst, step.Uring)
	case step.FastOpen:
		return s.openFast(step, dst)
	case step.Protocol == attempt.TCP && step.NonBlocking:
		if err := unix.SetNonblock(s.fd, true); err != nil {
			return err
		}
		if err := unix.Connect(s.fd, dst); !errors.Is(err, unix.EINPROGRESS) {
			return err
		}
		if step.Waits {
			return s.connected()
		}
		return nil
	case step.Protocol == attempt.TCP:
		return unix.Connect(s.fd, dst)
	case step.Connected:
		if err := unix.Connect(s.fd, dst); err != nil {
			return err
		}
		return sendAgain(func() error { return unix.Send(s.fd, nil, 0) })
	default:
		return sendAgain(func() error { return unix.Sendto(s.fd, nil, 0, dst) })
	}
}

// sendAgain sends a datagram: what it gets may be the answer to the one before,
// and then this one was not sent.
func sendAgain(send func() error) error {
	err := send()
	for errors.Is(err, unix.ECONNREFUSED) {
		err = send()
	}
	return err
}

// inboxOf is where agents get sockets from others, in the abstract namespace.
func inboxOf(pid int) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: fmt.Sprintf("@e2e-agent-%d", pid)}
}

func openInbox() (*socket, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &socket{fd: fd}, unix.Bind(fd, inboxOf(os.Getpid()))
}

func (k *keeper) give(step attempt.Step) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	s := k.sockets[step.Socket]
	if err := unix.Sendmsg(fd, []byte{0}, unix.UnixRights(s.fd), inboxOf(step.To), 0); err != nil {
		return fmt.Errorf("sendmsg: %w", err)
	}
	s.close()
	delete(k.sockets, step.Socket)
	return nil
}

func (k *keeper) take(step attempt.Step) error {
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(k.inbox.fd, make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return fmt.Errorf("recvmsg: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return fmt.Errorf("%d control messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return err
	}
	k.sockets[step.Socket] = &socket{fd: fds[0]}
	return nil
}

// child has another agent carry out the steps, and end.
func (k *keeper) child(step attempt.Step, report *attempt.Report) error {
	request, err := json.Marshal(attempt.Request{Steps: step.Steps, Inherited: step.Inherit})
	if err != nil {
		return err
	}
	cmd := exec.Command(os.Args[0])
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(string(request)), &out, os.Stderr
	for _, name := range step.Inherit {
		fd, err := unix.FcntlInt(uintptr(k.sockets[name].fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		file := os.NewFile(uintptr(fd), name)
		defer file.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	}
	if err := runChild(cmd, unix.Signal(step.Signal)); err != nil {
		return fmt.Errorf("child: %w", err)
	}
	var done attempt.Report
	if err := json.Unmarshal(out.Bytes(), &done); err != nil {
		return err
	}
	if done.Failed != "" {
		return errors.New(done.Failed)
	}
	report.Steps = done.Steps
	return nil
}
