// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// From the kernel's include/uapi/linux/io_uring.h.
const (
	uringSetupSQPoll    = 1 << 1
	uringSubmissionAt   = 0
	uringCompletionsAt  = 0x8000000
	uringEntriesAt      = 0x10000000
	uringEnterGetEvents = 1 << 0
	uringEnterWakeUp    = 1 << 1
	uringConnect        = 16
	uringAsync          = 1 << 4
)

// uringParams is struct io_uring_params with its struct io_sqring_offsets and
// struct io_cqring_offsets.
type uringParams struct {
	submissions, completions, flags, threadCPU, threadIdle, features, workers uint32
	_                                                                         [3]uint32

	submission struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	completion struct {
		head, tail, mask, entries, overflow, all, flags, _ uint32
		_                                                  uint64
	}
}

// uringEntry is the part of struct io_uring_sqe that a connect needs.
type uringEntry struct {
	operation, flags uint8
	_                uint16
	fd               int32
	length           uint64 // of the address
	address          uint64 // a pointer
	_                [5]uint64
}

type uringCompletion struct {
	_      uint64
	result int32
	_      uint32
}

// connectByUring connects by a ring of its own, and waits.
func connectByUring(fd int, dst unix.Sockaddr, how attempt.Uring) (err error) {
	params := &uringParams{threadIdle: 1} // ms, else the thread takes a processor for longer
	if how == attempt.Polled {
		params.flags = uringSetupSQPoll
	}
	r, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(params)), 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_setup: %w", errno)
	}
	ring := int(r)
	defer unix.Close(ring)
	maps, err := mapRing(ring, params)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, maps.unmap()) }()

	name, length, err := rawSockaddr(dst)
	if err != nil {
		return err
	}
	var pinned runtime.Pinner
	pinned.Pin(name)
	defer pinned.Unpin()
	entry := uringEntry{operation: uringConnect, fd: int32(fd), address: uint64(uintptr(name)), length: uint64(length)}
	if how == attempt.Worker {
		entry.flags = uringAsync
	}
	*(*uringEntry)(unsafe.Pointer(&maps.entries[0])) = entry
	// The ring's array of indices is zero, as is the entry's.
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&maps.submission[params.submission.tail])), 1)
	return maps.await(ring, params)
}

// await submits what was written, and returns what the connect did.
func (m *ringMaps) await(ring int, params *uringParams) error {
	submit, flags := uintptr(1), uintptr(uringEnterGetEvents|uringEnterWakeUp)
	tail := (*uint32)(unsafe.Pointer(&m.completions[params.completion.tail]))
	for atomic.LoadUint32(tail) == 0 {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(ring), submit, 1, flags, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			return fmt.Errorf("io_uring_enter: %w", errno)
		}
		submit = 0
	}
	done := (*uringCompletion)(unsafe.Pointer(&m.completions[params.completion.all]))
	if done.result < 0 {
		return unix.Errno(-done.result)
	}
	return nil
}

// ringMaps are what a ring shares with the kernel.
type ringMaps struct{ submission, completions, entries []byte }

func mapRing(ring int, params *uringParams) (*ringMaps, error) {
	m := &ringMaps{}
	for _, part := range []struct {
		to     *[]byte
		at     int64
		length uint32
	}{
		{&m.submission, uringSubmissionAt, params.submission.array + 4*params.submissions},
		{&m.completions, uringCompletionsAt, params.completion.all + uint32(unsafe.Sizeof(uringCompletion{}))*params.completions},
		{&m.entries, uringEntriesAt, uint32(unsafe.Sizeof(uringEntry{})) * params.submissions},
	} {
		mapped, err := unix.Mmap(ring, part.at, int(part.length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("mapping a ring: %w", err), m.unmap())
		}
		*part.to = mapped
	}
	return m, nil
}

func (m *ringMaps) unmap() error {
	var all error
	for _, part := range [][]byte{m.submission, m.completions, m.entries} {
		if part != nil {
			all = errors.Join(all, unix.Munmap(part))
		}
	}
	return all
}
