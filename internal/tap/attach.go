// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// taps are the sockets that the filter is attached to.
type taps struct {
	config Config
	home   int    // this process's own namespace
	first  uint32 // process 1's
	// limitsLast: the kernel remembers the CPUs that a thread was limited to, see
	// user_cpus_ptr of struct task_struct.
	limitsLast bool

	late atomic.Uint64

	// Of *tapSocket, by the namespace's inode number. A thread that waited for a
	// lock would let the process go on: nobody holds one while it attaches.
	sockets sync.Map
}

// tapSocket is attached to a namespace, or about to be.
type tapSocket struct {
	fd   int
	done atomic.Bool // also when it has failed
}

func newTaps(c Config) (*taps, error) {
	home, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening this process's network namespace: %w", err)
	}
	var first unix.Stat_t
	if err := unix.Stat("/proc/1/ns/net", &first); err != nil {
		return nil, fmt.Errorf("finding the first network namespace: %w", err)
	}
	return &taps{config: c, home: home, first: uint32(first.Ino), limitsLast: isSince(6, 2)}, nil
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

// attachFile attaches to the namespace that a file stands for, if it is new. The
// calling thread is locked to its goroutine.
func (t *taps) attachFile(file string) (isNew bool, err error) {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	return t.attach(fd)
}

func (t *taps) attach(fd int) (isNew bool, err error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return false, err
	}
	netns := uint32(stat.Ino)
	own := &tapSocket{}
	if there, ok := t.sockets.LoadOrStore(netns, own); ok {
		// Another CPU's thread is at it, and will soon be done.
		for there := there.(*tapSocket); !there.done.Load(); {
			_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
		return false, nil
	}
	socket, err := t.open(fd)
	if err != nil {
		t.sockets.CompareAndDelete(netns, own)
	}
	own.fd = socket
	own.done.Store(true)
	return true, err
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
	_, err = runProgram(t.config.Mark, 0)
	return socket, err
}

// everyProtocol is ETH_P_ALL in network byte order.
const everyProtocol = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8

// releaseEvery is how often namespaces are looked at that have perhaps come to
// their end.
const releaseEvery = time.Second

// releaseLeft detaches from namespaces that are there for this socket alone, as they
// come to be: they would stay, and their devices, for as long as it is attached.
//
// The first namespace never does, and new kernels do not count who uses it: under
// Linux 7.3 it looked as if nobody were there.
//
// It is here for the priority: while another process is in bpf(2), and has to make
// way for somebody on a preemptible kernel, no kprobe's program runs on that CPU,
// see bpf_disable_instrumentation().
func (t *taps) releaseLeft() error {
	for range time.Tick(releaseEvery) {
		var err error
		t.sockets.Range(func(netns, socket any) bool {
			if netns == t.first {
				return true
			}
			var users uint32
			if users, err = runProgram(t.config.Count, uint64(netns.(uint32))); err == nil && users == 1 {
				err = t.release(netns.(uint32), socket.(*tapSocket))
			}
			return err == nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// release detaches from a namespace. The kernel's side tells of it again first:
// nobody is there, and who comes is in another one.
func (t *taps) release(netns uint32, socket *tapSocket) error {
	if !socket.done.Load() || !t.sockets.CompareAndDelete(netns, socket) {
		return nil
	}
	if err := deleteKey(t.config.Watched, netns); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("forgetting a network namespace: %w", err)
	}
	// The kernel waits until nobody uses the socket, see packet_release().
	return unix.Close(socket.fd)
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
	fd, retval    uint32
	_             [32]byte // packets, which there are none of
	contextSize   uint32
	_             uint32
	context       uint64
	_             uint64
	flags, cpu, _ uint32
	_             uint32
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

// runProgram runs a program in the calling thread, and returns what it does.
func runProgram(fd int, argument uint64) (uint32, error) {
	attr := bpfRunAttr{fd: uint32(fd), contextSize: 8, context: uint64(uintptr(unsafe.Pointer(&argument)))}
	if err := bpf(unix.BPF_PROG_TEST_RUN, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return 0, fmt.Errorf("running a program about a network namespace: %w", err)
	}
	return attr.retval, nil
}
