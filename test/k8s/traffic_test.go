// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// pod is one of testdata's.
type pod struct {
	namespace, name, app string
	addresses            []netip.Addr // IPv4, IPv6
}

// target is what a pod calls: an address, what the cluster calls that, and the pod that it leads to, if any.
type target struct {
	address netip.Addr
	port    uint16
	who     string
	pod     *pod
	comm    string // who serves it there; none: nobody does
	inPod   uint16 // port that the pod is called at
}

// call is one command in a pod.
type call struct {
	from     *pod
	command  string // wget, nc or nslookup: also the process's name
	name     string // that nslookup asks for; none: it asks to.address for one that nobody knows
	to       target
	fails    bool
	protocol string
}

// servedPort is where the pods' servers listen, closedPort where nobody does, namesPort that of DNS.
const (
	servicePort = 80
	servedPort  = 8080
	closedPort  = 9999
	namesPort   = 53
)

// traffic is what the pods do while the gadget watches.
type traffic struct {
	buyer, web, clerk, stock *pod
	names                    *pod   // the cluster's name server
	served                   []call // that somebody serves, or that leave the cluster
	unserved                 []call // that no pod's process takes
}

func (c *cluster) traffic(t *testing.T) traffic {
	t.Helper()
	var s traffic
	for to, name := range map[**pod]string{
		&s.buyer: "shop/buyer", &s.web: "shop/web", &s.clerk: "depot/clerk", &s.stock: "depot/stock", &s.names: "kube-system/coredns",
	} {
		*to = c.pod(t, name)
	}
	web, empty, stock := c.service(t, "shop", "web"), c.service(t, "shop", "empty"), c.service(t, "depot", "stock")
	s.served = []call{
		get(s.buyer, s.web.served(0)),
		get(s.buyer, s.web.served(1)),
		get(s.clerk, s.web.served(0)),
		get(s.buyer, s.web.behind(web[0], "svc shop/web")),
		get(s.clerk, s.web.behind(web[0], "svc shop/web")),
		get(s.buyer, s.web.behind(web[1], web[1].String())),
		get(s.buyer, s.stock.behind(stock[0], "svc depot/stock")),
		get(s.clerk, beyond(0, servicePort)),
		get(s.buyer, beyond(1, servicePort)),
		resolve(s.clerk, "web.shop.svc.cluster.local", s.names, c.service(t, "kube-system", "kube-dns")[0]),
		ask(s.clerk, beyond(0, namesPort)),
		ask(s.buyer, beyond(1, namesPort)),
	}
	s.unserved = []call{
		try(s.buyer, s.stock.closed(0, closedPort)),
		try(s.buyer, s.stock.closed(1, closedPort)),
		try(s.clerk, s.web.closed(0, closedPort)),
		try(s.clerk, target{address: empty[0], port: servicePort, who: "svc shop/empty"}),
		ask(s.clerk, s.web.closed(0, namesPort)),
	}
	return s
}

func get(from *pod, to target) call {
	return call{from: from, command: "wget", to: to, protocol: "TCP"}
}

func ask(from *pod, to target) call {
	return call{from: from, command: "nslookup", to: to, fails: true, protocol: "UDP"} // the name server knows no name
}

// has says whether an event is of what these pods do, and not of what the cluster does by itself: the name server is asked
// by the kubelet, and asks the API server.
func (s traffic) has(e event) bool {
	switch e.K8s.Namespace {
	case s.buyer.namespace, s.clerk.namespace:
		return true
	case s.names.namespace:
		return e.K8s.PodName == s.names.name && e.Endpoint.Port == namesPort
	}
	return false
}

// isCall says so of one of the calls, and not of those by which the runs tell how far they are.
func (s traffic) isCall(e event) bool { return s.has(e) && isNoProbe(e) }

// resolve asks the cluster's name server, as /etc/resolv.conf says.
func resolve(from *pod, name string, server *pod, service netip.Addr) call {
	to := target{address: service, port: namesPort, who: "svc kube-system/kube-dns", pod: server, comm: "coredns", inPod: namesPort}
	return call{from: from, command: "nslookup", name: name, to: to, protocol: "UDP"}
}

func try(from *pod, to target) call {
	return call{from: from, command: "nc", to: to, fails: true, protocol: "TCP"}
}

// who names a pod by one of its addresses as IG does, which knows a pod, or a service, by the first of its addresses alone.
func (p *pod) who(family int) string {
	if family == 0 {
		return "pod " + p.namespace + "/" + p.name
	}
	return p.addresses[family].String()
}

func (p *pod) served(family int) target {
	return target{address: p.addresses[family], port: servedPort, who: p.who(family), pod: p, comm: "httpd", inPod: servedPort}
}

func (p *pod) closed(family int, port uint16) target {
	return target{address: p.addresses[family], port: port, who: p.who(family), pod: p, inPod: port}
}

// behind is the pod by the address of its service.
func (p *pod) behind(service netip.Addr, who string) target {
	return target{address: service, port: servicePort, who: who, pod: p, comm: "httpd", inPod: servedPort}
}

func beyond(family int, port uint16) target {
	address := outside[family].Addr()
	return target{address: address, port: port, who: address.String()}
}

// make has the pod make the call.
func (c call) make(t *testing.T, in *cluster) {
	t.Helper()
	host := c.to.address.String()
	args := map[string][]string{
		"wget":     {"-q", "-O", "-", "http://" + net.JoinHostPort(host, fmt.Sprint(c.to.port)) + "/"},
		"nc":       {host, fmt.Sprint(c.to.port)},
		"nslookup": {"-type=a", "host.example", host},
	}[c.command]
	if c.name != "" {
		args = []string{"-type=a", c.name}
	}
	out, err := in.exec(c.from, append([]string{c.command}, args...)...)
	if (err != nil) != c.fails || c.command == "wget" && out != "hello" {
		t.Errorf("%s in %s of %s: got %q, %v; wanted it to fail: %v", c.command, c.from.name, c.to.who, out, err, c.fails)
	}
}

// attempts are what the gadget has to report of a call.
func (c call) attempts() []attempt {
	all := []attempt{c.from.attempt(attempt{
		comm: c.command, egress: true, endpoint: c.to.who, remote: c.to.who, port: c.to.port, protocol: c.protocol,
	})}
	if c.to.pod == nil {
		return all
	}
	family := 0
	if c.to.address.Is6() {
		family = 1
	}
	arrived := attempt{comm: c.to.comm, endpoint: c.from.who(family), remote: c.from.who(family), port: c.to.inPod, protocol: c.protocol}
	if c.to.comm == "" {
		arrived.remote = "nobody known" // there is no socket
	}
	return append(all, c.to.pod.attempt(arrived))
}

// attempt is one that this pod sees.
func (p *pod) attempt(a attempt) attempt {
	a.pod, a.labels, a.node = p.namespace+"/"+p.name, "app="+p.app, nodeName
	return a
}

func (c *cluster) pod(t *testing.T, name string) *pod {
	t.Helper()
	namespace, name, _ := strings.Cut(name, "/")
	return &pod{
		namespace: namespace, name: name, app: name,
		addresses: parseAll(t, c.must(t, "get", "pod", "-n", namespace, name, "-o", "jsonpath={.status.podIPs[*].ip}")),
	}
}

func (c *cluster) service(t *testing.T, namespace, name string) []netip.Addr {
	t.Helper()
	return parseAll(t, c.must(t, "get", "service", "-n", namespace, name, "-o", "jsonpath={.spec.clusterIPs[*]}"))
}

func parseAll(t *testing.T, list string) (all []netip.Addr) {
	t.Helper()
	for text := range strings.FieldsSeq(list) {
		address, err := netip.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, address)
	}
	return all
}

func (c *cluster) exec(in *pod, args ...string) (string, error) {
	return c.kubectl(c.ctx, append([]string{"exec", "-n", in.namespace, in.name, "--"}, args...)...)
}
