// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestEachKindOfFailureHasItsHintOnce(t *testing.T) {
	own, router, peer := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.9.9.9")
	failure := func(cause, reason string, by netip.Addr) Event {
		return Event{
			Kind: Failed, Egress: true, Cause: cause, Reason: reason, By: by,
			Local: netip.AddrPortFrom(own, 40000), Dst: netip.AddrPortFrom(peer, 80),
		}
	}
	long := netip.MustParseAddr("2001:db8:1111:2222:3333:4444:5555:6666")
	received := func(e Event) Event {
		e.Egress = false
		return e
	}
	for want, e := range map[string]Event{
		"nobody listens there":             failure("rst", "", peer),
		"REJECT by 10.0.0.1":               failure("icmp", "admin-prohibited", router),
		"a Service without endpoints":      failure("icmp", "port-unreachable", own),
		"no answer on the link":            failure("icmp", "host-unreachable", own),
		"10.0.0.1 has no route":            failure("icmp", "net-unreachable", router),
		"REJECT by 2001:db8":               failure("icmp", "admin-prohibited", long),
		"the router 2001:db8":              failure("icmp", "address-unreachable", long),
		"a routing loop at 2001:db8":       failure("icmp", "ttl-exceeded", long),
		"no port of this host's own":       failure("no-port", "", netip.Addr{}),
		"no answer: a firewall":            failure("silence", "", netip.Addr{}),
		"ip route get 10.9.9.9":            failure("no-route", "none-matches", netip.Addr{}),
		"the firewall of this host":        failure("denied", "output-hook", netip.Addr{}),
		"a security module of this":        failure("denied", "security-module", netip.Addr{}),
		"its cgroup forbids the connect()": failure("denied", "connect-hook", netip.Addr{}),
		"the application closed it":        failure("gave-up", "", netip.Addr{}),
		"(INPUT)":                          received(failure("local-drop", "", netip.Addr{})),
		"does not accept fast enough":      received(failure("local-drop", "accept-queue-full", netip.Addr{})),
	} {
		var h hints
		var got strings.Builder
		h.tell(&got, e)
		h.tell(&got, e)
		if lines := strings.Count(got.String(), "\n"); lines != 1 || !strings.Contains(got.String(), want) {
			t.Errorf("of %s %s, twice: wanted one line with %q, got %q", e.Cause, e.Reason, want, got.String())
		}
		if n := utf8.RuneCountInString(got.String()) - 1; n > widest {
			t.Errorf("wanted at most %d characters, got %d: %s", widest, n, got.String())
		}
	}
	var h hints
	var none strings.Builder
	h.tell(&none, Event{Kind: Closed})
	if none.Len() > 0 {
		t.Errorf("wanted no hint about what has not failed, got %q", none.String())
	}
}
