// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// printedBy is the file that has what a run has printed, by the run's name.
func (c *cluster) printedBy(run string) string { return filepath.Join(c.Dir, run+".out") }

// watch is a `kubectl gadget run` that goes on. What it prints is kept in a file, and what it says in another.
type watch struct {
	selection
	said   string // the file
	cmd    *exec.Cmd
	ended  chan error
	mu     sync.Mutex
	events []event
}

func (c *cluster) startWatch(t *testing.T, s selection, more ...string) *watch {
	t.Helper()
	w := &watch{selection: s, said: filepath.Join(c.Dir, s.name+".log"), ended: make(chan error, 1)}
	w.cmd = c.command(c.ctx, "kubectl", slices.Concat([]string{"gadget", "run"}, s.args, more)...)
	printed, err := os.Create(c.printedBy(s.name))
	if err != nil {
		t.Fatal(err)
	}
	said, err := os.Create(w.said)
	if err != nil {
		t.Fatal(err)
	}
	w.cmd.Stderr = said
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer printed.Close()
		defer said.Close()
		err := w.read(io.TeeReader(out, printed))
		if ended := w.cmd.Wait(); err == nil {
			err = ended
		}
		if err != nil {
			err = fmt.Errorf("kubectl gadget run %v: %w; what it said is in %s", s.args, err, w.said)
		}
		w.ended <- err
	}()
	return w
}

func (w *watch) read(lines io.Reader) error {
	if w.reports == nil { // no events
		_, err := io.Copy(io.Discard, lines)
		return err
	}
	for scanner := bufio.NewReader(lines); ; {
		line, err := scanner.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		events, err := parse(line)
		if err != nil {
			return err
		}
		w.mu.Lock()
		w.events = append(w.events, events...)
		w.mu.Unlock()
	}
}

// split returns what a line has: an event, or the rows of a list.
func split(line []byte) (all []json.RawMessage, err error) {
	if !bytes.HasPrefix(line, []byte("[")) {
		return []json.RawMessage{bytes.TrimSpace(line)}, nil
	}
	if err := json.Unmarshal(line, &all); err != nil {
		return nil, fmt.Errorf("%q: %w", line, err)
	}
	return all, nil
}

// parse reads a line.
func parse(line []byte) (events []event, err error) {
	all, err := split(line)
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		var e event
		if err := json.Unmarshal(one, &e); err != nil {
			return nil, fmt.Errorf("%q: %w", one, err)
		}
		events = append(events, e)
	}
	return events, nil
}

// started is what IG says last, to who wants to know all, when the gadget watches: its iterators run when all is attached.
const started = "Running iterator program"

// awaitStart waits for a run that says what it does, and reports nothing until it ends.
func (w *watch) awaitStart(t *testing.T) {
	t.Helper()
	for limit := time.Now().Add(waitLimit); ; time.Sleep(time.Second) {
		said, err := os.ReadFile(w.said)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(said, []byte(started)) {
			return
		}
		select {
		case err := <-w.ended:
			t.Fatalf("%s ended: %v", w.name, err)
		default:
		}
		if time.Now().After(limit) {
			t.Fatalf("%s has not started in %v; what it said is in %s", w.name, waitLimit, w.said)
		}
	}
}

// saw says whether there is an event of a pod's at a port.
func (w *watch) saw(p *pod, port uint16) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.events, func(e event) bool {
		return e.Endpoint.Port == port && e.K8s.Namespace == p.namespace && e.K8s.PodName == p.name
	})
}

// sawAll says so of all pods that the run reports.
func (w *watch) sawAll(s traffic, port uint16) bool {
	return !slices.ContainsFunc([]*pod{s.buyer, s.web, s.clerk, s.stock, s.names}, func(p *pod) bool {
		return w.reports(p.attempt(attempt{})) && !w.saw(p, port)
	})
}

// stop ends the run as Ctrl-C does, and returns its events.
func (w *watch) stop(t *testing.T) []event {
	t.Helper()
	if err := w.cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := <-w.ended; err != nil {
		t.Fatal(err)
	}
	return w.events
}

// isNoProbe is not one of those events, or rows, by which the runs tell how far they are.
func isNoProbe(e event) bool { return !slices.Contains(probes, e.Endpoint.Port) }

// linesOf are those events, or rows, that a run has printed and that are to be kept, a line each.
func linesOf(t *testing.T, run string, keep func(event) bool) (lines []byte) {
	t.Helper()
	content, err := os.ReadFile(theCluster.printedBy(run))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(content) {
		all, err := split(line)
		if err != nil {
			t.Fatal(err)
		}
		events, err := parse(line)
		if err != nil {
			t.Fatal(err)
		}
		for i, one := range all {
			if keep(events[i]) {
				lines = append(append(lines, one...), '\n')
			}
		}
	}
	return lines
}
