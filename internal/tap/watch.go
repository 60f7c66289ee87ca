// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watchers are threads that wait at rings.
type watchers struct {
	taps  *taps
	ended chan error

	mu      sync.Mutex
	watched map[int]bool // CPUs
}

// cpusFile has the CPUs that are online, as "0-3,5".
const cpusFile = "/sys/devices/system/cpu/online"

// start has a thread wait for each CPU that is online and has none.
func (w *watchers) start() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	text, err := os.ReadFile(cpusFile)
	if err != nil {
		return err
	}
	online, err := parseCPUs(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("%s: %w", cpusFile, err)
	}
	// A thread that comes back from the kernel finds a processor of Go's idle.
	if procs := 2*len(online) + 4; procs > runtime.GOMAXPROCS(0) {
		runtime.GOMAXPROCS(procs)
	}
	for cpu := range w.watched {
		if !online[cpu] { // its ring is dead: it gets another when it is back
			delete(w.watched, cpu)
		}
	}
	for cpu := range online {
		if w.watched[cpu] {
			continue
		}
		ready := make(chan error)
		go w.watch(cpu, ready)
		if err := <-ready; err != nil {
			return fmt.Errorf("watching CPU %d: %w", cpu, err)
		}
		w.watched[cpu] = true
	}
	return nil
}

// startLate does the same for CPUs that come online.
func (w *watchers) startLate() {
	for range time.Tick(time.Second) {
		if err := w.start(); err != nil && !errors.Is(err, unix.ENODEV) { // it is gone again
			w.ended <- err
			return
		}
	}
}

func parseCPUs(list string) (map[int]bool, error) {
	cpus := map[int]bool{}
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		if err != nil {
			return nil, err
		}
		last := first
		if isRange {
			if last, err = strconv.Atoi(to); err != nil {
				return nil, err
			}
		}
		for cpu := first; cpu <= last; cpu++ {
			cpus[cpu] = true
		}
	}
	return cpus, nil
}

// watch waits for what is entered on a CPU.
func (w *watchers) watch(cpu int, ready chan<- error) {
	runtime.LockOSThread()
	// Where this process may not be, it is from elsewhere that it watches.
	if err := unix.SchedSetaffinity(0, onlyCPU(cpu)); err != nil && !errors.Is(err, unix.EINVAL) {
		ready <- err
		return
	}
	r, err := openRing(cpu)
	if err != nil {
		ready <- err
		return
	}
	// Once for practice: what it needs is in memory then.
	if err := try(); err != nil {
		ready <- err
		return
	}
	if err := putValue(w.taps.config.Entered, uint32(cpu), uint32(r.fd)); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for {
		if err := r.wait(); err != nil {
			w.ended <- err
			return
		}
		r.each(func(e entry) { w.taps.enter(e, cpu) })
	}
}

// entry is struct entry of ebpf/enter.h.
type entry struct {
	netns, pid, tid uint32
	limited         bool   // to some CPUs, by somebody's wish
	switches        uint64 // how often the thread has left a CPU so far
}

// enter attaches to where a thread is. Who has ended meanwhile needs it no more.
//
// The thread waits for this CPU, but another that has nothing to do can take it
// over: until all is done, it may not.
func (t *taps) enter(e entry, cpu int) {
	var before unix.CPUSet
	tid := int(e.tid)
	held := unix.SchedGetaffinity(tid, &before) == nil && unix.SchedSetaffinity(tid, onlyCPU(cpu)) == nil

	name := append(make([]byte, 0, 64), "/proc/"...)
	name = strconv.AppendUint(name, uint64(e.pid), 10)
	name = append(name, "/task/"...)
	name = strconv.AppendUint(name, uint64(e.tid), 10)
	thread := len(name)
	isNew, err := t.attachFile(string(append(name, "/ns/net"...)))
	if err != nil || isNew && hasGoneOn(string(append(name[:thread], "/status"...)), e.switches) {
		t.late.Add(1)
	}

	if held {
		if t.limitsLast && !e.limited { // what it has is no wish, and must not become one
			before.Fill()
		}
		_ = unix.SchedSetaffinity(tid, &before)
	}
}

// hasGoneOn is whether a thread has done more, since it had left CPUs so many times,
// than to make way for the thread that asks.
func hasGoneOn(status string, switches uint64) bool {
	text, err := os.ReadFile(status)
	if err != nil {
		return true // it has ended
	}
	var now uint64
	for line := range strings.Lines(string(text)) {
		if name, number, _ := strings.Cut(line, ":"); strings.HasSuffix(name, "voluntary_ctxt_switches") {
			n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 64)
			if err != nil {
				return true
			}
			now += n
		}
	}
	return now > switches+1
}

func onlyCPU(cpu int) *unix.CPUSet {
	var set unix.CPUSet
	set.Set(cpu)
	return &set
}

// try does all that is done to attach, and detaches.
func try() error {
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return err
	}
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return unix.Close(socket)
}

// ring is a perf event's, which programs write to on one CPU: see
// struct perf_event_mmap_page of include/uapi/linux/perf_event.h.
type ring struct {
	fd   int
	page *unix.PerfEventMmapPage
	data []byte
}

func openRing(cpu int) (*ring, error) {
	attr := unix.PerfEventAttr{
		Type:        unix.PERF_TYPE_SOFTWARE,
		Config:      unix.PERF_COUNT_SW_BPF_OUTPUT,
		Sample_type: unix.PERF_SAMPLE_RAW,
		Wakeup:      1,
	}
	attr.Size = uint32(unsafe.Sizeof(attr))
	fd, err := unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("opening a perf event: %w", err)
	}
	size := os.Getpagesize()
	memory, err := unix.Mmap(fd, 0, 2*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mapping a perf event's ring: %w", err)
	}
	return &ring{fd: fd, page: (*unix.PerfEventMmapPage)(unsafe.Pointer(&memory[0])), data: memory[size:]}, nil
}

func (r *ring) wait() error {
	fds := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}}
	_, err := unix.Poll(fds, -1)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("waiting at a ring: %w", err)
	}
	return nil
}

// each takes the records out: struct perf_event_header, the number of bytes and
// these.
func (r *ring) each(f func(entry)) {
	head := atomic.LoadUint64(&r.page.Data_head)
	for tail := r.page.Data_tail; tail < head; {
		header := r.at(tail, 8)
		size := uint64(binary.NativeEndian.Uint16(header[6:]))
		if binary.NativeEndian.Uint32(header) == unix.PERF_RECORD_SAMPLE {
			b := r.at(tail+12, 24)
			f(entry{
				netns: binary.NativeEndian.Uint32(b), pid: binary.NativeEndian.Uint32(b[4:]),
				tid: binary.NativeEndian.Uint32(b[8:]), limited: binary.NativeEndian.Uint32(b[12:]) != 0,
				switches: binary.NativeEndian.Uint64(b[16:]),
			})
		}
		tail += size
		atomic.StoreUint64(&r.page.Data_tail, tail)
	}
}

// at copies bytes of a record, which can go on at the ring's beginning.
func (r *ring) at(offset uint64, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = r.data[(offset+uint64(i))%uint64(len(r.data))]
	}
	return b
}
