// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// stockIG is a running `ig run network:latest`, or another program of IG's that
// prints events. What it has said grows.
type stockIG struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ended  chan struct{} // its output has been read

	mu    sync.Mutex
	lines []string
}

// startIG starts the stock ig, which ends by stop.
func startIG(t *testing.T, args ...string) *stockIG {
	t.Helper()
	return startIGOn(t, storedImage, args...)
}

// startIGOn does the same with another image.
func startIGOn(t *testing.T, image string, args ...string) *stockIG {
	t.Helper()
	return startIGWith(t, (*exec.Cmd).Start, image, args...)
}

// startIGWith does the same by other means.
func startIGWith(t *testing.T, start func(*exec.Cmd) error, image string, args ...string) *stockIG {
	t.Helper()
	return startStock(t, start, igBinary, append([]string{"run", image, "--verify-image=false"}, args...)...)
}

// startStock starts a program of IG's.
func startStock(t *testing.T, start func(*exec.Cmd) error, program string, args ...string) *stockIG {
	t.Helper()
	ig := &stockIG{cmd: exec.Command(artifact(program), args...), ended: make(chan struct{})}
	ig.cmd.Stderr = &ig.stderr
	stdout, err := ig.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := start(ig.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ig.cmd.Process.Kill() }) // for a test that fails before stop
	go func() {
		defer close(ig.ended)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			ig.mu.Lock()
			ig.lines = append(ig.lines, lines.Text())
			ig.mu.Unlock()
		}
	}()
	return ig
}

func (ig *stockIG) output() []string {
	ig.mu.Lock()
	defer ig.mu.Unlock()
	return slices.Clip(ig.lines)
}

// stop interrupts ig and returns all that it has said.
func (ig *stockIG) stop(t *testing.T) []string {
	t.Helper()
	if err := ig.cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Errorf("interrupting ig: %v", err)
	}
	<-ig.ended
	if err := ig.cmd.Wait(); err != nil {
		t.Errorf("ig: wanted no error, got %v\n%s", err, &ig.stderr)
	}
	return ig.output()
}

// Attempts by which the tests know how far ig is: probes tell that it has begun,
// sentinels that it has reported all that was before them.
var (
	probes = map[attempt.Protocol]netip.AddrPort{
		attempt.UDP: netip.MustParseAddrPort("127.77.77.77:11"),
		attempt.TCP: netip.MustParseAddrPort("127.77.77.77:12"),
	}
	sentinel = netip.MustParseAddrPort("127.77.77.77:13")
	served   = netip.MustParseAddrPort("127.77.77.77:14") // by an agent
)

// reported counts the lines, of either format, on attempts to call an address
// which name a process, or on all of them.
func (ig *stockIG) reported(to netip.AddrPort, comm string) int {
	mention := regexp.MustCompile(fmt.Sprintf(`%s(:|","port":)%d\b`, regexp.QuoteMeta(to.Addr().String()), to.Port()))
	n := 0
	for _, line := range ig.output() {
		if mention.MatchString(line) && strings.Contains(line, comm) {
			n++
		}
	}
	return n
}

// callEachCPU makes an attempt on each CPU, and returns how many events it gives.
func callEachCPU(t *testing.T, caller *agent, to netip.AddrPort) int {
	t.Helper()
	report := caller.do(t, attempt.Request{
		Protocol: attempt.UDP, EachCPU: true, Src: netip.AddrPortFrom(to.Addr(), 0), Dst: to,
	})
	return 2 * report.Packets // sent, and received
}

// await calls f until each ig has reported at least so many attempts to call an
// address as it returns, with the name of a process or with any.
func await(t *testing.T, igs []*stockIG, to netip.AddrPort, comm string, f func() int) {
	t.Helper()
	for _, ig := range igs {
		err := eventually(func() error {
			select {
			case <-ig.ended:
				t.Fatalf("ig ended by itself: %s", &ig.stderr)
			default:
			}
			if want, got := f(), ig.reported(to, comm); got < want {
				return fmt.Errorf("ig has reported %d attempts of %q to call %s, not %d", got, comm, to, want)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("%v\n%s", err, &ig.stderr)
		}
	}
}

// serveProbes has an agent listen for probes, from before ig starts.
func serveProbes(t *testing.T, a *agent) {
	t.Helper()
	a.do(t, attempt.Request{Steps: []attempt.Step{{Do: attempt.Listen, Protocol: attempt.TCP, Src: served, Socket: "probes"}}})
}

// awaitKnown returns when each ig names who serves a socket that is older.
func awaitKnown(t *testing.T, caller *agent, comm string, igs ...*stockIG) {
	t.Helper()
	received := regexp.MustCompile(`"egress":false|\sfalse\s`)
	for _, ig := range igs {
		err := eventually(func() error {
			caller.do(t, attempt.Request{Steps: []attempt.Step{{Do: attempt.Call, Protocol: attempt.TCP, Dst: served}}})
			if !slices.ContainsFunc(ig.output(), func(line string) bool { return strings.Contains(line, comm) && received.MatchString(line) }) {
				return fmt.Errorf("ig has not named %s for what it received", comm)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("%v\n%s", err, &ig.stderr)
		}
	}
}

// awaitReady returns when each ig has attached all programs that tell who sends.
// It attaches them in no order (Start in its pkg/operators/ebpf): the filter may
// be first, and names nobody then.
func awaitReady(t *testing.T, caller *agent, igs ...*stockIG) {
	t.Helper()
	comm := caller.do(t, attempt.Request{Steps: []attempt.Step{{Do: attempt.Inbox}}}).Steps[0].Process.Comm
	for protocol, to := range probes {
		await(t, igs, to, comm, func() int {
			caller.do(t, attempt.Request{Protocol: protocol, Src: netip.AddrPortFrom(to.Addr(), 0), Dst: to})
			return 1
		})
	}
}

// awaitAll returns when ig has reported all that was before: its rings, one a
// CPU, are read in order, and so is what waits for somebody to take it.
func awaitAll(t *testing.T, caller *agent, igs ...*stockIG) {
	t.Helper()
	refused := netip.AddrPortFrom(sentinel.Addr(), 1)
	caller.do(t, attempt.Request{Protocol: attempt.TCP, Src: netip.AddrPortFrom(sentinel.Addr(), 0), Dst: refused})
	await(t, igs, refused, "", func() int { return 2 }) // sent, and received by nobody
	events := callEachCPU(t, caller, sentinel)
	await(t, igs, sentinel, "", func() int { return events })
}

// TestStockIGAndTheGoAPIReportTheSameEvents has both watch the host at once, ig
// with each of two outputs.
func TestStockIGAndTheGoAPIReportTheSameEvents(t *testing.T) {
	a := newActors(t, newPair(t, hostNamespace(t), newNamespace(t, "other")))
	prober := startAgent(t, a.pair.ends[0], agentOptions{name: "prober"})
	serveProbes(t, prober)
	asJSON := startIG(t, "--host", "-o", "json")
	asColumns := startIG(t, "--host", "-o", "columns")
	var truth []want
	var reported, table []string
	// The namespace at the other end is not the host's.
	events := watch(t, gadget.Options{}, func() {
		awaitReady(t, a.callers[0], asJSON, asColumns)
		awaitKnown(t, a.callers[0], "prober", asJSON, asColumns)
		truth = slices.DeleteFunc(a.make(t, attempts()), func(w want) bool { return w.netNS != a.pair.ends[0].inode })
		awaitAll(t, a.callers[0], asJSON, asColumns)
		reported, table = asJSON.stop(t), asColumns.stop(t)
	})
	compare(t, events, truth)
	compare(t, fromJSON(t, reported), truth)
	checkTable(t, table, len(truth))
}

// igEvent is a line of `ig run -o json`.
type igEvent struct {
	Egress   *bool      `json:"egress"`
	NetNS    uint32     `json:"netns_id"`
	Protocol string     `json:"protocol"`
	Endpoint igEndpoint `json:"endpoint"`
	Src      igEndpoint `json:"src"`
	Dst      igEndpoint `json:"dst"`
	Local    igEndpoint `json:"local"`
	Remote   igEndpoint `json:"remote"`
	Thread   string     `json:"thread"`
	Proc     igProcess  `json:"proc"`
	// Suppressed, see gadget.Event.
	Suppressed uint32 `json:"suppressed"`
}

type igEndpoint struct {
	Addr netip.Addr `json:"addr"`
	Port uint16     `json:"port"`
}

type igProcess struct {
	Comm    string `json:"comm"`
	PID     uint32 `json:"pid"`
	TID     uint32 `json:"tid"`
	MountNS uint64 `json:"mntns_id"`
	Creds   struct {
		UID uint32 `json:"uid"`
		GID uint32 `json:"gid"`
	} `json:"creds"`
	Parent struct {
		Comm string `json:"comm"`
		PID  uint32 `json:"pid"`
	} `json:"parent"`
}

func (e igEndpoint) addrPort() netip.AddrPort { return netip.AddrPortFrom(e.Addr, e.Port) }

// fromJSON reads ig's events between the tests' own addresses.
func fromJSON(t *testing.T, lines []string) []seen {
	t.Helper()
	var events []seen
	for _, line := range lines {
		var e igEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Errorf("wanted a line of JSON, got %v: %s", err, line)
			continue
		}
		if e.Egress == nil {
			t.Errorf("wanted egress to be true or false in %s", line)
			continue
		}
		if !isOurs(e.Src.Addr) && !isOurs(e.Dst.Addr) {
			continue
		}
		events = append(events, seen{
			sighting: sighting{
				netNS: e.NetNS, egress: *e.Egress, protocol: e.Protocol,
				src: e.Src.addrPort(), dst: e.Dst.addrPort(), peer: e.Endpoint.addrPort(),
			},
			owner: attempt.Process{
				Comm: e.Proc.Comm, Thread: e.Thread, PID: e.Proc.PID, TID: e.Proc.TID, UID: e.Proc.Creds.UID, GID: e.Proc.Creds.GID,
				MountNS: e.Proc.MountNS, ParentPID: e.Proc.Parent.PID, ParentComm: e.Proc.Parent.Comm,
			},
			ends: ends{local: orNone(e.Local.addrPort()), remote: orNone(e.Remote.addrPort())},
		})
	}
	return events
}

// checkTable checks ig's table: a line for each event, none too wide.
func checkTable(t *testing.T, lines []string, wanted int) {
	t.Helper()
	const widest = 120
	events := 0
	for _, line := range lines {
		if n := len([]rune(line)); n > widest {
			t.Errorf("wanted at most %d characters, got %d: %s", widest, n, line)
		}
		if strings.Contains(line, "10.77.") || strings.Contains(line, "fd77:") {
			events++
		}
	}
	if events != wanted {
		t.Errorf("wanted %d lines with our addresses, got %d", wanted, events)
	}
}
