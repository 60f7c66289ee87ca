// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"gadget.example/network/test/e2e/attempt"
)

// A burst of datagrams to itself, of which only what is sent is watched, that
// its owner's limit does not let through.
const (
	burstPackets = 50
	burstPort    = 19
)

var burstParams = []string{"--rate-limit", "10", "--egress-only"}

func burstOf(count int, to netip.Addr) attempt.Request {
	return attempt.Request{Steps: []attempt.Step{
		{Do: attempt.Flood, Protocol: attempt.UDP, Count: count, Dst: at(to, burstPort)},
	}}
}

// told are how many events tell of a burst, and how many attempts they say were
// withheld.
func told(t *testing.T, lines []string) (events, suppressed int) {
	t.Helper()
	for _, line := range lines {
		var e igEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Errorf("wanted a line of JSON, got %v: %s", err, line)
			continue
		}
		if e.Dst.Port == burstPort {
			events++
			suppressed += int(e.Suppressed)
		}
	}
	return events, suppressed
}

// TestWhatIsWithheldLastIsReported: nothing follows a burst that would tell.
func TestWhatIsWithheldLastIsReported(t *testing.T) {
	a := newActors(t, newPair(t, hostNamespace(t), newNamespace(t, "other")))
	burster := startAgent(t, a.pair.ends[0], agentOptions{name: "burst"})
	ig := startIG(t, append([]string{"--host", "-o", "json"}, burstParams...)...)
	awaitReady(t, a.callers[0], ig)
	burster.do(t, burstOf(burstPackets, overLoopback.address(4, 1)))
	err := eventually(func() error {
		events, suppressed := told(t, ig.output())
		if events+suppressed == burstPackets {
			t.Logf("%d events tell of %d attempts withheld", events, suppressed)
			return nil
		}
		return fmt.Errorf("wanted %d attempts told, got %d events and %d withheld", burstPackets, events, suppressed)
	})
	if err != nil {
		t.Error(err)
	}
	if events, suppressed := told(t, ig.stop(t)); events+suppressed != burstPackets {
		t.Errorf("wanted %d attempts told in the end, got %d events and %d withheld", burstPackets, events, suppressed)
	}
}

// TestARunEndsWithALineThatTellsOfAllAttempts, those among them that were
// withheld and that no event has told.
func TestARunEndsWithALineThatTellsOfAllAttempts(t *testing.T) {
	request, err := json.Marshal(burstOf(burstPackets, netip.MustParseAddr("127.0.0.1")))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	args := append([]string{"run", "--strict"}, burstParams...)
	cmd := exec.CommandContext(ctx, artifact(netgadgetBinary), append(args, "--", artifact(agentBinary))...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(request), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("wanted no error, got %v\n%s", err, &stderr)
	}

	events, suppressed := told(t, strings.Split(strings.TrimSpace(stdout.String()), "\n"))
	withheld := burstPackets - events
	line := fmt.Sprintf(`(?m)^netgadget: %d attempts? reported, %d withheld by the rate limit \(agent \d+ sent: %[2]d\), 0 lost$`, events, withheld)
	if events == 0 || suppressed > withheld || !regexp.MustCompile(line).MatchString(stderr.String()) {
		t.Errorf("sent %d, got %d events that tell of %d withheld; wanted a line that matches %s, got\n%s", burstPackets, events, suppressed, line, &stderr)
	}
}

// TestLostEventsFailAStrictRun has nobody read netgadget's output until a command
// has made more attempts than the rings hold.
func TestLostEventsFailAStrictRun(t *testing.T) {
	for name, test := range map[string]struct {
		flags  []string
		status int
		errors int // lines
	}{
		"strict":     {[]string{"--strict"}, 125, 1},
		"not strict": {nil, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			const sent = 10_000
			args := append([]string{"run", "--rate-limit", "0", "--egress-only"}, test.flags...)
			r := runUnread(t, burstOf(sent, netip.MustParseAddr("127.0.0.1")), args...)
			if r.status != test.status {
				t.Errorf("wanted exit status %d, got %d", test.status, r.status)
			}
			events := strings.Count(r.stdout, "\n")
			line := fmt.Sprintf("netgadget: %d attempts reported, 0 withheld by the rate limit, %d lost", events, sent-events)
			if events == sent || !slices.Contains(r.stderr, line) {
				t.Errorf("sent %d; wanted some of them lost and the line %q, got %q", sent, line, r.stderr)
			}
			failed := fmt.Sprintf("netgadget: %d events were lost: ", sent-events)
			lines := slices.DeleteFunc(r.stderr, func(line string) bool { return !strings.HasPrefix(line, failed) })
			if len(lines) != test.errors {
				t.Errorf("wanted %d lines that begin with %q, got %q", test.errors, failed, lines)
			}
		})
	}
}

// ran is what a run of netgadget said, and its exit status.
type ran struct {
	stdout string
	stderr []string // lines
	status int
}

// runUnread has netgadget run an agent that carries out a request, and reads its
// events when the agent has reported.
func runUnread(t *testing.T, request attempt.Request, args ...string) ran {
	t.Helper()
	in, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, artifact(netgadgetBinary), append(args, "--", artifact(agentBinary))...)
	cmd.Stdin = bytes.NewReader(in)
	stdout, outErr := cmd.StdoutPipe()
	stderr, errErr := cmd.StderrPipe()
	if err := errors.Join(outErr, errErr, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	read := make(chan []byte, 1)
	startReading := sync.OnceFunc(func() {
		go func() {
			all, _ := io.ReadAll(stdout) // what lacks, the test tells
			read <- all
		}()
	})
	var r ran
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		r.stderr = append(r.stderr, lines.Text())
		if strings.HasPrefix(lines.Text(), "{") { // the report
			startReading()
		}
	}
	startReading()
	r.stdout = string(<-read)
	r.status, err = exitStatus(cmd.Wait())
	if err != nil {
		t.Fatal(err)
	}
	return r
}
