// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// Ports that nobody listens at.
const (
	wayPortTCP = 81
	wayPortUDP = 82
)

// takeWays tries the ways that the first argument has as JSON, or, for one of them,
// talks to the address that the arguments name.
func takeWays(args []string) int {
	var err error
	if args[0] == "talk" {
		err = talkOnce(args[1])
	} else {
		err = tryWays(args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		return 1
	}
	return 0
}

// tries are attempts that were made, and to be made: each has an address of its own.
type tries struct {
	made []attempt.Sent
	next int
}

func (t *tries) address() netip.Addr {
	t.next++
	return netip.AddrFrom4([4]byte{127, 77, byte(t.next >> 8), byte(t.next)})
}

func (t *tries) add(way string, to netip.Addr, pid int, netns uint64) {
	for protocol, port := range map[attempt.Protocol]uint16{attempt.TCP: wayPortTCP, attempt.UDP: wayPortUDP} {
		t.made = append(t.made, attempt.Sent{
			Way: way, Protocol: protocol, Dst: netip.AddrPortFrom(to, port), PID: uint32(pid), NetNS: uint32(netns),
		})
	}
}

func tryWays(text string) error {
	var asked attempt.Ways
	if err := json.Unmarshal([]byte(text), &asked); err != nil {
		return err
	}
	var t tries
	for _, way := range asked.Names {
		for i := range asked.Tries {
			file := ""
			if way == attempt.WayEnter {
				file = asked.Files[i]
			}
			if err := t.try(way, file); err != nil {
				return fmt.Errorf("%s: %w", way, err)
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(t.made)
}

func (t *tries) try(way, file string) error {
	to := t.address()
	switch way {
	case attempt.WayThread:
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // the thread ends with the goroutine
			done <- talk(to)
		}()
		t.add(way, to, os.Getpid(), 0)
		return <-done
	case attempt.WaySetuid:
		return t.trySetuid(to)
	}
	p, err := newPlay(to)
	if err != nil {
		return err
	}
	defer p.close()
	flags := uintptr(0)
	switch way {
	case attempt.WayDaemon:
		p.call(unix.SYS_SETSID)
		p.fork(0)
	case attempt.WayMount:
		p.call(unix.SYS_UNSHARE, unix.CLONE_NEWNS)
	case attempt.WayUser:
		p.call(unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	case attempt.WayUTS:
		p.call(unix.SYS_UNSHARE, unix.CLONE_NEWUTS)
	case attempt.WayIPC:
		p.call(unix.SYS_UNSHARE, unix.CLONE_NEWIPC)
	case attempt.WayPID:
		p.call(unix.SYS_UNSHARE, unix.CLONE_NEWPID)
		p.fork(0)
	case attempt.WayNet:
		p.call(unix.SYS_UNSHARE, unix.CLONE_NEWNET)
		p.setUp()
	case attempt.WayBorn:
		flags = unix.CLONE_NEWNET
		p.setUp()
	case attempt.WayBornMapped:
		flags = unix.CLONE_NEWUSER | unix.CLONE_NEWNET
		p.setUp()
	case attempt.WayChroot:
		p.call(unix.SYS_CHROOT, p.text("/proc"))
	case attempt.WayEnter:
		p.enter(file)
	}
	p.talk()
	if err := p.perform(flags); err != nil {
		return err
	}
	t.add(way, to, p.pid(), p.netNS())
	return nil
}

// trySetuid has another user execute a program of root's.
func (t *tries) trySetuid(to netip.Addr) error {
	dir, err := os.MkdirTemp("", "setuid-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	name := filepath.Join(dir, "agent")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(name, program, 0o755), os.Chmod(name, 0o755|os.ModeSetuid)); err != nil {
		return err
	}
	cmd := exec.Command(name, "talk", to.String())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(string(out)); got != "0" {
		return fmt.Errorf("effective user %s of a program of root's", got)
	}
	t.add(attempt.WaySetuid, to, cmd.Process.Pid, 0)
	return nil
}

func talkOnce(to string) error {
	fmt.Println(os.Geteuid())
	addr, err := netip.ParseAddr(to)
	if err != nil {
		return err
	}
	return talk(addr)
}

// talk makes an attempt of each protocol, which nobody answers.
func talk(to netip.Addr) error {
	for kind, port := range map[int]int{unix.SOCK_STREAM: wayPortTCP, unix.SOCK_DGRAM: wayPortUDP} {
		fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		dst := &unix.SockaddrInet4{Addr: to.As4(), Port: port}
		if kind == unix.SOCK_STREAM {
			err = unix.Connect(fd, dst)
		} else {
			err = unix.Sendto(fd, nil, 0, dst)
		}
		unix.Close(fd)
		if err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
	}
	return nil
}

// play is what a child does: system calls, one after the other and nothing else. It
// is forked from a Go program, and has one thread and nothing of Go's runtime.
type play struct {
	calls    []systemCall
	results  []int64 // in memory that is shared with the child
	memory   []byte
	kept     []any // what the calls point to
	pidAt    int   // the call that forks who talks, or -1
	netNSAt  int   // the stat of its namespace, or -1
	child    int
	stat     *unix.Stat_t
	tcp, udp *unix.RawSockaddrInet4
}

// systemCall is one call. What ref has, if not 0, is the call (counted from 1) whose
// result is the argument. After a fork the parent goes on at call parent.
type systemCall struct {
	trap   uintptr
	args   [6]uintptr
	ref    [6]int
	parent int
	may    int64 // what it may fail with
}

const mostCalls = 64

func newPlay(to netip.Addr) (*play, error) {
	memory, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	address := func(port uint16) *unix.RawSockaddrInet4 {
		a := &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.As4()}
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&a.Port))[:], port)
		return a
	}
	return &play{
		memory: memory, results: unsafe.Slice((*int64)(unsafe.Pointer(&memory[0])), mostCalls),
		stat: (*unix.Stat_t)(unsafe.Pointer(&memory[8*mostCalls])), pidAt: -1, netNSAt: -1,
		tcp: address(wayPortTCP), udp: address(wayPortUDP),
	}, nil
}

func (p *play) close() { _ = unix.Munmap(p.memory) }

func (p *play) call(trap uintptr, args ...uintptr) *systemCall {
	c := systemCall{trap: trap, parent: -1}
	copy(c.args[:], args)
	p.calls = append(p.calls, c)
	return &p.calls[len(p.calls)-1]
}

// onSocket calls with the socket that the call before has opened.
func (p *play) onSocket(trap uintptr, args ...uintptr) *systemCall {
	opened := len(p.calls)
	c := p.call(trap, append([]uintptr{0}, args...)...)
	c.ref[0] = opened
	return c
}

// fork has the child go on; the parent ends.
func (p *play) fork(flags uintptr) {
	p.pidAt = len(p.calls)
	p.call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|flags).parent = mostCalls
}

func (p *play) text(s string) uintptr {
	b := append([]byte(s), 0)
	p.kept = append(p.kept, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

// setUp brings up the loopback device of a new namespace, by the first of calls in
// it.
func (p *play) setUp() {
	request := &struct {
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}{flags: unix.IFF_UP | unix.IFF_RUNNING}
	copy(request.name[:], "lo")
	p.kept = append(p.kept, request)
	p.call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM, 0)
	p.onSocket(unix.SYS_IOCTL, unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(request)))
	p.netNSAt = 0
}

func (p *play) enter(file string) {
	at := unix.AT_FDCWD
	p.call(unix.SYS_OPENAT, uintptr(at), p.text(file), unix.O_RDONLY, 0)
	p.onSocket(unix.SYS_SETNS, unix.CLONE_NEWNET)
	p.netNSAt = 0
}

func (p *play) talk() {
	p.call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM, 0)
	p.onSocket(unix.SYS_SENDTO, 0, 0, 0, uintptr(unsafe.Pointer(p.udp)), unix.SizeofSockaddrInet4)
	p.call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0)
	p.onSocket(unix.SYS_CONNECT, uintptr(unsafe.Pointer(p.tcp)), unix.SizeofSockaddrInet4).may = int64(unix.ECONNREFUSED)
	if p.netNSAt >= 0 {
		p.netNSAt = len(p.calls)
		at := unix.AT_FDCWD
		p.call(sysStat, uintptr(at), p.text("/proc/self/ns/net"), uintptr(unsafe.Pointer(p.stat)), 0)
	}
}

func (p *play) pid() int {
	if p.pidAt >= 0 {
		return int(p.results[p.pidAt])
	}
	return p.child
}

func (p *play) netNS() uint64 {
	if p.netNSAt < 0 {
		return 0
	}
	return p.stat.Ino
}

// perform has a child do it, and waits until it and its own have ended: they hold
// the pipe.
func (p *play) perform(flags uintptr) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	runtime.LockOSThread()
	pid, errno := forkAndCall(uintptr(unix.SIGCHLD)|flags, &p.calls[0], len(p.calls), &p.results[0])
	runtime.UnlockOSThread()
	w.Close()
	if errno != 0 {
		return fmt.Errorf("clone: %w", errno)
	}
	p.child = int(pid)
	_, _ = bufio.NewReader(r).ReadByte() // the end
	var status unix.WaitStatus
	if _, err := unix.Wait4(p.child, &status, 0, nil); err != nil {
		return err
	}
	runtime.KeepAlive(p)
	for i, c := range p.calls {
		if got := p.results[i]; got < 0 && got != -c.may {
			return fmt.Errorf("system call %d: %w", c.trap, unix.Errno(-got))
		}
	}
	return nil
}

// forkAndCall forks a child that calls, and ends.
//
//go:norace
//go:nosplit
func forkAndCall(flags uintptr, calls *systemCall, n int, results *int64) (pid uintptr, errno unix.Errno) {
	pid, _, errno = unix.RawSyscall6(unix.SYS_CLONE, flags, 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	for i := 0; i < n; {
		c := (*systemCall)(unsafe.Add(unsafe.Pointer(calls), uintptr(i)*unsafe.Sizeof(*calls)))
		var args [6]uintptr
		for j := range args {
			args[j] = c.args[j]
			if c.ref[j] > 0 {
				args[j] = uintptr(*(*int64)(unsafe.Add(unsafe.Pointer(results), uintptr(c.ref[j]-1)*8)))
			}
		}
		got, _, failed := unix.RawSyscall6(c.trap, args[0], args[1], args[2], args[3], args[4], args[5])
		result := int64(got)
		if failed != 0 {
			result = -int64(failed)
		}
		if c.parent < 0 || result != 0 { // who was forked does not write what its parent knows
			*(*int64)(unsafe.Add(unsafe.Pointer(results), uintptr(i)*8)) = result
		}
		i++
		if c.parent >= 0 && result != 0 {
			i = c.parent
		}
	}
	for {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}
