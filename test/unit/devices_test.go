// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	jumboMTU = 65000
	// From a page on, the kernel takes a packet in parts when told to: see
	// packet_alloc_skb() and tun_alloc_skb().
	nonlinearLen = 5000
	// struct virtio_net_hdr of include/uapi/linux/virtio_net.h
	vnetHeaderLen, vnetHdrLenOffset = 10, 2
)

// A kind of wire.
type kind struct {
	name string
	open func(testing.TB) *wire
}

// kinds are the devices that the table passes. In fragments: with no more of a
// frame in the linear part of the packet than the link header, or one byte.
func kinds() []kind {
	return []kind{
		{"veth", func(tb testing.TB) *wire { return newVeth(tb, false) }},
		{"veth in fragments", func(tb testing.TB) *wire { return newVeth(tb, true) }},
		{"loopback", newLoopback},
		{"tun", func(tb testing.TB) *wire { return newTun(tb, false) }},
		{"tun in fragments", func(tb testing.TB) *wire { return newTun(tb, true) }},
	}
}

// newVeth is a pair of devices with an Ethernet header, each in a namespace of
// its own: what one sends, the other receives.
func newVeth(tb testing.TB, nonlinear bool) *wire {
	tb.Helper()
	here, there := newNetNS(tb), newNetNS(tb)
	mac := [6]byte{0x02, 0, 0, 0, 0, 0x02}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = "here", jumboMTU, net.HardwareAddr{0x02, 0, 0, 0, 0, 0x01}
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerHardwareAddr, pair.PeerMTU = "there", mac[:], jumboMTU
	pair.PeerNamespace = netlink.NsFd(there)
	withNetlink(tb, here, func(h *netlink.Handle) error { return h.LinkAdd(pair) })
	receiver, sender := setUp(tb, there, "there"), setUp(tb, here, "here")
	w := overEthernet(tb, sender, mac, nonlinear, here, there)
	w.devices = map[bool]uint32{true: uint32(sender), false: uint32(receiver)}
	return w
}

// newLoopback is the device that receives what it sends.
func newLoopback(tb testing.TB) *wire {
	tb.Helper()
	ns := newNetNS(tb)
	return overEthernet(tb, setUp(tb, ns, "lo"), loopbackMAC, false, ns)
}

// overEthernet is the wire from a device of the first namespace to the one
// with the address mac.
func overEthernet(tb testing.TB, index int, mac [6]byte, nonlinear bool, ends ...netns.NsHandle) *wire {
	tb.Helper()
	sender := newSender(tb, ends[0], index, nonlinear)
	w := &wire{
		namespaces: ends,
		inject:     func(frame []byte) error { return sender.send(frame, 0, ethernetLen) },
		adapt: func(frame []byte) ([]byte, bool) {
			frame = slices.Clone(frame)
			if len(frame) >= len(mac) && [6]byte(frame) == loopbackMAC {
				copy(frame, mac[:])
			}
			return pad(frame, nonlinear), true
		},
		want: func(r *reference, frame []byte, egress bool, netns uint32) (event, bool) {
			if !egress {
				frame = untag(frame)
			}
			return r.frame(frame, egress, mac, netns)
		},
	}
	return w.start(tb)
}

// untag takes out the first VLAN tag, see skb_vlan_untag(): the program does
// not see it in what was received.
func untag(frame []byte) []byte {
	if len(frame) < ethernetLen+4 {
		return frame
	}
	switch binary.BigEndian.Uint16(frame[ethernetLen-2:]) {
	case typeVLAN, typeQinQ:
		return slices.Delete(slices.Clone(frame), ethernetLen-2, ethernetLen+2)
	default:
		return frame
	}
}

func pad(frame []byte, nonlinear bool) []byte {
	if nonlinear && len(frame) < nonlinearLen {
		return append(frame, make([]byte, nonlinearLen-len(frame))...)
	}
	return frame
}

// newTun is a device without a link header: its packets are sent to and
// received from a file.
func newTun(tb testing.TB, nonlinear bool) *wire {
	tb.Helper()
	ns := newNetNS(tb)
	file := openTun(tb, ns)
	sender := newSender(tb, ns, setUp(tb, ns, "tun"), nonlinear)
	w := &wire{
		namespaces: []netns.NsHandle{ns},
		inject: func(frame []byte) error {
			data := frame[ethernetLen:]
			if err := sender.send(data, networkOrder(binary.BigEndian.Uint16(frame[ethernetLen-2:])), 1); err != nil {
				return err
			}
			// Nobody waits for what is sent, but the queue would become full.
			for buffer := make([]byte, jumboMTU); ; {
				if _, err := unix.Read(file, buffer); err != nil {
					break
				}
			}
			return receive(file, data)
		},
		adapt: func(frame []byte) ([]byte, bool) {
			if len(frame) <= ethernetLen {
				return nil, false
			}
			link := binary.BigEndian.Uint16(frame[ethernetLen-2:])
			return pad(slices.Clone(frame), nonlinear), link == typeIPv4 || link == typeIPv6
		},
		want: wantOfTun,
	}
	return w.start(tb)
}

// wantOfTun: a tun device takes the protocol from the version in the packet's
// first byte, see tun_get_user().
func wantOfTun(r *reference, frame []byte, egress bool, netns uint32) (event, bool) {
	link := layers.EthernetType(binary.BigEndian.Uint16(frame[ethernetLen-2:]))
	data := frame[ethernetLen:]
	if !egress {
		link = map[byte]layers.EthernetType{4: layers.EthernetTypeIPv4, 6: layers.EthernetTypeIPv6}[data[0]>>4]
	}
	return r.packet(link, data, egress, netns)
}

func openTun(tb testing.TB, ns netns.NsHandle) (file int) {
	tb.Helper()
	err := inside(ns, func() (err error) {
		file, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		tb.Cleanup(func() { _ = unix.Close(file) })
		request, err := unix.NewIfreq("tun")
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		return unix.IoctlIfreq(file, unix.TUNSETIFF, request)
	})
	if errors.Is(err, os.ErrNotExist) {
		tb.Skip("needs /dev/net/tun")
	}
	if err != nil {
		tb.Fatalf("making a tun device: %v", err)
	}
	withNetlink(tb, ns, func(h *netlink.Handle) error {
		link, err := h.LinkByName("tun")
		if err != nil {
			return err
		}
		return h.LinkSetMTU(link, jumboMTU)
	})
	return file
}

// receive lets the tun device receive a packet.
func receive(file int, data []byte) error {
	_, err := unix.Write(file, withVnetHeader(data, 1))
	if errors.Is(err, unix.EINVAL) && data[0]>>4 != 4 && data[0]>>4 != 6 {
		return errRejected
	}
	if err != nil {
		return fmt.Errorf("writing %x to the tun device: %w", data, err)
	}
	return nil
}

// withVnetHeader asks the kernel for a packet with so many bytes in its linear
// part, which it does for long packets alone.
func withVnetHeader(data []byte, linear int) []byte {
	b := make([]byte, vnetHeaderLen, vnetHeaderLen+len(data))
	if len(data) >= nonlinearLen {
		binary.NativeEndian.PutUint16(b[vnetHdrLenOffset:], uint16(linear))
	}
	return append(b, data...)
}

// A packetSender sends frames as they are.
type packetSender struct {
	fd, index int
	vnet      bool
}

func newSender(tb testing.TB, ns netns.NsHandle, index int, vnet bool) *packetSender {
	tb.Helper()
	s := &packetSender{index: index, vnet: vnet}
	err := inside(ns, func() (err error) {
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil || !vnet {
			return err
		}
		return unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
	})
	if err != nil {
		tb.Fatalf("opening a socket to send from: %v", err)
	}
	tb.Cleanup(func() { _ = unix.Close(s.fd) })
	return s
}

// send sends a frame whose protocol is given in network byte order; 0: as its
// Ethernet header says.
func (s *packetSender) send(frame []byte, protocol uint16, linear int) error {
	data := frame
	if s.vnet {
		data = withVnetHeader(frame, linear)
	}
	err := unix.Sendto(s.fd, data, 0, &unix.SockaddrLinklayer{Ifindex: s.index, Protocol: protocol})
	// see packet_snd() and dev_validate_header()
	if errors.Is(err, unix.EINVAL) && len(frame) <= ethernetLen {
		return errRejected
	}
	if err != nil {
		return fmt.Errorf("sending %x: %w", frame, err)
	}
	return nil
}

func withNetlink(tb testing.TB, ns netns.NsHandle, do func(*netlink.Handle) error) {
	tb.Helper()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		tb.Fatalf("opening netlink in a network namespace: %v", err)
	}
	defer h.Close()
	if err := do(h); err != nil {
		tb.Fatalf("setting up a device: %v", err)
	}
}

// setUp sets a device up and returns its index.
func setUp(tb testing.TB, ns netns.NsHandle, name string) (index int) {
	tb.Helper()
	withNetlink(tb, ns, func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		index = link.Attrs().Index
		return h.LinkSetUp(link)
	})
	return index
}
