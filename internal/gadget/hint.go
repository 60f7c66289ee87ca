// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"fmt"
	"io"
)

// hints tells of each kind of failure once what an operator looks at first.
type hints struct{ told map[string]bool }

func (h *hints) tell(w io.Writer, e Event) {
	if e.Kind != Failed {
		return
	}
	kind, line := hint(e)
	if line == "" || h.told[kind] {
		return
	}
	if h.told == nil {
		h.told = map[string]bool{}
	}
	h.told[kind] = true
	fmt.Fprintln(w, "  ^", line)
}

// hint is the kind of a failure, and a line about it.
func hint(e Event) (kind, line string) {
	own := e.By.IsValid() && e.By == e.Local.Addr()
	kind = fmt.Sprint(e.Egress, e.Cause, e.Reason, own)
	if !e.Egress {
		return kind, receivedHint(e)
	}
	switch e.Cause {
	case "rst":
		return kind, "RST by the peer: nobody listens there, or a firewall on the way rejects it"
	case "icmp":
		return kind, icmpHint(e, own)
	case "silence":
		return kind, "no answer: a firewall on the way drops it, the host is gone, or the listener's queue is full"
	case "no-route":
		return kind, fmt.Sprintf("this host has no route that leads there (%s): ip route get %s", e.Reason, e.Dst.Addr())
	case "no-port":
		return kind, "no port of this host's own is free: net.ipv4.ip_local_port_range, or too many connections to one endpoint"
	case "denied":
		switch e.Reason {
		case "connect-hook":
			return kind, "a program of its cgroup forbids the connect()"
		case "security-module":
			return kind, "a security module of this host (SELinux, AppArmor, Landlock) forbids the connect(): see the kernel's log"
		}
		return kind, "the firewall of this host drops it on its way out (OUTPUT), or a program of its cgroup does"
	case "gave-up":
		return kind, "the application closed it, was killed, or had waited long enough, before anybody answered"
	case "local-drop":
		return kind, "this host drops it on its way out: a queue is full, or a device is down"
	}
	return kind, ""
}

func receivedHint(e Event) string {
	switch e.Cause {
	case "rst":
		if e.By == e.Src.Addr() && e.By != e.Dst.Addr() {
			return "RST by the caller before the connection was there: a scan, or it has given up"
		}
		return "RST by this host: nobody listens there, or its firewall rejects it"
	case "icmp":
		return fmt.Sprintf("REJECT by this host's firewall (%s)", e.Reason)
	case "silence":
		return "the caller does not end the handshake: answers do not reach it, or its address is forged"
	case "local-drop":
		if e.Reason == "accept-queue-full" {
			return "the listener's queue is full: its process does not accept fast enough"
		}
		return "the firewall of this host drops it (INPUT)"
	}
	return ""
}

// icmpHint is about a message of ICMP, from this host itself or another one.
func icmpHint(e Event, own bool) string {
	switch e.Reason {
	case "host-unreachable", "address-unreachable":
		if own {
			return "no answer on the link: the host is gone, or nobody has that address"
		}
		return fmt.Sprintf("the router %s does not find that host behind it", e.By)
	case "net-unreachable", "no-route":
		return fmt.Sprintf("%s has no route that leads there", e.By)
	case "ttl-exceeded":
		return fmt.Sprintf("it goes round in a circle: a routing loop at %s", e.By)
	case "port-unreachable":
		if own {
			return "REJECT by this host (OUTPUT): its firewall, or a Service without endpoints"
		}
	}
	return fmt.Sprintf("REJECT by %s (%s): a firewall there", e.By, e.Reason)
}
