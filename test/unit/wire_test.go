// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A wire carries frames past the program's raw sockets, through the network
// stack: each frame is sent, and then received.
type wire struct {
	// inject puts a frame on the wire; errRejected when the kernel does not
	// take it, even if only one side of it.
	inject func(frame []byte) error
	// adapt makes a frame fit for the wire; false when it cannot be.
	adapt func(frame []byte) ([]byte, bool)
	// want is what is to be reported of a frame that was adapted, in a namespace.
	want func(r *reference, frame []byte, egress bool, netns uint32) (event, bool)
	// namespaces are those of the two ends: the sender's, and the receiver's.
	namespaces []netns.NsHandle
	// devices are the interfaces that a frame is sent (true) and received by;
	// of the veth alone.
	devices map[bool]uint32

	tb      testing.TB // the test that the wire lasts for
	watcher *gadget
	subject []int // the sockets of the gadget that attach() was given
	tasks   chan func()
	sent    uint16
}

// netns is the namespace that sends (true) or receives: without IG's dispatcher,
// the program finds it by the device.
func (w *wire) netns(egress bool) uint32 {
	if egress {
		return inode(w.tb, w.namespaces[0])
	}
	return inode(w.tb, w.namespaces[len(w.namespaces)-1])
}

// reports are what a program says of a frame when it is sent and received.
type reports struct{ egress, ingress []event }

func (r *reports) add(e event) {
	switch {
	case isSentinel(e):
	case e.Egress:
		r.egress = append(r.egress, e)
	default:
		r.ingress = append(r.ingress, e)
	}
}

// A sentinel follows each frame. One CPU sends both and hands them on in this
// order, so that every socket is done with the frame when the watcher has
// reported the sentinel.
var sentinel = udp4.with(func(p *packet) {
	p.src, p.dst = netip.MustParseAddr("192.0.2.254"), netip.MustParseAddr("192.0.2.253")
	p.dport = 9 // discard
})

func isSentinel(e event) bool {
	return e.Src.Addr() == sentinel.src && e.Dst.Addr() == sentinel.dst
}

// start opens the watcher's sockets and waits until the wire carries frames.
func (w *wire) start(tb testing.TB) *wire {
	tb.Helper()
	w.tb, w.watcher = tb, load(tb, nil)
	w.listen(tb, w.watcher.program)
	w.tasks = make(chan func())
	tb.Cleanup(func() { close(w.tasks) })
	pinned := make(chan error, 2) // its start, and its end
	go func() {
		pinned <- onOneCPU(func() error {
			pinned <- nil
			for task := range w.tasks {
				task()
			}
			return nil
		})
	}()
	if err := <-pinned; err != nil {
		tb.Fatal(err)
	}
	// A device is up before its queue is: until then, it drops.
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); {
		w.do(func() { err = w.follow(&reports{}, 20*time.Millisecond) })
		if err == nil {
			return w
		}
	}
	tb.Fatalf("the wire carries nothing: %v", err)
	return nil
}

// do runs a task on the thread that sends.
func (w *wire) do(task func()) {
	done := make(chan struct{})
	w.tasks <- func() { defer close(done); task() }
	<-done
}

// attach makes a gadget see what the watcher sees, in place of the last one.
// Its sockets stay: the kernel takes its time to close one.
func (w *wire) attach(tb testing.TB, g *gadget) {
	tb.Helper()
	w.attachAs(tb, g, 0)
}

// attachAsOne makes a gadget take both ends for one namespace, someNetNS.
func (w *wire) attachAsOne(tb testing.TB, g *gadget) {
	tb.Helper()
	w.attachAs(tb, g, someNetNS)
}

// attachAs has a dispatcher run the gadget's program: a socket has no room for two
// as long as that, see sk_filter_charge().
func (w *wire) attachAs(tb testing.TB, g *gadget, netns uint32) {
	tb.Helper()
	program, err := g.dispatch(netns)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = program.Close() })
	if w.subject == nil {
		w.subject = w.listen(tb, program)
		return
	}
	for _, fd := range w.subject {
		if err := attach(fd, program.FD()); err != nil {
			tb.Fatal(err)
		}
	}
}

// listen gives a program raw sockets at both ends.
func (w *wire) listen(tb testing.TB, program *ebpf.Program) (sockets []int) {
	tb.Helper()
	for _, ns := range w.namespaces {
		err := inside(ns, func() error {
			fd, err := listen(program.FD())
			if err == nil {
				sockets = append(sockets, fd)
			}
			return err
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
	w.tb.Cleanup(func() {
		for _, fd := range sockets {
			_ = unix.Close(fd)
		}
	})
	return sockets
}

// listen opens a raw socket on every device of this thread's network
// namespace, as IG does, and attaches a filter before anything can arrive.
func listen(filter int) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening a raw socket: %w", err)
	}
	if err := attach(fd, filter); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL)}); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("binding the raw socket: %w", err)
	}
	return fd, nil
}

func attach(fd, filter int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, filter); err != nil {
		return fmt.Errorf("attaching the socket filter: %w", err)
	}
	return nil
}

// networkOrder is htons(3).
func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// exchange sends a frame and returns what the watcher reported of it.
func (w *wire) exchange(frame []byte) (r reports, err error) {
	w.do(func() {
		if err = w.inject(frame); err == nil || errors.Is(err, errRejected) {
			err = w.follow(&r, patience)
		}
	})
	return r, err
}

// follow sends a sentinel and collects what comes before it at both ends.
func (w *wire) follow(r *reports, patience time.Duration) error {
	w.sent++
	p := sentinel.with(ports(w.sent, sentinel.dport))
	frame, _ := w.adapt(p.frame())
	if err := w.inject(frame); err != nil {
		return fmt.Errorf("sending a sentinel: %w", err)
	}
	deadline := time.Now().Add(patience)
	for sent, received := false, false; !sent || !received; {
		e, _, err := w.watcher.next(deadline)
		if err != nil {
			return fmt.Errorf("waiting for sentinel %d (sent: %v, received: %v): %w", w.sent, sent, received, err)
		}
		r.add(e)
		if isSentinel(e) && e.Src.Port() == w.sent {
			sent, received = sent || e.Egress, received || !e.Egress
		}
	}
	return nil
}

// newNetNS makes a network namespace that ends with the test: no name and no
// process keeps it, whatever happens to the test.
func newNetNS(tb testing.TB) netns.NsHandle {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: makes network namespaces")
	}
	var ns netns.NsHandle
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: this thread is of no use to others
		var err error
		ns, err = netns.New()
		made <- err
	}()
	if err := <-made; err != nil {
		tb.Fatalf("making a network namespace: %v", err)
	}
	tb.Cleanup(func() { _ = ns.Close() })
	return ns
}

// inside runs do on a thread that is in the namespace.
func inside(ns netns.NsHandle, do func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // for good, as above
		if err := netns.Set(ns); err != nil {
			result <- fmt.Errorf("entering a network namespace: %w", err)
			return
		}
		result <- do()
	}()
	return <-result
}
