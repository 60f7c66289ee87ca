// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// taps are the sockets that the filter is attached to.
type taps struct {
	config Config
	home   int // this process's own namespace
	// limitsLast: the kernel remembers the CPUs that a thread was limited to, see
	// user_cpus_ptr of struct task_struct.
	limitsLast bool

	mu      sync.Mutex
	sockets map[uint32]int // by the namespace's inode number
}

func newTaps(c Config) (*taps, error) {
	home, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening this process's network namespace: %w", err)
	}
	return &taps{config: c, home: home, limitsLast: isSince(6, 2), sockets: map[uint32]int{}}, nil
}

// isSince is whether the kernel is of a version or a later one.
func isSince(major, minor int) bool {
	var name unix.Utsname
	var has [2]int
	if err := unix.Uname(&name); err != nil {
		return false
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &has[0], &has[1]); err != nil {
		return false
	}
	return has[0] > major || has[0] == major && has[1] >= minor
}

// attachFile attaches to the namespace that a file stands for. The calling
// thread is locked to its goroutine.
func (t *taps) attachFile(file string) error {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return t.attach(fd)
}

func (t *taps) attach(fd int) error {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err
	}
	netns := uint32(stat.Ino)
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.sockets[netns]; ok {
		return nil
	}
	socket, err := t.open(fd)
	if err != nil {
		return err
	}
	t.sockets[netns] = socket
	return nil
}

// open opens a socket in a namespace. It is bound last: no packet comes to it that
// the filter has not seen.
func (t *taps) open(fd int) (socket int, err error) {
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return 0, fmt.Errorf("entering a network namespace: %w", err)
	}
	defer func() { _ = unix.Setns(t.home, unix.CLONE_NEWNET) }()
	socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("opening a packet socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(socket)
		}
	}()
	if err := unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, t.config.Filter); err != nil {
		return 0, fmt.Errorf("attaching the filter: %w", err)
	}
	if err := unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: everyProtocol}); err != nil {
		return 0, fmt.Errorf("binding a packet socket: %w", err)
	}
	return socket, runProgram(t.config.Mark)
}

// everyProtocol is ETH_P_ALL in network byte order.
const everyProtocol = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8

// release detaches from a namespace. The kernel's side tells of it again first:
// nobody is there, and who comes is in another one.
func (t *taps) release(netns uint32) error {
	socket, err := t.forget(netns)
	if err != nil || socket < 0 {
		return err
	}
	// The kernel waits until nobody uses the socket (packet_release()): no attach
	// has to wait for that.
	return unix.Close(socket)
}

// forget returns the socket of a namespace, -1 if there is none.
func (t *taps) forget(netns uint32) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	socket, ok := t.sockets[netns]
	if !ok {
		return -1, nil
	}
	if err := deleteKey(t.config.Watched, netns); err != nil && !errors.Is(err, unix.ENOENT) {
		return -1, fmt.Errorf("forgetting a network namespace: %w", err)
	}
	delete(t.sockets, netns)
	return socket, nil
}

// Commands of bpf(2), and their attributes as in union bpf_attr of
// include/uapi/linux/bpf.h.

type bpfMapAttr struct {
	fd         uint32
	_          uint32
	key, value uint64
	flags      uint64
}

type bpfRunAttr struct {
	fd, retval uint32
	_          [72]byte // input and output, which there is none of
}

func bpf(command int, attr unsafe.Pointer, size uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size); errno != 0 {
		return errno
	}
	return nil
}

func deleteKey(fd int, key uint32) error {
	attr := bpfMapAttr{fd: uint32(fd), key: uint64(uintptr(unsafe.Pointer(&key)))}
	return bpf(unix.BPF_MAP_DELETE_ELEM, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

func putValue(fd int, key, value uint32) error {
	attr := bpfMapAttr{
		fd: uint32(fd), key: uint64(uintptr(unsafe.Pointer(&key))), value: uint64(uintptr(unsafe.Pointer(&value))),
	}
	return bpf(unix.BPF_MAP_UPDATE_ELEM, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// runProgram runs a program in the calling thread.
func runProgram(fd int) error {
	attr := bpfRunAttr{fd: uint32(fd)}
	if err := bpf(unix.BPF_PROG_TEST_RUN, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return fmt.Errorf("marking a network namespace: %w", err)
	}
	return nil
}
