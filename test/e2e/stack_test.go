// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stack is devices on top of one another, the same at both ends of a pair.
type stack struct {
	path  path // by the uppermost device
	ports int  // veth devices at the bottom
	raise func(ns *namespace, t *testing.T, device string, ports ...string)
	// How many devices of an end see a packet that it sends, and one that it
	// receives. To a device that has another link address a received packet is
	// another host's.
	sent, received int
}

var (
	overPlain     = stack{path: path{"e2e-plain", 10}, ports: 1, raise: (*namespace).addPlain, sent: 1, received: 1}
	overBridge    = stack{path: path{"e2e-bridge", 11}, ports: 1, raise: (*namespace).addBridge, sent: 2, received: 2}
	overBridgeMAC = stack{path: path{"e2e-bridge-mac", 12}, ports: 1, raise: (*namespace).addBridgeWithMAC, sent: 2, received: 1}
	overFlood     = stack{path: path{"e2e-flood", 13}, ports: 1, raise: (*namespace).addForgetfulBridge, sent: 3, received: 1}
	overBond      = stack{path: path{"e2e-bond", 14}, ports: 2, raise: (*namespace).addBond, sent: 2, received: 2}
	overBondVLAN  = stack{path: path{"e2e-bond-vlan", 15}, ports: 2, raise: (*namespace).addVLANOnBond, sent: 3, received: 3}
	// A bridge takes a tagged packet for itself as it does others.
	overBridgeVLAN = stack{path: path{"e2e-bridge-vlan", 16}, ports: 1, raise: (*namespace).addVLANOnBridge, sent: 3, received: 3}
	overMacvlan    = stack{path: path{"e2e-macvlan", 17}, ports: 1, raise: (*namespace).addMacvlan, sent: 2, received: 1}

	allStacks = []stack{overPlain, overBridge, overBridgeMAC, overFlood, overBond, overBondVLAN, overBridgeVLAN, overMacvlan}
)

// add makes the stack's devices. They go with the test.
func (s stack) add(t *testing.T, p *pair) {
	t.Helper()
	var ports []string
	for i := range s.ports {
		port := fmt.Sprintf("e2e-port-%d-%d", s.path.net, i)
		joinVeth(t, p.ends, [2]string{port, port}, [2]net.HardwareAddr{})
		ports = append(ports, port)
	}
	for _, ns := range p.ends {
		s.raise(ns, t, s.path.device, ports...)
	}
	for i, ns := range p.ends {
		ns.awaitUp(t, s.path.device)
		ns.addHosts(t, s.path, i, p.ends[1-i])
	}
}

// device is an end's that has its address.
func (s stack) device(end int) string {
	if s.path == overItself.path && end == 1 {
		return itselfEnd
	}
	return s.path.device
}

// addHosts gives an end its addresses on a path, and the link addresses of the
// other end and of nobody.
func (ns *namespace) addHosts(t *testing.T, path path, end int, other *namespace) {
	t.Helper()
	mac := other.link(t, path.device).Attrs().HardwareAddr
	for _, family := range families {
		ns.address(t, path.device, path.prefix(family, end+1))
		ns.neighbour(t, path.device, path.address(family, 2-end), mac)
		ns.neighbour(t, path.device, path.address(family, nobody), nobodyMAC)
	}
}

// addPlain has no more than the port, under another name.
func (ns *namespace) addPlain(t *testing.T, device string, ports ...string) {
	t.Helper()
	ns.setDown(t, ports[0])
	if err := ns.links.LinkSetName(ns.link(t, ports[0]), device); err != nil {
		t.Fatalf("device %s in %s: as %s: %v", ports[0], ns.name, device, err)
	}
	ns.setUp(t, device)
}

func (ns *namespace) addBridgeWithMAC(t *testing.T, device string, ports ...string) {
	t.Helper()
	ns.addBridge(t, device, ports...)
	mac := net.HardwareAddr{2, 0x77, 0, 0, 1, byte(ns.inode)}
	if err := ns.links.LinkSetHardwareAddr(ns.link(t, device), mac); err != nil {
		t.Fatalf("device %s in %s: link address %s: %v", device, ns.name, mac, err)
	}
}

// addForgetfulBridge makes one that learns no link address from its first port:
// what goes there goes out by another port as well.
func (ns *namespace) addForgetfulBridge(t *testing.T, device string, ports ...string) {
	t.Helper()
	unused := [2]string{"e2e-unused", "e2e-unused-end"}
	joinVeth(t, [2]*namespace{ns, ns}, unused, [2]net.HardwareAddr{})
	ns.addBridgeWithMAC(t, device, ports[0], unused[0])
	if err := ns.links.LinkSetLearning(ns.link(t, ports[0]), false); err != nil {
		t.Fatalf("port %s in %s: learning off: %v", ports[0], ns.name, err)
	}
	ns.setDown(t, device) // it forgets what it has learnt
	ns.setUp(t, device)
}

func (ns *namespace) addVLANOnBond(t *testing.T, device string, ports ...string) {
	t.Helper()
	ns.addBond(t, "e2e-below-bond", ports...)
	ns.addVLAN(t, device, "e2e-below-bond")
}

func (ns *namespace) addVLANOnBridge(t *testing.T, device string, ports ...string) {
	t.Helper()
	ns.addBridge(t, "e2e-below-br", ports...)
	ns.addVLAN(t, device, "e2e-below-br")
}

// overItself is a veth pair with both ends in one namespace, which are hosts 1
// and 2.
var overItself = stack{path: path{"e2e-itself", 18}, sent: 1, received: 1}

const itselfEnd = "e2e-itself-end"

// addItself makes such a pair, and has packets cross it, which would go by the
// loopback interface.
func (ns *namespace) addItself(t *testing.T) {
	t.Helper()
	devices := [2]string{overItself.path.device, itselfEnd}
	joinVeth(t, [2]*namespace{ns, ns}, devices, [2]net.HardwareAddr{})
	for _, family := range families {
		ns.putRulesBeforeLocal(t, family)
		for i, device := range devices {
			there := overItself.path.address(family, 2-i)
			ns.address(t, device, overItself.path.prefix(family, i+1))
			ns.neighbour(t, device, there, ns.link(t, devices[1-i]).Attrs().HardwareAddr)
			ns.routeBy(t, device, there)
		}
	}
}

const (
	ruleTable     = 77
	rulePriority  = 10
	localPriority = 100
)

// putRulesBeforeLocal moves the rule for local addresses from the very first
// place.
func (ns *namespace) putRulesBeforeLocal(t *testing.T, family int) {
	t.Helper()
	for _, step := range []struct {
		change   func(*netlink.Rule) error
		priority int
	}{{ns.links.RuleAdd, localPriority}, {ns.links.RuleDel, 0}} {
		rule := netlink.NewRule()
		rule.Family, rule.Priority, rule.Table = afOf(family), step.priority, unix.RT_TABLE_LOCAL
		if err := step.change(rule); err != nil {
			t.Fatalf("rule %s in %s: %v", rule, ns.name, err)
		}
	}
}

// routeBy has what is sent here to an address leave by a device.
func (ns *namespace) routeBy(t *testing.T, device string, addr netip.Addr) {
	t.Helper()
	dst := ipNet(netip.PrefixFrom(addr, addr.BitLen()))
	ns.addRoute(t, &netlink.Route{LinkIndex: ns.link(t, device).Attrs().Index, Dst: dst, Table: ruleTable})
	rule := netlink.NewRule()
	rule.Priority, rule.Table, rule.Dst = rulePriority, ruleTable, dst
	rule.IifName = "lo" // sent, and not forwarded
	if err := ns.links.RuleAdd(rule); err != nil {
		t.Fatalf("rule %s in %s: %v", rule, ns.name, err)
	}
}

func afOf(family int) int { return map[int]int{4: unix.AF_INET, 6: unix.AF_INET6}[family] }

// overBridged is a path between a bridge's ports. The bridge has no address.
var overBridged = stack{path: path{"e2e-bridged", 19}, sent: 1, received: 1}

// addBridged joins a pair by a bridge in another namespace.
func (p *pair) addBridged(t *testing.T, through *namespace) {
	t.Helper()
	var ports []string
	for i, ns := range p.ends {
		port := fmt.Sprintf("e2e-bridged-%d", i)
		joinVeth(t, [2]*namespace{ns, through}, [2]string{overBridged.path.device, port}, [2]net.HardwareAddr{})
		ports = append(ports, port)
	}
	through.addBridge(t, overBridged.path.device, ports...)
	through.awaitUp(t, overBridged.path.device)
	for i, ns := range p.ends {
		ns.awaitUp(t, overBridged.path.device)
		ns.addHosts(t, overBridged.path, i, p.ends[1-i])
	}
}
