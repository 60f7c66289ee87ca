// SPDX-License-Identifier: Apache-2.0

// Package cluster makes random Kubernetes clusters and traffic in them, with what
// the gadget would record of it, and what is true: the flows as a policy engine
// sees them.
package cluster

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"

	"gadget.example/network/internal/policy"
)

// Cluster is its pods, its Services and the addresses outside of it.
type Cluster struct {
	Workloads []*Workload
	Services  []*Service
	Outside   []netip.Addr
	random    *rand.Rand
	v6        bool
}

// Workload is what has pods that are alike.
type Workload struct {
	Namespace   string
	Owner       policy.Owner // none: each pod is alone
	Labels      map[string]string
	HostNetwork bool
	Pods        []*Pod
	Serves      map[Port]bool
}

// Pod is one of a Workload.
type Pod struct {
	*Workload
	Name   string
	Labels map[string]string // the Workload's, and its own
	Addr   netip.Addr        // its node's where it is in its network
	Node   netip.Addr
}

// Port is one of a protocol.
type Port struct {
	Protocol policy.Protocol
	Number   uint16
}

// Service is an address that stands for pods.
type Service struct {
	Namespace, Name string
	Addr            netip.Addr
	Selector        map[string]string
	Ports           map[Port]uint16 // to the number that the pods have
}

// Ports are those that anybody serves or calls.
var Ports = []Port{{policy.TCP, 80}, {policy.TCP, 8080}, {policy.TCP, 9090}, {policy.UDP, 53}, {policy.UDP, 8080}}

// New is a random cluster: the same for the same seed.
func New(seed uint64) *Cluster {
	c := &Cluster{random: rand.New(rand.NewPCG(seed, 1))}
	c.v6 = c.random.IntN(2) == 0
	for i := range 3 + c.random.IntN(4) {
		c.addWorkload(i)
	}
	for i := range 1 + c.random.IntN(4) {
		c.addService(i)
	}
	for i := range 3 {
		c.Outside = append(c.Outside, c.addr(200, i))
	}
	return c
}

// Namespaces are those that workloads are in.
var Namespaces = []string{"shop", "db"}

var kinds = []string{"Deployment", "StatefulSet", "DaemonSet", "Job", ""}

func (c *Cluster) addWorkload(i int) {
	w := &Workload{
		Namespace: Namespaces[c.random.IntN(len(Namespaces))],
		Labels:    map[string]string{"app": fmt.Sprintf("app%d", i), "tier": fmt.Sprintf("tier%d", c.random.IntN(2))},
		Serves:    map[Port]bool{},
		// Few are in their node's network.
		HostNetwork: c.random.IntN(6) == 0,
	}
	if kind := kinds[c.random.IntN(len(kinds))]; kind != "" {
		w.Owner = policy.Owner{Kind: kind, Name: fmt.Sprintf("work%d", i)}
	}
	for range 1 + c.random.IntN(3) {
		w.Serves[Ports[c.random.IntN(len(Ports))]] = true
	}
	for n := range 1 + c.random.IntN(2) {
		node := c.addr(100, n)
		p := &Pod{
			Workload: w, Name: fmt.Sprintf("work%d-%c%d", i, 'a'+n, c.random.IntN(10)),
			Addr: c.addr(1+i, n), Node: node, Labels: maps.Clone(w.Labels),
		}
		if w.HostNetwork {
			p.Addr = node
		}
		p.label(n)
		w.Pods = append(w.Pods, p)
	}
	c.Workloads = append(c.Workloads, w)
}

// label adds what controllers add.
func (p *Pod) label(n int) {
	switch p.Owner.Kind {
	case "Deployment":
		p.Labels["pod-template-hash"] = fmt.Sprintf("5d8f%d", n)
	case "StatefulSet":
		p.Labels["statefulset.kubernetes.io/pod-name"] = p.Name
		p.Labels["apps.kubernetes.io/pod-index"] = fmt.Sprint(n)
	case "DaemonSet":
		p.Labels["controller-revision-hash"] = fmt.Sprintf("7c%d", n)
	case "Job":
		p.Labels["batch.kubernetes.io/controller-uid"] = fmt.Sprintf("uid%d", n)
	}
	p.Labels["topology.kubernetes.io/zone"] = fmt.Sprintf("zone%d", n)
}

// addService makes one of a workload, or of all of a tier in its namespace.
func (c *Cluster) addService(i int) {
	of := c.Workloads[c.random.IntN(len(c.Workloads))]
	s := &Service{
		Namespace: of.Namespace, Name: fmt.Sprintf("service%d", i), Addr: c.addr(150, i), Ports: map[Port]uint16{},
		Selector: map[string]string{"app": of.Labels["app"]},
	}
	if c.random.IntN(3) == 0 && c.alike(of) {
		s.Selector = map[string]string{"tier": of.Labels["tier"]}
	}
	n := uint16(10000)
	for _, port := range Ports {
		if of.Serves[port] {
			n++
			s.Ports[Port{port.Protocol, n}] = port.Number
		}
	}
	c.Services = append(c.Services, s)
}

// alike tells whether the tier's pods in a workload's namespace can stand in for
// one another: those behind a Service are all in their nodes' networks, or none.
func (c *Cluster) alike(with *Workload) bool {
	for _, w := range c.Workloads {
		if w.Namespace == with.Namespace && w.Labels["tier"] == with.Labels["tier"] && w.HostNetwork != with.HostNetwork {
			return false
		}
	}
	return true
}

func (c *Cluster) addr(net, host int) netip.Addr {
	if c.v6 {
		return netip.AddrFrom16([16]byte{0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(net), 0, byte(host + 1)})
	}
	return netip.AddrFrom4([4]byte{10, byte(net), 0, byte(host + 1)})
}

// Pods are all pods.
func (c *Cluster) Pods() []*Pod {
	var all []*Pod
	for _, w := range c.Workloads {
		all = append(all, w.Pods...)
	}
	return all
}

// Behind are the workloads that a Service's selector selects.
func (c *Cluster) Behind(s *Service) []*Workload {
	var all []*Workload
	for _, w := range c.Workloads {
		fits := w.Namespace == s.Namespace
		for key, value := range s.Selector {
			fits = fits && w.Labels[key] == value
		}
		if fits {
			all = append(all, w)
		}
	}
	return all
}
