// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

// byRaw is an event of what a raw socket has sent: its ends are not known.
func byRaw(e event, by process) event {
	e.Proc = by
	return e
}

// checkSent sends a packet, and compares what g reports of it at the end that sends.
func (g *gadget) checkSent(w *wire, p packet, want ...event) error {
	got, err := w.seen(g, p, true)
	return errors.Join(err, difference(p.frame(), got, want))
}

// TestWhatARawSocketSendsIsItsProcesss has a process send one packet, as booked,
// and another one like it.
func TestWhatARawSocketSendsIsItsProcesss(t *testing.T) {
	const waits = 10 * time.Second
	raw, other := called("raw"), called("other")
	w, busy := newVeth(t, false), busySockets(t)
	netns := w.netns(true)
	g := load(t, parameters{"egress_only": true})
	w.attach(t, g)
	ago := func(d time.Duration) func(*entry) { return func(e *entry) { e.called -= uint64(d) } }
	for _, c := range []struct {
		name   string
		change func(*packet) // of what is booked
		entry  func(*entry)
		socket bool // another process has one with these ends, and something on its way
		idle   bool // the same, but with nothing on its way
		want   map[uint8]process
	}{
		{name: "as it is", want: map[uint8]process{protoTCP: raw, protoUDP: raw}},
		{name: "a while ago", entry: ago(waits - 2*time.Second), want: map[uint8]process{protoTCP: raw, protoUDP: raw}},
		{name: "too long ago", entry: ago(waits + time.Millisecond)},
		{name: "several have sent the same", entry: isCrowded},
		{name: "it has been seen", entry: isClosed},
		{name: "from another namespace", entry: inNetNS(elsewhere)},
		{name: "from another port", change: func(p *packet) { p.sport++ }},
		{name: "to another port", change: func(p *packet) { p.dport++ }},
		{
			name: "other data", change: func(p *packet) { p.payload = []byte("answer") },
			want: map[uint8]process{protoTCP: raw},
		},
		{
			name: "another transport", change: func(p *packet) { p.proto = protoTCP + protoUDP - p.proto },
		},
		{
			name: "another version",
			change: func(p *packet) {
				if p.src.Is4() {
					p.src, p.dst = here6.Addr(), there6.Addr()
				} else {
					p.src, p.dst = here4.Addr(), there4.Addr()
				}
			},
		},
		{name: "of a port that sends as well", socket: true, want: map[uint8]process{protoTCP: other}},
		{
			name: "of a port that sends nothing", idle: true,
			want: map[uint8]process{protoTCP: other, protoUDP: raw},
		},
	} {
		for _, p := range []packet{
			between(protoTCP, here4, there4), between(protoUDP, here4, there4),
			between(protoTCP, here6, there6), between(protoUDP, here6, there6),
		} {
			t.Run(c.name+", "+p.title(), func(t *testing.T) {
				g.books[rawBook].clear(t)
				g.books[connectionBook].clear(t)
				p.payload = []byte("question")
				e := entry{netns: netns, owner: raw, called: bootTime(t)}
				booked := p
				if c.entry != nil {
					c.entry(&e)
				}
				if c.change != nil {
					c.change(&booked)
				}
				g.bookRaw(t, booked, e)
				if c.socket || c.idle {
					e := entry{netns: netns, local: p.from(), remote: p.to(), proto: p.proto, owner: other}
					if c.socket && p.proto == protoUDP {
						e.sk = busy[0]
					}
					g.bookConnection(t, e)
				}

				own := p.event(true, netns)
				first, second := own, own
				switch c.want[p.proto] {
				case raw:
					first = byRaw(own, raw)
				case other:
					first = owned(own, other)
					second = first
				}
				if c.socket && p.proto == protoUDP {
					second = first // neither of them is known to have sent it
				}
				if err := g.checkSent(w, p, first); err != nil {
					t.Errorf("the first: %v", err)
				}
				if err := g.checkSent(w, p, second); err != nil {
					t.Errorf("the second: %v", err)
				}
			})
		}
	}
}

func TestWhatARawSocketSendsIsItsProcesssWhateverItsAddresses(t *testing.T) {
	w := newVeth(t, false)
	g := load(t, parameters{"egress_only": true})
	w.attach(t, g)
	for _, p := range attempts {
		g.bookRaw(t, p, entry{netns: w.netns(true), owner: someone, called: bootTime(t)})
		translated := p.with(func(p *packet) { p.src, p.dst = p.dst, p.src })
		if err := g.checkSent(w, translated, byRaw(translated.event(true, w.netns(true)), someone)); err != nil {
			t.Errorf("%s: %v", p.title(), err)
		}
	}
}

func TestWhatIsReceivedIsNoRawSockets(t *testing.T) {
	g := load(t, nil)
	for _, p := range attempts {
		g.bookRaw(t, p, entry{netns: someNetNS, owner: someone, called: bootTime(t)})
		compare(t, p.title(), g.give(t, p), eventsOf([]packet{p}, process{}))
	}
}

// TestASYNWhoseEndsWereChangedIsKnownByItsSequence has it changed without
// conntrack: by a stateless rule, or tc.
func TestASYNWhoseEndsWereChangedIsKnownByItsSequence(t *testing.T) {
	w := newVeth(t, false)
	netns := w.netns(true)
	sameBytes := netip.MustParseAddrPort("[c000:201::]:443") // as here4 in struct tuple
	for _, c := range []struct {
		name        string
		local, peer netip.AddrPort // of the wire
		socket      entry
		known       bool
	}{
		{"another peer", here4, there4, connection(here4, stranger4, "client"), true},
		{"another address of the peer", here4, there4, connection(here4, other4, "client"), true},
		{"another port of its own", here4, there4, connection(otherPort4, there4, "client"), true},
		{"another address of its own", here4, there4, connection(other4, there4, "client"), true},
		{"another IPv6 peer", here6, there6, connection(here6, stranger6, "client"), true},
		{"another IPv6 address of its own", here6, there6, connection(other6, there6, "client"), true},
		{"both ends", here4, there4, connection(otherPort4, stranger4, "client"), false},
		{"both IPv6 ends", here6, there6, connection(other6, stranger6, "client"), false},
		{"the ends the other way round", here4, there4, connection(there4, here4, "client"), false},
		{"another version", here4, there4, connection(sameBytes, there6, "client"), false},
		{"another sequence", here4, there4, connection(here4, stranger4, "client", sequence(synSequence+1)), false},
		{"another namespace", here4, there4, connection(here4, stranger4, "client", inNetNS(elsewhere)), false},
		{"a closed socket", here4, there4, connection(here4, stranger4, "client", isClosed), false},
		{"a socket without a page", here4, there4, connection(here4, stranger4, "client", isUnpaged), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := load(t, nil)
			w.attach(t, g)
			e := c.socket
			e.proto = protoTCP
			if e.netns == 0 {
				e.netns = netns
			}
			g.bookSyn(t, e)
			p := between(protoTCP, c.local, c.peer)
			want := p.event(true, netns)
			if c.known {
				want.Proc = e.owner
				want.Local.AddrPort, want.Remote.AddrPort = e.local, e.remote
			}
			if err := g.checkSent(w, p, want); err != nil {
				t.Error(err)
			}
			p = between(protoTCP, c.peer, c.local)
			got, err := w.seen(g, p, false)
			if err := errors.Join(err, difference(p.frame(), got, []event{p.event(false, w.netns(false))})); err != nil {
				t.Errorf("received: %v", err)
			}
		})
	}
}

// TestAnAttemptThatWasReportedBeforeItWasSentIsNotAgain: a SYN that waits for
// longer than a second is reported as one that no device has seen.
func TestAnAttemptThatWasReportedBeforeItWasSentIsNotAgain(t *testing.T) {
	const onItsWay, seen, reported = 0, 1, 2 // enum progress
	w := newVeth(t, false)
	netns := w.netns(true)
	for _, c := range []struct {
		name     string
		progress uint8
		silent   bool
	}{{"on its way", onItsWay, false}, {"seen", seen, false}, {"reported", reported, true}} {
		for _, p := range []packet{between(protoTCP, here4, there4), between(protoTCP, here6, there6)} {
			t.Run(c.name+", "+p.title(), func(t *testing.T) {
				g := load(t, parameters{"egress_only": true})
				w.attach(t, g)
				g.bookConnection(t, entry{
					netns: netns, local: p.from(), remote: p.to(), proto: protoTCP, owner: someone, progress: c.progress,
				})
				for retries := range uint64(3) {
					var want []event
					if !c.silent || retries > 0 {
						want = append(want, owned(p.event(true, netns), someone))
					}
					err := g.checkSent(w, p, want...)
					if want != nil && g.retries != retries {
						err = errors.Join(err, errors.New("its retries are wrong"))
					}
					if err != nil {
						t.Errorf("sent again %d times, with %d retries: %v", retries, g.retries, err)
					}
				}
				b := g.books[connectionBook]
				if got := b.value.field("progress").uint(b.values(t)[0]); got != seen {
					t.Errorf("after it was sent, progress is %d, want %d", got, seen)
				}
			})
		}
	}
}
