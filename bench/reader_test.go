// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// What BenchmarkReader runs.
var (
	netgadgetProgram = flag.String("netgadget", "../build/netgadget", "netgadget's program")
	igProgram        = flag.String("ig", "../build/ig", "ig's program")
)

// How long a rate lasts.
var (
	searchFor = flag.Duration("search", 5*time.Second, "how long BenchmarkReader tries a rate")
	holdFor   = flag.Duration("hold", 30*time.Second, "how long a rate lasts that is to hold")
)

const (
	goalRate  = 20_000 // attempts per second
	firstRate = 5_000  // attempts per second; then twice as many, until some are lost
	// The highest rate is known to a part of it.
	searchedTo = 1.0 / 16
)

// readBound bounds the waits for a reader: to start, and to catch up with full rings.
const readBound = time.Minute

// reader is a program that runs the gadget and writes its events as JSON lines.
type reader struct {
	name      string
	program   *string
	arguments func(archive, name string) []string
}

var readers = []reader{
	{"netgadget run", netgadgetProgram, func(archive, name string) []string {
		return []string{"run", "--image-file", archive, "--image", name, "--rate-limit", "0"}
	}},
	{"ig run -o json", igProgram, func(_, name string) []string {
		return []string{"run", name, "--host", "--verify-image=false", "--rate-limit", "0", "-o", "json"}
	}},
}

// BenchmarkReader measures how many events per second a reader takes before the kernel's
// rings lose some, and what each takes of it. It runs this machine's own kernel, as an
// emulator would be what is measured, and so without kprobes where that has none.
func BenchmarkReader(b *testing.B) {
	if os.Getpid() != 1 {
		for b.Loop() {
			if err := runIsolated(); err != nil {
				b.Fatal(err)
			}
		}
		return
	}
	runtime.LockOSThread() // of the network namespace
	defer runtime.UnlockOSThread()
	for b.Loop() {
		rows, err := measureReaders(b.Context(), b.TempDir())
		if err == nil {
			err = tell("reader", rows)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// runIsolated runs this benchmark as process 1 of new namespaces, whose network
// namespace is the one that ig takes for the host's.
func runIsolated() error {
	cmd := exec.Command("/proc/self/exe", append(os.Args[1:], "-test.bench=^BenchmarkReader$")...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  unix.SIGKILL,
	}
	return cmd.Run()
}

// mountAll mounts what the readers need, and what they leave behind goes with it.
func mountAll() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keeping mounts to itself: %w", err)
	}
	for _, m := range [][2]string{
		{"proc", "/proc"},
		{"debugfs", "/sys/kernel/debug"},
		{"tracefs", "/sys/kernel/tracing"},
		{"bpf", "/sys/fs/bpf"},
		{"tmpfs", "/var/lib/ig"}, // where it keeps images
		{"tmpfs", eventSources},
	} {
		// Busy: it is there.
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mounting %s on %s: %w", m[0], m[1], err)
		}
	}
	return pretendKprobes()
}

// eventSources is where the kernel tells of its perf events.
const eventSources = "/sys/bus/event_source/devices"

// pretendKprobes has netgadget not refuse a kernel without them: the image that it runs
// attaches none.
func pretendKprobes() error {
	format := filepath.Join(eventSources, "kprobe", "format")
	if err := os.MkdirAll(format, 0o755); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(format, "retprobe"), []byte("config:0\n"), 0o644),
		os.WriteFile(filepath.Join(eventSources, "kprobe", "type"), []byte("0\n"), 0o644),
	)
}

func measureReaders(ctx context.Context, folder string) (rows [][]string, err error) {
	if err := mountAll(); err != nil {
		return nil, err
	}
	archive := filepath.Join(folder, "image.tar")
	name, err := withoutKprobes(ctx, archive)
	if err != nil {
		return nil, err
	}
	if out, err := exec.Command(*igProgram, "image", "import", archive).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("ig image import: %w\n%s", err, out)
	}
	server, err := makePair()
	if err != nil {
		return nil, err
	}
	defer server.Close()
	g, err := newGenerator()
	if err != nil {
		return nil, err
	}
	defer g.close()
	rows = [][]string{{"", "written to", "asked for, /s", "made, /s", "lost", "CPU, us an event", "CPUs", "RSS idle, MiB", "RSS at most, MiB"}}
	for _, r := range readers {
		for _, to := range []output{&pipe{}, &file{folder: folder}} {
			more, err := r.measure(g, to, archive, name)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", r.name, err)
			}
			rows = append(rows, more...)
		}
	}
	return rows, nil
}

// measure goes up to the rate where events are lost, looks for the highest one where
// none are, and has that hold. Where the machine makes no more attempts, that ends it too.
func (r reader) measure(g *generator, to output, archive, name string) (rows [][]string, err error) {
	run, err := r.start(g, to, archive, name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, run.end()) }()
	var last []string // row
	try := func(rate float64, during time.Duration) (held bool, err error) {
		c, err := run.carry(g, rate, during)
		last = append([]string{r.name, to.name()}, c.row()...)
		fmt.Println(strings.Join(last, "  "))
		return c.lost == 0 && c.made >= made*rate, err
	}
	low, high := 0.0, float64(firstRate)
	for held := true; held; {
		during := *searchFor
		if high == goalRate {
			during = *holdFor
		}
		if held, err = try(high, during); err != nil {
			return nil, err
		}
		rows = append(rows, last)
		if held {
			low, high = high, 2*high
		}
	}
	for high-low > low*searchedTo && low > 0 {
		held, err := try((low+high)/2, *searchFor)
		if err != nil {
			return nil, err
		}
		if held {
			low = (low + high) / 2
		} else {
			high = (low + high) / 2
		}
	}
	for held := false; !held && low > firstRate; low *= 1 - searchedTo {
		if held, err = try(low, *holdFor); err != nil {
			return nil, err
		}
	}
	return append(rows, last), nil
}

// made: a generator that makes less than this part of a rate has not tried it.
const made = 0.97

// carried is what became of some seconds of load.
type carried struct {
	asked, made float64 // per second
	lost        uint64
	each        time.Duration // of the reader's CPU time, an event
	cpus        float64       // that the reader had, on average
	idle, most  uint64        // its memory, bytes
}

func (c carried) row() []string {
	return []string{
		fmt.Sprintf("%.0f", c.asked), fmt.Sprintf("%.0f", c.made), fmt.Sprint(c.lost),
		fmt.Sprintf("%.1f", float64(c.each.Nanoseconds())/1000), fmt.Sprintf("%.2f", c.cpus),
		fmt.Sprint(c.idle >> 20), fmt.Sprint(c.most >> 20),
	}
}

// running is a reader that runs.
type running struct {
	cmd      *exec.Cmd
	to       output
	counters *ebpf.Map
	idle     uint64 // bytes of memory before any load
}

func (r reader) start(g *generator, to output, archive, name string) (*running, error) {
	run := &running{cmd: exec.Command(*r.program, r.arguments(archive, name)...), to: to}
	var stderr bytes.Buffer
	run.cmd.Stderr = &stderr
	run.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := to.open()
	if err != nil {
		return nil, err
	}
	run.cmd.Stdout = out
	if err := run.cmd.Start(); err != nil {
		return nil, errors.Join(err, to.close())
	}
	if err := run.awaitStart(g); err != nil {
		return nil, fmt.Errorf("%w\n%s", errors.Join(err, run.end()), &stderr)
	}
	return run, nil
}

// awaitStart returns when it tells of attempts, and has told of all.
func (r *running) awaitStart(g *generator) error {
	err := waitUntil("it to start", func() (bool, error) {
		if err := g.attempt(1); err != nil {
			return false, err
		}
		n, err := r.to.lines()
		return n > 0, err
	})
	if err != nil {
		return err
	}
	if r.counters, err = r.findMap("counters"); err != nil {
		return err
	}
	if _, err := r.settled(); err != nil {
		return err
	}
	r.idle, err = r.memory("VmRSS")
	return err
}

func (r *running) end() error {
	err := r.cmd.Process.Signal(unix.SIGINT)
	_ = r.cmd.Wait() // ig fails when it is interrupted
	if r.counters != nil {
		err = errors.Join(err, r.counters.Close())
	}
	return errors.Join(err, r.to.close())
}

// carry has attempts be made, and the reader catch up with them.
func (r *running) carry(g *generator, rate float64, during time.Duration) (c carried, err error) {
	before, err := r.state()
	if err != nil {
		return c, err
	}
	// From now on the most is that of the load, see /proc/PID/clear_refs in proc(5).
	if err := os.WriteFile(r.proc("clear_refs"), []byte("5"), 0o200); err != nil {
		return c, err
	}
	start := time.Now()
	sent, err := g.send(rate, during)
	took := time.Since(start)
	if err != nil {
		return c, err
	}
	after, err := r.settled()
	if err != nil {
		return c, err
	}
	c = carried{asked: rate, made: float64(sent) / took.Seconds(), lost: after.lost - before.lost, idle: r.idle}
	if got := after.reported - before.reported + c.lost; got != sent {
		return c, fmt.Errorf("%d attempts were made, and %d reported or lost", sent, got)
	}
	c.each = (after.cpu - before.cpu) / time.Duration(max(after.reported-before.reported, 1))
	c.cpus = (after.cpu - before.cpu).Seconds() / took.Seconds()
	c.most, err = r.memory("VmHWM")
	return c, err
}

// settled returns the state when the reader has written all that was reported.
func (r *running) settled() (s state, err error) {
	err = waitUntil("it to catch up", func() (bool, error) {
		s, err = r.state()
		return s.lines == s.reported, err
	})
	return s, err
}

// state is what the gadget and its reader have done so far.
type state struct {
	reported, lost uint64 // events
	lines          uint64 // that came out of the reader
	cpu            time.Duration
}

func (r *running) state() (s state, err error) {
	if s.lines, err = r.to.lines(); err != nil {
		return s, err
	}
	// The first two of struct counters in ebpf/deliver.h.
	var values [][8]uint64
	if err := r.counters.Lookup(uint32(0), &values); err != nil {
		return s, err
	}
	for _, v := range values {
		s.reported += v[0]
		s.lost += v[1]
	}
	s.cpu, err = r.cpu()
	return s, err
}

func (r *running) proc(name string) string {
	return fmt.Sprintf("/proc/%d/%s", r.cmd.Process.Pid, name)
}

// cpu is the processor time that the reader has had, of user and system.
func (r *running) cpu() (time.Duration, error) {
	text, err := os.ReadFile(r.proc("stat"))
	if err != nil {
		return 0, err
	}
	const tick = time.Second / 100 // USER_HZ
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest) // from the third one on, see proc(5)
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// memory is a line of /proc/PID/status, in bytes.
func (r *running) memory(name string) (uint64, error) {
	text, err := os.ReadFile(r.proc("status"))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "\n"+name+":")
	number, _, _ := strings.Cut(strings.TrimSpace(rest), " kB")
	kib, err := strconv.ParseUint(number, 10, 64)
	return kib << 10, err
}

// findMap finds the reader's map of a name, among the files that it has open.
func (r *running) findMap(name string) (*ebpf.Map, error) {
	files, err := filepath.Glob(r.proc("fdinfo/*"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		_, rest, isMap := strings.Cut(string(text), "\nmap_id:")
		if !isMap {
			continue
		}
		number, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
		id, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return nil, err
		}
		m, err := ebpf.NewMapFromID(ebpf.MapID(id))
		if err != nil {
			return nil, err
		}
		if info, err := m.Info(); err == nil && info.Name == name {
			return m, nil
		}
		m.Close()
	}
	return nil, fmt.Errorf("it has no map %s", name)
}

// waitUntil asks until something is so.
func waitUntil(what string, done func() (bool, error)) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for bound := time.After(readBound); ; {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-bound:
			return fmt.Errorf("waited a minute for %s", what)
		}
	}
}

// output is where a reader writes to.
type output interface {
	name() string
	open() (*os.File, error)
	lines() (uint64, error) // so far
	close() error
}

// pipe leads to this process, which counts lines.
type pipe struct {
	count   atomic.Uint64
	writer  *os.File
	drained chan error
}

func (*pipe) name() string { return "a pipe" }

func (p *pipe) open() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.writer, p.drained = w, make(chan error, 1)
	go func() {
		defer r.Close()
		p.drained <- countLines(r, &p.count)
	}()
	return w, nil
}

func (p *pipe) lines() (uint64, error) { return p.count.Load(), nil }

func (p *pipe) close() error { return errors.Join(p.writer.Close(), <-p.drained) }

// file is one in a folder.
type file struct {
	folder          string
	count           atomic.Uint64
	written, reader *os.File
}

func (*file) name() string { return "a file" }

func (f *file) open() (w *os.File, err error) {
	if f.written, err = os.CreateTemp(f.folder, "events"); err != nil {
		return nil, err
	}
	f.reader, err = os.Open(f.written.Name())
	return f.written, err
}

// lines goes on where it was before.
func (f *file) lines() (uint64, error) {
	err := countLines(f.reader, &f.count)
	return f.count.Load(), err
}

func (f *file) close() error {
	return errors.Join(f.written.Close(), f.reader.Close(), os.Remove(f.written.Name()))
}

func countLines(r io.Reader, count *atomic.Uint64) error {
	buffer := make([]byte, 1<<16)
	for {
		n, err := r.Read(buffer)
		count.Add(uint64(bytes.Count(buffer[:n], []byte{'\n'})))
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
