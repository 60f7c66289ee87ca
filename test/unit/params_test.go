// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
)

// probeName is how these tests write down an attempt and the side that reports
// it.
func probeName(p packet, egress bool) string {
	side := "received"
	if egress {
		side = "sent"
	}
	return fmt.Sprintf("%s to %d, %s", p.title(), p.dport, side)
}

// reported sends the probes over a wire and says which of them g reports.
func reported(w *wire, g *gadget) (names []string, err error) {
	if _, err := g.drain(nil); err != nil { // of sentinels
		return nil, err
	}
	for _, p := range attempts {
		frame, _ := w.adapt(p.frame())
		if _, err := w.exchange(frame); err != nil {
			return nil, err
		}
		events, err := g.drain(nil)
		if err != nil {
			return nil, err
		}
		for _, e := range slices.DeleteFunc(events, isSentinel) {
			if want := p.event(e.Egress, w.netns(e.Egress)); e != want {
				return nil, fmt.Errorf("sent %x\n got %v\nwant %v", frame, e, want)
			}
			names = append(names, probeName(p, e.Egress))
		}
	}
	slices.Sort(names)
	return names, nil
}

// selected are the probes that a rule lets through.
func selected(rule func(p packet, egress bool) bool) (names []string) {
	for _, p := range attempts {
		for _, egress := range []bool{true, false} {
			if rule(p, egress) {
				names = append(names, probeName(p, egress))
			}
		}
	}
	slices.Sort(names)
	return names
}

type rule func(p packet, egress bool) bool

func all(packet, bool) bool                { return true }
func none(packet, bool) bool               { return false }
func onlySent(_ packet, egress bool) bool  { return egress }
func onlyGot(_ packet, egress bool) bool   { return !egress }
func onlyTCP(p packet, _ bool) bool        { return p.proto == protoTCP }
func onlyUDP(p packet, _ bool) bool        { return p.proto == protoUDP }
func onlySentTCP(p packet, sent bool) bool { return p.proto == protoTCP && sent }

func TestParametersLeaveOutWhatTheySay(t *testing.T) {
	comm := [16]byte{'c', 'u', 'r', 'l'}
	veth, loopback := newVeth(t, false), newLoopback(t)
	for _, c := range []struct {
		name           string
		params         parameters
		veth, loopback rule
	}{
		{"no parameter", nil, all, all},
		{"egress-only", parameters{"egress_only": true}, onlySent, onlySent},
		{"ingress-only", parameters{"ingress_only": true}, onlyGot, onlyGot},
		{"egress-only and ingress-only", parameters{"egress_only": true, "ingress_only": true}, none, none},
		{"tcp-only", parameters{"tcp_only": true}, onlyTCP, onlyTCP},
		{"udp-only", parameters{"udp_only": true}, onlyUDP, onlyUDP},
		{"tcp-only and udp-only", parameters{"tcp_only": true, "udp_only": true}, none, none},
		{"tcp-only and egress-only", parameters{"tcp_only": true, "egress_only": true}, onlySentTCP, onlySentTCP},
		{"the TCP probes' port", parameters{"port": uint16(443)}, onlyTCP, onlyTCP},
		{"the UDP probes' port", parameters{"port": uint16(53)}, onlyUDP, onlyUDP},
		{"a source port", parameters{"port": tcp4.sport}, none, none},
		{"a port with its bytes swapped", parameters{"port": uint16(0xBB01)}, none, none},
		{"skip-loopback", parameters{"skip_loopback": true}, all, none},
		{"a process id, of nobody", parameters{"targ_pid": uint32(1)}, none, none},
		{"a thread id, of nobody", parameters{"targ_tid": uint32(1)}, none, none},
		{"a command, of nobody", parameters{"targ_comm": comm}, none, none},
		{"a user, of nobody", parameters{"targ_uid": uint32(1000)}, none, none},
		{"root, of nobody", parameters{"targ_uid": uint32(0)}, none, none},
		{"root's group, of nobody", parameters{"targ_gid": uint32(0)}, none, none},
		{"containers, of nobody", parameters{"gadget_filter_by_mntns": true}, none, none},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, on := range []struct {
				device string
				wire   *wire
				want   rule
			}{{"veth", veth, c.veth}, {"loopback", loopback, c.loopback}} {
				g := load(t, c.params) // the same packet on both would be one attempt
				on.wire.attach(t, g)
				got, err := reported(on.wire, g)
				if err != nil {
					t.Fatal(err)
				}
				if want := selected(on.want); !slices.Equal(got, want) {
					t.Errorf("%v on a %s device: got %q, want %q", c.params, on.device, got, want)
				}
			}
		})
	}
}

func TestProcessFiltersLetTheirProcessThroughAlone(t *testing.T) {
	comm := func(s string) (c [16]byte) { copy(c[:], s); return c }
	root := process{Comm: "init", PID: 1, TID: 1, MntNS: 1, Set: true}
	for _, c := range []struct {
		name   string
		params parameters
		owner  process
		want   bool
	}{
		{"its process id", parameters{"targ_pid": uint32(someone.PID)}, someone, true},
		{"its thread id as process id", parameters{"targ_pid": uint32(someone.TID)}, someone, false},
		{"its thread id", parameters{"targ_tid": uint32(someone.TID)}, someone, true},
		{"its process id as thread id", parameters{"targ_tid": uint32(someone.PID)}, someone, false},
		{"its user", parameters{"targ_uid": uint32(someone.UID)}, someone, true},
		{"its group as user", parameters{"targ_uid": uint32(someone.GID)}, someone, false},
		{"its group", parameters{"targ_gid": uint32(someone.GID)}, someone, true},
		{"its user as group", parameters{"targ_gid": uint32(someone.UID)}, someone, false},
		{"its command", parameters{"targ_comm": comm(someone.Comm)}, someone, true},
		{"the start of its command", parameters{"targ_comm": comm("fifteen")}, someone, false},
		{"root, for root", parameters{"targ_uid": uint32(0)}, root, true},
		{"root, for another", parameters{"targ_uid": uint32(0)}, someone, false},
		{
			"its process id, another's user",
			parameters{"targ_pid": uint32(someone.PID), "targ_uid": uint32(0)},
			someone, false,
		},
		{"containers, for none of them", parameters{"gadget_filter_by_mntns": true}, someone, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := load(t, c.params)
			g.bookPort(t, entry{netns: someNetNS, local: udp4.to(), proto: protoUDP, owner: c.owner})
			var want []event
			if c.want {
				want = []event{owned(udp4.event(false, someNetNS), c.owner)}
			}
			got, err := g.verdict(udp4.frame(), someNetNS)
			if err := errors.Join(err, difference(udp4.frame(), got, want)); err != nil {
				t.Errorf("with %v: %v", c.params, err)
			}
		})
	}
}

// TestAttemptsOfNobodyAreCountedWhereSomebodyIsWanted: the user may have meant
// them, and is told how many there were.
func TestAttemptsOfNobodyAreCountedWhereSomebodyIsWanted(t *testing.T) {
	w := newVeth(t, false)
	leftOut := func(sent, received uint64) counted { return counted{leftOutSent: sent, leftOutReceived: received} }
	comm := [16]byte{'c', 'u', 'r', 'l'}
	for _, c := range []struct {
		name   string
		params parameters
		owner  process // of the receiver's socket
		want   counted // of one attempt, sent and received
	}{
		{"no filter", nil, process{}, counted{reported: 2}},
		{"a filter of ports", parameters{"port": uint16(80)}, process{}, counted{}},
		{"a process", parameters{"targ_pid": uint32(1)}, process{}, leftOut(1, 1)},
		{"a thread", parameters{"targ_tid": uint32(1)}, process{}, leftOut(1, 1)},
		{"a command", parameters{"targ_comm": comm}, process{}, leftOut(1, 1)},
		{"a user", parameters{"targ_uid": uint32(0)}, process{}, leftOut(1, 1)},
		{"a group", parameters{"targ_gid": uint32(0)}, process{}, leftOut(1, 1)},
		{"containers", parameters{"gadget_filter_by_mntns": true}, process{}, leftOut(1, 1)},
		{"a process, where another is known", parameters{"targ_pid": uint32(1)}, someone, leftOut(1, 0)},
		{
			"a process, where it is known",
			parameters{"targ_pid": uint32(someone.PID)},
			someone,
			counted{reported: 1, leftOutSent: 1},
		},
		{
			"a process, of what is sent",
			parameters{"targ_pid": uint32(1), "egress_only": true},
			process{},
			leftOut(1, 0),
		},
		{
			"a process, of what is received",
			parameters{"targ_pid": uint32(1), "ingress_only": true},
			process{},
			leftOut(0, 1),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			params := parameters{"tcp_only": true} // no sentinels
			maps.Copy(params, c.params)
			g := load(t, params)
			w.attach(t, g)
			if c.owner.Set {
				g.bookConnection(t, entry{
					netns: w.netns(false), local: tcp4.to(), remote: tcp4.from(), proto: tcp4.proto, owner: c.owner,
				})
			}
			if _, err := w.send(g, tcp4); err != nil {
				t.Fatal(err)
			}
			g.expect(t, c.want)
		})
	}
}

// TestAttemptsOfNobodyAreAContainersInItsNamespace: ig has the filter in the
// namespaces of the containers that are asked for, one of which can be the host's.
func TestAttemptsOfNobodyAreAContainersInItsNamespace(t *testing.T) {
	w := newVeth(t, false)
	containers := parameters{"gadget_filter_by_mntns": true}
	anyone := parameters{"gadget_filter_by_mntns": true, "targ_uid": uint32(0)}
	host, other := uint64(w.netns(false)), uint64(1)
	for _, c := range []struct {
		name   string
		params parameters
		host   uint64
		want   rule
	}{
		{"namespaces beside the host's", containers, other, all},
		{"what has got it is the host", containers, host, onlySent},
		{"what has got it is the host, which is asked for", nil, host, all},
		{"namespaces beside the host's, of a user", anyone, other, none},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := load(t, c.params)
			if err := g.collection.Maps["host"].Put(uint32(0), c.host); err != nil {
				t.Fatal(err)
			}
			w.attach(t, g)
			got, err := reported(w, g)
			if err != nil {
				t.Fatal(err)
			}
			if want := selected(c.want); !slices.Equal(got, want) {
				t.Errorf("with %v: got %q, want %q", c.params, got, want)
			}
		})
	}
}
