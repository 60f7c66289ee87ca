// SPDX-License-Identifier: Apache-2.0

package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// Ports of who serves, and one that nobody does.
const (
	tcpPort    = 7777
	udpPort    = 777
	closedPort = 7
)

// agent is a process that makes attempts.
type agent struct {
	netNS    uint32
	stdin    *os.File
	requests *json.Encoder
	reports  *json.Decoder
}

// startPair starts who calls and who serves, as two users, in a network namespace of their own or in that of this process.
func startPair(t *testing.T, uid uint32, apart bool) (caller *agent, server attempt.Process) {
	t.Helper()
	var serving *agent
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and so the thread ends with the goroutine, and its namespace with the agents
		done <- func() error {
			if apart {
				if err := enterNew(); err != nil {
					return err
				}
			}
			var callerErr, servingErr error
			caller, callerErr = startAgent(t, uid)
			serving, servingErr = startAgent(t, uid+1)
			return errors.Join(callerErr, servingErr)
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return caller, serve(t, serving)
}

// enterNew moves the calling thread to a new network namespace that has a loopback device.
func enterNew() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// startAgent starts one where the calling thread is. It ends with the test.
func startAgent(t *testing.T, uid uint32) (*agent, error) {
	cmd := exec.Command(guestAgent)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: uid}, AmbientCaps: []uintptr{unix.CAP_NET_BIND_SERVICE},
	}
	a := &agent{}
	wait, err := a.start(cmd)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := errors.Join(a.stdin.Close(), wait()); err != nil {
			t.Errorf("agent %d: %v", cmd.Process.Pid, err)
		}
	})
	a.netNS, err = netNSOf(strconv.Itoa(cmd.Process.Pid))
	return a, err
}

// start starts a command that is, or leaves, an agent, and returns what waits for the command's end.
func (a *agent) start(cmd *exec.Cmd) (wait func() error, err error) {
	requests, stdin, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer requests.Close()
	stdout, reports, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer reports.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = requests, reports, os.Stderr
	a.stdin, a.requests, a.reports = stdin, json.NewEncoder(stdin), json.NewDecoder(stdout)
	return cmd.Wait, cmd.Start()
}

func netNSOf(pid string) (uint32, error) {
	var stat unix.Stat_t
	err := unix.Stat("/proc/"+pid+"/ns/net", &stat)
	return uint32(stat.Ino), err
}

func (a *agent) do(t *testing.T, request attempt.Request) attempt.Report {
	t.Helper()
	var report attempt.Report
	if err := errors.Join(a.requests.Encode(request), a.reports.Decode(&report)); err != nil {
		t.Fatal(err)
	}
	if report.Failed != "" {
		t.Fatalf("%s: %s", request, report.Failed)
	}
	return report
}

// event is what a line of the journal tells, or one of the truth.
type event struct {
	netNS    uint32
	egress   bool
	protocol string
	src, dst netip.AddrPort
	comm     string
	pid, uid uint32
	// how it went on, with --lifecycle: attempt, established, failed, closed
	kind string
	// container is its ID, if it is one's.
	container string
}

func (e event) String() string {
	direction := "received"
	if e.egress {
		direction = "sent"
	}
	return fmt.Sprintf("%s %s %s in netns %d: %s -> %s, by %q pid %d uid %d, container %q",
		e.protocol, e.kind, direction, e.netNS, e.src, e.dst, e.comm, e.pid, e.uid, e.container)
}

// talk has an agent call a server and nobody, over both families, and returns the events that follow.
func talk(t *testing.T, caller *agent, server attempt.Process) []event {
	t.Helper()
	var truth []event
	for _, address := range []string{"127.0.0.1", "::1"} {
		for _, port := range []uint16{tcpPort, closedPort} {
			for _, protocol := range []attempt.Protocol{attempt.TCP, attempt.UDP} {
				if protocol == attempt.UDP && port == tcpPort {
					port = udpPort
				}
				dst := netip.AddrPortFrom(netip.MustParseAddr(address), port)
				// Bound: of a connect that was refused the kernel forgets where it came from.
				request := attempt.Request{
					Protocol: protocol, Src: netip.AddrPortFrom(dst.Addr(), 0), Dst: dst, Answered: protocol == attempt.UDP && port == udpPort,
				}
				report := caller.do(t, request)
				by := server
				if port == closedPort {
					by = attempt.Process{}
				}
				for _, side := range []struct {
					egress bool
					who    attempt.Process
				}{{true, report.Process}, {false, by}} {
					e := event{
						netNS: caller.netNS, egress: side.egress, protocol: string(protocol), src: report.Src, dst: report.Dst,
						comm: side.who.Comm, pid: side.who.PID, uid: side.who.UID,
					}
					for _, kind := range kinds(protocol, port) {
						e.kind = kind
						truth = append(truth, e)
					}
				}
			}
		}
	}
	return truth
}

func kinds(protocol attempt.Protocol, port uint16) []string {
	switch {
	case protocol == attempt.UDP:
		return []string{"attempt"}
	case port == closedPort:
		return []string{"attempt", "failed"}
	default:
		return []string{"attempt", "established", "closed"}
	}
}

// serve has an agent answer, and returns who it is.
func serve(t *testing.T, server *agent) (who attempt.Process) {
	t.Helper()
	for _, address := range []string{"127.0.0.1", "::1"} {
		for protocol, port := range map[attempt.Protocol]uint16{attempt.TCP: tcpPort, attempt.UDP: udpPort} {
			dst := netip.AddrPortFrom(netip.MustParseAddr(address), port)
			who = server.do(t, attempt.Request{Serve: true, Protocol: protocol, Dst: dst}).Process
		}
	}
	return who
}

// journal are the events that one start of the service has told of.
func journal(t *testing.T, invocation string) []event {
	t.Helper()
	do(t, "journalctl", "--sync")
	var events []event
	for line := range strings.Lines(do(t, "journalctl", "--output=cat", "--all", "_SYSTEMD_INVOCATION_ID="+invocation)) {
		if !strings.HasPrefix(line, "{") {
			continue // what is for people
		}
		var e struct {
			Event    string `json:"event"`
			Egress   bool   `json:"egress"`
			NetNS    uint32 `json:"netns_id"`
			Protocol string `json:"protocol"`
			Runtime  struct {
				ContainerID string `json:"containerId"`
			} `json:"runtime"`
			Src, Dst struct {
				Addr netip.Addr `json:"addr"`
				Port uint16     `json:"port"`
			}
			Proc struct {
				Comm  string `json:"comm"`
				PID   uint32 `json:"pid"`
				Creds struct {
					UID uint32 `json:"uid"`
				} `json:"creds"`
			} `json:"proc"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("a line of the journal: %v: %s", err, line)
		}
		events = append(events, event{
			netNS: e.NetNS, egress: e.Egress, protocol: e.Protocol, kind: e.Event,
			src: netip.AddrPortFrom(e.Src.Addr, e.Src.Port), dst: netip.AddrPortFrom(e.Dst.Addr, e.Dst.Port),
			comm: e.Proc.Comm, pid: e.Proc.PID, uid: e.Proc.Creds.UID, container: e.Runtime.ContainerID,
		})
	}
	return events
}

// told waits until the journal has as many events as wanted, as far as they come: a connection's end can be late.
func told(t *testing.T, invocation string, wanted int) {
	t.Helper()
	for deadline := time.Now().Add(limit / 5); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if len(journal(t, invocation)) >= wanted {
			return
		}
	}
}

// compare compares as sets in which an element can be several times.
func compare(t *testing.T, events, truth []event) {
	t.Helper()
	if len(truth) == 0 {
		t.Error("no traffic was made")
	}
	left := slices.Clone(truth)
	for _, e := range events {
		if i := slices.Index(left, e); i >= 0 {
			left = slices.Delete(left, i, i+1)
		} else {
			t.Errorf("extra:   %v", e)
		}
	}
	for _, e := range left {
		t.Errorf("missing: %v", e)
	}
	t.Logf("%d events in the journal, %d wanted", len(events), len(truth))
}
