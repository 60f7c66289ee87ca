// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"fmt"

	"gadget.example/network/internal/policy"
)

// skipped is why a connection is nothing that a NetworkPolicy decides.
type skipped string

const (
	taken       skipped = ""
	loopback    skipped = "within a pod (loopback), which no policy blocks"
	ofNoPod     skipped = "of no pod: a NetworkPolicy selects pods"
	ofTheHost   skipped = "of pods in their node's network, which no NetworkPolicy selects"
	toItself    skipped = "of a pod with itself, which no policy blocks"
	fromItsNode skipped = "from a pod's own node, which no policy blocks"
	toNobody    skipped = "to a port of a pod where nobody was seen to listen: not allowed"
	unlabelled  skipped = "of pods without a label of their workload, by which a policy could select them"
)

// skip tells why a connection is left out, or that it is not.
func (w *world) skip(c policy.Connection) skipped {
	self := name{c.Local.Namespace, c.Local.Name}
	switch {
	case c.Peer.Addr.IsLoopback():
		return loopback
	case c.Local.Name == "":
		return ofNoPod
	case c.Local.HostNetwork:
		return ofTheHost
	case c.Peer.Addr == c.Local.IP, c.Peer.Kind == policy.PeerPod && self == name{c.Peer.Namespace, c.Peer.Name}:
		return toItself
	case !c.Egress && c.Peer.Addr == c.Local.NodeIP:
		return fromItsNode
	case !c.Egress && !w.served[socket{self, c.Protocol, c.Port}]:
		return toNobody
	case len(w.pods[self].workload.selector) == 0:
		return unlabelled
	}
	return taken
}

// decided are the connections that policies decide, and a note for each reason why
// others are not.
func (w *world) decided() ([]seen, []Note) {
	var left []seen
	counts := map[skipped]int{}
	for _, c := range w.rows {
		why := w.skip(c.Connection)
		counts[why] += c.rows
		if why == taken {
			left = append(left, c)
		}
	}
	var notes []Note
	for _, why := range []skipped{loopback, ofNoPod, ofTheHost, toItself, fromItsNode, toNobody, unlabelled} {
		if n := counts[why]; n > 0 {
			notes = append(notes, Note{Text: fmt.Sprintf("left out: %s %s", rows(n), why)})
		}
	}
	return left, notes
}

func rows(n int) string {
	if n == 1 {
		return "1 row"
	}
	return fmt.Sprintf("%d rows", n)
}
