// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// sighting is what an event says, but for who did it. Two are the same if ==.
type sighting struct {
	netNS          uint32
	egress         bool
	protocol       string
	src, dst, peer netip.AddrPort
	retries        uint32
	fate           // zero: it is the attempt
}

func (s sighting) String() string {
	direction := "received"
	if s.egress {
		direction = "sent"
	}
	return fmt.Sprintf("%s %s in netns %d: %s -> %s, peer %s, retries %d%s", s.protocol, direction, s.netNS, s.src, s.dst, s.peer, s.retries, s.fate)
}

// ends are an attempt's as the socket of the event's side has them; zero is no
// socket.
type ends struct{ local, remote netip.AddrPort }

func (e ends) String() string {
	if e == (ends{}) {
		return "no socket"
	}
	return fmt.Sprintf("socket from %s to %s", e.local, e.remote)
}

// want is an event that must come.
type want struct {
	sighting
	// owner is the process that the event must name; the zero value is nobody.
	owner attempt.Process
	ends
	origin string // the attempt, for messages
}

// wants derives the events of an attempt from an agent's report of it: egress
// where it was sent, ingress where it arrived.
func wants(report attempt.Report, protocol attempt.Protocol, sender, receiver *namespace, server attempt.Process, origin string) []want {
	var all []want
	add := func(ns *namespace, egress bool, owner attempt.Process) {
		if ns == nil {
			return
		}
		w := want{owner: owner, origin: origin, sighting: sighting{
			netNS: ns.inode, egress: egress, protocol: string(protocol),
			src: report.Src, dst: report.Dst, peer: report.Dst,
		}}
		if !egress {
			w.peer = netip.AddrPortFrom(report.Src.Addr(), report.Dst.Port())
		}
		w.ends = w.endsFor(owner)
		for i := range report.Packets {
			if protocol == attempt.TCP {
				w.retries = uint32(i)
			}
			all = append(all, w)
		}
	}
	add(sender, true, report.Process)
	add(receiver, false, server)
	return all
}

// endsFor are those of the owner's socket if nothing has changed the addresses on
// the way.
func (s sighting) endsFor(owner attempt.Process) ends {
	switch {
	case owner == attempt.Process{}:
		return ends{}
	case s.egress:
		return ends{local: orNone(s.src), remote: s.dst}
	default:
		return ends{local: s.dst, remote: s.src}
	}
}

// orNone is an end; nothing but zeros, of either family, is none.
func orNone(end netip.AddrPort) netip.AddrPort {
	if end.Addr().IsUnspecified() && end.Port() == 0 {
		return netip.AddrPort{}
	}
	return end
}

// seen is an event that came.
type seen struct {
	sighting
	owner attempt.Process
	ends
	took, lasted time.Duration // until it was established, or has failed; until it was closed
	at           int64         // when it came here, in ns since the boot; 0: not asked
}

func fromEvent(e gadget.Event) seen {
	return seen{
		sighting: sighting{
			netNS: e.NetNS, egress: e.Egress, protocol: e.Protocol.String(),
			src: e.Src, dst: e.Dst, peer: e.Peer, retries: e.Retries,
		},
		owner: attempt.Process{
			Comm: e.Proc.Comm, Thread: e.Thread, PID: e.Proc.PID, TID: e.Proc.TID, UID: e.Proc.UID, GID: e.Proc.GID,
			MountNS: e.Proc.MountNS, ParentPID: e.Proc.Parent.PID, ParentComm: e.Proc.Parent.Comm,
		},
		ends: ends{local: orNone(e.Local), remote: orNone(e.Remote)},
	}
}

// names says whether an event names the owner. Of who receives, any thread can have
// accepted last.
func (w want) names(owner attempt.Process) bool {
	if !w.egress && w.owner != (attempt.Process{}) {
		owner.TID, owner.Thread = w.owner.TID, w.owner.Thread
	}
	return w.owner == owner
}

// compare checks events against the truth, as sets in which an element can be
// several times. Owners are compared always: calls are chosen so that IG's books,
// which know a socket by its local port alone, name the right one.
func compare(t *testing.T, events []seen, truth []want) {
	t.Helper()
	left := map[sighting][]want{}
	for _, w := range truth {
		left[w.sighting] = append(left[w.sighting], w)
	}
	var problems []string
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	for _, e := range events {
		wanted := left[e.sighting]
		if len(wanted) == 0 {
			problem("extra:   %s, by %s", e.sighting, e.owner)
			continue
		}
		i := slices.IndexFunc(wanted, func(w want) bool { return w.names(e.owner) && w.ends == e.ends })
		if i < 0 {
			i = 0
			problem("wrong:   %s\n    sent:   %s\n    wanted: %s, %s\n    got:    %s, %s",
				e.sighting, wanted[0].origin, wanted[0].owner, wanted[0].ends, e.owner, e.ends)
		}
		left[e.sighting] = slices.Delete(wanted, i, i+1)
	}
	for _, wanted := range left {
		for _, w := range wanted {
			problem("missing: %s\n    sent:   %s", w.sighting, w.origin)
		}
	}
	if problems == nil {
		return
	}
	slices.Sort(problems)
	const most = 40
	if len(problems) > most {
		problems = append(problems[:most], fmt.Sprintf("and %d more", len(problems)-most))
	}
	t.Errorf("%d events wanted, %d got:\n%s", len(truth), len(events), strings.Join(problems, "\n"))
}
