// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// tcCases have traffic control send packets another way, or twice.
func tcCases() []whoCase {
	var cases []whoCase
	for _, protocol := range []attempt.Protocol{attempt.TCP, attempt.UDP} {
		for _, d := range detours {
			name := string(protocol) + " out, tc: " + d.name
			cases = append(cases, whoCase{name: name, play: func(s *stage, name string) {
				defer s.detour(d)()
				s.calledAway(name, protocol, d.spared(protocol))
			}})
		}
		cases = append(cases, whoCase{
			name: string(protocol) + " forwarded and masqueraded, by an ifb, beside the same source",
			play: func(s *stage, name string) {
				defer s.detour(detours[0])()
				defer s.forward()()
				spared, families := detours[0].spared(protocol), families
				if spared != "" {
					families = []int{4} // the route of IPv6 does not tell own datagrams
				}
				s.besideForwarded(name, protocol, spared, families)
			},
		})
	}
	return cases
}

// detour is what traffic control does with all that passes a device.
type detour struct {
	name   string
	end    int // whose device on the way between the ends
	parent uint32
	action netlink.MirredAct
	by     netlink.Link
}

var (
	// Without a queue it would lose packets.
	ifb    = &netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: "e2e-ifb", TxQLen: 1000}}
	copies = &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "e2e-copies"}}
)

var detours = []detour{
	{"redirected to an ifb on the way out", 0, netlink.HANDLE_MIN_EGRESS, netlink.TCA_EGRESS_REDIR, ifb},
	{"redirected to an ifb on the way in", 1, netlink.HANDLE_MIN_INGRESS, netlink.TCA_EGRESS_REDIR, ifb},
	{"mirrored to another device on the way out", 0, netlink.HANDLE_MIN_EGRESS, netlink.TCA_EGRESS_MIRROR, copies},
	{"mirrored to another device on the way in", 1, netlink.HANDLE_MIN_INGRESS, netlink.TCA_EGRESS_MIRROR, copies},
}

// detour is there until it is told to end.
func (s *stage) detour(d detour) (end func()) {
	s.t.Helper()
	ns := s.pair.ends[d.end]
	remove := ns.addUntil(s.t, d.by)
	ns.setUp(s.t, d.by.Attrs().Name)
	verdict := netlink.TC_ACT_STOLEN
	if d.action == netlink.TCA_EGRESS_MIRROR {
		verdict = netlink.TC_ACT_PIPE
	}
	qdisc := ns.control(s.t, overVeth.device, d.parent, &netlink.MirredAction{
		ActionAttrs: netlink.ActionAttrs{Action: verdict}, MirredAction: d.action, Ifindex: ns.link(s.t, d.by.Attrs().Name).Attrs().Index,
	})
	return func() {
		if err := ns.links.QdiscDel(qdisc); err != nil {
			s.t.Fatalf("ending: %s: %v", d.name, err)
		}
		remove()
	}
}

// control has traffic control do something with all that passes a device, one way.
func (ns *namespace) control(t *testing.T, device string, parent uint32, action netlink.Action) netlink.Qdisc {
	t.Helper()
	index := ns.link(t, device).Attrs().Index
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	filter := &netlink.MatchAll{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: parent, Protocol: unix.ETH_P_ALL, Priority: 1},
		Actions:     []netlink.Action{action},
	}
	if err := errors.Join(ns.links.QdiscAdd(qdisc), ns.links.FilterAdd(filter)); err != nil {
		t.Fatalf("traffic control of %s in %s: %v", device, ns.name, err)
	}
	return qdisc
}

// addUntil makes a device, which goes when remove is called.
func (ns *namespace) addUntil(t *testing.T, link netlink.Link) (remove func()) {
	t.Helper()
	if err := ns.links.LinkAdd(link); err != nil {
		t.Fatalf("device %s in %s: %v", link.Attrs().Name, ns.name, err)
	}
	return func() {
		t.Helper()
		if err := ns.links.LinkDel(link); err != nil {
			t.Fatalf("removing device %s in %s: %v", link.Attrs().Name, ns.name, err)
		}
	}
}

// spared says why nobody may be named: a datagram is no socket's when it is not known
// to be on its way, and what an ifb brings comes in the middle of anything.
func (d detour) spared(protocol attempt.Protocol) excuse {
	if protocol == attempt.TCP && d.parent == netlink.HANDLE_MIN_INGRESS && d.action == netlink.TCA_EGRESS_REDIR {
		return missedProbe
	}
	if protocol == attempt.UDP && d.parent == netlink.HANDLE_MIN_EGRESS && d.action == netlink.TCA_EGRESS_REDIR {
		return ledAway
	}
	return ""
}

// calledAway has all callers call a server at the other end, in which case nobody
// may be named for what they send if a reason is given.
func (s *stage) calledAway(name string, protocol attempt.Protocol, spared excuse) {
	port := newPort(protocol)
	open := s.openAway(protocol, port)
	s.callAway(name, protocol, port, func(i, _ int, a *act) {
		a.to, a.spared = s.is(s.away[0]), spared
		a.step.Connected = i%3 == 0
	})
	s.shut(open...)
}
