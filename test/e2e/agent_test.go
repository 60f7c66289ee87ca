// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"cmp"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"gadget.example/network/test/e2e/attempt"
)

// agent is a process that makes attempts.
type agent struct {
	ns       *namespace
	pid      int
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
	t.Cleanup(func() { end(t, cmd, stdin) })
	return &agent{ns: ns, pid: cmd.Process.Pid, requests: json.NewEncoder(stdin), reports: json.NewDecoder(stdout)}
}

func end(t *testing.T, cmd *exec.Cmd, stdin io.Closer) {
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("agent %d: %v", cmd.Process.Pid, err)
	}
}

// openDir is a temporary folder that every user may enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// do makes the agent carry out a request.
func (a *agent) do(t *testing.T, request attempt.Request) attempt.Report {
	t.Helper()
	var report attempt.Report
	if err := a.requests.Encode(request); err != nil {
		t.Fatalf("agent %d in %s: %v", a.pid, a.ns.name, err)
	}
	if err := a.reports.Decode(&report); err != nil {
		t.Fatalf("agent %d in %s: %v", a.pid, a.ns.name, err)
	}
	if report.Failed != "" {
		t.Fatalf("agent %d in %s: %s: %s", a.pid, a.ns.name, request, report.Failed)
	}
	return report
}
