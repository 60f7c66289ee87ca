// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// An end is a host, by its number, and a port of its.
type end struct {
	host byte
	port uint16
}

// over is the end's address in a version of IP.
func (e end) over(version int) netip.AddrPort {
	prefix := netip.MustParseAddr("198.51.100.0")
	if version == 6 {
		prefix = netip.MustParseAddr("2001:db8::")
	}
	b := prefix.AsSlice()
	b[len(b)-1] = e.host
	addr, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr, e.port)
}

// A word is what one end says to another, and whether it is an attempt.
type word struct {
	after    time.Duration // the word before
	from, to end
	attempt  bool
	tcp      bool // a SYN; else a datagram
}

// A talk is what ends say to each other.
type talk struct {
	name  string
	words []word
}

// hear sends the words over a wire, which has each of them sent and received,
// and compares what g reports of them.
func (c talk) hear(t *testing.T, w *wire, g *gadget, version int, wanted func(egress bool) bool) {
	t.Helper()
	g.forgetFlows(t)
	for i, said := range c.words {
		g.ageFlows(t, said.after)
		p := between(protoUDP, said.from.over(version), said.to.over(version))
		if said.tcp {
			p.proto = protoTCP
		}
		var want reports
		for _, egress := range []bool{true, false} {
			if said.attempt && wanted(egress) {
				want.add(p.event(egress, someNetNS))
			}
		}
		got, err := w.send(g, p)
		err = errors.Join(err,
			difference(p.frame(), got.egress, want.egress), difference(p.frame(), got.ingress, want.ingress))
		if err != nil {
			t.Errorf("word %d, from %v to %v: %v", i+1, p.from(), p.to(), err)
		}
	}
}

// hearAll has both directions reported, and each of them alone. All words go the
// same way over the wire, whoever says them, so that its ends are one namespace.
func hearAll(t *testing.T, params parameters, talks []talk) {
	w := newVeth(t, false)
	for _, c := range []struct {
		name, param string
		wanted      func(egress bool) bool
	}{
		{"both directions", "", func(bool) bool { return true }},
		{"egress-only", "egress_only", func(egress bool) bool { return egress }},
		{"ingress-only", "ingress_only", func(egress bool) bool { return !egress }},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := maps.Clone(params)
			if c.param != "" {
				all[c.param] = true
			}
			g := load(t, all)
			w.attachAsOne(t, g)
			for version, name := range map[int]string{4: "IPv4", 6: "IPv6"} {
				for _, talk := range talks {
					t.Run(talk.name+" over "+name, func(t *testing.T) { talk.hear(t, w, g, version, c.wanted) })
				}
			}
		})
	}
}

// TestAnAnswerBetweenLowPortsIsNoAttempt: what a low port says to another may be
// either, and what was said before tells.
func TestAnAnswerBetweenLowPortsIsNoAttempt(t *testing.T) {
	a, b, other := end{1, 123}, end{2, 123}, end{3, 123}
	asks := func(from, to end) word { return word{from: from, to: to, attempt: true} }
	answers := func(from, to end) word { return word{from: from, to: to} }
	later := func(after time.Duration, w word) word { w.after = after; return w }
	overTCP := func(w word) word { w.tcp = true; return w }
	hearAll(t, parameters{}, []talk{
		{"NTP", []word{asks(a, b), answers(b, a)}},
		{"IKE", []word{asks(end{1, 500}, end{2, 500}), answers(end{2, 500}, end{1, 500})}},
		{"DNS", []word{asks(end{1, 53}, end{2, 53}), answers(end{2, 53}, end{1, 53})}},
		{"DNS from another low port", []word{asks(end{1, 1023}, end{2, 53}), answers(end{2, 53}, end{1, 1023})}},
		{"two ports of a host", []word{asks(a, end{1, 53}), answers(end{1, 53}, a)}},

		{"several answers at once", []word{asks(a, b), answers(b, a), answers(b, a), later(300*time.Millisecond, answers(b, a))}},
		{"a word of its own, after the answer", []word{asks(a, b), answers(b, a), later(2*time.Second, asks(b, a))}},
		{"an answer to what answered before", []word{
			asks(a, b), answers(b, a), later(2*time.Second, asks(b, a)), answers(a, b), later(2*time.Second, asks(a, b)),
		}},
		{"a late answer", []word{asks(a, b), later(25*time.Second, answers(b, a))}},
		{"too late an answer", []word{asks(a, b), later(31*time.Second, asks(b, a)), answers(a, b)}},
		{"no question", []word{asks(b, a)}},

		{"a question twice", []word{asks(a, b), asks(a, b), answers(b, a)}},
		{"questions and answers by turns", []word{asks(a, b), answers(b, a), asks(a, b), answers(b, a)}},
		{"a question every 64 seconds", []word{
			asks(a, b), answers(b, a), later(64*time.Second, asks(a, b)), answers(b, a), later(64*time.Second, asks(a, b)),
		}},
		{"a question again, and a late answer", []word{
			asks(a, b), later(25*time.Second, asks(a, b)), later(25*time.Second, answers(b, a)),
		}},

		{"another host's word", []word{asks(a, b), asks(other, a), answers(b, a)}},
		{"another port's word", []word{asks(a, b), asks(end{2, 124}, a)}},
		{"a word to another port", []word{asks(a, b), asks(b, end{1, 124})}},
		{"a socket that talks to itself", []word{asks(a, a), asks(a, a)}},

		{"a high port asks", []word{asks(end{1, 1024}, b), answers(b, end{1, 1024}), asks(end{1, 1024}, b)}},
		{"a high port does not answer", []word{asks(a, b), asks(end{2, 1024}, a)}},
		{"TCP is neither", []word{overTCP(asks(a, b)), overTCP(asks(b, a))}},
		{"a datagram is no answer to TCP", []word{overTCP(asks(a, b)), asks(b, a)}},
		{"TCP is no answer to a datagram", []word{asks(a, b), overTCP(asks(b, a)), answers(b, a)}},
	})
}

// TestAFlowKeepsItsInitiator: who is silent for the idle time, and speaks again.
func TestAFlowKeepsItsInitiator(t *testing.T) {
	const short, idle = 50 * time.Second, 61 * time.Second
	client, server := end{1, 40000}, end{2, 4433}
	first := func(from, to end) word { return word{from: from, to: to, attempt: true} }
	more := func(from, to end) word { return word{from: from, to: to} }
	after := func(silence time.Duration, w word) word { w.after = silence; return w }
	hearAll(t, parameters{"udp_flows": true, "udp_idle": uint32(60)}, []talk{
		{"both talk", []word{first(client, server), more(server, client), more(client, server), more(server, client)}},
		{"low ports", []word{first(end{1, 123}, end{2, 123}), more(end{2, 123}, end{1, 123}), more(end{1, 123}, end{2, 123})}},
		{"the initiator after the idle time", []word{first(client, server), after(idle, first(client, server)), more(server, client)}},
		{"the other side after the idle time", []word{first(client, server), after(idle, more(server, client)), after(idle, more(server, client))}},
		{"the initiator before the idle time", []word{first(client, server), after(short, more(client, server))}},
		{"the other side before the idle time", []word{first(client, server), after(short, more(server, client))}},
		{"each of them keeps a flow", []word{
			first(client, server), after(short, more(server, client)), after(short, more(client, server)),
			after(short, more(server, client)), after(short, more(client, server)),
		}},
		{"the other side, then the initiator", []word{
			first(client, server), after(idle, more(server, client)), after(idle, first(client, server)), more(server, client),
		}},
		{"a socket that talks to itself", []word{first(client, client), more(client, client), after(idle, first(client, client))}},
		{"flows of other ports and hosts", []word{
			first(client, server), first(end{1, 40001}, server), first(client, end{2, 4434}), first(end{3, 4433}, client),
			more(server, client), more(client, end{3, 4433}),
		}},
	})
}

// TestAnAnswerIsNoneWhereOnePortIsAsked: a question that calls another port is
// not reported, but known.
func TestAnAnswerIsNoneWhereOnePortIsAsked(t *testing.T) {
	for name, c := range map[string]struct {
		params         parameters
		client, server end
	}{
		"low ports": {parameters{"port": uint16(400)}, end{1, 400}, end{2, 53}},
		"a flow":    {parameters{"port": uint16(40000), "udp_flows": true}, end{1, 40000}, end{2, 4433}},
	} {
		t.Run(name, func(t *testing.T) {
			hearAll(t, c.params, []talk{{"question and answer", []word{{from: c.client, to: c.server}, {from: c.server, to: c.client}}}})
		})
	}
}

// TestAFlowIsReportedOnceByAllCPUs: what one CPU has seen may be later than what
// another took for now.
func TestAFlowIsReportedOnceByAllCPUs(t *testing.T) {
	g := setup{params: parameters{"udp_flows": true}, ring: 1 << 20}.load(t)
	p := between(protoUDP, there4, here4)
	g.give(t, p)
	onTwoCPUs(t, func() error {
		many := giver{program: g.program, run: ebpf.RunOptions{Repeat: 2_000_000}}
		return many.test(p.frame(), someNetNS)
	})
	g.expect(t, counted{reported: 1})
}

// TestOnlyWhatMayBeAnAnswerIsRemembered: the clients of a server would push all
// else out.
func TestOnlyWhatMayBeAnAnswerIsRemembered(t *testing.T) {
	g := load(t, nil)
	for _, c := range []struct {
		packet packet
		flows  int
	}{{udp4, 0}, {udp6, 0}, {tcp4.with(ports(443, 443)), 0}, {udp4.with(ports(53, 53)), 1}} {
		g.forgetFlows(t)
		g.give(t, c.packet)
		if got := len(g.books[flowBook].keys(t)); got != c.flows {
			t.Errorf("%s from port %d to %d: got %d flows, want %d",
				c.packet.title(), c.packet.sport, c.packet.dport, got, c.flows)
		}
	}
}
