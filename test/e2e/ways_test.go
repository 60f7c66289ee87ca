// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

var tries = flag.Int("tries", 20, "how often a command's processes try each way out")

// seenOf is what an event says of a command's attempt.
type seenOf struct {
	protocol string
	dst      netip.AddrPort
	egress   bool
	pid      uint32
	netNS    uint32
}

// follow runs a command, with the gadget's parameters, and returns what is reported
// and what the command has written.
func follow(t *testing.T, o gadget.Options, cmd gadget.Command) (events []seenOf, out string, summary gadget.Summary) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, os.Stderr
	o.Params = map[string]string{"rate-limit": "0"}
	o.OnEvent = func(e gadget.Event) {
		events = append(events, seenOf{e.Protocol.String(), e.Dst, e.Egress, e.Proc.PID, e.NetNS})
	}
	status, summary, err := gadget.RunCommand(ctx, o, cmd)
	if err != nil || status != 0 {
		t.Fatalf("the command: status %d, %v", status, err)
	}
	return events, stdout.String(), summary
}

// TestACommandIsFollowed has the command's processes talk after each way out, and
// wants every attempt, by the process that made it, and no other.
func TestACommandIsFollowed(t *testing.T) {
	host := hostNamespace(t)
	asked := attempt.Ways{Tries: *tries, Names: []string{
		attempt.WayFork, attempt.WayDaemon, attempt.WayThread, attempt.WayMount, attempt.WayNet, attempt.WayPID,
		attempt.WayUser, attempt.WayUTS, attempt.WayIPC, attempt.WayBorn, attempt.WayBornMapped, attempt.WayEnter,
		attempt.WayChroot, attempt.WaySetuid,
	}}
	for i := range *tries {
		ns := newNamespace(t, fmt.Sprint("entered ", i))
		asked.Files = append(asked.Files, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.fd))
	}
	ways, err := json.Marshal(asked)
	if err != nil {
		t.Fatal(err)
	}
	bystander := disturb(t)
	events, out, summary := follow(t, gadget.Options{}, gadget.Command{Cmd: exec.Command(artifact(agentBinary), string(ways))})
	bystander()
	var made []attempt.Sent
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		t.Fatal(err)
	}
	way := map[netip.AddrPort]string{}
	var wanted []seenOf
	for _, s := range made {
		way[s.Dst] = s.Way
		wanted = append(wanted, seenOf{string(s.Protocol), s.Dst, true, s.PID, cmp.Or(s.NetNS, host.inode)})
	}
	t.Logf("%d attempts, %d ways, %d tries each: %s", len(made), len(asked.Names), *tries, summary)
	wanted = withoutLate(t, events, wanted, host.inode, summary.Late)
	compareSeen(t, events, wanted, func(s seenOf) string { return way[s.dst] })
}

// withoutLate leaves out attempts that were not seen in namespaces other than the
// host's, if the summary tells of as many processes that went on before theirs was
// watched. An emulated machine takes so long for that that another CPU can take over
// the process meanwhile.
func withoutLate(t *testing.T, events, wanted []seenOf, host uint32, late uint64) []seenOf {
	t.Helper()
	unseen := map[uint32]bool{} // processes
	kept := slices.DeleteFunc(slices.Clone(wanted), func(w seenOf) bool {
		gone := w.netNS != host && !slices.Contains(events, w)
		if gone {
			unseen[w.pid] = true
		}
		return gone
	})
	t.Logf("%d processes went on before their namespace was watched, of %d something is missing", late, len(unseen))
	if uint64(len(unseen)) > late {
		return wanted
	}
	return kept
}

// TestACommandIsFollowedFromItsFirstInstruction runs one that forks first of all.
func TestACommandIsFollowedFromItsFirstInstruction(t *testing.T) {
	events, _, _ := follow(t, gadget.Options{}, gadget.Command{Cmd: exec.Command(artifact(firstBinary))})
	pids := map[uint32]bool{}
	for _, e := range events {
		if e.dst == netip.MustParseAddrPort("127.77.255.1:83") {
			pids[e.pid] = true
		}
	}
	if len(events) != 2 || len(pids) != 2 {
		t.Errorf("wanted a datagram of the command and one of its child, got %v", events)
	}
}

// TestEachOfAThousandChildrenIsFollowed has them live for no more than an attempt.
func TestEachOfAThousandChildrenIsFollowed(t *testing.T) {
	host := hostNamespace(t)
	ways, err := json.Marshal(attempt.Ways{Names: []string{attempt.WayFork}, Tries: 1000})
	if err != nil {
		t.Fatal(err)
	}
	events, out, _ := follow(t, gadget.Options{}, gadget.Command{Cmd: exec.Command(artifact(agentBinary), string(ways))})
	var made []attempt.Sent
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		t.Fatal(err)
	}
	var wanted []seenOf
	for _, s := range made {
		wanted = append(wanted, seenOf{string(s.Protocol), s.Dst, true, s.PID, host.inode})
	}
	compareSeen(t, events, wanted, func(seenOf) string { return attempt.WayFork })
}

// disturb has another process talk until the function that it returns is called: it
// is no part of what a command does.
func disturb(t *testing.T) func() {
	t.Helper()
	a := startAgent(t, hostNamespace(t), agentOptions{name: "bystander"})
	stop, stopped := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			_, err := a.ask(attempt.Request{Protocol: attempt.UDP, Dst: netip.MustParseAddrPort("127.78.0.1:82")})
			if err != nil {
				stopped <- err
				return
			}
		}
	}()
	return func() {
		close(stop)
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}
}

// compareSeen compares events with what was done, as sets in which an element can be
// several times.
func compareSeen(t *testing.T, events, wanted []seenOf, origin func(seenOf) string) {
	t.Helper()
	counts := map[seenOf]int{}
	for _, w := range wanted {
		counts[w]++
	}
	for _, e := range events {
		counts[e]--
	}
	var problems []string
	for s, n := range counts {
		switch {
		case n > 0:
			problems = append(problems, fmt.Sprintf("missing: %+v (%s)", s, origin(s)))
		case n < 0:
			problems = append(problems, fmt.Sprintf("extra:   %+v (%s)", s, origin(s)))
		}
	}
	if problems == nil {
		return
	}
	slices.Sort(problems)
	t.Errorf("%d events wanted, %d got:\n%s", len(wanted), len(events), strings.Join(problems[:min(len(problems), 60)], "\n"))
}
