// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// synsSent is how many SYN segments a connect sends that nobody answers.
const synsSent = 3

// unansweredCalls are connects that the kernel gives up in the same time, one
// for each caller.
func unansweredCalls() []call {
	var calls []call
	for _, family := range families {
		add := func(name string, path path, to int, src netip.Addr) {
			c := call{name: name, path: path, to: to, arrives: to != nobody, answered: to != nobody}
			c.request = attempt.Request{Protocol: attempt.TCP, NonBlocking: true, SYNRetries: synsSent - 1}
			c = c.aim(family, tcpPort, true)
			if src.IsValid() {
				c.request.Src = netip.AddrPortFrom(src, 0)
			}
			calls = append(calls, c)
		}
		unknown := overLoopback.address(family, 1) // to which the other end has no route
		add("to nobody", overVeth, nobody, netip.Addr{})
		add("to nobody, over a VLAN", overVLAN, nobody, netip.Addr{})
		add("to nobody, by the ports of a bond in turn", overBondVLAN.path, nobody, netip.Addr{})
		add("to a listener that cannot answer", overVeth, 2, unknown)
		add("to a listener that cannot answer, by the ports of a bond in turn", overBondVLAN.path, 2, unknown)
	}
	return calls
}

// makeAtOnce makes calls, each by a caller of its own, and returns the reports.
func makeAtOnce(t *testing.T, callers []*agent, calls []call) []attempt.Report {
	t.Helper()
	reports, failed := make([]attempt.Report, len(calls)), make([]error, len(calls))
	var wg sync.WaitGroup
	for i, c := range calls {
		wg.Go(func() { reports[i], failed[i] = callers[i].ask(c.request) })
	}
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
	return reports
}

func TestRetransmissions(t *testing.T) {
	a := newActors(t, newPair(t, newNamespace(t, "left"), newNamespace(t, "right")))
	overBondVLAN.add(t, a.pair)
	left := a.pair.ends[0]
	left.sysctl(t, "ipv4/tcp_syn_linear_timeouts", "0") // else they come on top of TCP_SYNCNT
	calls := unansweredCalls()
	var callers []*agent
	for i := range calls {
		callers = append(callers, startAgent(t, left, agentOptions{name: fmt.Sprintf("patient-%d", i)}))
	}
	var truth []want
	events := watch(t, gadget.Options{NetNSOf: a.netNSOf()}, func() {
		for i, report := range makeAtOnce(t, callers, calls) {
			if report.Packets != synsSent {
				t.Errorf("%s: %d SYN segments were sent, wanted %d", calls[i], report.Packets, synsSent)
			}
			truth = append(truth, a.follows(calls[i], report)...)
		}
		truth = append(truth, a.make(t, repeatedCalls())...)
	})
	compare(t, events, truth)
}

// repeatedCalls are attempts with the addresses and ports of the one before:
// none is a retransmission.
func repeatedCalls() []call {
	var calls []call
	for i, path := range []path{overVeth, overVLAN, overBondVLAN.path} {
		for _, family := range families {
			c := call{name: "refused, from one port again and again", path: path, to: 2, arrives: true}
			c.request.Protocol = attempt.TCP
			c = c.aim(family, closedPort, true)
			c.request.Src = netip.AddrPortFrom(c.request.Src.Addr(), uint16(20_000+i))
			calls = append(calls, c, c, c)
		}
	}
	return calls
}
