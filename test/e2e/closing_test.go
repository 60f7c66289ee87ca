// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// runsCall runs a command, of which one call is known, and returns what became of that.
func runsCall(t *testing.T, cmd *exec.Cmd, to attempt.Step) (kinds []gadget.Kind, s gadget.Summary) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	o := gadget.Options{Params: map[string]string{"lifecycle": "true"}, OnEvent: func(e gadget.Event) {
		if e.Dst == to.Src {
			kinds = append(kinds, e.Kind)
		}
	}}
	status, s, err := gadget.RunCommand(ctx, o, gadget.Command{Cmd: cmd})
	if err != nil || status != 0 {
		t.Fatalf("the command: status %d, %v", status, err)
	}
	return kinds, s
}

// atHost has an agent that is no part of any command accept calls, and close each
// when its caller has.
func atHost(t *testing.T) attempt.Step {
	t.Helper()
	step := attempt.Step{Do: attempt.Accept, Protocol: attempt.TCP, Src: at(loopback(4), newPort(attempt.TCP)), Socket: "served"}
	startAgent(t, hostNamespace(t), agentOptions{name: "served"}).do(t, attempt.Request{Steps: []attempt.Step{step}})
	return step
}

// TestAConnectionThatClosesWithItsCommandIsClosed has the command end with its
// connection open: the other side is still to close it.
func TestAConnectionThatClosesWithItsCommandIsClosed(t *testing.T) {
	to := atHost(t)
	request, err := json.Marshal(attempt.Request{Steps: []attempt.Step{{
		Do: attempt.Call, Protocol: attempt.TCP, Dst: to.Src, Socket: "open", Lingers: true,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(artifact(agentBinary))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(request), io.Discard, os.Stderr
	kinds, s := runsCall(t, cmd, to)
	if wanted := []gadget.Kind{gadget.Attempt, gadget.Established, gadget.Closed}; !slices.Equal(sorted(kinds), wanted) {
		t.Errorf("wanted %s, got %s: %s", wanted, kinds, s)
	}
	if s.Unended != 0 || s.Established != 1 {
		t.Errorf("wanted one that was established, and none that goes on, got %d and %d", s.Established, s.Unended)
	}
}

// sorted are in the order in which things go on; each CPU's events come in an order
// of their own.
func sorted(kinds []gadget.Kind) []gadget.Kind { return slices.Sorted(slices.Values(kinds)) }

// TestAConnectionThatOutlivesItsCommandIsTold has a process that the command leaves
// keep its connection open: the run does not last as long.
func TestAConnectionThatOutlivesItsCommandIsTold(t *testing.T) {
	to := atHost(t)
	dir := t.TempDir()
	request, err := json.Marshal(attempt.Request{Steps: []attempt.Step{{
		Do: attempt.Call, Protocol: attempt.TCP, Dst: to.Src, Socket: "open", Lingers: true,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	// The agent reads on from a FIFO that it has open for writing, too: it never ends by itself.
	script := `mkfifo in out && { setsid "$1" <>in >out 2>/dev/null & } && echo "$2" >in && read line <out && echo $!`
	cmd := exec.Command("sh", "-c", script, "sh", artifact(agentBinary), string(request))
	cmd.Dir = dir
	var left bytes.Buffer
	cmd.Stdout, cmd.Stderr = &left, os.Stderr
	kinds, s := runsCall(t, cmd, to)
	endLeft(t, strings.TrimSpace(left.String()))
	if wanted := []gadget.Kind{gadget.Attempt, gadget.Established}; !slices.Equal(sorted(kinds), wanted) {
		t.Errorf("wanted %s, got %s: %s", wanted, kinds, s)
	}
	if s.Unended != 1 || s.Running == 0 || len(s.Notes()) < 2 {
		t.Errorf("wanted one that goes on, of a process that runs, to be told, got %d of %d, %q", s.Unended, s.Running, s.Notes())
	}
}

// endLeft ends a process that a command has left.
func endLeft(t *testing.T, number string) {
	t.Helper()
	pid, err := strconv.Atoi(number)
	if err != nil {
		t.Fatalf("wanted the ID of the process that is left, got %q", number)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Errorf("ending process %d: %v", pid, err)
	}
}
