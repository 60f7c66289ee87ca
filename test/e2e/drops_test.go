// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// droppedByFirewall is what the kernel calls what a firewall drops.
const droppedByFirewall = "SKB_DROP_REASON_NETFILTER_DROP"

// hasNoReasons is what is said under a kernel that knows none.
const hasNoReasons = "this kernel has no reasons for a drop; Linux 5.17 and later have"

// reasonNumber is what this kernel means by a reason's name; false if it has no
// reasons at all.
func reasonNumber(t *testing.T, name string) (uint32, bool) {
	t.Helper()
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	var reasons *btf.Enum
	if err := kernel.TypeByName("skb_drop_reason", &reasons); errors.Is(err, btf.ErrNotFound) {
		return 0, false
	} else if err != nil {
		t.Fatal(err)
	}
	for _, r := range reasons.Values {
		if r.Name == name {
			return uint32(r.Value), true
		}
	}
	t.Fatalf("this kernel has no reason %s", name)
	return 0, false
}

// dropping is a namespace whose firewall drops what is for a port, in one chain.
func dropping(t *testing.T, chain nftables.Chain, port int) *agent {
	t.Helper()
	a := local(t)
	ns := a.pair.ends[0]
	ns.sysctl(t, "ipv4/tcp_syn_linear_timeouts", "0") // else they come on top of TCP_SYNCNT
	ns.addRules(t, func(r *rules) { r.add(chain, r.transport(), matchPort(portAt, port), drop()) })
	return a.callers[0]
}

func callOfItself(family, port int) attempt.Request {
	own := overLoopback.address(family, 1)
	return patientCall(own, own, port)
}

// TestTheKernelSaysWhyItDrops has a firewall of this host drop what is sent, and what
// arrives: the kernel's reason is told of both ends' failures.
func TestTheKernelSaysWhyItDrops(t *testing.T) {
	reason, has := reasonNumber(t, droppedByFirewall)
	for _, c := range []struct {
		name   string
		chain  nftables.Chain
		sent   refusal
		leaves bool
	}{
		{"INPUT", filterInput, refusal{cause: "local-drop", drop: reason}, true},
		{"OUTPUT", filterOutput, refusal{cause: "denied", reason: "output-hook", drop: reason}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			port := newPort(attempt.TCP)
			caller := dropping(t, c.chain, port)
			o := gadget.Options{NetNSOf: []int{caller.pid}, DropReasons: true, Params: map[string]string{"lifecycle": "true"}}
			if !has {
				wantError(t, runWith(t, o, func() {}), hasNoReasons)
				return
			}
			var truth []want
			events := watch(t, o, func() {
				for _, family := range families {
					report := caller.do(t, callOfItself(family, port))
					truth = append(truth, sentAndFailed(t, report, caller.ns, !c.leaves, c.sent)...)
					if c.leaves {
						truth = append(truth, receivedAndFailed(report, caller.ns, refusal{cause: "local-drop", drop: reason})...)
					}
				}
			})
			compare(t, events, truth)
		})
	}
}

// TestDropReasonsHaveTheKernelsNames runs netgadget with a command.
func TestDropReasonsHaveTheKernelsNames(t *testing.T) {
	port := newPort(attempt.TCP)
	caller := dropping(t, filterInput, port)
	for _, option := range []string{"--failed-only", "--lifecycle"} {
		t.Run(option, func(t *testing.T) {
			request, err := json.Marshal(callOfItself(4, port))
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), artifact(netgadgetBinary), "run", option, "--drop-reasons", "--",
				"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", caller.pid), artifact(agentBinary))
			var stdout, stderr bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(request), &stdout, &stderr
			err = cmd.Run()
			if _, has := reasonNumber(t, droppedByFirewall); !has {
				if status, _ := exitStatus(err); status != 125 || !strings.Contains(stderr.String(), hasNoReasons) {
					t.Errorf("wanted exit status 125 and %q, got %d and %s", hasNoReasons, status, &stderr)
				}
				return
			}
			if err != nil {
				t.Fatalf("netgadget: %v\n%s", err, &stderr)
			}
			checkDropNames(t, stdout.String())
		})
	}
}

// checkDropNames wants one failure, of which the reason is told, and none of anything
// else.
func checkDropNames(t *testing.T, out string) {
	t.Helper()
	failures := 0
	for line := range strings.Lines(out) {
		var e struct {
			Event, Error, Cause, Drop string
			ErrorRaw                  unix.Errno `json:"error_raw"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("wanted a line of JSON, got %v: %s", err, line)
		}
		wanted := ""
		if e.Event == "failed" {
			failures++
			wanted = droppedByFirewall
			if e.ErrorRaw != unix.ETIMEDOUT || e.Cause != "local-drop" {
				t.Errorf("wanted it to fail with ETIMEDOUT, local-drop, got %s, %s", e.Error, e.Cause)
			}
		}
		if e.Drop != wanted {
			t.Errorf("wanted the reason %q of %s, got %q", wanted, e.Event, e.Drop)
		}
	}
	if failures != 1 {
		t.Errorf("wanted one failure, got %d in\n%s", failures, out)
	}
}
