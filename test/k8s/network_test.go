// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// The network between the control plane and the node, and what is in the cluster. One of each family, IPv4 first.
var (
	controlAddresses = prefixes("10.90.0.1/24", "fd00:90::1/64")
	nodeAddresses    = prefixes("10.90.0.2/24", "fd00:90::2/64")
	podRanges        = prefixes("10.244.0.0/24", "fd00:244::/112")
	serviceRanges    = prefixes("10.96.0.0/16", "fd00:96::/112")
	// outside are addresses that are none of the cluster's.
	outside = prefixes("192.0.2.10/32", "2001:db8::10/128")
)

// tapName is the device that leads to the node.
const tapName = "to-node"

// makeNetwork makes the devices, the addresses and the routes of this network namespace, which is new.
func makeNetwork() error {
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: tapName}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI}
	if err := netlink.LinkAdd(tap); err != nil {
		return fmt.Errorf("tap device: %w (it takes root and /dev/net/tun)", err)
	}
	for _, fd := range tap.Fds {
		fd.Close()
	}
	for name, addresses := range map[string][]netip.Prefix{"lo": outside, tapName: controlAddresses} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		// Without a router of IPv6 to ask, and without the wait for another one that has the address.
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0o644); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("%s up: %w", name, err)
		}
		for _, address := range addresses {
			if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(address)}); err != nil {
				return fmt.Errorf("address %s: %w", address, err)
			}
		}
	}
	// What is in the cluster is behind the node.
	for i, gateway := range nodeAddresses {
		for _, there := range []netip.Prefix{podRanges[i], serviceRanges[i]} {
			if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(there), Gw: gateway.Addr().AsSlice()}); err != nil {
				return fmt.Errorf("route to %s: %w", there, err)
			}
		}
	}
	return nil
}

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func addresses(of []netip.Prefix) (all []netip.Addr) {
	for _, prefix := range of {
		all = append(all, prefix.Addr())
	}
	return all
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// join writes a list as Kubernetes' flags have it.
func join[T fmt.Stringer](list []T) (s string) {
	for i, item := range list {
		if i > 0 {
			s += ","
		}
		s += item.String()
	}
	return s
}
