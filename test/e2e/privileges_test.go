// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/internal/preflight"
	"gadget.example/network/internal/service"
)

// bits are those of capabilities in a set, from linux/capability.h.
var bits = map[string]uintptr{
	"CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_NET_RAW": unix.CAP_NET_RAW,
	"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_SYS_NICE": unix.CAP_SYS_NICE, "CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE,
	"CAP_SYS_RESOURCE": unix.CAP_SYS_RESOURCE,
}

// startWith starts a command of root's that can never have other capabilities.
func startWith(cmd *exec.Cmd, capabilities []string) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // it is this thread's bounding set, and so it ends with the goroutine
		keep := map[uintptr]bool{}
		for _, name := range capabilities {
			keep[bits[name]] = true
		}
		for bit := uintptr(0); bit <= unix.CAP_LAST_CAP; bit++ {
			if keep[bit] {
				continue
			}
			// A kernel can have fewer than there are today.
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, bit, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
				started <- err
				return
			}
		}
		started <- cmd.Start()
	}()
	return <-started
}

// privileged is what a program with few capabilities has done.
type privileged struct {
	ready          bool
	err            error
	stdout, stderr bytes.Buffer
}

func (c *privileged) lines() []string {
	text := strings.TrimSpace(c.stdout.String())
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

// runPrivileged runs a program that tells systemd when all is watched, has traffic then, and ends it.
func runPrivileged(t *testing.T, cmd *exec.Cmd, capabilities []string, traffic func()) *privileged {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	c := &privileged{}
	cmd.Stdout, cmd.Stderr = &c.stdout, &c.stderr
	cmd.Env = append(cmd.Environ(), "NOTIFY_SOCKET="+path)
	if err := startWith(cmd, capabilities); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		notify.Close()
	}()
	said := make([]byte, 64)
	if n, err := notify.Read(said); err == nil && string(said[:n]) == "READY=1" {
		c.ready = true
		traffic()
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	c.err = <-ended
	return c
}

// bareRun is the environment variable that has the tests' program be netgadget without its look at what is missing; its value is
// --netns.
const bareRun = "E2E_BARE_RUN"

func runBare(netNS string) (status int) {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	options := gadget.Options{
		Params: map[string]string{"host": "true", "output": "json"}, Verbose: true,
		OnReady: func(ctx context.Context) error {
			if err := service.Ready(); err != nil {
				return err
			}
			<-ctx.Done()
			return nil
		},
	}
	if netNS != "" {
		options.NetNS = []string{netNS}
	}
	if _, err := gadget.Run(ctx, options); err != nil {
		fmt.Fprintln(os.Stderr, "bare run:", err)
		return 1
	}
	return 0
}

// bare is a run of the gadget, come what may.
func bare(netNS ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), bareRun+"=1", bareRun+"_NETNS="+strings.Join(netNS, ""))
	return cmd
}

func leastFor(change func(*preflight.Host)) []string {
	host := preflight.ThisHost()
	change(&host)
	return host.Capabilities()
}

func hostAlone(*preflight.Host) {}

func everyNamespace(h *preflight.Host) { h.Enters, h.AllNetNS = true, true }

func lacking(all []string, one string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(name string) bool { return name == one })
}

// people is a pair in which other users call and serve.
func people(t *testing.T) *actors {
	t.Helper()
	a := newActors(t, newPair(t, hostNamespace(t), newNamespace(t, "other")))
	for i := range a.callers {
		a.callers[i] = startAgent(t, a.pair.ends[i], agentOptions{name: fmt.Sprintf("user-%d", i), uid: uint32(1001 + i)})
	}
	return a
}

// everyKind are calls of each kind, one path after the other, both families.
func everyKind() []call {
	var calls []call
	for _, family := range families {
		for _, path := range []path{overLoopback, overVeth} {
			for from := range 2 {
				to := 2 - from
				if path == overLoopback {
					to = from + 1
				}
				base := call{from: from, path: path, to: to, arrives: true}
				calls = append(calls, answered(base, family)...)
				calls = append(calls, refused(base, family)...)
			}
		}
	}
	return calls
}

// TestTheLeastCapabilities runs with what doctor asks for and nothing else: every attempt of other users' processes is reported and
// named, and the sockets that are older.
func TestTheLeastCapabilities(t *testing.T) {
	for name, test := range map[string]struct {
		args  []string
		asks  func(*preflight.Host)
		every bool
	}{
		"host":                         {nil, hostAlone, false},
		"how it ended, paths, columns": {[]string{"--lifecycle", "--paths", "-o", "columns"}, hostAlone, false},
		"every network namespace":      {[]string{"--netns", "all"}, everyNamespace, true},
	} {
		t.Run(name, func(t *testing.T) {
			a := people(t)
			var truth []want
			capabilities := leastFor(test.asks)
			c := runPrivileged(t, exec.Command(artifact(netgadgetBinary), append([]string{"run"}, test.args...)...), capabilities, func() {
				truth = a.make(t, everyKind())
			})
			if c.err != nil || !c.ready {
				t.Fatalf("with %q: %v\n%s", capabilities, c.err, &c.stderr)
			}
			if !test.every {
				truth = slices.DeleteFunc(truth, func(w want) bool { return w.netNS != a.pair.ends[0].inode })
			}
			if slices.Contains(test.args, "columns") {
				checkOutcomes(t, c.lines(), truth)
				return
			}
			compare(t, fromJSON(t, c.lines()), truth)
		})
	}
}

// checkOutcomes checks that there is a line for each attempt.
func checkOutcomes(t *testing.T, lines []string, truth []want) {
	t.Helper()
	attempts := 0
	for _, line := range lines {
		if strings.Contains(line, " attempt ") && (strings.Contains(line, "10.77.") || strings.Contains(line, "fd77:")) {
			attempts++
		}
	}
	if attempts != len(truth) {
		t.Errorf("wanted %d attempts, got %d of %d lines:\n%.3000s", len(truth), attempts, len(lines), strings.Join(lines, "\n"))
	}
}

// TestACommandIsFollowedWithTheLeastCapabilities into a network namespace that it makes.
func TestACommandIsFollowedWithTheLeastCapabilities(t *testing.T) {
	capabilities := leastFor(func(h *preflight.Host) { h.Enters = true })
	script := "ip link set lo up; ip addr add 127.77.0.9/32 dev lo; nc 127.77.0.9 7; nc 127.77.0.9 9; true"
	cmd := exec.Command(artifact(netgadgetBinary), "run", "--", "unshare", "-n", "sh", "-c", script)
	c := runPrivileged(t, cmd, capabilities, func() {})
	events := fromJSON(t, c.lines())
	sent := map[netip.AddrPort]string{}
	for _, e := range events {
		sent[e.dst] = e.owner.Comm
	}
	seven, nine := netip.MustParseAddrPort("127.77.0.9:7"), netip.MustParseAddrPort("127.77.0.9:9")
	if c.err != nil || len(events) != 2 || sent[seven] != "nc" || sent[nine] != "nc" {
		t.Errorf("with %q: wanted the attempts of nc to call ports 7 and 9, got %v, %v\n%s", capabilities, sent, c.err, &c.stderr)
	}
}

// TestEachCapabilityIsNeeded leaves one out at a time: netgadget says which in one line, and what runs all the same fails or misses.
func TestEachCapabilityIsNeeded(t *testing.T) {
	all := leastFor(everyNamespace)
	for _, name := range all {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(artifact(netgadgetBinary), "run", "--netns", "all")
			c := runPrivileged(t, cmd, lacking(all, name), func() {})
			said := strings.TrimSpace(c.stderr.String())
			if c.err == nil || c.ready || c.stdout.Len() > 0 || !strings.Contains(said, "no "+name+", to ") || strings.Contains(said, "\n") {
				t.Errorf("wanted one line about %s, got %v\n%s", name, c.err, said)
			}
			switch name {
			case "CAP_SYS_NICE":
				late := "a process can be in a new network namespace before it is watched"
				c := runPrivileged(t, bare(gadget.AllNetNS), lacking(all, name), func() {})
				if c.err != nil || !strings.Contains(c.stderr.String(), late) {
					t.Errorf("wanted a run that is late, got %v\n%s", c.err, &c.stderr)
				}
			case "CAP_DAC_READ_SEARCH":
				for capabilities, wanted := range map[string]int{name: 2, "": 0} {
					if got := hiddenEvents(t, append(lacking(all, name), capabilities)); got != wanted {
						t.Errorf("in a namespace that only an open file keeps, with %q: wanted %d events, got %d", capabilities, wanted, got)
					}
				}
			default:
				wantNothingLeft(t, func() {
					c := runPrivileged(t, bare(), lacking(leastFor(hostAlone), name), func() { sendDatagram(t) })
					if events := fromJSON(t, c.lines()); c.err == nil && len(events) > 0 {
						t.Errorf("wanted a run without %s to fail, or to see nothing, it saw %v, and said\n%s", name, events, &c.stderr)
					}
				})
			}
		})
	}
}

// sendDatagram makes one attempt, which nobody answers.
func sendDatagram(t *testing.T) {
	t.Helper()
	conn, err := net.Dial("udp", fmt.Sprintf("127.77.0.1:%d", closedPort))
	if err == nil {
		_, err = conn.Write([]byte("one"))
		err = errors.Join(err, conn.Close())
	}
	if err != nil {
		t.Error(err)
	}
}

// hiddenEvents is how many events come of a datagram in a namespace that a file of another user's process keeps, and no process is in.
func hiddenEvents(t *testing.T, capabilities []string) int {
	t.Helper()
	ns := newNamespace(t, "hidden")
	file, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", ns.fd))
	if err != nil {
		t.Fatal(err)
	}
	ns.address(t, "lo", overLoopback.prefix(4, 1))
	addr := overLoopback.address(4, 1)
	var socket *net.UDPConn
	err = ns.do(func() (err error) {
		socket, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, closedPort)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	keeper := exec.Command("sleep", "1000000")
	keeper.ExtraFiles = []*os.File{file}
	keeper.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	if err := keeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(keeper.Process.Kill(), keeper.Wait()) }()
	// From here on it is that one's alone.
	if err := errors.Join(file.Close(), unix.Dup3(int(socketFile(t, socket).Fd()), int(ns.fd), unix.O_CLOEXEC)); err != nil {
		t.Fatal(err)
	}
	c := runPrivileged(t, bare(gadget.AllNetNS), capabilities, func() {
		if _, err := socket.Write([]byte("hidden")); err != nil {
			t.Error(err)
		}
	})
	if c.err != nil {
		t.Fatalf("%v\n%s", c.err, &c.stderr)
	}
	n := 0
	for _, e := range fromJSON(t, c.lines()) {
		if e.netNS == ns.inode {
			n++
		}
	}
	return n
}

func socketFile(t *testing.T, socket *net.UDPConn) *os.File {
	t.Helper()
	file, err := socket.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// TestStockIGWithTheLeastCapabilities: it needs one less, as it does not know when all events are read.
func TestStockIGWithTheLeastCapabilities(t *testing.T) {
	capabilities := lacking(leastFor(hostAlone), "CAP_NET_ADMIN")
	a := people(t)
	prober := startAgent(t, a.pair.ends[0], agentOptions{name: "prober"})
	serveProbes(t, prober)
	ig := startIGWith(t, func(cmd *exec.Cmd) error { return startWith(cmd, capabilities) }, storedImage, "--host", "-o", "json")
	awaitReady(t, a.callers[0], ig)
	awaitKnown(t, a.callers[0], "prober", ig)
	truth := slices.DeleteFunc(a.make(t, everyKind()), func(w want) bool { return w.netNS != a.pair.ends[0].inode })
	awaitAll(t, a.callers[0], ig)
	all := fromJSON(t, ig.stop(t))
	compare(t, slices.DeleteFunc(all, func(s seen) bool { return s.dst.Addr() == sentinel.Addr() }), truth)
	if strings.Contains(ig.stderr.String(), "container-collection") {
		t.Errorf("wanted containers to be watched, ig said %s", &ig.stderr)
	}
}

// TestAnotherUserIsTold: root is asked for, whatever the capabilities.
func TestAnotherUserIsTold(t *testing.T) {
	var ambient []uintptr
	for _, name := range leastFor(everyNamespace) {
		ambient = append(ambient, bits[name])
	}
	for program, args := range map[string][]string{
		netgadgetBinary: {"run"},
		igBinary:        {"run", storedImage, "--verify-image=false", "--host"},
	} {
		cmd := exec.Command(artifact(program), args...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}, AmbientCaps: ambient}
		out, err := cmd.CombinedOutput()
		said := strings.TrimSpace(string(out))
		if err == nil || !strings.Contains(said, "must be run as root") || strings.Contains(said, "\n") {
			t.Errorf("%s with ambient capabilities: wanted one line, got %v\n%s", strconv.Quote(program), err, said)
		}
	}
}
