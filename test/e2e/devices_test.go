// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// joinVeth puts a veth pair between two namespaces, or within one. Link
// addresses that are nil are the kernel's to choose.
func joinVeth(t *testing.T, ends [2]*namespace, names [2]string, macs [2]net.HardwareAddr) {
	t.Helper()
	ends[0].add(t, &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: names[0], HardwareAddr: macs[0], MTU: mtu},
		PeerName:         names[1],
		PeerHardwareAddr: macs[1],
		PeerNamespace:    netlink.NsFd(ends[1].fd),
	})
	for i, ns := range ends {
		ns.setUp(t, names[i])
	}
}

func (ns *namespace) addBridge(t *testing.T, device string, ports ...string) {
	t.Helper()
	ns.add(t, &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: device}})
	for _, port := range ports {
		ns.awaitUp(t, port) // else it joins in later
		ns.enslave(t, port, device)
	}
	ns.setUp(t, device)
}

// addBond makes one that takes its ports in turn, one a packet.
func (ns *namespace) addBond(t *testing.T, device string, ports ...string) {
	t.Helper()
	bond := netlink.NewLinkBond(netlink.LinkAttrs{Name: device})
	bond.Mode = netlink.BOND_MODE_BALANCE_RR
	ns.add(t, bond)
	for _, port := range ports {
		ns.setDown(t, port) // a bond takes none that is up, and starts it itself
		ns.enslave(t, port, device)
	}
	ns.setUp(t, device)
}

func (ns *namespace) addVLAN(t *testing.T, device, port string) {
	t.Helper()
	ns.add(t, &netlink.Vlan{
		LinkAttrs: netlink.LinkAttrs{Name: device, ParentIndex: ns.link(t, port).Attrs().Index},
		VlanId:    7,
	})
	ns.setUp(t, device)
}

func (ns *namespace) addMacvlan(t *testing.T, device string, ports ...string) {
	t.Helper()
	ns.add(t, &netlink.Macvlan{
		LinkAttrs: netlink.LinkAttrs{Name: device, ParentIndex: ns.link(t, ports[0]).Attrs().Index},
		Mode:      netlink.MACVLAN_MODE_BRIDGE,
	})
	ns.setUp(t, device)
}

func (ns *namespace) setDown(t *testing.T, device string) {
	t.Helper()
	if err := ns.links.LinkSetDown(ns.link(t, device)); err != nil {
		t.Fatalf("device %s in %s: down: %v", device, ns.name, err)
	}
}

func (ns *namespace) enslave(t *testing.T, port, device string) {
	t.Helper()
	if err := ns.links.LinkSetMaster(ns.link(t, port), ns.link(t, device)); err != nil {
		t.Fatalf("device %s in %s: as a port of %s: %v", port, ns.name, device, err)
	}
}

// awaitUp returns when a device carries packets: that its peer is up, it learns
// when the kernel finds the time.
func (ns *namespace) awaitUp(t *testing.T, device string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	bound := time.After(20 * time.Second)
	for ns.link(t, device).Attrs().OperState != netlink.OperUp {
		select {
		case <-tick.C:
		case <-bound:
			t.Fatalf("device %s in %s: not up in time", device, ns.name)
		}
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (ns *namespace) addRoute(t *testing.T, route *netlink.Route) {
	t.Helper()
	if err := ns.links.RouteAdd(route); err != nil {
		t.Fatalf("route %s in %s: %v", route, ns.name, err)
	}
}
