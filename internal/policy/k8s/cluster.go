// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"gadget.example/network/internal/policy"
)

// Cluster is what a cluster says of itself, where a recording cannot: at which
// ports and addresses a Service's calls arrive, the labels of namespaces, all the
// addresses of pods.
type Cluster struct {
	services   map[name]*service
	namespaces map[string]map[string]string
	pods       []*pod
}

type service struct {
	name
	selector map[string]string
	addrs    []netip.Addr
	ports    []corev1.ServicePort
	slices   []discoveryv1.EndpointSlice
}

// ReadCluster reads what `kubectl get services,endpointslices,pods,namespaces -A
// -o json` prints. Objects of other kinds are left alone.
func ReadCluster(r io.Reader) (*Cluster, error) {
	var list struct {
		Kind  string            `json:"kind"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.NewDecoder(r).Decode(&list); err != nil {
		return nil, fmt.Errorf("not JSON as kubectl get -o json prints it: %w", err)
	}
	if !strings.HasSuffix(list.Kind, "List") {
		return nil, fmt.Errorf("kind %q is not a list: kubectl get services,endpointslices,pods,namespaces -A -o json makes one", list.Kind)
	}
	c := &Cluster{services: map[name]*service{}, namespaces: map[string]map[string]string{}}
	var endpoints []discoveryv1.EndpointSlice
	for i, raw := range list.Items {
		var kind metav1.TypeMeta
		err := json.Unmarshal(raw, &kind)
		switch {
		case err != nil:
		case kind.Kind == "Service":
			err = read(raw, c.addService)
		case kind.Kind == "EndpointSlice":
			err = read(raw, func(s discoveryv1.EndpointSlice) { endpoints = append(endpoints, s) })
		case kind.Kind == "Pod":
			err = read(raw, c.addPod)
		case kind.Kind == "Namespace":
			err = read(raw, func(n corev1.Namespace) { c.namespaces[n.Name] = n.Labels })
		}
		if err != nil {
			return nil, fmt.Errorf("item %d, a %s: %w", i+1, kind.Kind, err)
		}
	}
	for _, e := range endpoints {
		if of := c.services[name{e.Namespace, e.Labels[discoveryv1.LabelServiceName]}]; of != nil {
			of.slices = append(of.slices, e)
		}
	}
	return c, nil
}

func read[T any](raw json.RawMessage, add func(T)) error {
	var object T
	if err := json.Unmarshal(raw, &object); err != nil {
		return err
	}
	add(object)
	return nil
}

func (c *Cluster) addService(s corev1.Service) {
	n := name{s.Namespace, s.Name}
	c.services[n] = &service{name: n, selector: s.Spec.Selector, ports: s.Spec.Ports}
	addrs := slices.Concat(s.Spec.ClusterIPs, s.Spec.ExternalIPs)
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		addrs = append(addrs, ingress.IP)
	}
	for _, a := range addrs {
		if addr, err := netip.ParseAddr(a); err == nil { // it may be "None" or empty
			c.services[n].addrs = append(c.services[n].addrs, addr)
		}
	}
}

func (c *Cluster) addPod(p corev1.Pod) {
	known := &pod{
		name: name{p.Namespace, p.Name}, labels: p.Labels, hostNetwork: p.Spec.HostNetwork, addrs: map[netip.Addr]bool{},
	}
	for _, ip := range p.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			known.addrs[addr] = true
		}
	}
	c.pods = append(c.pods, known)
}

func (c *Cluster) serviceAt(addr netip.Addr) *service {
	for _, s := range c.services {
		if slices.Contains(s.addrs, addr) {
			return s
		}
	}
	return nil
}

// endpoints is what a call of a Service becomes, as its EndpointSlices tell.
func (w *world) endpoints(s *service, c policy.Connection) ([]flow, string) {
	i := slices.IndexFunc(s.ports, func(p corev1.ServicePort) bool {
		return p.Port == int32(c.Port) && protocolOf(&p.Protocol) == c.Protocol
	})
	if i < 0 {
		return nil, fmt.Sprintf("the Service %s has no port %d/%s: nothing is allowed for it", s.name, c.Port, c.Protocol)
	}
	found := map[string]flow{}
	for _, slice := range s.slices {
		if c.Peer.Addr.Is4() != (slice.AddressType == discoveryv1.AddressTypeIPv4) {
			continue
		}
		for _, f := range w.slice(s, slice, s.ports[i]) {
			found[fmt.Sprint(f.peer.key(), " ", f.port)] = f
		}
	}
	if len(found) > 0 {
		var flows []flow
		for _, key := range slices.Sorted(maps.Keys(found)) {
			flows = append(flows, found[key])
		}
		return flows, ""
	}
	// No endpoint is ready: the specification is left.
	target := s.ports[i].TargetPort
	if target.Type == intstr.Int && len(s.selector) > 0 {
		port := uint16(target.IntVal)
		if port == 0 {
			port = c.Port
		}
		return []flow{{w.peerOf(s), port}}, ""
	}
	return nil, fmt.Sprintf("the Service %s has no endpoint: nothing is allowed for its port %d/%s", s.name, c.Port, c.Protocol)
}

func (w *world) slice(s *service, slice discoveryv1.EndpointSlice, at corev1.ServicePort) []flow {
	var flows []flow
	for _, port := range slice.Ports {
		if port.Port == nil || port.Name != nil && *port.Name != at.Name || protocolOf(port.Protocol) != protocolOf(&at.Protocol) {
			continue
		}
		for _, endpoint := range slice.Endpoints {
			flows = append(flows, w.endpoint(s, endpoint, uint16(*port.Port))...)
		}
	}
	return flows
}

// endpoint is by the Service's selector where a policy's can do the same: not
// without one, and not for pods in their node's network.
func (w *world) endpoint(s *service, endpoint discoveryv1.Endpoint, port uint16) []flow {
	if ref := endpoint.TargetRef; ref != nil && ref.Kind == "Pod" && len(s.selector) > 0 {
		if p := w.pods[name{ref.Namespace, ref.Name}]; p == nil || !p.hostNetwork {
			return []flow{{w.peerOf(s), port}}
		}
	}
	var flows []flow
	for _, a := range endpoint.Addresses {
		if addr, err := netip.ParseAddr(a); err == nil {
			flows = append(flows, flow{peer{addr: addr}, port})
		}
	}
	return flows
}

func (w *world) peerOf(s *service) peer {
	return peer{namespace: s.namespace, selector: s.selector, pods: w.podsOf(s.namespace, s.selector)}
}

// protocolOf is TCP where there is none, as in the API.
func protocolOf(p *corev1.Protocol) policy.Protocol {
	if p == nil || *p == "" {
		return policy.TCP
	}
	return policy.Protocol(*p)
}
