// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// fate is what became of an attempt, as an event tells it; zero: it is the attempt.
type fate struct {
	kind gadget.Kind
	refusal
	tx, rx uint64
}

func (o fate) String() string {
	switch o.kind {
	case gadget.Attempt:
		return ""
	case gadget.Failed:
		return fmt.Sprintf(", failed: error %d, %s %s by %s, ICMP %d/%d, drop %d", int(o.errno), o.cause, o.reason, o.by, o.icmpType, o.icmpCode, o.drop)
	default:
		return fmt.Sprintf(", %s, %d bytes sent and %d received", o.kind, o.tx, o.rx)
	}
}

// withFate is an event with all that it says.
func withFate(e gadget.Event) seen {
	s := fromEvent(e)
	s.fate = fate{
		kind: e.Kind, tx: e.TxBytes, rx: e.RxBytes,
		refusal: refusal{e.Error, e.Cause, e.Reason, e.By, e.ICMPType, e.ICMPCode, e.Drop},
	}
	s.took, s.lasted = e.Latency, e.Duration
	return s
}

// sinceBoot is the time as agents tell it, in ns.
func sinceBoot() int64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // fails for no clock that there is
	return now.Nano()
}

var begun = fate{kind: gadget.Established}

func over(tx, rx int) fate {
	return fate{kind: gadget.Closed, tx: uint64(tx), rx: uint64(rx)}
}

func failed(how refusal) []fate { return []fate{{kind: gadget.Failed, refusal: how}} }

// talked is what becomes of a connection, by what its two sides said.
func talked(server attempt.Report) func(attempt.Report) (sent, received []fate) {
	return func(caller attempt.Report) (sent, received []fate) {
		return []fate{begun, over(caller.Sent, caller.Received)}, []fate{begun, over(server.Sent, server.Received)}
	}
}

// refusedAs is what becomes of an attempt that fails for who called, with the error
// that was got, and as received says where it arrives.
func refusedAs(how refusal, received ...fate) func(attempt.Report) (_, _ []fate) {
	return func(caller attempt.Report) ([]fate, []fate) {
		own := how
		if own.errno == 0 {
			own.errno = unix.Errno(caller.Errno)
		}
		return failed(own), received
	}
}

var gaveUp = refusal{errno: unix.ECONNABORTED, cause: "gave-up"}

// fates are the events that tell what became of an act.
func (a act) fates(report attempt.Report, made []fact) []fact {
	if a.became == nil {
		return nil
	}
	var all []fact
	sent, received := a.became(report)
	add := func(f fact, fates []fate, retries int) {
		f.retries = uint32(retries)
		for _, f.fate = range fates {
			all = append(all, a.timed(f, report))
		}
	}
	for _, f := range made {
		switch {
		case f.egress && f.retries == 0:
			add(f, sent, max(0, report.Packets-1))
		case !f.egress && len(f.owners) == 0: // nobody has taken it: each fails
			add(f, received, int(f.retries))
		case !f.egress && f.retries == 0:
			add(f, received, 0)
		}
	}
	return all
}

// timed is a fact, with what the programs have measured of it.
func (a act) timed(f fact, report attempt.Report) fact {
	f.within, f.lasted, f.began = 0, 0, report.Began
	if f.source != nil { // it may be another one of the same ends
		f.began = 0
	}
	// Until Linux 6.10 who polls for a failure is told before the socket is closed.
	told := f.kind == gadget.Failed && a.step.NonBlocking
	// Who is fast can be accepted before its handshake is over.
	accepted := a.served.Began > 0 && !a.step.FastOpen && f.source == nil
	switch {
	case f.kind == gadget.Closed && f.egress:
		f.lasted = report.Talked
	case f.kind == gadget.Closed && accepted:
		f.lasted = a.served.Talked
	case f.kind == gadget.Established && !f.egress && accepted:
		f.within = time.Duration(a.served.Began - report.Began)
	case f.egress && !told:
		f.within = report.Took
	}
	return f
}

func outcomeCases() []whoCase {
	return slices.Concat(talkCases(), sharedCases(), failingCases(), routeCases(), arrivingCases(), translatedCases())
}

// TestOutcomes makes attempts of which it is known how they go on: each is followed
// by what became of it, once.
func TestOutcomes(t *testing.T) {
	names, err := regexp.Compile(*wantedCases)
	if err != nil {
		t.Fatal(err)
	}
	for _, param := range []string{"lifecycle", "failed-only"} {
		t.Run(param, func(t *testing.T) {
			cases := casesHere(t, outcomeCases(), names)
			attempts := *wantedAttempts
			if param == "failed-only" {
				attempts /= 10
			}
			s := newStage(t, max(2*callers, attempts*4/3/len(cases)))
			if param == "failed-only" {
				s.keep = func(f fact) bool { return f.kind == gadget.Failed }
			}
			for _, ns := range s.pair.ends {
				ns.sysctl(t, "ipv4/tcp_syn_linear_timeouts", "0") // else they come on top of TCP_SYNCNT
				ns.sysctl(t, "ipv4/tcp_synack_retries", "1")
			}
			s.watch(map[string]string{param: "true"}, func() {
				for _, c := range cases {
					start := time.Now()
					c.play(s, c.name)
					t.Logf("%s: %v", c.name, time.Since(start).Round(time.Millisecond))
				}
			})
			s.score.check(t)
		})
	}
}

// talkCases are connections that succeed.
func talkCases() []whoCase {
	return eachFamily(talks, []how{
		{name: "talk: plain"},
		{name: "talk: non-blocking", step: attempt.Step{NonBlocking: true, Waits: true}},
		{name: "talk: from threads", step: attempt.Step{Thread: true}},
		{name: "talk: io_uring, submitted", step: attempt.Step{Uring: attempt.Submitted}, needs: lacksUring},
		{name: "talk: io_uring, by a worker", step: attempt.Step{Uring: attempt.Worker}, needs: lacksUring},
		{name: "talk: io_uring, polled for", step: attempt.Step{Uring: attempt.Polled}, needs: lacksUring},
		{name: "talk: fast open", step: attempt.Step{FastOpen: true}},
		{name: "talk: fast open, by connect", step: attempt.Step{FastOpen: true, Deferred: true}},
		{name: "talk: MPTCP", step: attempt.Step{MPTCP: true}, needs: lacksMPTCP},
	})
}

// how is a way to call.
type how struct {
	name  string
	step  attempt.Step
	needs func() error
}

// eachFamily plays each way from sockets of IPv4 and IPv6, and then from those of
// IPv6 that call IPv4.
func eachFamily(play func(attempt.Step) func(*stage, string), ways []how) []whoCase {
	var cases []whoCase
	for _, w := range ways {
		mapped := w.step
		mapped.DualStack = true
		cases = append(cases, whoCase{name: w.name, play: play(w.step), needs: w.needs},
			whoCase{name: w.name + ", IPv4 from IPv6 sockets", play: play(mapped), needs: w.needs})
	}
	return cases
}

// familyFor is the one that is called.
func familyFor(how attempt.Step, family int) int {
	if how.DualStack {
		return 4
	}
	return family
}

// mixedFamily has each third group of calls of IPv4 made from sockets of IPv6.
func mixedFamily(i int) (family int, dualStack bool) { return []int{4, 6, 4}[i%3], i%3 == 2 }

// talkSizes are of the turns, in bytes.
var talkSizes = []int{0, 1, 1000, 100_000}

// talkOf is one of many different ones. Who resets the connection has not said
// anything that may be on its way.
func talkOf(i int, how attempt.Step) attempt.Talk {
	n := len(talkSizes)
	t := attempt.Talk{
		Turns:      []int{talkSizes[i%n], talkSizes[(i+i/n)%n]},
		ServerEnds: i%2 == 1, Reset: i/2%2 == 1 && !how.MPTCP, Unread: i%3 == 0 && !how.MPTCP,
	}
	if how.FastOpen {
		t.Turns[0] = max(t.Turns[0], len(attempt.Hello))
	}
	if t.ServerEnds && t.Reset {
		t.Turns = append(t.Turns, 1)
	}
	return t
}

// talks has all callers call servers, here and at the other end, and talk.
func talks(how attempt.Step) func(*stage, string) {
	return func(s *stage, name string) {
		for i := range max(4, s.attempts/callers) { // both families, here and there
			s.talk(name, i, familyFor(how, families[i/2%2]), how)
		}
	}
}

// talk is one group of callers that all have the same talk with one server.
func (s *stage) talk(name string, i, family int, how attempt.Step) {
	s.t.Helper()
	port := newPort(attempt.TCP)
	t := talkOf(i, how)
	server, dst, beyond := s.servers[i%servers], host(family, i%hosts), (*namespace)(nil)
	if i%2 == 1 {
		server, dst, beyond = s.away[i/2%aways], overVeth.address(family, 2), s.pair.ends[1]
	}
	serves := attempt.Step{Src: at(anyHost(family), port), Talk: &t, Count: callers, FastOpen: how.FastOpen, MPTCP: how.MPTCP}
	if how.DualStack && i%3 > 0 {
		serves.Src, serves.DualStack = at(anyHost(6), port), true
	}
	h := s.serve(server, serves)
	var acts []act
	for _, by := range s.callers {
		step := how
		step.Do, step.Protocol, step.Dst, step.Talk, step.Lingers = attempt.Call, attempt.TCP, at(dst, port), &t, true
		acts = append(acts, act{by: by, step: step, to: s.is(server), beyond: beyond, worker: how.Uring != ""})
	}
	s.settleTalks(name, acts, s.perform(acts), h, len(acts))
}

// serve has an agent serve so many talks.
func (s *stage) serve(by *agent, step attempt.Step) handle {
	s.t.Helper()
	step.Do, step.Protocol, step.Lingers = attempt.Serve, attempt.TCP, true
	return s.open(by, step)
}

// settleTalks settles what follows from calls, when the server of the first of them
// has talked so often.
func (s *stage) settleTalks(name string, acts []act, reports []attempt.Report, server handle, count int) {
	s.t.Helper()
	served := map[netip.AddrPort]attempt.Report{}
	told := s.perform([]act{{by: server.by, step: attempt.Step{Do: attempt.Served, Socket: server.name, Count: count}}})
	for _, one := range told[0].Steps {
		served[one.Src] = one
	}
	calls := map[netip.AddrPort]int{}
	for i := range acts {
		calls[reports[i].Src]++
	}
	for i := range acts {
		if acts[i].became != nil {
			continue
		}
		one, known := served[reports[i].Src]
		// NAT has changed that, or a socket has called again: all have the same talk.
		if !known || calls[reports[i].Src] > 1 {
			one = attempt.Report{Sent: told[0].Steps[0].Sent, Received: told[0].Steps[0].Received}
		}
		acts[i].became, acts[i].served = talked(one), one
	}
	s.settle(name, acts, reports)
	s.shut(server)
}

// failingCases are attempts that fail.
func failingCases() []whoCase {
	patient := attempt.Step{NonBlocking: true, Waits: true, SYNRetries: 1}
	blocking := attempt.Step{SYNRetries: 1}
	stopped := func(how attempt.Step) func(*stage, string) {
		return signalled(how, unix.SIGSTOP, refusal{cause: "silence"})
	}
	killed := func(how attempt.Step) func(*stage, string) { return signalled(how, unix.SIGKILL, gaveUp) }
	return slices.Concat(
		eachFamily(closedPorts, []how{
			{name: "fails: closed port"},
			{name: "fails: closed port, non-blocking", step: attempt.Step{NonBlocking: true, Waits: true}},
			{name: "fails: closed port, io_uring, submitted", step: attempt.Step{Uring: attempt.Submitted}, needs: lacksUring},
			{name: "fails: closed port, io_uring, by a worker", step: attempt.Step{Uring: attempt.Worker}, needs: lacksUring},
			{name: "fails: closed port, io_uring, polled for", step: attempt.Step{Uring: attempt.Polled}, needs: lacksUring},
			{name: "fails: closed port, fast open", step: attempt.Step{FastOpen: true, Talk: &attempt.Talk{}}},
			{name: "fails: closed port, MPTCP", step: attempt.Step{MPTCP: true}, needs: lacksMPTCP},
		}),
		eachFamily(silent, []how{{name: "fails: silence", step: patient}, {name: "fails: silence, blocking", step: blocking}}),
		eachFamily(givenUp(false), []how{{name: "fails: given up by close"}}),
		eachFamily(givenUp(true), []how{{name: "fails: given up by AF_UNSPEC"}}),
		eachFamily(killed, []how{{name: "fails: caller killed", step: blocking}}),
		eachFamily(stopped, []how{{name: "fails: caller stopped and continued", step: blocking}}),
		eachFamily(droppedByReceiver, []how{{name: "fails: dropped by the receiver", step: patient}}),
		eachFamily(denied, []how{{name: "fails: dropped in OUTPUT", step: patient}}),
	)
}

// failing has all callers make calls that fail, a part of the attempts.
func (s *stage) failing(name string, part int, call func(i, family int, a *act)) {
	s.t.Helper()
	var acts []act
	for i := range max(callers, s.attempts/part) {
		a := act{by: s.callers[i%callers]}
		call(i, families[(i/2+i/callers)%2], &a)
		a.step.Do, a.step.Protocol = attempt.Call, attempt.TCP
		acts = append(acts, a)
	}
	s.wave(name, acts)
}

// closedPorts are those of this end and of the other.
func closedPorts(how attempt.Step) func(*stage, string) {
	return func(s *stage, name string) {
		port := newPort(attempt.TCP)
		s.failing(name, 1, func(i, family int, a *act) {
			family = familyFor(how, family)
			src, dst := host(family, 2), host(family, i%hosts)
			if i%2 == 1 {
				src, dst, a.beyond = overVeth.address(family, 1), overVeth.address(family, 2), s.pair.ends[1]
			}
			a.step, a.worker = how, how.Uring != ""
			a.step.Src, a.step.Dst = at(src, 0), at(dst, port)
			by := refusal{cause: "rst", by: dst}
			a.became = refusedAs(by, failed(by)...)
		})
	}
}

// unheard is a call of a host that does not answer.
func unheard(how attempt.Step, family int, a *act) {
	a.step, a.lost, family = how, true, familyFor(how, family)
	a.step.Src, a.step.Dst = at(overVeth.address(family, 1), newSource()), at(overVeth.address(family, nobody), tcpPort)
}

func silent(how attempt.Step) func(*stage, string) {
	return func(s *stage, name string) {
		s.failing(name, 10, func(_, family int, a *act) {
			unheard(how, family, a)
			a.became = refusedAs(refusal{cause: "silence"})
		})
	}
}

// givenUp calls are ended by the application at once: it closes the socket, or keeps
// it.
func givenUp(kept bool) func(attempt.Step) func(*stage, string) {
	return func(how attempt.Step) func(*stage, string) {
		how.NonBlocking, how.GivesUp = true, true
		return func(s *stage, name string) {
			s.failing(name, 2, func(i, family int, a *act) {
				unheard(how, family, a)
				if kept {
					a.step.Socket = fmt.Sprint(name, i)
				}
				a.became = refusedAs(gaveUp)
			})
		}
	}
}

// signalled callers get a signal while they wait for the answer of a silent host.
func signalled(how attempt.Step, signal unix.Signal, ends refusal) func(*stage, string) {
	how.Signal = int(signal)
	return func(s *stage, name string) {
		s.failing(name, 10, func(_, family int, a *act) {
			unheard(how, family, a)
			a.child, a.parent.Signal = true, int(signal)
			a.became = refusedAs(ends)
		})
	}
}

// droppedByReceiver: the firewall of the other end lets nothing pass.
func droppedByReceiver(how attempt.Step) func(*stage, string) {
	return func(s *stage, name string) {
		port := newPort(attempt.TCP)
		defer s.pair.ends[1].addRules(s.t, func(r *rules) {
			r.add(filterInput, r.transport(), matchPort(portAt, port), drop())
		})()
		s.failing(name, 10, func(_, family int, a *act) {
			unheard(how, family, a)
			a.step.Dst, a.lost, a.beyond = at(overVeth.address(familyFor(how, family), 2), port), false, s.pair.ends[1]
			a.became = refusedAs(refusal{cause: "silence"}, failed(refusal{cause: "local-drop"})...)
		})
	}
}

// denied: the firewall lets nothing out.
func denied(how attempt.Step) func(*stage, string) {
	return func(s *stage, name string) {
		_, undo := ruled(&expr.Verdict{Kind: expr.VerdictDrop})(s)
		defer undo()
		port := newPort(attempt.TCP)
		s.failing(name, 10, func(_, family int, a *act) {
			unheard(how, family, a)
			a.step.Dst, a.never = at(ofServices.address(familyFor(how, family), 7), port), true
			a.became = refusedAs(refusal{cause: "denied", reason: "output-hook"})
		})
	}
}

// sharedCases are sockets that have several owners, or several lives.
func sharedCases() []whoCase {
	return []whoCase{
		{name: "talk: passed on by SCM_RIGHTS", play: passedTalks(passed)},
		{name: "talk: passed on, and the caller is gone", play: passedTalks(outlived)},
		{name: "talk: passed on to a child", play: passedTalks(inherited)},
		{name: "talk: a socket that calls again after AF_UNSPEC", play: callingAgain},
		{name: "talk: with oneself", play: withOneself},
		{name: "talk: simultaneous open", play: simultaneous},
	}
}

// How a connection gets to another process than the one that called.
const (
	passed = iota
	outlived
	inherited
)

// passedTalks are had by another process than the one that called.
func passedTalks(how int) func(*stage, string) {
	return func(s *stage, name string) {
		for i := range max(3, s.attempts/2/callers) {
			family, dualStack := mixedFamily(i)
			port, t := newPort(attempt.TCP), talkOf(i, attempt.Step{})
			server := s.serve(s.servers[0], attempt.Step{Src: at(anyHost(family), port), Talk: &t, Count: callers})
			var acts []act
			for j, by := range s.callers {
				step := attempt.Step{
					Do: attempt.Call, Protocol: attempt.TCP, Dst: at(host(family, j%hosts), port), Lingers: true, Socket: fmt.Sprint(name, j), DualStack: dualStack,
				}
				a := act{by: by, to: s.is(s.servers[0]), step: step}
				if how == outlived {
					a.child, a.then = true, []attempt.Step{{Do: attempt.Give, Socket: step.Socket, To: s.heir(j).pid}}
				}
				acts = append(acts, a)
			}
			reports := s.perform(acts)
			for j, said := range s.talkForThem(acts, t, how) {
				reports[j].Sent, reports[j].Received, reports[j].Talked = said.Sent, said.Received, said.Talked
			}
			s.settleTalks(name, acts, reports, server, callers)
		}
	}
}

// heir is who gets the connection of a caller.
func (s *stage) heir(caller int) *agent { return s.callers[(caller+2)%callers] }

// talkForThem has the others talk who have the callers' sockets.
func (s *stage) talkForThem(acts []act, t attempt.Talk, how int) []attempt.Report {
	s.t.Helper()
	var talks []act
	for j, a := range acts {
		h := handle{by: a.by, name: a.step.Socket}
		talk := act{by: a.by, step: attempt.Step{Do: attempt.Converse, Socket: h.name, Talk: &t}}
		switch how {
		case passed:
			talk.by = s.pass(h, s.heir(j)).by
		case outlived:
			talk.by = s.heir(j)
			s.perform([]act{{by: talk.by, step: attempt.Step{Do: attempt.Take, Socket: h.name}}})
		case inherited:
			talk.child, talk.inherit = true, []string{h.name}
			// Closed by both, one after the other.
			defer s.shut(h)
		}
		talks = append(talks, talk)
	}
	return s.perform(talks)
}

// callingAgain has a socket give up a call, make another one from the same port, take
// its connection back, and call once more.
func callingAgain(s *stage, name string) {
	for i := range max(3, s.attempts/3/callers) {
		family, dualStack := mixedFamily(i)
		port, t := newPort(attempt.TCP), attempt.Talk{Turns: []int{10, 20}, Reset: true}
		server := s.serve(s.away[0], attempt.Step{Src: at(anyHost(family), port), Talk: &t, Count: 2 * callers})
		var acts, last []act
		for _, by := range s.callers {
			h := handle{by: by, name: name}
			first := act{by: by, became: refusedAs(gaveUp)}
			unheard(attempt.Step{NonBlocking: true, GivesUp: true, DualStack: dualStack}, family, &first)
			first.step.Do, first.step.Protocol, first.step.Socket = attempt.Call, attempt.TCP, h.name
			again := act{by: by, to: s.is(s.away[0]), beyond: s.pair.ends[1], step: attempt.Step{
				Do: attempt.Call, Protocol: attempt.TCP, Socket: h.name, NonBlocking: true, Waits: true, DualStack: dualStack,
				Dst: at(overVeth.address(family, 2), port), Talk: &t,
			}}
			disconnect := act{by: by, step: attempt.Step{Do: attempt.Disconnect, Socket: h.name}}
			acts = append(acts, first, again, disconnect)
			last = append(last, again, act{by: by, step: attempt.Step{Do: attempt.Close, Socket: h.name}})
		}
		reports := s.perform(acts)
		// A SYN that overtakes the RST meets the connection, and is dropped.
		s.perform([]act{{by: server.by, step: attempt.Step{Do: attempt.Served, Socket: server.name, Count: callers}}})
		reports = append(reports, s.perform(last)...)
		s.settleTalks(name, append(acts, last...), reports, server, callers)
	}
}

// withOneself has a socket call its own address: two attempts, each with its end.
func withOneself(s *stage, name string) {
	var acts []act
	for i := range max(3*callers, s.attempts/2) {
		t := talkOf(i, attempt.Step{})
		family, dualStack := mixedFamily(i / callers)
		own := at(host(family, i%hosts), newPort(attempt.TCP))
		by := s.callers[i%callers]
		acts = append(acts, act{by: by, to: s.is(by), became: withItself, step: attempt.Step{
			Do: attempt.Call, Protocol: attempt.TCP, Src: own, Dst: own, Talk: &t, Lingers: true, DualStack: dualStack,
		}})
	}
	s.wave(name, acts)
}

func withItself(r attempt.Report) (sent, received []fate) {
	all := []fate{begun, over(r.Sent, r.Received)}
	return all, all
}

// simultaneous has two sockets call each other. The first SYN is dropped where it
// arrives, so that the other one meets a socket that has called.
func simultaneous(s *stage, name string) {
	empty := []fate{begun, over(0, 0)}
	for i := range max(3, s.attempts/10) {
		family, dualStack := mixedFamily(i)
		one := handle{by: s.callers[i%callers], name: "one"}
		other := handle{by: s.away[i%aways], name: "other"}
		ends := [2]netip.AddrPort{at(overVeth.address(family, 1), newPort(attempt.TCP)), at(overVeth.address(family, 2), newPort(attempt.TCP))}
		call := attempt.Step{Do: attempt.Call, Protocol: attempt.TCP, NonBlocking: true, DualStack: dualStack}
		first := act{by: one.by, beyond: other.by.ns, step: call, became: func(attempt.Report) (_, _ []fate) {
			return empty, failed(refusal{cause: "local-drop"})
		}}
		first.step.Socket, first.step.Src, first.step.Dst = one.name, ends[0], ends[1]
		second := act{by: other.by, beyond: one.by.ns, to: s.is(one.by), step: call, became: func(attempt.Report) (_, _ []fate) {
			return empty, empty
		}}
		second.step.Socket, second.step.Src, second.step.Dst, second.step.Waits = other.name, ends[1], ends[0], true
		pass := s.pair.ends[1].addRules(s.t, func(r *rules) {
			r.add(filterInput, r.transport(), matchPort(portAt, int(ends[1].Port())), drop())
		})
		reports := s.perform([]act{first})
		pass()
		reports = append(reports, s.perform([]act{second})...)
		s.perform([]act{{by: one.by, step: attempt.Step{Do: attempt.Await, Socket: one.name}}})
		s.shut(one, other)
		s.settle(name, []act{first, second}, reports)
	}
}

// routeCases are calls for which there is no way.
func routeCases() []whoCase {
	var cases []whoCase
	for _, c := range []struct {
		to  path
		set func(*stage) (*agent, func())
		how refusal
	}{
		{unreachable, routed(unreachable, unix.RTN_UNREACHABLE), refusal{cause: "no-route", reason: "unreachable"}},
		{prohibited, routed(prohibited, unix.RTN_PROHIBIT), refusal{cause: "no-route", reason: "prohibit"}},
		{blackholed, routed(blackholed, unix.RTN_BLACKHOLE), refusal{cause: "no-route", reason: "blackhole"}},
		{routeless, unset, refusal{cause: "no-route", reason: "none-matches"}},
	} {
		play := func(how attempt.Step) func(*stage, string) {
			return func(s *stage, name string) {
				_, undo := c.set(s)
				defer undo()
				s.failing(name, 4, func(i, family int, a *act) {
					a.never, a.became, family = true, refusedAs(c.how), familyFor(how, family)
					a.step = how
					a.step.Dst, a.step.NonBlocking = at(c.to.address(family, 7), tcpPort), i%2 == 0
					if i%4 < 2 {
						a.step.Src = at(overVeth.address(family, 1), newSource())
					}
				})
			}
		}
		cases = append(cases, eachFamily(play, []how{
			{name: "fails: route " + c.how.reason, step: attempt.Step{Unsure: true, Waits: true}},
		})...)
	}
	return append(cases, whoCase{name: "fails: no port is free", play: noPort})
}

// noPort leaves callers one port, which each has in use to the same destination.
func noPort(s *stage, name string) {
	left := s.pair.ends[0]
	left.sysctl(s.t, "ipv4/ip_local_port_range", "40000 40000")
	defer left.sysctl(s.t, "ipv4/ip_local_port_range", "32768 60999")
	for i := range max(3, s.attempts/20) {
		family, dualStack := mixedFamily(i)
		port := newPort(attempt.TCP)
		listener := s.open(s.away[0], attempt.Step{Protocol: attempt.TCP, Src: at(anyHost(family), port)})
		step := attempt.Step{Do: attempt.Call, Protocol: attempt.TCP, Dst: at(overVeth.address(family, 2), port), Unsure: true, DualStack: dualStack}
		by := s.callers[i%callers]
		first := act{by: by, to: s.is(s.away[0]), beyond: s.pair.ends[1], step: step, became: withItself}
		first.step.Socket = "only"
		second := act{by: by, never: true, step: step, became: refusedAs(refusal{cause: "no-port"})}
		reports := s.perform([]act{first, second})
		s.shut(handle{by: by, name: "only"}, listener)
		s.settle(name, []act{first, second}, reports)
	}
}

// arrivingCases are attempts that go no further where they arrive.
func arrivingCases() []whoCase {
	return []whoCase{
		{name: "arrives: half-open, reset by who called", play: halfOpen(false)},
		{name: "arrives: half-open, and never finished", play: halfOpen(true)},
		{name: "arrives: the queue is full", play: fullQueue},
	}
}

// halfOpen has callers scan: their kernel resets what their raw sockets began, or
// does not hear of it.
func halfOpen(deaf bool) func(*stage, string) {
	return func(s *stage, name string) {
		port := newPort(attempt.TCP)
		if deaf {
			defer s.pair.ends[0].addRules(s.t, func(r *rules) {
				r.add(filterInput, r.transport(), matchPort(sourcePortAt, port), drop())
			})()
		}
		open := s.openAway(attempt.TCP, port)
		var acts []act
		for i := range max(2*rawCallers, s.attempts/2) {
			a := s.madeAct(attempt.TCP, attempt.Step{Do: attempt.Raw}, i, port, newSource())
			how := refusal{cause: "rst", by: a.step.Src.Addr()}
			if deaf {
				how = refusal{cause: "silence"}
			}
			a.became = func(attempt.Report) (_, _ []fate) { return nil, failed(how) }
			acts = append(acts, a)
		}
		s.wave(name, acts)
		s.shut(open...)
	}
}

// fullQueue has a listener whose only place in the queue is taken.
func fullQueue(s *stage, name string) {
	for _, family := range families {
		port := newPort(attempt.TCP)
		listener := s.open(s.away[0], attempt.Step{Protocol: attempt.TCP, Src: at(anyHost(family), port), Narrow: true})
		call := act{to: s.is(s.away[0]), beyond: s.pair.ends[1], step: attempt.Step{
			Do: attempt.Call, Protocol: attempt.TCP, Dst: at(overVeth.address(family, 2), port), NonBlocking: true, Waits: true, SYNRetries: 1,
		}}
		first := call
		first.by, first.step.Socket, first.became = s.callers[0], "first", withItself
		acts, reports := []act{first}, s.perform([]act{first})
		for i := range max(callers, s.attempts/4) {
			a := call
			a.by, a.step.Src = s.callers[i%callers], at(overVeth.address(family, 1), newSource())
			a.became = refusedAs(refusal{cause: "silence"}, failed(refusal{cause: "local-drop", reason: "accept-queue-full"})...)
			acts = append(acts, a)
		}
		reports = append(reports, s.perform(acts[1:])...)
		s.shut(listener, handle{by: first.by, name: first.step.Socket})
		s.settle(name, acts, reports)
	}
}
