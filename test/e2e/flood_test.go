// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

var (
	floodPackets   = flag.Int("packets", 20_000, "how many packets TestFlood sends in a flood")
	stormProcesses = flag.Int("processes", 5_000, "how many processes TestFlood makes in a storm")
)

const (
	// Without a limit, fewer are enough for the rings to overflow, and each costs
	// an event.
	unlimitedPackets = 10_000
	victimPort       = 9
	floodComm        = "flood"

	// The calls beside a flood are spread over it.
	callRounds    = 20
	callsInRound  = 15
	betweenRounds = 100 * time.Millisecond
)

// defaultLimit is gadget.yaml's, in events a second.
const defaultLimit = 1000

// forgedSource is the first of a flood's (RFC 2544's network, which has no route
// here).
var forgedSource = netip.MustParseAddrPort("198.18.0.0:4000")

// flooded are the actors of a flood of the victim's port, and of calls beside it.
type flooded struct {
	*actors
	flood    aFlood
	flooders []*agent
}

// aFlood is what the flooders do, and how many they are.
type aFlood struct {
	step     attempt.Step // of each
	flooders int
	// shared has all of them, and who calls beside, on one CPU; young has them start
	// just before, by one parent.
	shared, young bool
}

// floods are made at the default limit. Between the namespaces each packet is an
// attempt in both, and over loopback one in each direction.
func floods() map[string]aFlood {
	there, here := at(overVeth.address(4, 2), victimPort), at(overLoopback.address(4, 1), victimPort)
	datagrams := attempt.Step{Do: attempt.Flood, Protocol: attempt.UDP, Dst: there, Count: *floodPackets}
	segments := attempt.Step{Do: attempt.Flood, Protocol: attempt.TCP, Dst: there, Src: forgedSource, Count: *floodPackets}
	storm := attempt.Step{Do: attempt.Storm, Protocol: attempt.UDP, Dst: there, Count: *stormProcesses}
	local, tenth, localTenth := datagrams, datagrams, datagrams
	local.Dst, localTenth.Dst = here, here
	tenth.Count, localTenth.Count = datagrams.Count/10, datagrams.Count/10
	return map[string]aFlood{
		plainDatagrams:                              {step: datagrams, flooders: 1},
		plainSegments:                               {step: segments, flooders: 1},
		"UDP datagrams over loopback on one CPU":    {step: local, flooders: 1, shared: true},
		"UDP datagrams of ten processes":            {step: localTenth, flooders: 10},
		"UDP datagrams of ten processes on one CPU": {step: tenth, flooders: 10, shared: true},
		"UDP datagrams of ten new processes":        {step: localTenth, flooders: 10, young: true},
		stormOfProcesses:                            {step: storm, flooders: 1},
	}
}

// Floods that are made in more than one test.
const (
	plainDatagrams   = "UDP datagrams"
	plainSegments    = "SYN segments with forged sources"
	stormOfProcesses = "UDP datagrams of a process each"
)

func newFlooded(t *testing.T, flood aFlood) *flooded {
	t.Helper()
	f := &flooded{flood: flood, actors: newActors(t, newPair(t, newNamespace(t, "left"), newNamespace(t, "right")))}
	for _, ns := range f.pair.ends {
		victim := startAgent(t, ns, agentOptions{name: "victim"})
		port := at(netip.IPv4Unspecified(), victimPort)
		victim.do(t, attempt.Request{Steps: []attempt.Step{
			{Do: attempt.Open, Socket: "datagrams", Protocol: attempt.UDP, Src: port},
			{Do: attempt.Listen, Socket: "segments", Protocol: attempt.TCP, Src: port},
		}})
	}
	if !flood.young {
		f.startFlooders(t)
	}
	return f
}

func (f *flooded) startFlooders(t *testing.T) {
	t.Helper()
	for range f.flood.flooders {
		f.flooders = append(f.flooders, startAgent(t, f.pair.ends[0], agentOptions{name: floodComm}))
	}
	if f.flood.shared {
		for _, a := range append(f.flooders, f.callers[0]) {
			a.moveTo(t, 0)
		}
	}
}

// TestFlood has processes send more than can be reported while another one makes
// a few connections.
func TestFlood(t *testing.T) {
	for name, flood := range floods() {
		t.Run(name+" leave others their events", func(t *testing.T) {
			o := newFlooded(t, flood).watch(t, nil)
			o.log(t)
			compare(t, o.calm, o.truth)
			o.checkLimit(t, defaultLimit)
			o.checkSum(t)
			if o.Lost != 0 {
				t.Errorf("wanted nothing lost at the default limit, got %d", o.Lost)
			}
		})
	}
	for _, name := range []string{plainDatagrams, plainSegments} {
		t.Run(name+" without a limit are counted", func(t *testing.T) {
			flood := floods()[name]
			flood.step.Count = unlimitedPackets
			o := newFlooded(t, flood).watch(t, map[string]string{"rate-limit": "0"})
			o.log(t)
			o.checkSum(t)
			if o.Withheld != 0 {
				t.Errorf("wanted nothing withheld without a rate limit, got %d", o.Withheld)
			}
		})
	}
}

// TestAStormOfProcessesIsOneOwner at a limit that an emulated machine exceeds: it
// forks a few hundred times a second.
func TestAStormOfProcessesIsOneOwner(t *testing.T) {
	const rateLimit, newcomers = 20, 32 // see ebpf/limit.h
	storm := floods()[stormOfProcesses]
	storm.step.Count = 1000
	o := newFlooded(t, storm).watch(t, map[string]string{"rate-limit": fmt.Sprint(rateLimit), "egress-only": "true"})
	o.log(t)
	o.checkLimit(t, rateLimit+newcomers)
	if got := o.Reported + o.Withheld; got < uint64(storm.step.Count) || o.Withheld == 0 || o.Lost != 0 {
		t.Errorf("wanted %d attempts of the storm, some of them withheld, got %s", storm.step.Count, o.Summary)
	}
}

// limited is who shares a bucket of the rate limit.
type limited struct {
	netNS uint32
	gadget.Owner
}

// burst are events of one owner.
type burst struct {
	events, suppressed uint64
	first, last        time.Time
}

// outcome is what became of a flood and the calls beside it.
type outcome struct {
	gadget.Summary
	sent      uint64 // attempts, as often as an end must see them
	strangers uint64 // events of others
	floods    map[limited]*burst
	calm      []seen
	truth     []want // of the calls
}

func (f *flooded) watch(t *testing.T, params map[string]string) *outcome {
	t.Helper()
	o := &outcome{floods: map[limited]*burst{}}
	var err error
	o.Summary, err = account(t, gadget.Options{NetNSOf: f.netNSOf(), Params: params, OnEvent: o.take}, func() { f.make(t, o) })
	if err != nil {
		t.Fatalf("the gadget: %v", err)
	}
	return o
}

// make makes the flood and the calls, all at once.
func (f *flooded) make(t *testing.T, o *outcome) {
	t.Helper()
	before := f.dropped(t)
	if f.flood.young {
		f.startFlooders(t)
		f.callers[0] = startAgent(t, f.pair.ends[0], agentOptions{name: "caller-new"})
	}
	var called []attempt.Report
	failed := make(chan error)
	go func() {
		var err error
		called, err = f.call()
		failed <- err
	}()
	flooded, err := askAll(f.flooders, attempt.Request{Steps: []attempt.Step{f.flood.step}})
	if err := errors.Join(err, <-failed); err != nil {
		t.Fatal(err)
	}
	if dropped := f.dropped(t) - before; dropped > 0 {
		t.Fatalf("the veth device has dropped %d packets: what has arrived is not known", dropped)
	}

	server := f.servers[1][serverKey{attempt.TCP, false, tcpPort}]
	for _, report := range called {
		o.truth = append(o.truth, wants(report, attempt.TCP, f.pair.ends[0], f.pair.ends[1], server, "call beside a flood")...)
	}
	o.sent = uint64(len(o.truth))
	for _, report := range flooded {
		o.sent += uint64(2 * report.Steps[0].Packets)
	}
}

// call makes the calls beside a flood.
func (f *flooded) call() ([]attempt.Report, error) {
	step := attempt.Step{Do: attempt.Call, Protocol: attempt.TCP, Dst: at(overVeth.address(4, 2), tcpPort)}
	round := attempt.Request{Steps: slices.Repeat([]attempt.Step{step}, callsInRound)}
	next := time.NewTicker(betweenRounds)
	defer next.Stop()
	var all []attempt.Report
	for range callRounds {
		report, err := f.callers[0].ask(round)
		if err != nil {
			return nil, err
		}
		all = append(all, report.Steps...)
		<-next.C
	}
	return all, nil
}

// dropped is how many packets the device on the flood's way could not deliver.
func (f *flooded) dropped(t *testing.T) uint64 {
	t.Helper()
	return f.pair.ends[0].link(t, overVeth.device).Attrs().Statistics.TxDropped
}

func (o *outcome) take(e gadget.Event) {
	switch {
	case !isOurs(e.Src.Addr()) && !isOurs(e.Dst.Addr()):
		o.strangers++
	case e.Dst.Port() == victimPort:
		o.takeFlood(e)
	default:
		o.calm = append(o.calm, fromEvent(e))
	}
}

func (o *outcome) takeFlood(e gadget.Event) {
	owner := limited{e.NetNS, gadget.Owner{PID: e.Proc.PID, Comm: e.Proc.Comm, Egress: e.Egress}}
	if e.Proc.Parent.Comm == floodComm { // a storm's: the limit is that of all
		owner.PID = e.Proc.Parent.PID
	}
	b := o.floods[owner]
	if b == nil {
		b = &burst{first: e.Time, last: e.Time}
		o.floods[owner] = b
	}
	b.events++
	b.suppressed += uint64(e.Suppressed)
	if e.Time.Before(b.first) {
		b.first = e.Time
	}
	if e.Time.After(b.last) {
		b.last = e.Time
	}
}

func (b *burst) seconds() float64 { return b.last.Sub(b.first).Seconds() }

func (o *outcome) log(t *testing.T) {
	t.Helper()
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease") // for the reader alone
	came := 0
	for _, e := range o.calm {
		if e.egress {
			came++
		}
	}
	t.Logf("Linux %s: %s; by the reader's count %d lost; %d of %d calls came through as sent, %d as received", strings.TrimSpace(string(release)),
		o.Summary, o.ReaderLost, came, callRounds*callsInRound, len(o.calm)-came)
	for owner, b := range o.floods {
		t.Logf("%s: %d events in %.2f s, which tell of %d withheld", owner.Owner, b.events, b.seconds(), b.suppressed)
	}
}

// checkLimit compares the events of each owner with what its bucket gives in
// their time. Each CPU can take a token too many, and what was withheld first is
// reported after half a second.
func (o *outcome) checkLimit(t *testing.T, rateLimit float64) {
	t.Helper()
	cpus := ebpf.MustPossibleCPU()
	for owner, b := range o.floods {
		most := rateLimit*(b.seconds()+1) + 2*(b.seconds()+1) + float64(cpus)*(b.seconds()+3)
		if float64(b.events) > most {
			t.Errorf("%s: wanted at most %.0f events in %.2f s, got %d", owner.Owner, most, b.seconds(), b.events)
		}
	}
}

// checkSum wants each attempt in one of the summary's numbers.
func (o *outcome) checkSum(t *testing.T) {
	t.Helper()
	events := uint64(len(o.calm)) + o.strangers
	for _, b := range o.floods {
		events += b.events
	}
	checkAccount(t, o.Summary, events, o.sent+o.strangers)
	if o.Lost != o.ReaderLost {
		t.Errorf("wanted the gadget and the reader to count the same as lost, got %d by the reader's count: %s", o.ReaderLost, o.Summary)
	}
}

// checkAccount wants each attempt reported by an event, withheld and told, or lost.
func checkAccount(t *testing.T, s gadget.Summary, events, attempts uint64) {
	t.Helper()
	if got := s.Reported + s.Withheld + s.Lost; got != attempts {
		t.Errorf("wanted %d attempts to be reported, withheld or lost, got %d: %s", attempts, got, s)
	}
	if events != s.Reported {
		t.Errorf("wanted as many events as attempts reported, got %d: %s", events, s)
	}
	owned := uint64(0)
	for _, w := range s.Owners {
		owned += w.Attempts
	}
	if owned != s.Withheld {
		t.Errorf("wanted all that was withheld to have an owner, got %d: %s", owned, s)
	}
}
