// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"fmt"
	"net/netip"
	"testing"
)

// TestNetgadgetNamesAndFilters has netgadget watch by a container's name, as it does without a word about containers, and by
// what nobody's attempts do not have.
func TestNetgadgetNamesAndFilters(t *testing.T) {
	prepare(t)
	startContainerd(t)
	one := runContainer(t, "one", "", "httpd", "-f", "-p", "80", "-h", "/www")
	two := runContainer(t, "two", "", "httpd", "-f", "-p", "80", "-h", "/www")
	// A pod's second container: the same network namespace, other mounts.
	side := runContainer(t, "side", fmt.Sprintf("--with-ns network:/proc/%d/ns/net", one.pid), "sleep", "1000000")

	arrival := event{"one", "httpd", false, "TCP", netip.AddrPortFrom(gateways[0], servedPort)}
	sent := event{"side", "wget", true, "TCP", netip.AddrPortFrom(two.at[0], servedPort)}
	// One after the other: four that load at once keep an emulated machine busy for minutes.
	watchFor := func(e event, do func(), args ...string) *watcher {
		w := watchBy(t, "netgadget", args...)
		w.await(t, e, do)
		return w
	}
	arrive := func() { onHost(t, get(one.at[0], servedPort)) }
	all, named := watchFor(arrival, arrive), watchFor(arrival, arrive, "-c", "one")
	httpd := watchFor(arrival, arrive, "-c", "one", "--comm", "httpd")
	beside := watchFor(sent, func() { side.do(t, get(two.at[0], servedPort)) }, "-c", "side")
	for _, w := range []*watcher{all, named, beside} { // what waits is told in its order
		e := event{"", "", false, "TCP", netip.AddrPortFrom(gateways[0], ownPort)}
		w.await(t, e, func() { onHost(t, get(one.at[0], ownPort)) })
	}
	known := map[*watcher]int{}
	for _, w := range []*watcher{all, named, beside, httpd} {
		known[w] = len(w.all())
	}

	s := &scene{}
	for family := range one.at {
		from, to := one.at[family], two.at[family]
		side.do(t, get(to, servedPort))
		s.sent("side", "wget", to, servedPort)
		s.received("two", "httpd", from, servedPort)
		one.do(t, get(to, servedPort))
		s.sent("one", "wget", to, servedPort)
		s.received("two", "httpd", from, servedPort)
		two.do(t, get(from, servedPort))
		s.sent("two", "wget", from, servedPort)
		s.received("one", "httpd", to, servedPort)
		onHost(t, get(to, servedPort))
		s.sent("", "busybox", to, servedPort)
		s.received("two", "httpd", gateways[family], servedPort)
	}
	closed := &scene{} // of both containers of the namespace, which nobody can tell apart
	for family := range one.at {
		two.do(t, get(one.at[family], closedPort))
		s.sent("two", "wget", one.at[family], closedPort)
		closed.received("", "", two.at[family], closedPort)
	}
	for _, w := range []*watcher{all, named} {
		e := event{"one", "httpd", false, "TCP", netip.AddrPortFrom(two.at[0], servedPort)}
		w.await(t, e, func() {}) // it is reported already, or late
	}
	for name, c := range map[string]struct {
		w      *watcher
		wanted func(event) bool
	}{
		"without options":     {all, func(event) bool { return true }},
		"-c one":              {named, func(e event) bool { return e.container == "one" }},
		"-c side":             {beside, func(e event) bool { return e.container == "side" }},
		"-c one --comm httpd": {httpd, func(e event) bool { return e.container == "one" && e.comm == "httpd" }},
	} {
		t.Run(name, func(t *testing.T) {
			c.w.stop(t, func(event) bool { return true })
			var got, nobodys []event
			for _, l := range c.w.all()[known[c.w]:] {
				if e := l.event(); !wanted(e) {
					continue
				} else if e.comm == "" && e.peer.Port() == closedPort {
					nobodys = append(nobodys, e)
				} else {
					got = append(got, e)
				}
			}
			compare(t, got, s.of(c.wanted))
			t.Logf("of nobody: %v", nobodys)
			if want := len(closed.wanted); name == "-c one --comm httpd" && len(nobodys) > 0 || name != "-c one --comm httpd" && len(nobodys) != want {
				t.Errorf("closed ports: got %v", nobodys)
			}
			for _, l := range c.w.all() {
				if l.Runtime.Named != "" && (l.Runtime.Name != "containerd" || l.Runtime.Image != imageName || l.Runtime.ID == "" || l.Runtime.Digest == "") {
					t.Errorf("wanted containerd, an ID, the image %s and its digest, got %+v", imageName, l.Runtime)
				}
			}
		})
	}
}
