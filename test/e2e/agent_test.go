// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// agent is a process that makes attempts.
type agent struct {
	ns       *namespace
	pid      int
	created  func() error // waits for the end of the command that it was started by
	requests *json.Encoder
	reports  *json.Decoder
}

// agentOptions are how an agent differs from others.
type agentOptions struct {
	name string // of its program, and so of the process
	uid  uint32 // and its group ID
}

// startAgent starts an agent in a namespace. It ends with the test.
func startAgent(t *testing.T, ns *namespace, o agentOptions) *agent {
	t.Helper()
	// A process is named by the link that it was started by.
	link := filepath.Join(openDir(t), cmp.Or(o.name, agentBinary))
	if err := os.Symlink(artifact(agentBinary), link); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(link)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: o.uid, Gid: o.uid}}
	return startAgentCommand(t, ns, cmd)
}

// startAgentCommand starts a command that is, or becomes, an agent.
func startAgentCommand(t *testing.T, ns *namespace, cmd *exec.Cmd) *agent {
	t.Helper()
	// The signals by which Go stops a thread can meet one that sends by TCP Fast Open
	// and waits: the kernel then lets it send again what has gone with the SYN
	// (tcp_sendmsg_locked() in net/ipv4/tcp.c returns -ERESTARTSYS all the same).
	cmd.Env = append(cmd.Environ(), "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	// A child is in the namespace of the thread that starts it.
	if err := ns.do(cmd.Start); err != nil {
		t.Fatalf("starting an agent in %s: %v", ns.name, err)
	}
	created := sync.OnceValue(func() error {
		state, err := cmd.Process.Wait()
		if err == nil && !state.Success() {
			err = errors.New(state.String())
		}
		return err
	})
	t.Cleanup(func() {
		stdin.Close()
		if err := created(); err != nil {
			t.Errorf("agent %d: %v", cmd.Process.Pid, err)
		}
		stdout.Close()
	})
	return &agent{ns: ns, pid: cmd.Process.Pid, created: created, requests: json.NewEncoder(stdin), reports: json.NewDecoder(stdout)}
}

// openDir is a temporary folder that every user may enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// do makes the agent carry out a request.
func (a *agent) do(t *testing.T, request attempt.Request) attempt.Report {
	t.Helper()
	report, err := a.ask(request)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// ask does the same from any goroutine.
func (a *agent) ask(request attempt.Request) (attempt.Report, error) {
	var report attempt.Report
	if err := errors.Join(a.requests.Encode(request), a.reports.Decode(&report)); err != nil {
		return report, fmt.Errorf("agent %d in %s: %w", a.pid, a.ns.name, err)
	}
	if report.Failed != "" {
		return report, fmt.Errorf("agent %d in %s: %.2000s: %s", a.pid, a.ns.name, request, report.Failed)
	}
	return report, nil
}

// moveTo has an agent do all that it is asked from now on on one CPU.
func (a *agent) moveTo(t *testing.T, cpu int) {
	t.Helper()
	if err := moveThread(a.pid, cpu); err != nil { // its first thread does it
		t.Fatalf("moving agent %d to CPU %d: %v", a.pid, cpu, err)
	}
}

// moveThread moves a thread, 0 for the calling one, to a CPU.
func moveThread(tid, cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(tid, &set)
}

// askAll has several agents do the same, all at once.
func askAll(agents []*agent, request attempt.Request) ([]attempt.Report, error) {
	reports, errs := make([]attempt.Report, len(agents)), make([]error, len(agents))
	var wg sync.WaitGroup
	for i, a := range agents {
		wg.Go(func() { reports[i], errs[i] = a.ask(request) })
	}
	wg.Wait()
	return reports, errors.Join(errs...)
}
