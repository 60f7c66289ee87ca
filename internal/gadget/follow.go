// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators"
	"golang.org/x/sys/unix"
)

// followed are the processes that the gadget follows, see ebpf/follow.h.
type followed struct {
	processes *ebpf.Map
	following gadgetMap
	unknown   span
}

func newFollowed(gadgetCtx operators.GadgetContext) (f *followed, err error) {
	f = &followed{}
	if f.processes, err = loadedMap(gadgetCtx, "followed"); err != nil {
		return nil, err
	}
	if f.following, err = newGadgetMap(gadgetCtx, "following"); err != nil {
		return nil, err
	}
	names := fields{of: f.following}
	f.unknown = names.find("unfollowed")
	return f, names.err
}

// running are the processes that live, but for the first.
func (f *followed) running() (pids []uint32, err error) {
	seen := map[uint32]bool{}
	for range mostReads {
		clear(seen)
		var pid uint32
		var started uint64
		entries := f.processes.Iterate()
		for entries.Next(&pid, &started) {
			seen[pid] = true
		}
		err = entries.Err()
		if !errors.Is(err, ebpf.ErrIterationAborted) { // it was changed meanwhile
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading the processes that are followed: %w", err)
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

// mostReads is how often a map is read that changes meanwhile.
const mostReads = 100

// unfollowed is how many processes could not be followed.
func (f *followed) unfollowed() (n uint64, err error) {
	err = f.following.each(func(value []byte) { n = f.unknown.uint(value) })
	return n, err
}

// wait returns when none lives any more, or ctx is done.
func (f *followed) wait(ctx context.Context) error {
	for ctx.Err() == nil {
		pids, err := f.running()
		if err != nil || len(pids) == 0 {
			return err
		}
		err = awaitEnd(ctx, int(pids[0]))
		if errors.Is(err, unix.ESRCH) { // the kernel's side has missed its end
			err = f.processes.Delete(pids[0])
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("waiting for process %d: %w", pids[0], err)
		}
	}
	return nil
}

// awaitEnd returns when a process has ended, or ctx is done.
func awaitEnd(ctx context.Context, pid int) error {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(process)
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(wake)
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_, _ = unix.Write(wake, binary.NativeEndian.AppendUint64(nil, 1)) // it is open, and has room
		close(done)
	})
	defer func() {
		if !stop() {
			<-done
		}
	}()
	for {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return err
}
