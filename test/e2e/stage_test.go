// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// stage is where the cases of who play: agents that call and agents that serve,
// what they did, and what the gadget has reported.
type stage struct {
	t        *testing.T
	pair     *pair
	callers  []*agent // in the first namespace
	servers  []*agent
	away     []*agent // in the other namespace
	inner    []*agent // in one behind the first
	selves   map[*agent]attempt.Process
	score    *score
	opened   int // sockets so far
	attempts int // that each case makes, about
	// keep, if not nil, says which facts the gadget's parameters let be reported.
	keep func(fact) bool

	mu      sync.Mutex
	events  []seen
	arrived chan struct{} // more events have
}

// How many agents there are of each kind.
const (
	callers = 6
	servers = 4
	aways   = 2
	inners  = 2
)

func newStage(t *testing.T, attempts int) *stage {
	t.Helper()
	s := &stage{
		t: t, pair: newPair(t, newNamespace(t, "left"), newNamespace(t, "right")), attempts: attempts,
		selves: map[*agent]attempt.Process{}, score: newScore(), arrived: make(chan struct{}, 1),
	}
	s.pair.addServices(t)
	for _, ns := range s.pair.ends {
		ns.sysctl(t, "ipv4/ip_unprivileged_port_start", "0")
		ns.sysctl(t, "core/somaxconn", "65535")
		ns.sysctl(t, "ipv4/tcp_fastopen", "3")
		for _, family := range families {
			for i := range hosts {
				ns.address(t, "lo", overLoopback.prefix(family, firstHost+i))
			}
		}
	}
	for i := range callers {
		uid := uint32(0)
		if i%2 == 1 {
			uid = uint32(1000 + i)
		}
		s.callers = append(s.callers, s.start(s.pair.ends[0], agentOptions{name: fmt.Sprintf("caller-%d", i), uid: uid}))
	}
	for i := range servers {
		s.servers = append(s.servers, s.start(s.pair.ends[0], agentOptions{name: fmt.Sprintf("server-%d", i)}))
	}
	for i := range aways {
		s.away = append(s.away, s.start(s.pair.ends[1], agentOptions{name: fmt.Sprintf("away-%d", i)}))
	}
	behind := newBehind(t, s.pair.ends[0])
	for i := range inners {
		s.inner = append(s.inner, s.start(behind, agentOptions{name: fmt.Sprintf("inner-%d", i)}))
	}
	return s
}

func (s *stage) start(ns *namespace, o agentOptions) *agent {
	a := startAgent(s.t, ns, o)
	report := a.do(s.t, attempt.Request{Steps: []attempt.Step{{Do: attempt.Inbox}}})
	s.selves[a] = report.Steps[0].Process
	return a
}

// Hosts on the loopback device of each namespace, beside the pair's own.
const (
	firstHost = 10
	hosts     = 8
)

func host(family, i int) netip.Addr { return overLoopback.address(family, firstHost+i) }

func at(addr netip.Addr, port int) netip.AddrPort { return netip.AddrPortFrom(addr, uint16(port)) }

func anyHost(family int) netip.Addr {
	if family == 4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// watch runs the gadget while f runs. What comes after f is extra.
func (s *stage) watch(params map[string]string, f func()) {
	s.t.Helper()
	all := map[string]string{"rate-limit": "0"} // agents are faster than users
	maps.Copy(all, params)
	o := gadget.Options{
		Image: gadget.Image{File: artifact(imageFile)}, Params: all,
		NetNSOf: []int{s.callers[0].pid, s.away[0].pid, s.inner[0].pid},
		OnEvent: func(e gadget.Event) {
			if !isOurs(e.Src.Addr()) && !isOurs(e.Dst.Addr()) {
				return
			}
			came := withFate(e)
			came.at = sinceBoot()
			s.mu.Lock()
			s.events = append(s.events, came)
			s.mu.Unlock()
			select {
			case s.arrived <- struct{}{}:
			default:
			}
		},
	}
	if err := runWith(s.t, o, f); err != nil {
		s.t.Fatalf("the gadget: %v", err)
	}
	s.score.settle("after all", nil, s.events)
}

// take returns the events since the last time, when there are as many as wanted.
func (s *stage) take(wanted int) []seen {
	bound := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		if len(s.events) >= wanted {
			events := s.events
			s.events = nil
			s.mu.Unlock()
			return events
		}
		s.mu.Unlock()
		select {
		case <-s.arrived:
		case <-bound:
			wanted = 0
		}
	}
}

// act is a step and what follows from it.
type act struct {
	by   *agent
	step attempt.Step
	// child has a child of the agent's do it, with the inherited sockets, which is
	// started as parent says.
	child   bool
	inherit []string
	parent  attempt.Step

	to     []attempt.Process // who may be named where it arrives; none: nobody
	beyond *namespace        // where it arrives, if not in the agent's namespace
	// spared says why it may be nobody's, too; "" if it may not.
	spared excuse
	// never: it reaches no device, and so arrives nowhere.
	never bool
	// lost: it arrives nowhere.
	lost bool
	// raw: no socket that a TCP or UDP has sends it.
	raw bool
	// worker: a thread of the kernel's may do it for the process.
	worker bool
	// nat, if not nil, is what becomes of the socket's ends on the wire, and passed
	// what becomes of them where they pass another namespace. A source port that
	// is 0 then is any. taken is where the socket that gets it has it, for who is
	// not told by the wire.
	nat, passed func(ends) ends
	taken       func(netip.AddrPort) netip.AddrPort
	seenFrom    func(netip.AddrPort) netip.AddrPort // where it has come from, as that socket has it
	// became, if not nil, is what becomes of it where it is sent and where it arrives.
	became func(attempt.Report) (sent, received []fate)
	served attempt.Report // of who has served it, if anybody has
	// then is what a child does next.
	then []attempt.Step
}

func (a act) request() attempt.Step {
	if !a.child {
		return a.step
	}
	// What it is called later is not who it was.
	gone := attempt.Step{Do: attempt.Rename, Comm: "gone"}
	start := a.parent
	start.Do, start.Inherit = attempt.Child, a.inherit
	start.Steps = append(append([]attempt.Step{a.step}, a.then...), gone)
	return start
}

// mostInWave is how many attempts are made before their events are awaited: a
// ring of the gadget holds their events.
const mostInWave = 300

// wave has agents do things, each in the order given and all at once, and
// settles what follows.
func (s *stage) wave(name string, acts []act) {
	s.t.Helper()
	for len(acts) > mostInWave {
		s.wave(name, acts[:mostInWave])
		acts = acts[mostInWave:]
	}
	s.settle(name, acts, s.perform(acts))
}

// settle compares what follows from acts with what was reported, some of it before.
func (s *stage) settle(name string, acts []act, reports []attempt.Report, before ...seen) {
	s.t.Helper()
	var facts []fact
	for i, report := range reports {
		all := []attempt.Report{report}
		if len(report.Steps) > 0 { // several packets of one step
			all = report.Steps
		}
		for _, report := range all {
			made := acts[i].facts(report)
			made = append(made, acts[i].fates(report, made)...)
			if s.keep != nil {
				made = slices.DeleteFunc(made, func(f fact) bool { return !s.keep(f) })
			}
			if len(made) > 0 {
				s.score.attempts[name]++
			}
			facts = append(facts, made...)
		}
	}
	s.score.settle(name, facts, append(before, s.take(len(facts)-len(before))...))
}

// perform returns the reports in the order of the acts.
func (s *stage) perform(acts []act) []attempt.Report {
	s.t.Helper()
	indices := map[*agent][]int{}
	for i, a := range acts {
		indices[a.by] = append(indices[a.by], i)
	}
	reports := make([]attempt.Report, len(acts))
	var wg sync.WaitGroup
	failed := make(chan error, len(indices))
	for by, mine := range indices {
		wg.Go(func() {
			var request attempt.Request
			for _, i := range mine {
				request.Steps = append(request.Steps, acts[i].request())
			}
			report, err := by.ask(request)
			if err != nil {
				failed <- err
				return
			}
			for j, i := range mine {
				reports[i] = report.Steps[j]
				if acts[i].child {
					reports[i] = reports[i].Steps[0]
				}
			}
		})
	}
	wg.Wait()
	close(failed)
	var all error
	for err := range failed {
		all = errors.Join(all, err)
	}
	if all != nil {
		s.t.Fatal(all)
	}
	return reports
}

// facts are the events that follow from an act.
func (a act) facts(report attempt.Report) []fact {
	if !a.step.Attempts() {
		return nil
	}
	asked := ends{local: report.Src, remote: report.Dst}
	if a.nat != nil {
		onWire := a.nat(asked)
		report.Src, report.Dst = onWire.local, onWire.remote
	}
	if a.step.Do == attempt.Flows {
		report.Packets = 1 // of those that are reported
	}
	if a.never {
		report.Packets = 1 // it is told once
	}
	var facts []fact
	origin := fmt.Sprintf("%s: %+v %s", report.Process, a.step, report.Error)
	for _, w := range wants(report, a.step.Protocol, a.by.ns, a.receiver(), attempt.Process{}, origin) {
		f := fact{sighting: w.sighting, origin: w.origin, spared: a.spared}
		switch {
		case w.egress:
			f.owners, f.anyThread = []attempt.Process{report.Process}, a.worker
			if !a.raw {
				f.ends = asked
			}
		case a.passed != nil:
			f.sighting = f.as(a.passed(asked))
		}
		if !w.egress && len(a.to) > 0 {
			f.owners, f.onWire, f.anyThread = a.to, a.taken == nil && a.seenFrom == nil, true
			f.ends = ends{local: f.dst, remote: f.src}
			if a.taken != nil {
				f.local = a.taken(f.dst)
			}
			if a.seenFrom != nil {
				f.remote = a.seenFrom(f.src)
			}
		}
		switch {
		case a.never:
			f.source, f.sighting, f.onWire = asFarAsKnown(a.step.Src, report.Src), f.anySource(), true
		case f.src.Port() == 0:
			f.source, f.sighting = fromAny(f.src.Addr()), f.anySource()
		}
		facts = append(facts, f)
	}
	return facts
}

// as is a received attempt, if it had other ends.
func (s sighting) as(e ends) sighting {
	s.src, s.dst = e.local, e.remote
	s.peer = netip.AddrPortFrom(s.src.Addr(), s.dst.Port())
	return s
}

// fromAny accepts any port of an address.
func fromAny(addr netip.Addr) func(netip.AddrPort) bool {
	return func(src netip.AddrPort) bool { return src.Addr() == addr && src.Port() != 0 }
}

func (a act) receiver() *namespace {
	if a.never || a.lost {
		return nil
	}
	if a.beyond != nil {
		return a.beyond
	}
	return a.by.ns
}

// handle is a socket that an agent keeps.
type handle struct {
	by   *agent
	name string
}

// open has an agent open a socket and keep it.
func (s *stage) open(by *agent, step attempt.Step) handle {
	s.t.Helper()
	s.opened++
	step.Socket = fmt.Sprint("socket ", s.opened)
	if step.Do == "" {
		step.Do = attempt.Open
		if step.Protocol == attempt.TCP {
			step.Do = attempt.Listen
		}
	}
	s.perform([]act{{by: by, step: step}})
	return handle{by: by, name: step.Socket}
}

// shut closes sockets that are kept.
func (s *stage) shut(all ...handle) {
	s.t.Helper()
	var acts []act
	for _, h := range all {
		acts = append(acts, act{by: h.by, step: attempt.Step{Do: attempt.Close, Socket: h.name}})
	}
	s.perform(acts)
}

// pass gives a socket to another agent.
func (s *stage) pass(h handle, to *agent) handle {
	s.t.Helper()
	s.perform([]act{{by: h.by, step: attempt.Step{Do: attempt.Give, Socket: h.name, To: to.pid}}})
	s.perform([]act{{by: to, step: attempt.Step{Do: attempt.Take, Socket: h.name}}})
	return handle{by: to, name: h.name}
}

// is are agents as those who may be named.
func (s *stage) is(agents ...*agent) []attempt.Process {
	var all []attempt.Process
	for _, a := range agents {
		all = append(all, s.selves[a])
	}
	return all
}
