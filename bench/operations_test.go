// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// operation is something that a program asks of the kernel, once.
type operation struct {
	name string // empty: it prepares others or clears up, and is not measured
	do   func(i int) error
}

// scenario is operations that follow each other, of which each is done many times
// before the next one begins.
type scenario struct {
	times int
	begin func() ([]operation, error)
}

// scenarios are what hooks of the gadget look at, and what a host does most.
func scenarios() []scenario {
	all := []scenario{}
	for _, f := range []family{overIPv4, overIPv6} {
		all = append(all, scenario{150, f.connections}, scenario{150, f.refusals},
			scenario{150, f.ports}, scenario{150, f.peers}, scenario{150, f.messages})
	}
	return append(all, scenario{150, overIPv4.listeners}, scenario{150, unixConnections},
		scenario{40, processesOf("true")}, scenario{100, threads})
}

// family is a version of IP, and its loopback address.
type family struct {
	name     string
	domain   int
	loopback func(port int) unix.Sockaddr
}

var (
	overIPv4 = family{"IPv4", unix.AF_INET, func(port int) unix.Sockaddr {
		return &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}
	}}
	overIPv6 = family{"IPv6", unix.AF_INET6, func(port int) unix.Sockaddr {
		return &unix.SockaddrInet6{Addr: [16]byte{15: 1}, Port: port}
	}}
)

func (f family) named(name string) string { return name + ", " + f.name }

func (f family) open(kind int) (int, error) { return unix.Socket(f.domain, kind|unix.SOCK_CLOEXEC, 0) }

// sockets are descriptors, by the turn that opened them.
type sockets map[int]int

func (s sockets) close(i int) error {
	fd := s[i]
	delete(s, i)
	return unix.Close(fd)
}

// opening is the operation, not measured, that opens them.
func (s sockets) opening(domain, kind int) operation {
	return operation{do: func(i int) (err error) {
		s[i], err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
		return err
	}}
}

// bound is a socket with a port, which the kernel chooses if it is 0, and its address.
func (f family) bound(kind, port int) (fd int, address unix.Sockaddr, err error) {
	if fd, err = f.open(kind); err != nil {
		return 0, nil, err
	}
	if err = unix.Bind(fd, f.loopback(port)); err == nil {
		address, err = unix.Getsockname(fd)
	}
	if err != nil {
		err = errors.Join(err, unix.Close(fd))
	}
	return fd, address, err
}

// connectionsTo are what there is to do with connections, whatever they go over.
func connectionsTo(domain, listener int, address unix.Sockaddr, named func(string) string) []operation {
	called, accepted := sockets{}, sockets{}
	var data [64]byte
	return []operation{
		called.opening(domain, unix.SOCK_STREAM),
		{named("connect"), func(i int) error { return unix.Connect(called[i], address) }},
		{named("accept"), func(i int) (err error) {
			accepted[i], _, err = unix.Accept(listener)
			return err
		}},
		{named("64 bytes, sent and read"), func(i int) error {
			_, err := unix.Write(called[i], data[:])
			if err == nil {
				_, err = unix.Read(accepted[i], data[:])
			}
			return err
		}},
		// This end closes first: the TIME_WAIT is its, and uses up no port.
		{named("close, of who has accepted"), accepted.close},
		{named("close, of who has called"), called.close},
	}
}

func (f family) connections() ([]operation, error) {
	listener, address, err := f.bound(unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Listen(listener, unix.SOMAXCONN)
	}
	all := connectionsTo(f.domain, listener, address, func(name string) string { return f.named("TCP " + name) })
	return append(all, closing(listener)), err
}

// closing is the end of a scenario, not measured.
func closing(fd int) operation {
	return operation{do: func(i int) error {
		if i > 0 {
			return nil
		}
		return unix.Close(fd)
	}}
}

// refusals are connects to a port that somebody has, and nobody listens at.
func (f family) refusals() ([]operation, error) {
	port, address, err := f.bound(unix.SOCK_STREAM, 0)
	opened := sockets{}
	return []operation{
		opened.opening(f.domain, unix.SOCK_STREAM),
		{f.named("TCP connect, refused"), func(i int) error {
			if err := unix.Connect(opened[i], address); !errors.Is(err, unix.ECONNREFUSED) {
				return fmt.Errorf("want %w, got %w", unix.ECONNREFUSED, err)
			}
			return nil
		}},
		{do: opened.close},
		closing(port),
	}, err
}

func (f family) listeners() ([]operation, error) {
	return []operation{{"TCP socket, bind, listen, close", func(int) error {
		fd, _, err := f.bound(unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		return errors.Join(unix.Listen(fd, 1), unix.Close(fd))
	}}}, nil
}

func (f family) ports() ([]operation, error) {
	opened := sockets{}
	return []operation{
		opened.opening(f.domain, unix.SOCK_DGRAM),
		{f.named("UDP bind"), func(i int) error { return unix.Bind(opened[i], f.loopback(0)) }},
		{f.named("UDP close, of a bound socket"), opened.close},
	}, nil
}

func (f family) peers() ([]operation, error) {
	opened := sockets{}
	return []operation{
		opened.opening(f.domain, unix.SOCK_DGRAM),
		{f.named("UDP connect"), func(i int) error { return unix.Connect(opened[i], f.loopback(40_000)) }},
		{f.named("UDP close, of a connected socket"), opened.close},
	}, nil
}

// attempted is a port of UDP to which each datagram is an attempt.
const attempted = 53

// messages are datagrams, each of which is read: who reads none gets none, in the end.
func (f family) messages() ([]operation, error) {
	high, highAddress, err1 := f.bound(unix.SOCK_DGRAM, 0)
	low, lowAddress, err2 := f.bound(unix.SOCK_DGRAM, attempted)
	sender, _, err3 := f.bound(unix.SOCK_DGRAM, 0)
	var data [64]byte
	send := func(from, to int, address unix.Sockaddr) error {
		if err := unix.Sendto(from, data[:], 0, address); err != nil {
			return err
		}
		_, err := unix.Read(to, data[:])
		return err
	}
	return []operation{
		{f.named("UDP datagram, to a high port"), func(int) error { return send(sender, high, highAddress) }},
		{f.named("UDP datagram, to port 53"), func(int) error { return send(sender, low, lowAddress) }},
		{f.named("UDP socket, datagram to a high port, close"), func(int) error {
			fd, err := f.open(unix.SOCK_DGRAM)
			if err != nil {
				return err
			}
			return errors.Join(send(fd, high, highAddress), unix.Close(fd))
		}},
		closing(high), closing(low), closing(sender),
	}, errors.Join(err1, err2, err3)
}

func unixConnections() ([]operation, error) {
	listener, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	// A name that no file has, and that the kernel chooses.
	if err := unix.Bind(listener, &unix.SockaddrUnix{}); err != nil {
		return nil, err
	}
	address, err := unix.Getsockname(listener)
	if err == nil {
		err = unix.Listen(listener, unix.SOMAXCONN)
	}
	all := connectionsTo(unix.AF_UNIX, listener, address, func(name string) string { return "Unix " + name })
	return append(all, closing(listener)), err
}

// processesOf start a program and wait for its end.
func processesOf(name string) func() ([]operation, error) {
	return func() ([]operation, error) {
		program, err := exec.LookPath(name)
		return []operation{{"process, from fork over exec to its end", func(int) error {
			pid, err := syscall.ForkExec(program, []string{name}, &syscall.ProcAttr{})
			if err != nil {
				return err
			}
			var status unix.WaitStatus
			_, err = unix.Wait4(pid, &status, 0, nil)
			if err == nil && status != 0 {
				err = fmt.Errorf("%s: status %#x", name, status)
			}
			return err
		}}}, err
	}
}

// threads are those of this process: one ends with a goroutine that is locked to it.
func threads() ([]operation, error) {
	return []operation{{"thread, from its start to its end", func(int) error {
		started := make(chan int)
		go func() {
			runtime.LockOSThread()
			started <- unix.Gettid()
		}()
		<-started
		return nil
	}}}, nil
}
