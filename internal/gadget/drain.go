// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// drain tells when every event of the packets sent so far has been read.
//
// Events travel in one ring a CPU, which is read in order. So, on each CPU, a
// sentinel is put behind them, and has arrived when they have. Before that, a
// datagram over the loopback interface makes sure that the CPU has received
// what it had queued: the kernel's queue of received packets (see
// enqueue_to_backlog()) is one a CPU, for all namespaces, and in order as well.
//
// The sentinel is written by a program of our own and not caused by the
// datagram: no filter that the user asked for can hold it back.
type drain struct {
	program *ebpf.Program

	// Sentinels that a full ring refused: the kernel counts them as lost.
	refused atomic.Uint64

	mu      sync.Mutex
	pending map[int]bool // CPUs whose sentinel is on its way
	done    chan struct{}
}

func newDrain() *drain {
	return &drain{pending: map[int]bool{}}
}

// attach makes the program that writes sentinels to the gadget's events.
func (d *drain) attach(gadgetCtx operators.GadgetContext) error {
	events, err := loadedMap(gadgetCtx, "events")
	if err != nil {
		return err
	}
	program, err := newSentinelProgram(events)
	if err != nil {
		return fmt.Errorf("loading the program that marks the end of the events: %w", err)
	}
	d.program = program
	return nil
}

// newSentinelProgram writes eight bytes to the ring of the CPU it runs on: the
// CPU's number, where an event has its timestamp. IG fills up what a short
// record lacks with zeros, the IP version among it. A program for a raw
// tracepoint can be run on any CPU that is online, also one that this process
// may not use (see bpf_prog_test_run_raw_tp()).
func newSentinelProgram(events *ebpf.Map) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "sentinel",
		Type: ebpf.RawTracepoint,
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.FnGetSmpProcessorId.Call(),
			asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.LoadMapPtr(asm.R2, events.FD()),
			asm.LoadImm(asm.R3, unix.BPF_F_CURRENT_CPU, asm.DWord),
			asm.Mov.Reg(asm.R4, asm.RFP),
			asm.Add.Imm(asm.R4, -8),
			asm.Mov.Imm(asm.R5, 8),
			asm.FnPerfEventOutput.Call(),
			asm.Return(),
		},
		License: "GPL",
	})
}

func (d *drain) close() error {
	if d == nil || d.program == nil {
		return nil
	}
	return d.program.Close()
}

// expect has a sentinel of each CPU awaited; the channel is closed when they are
// there.
func (d *drain) expect(cpus int) <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	for cpu := range cpus {
		d.pending[cpu] = true
	}
	d.done = make(chan struct{})
	return d.done
}

// arrived takes note of a sentinel.
func (d *drain) arrived(cpu int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.pending[cpu] {
		return
	}
	delete(d.pending, cpu)
	if len(d.pending) == 0 {
		close(d.done)
	}
}

// wait returns when every event of a packet sent before has been read. After an
// error it must not be called again.
func (d *drain) wait(ctx context.Context) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("counting the CPUs to drain: %w", err)
	}
	done := d.expect(cpus)
	sent := make(chan error, 1)
	go func() {
		// This thread gets an affinity and a namespace of its own, and so
		// ends with the goroutine.
		runtime.LockOSThread()
		sent <- d.sendAll(ctx, cpus)
	}()
	if err := <-sent; err != nil {
		return fmt.Errorf("marking the end of the events: %w", err)
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the last events were not read in time: %w", ctx.Err())
	}
}

func (d *drain) sendAll(ctx context.Context, cpus int) error {
	loopback, err := newLoopback(ctx)
	if err != nil {
		return err
	}
	defer loopback.close()
	for cpu := range cpus {
		if err := errors.Join(loopback.flushOn(cpu), d.send(ctx, cpu)); err != nil {
			return fmt.Errorf("on CPU %d: %w", cpu, err)
		}
	}
	return nil
}

// send puts a sentinel into a CPU's ring. A full ring refuses it, which the
// program returns, until the reader has caught up: then it is put again. A CPU
// that is offline, or has no ring, sends no events.
func (d *drain) send(ctx context.Context, cpu int) error {
	options := ebpf.RunOptions{Flags: unix.BPF_F_TEST_RUN_ON_CPU, CPU: uint32(cpu)}
	for ctx.Err() == nil {
		result, err := d.program.Run(&options)
		if errors.Is(err, unix.ENXIO) {
			d.arrived(cpu)
			return nil
		}
		if err != nil {
			return err
		}
		switch errno := unix.Errno(-int32(result)); errno {
		case 0:
			return nil
		case unix.ENOENT, unix.EOPNOTSUPP:
			d.arrived(cpu)
			return nil
		case unix.ENOSPC:
			d.refused.Add(1)
			runtime.Gosched()
		case unix.EBUSY:
			runtime.Gosched()
		default:
			return errno
		}
	}
	return ctx.Err()
}

// moveTo moves the calling thread to a CPU; false: it is offline, or not one that
// this process may use.
func moveTo(cpu int) (bool, error) {
	var set unix.CPUSet
	set.Set(cpu)
	err := unix.SchedSetaffinity(0, &set)
	if errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("moving to CPU %d: %w", cpu, err)
	}
	return true, nil
}

// loopback sends datagrams to itself, in a network namespace of its own: no
// firewall rule of the user's is in the way, and nobody sees them.
type loopback struct {
	conn *net.UDPConn
}

// newLoopback moves the calling thread to a new network namespace.
func newLoopback(ctx context.Context) (*loopback, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("finding the loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("starting the loopback interface: %w", err)
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, fmt.Errorf("opening a loopback socket: %w", err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		err = conn.SetDeadline(deadline)
	}
	return &loopback{conn: conn}, err
}

// flushOn returns when a CPU has received all that it had queued. What this
// process may not use, no command of its has used.
func (l *loopback) flushOn(cpu int) error {
	if there, err := moveTo(cpu); err != nil || !there {
		return err
	}
	if _, err := l.conn.WriteTo([]byte{0}, l.conn.LocalAddr()); err != nil {
		return fmt.Errorf("sending over loopback: %w", err)
	}
	if _, _, err := l.conn.ReadFrom(make([]byte, 1)); err != nil {
		return fmt.Errorf("receiving over loopback: %w", err)
	}
	return nil
}

func (l *loopback) close() { l.conn.Close() }
