// SPDX-License-Identifier: Apache-2.0

// Package bench measures what the gadget costs. Each number has its baseline in
// the same run, and counts as a ratio to it.
package bench

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"gadget.example/network/test/object"
)

const (
	// rounds go through all the ways by turns, and are short, so that what else
	// the machine does falls on all of them alike; the medians of the rounds count.
	rounds = 51
	// connects of one round of one way.
	connects = 300
)

// way is something that is attached while connects are measured.
type way struct {
	name   string
	attach func() (detach func() error, err error)
}

func nothing() (func() error, error) { return func() error { return nil }, nil }

// BenchmarkConnect measures connect() of TCP over loopback, bare, with the
// gadget's kprobes, and with the pair of a kprobe and a kretprobe that tools use
// to trace connects. It prints ns per connect and the ratio to bare.
func BenchmarkConnect(b *testing.B) {
	all, err := newHooks()
	if err != nil {
		b.Fatal(err)
	}
	defer all.collection.Close()
	pair, err := newPair()
	if err != nil {
		b.Fatal(err)
	}
	defer pair.close()

	ways := []way{{"bare", nothing}, {"gadget's kprobes", all.attach}, {"kprobe and kretprobe", pair.attach}}
	times := make([][]time.Duration, len(ways))
	for b.Loop() {
		for range rounds {
			for i, w := range ways {
				took, err := w.measure()
				if err != nil {
					b.Fatalf("%s: %v", w.name, err)
				}
				times[i] = append(times[i], took)
			}
		}
	}
	for i, w := range ways {
		ratios := make([]float64, 0, len(times[i]))
		for round, took := range times[i] {
			ratios = append(ratios, float64(took)/float64(times[0][round]))
		}
		fmt.Printf("connect  %-22s %8d ns  %.2f of bare\n", w.name, median(times[i]).Nanoseconds(), median(ratios))
	}
}

func median[T cmp.Ordered](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// measure returns the time of one connect().
func (w way) measure() (took time.Duration, err error) {
	detach, err := w.attach()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, detach()) }()
	return connectMany()
}

// connectMany times connects to a listener of its own, one after the other; the
// rest of a connection's life is not in the time.
func connectMany() (time.Duration, error) {
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(listener)
	if err := errors.Join(unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(listener, 16)); err != nil {
		return 0, err
	}
	server, err := unix.Getsockname(listener)
	if err != nil {
		return 0, err
	}
	var total time.Duration
	for range connects {
		took, err := connectOnce(listener, server)
		if err != nil {
			return 0, err
		}
		total += took
	}
	return total / connects, nil
}

func connectOnce(listener int, server unix.Sockaddr) (time.Duration, error) {
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	// An end that is reset leaves no TIME_WAIT behind, which would use up ports.
	err = unix.SetsockoptLinger(client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	start := time.Now()
	err = errors.Join(err, unix.Connect(client, server))
	took := time.Since(start)
	if err != nil {
		return 0, errors.Join(err, unix.Close(client))
	}
	accepted, _, err := unix.Accept(listener)
	return took, errors.Join(err, unix.Close(client), unix.Close(accepted))
}

type hooks struct {
	spec       *ebpf.CollectionSpec
	collection *ebpf.Collection
}

func newHooks() (*hooks, error) {
	spec, err := object.Read()
	if err != nil {
		return nil, err
	}
	collection, err := object.Load(spec)
	return &hooks{spec, collection}, err
}

func (h *hooks) attach() (func() error, error) { return object.AttachHooks(h.spec, h.collection) }

// pair is the least that a tracer of connect() does: it remembers the socket
// by the thread at the call, and forgets it at the return.
type pair struct {
	sockets     *ebpf.Map
	call, leave *ebpf.Program
}

func newPair() (*pair, error) {
	sockets, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 1024})
	if err != nil {
		return nil, err
	}
	// The key, -8, is the thread; the value, -16, a word of the registers.
	thread := asm.Instructions{
		asm.FnGetCurrentPidTgid.Call(),
		asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
		asm.LoadMapPtr(asm.R1, sockets.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -8),
	}
	call, err := newKprobe(slices.Concat(asm.Instructions{asm.LoadMem(asm.R3, asm.R1, 112, asm.DWord), asm.StoreMem(asm.RFP, -16, asm.R3, asm.DWord)}, thread, asm.Instructions{
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, -16),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call(),
	}))
	if err != nil {
		return nil, err
	}
	leave, err := newKprobe(append(thread, asm.FnMapDeleteElem.Call()))
	return &pair{sockets, call, leave}, err
}

func newKprobe(body asm.Instructions) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Kprobe, License: "GPL",
		Instructions: append(body, asm.Mov.Imm(asm.R0, 0), asm.Return()),
	})
}

func (p *pair) attach() (func() error, error) {
	call, err := link.Kprobe("tcp_v4_connect", p.call, nil)
	if err != nil {
		return nil, err
	}
	leave, err := link.Kretprobe("tcp_v4_connect", p.leave, nil)
	if err != nil {
		return nil, errors.Join(err, call.Close())
	}
	return func() error { return errors.Join(leave.Close(), call.Close()) }, nil
}

func (p *pair) close() {
	_ = p.call.Close()
	_ = p.leave.Close()
	_ = p.sockets.Close()
}
