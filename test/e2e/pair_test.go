// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// path is a way for packets from one end to the other.
type path struct {
	device string // "" is within one end
	net    byte   // the path's number in its addresses
}

// The paths that there are between the ends of a pair.
var (
	overLoopback = path{device: "", net: 0}
	overVeth     = path{device: "e2e-veth", net: 1}
	overVLAN     = path{device: "e2e-vlan", net: 2}
	overTun      = path{device: "e2e-tun", net: 3}

	allPaths = []path{overLoopback, overVeth, overVLAN, overTun}
)

func (p path) String() string {
	if p.device == "" {
		return "loopback"
	}
	return p.device[len("e2e-"):]
}

// mtu of the devices between the ends, in bytes.
const mtu = 1500

// Link addresses of the ends' veth devices, and one that nobody has.
var (
	endMACs   = [2]net.HardwareAddr{{2, 0x77, 0, 0, 0, 1}, {2, 0x77, 0, 0, 0, 2}}
	nobodyMAC = net.HardwareAddr{2, 0x77, 0, 0, 0, 99}
)

// Hosts on each path beside the ends' own, 1 and 2.
const (
	nobody    = 99  // known by a link address that nobody has: a black hole
	broadcast = 255 // the subnet's, with IPv4
)

// address is a host's on the path. IPv6 addresses are as long as they get.
func (p path) address(family, host int) netip.Addr {
	if family == 4 {
		return netip.AddrFrom4([4]byte{10, 77, p.net, byte(host)})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd77:1111:2222:%x:4444:5555:6666:%x", 0x3330+int(p.net), 0x7700+host))
}

func (p path) prefix(family, host int) netip.Prefix {
	bits := map[int]int{4: 24, 6: 64}[family]
	if p == overLoopback {
		bits = map[int]int{4: 32, 6: 128}[family]
	}
	return netip.PrefixFrom(p.address(family, host), bits)
}

// isOurs tells the tests' addresses from those of this machine.
func isOurs(a netip.Addr) bool {
	for _, prefix := range []string{"10.77.0.0/16", "fd77:1111:2222::/48", "127.77.0.0/24"} {
		if netip.MustParsePrefix(prefix).Contains(a) {
			return true
		}
	}
	return false
}

var families = []int{4, 6}

// pair is two namespaces and the paths between them.
type pair struct {
	ends [2]*namespace
}

// newPair joins two namespaces. What it adds to them goes with the test.
func newPair(t *testing.T, a, b *namespace) *pair {
	t.Helper()
	p := &pair{ends: [2]*namespace{a, b}}
	joinVeth(t, p.ends, [2]string{overVeth.device, overVeth.device}, endMACs)
	for _, ns := range p.ends {
		ns.addVLAN(t, overVLAN.device, overVeth.device)
	}
	p.addTun(t)
	for i, ns := range p.ends {
		for _, family := range families {
			ns.address(t, "lo", overLoopback.prefix(family, i+1))
			for _, path := range allPaths[1:] {
				ns.address(t, path.device, path.prefix(family, i+1))
			}
			for _, path := range []path{overVeth, overVLAN} {
				ns.neighbour(t, path.device, path.address(family, 2-i), endMACs[1-i])
				ns.neighbour(t, path.device, path.address(family, nobody), nobodyMAC)
			}
		}
		t.Cleanup(func() { p.removeLoopback(t, i) })
	}
	return p
}

// removeLoopback takes back what is on no device of our own.
func (p *pair) removeLoopback(t *testing.T, end int) {
	ns := p.ends[end]
	lo, err := ns.links.LinkByName("lo")
	for _, family := range families {
		prefix := overLoopback.prefix(family, end+1)
		err = errors.Join(err, ns.links.AddrDel(lo, &netlink.Addr{IPNet: &net.IPNet{
			IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
		}}))
	}
	if err != nil {
		t.Errorf("removing the addresses of lo in %s: %v", ns.name, err)
	}
}

// add makes a device, which goes with the test.
func (ns *namespace) add(t *testing.T, link netlink.Link) {
	t.Helper()
	if err := ns.links.LinkAdd(link); err != nil {
		t.Fatalf("device %s in %s: %v", link.Attrs().Name, ns.name, err)
	}
	t.Cleanup(func() {
		if err := ns.links.LinkDel(link); err != nil {
			t.Errorf("removing device %s in %s: %v", link.Attrs().Name, ns.name, err)
		}
	})
}

// addTun joins two tun devices by a program, as a VPN does.
func (p *pair) addTun(t *testing.T) {
	t.Helper()
	var tuns [2]*os.File
	for i, ns := range p.ends {
		err := ns.do(func() (err error) {
			tuns[i], err = openTun(overTun.device)
			return err
		})
		if err != nil {
			t.Fatalf("device %s in %s: %v", overTun.device, ns.name, err)
		}
		ns.setUp(t, overTun.device)
	}
	done := make(chan error, len(tuns))
	for i := range tuns {
		go func() { done <- copyPackets(tuns[1-i], tuns[i]) }()
	}
	t.Cleanup(func() {
		err := errors.Join(tuns[0].Close(), tuns[1].Close(), <-done, <-done)
		if err != nil {
			t.Errorf("the tun devices: %v", err)
		}
	})
}

// openTun makes a device without link header in the namespace of this thread. It
// goes when the file is closed.
func openTun(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	ifreq, err := unix.NewIfreq(name)
	if err == nil {
		ifreq.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifreq)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

func copyPackets(to, from *os.File) error {
	packet := make([]byte, 64<<10)
	for {
		n, err := from.Read(packet)
		if err == nil {
			_, err = to.Write(packet[:n])
		}
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		// The other device may not be up yet, which is what EIO means.
		if err != nil && !errors.Is(err, unix.EIO) {
			return err
		}
	}
}
