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

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// refusal is how an attempt has failed. Two are the same if ==.
type refusal struct {
	errno         unix.Errno // that the application got; 0 of what was received
	cause, reason string
	by            netip.Addr
	icmpType      uint8
	icmpCode      uint8
	drop          uint32 // the kernel's reason, where it was asked; 0: none
}

// sentAndFailed are the attempts that a caller's namespace has seen leave, and how
// they failed; what reaches no device is one.
func sentAndFailed(t *testing.T, report attempt.Report, ns *namespace, never bool, how refusal) []want {
	t.Helper()
	if report.Errno == 0 {
		t.Fatalf("%s -> %s: wanted it to fail, got %q", report.Src, report.Dst, report.Error)
	}
	how.errno = unix.Errno(report.Errno)
	retries := report.Packets - 1
	if never {
		report.Packets = 1
	}
	all := wants(report, attempt.TCP, ns, nil, attempt.Process{}, report.Error)
	last := all[len(all)-1]
	last.fate, last.retries = failed(how)[0], uint32(retries)
	return append(all, last)
}

// receivedAndFailed are the attempts that a namespace has seen arrive, each of which
// has failed.
func receivedAndFailed(report attempt.Report, ns *namespace, how refusal) []want {
	all := wants(report, attempt.TCP, nil, ns, attempt.Process{}, report.Error)
	for _, w := range slices.Clone(all) {
		w.fate = failed(how)[0]
		all = append(all, w)
	}
	return all
}

// calling are the events of calls of some ports.
func calling(events []seen, ports ...int) []seen {
	return slices.DeleteFunc(slices.Clone(events), func(e seen) bool { return !slices.Contains(ports, int(e.dst.Port())) })
}

// line is a client that reaches a server by a router.
type line struct {
	*stage
	client, router, server node
}

// newLine has no host spare a message of ICMP, or a SYN be sent more than twice.
func newLine(t *testing.T) line {
	t.Helper()
	n := newNetwork(t)
	l := line{router: n.router}
	for _, h := range n.neighbours {
		switch h.path {
		case overPlain.path:
			l.client = h
		case overBridge.path:
			l.server = h
		}
	}
	for _, h := range []node{l.client, l.router, l.server} {
		h.ns.sysctl(t, "ipv4/icmp_ratelimit", "0")
		h.ns.sysctl(t, "ipv6/icmp/ratelimit", "0")
		h.ns.sysctl(t, "ipv4/tcp_syn_linear_timeouts", "0")
	}
	ends := [2]*namespace{l.client.ns, l.server.ns}
	l.stage = &stage{t: t, pair: &pair{ends: ends}, selves: map[*agent]attempt.Process{}}
	return l
}

func (l line) pids() []int {
	return []int{l.client.caller.pid, l.router.caller.pid, l.server.caller.pid}
}

// The line's addresses.
func (l line) clientAddr(family int) netip.Addr { return l.client.path.address(family, neighbour) }
func (l line) serverAddr(family int) netip.Addr { return l.server.path.address(family, neighbour) }
func (l line) routerAddr(family int) netip.Addr { return l.client.path.address(family, router) }

// patientCall is a call that gives up after 3 s, when it has sent its SYN twice.
func patientCall(src, dst netip.Addr, port int) attempt.Request {
	return attempt.Request{Protocol: attempt.TCP, Src: at(src, 0), Dst: at(dst, port), SYNRetries: 1, NonBlocking: true}
}

// askWhoIsFree has each request carried out by one of the agents, and returns the
// reports in the order of the requests.
func askWhoIsFree(t *testing.T, agents []*agent, requests []attempt.Request) []attempt.Report {
	t.Helper()
	next := make(chan int, len(requests))
	for i := range requests {
		next <- i
	}
	close(next)
	reports, errs := make([]attempt.Report, len(requests)), make([]error, len(requests))
	var wg sync.WaitGroup
	for _, a := range agents {
		wg.Go(func() {
			for i := range next {
				reports[i], errs[i] = a.ask(requests[i])
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return reports
}

// Codes of ICMP's "destination unreachable" that nftables rejects with, by IP
// version, and what they are called.
var icmpCodes = map[int]map[uint8]string{
	4: {
		0: "net-unreachable", 1: "host-unreachable", 2: "protocol-unreachable", 3: "port-unreachable",
		9: "net-prohibited", 10: "host-prohibited", 13: "admin-prohibited",
	},
	6: {
		0: "no-route", 1: "admin-prohibited", 3: "address-unreachable", 4: "port-unreachable",
		5: "source-policy", 6: "reject-route",
	},
}

// byICMP is a refusal by "destination unreachable".
func byICMP(family int, code uint8, by netip.Addr) refusal {
	return refusal{
		cause: "icmp", reason: icmpCodes[family][code], by: by,
		icmpType: map[int]uint8{4: 3, 6: 1}[family], icmpCode: code,
	}
}

func reject(code uint8) expr.Any { return &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: code} }

// wall is a firewall on the way from the client to the server.
type wall struct {
	name  string
	ns    *namespace
	chain nftables.Chain
	own   func(family int) netip.Addr // the address that its messages bear
	// drop is what a drop is for the client. never: no SYN leaves it; arrives: one is
	// seen by the server.
	drop           refusal
	never, arrives bool
}

func (l line) walls() []wall {
	silence, denied := refusal{cause: "silence"}, refusal{cause: "denied", reason: "output-hook"}
	return []wall{
		{name: "OUTPUT of the client", ns: l.client.ns, chain: filterOutput, own: l.clientAddr, drop: denied, never: true},
		{name: "FORWARD of the router", ns: l.router.ns, chain: filterForward, own: l.routerAddr, drop: silence},
		{name: "INPUT of the server", ns: l.server.ns, chain: filterInput, own: l.serverAddr, drop: silence, arrives: true},
	}
}

// walled is a call of a port that a firewall has a rule for.
type walled struct {
	wall
	family int
	port   int
	rule   expr.Any
	how    refusal
}

// calls are one for each verdict of a firewall, each of a port of its own.
func (w wall) calls(called func(family int) netip.Addr) []walled {
	var calls []walled
	for _, family := range families {
		add := func(rule expr.Any, how refusal) {
			calls = append(calls, walled{w, family, newPort(attempt.TCP), rule, how})
		}
		add(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}, refusal{cause: "rst", by: called(family)})
		add(&expr.Verdict{Kind: expr.VerdictDrop}, w.drop)
		for _, code := range slices.Sorted(maps.Keys(icmpCodes[family])) {
			add(reject(code), byICMP(family, code, w.own(family)))
		}
	}
	return calls
}

// ruleFor has the firewall do something with what is for a port, for as long as the
// namespace is there.
func ruleFor(r *rules, chain nftables.Chain, port int, what expr.Any) {
	r.add(chain, r.transport(), matchPort(portAt, port), []expr.Any{what})
}

// build puts the firewall up.
func (w wall) build(t *testing.T, calls []walled) {
	t.Helper()
	w.ns.addRules(t, func(r *rules) {
		for _, c := range calls {
			if c.family == r.family {
				ruleFor(r, w.chain, c.port, c.rule)
			}
		}
	})
}

// follows are the events that follow from a call.
func (c walled) follows(t *testing.T, l line, report attempt.Report) []want {
	t.Helper()
	sent := sentAndFailed(t, report, l.client.ns, c.never, c.how)
	if !c.arrives {
		return sent
	}
	how := c.how
	if how.cause == "silence" {
		how.cause = "local-drop"
	}
	return append(sent, receivedAndFailed(report, l.server.ns, how)...)
}

// TestFirewalls has a client call a server whose ports are open, but firewalls
// refuse each in another way.
func TestFirewalls(t *testing.T) {
	l := newLine(t)
	agents := []*agent{l.client.caller}
	for i := range 7 {
		agents = append(agents, startAgent(t, l.client.ns, agentOptions{name: fmt.Sprintf("refused-%d", i)}))
	}
	listener := l.start(l.server.ns, agentOptions{name: "behind-walls"})
	var calls []walled
	var ports []int
	var requests []attempt.Request
	for _, w := range l.walls() {
		mine := w.calls(l.serverAddr)
		w.build(t, mine)
		for _, c := range mine {
			l.open(listener, attempt.Step{Protocol: attempt.TCP, Src: at(anyHost(c.family), c.port)})
			requests = append(requests, patientCall(l.clientAddr(c.family), l.serverAddr(c.family), c.port))
			ports = append(ports, c.port)
		}
		calls = append(calls, mine...)
	}

	var reports []attempt.Report
	o := gadget.Options{NetNSOf: l.pids(), Params: map[string]string{"lifecycle": "true"}}
	events := watch(t, o, func() { reports = askWhoIsFree(t, agents, requests) })
	for i, c := range calls {
		t.Run(fmt.Sprintf("%s, IPv%d, %s %s", c.name, c.family, c.how.cause, c.how.reason), func(t *testing.T) {
			compare(t, calling(events, c.port), c.follows(t, l, reports[i]))
		})
	}
	if others := len(events) - len(calling(events, ports...)); others != 0 {
		t.Errorf("%d events of other ports", others)
	}
}

// riddle is an everyday one: a call that fails.
type riddle struct {
	name string
	dst  func(family int) netip.Addr
	how  func(family int) refusal
	// set has it fail, if not nil; who is met by it are the client's, or another whom
	// it returns.
	set func(port int) *agent
	// src is the caller's address, if not the client's.
	src func(family int) netip.Addr
	// arrives, if not nil, is how it has failed where it arrives, and for whom.
	arrives *refusal
	server  *attempt.Process
}

// always is a refusal that is the same with each family.
func always(cause, reason string) func(int) refusal {
	return func(int) refusal { return refusal{cause: cause, reason: reason} }
}

// riddles that everyone meets.
func (l line) riddles() []riddle {
	var listener attempt.Process
	return []riddle{
		{
			name: "a Service without endpoints", dst: ofPath(ofServices, 7),
			set: func(port int) *agent {
				l.client.ns.addRules(l.t, func(r *rules) {
					ruleFor(r, filterOutput, port, reject(map[int]uint8{4: 3, 6: 4}[r.family]))
				})
				return nil
			},
			how: func(family int) refusal {
				return byICMP(family, map[int]uint8{4: 3, 6: 4}[family], l.clientAddr(family))
			},
		},
		{
			name: "a blocked port of a container", dst: l.serverAddr, how: always("silence", ""),
			set: func(port int) *agent {
				l.router.ns.addRules(l.t, func(r *rules) { ruleFor(r, filterForward, port, &expr.Verdict{Kind: expr.VerdictDrop}) })
				return nil
			},
		},
		{
			name: "a full accept queue", dst: l.serverAddr, how: always("silence", ""),
			set:     func(port int) *agent { listener = l.fillQueue(port); return nil },
			arrives: &refusal{cause: "local-drop", reason: "accept-queue-full"}, server: &listener,
		},
		{
			name: "a dead host on the link", dst: ofPath(l.client.path, absent),
			set: func(int) *agent { l.client.ns.giveUpNeighboursSoon(l.t, l.client.path.device); return nil },
			how: func(family int) refusal {
				return byICMP(family, map[int]uint8{4: 1, 6: 3}[family], l.clientAddr(family))
			},
		},
		{
			name: "a wrong route", dst: ofPath(nowhere, 7),
			how: func(family int) refusal { return byICMP(family, 0, l.routerAddr(family)) },
		},
	}
}

// fillQueue has a listener of the server's accept nobody, when as many have connected
// as it has room for.
func (l line) fillQueue(port int) attempt.Process {
	l.t.Helper()
	by := l.start(l.server.ns, agentOptions{name: "busy"})
	first := l.start(l.client.ns, agentOptions{name: "first"})
	for _, family := range families {
		l.open(by, attempt.Step{Do: attempt.Listen, Protocol: attempt.TCP, Src: at(anyHost(family), port), Narrow: true})
		l.open(first, attempt.Step{Do: attempt.Call, Protocol: attempt.TCP, Dst: at(l.serverAddr(family), port)})
	}
	return l.selves[by]
}

// refusedHere are calls that the caller's own kernel refuses.
func (l line) refusedHere() []riddle {
	by := func(set func(*stage) (*agent, func())) func(int) *agent {
		return func(int) *agent {
			who, undo := set(l.stage)
			l.t.Cleanup(undo)
			return who
		}
	}
	all := []riddle{
		{name: "an unreachable route", dst: ofPath(unreachable, 7), set: by(routed(unreachable, unix.RTN_UNREACHABLE)), how: always("no-route", "unreachable")},
		{name: "a prohibiting route", dst: ofPath(prohibited, 7), set: by(routed(prohibited, unix.RTN_PROHIBIT)), how: always("no-route", "prohibit")},
		{name: "a route's black hole", dst: ofPath(blackholed, 7), set: by(routed(blackholed, unix.RTN_BLACKHOLE)), how: always("no-route", "blackhole")},
		{
			name: "no route", dst: ofPath(nowhere, 7), how: always("no-route", "none-matches"), src: l.routerAddr,
			set: func(int) *agent { return l.router.caller },
		},
		{name: "a cgroup's connect hook", dst: l.serverAddr, set: by(caged(denyConnect)), how: always("denied", "connect-hook")},
		{name: "a cgroup's output hook", dst: l.serverAddr, set: by(caged(dropSent)), how: always("denied", "output-hook")},
		{name: "traffic control that says nothing", dst: ofPath(overThief, neighbour), set: by(swallowed), how: always("local-drop", "")},
	}
	if canConfine() {
		all = append(all, riddle{name: "a security module", dst: l.serverAddr, set: by(confined), how: always("denied", "security-module")})
	}
	return all
}

// overThief is a device whose traffic control takes all for itself: nobody is told,
// and no tap sees it.
var overThief = path{"e2e-thief", 45}

func swallowed(s *stage) (*agent, func()) {
	left := s.pair.ends[0]
	remove := left.addUntil(s.t, &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: overThief.device}})
	left.setUp(s.t, overThief.device)
	for _, family := range families {
		left.address(s.t, overThief.device, overThief.prefix(family, 1))
	}
	left.control(s.t, overThief.device, netlink.HANDLE_MIN_EGRESS, &netlink.GenericAction{
		ActionAttrs: netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN},
	})
	return nil, remove
}

// canConfine is whether the kernel has a security module that a process can ask to
// forbid it connections: Landlock since Linux 6.7.
func canConfine() bool {
	const sinceConnections = 4 // of its interface
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	return errno == 0 && version >= sinceConnections
}

// confined has an agent to which Landlock forbids connections.
func confined(s *stage) (*agent, func()) {
	a := s.start(s.pair.ends[0], agentOptions{name: "confined"})
	if _, err := a.ask(attempt.Request{Steps: []attempt.Step{{Do: attempt.Confine}}}); err != nil {
		s.t.Fatal(err)
	}
	return a, func() {}
}

// posed is a riddle, who is to solve it, and of which port.
type posed struct {
	riddle
	by      *agent
	port    int
	reports []attempt.Report // by family
}

func (l line) pose(r riddle) *posed {
	p := &posed{riddle: r, port: newPort(attempt.TCP)}
	if r.set != nil {
		p.by = r.set(p.port)
	}
	if p.by == nil {
		p.by = l.start(l.client.ns, agentOptions{name: "puzzled"})
	}
	if p.src == nil {
		p.src = l.clientAddr
	}
	return p
}

func (p *posed) call() (err error) {
	p.reports = make([]attempt.Report, len(families))
	for i, family := range families {
		var failed error
		call := patientCall(p.src(family), p.dst(family), p.port)
		// Why a SYN did not leave is told by a kprobe, which the kernel skips now and
		// then: not twice.
		call.SYNRetries = 2
		p.reports[i], failed = p.by.ask(call)
		err = errors.Join(err, failed)
	}
	return err
}

// follows are the failures that follow, and nothing else.
func (p *posed) follows(t *testing.T, server *namespace) []want {
	t.Helper()
	var all []want
	for i, family := range families {
		sent := sentAndFailed(t, p.reports[i], p.by.ns, true, p.how(family))
		all = append(all, sent[len(sent)-1])
		if p.arrives != nil {
			w := wants(p.reports[i], attempt.TCP, nil, server, *p.server, p.name)[0]
			w.fate = failed(*p.arrives)[0]
			all = append(all, w)
		}
	}
	return all
}

// TestRiddles has failures that are hard to explain by what the application gets.
func TestRiddles(t *testing.T) {
	l := newLine(t)
	var all []*posed
	var ports []int
	for _, r := range slices.Concat(l.riddles(), l.refusedHere()) {
		p := l.pose(r)
		all, ports = append(all, p), append(ports, p.port)
	}
	o := gadget.Options{NetNSOf: l.pids(), Params: map[string]string{"failed-only": "true"}}
	events := watch(t, o, func() {
		errs := make([]error, len(all))
		var wg sync.WaitGroup
		for i, p := range all {
			wg.Go(func() { errs[i] = p.call() })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	})
	for _, p := range all {
		t.Run(p.name, func(t *testing.T) {
			mine := calling(events, p.port)
			for _, e := range mine {
				t.Logf("%s (pid %d): %s", e.owner.Comm, e.owner.PID, e.sighting)
			}
			compare(t, mine, p.follows(t, l.server.ns))
		})
	}
	if others := len(events) - len(calling(events, ports...)); others != 0 {
		t.Errorf("%d events of other ports", others)
	}
}
