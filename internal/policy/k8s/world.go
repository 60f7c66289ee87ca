// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"net/netip"

	"gadget.example/network/internal/policy"
)

// name is that of a pod, a workload or a Service, in its namespace.
type name struct{ namespace, name string }

func (n name) String() string { return n.namespace + "/" + n.name }

// pod is one pod that a recording names.
type pod struct {
	name
	labels      map[string]string
	owner       policy.Owner
	hostNetwork bool
	addrs       map[netip.Addr]bool
	workload    *workload
}

// workload is the pods of one owner, or one that has none.
type workload struct {
	namespace string
	owner     policy.Owner      // of a pod without an owner: its name
	selector  map[string]string // the stable labels that all its pods have
}

// world is what a recording tells of a cluster.
type world struct {
	rows    []seen
	cluster *Cluster
	pods    map[name]*pod
	// What rows name an address as; nil when some say this and some that.
	podsAt     map[netip.Addr]*pod
	servicesAt map[netip.Addr]*policy.Peer
	served     map[socket]bool
	targets    map[call]*targets
}

// seen is a connection, and how many rows of the recording tell of it.
type seen struct {
	policy.Connection
	rows int
}

// socket is a port that a pod serves.
type socket struct {
	pod      name
	protocol policy.Protocol
	port     uint16
}

func newWorld(rows []policy.Connection, cluster *Cluster) *world {
	if cluster == nil {
		cluster = &Cluster{}
	}
	w := &world{
		cluster: cluster,
		pods:    map[name]*pod{}, podsAt: map[netip.Addr]*pod{}, servicesAt: map[netip.Addr]*policy.Peer{},
		served: map[socket]bool{}, targets: map[call]*targets{},
	}
	for i := range rows {
		w.learn(&rows[i])
	}
	w.rows = merged(rows)
	for _, known := range cluster.pods {
		w.learnOf(known)
	}
	w.findWorkloads()
	return w
}

// merged adds up rows that differ in their counters alone, in the order of the
// first of each.
func merged(rows []policy.Connection) []seen {
	type key struct {
		process            string
		egress             bool
		protocol           policy.Protocol
		port               uint16
		namespace, pod     string
		hostNetwork        bool
		podIP, nodeIP      netip.Addr
		kind               policy.PeerKind
		peer, peerSelector string
		addr               netip.Addr
	}
	var all []seen
	at := map[key]int{}
	for _, c := range rows {
		k := key{
			c.Process, c.Egress, c.Protocol, c.Port, c.Local.Namespace, c.Local.Name, c.Local.HostNetwork,
			c.Local.IP, c.Local.NodeIP, c.Peer.Kind, c.Peer.Namespace + "/" + c.Peer.Name, text(c.Peer.Selector), c.Peer.Addr,
		}
		i, ok := at[k]
		if !ok {
			at[k] = len(all)
			all = append(all, seen{Connection: c, rows: 1})
			continue
		}
		all[i].rows++
		all[i].Attempts += c.Attempts
		all[i].Established += c.Established
		all[i].Failed += c.Failed
	}
	return all
}

// learn takes what a row tells of both its ends.
func (w *world) learn(c *policy.Connection) {
	if c.Local.Name != "" {
		local := w.pod(name{c.Local.Namespace, c.Local.Name}, c.Local.Labels)
		local.hostNetwork = local.hostNetwork || c.Local.HostNetwork
		if c.Local.Owner.Name != "" {
			local.owner = c.Local.Owner
		}
		w.settle(local, c.Local.IP)
		if !c.Own.IsLoopback() {
			w.settle(local, c.Own)
		}
		if !c.Egress && (c.Process != "" || c.Established > 0) {
			w.served[socket{local.name, c.Protocol, c.Port}] = true
		}
	}
	switch c.Peer.Kind {
	case policy.PeerPod:
		w.settle(w.pod(name{c.Peer.Namespace, c.Peer.Name}, c.Peer.Labels), c.Peer.Addr)
	case policy.PeerService:
		at, ok := w.servicesAt[c.Peer.Addr]
		if ok && (at == nil || at.Namespace != c.Peer.Namespace || at.Name != c.Peer.Name) {
			w.servicesAt[c.Peer.Addr] = nil
		} else {
			w.servicesAt[c.Peer.Addr] = &c.Peer
		}
	}
}

// learnOf takes what the cluster tells of a pod: all its addresses, for one.
func (w *world) learnOf(known *pod) {
	p := w.pod(known.name, known.labels)
	p.hostNetwork = known.hostNetwork
	for addr := range known.addrs {
		w.settle(p, addr)
	}
}

func (w *world) pod(n name, labels map[string]string) *pod {
	p, ok := w.pods[n]
	if !ok {
		p = &pod{name: n, addrs: map[netip.Addr]bool{}}
		w.pods[n] = p
	}
	if len(labels) > 0 {
		p.labels = labels
	}
	return p
}

// settle notes that a pod has an address: of its own, if it is not in its node's
// network.
func (w *world) settle(p *pod, addr netip.Addr) {
	if !addr.IsValid() {
		return
	}
	p.addrs[addr] = true
	if p.hostNetwork {
		return
	}
	if at, ok := w.podsAt[addr]; ok && at != p {
		p = nil // it was one's, then another's
	}
	w.podsAt[addr] = p
}

func (w *world) findWorkloads() {
	found := map[workloadKey]*workload{}
	for _, p := range w.pods {
		key := workloadKey{p.namespace, p.owner}
		if p.owner.Name == "" {
			key.owner = policy.Owner{Kind: "Pod", Name: p.name.name}
		}
		if found[key] == nil {
			found[key] = &workload{namespace: key.namespace, owner: key.owner, selector: stable(p.labels)}
		}
		p.workload = found[key]
		p.workload.selector = common(p.workload.selector, p.labels)
	}
}

type workloadKey struct {
	namespace string
	owner     policy.Owner
}

// peer is a connection's other end by the best name that it has in the recording:
// an address that Inspektor Gadget did not know yet, or does not know at all (the
// second of two families), can be known by another row.
func (w *world) peer(c policy.Connection) policy.Peer {
	if c.Peer.Kind != policy.PeerAddress {
		return c.Peer
	}
	if p := w.podsAt[c.Peer.Addr]; p != nil {
		return policy.Peer{Addr: c.Peer.Addr, Kind: policy.PeerPod, Namespace: p.namespace, Name: p.name.name, Labels: p.labels}
	}
	if service := w.servicesAt[c.Peer.Addr]; service != nil {
		return *service
	}
	if service := w.cluster.serviceAt(c.Peer.Addr); service != nil {
		return policy.Peer{
			Addr: c.Peer.Addr, Kind: policy.PeerService,
			Namespace: service.namespace, Name: service.name.name, Selector: service.selector,
		}
	}
	return c.Peer
}
