// SPDX-License-Identifier: Apache-2.0

// Package policy reads recorded connections: what policies are made of, and what
// they are checked against. It knows neither eBPF nor Inspektor Gadget, only the
// JSON that its data sources print.
package policy

import "net/netip"

// Protocol is the transport protocol, by the name that events and policies use.
type Protocol string

// The protocols that are recorded.
const (
	TCP Protocol = "TCP"
	UDP Protocol = "UDP"
)

// Connection is what was recorded of one process, one peer and one port: a row of
// the data source connections, or an event of network.
type Connection struct {
	Process string // its name; empty when nobody is known to own the socket
	Local   Pod    // that the process runs in; zero outside of pods
	// Own is this side's address, which events of network alone tell: a pod of two
	// families is known by one of them.
	Own      netip.Addr
	Egress   bool // sent by Local; false: received
	Protocol Protocol
	Peer     Peer
	Port     uint16 // that was called, of whichever side

	Attempts    uint64
	Established uint64 // attempts of TCP that became connections; of events only with --lifecycle
	Failed      uint64 // attempts that failed; likewise
}

// Pod is a pod as Inspektor Gadget names it. What it does not know is empty.
type Pod struct {
	Namespace   string
	Name        string
	Owner       Owner
	Labels      map[string]string
	HostNetwork bool       // it has no addresses of its own, but its node's
	IP          netip.Addr // with the annotation kubenameresolver.enable
	NodeIP      netip.Addr // likewise
}

// Owner is what made a pod: a Deployment, a StatefulSet, a Job.
type Owner struct{ Kind, Name string }

// PeerKind is what Inspektor Gadget knows an address as.
type PeerKind string

// The kinds. An address of a node with a pod in the host's network has none.
const (
	PeerPod     PeerKind = "pod"
	PeerService PeerKind = "svc"
	PeerAddress PeerKind = "raw"
)

// Peer is the other end.
type Peer struct {
	Addr      netip.Addr
	Kind      PeerKind
	Namespace string // of a pod or a Service
	Name      string // likewise
	Labels    map[string]string
	Selector  map[string]string // of a Service: the labels of the pods behind it
}
