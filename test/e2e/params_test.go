// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

const otherUID = 7777

// TestAParameterReportsWhatItSaysAndNothingElse makes the same calls under each
// parameter. What must come is what came to be without it, but for what it
// leaves out.
func TestAParameterReportsWhatItSaysAndNothingElse(t *testing.T) {
	a := newActors(t, newPair(t, newNamespace(t, "left"), newNamespace(t, "right")))
	other := *a
	other.callers[0] = startAgent(t, a.pair.ends[0], agentOptions{name: "other-caller", uid: otherUID})
	caller := a.callers[0].pid

	for _, test := range []struct {
		params map[string]string
		keep   func(want) bool
	}{
		{map[string]string{"egress-only": "true"}, func(w want) bool { return w.egress }},
		{map[string]string{"ingress-only": "true"}, func(w want) bool { return !w.egress }},
		{map[string]string{"tcp-only": "true"}, func(w want) bool { return w.protocol == "TCP" }},
		{map[string]string{"udp-only": "true"}, func(w want) bool { return w.protocol == "UDP" }},
		{map[string]string{"port": fmt.Sprint(udpPort)}, func(w want) bool { return w.dst.Port() == udpPort }},
		{map[string]string{"skip-loopback": "true"}, func(w want) bool { return w.src.Addr() != w.dst.Addr() }},
		{map[string]string{"pid": fmt.Sprint(caller)}, func(w want) bool { return w.owner.PID == uint32(caller) }},
		{map[string]string{"comm": "server-1"}, func(w want) bool { return w.owner.Comm == "server-1" }},
		{map[string]string{"uid": fmt.Sprint(otherUID)}, func(w want) bool { return w.owner.UID == otherUID }},
		// Nobody is not root.
		{map[string]string{"uid": "0"}, func(w want) bool { return w.owner.PID != 0 && w.owner.UID == 0 }},
		{map[string]string{"gid": fmt.Sprint(otherUID), "tcp-only": "true", "ingress-only": "false"}, func(w want) bool {
			return w.owner.GID == otherUID && w.protocol == "TCP"
		}},
	} {
		t.Run(strings.Join(slices.Sorted(maps.Keys(test.params)), " "), func(t *testing.T) {
			var truth []want
			events := watch(t, gadget.Options{NetNSOf: a.netNSOf(), Params: test.params}, func() {
				truth = append(a.make(t, fewCalls()), other.make(t, fewCalls())...)
			})
			compare(t, events, slices.DeleteFunc(truth, func(w want) bool { return !test.keep(w) }))
		})
	}
}

// fewCalls are calls of one end that differ in what parameters ask for.
func fewCalls() []call {
	var calls []call
	for _, path := range []path{overLoopback, overVeth} {
		base := call{path: path, to: 2, arrives: true}
		if path == overLoopback {
			base.to = 1
		}
		for _, family := range families {
			calls = append(calls, answered(base, family)...)
			base := base
			base.name, base.request = "refused TCP", attempt.Request{Protocol: attempt.TCP}
			calls = append(calls, base.aim(family, closedPort, true))
		}
	}
	return calls
}

func TestParametersThatLeaveNothingAreAnError(t *testing.T) {
	for _, pair := range [][2]string{{"egress-only", "ingress-only"}, {"tcp-only", "udp-only"}} {
		t.Run(pair[0], func(t *testing.T) {
			err := runWith(t, gadget.Options{Params: map[string]string{pair[0]: "true", pair[1]: "true"}}, func() {})
			wantError(t, err, "--"+pair[0], "--"+pair[1], "exclude each other")
		})
	}
}

func TestParametersThatAreWrongAreNamed(t *testing.T) {
	for _, test := range []struct{ name, value, problem string }{
		{"no-such-parameter", "1", "no such parameter"},
		{"port", "65536", "65536"},
		{"port", "http", "http"},
		{"tcp-only", "perhaps", "perhaps"},
		{"pid", "-1", "-1"},
	} {
		t.Run(test.name+"="+test.value, func(t *testing.T) {
			err := runWith(t, gadget.Options{Params: map[string]string{test.name: test.value}}, func() {})
			wantError(t, err, "--"+test.name, test.problem)
		})
	}
}

// wantError checks that an error is one line which says what it must.
func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		err = errors.New("")
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("wanted an error with %q, got %q", part, err)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("wanted an error of one line, got\n%v", err)
	}
}
