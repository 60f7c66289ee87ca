// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// limit bounds each wait: an emulated guest is slow.
const limit = 3 * time.Minute

// An event is what a line of `ig run -o json` says of an attempt, but for what only the kernel chooses.
type event struct {
	container string // its name, as the runtime's user knows it
	comm      string // empty: nobody is known
	egress    bool
	protocol  string
	peer      netip.AddrPort
}

func (e event) String() string {
	direction := "from"
	if e.egress {
		direction = "to"
	}
	return fmt.Sprintf("%q in container %q %s %s/%s", e.comm, e.container, direction, e.peer, e.protocol)
}

// line is what is read of ig's.
type line struct {
	Egress   bool   `json:"egress"`
	Protocol string `json:"protocol"`
	Endpoint struct {
		Addr netip.Addr `json:"addr"`
		Port uint16     `json:"port"`
	} `json:"endpoint"`
	Proc struct {
		Comm string `json:"comm"`
	} `json:"proc"`
	Runtime struct {
		Name     string `json:"runtimeName"`
		ID       string `json:"containerId"`
		Image    string `json:"containerImageName"`
		Digest   string `json:"containerImageDigest"`
		Named    string `json:"containerName"`
		StartPID int    `json:"containerPid"`
	} `json:"runtime"`
}

func (l line) event() event {
	return event{l.Runtime.Named, l.Proc.Comm, l.Egress, l.Protocol, netip.AddrPortFrom(l.Endpoint.Addr, l.Endpoint.Port)}
}

// A watcher is a running `ig run`.
type watcher struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ended  chan struct{} // its output has been read

	mu    sync.Mutex
	lines []line
	wrong []string // what is no event
}

// watch starts the stock ig, which ends by stop.
func watch(t *testing.T, args ...string) *watcher {
	t.Helper()
	return watchBy(t, "ig", append([]string{gadgetImage, "--verify-image=false", "-o", "json"}, args...)...)
}

// watchBy starts `ig run` or `netgadget run`, which ends by stop.
func watchBy(t *testing.T, program string, args ...string) *watcher {
	t.Helper()
	w := &watcher{cmd: exec.Command(program, append([]string{"run"}, args...)...), ended: make(chan struct{})}
	w.cmd.Stderr = &w.stderr
	stdout, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.cmd.Process.Kill() }) // for a test that fails before stop
	go func() {
		defer close(w.ended)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			var l line
			err := json.Unmarshal(lines.Bytes(), &l)
			w.mu.Lock()
			if err != nil {
				w.wrong = append(w.wrong, lines.Text())
			} else {
				w.lines = append(w.lines, l)
			}
			w.mu.Unlock()
		}
	}()
	return w
}

func (w *watcher) all() []line {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.lines)
}

// await makes traffic, by do, until ig has reported an event that it gives.
func (w *watcher) await(t *testing.T, e event, do func()) {
	t.Helper()
	eventually(t, func() error {
		select {
		case <-w.ended:
			t.Fatalf("it ended by itself: %s", &w.stderr)
		default:
		}
		do()
		if !slices.ContainsFunc(w.all(), func(l line) bool { return l.event() == e }) {
			return fmt.Errorf("%v is not reported, but %v\n%s", e, w.all(), &w.stderr)
		}
		return nil
	})
}

// again does the same until it is reported once more.
func (w *watcher) again(t *testing.T, e event, do func()) {
	t.Helper()
	is := func(other event) bool { return other == e }
	before := w.count(is)
	eventually(t, func() error {
		do()
		if w.count(is) == before {
			return fmt.Errorf("%v is not reported again", e)
		}
		return nil
	})
}

func (w *watcher) count(wanted func(event) bool) (n int) {
	for _, l := range w.all() {
		if wanted(l.event()) {
			n++
		}
	}
	return n
}

// wanted are the events that a test compares.
func wanted(e event) bool { return e.peer.Port() != ownPort }

// stop interrupts ig, and returns what it has reported of peers that are wanted.
func (w *watcher) stop(t *testing.T, wanted func(event) bool) (events []event) {
	t.Helper()
	if err := w.cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Errorf("interrupting ig: %v", err)
	}
	<-w.ended
	if err := w.cmd.Wait(); err != nil {
		t.Errorf("ig: wanted no error, got %v\n%s", err, &w.stderr)
	}
	if len(w.wrong) > 0 {
		t.Errorf("ig: wanted lines of JSON, got %q", w.wrong)
	}
	for _, l := range w.all() {
		if e := l.event(); wanted(e) {
			events = append(events, e)
		}
	}
	return events
}

// eventually has f succeed within a limit.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// compare compares events as sets, of which each can be there more than once.
func compare(t *testing.T, got, want []event) {
	t.Helper()
	counts := map[event]int{}
	for _, e := range want {
		counts[e]++
	}
	for _, e := range got {
		counts[e]--
	}
	for e, n := range counts {
		switch {
		case n > 0:
			t.Errorf("missing %d of: %v", n, e)
		case n < 0:
			t.Errorf("%d too many of: %v", -n, e)
		}
	}
}
