// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// watch is a `kubectl gadget run` that goes on. What it prints is kept in a file, NAME.jsonl, and what it says in NAME.log.
type watch struct {
	selection
	cmd    *exec.Cmd
	ended  chan error
	mu     sync.Mutex
	events []event
}

func (c *cluster) startWatch(t *testing.T, s selection) *watch {
	t.Helper()
	w := &watch{selection: s, ended: make(chan error, 1)}
	w.cmd = c.command(c.ctx, "kubectl", append([]string{"gadget", "run", gadgetName, "-o", "json"}, s.flags...)...)
	printed, err := os.Create(filepath.Join(c.Dir, s.name+".jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	said, err := os.Create(filepath.Join(c.Dir, s.name+".log"))
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
			err = fmt.Errorf("kubectl gadget run %v: %w; what it said is in %s", s.flags, err, said.Name())
		}
		w.ended <- err
	}()
	return w
}

func (w *watch) read(lines io.Reader) error {
	for scanner := bufio.NewReader(lines); ; {
		line, err := scanner.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		w.mu.Lock()
		w.events = append(w.events, e)
		w.mu.Unlock()
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
