// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"
)

// Ports that nobody listens at, by which runs tell how far they are. The last comes after another one: the kernel's buffers
// are a CPU's each, and are not read in one order.
const (
	firstPort = 7001
	thenPort  = 7002
	lastPort  = 7003
)

// probeEvery leaves the node time to start what is asked for.
const probeEvery = 3 * time.Second

var probes = []uint16{firstPort, thenPort, lastPort}

// selection is a `kubectl gadget run` with flags, and what of all attempts it reports.
type selection struct {
	name    string
	args    []string // the image, and flags
	reports func(attempt) bool
	counts  bool // prints rows of counts, not events
}

// runs all watch the same traffic, at once, and print it as JSON.
var runs = []selection{
	{name: "events", args: []string{gadgetName, "-A", "--lifecycle"}, reports: everything},
	{name: "namespace", args: []string{gadgetName, "-n", "shop"}, reports: func(a attempt) bool { return a.pod == "shop/buyer" || a.pod == "shop/web" }},
	{name: "pod", args: []string{gadgetName, "-n", "shop", "-p", "buyer"}, reports: func(a attempt) bool { return a.pod == "shop/buyer" }},
	{name: "labels", args: []string{gadgetName, "-A", "-l", "app=web"}, reports: func(a attempt) bool { return a.labels == "app=web" }},
	{name: "counts", args: []string{connectionsName, "-A"}, reports: everything, counts: true},
}

func everything(attempt) bool { return true }

// advice is a run beside them that prints policies in the end, by IG's own operator.
var advice = selection{
	name: "advice", args: []string{connectionsName, "-A", "--map-fetch-interval", "0", "--annotate", "connections:generate_networkpolicy.enable=true"},
}

// reported are the runs' events, by their names, and what there was to report.
type reported struct {
	traffic traffic
	events  map[string][]event
}

// once has all runs watch the traffic, for all tests.
var once struct {
	sync.Once
	reported reported
	done     bool
}

// watched returns what the runs have reported.
func watched(t *testing.T) reported {
	t.Helper()
	once.Do(func() {
		once.reported = theCluster.watch(t)
		once.done = true
	})
	if !once.done {
		t.Fatal("the runs have failed, in the first test that wanted them")
	}
	return once.reported
}

func (c *cluster) watch(t *testing.T) reported {
	t.Helper()
	s := c.traffic(t)
	var watches []*watch
	pulled := map[string]bool{}
	for _, r := range runs {
		watches = append(watches, c.startWatch(t, r, "-o", "json"))
		if name := r.args[0]; !pulled[name] {
			// It has pulled the image then: IG's store of images, which is new, is not for two that begin it at once.
			c.await(t, s, watches, firstPort)
			pulled[name] = true
		}
	}
	adviser := c.startWatch(t, advice, "--verbose")
	c.await(t, s, watches, firstPort)
	adviser.awaitStart(t)
	for _, call := range slices.Concat(s.served, s.unserved) {
		call.make(t, c)
	}
	c.await(t, s, watches, thenPort)
	c.await(t, s, watches, lastPort)
	adviser.stop(t)
	all := reported{traffic: s, events: map[string][]event{}}
	for _, w := range watches {
		for _, e := range w.stop(t) {
			if s.isCall(e) {
				all.events[w.name] = append(all.events[w.name], e)
			}
		}
	}
	return all
}

// await has each pod call, or be called, at a port until each run has seen it in all pods that it reports.
func (c *cluster) await(t *testing.T, s traffic, watches []*watch, port uint16) {
	t.Helper()
	for slices.ContainsFunc(watches, func(w *watch) bool { return !w.sawAll(s, port) }) {
		if c.ctx.Err() != nil {
			t.Fatal(context.Cause(c.ctx))
		}
		for _, w := range watches {
			select {
			case err := <-w.ended:
				t.Fatalf("%s ended: %v", w.name, err)
			default:
			}
		}
		try(s.buyer, s.web.closed(0, port)).make(t, c)
		try(s.clerk, s.stock.closed(0, port)).make(t, c)
		try(s.clerk, s.names.closed(0, port)).make(t, c)
		select {
		case <-time.After(probeEvery):
		case <-c.ctx.Done():
		}
	}
}

// TestEventsNamePodsAndServices compares what each run reports with what the pods did.
func TestEventsNamePodsAndServices(t *testing.T) {
	all := watched(t)
	for _, r := range runs {
		t.Run(r.name, func(t *testing.T) { compare(t, all, r, all.traffic.served, isServed) })
	}
}

// TestWhatNobodyTakesNamesThePod does so for attempts at ports where nobody listens, and for a service without pods.
func TestWhatNobodyTakesNamesThePod(t *testing.T) {
	all := watched(t)
	for _, r := range runs {
		t.Run(r.name, func(t *testing.T) {
			compare(t, all, r, all.traffic.unserved, func(all reported, a attempt) bool { return !isServed(all, a) })
		})
	}
}

// isServed tells the attempts of the one kind from those of the other: by what is called.
func isServed(all reported, a attempt) bool {
	same := func(b attempt) bool {
		called := b.endpoint == a.endpoint
		if !a.egress {
			called = b.pod == a.pod
		}
		return called && b.egress == a.egress && b.port == a.port
	}
	return !slices.ContainsFunc(all.traffic.unserved, func(c call) bool { return slices.ContainsFunc(c.attempts(), same) })
}

// compare compares them as sets: a segment or a question that is sent again is one more event.
func compare(t *testing.T, all reported, r selection, calls []call, kind func(reported, attempt) bool) {
	t.Helper()
	wanted, got := map[attempt]bool{}, map[attempt]bool{}
	for _, call := range calls {
		for _, a := range call.attempts() {
			if !r.reports(a) {
				continue
			}
			if r.counts {
				a = a.counted()
			}
			wanted[a] = true
		}
	}
	for _, e := range all.events[r.name] {
		if a := e.attempt(); e.isAttempt() && kind(all, a) {
			got[a] = true
		}
	}
	if len(wanted) == 0 {
		t.Fatal("nothing is wanted: the test says nothing")
	}
	for a := range wanted {
		if !got[a] {
			t.Errorf("missing: %v", a)
		}
	}
	for a := range got {
		if !wanted[a] {
			t.Errorf("not wanted: %v", a)
		}
	}
}

// TestCountsAreThoseOfTheEvents adds up what was counted, and compares it with what was reported of the same.
func TestCountsAreThoseOfTheEvents(t *testing.T) {
	all := watched(t)
	wanted, got := map[attempt]int{}, map[attempt]int{}
	for _, e := range all.events["events"] {
		if e.isAttempt() && e.Retries == 0 {
			wanted[e.attempt().counted()]++
		}
	}
	for _, e := range all.events["counts"] {
		if e.isAttempt() {
			got[e.attempt()] += e.Attempts
		}
	}
	if !maps.Equal(wanted, got) {
		t.Errorf("wanted %v, got %v", wanted, got)
	}
}

// TestOutcomesAreThoseOfThePods asks how the attempts that pods made went on.
func TestOutcomesAreThoseOfThePods(t *testing.T) {
	all := watched(t)
	got := map[outcome]bool{}
	for _, e := range all.events["events"] {
		if e.Egress && (e.Event == "established" || e.Event == "failed") {
			got[e.outcome()] = true
		}
	}
	wanted := map[outcome]bool{}
	for _, call := range slices.Concat(all.traffic.served, all.traffic.unserved) {
		if call.protocol != "TCP" {
			continue
		}
		o := outcome{pod: call.from.namespace + "/" + call.from.name, endpoint: call.to.who, port: call.to.port, event: "established"}
		if call.fails {
			o.event, o.err, o.cause = "failed", "ECONNREFUSED", "rst"
			if call.to.pod == nil { // kube-proxy rejects what is for a service without pods
				o.cause = "icmp"
			}
		}
		wanted[o] = true
	}
	for o := range wanted {
		if !got[o] {
			t.Errorf("missing: %+v", o)
		}
	}
	for o := range got {
		if !wanted[o] {
			t.Errorf("not wanted: %+v", o)
		}
	}
}
