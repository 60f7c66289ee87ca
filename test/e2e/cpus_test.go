// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// The guest's processors: some, and more that could be plugged in.
const (
	guestCPUs    = 4
	guestMaxCPUs = 6
)

// inGuestAlone tells whether the tests run in a VM. Elsewhere it runs the test in
// one: nobody wants to see a machine's own CPUs go.
func inGuestAlone(t *testing.T) bool {
	t.Helper()
	if os.Getenv("E2E_IN") == inGuest {
		return true
	}
	status, err := runInVM(t.Context(), nil, "-test.v", "-test.run", "^"+t.Name()+"$")
	if err != nil || status != 0 {
		t.Errorf("in a VM: exit status %d, %v", status, err)
	}
	return false
}

// setOnline puts a CPU to work, or takes it offline; in the end it works.
func setOnline(t *testing.T, cpu int, online bool) {
	t.Helper()
	write := func(online bool) error {
		value := map[bool]string{true: "1", false: "0"}[online]
		return os.WriteFile(fmt.Sprintf("/sys/devices/system/cpu/cpu%d/online", cpu), []byte(value), 0o644)
	}
	if err := write(online); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := write(true); err != nil {
			t.Error(err)
		}
	})
}

// TestCPUsThatComeAndGo: CPU 2 goes and comes back while the gadget runs, and
// CPU 3 comes only then.
func TestCPUsThatComeAndGo(t *testing.T) {
	if !inGuestAlone(t) {
		return
	}
	const late, gone = 3, 2
	for name, test := range map[string]struct {
		params map[string]string
		count  int  // of datagrams, from each CPU each time
		lacks  bool // a buffer, and a place to wait, for some
	}{
		"each attempt is reported":                       {nil, 40, false},
		"each attempt is reported without a limit":       {map[string]string{"rate-limit": "0"}, 100, false},
		"what has no place to wait is told":              {map[string]string{"rate-limit": "0"}, 3000, true},
		"what the limit withholds is told":               {nil, 3000, true},
		"each attempt is reported where paths are asked": {map[string]string{"paths": "true"}, 40, false},
		"only what is sent, where only that is asked":    {map[string]string{"egress-only": "true"}, 40, false},
	} {
		t.Run(name, func(t *testing.T) {
			a := local(t)
			setOnline(t, late, false)
			var truth []want
			var o watched
			options := gadget.Options{NetNSOf: a.netNSOf(), Params: test.params, OnEvent: o.take}
			summary, err := account(t, options, func() {
				send := func() { truth = append(truth, a.make(t, []call{datagrams(test.count)})...) }
				send()
				setOnline(t, gone, false)
				send()
				setOnline(t, gone, true)
				setOnline(t, late, true)
				send()
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Log(summary)
			if test.params["egress-only"] != "" {
				truth = slices.DeleteFunc(truth, func(w want) bool { return !w.egress })
			}
			if !test.lacks {
				compare(t, o.events, truth)
			}
			if test.params["rate-limit"] == "" && summary.Lost != 0 {
				t.Errorf("wanted nothing lost at the default limit, got %d", summary.Lost)
			}
			checkAccount(t, summary, uint64(len(o.events))+o.strangers, uint64(len(truth))+o.strangers)
			// What a ring has lost it tells with its next event, and that of a CPU that
			// has gone has none.
			if summary.Lost < summary.ReaderLost {
				t.Errorf("wanted the reader to know of no more lost than the gadget, got %d: %s", summary.ReaderLost, summary)
			}
			if test.lacks && test.params != nil && (summary.WithoutBuffer == 0 || !strings.Contains(summary.String(), "CPUs that have no buffer")) {
				t.Errorf("wanted the last line to name the CPUs without a buffer, got %q", summary)
			}
		})
	}
}

// watched are the tests' own events of a run, and how many others came.
type watched struct {
	events    []seen
	strangers uint64
}

func (w *watched) take(e gadget.Event) {
	if isOurs(e.Src.Addr()) || isOurs(e.Dst.Addr()) {
		w.events = append(w.events, fromEvent(e))
		return
	}
	w.strangers++
}

// TestIgReportsFromCPUsThatComeLate: the stock ig has no account to settle, but
// its events tell of all attempts.
func TestIgReportsFromCPUsThatComeLate(t *testing.T) {
	if !inGuestAlone(t) {
		return
	}
	const late, each = 3, 400
	a := newActors(t, newPair(t, hostNamespace(t), newNamespace(t, "other")))
	sender := startAgent(t, a.pair.ends[0], agentOptions{name: "late"})
	setOnline(t, late, false)
	ig := startIG(t, "--host", "-o", "json", "--egress-only")
	awaitReady(t, a.callers[0], ig)
	setOnline(t, late, true)
	report := sender.do(t, attempt.Request{Protocol: attempt.UDP, Count: each, EachCPU: true, Dst: at(overLoopback.address(4, 1), burstPort)})
	if want := guestCPUs * each; report.Packets != want {
		t.Fatalf("wanted %d datagrams to be sent, got %d", want, report.Packets)
	}
	err := eventually(func() error {
		events, suppressed := told(t, ig.output())
		if events+suppressed == report.Packets {
			t.Logf("%d events tell of %d attempts withheld", events, suppressed)
			return nil
		}
		return fmt.Errorf("wanted %d attempts told, got %d events and %d withheld", report.Packets, events, suppressed)
	})
	if err != nil {
		t.Error(err)
	}
}

// TestNetgadgetRunsWhereItMayNotUseAllCPUs has its own processes, or it and those
// of its command, on some CPUs alone.
func TestNetgadgetRunsWhereItMayNotUseAllCPUs(t *testing.T) {
	if !inGuestAlone(t) {
		return
	}
	const each = 20
	request, err := json.Marshal(attempt.Request{Protocol: attempt.UDP, Count: each, EachCPU: true, Dst: netip.MustParseAddrPort("127.0.0.1:19")})
	if err != nil {
		t.Fatal(err)
	}
	for name, confine := range map[string]func(*testing.T, *exec.Cmd){
		"an affinity": startOnLastCPU,
		"a cpuset":    startInCPUSet,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			cmd := exec.CommandContext(ctx, artifact(netgadgetBinary), "run", "--strict", "--egress-only", "--", artifact(agentBinary))
			var stdout, stderr bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(request), &stdout, &stderr
			confine(t, cmd)
			if err := cmd.Wait(); err != nil {
				t.Fatalf("wanted no error, got %v\n%s", err, &stderr)
			}
			var report attempt.Report
			line := stderr.String()[strings.Index(stderr.String(), "{"):]
			if err := json.NewDecoder(strings.NewReader(line)).Decode(&report); err != nil {
				t.Fatalf("reading the agent's report: %v\n%s", err, &stderr)
			}
			if events, _ := told(t, strings.Split(strings.TrimSpace(stdout.String()), "\n")); events != report.Packets || events < each {
				t.Errorf("sent %d, wanted as many events, got %d\n%s", report.Packets, events, &stderr)
			}
		})
	}
}

// startOnLastCPU starts a command on the last CPU; it can still choose others.
func startOnLastCPU(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // its affinity ends with it
		err := moveThread(0, guestCPUs-1)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
}

// startInCPUSet starts a command that cannot use any CPU but the first.
func startInCPUSet(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	const root = "/sys/fs/cgroup" // the guest's, see internal/vm/init
	group := filepath.Join(root, "e2e-cpuset")
	for _, err := range []error{
		os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+cpuset"), 0o644),
		os.Mkdir(group, 0o755),
		os.WriteFile(filepath.Join(group, "cpuset.cpus"), []byte("0"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := os.Remove(group); err != nil {
			t.Error(err)
		}
	})
	// The shell is in the group before it becomes the command.
	cmd.Args = append([]string{"sh", "-c", `echo $$ >"$0"/cgroup.procs && exec "$@"`, group, cmd.Path}, cmd.Args[1:]...)
	var err error
	if cmd.Path, err = exec.LookPath("sh"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
}
