// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"fmt"
	"net/netip"
)

// event is what `kubectl gadget run -o json` prints, a line each, as far as the tests ask; or a row of counts, of which it
// prints a list each time.
type event struct {
	Event    string
	Retries  int
	Attempts int    // of a row
	Comm     string // likewise
	Egress   bool
	Protocol string
	Proc     struct{ Comm string }
	Endpoint endpoint
	Remote   endpoint
	Error    string
	Cause    string
	K8s      struct {
		Namespace string
		PodName   string
		PodLabels string
		Node      string
	}
}

type endpoint struct {
	Addr netip.Addr
	Port uint16
	K8s  struct{ Kind, Namespace, Name string }
}

// who is an endpoint as the cluster names it: a pod, a service, or an address.
func (e endpoint) who() string {
	switch {
	case e.K8s.Kind != "raw":
		return fmt.Sprintf("%s %s/%s", e.K8s.Kind, e.K8s.Namespace, e.K8s.Name)
	case e.Addr.IsUnspecified():
		return "nobody known"
	}
	return e.Addr.String()
}

// attempt is what an event tells of one: comparable, and all that has to be right.
type attempt struct {
	pod, labels, node string
	comm              string
	egress            bool
	endpoint, remote  string
	port              uint16
	protocol          string
}

func (a attempt) String() string {
	way := "called by"
	if a.egress {
		way = "calls"
	}
	return fmt.Sprintf("%s (%s, on %s) %q %s %s (to its socket: %s) at port %d, %s",
		a.pod, a.labels, a.node, a.comm, way, a.endpoint, a.remote, a.port, a.protocol)
}

// isAttempt says whether it is one, or counts some.
func (e event) isAttempt() bool { return e.Event == "attempt" || e.Attempts > 0 }

func (e event) attempt() attempt {
	a := attempt{
		pod: e.K8s.Namespace + "/" + e.K8s.PodName, labels: e.K8s.PodLabels, node: e.K8s.Node, comm: e.Proc.Comm, egress: e.Egress,
		endpoint: e.Endpoint.who(), remote: e.Remote.who(), port: e.Endpoint.Port, protocol: e.Protocol,
	}
	if e.Attempts > 0 {
		a.comm, a.remote = e.Comm, ""
	}
	return a
}

// counted is the attempt as a row has it.
func (a attempt) counted() attempt {
	a.remote = ""
	return a
}

// outcome is how an attempt that a pod made went on.
type outcome struct {
	pod, endpoint string
	port          uint16
	event         string
	err, cause    string
}

func (e event) outcome() outcome {
	return outcome{
		pod: e.K8s.Namespace + "/" + e.K8s.PodName, endpoint: e.Endpoint.who(), port: e.Endpoint.Port,
		event: e.Event, err: e.Error, cause: e.Cause,
	}
}
