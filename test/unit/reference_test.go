// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// A reference reads packets with gopacket and says what the program has to
// report: the rules of DESIGN section 2 and 4, in Go.
//
//   - A frame is for this host or from it: received, its destination is the
//     device's address; sent, it is no group address.
//   - At most 8 VLAN tags, at most 6 IPv6 extension headers in any order.
//   - A packet is as long as its IP header says. What is behind is padding;
//     with less of it the packet is malformed. That goes for the TCP header and
//     the UDP datagram within the packet too, unless it is a first fragment.
//   - IP and TCP options, checksums and reserved bits decide nothing.
//
// Its layers are reused from packet to packet, for speed.
type reference struct {
	ethernet layers.Ethernet
	tag      layers.Dot1Q
	ipv4     layers.IPv4
	ipv6     layers.IPv6
	skipper  layers.IPv6ExtensionSkipper
	ah       layers.IPSecAH
	tcp      layers.TCP
	udp      layers.UDP

	truncated bool // what gopacket found during the last decoding
	scratch   []byte

	// What the last packet was, for those who count.
	tags, extensions int
	fragmented       bool
}

// SetTruncated implements gopacket.DecodeFeedback.
func (r *reference) SetTruncated() { r.truncated = true }

// A transport is what an IP packet carries.
type transport struct {
	version    uint8
	proto      layers.IPProtocol
	src, dst   netip.Addr
	data       []byte
	fragmented bool // the first of several: not all of the data is here
}

// frame reads an Ethernet frame that a device with the address mac sent or
// received. Without an attempt in it, ok is false.
func (r *reference) frame(frame []byte, egress bool, mac [6]byte, netns uint32) (want event, ok bool) {
	if r.ethernet.DecodeFromBytes(frame, r) != nil {
		return event{}, false
	}
	if egress && r.ethernet.DstMAC[0]&1 != 0 || !egress && !bytes.Equal(r.ethernet.DstMAC, mac[:]) {
		return event{}, false
	}
	link, data := r.ethernet.EthernetType, r.ethernet.Payload
	for r.tags = 0; link == layers.EthernetTypeDot1Q || link == layers.EthernetTypeQinQ; r.tags++ {
		if r.tags == 8 || r.tag.DecodeFromBytes(data, r) != nil {
			return event{}, false
		}
		link, data = r.tag.Type, r.tag.Payload
	}
	return r.packet(link, data, egress, netns)
}

// packet reads a packet without a link header.
func (r *reference) packet(link layers.EthernetType, data []byte, egress bool, netns uint32) (want event, ok bool) {
	// gopacket reads options, which must not decide; they are blanked in a copy.
	r.scratch = append(r.scratch[:0], data...)
	r.extensions = 0
	var t transport
	switch link {
	case layers.EthernetTypeIPv4:
		t, ok = r.readIPv4(r.scratch)
	case layers.EthernetTypeIPv6:
		t, ok = r.readIPv6(r.scratch)
	}
	if !ok || isGroup(t.dst) {
		return event{}, false
	}
	r.fragmented = t.fragmented
	var src, dst uint16
	switch t.proto {
	case layers.IPProtocolTCP:
		src, dst, ok = r.readTCP(t)
	case layers.IPProtocolUDP:
		src, dst, ok = r.readUDP(t)
	default:
		ok = false
	}
	if !ok {
		return event{}, false
	}
	return newEvent(egress, netns, t.version, uint8(t.proto),
		netip.AddrPortFrom(t.src, src), netip.AddrPortFrom(t.dst, dst)), true
}

func isGroup(a netip.Addr) bool {
	// netip calls ::ffff:224.0.0.1 multicast too, but it is no such IPv6 address.
	return a.IsMulticast() && !a.Is4In6() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func (r *reference) readIPv4(data []byte) (t transport, ok bool) {
	if len(data) >= 20 {
		fill(data, 20, int(data[0]&0xF)*4, byte(layers.TCPOptionKindNop)) // NOP in IPv4 too
	}
	r.truncated = false
	if r.ipv4.DecodeFromBytes(data, r) != nil || r.truncated || r.ipv4.Version != 4 {
		return t, false
	}
	// gopacket takes a length of 0 for an offloaded packet's; see ip_rcv_core()
	if binary.BigEndian.Uint16(data[2:]) == 0 || r.ipv4.FragOffset != 0 {
		return t, false
	}
	return transport{
		version:    4,
		proto:      r.ipv4.Protocol,
		src:        netip.AddrFrom4([4]byte(r.ipv4.SrcIP)),
		dst:        netip.AddrFrom4([4]byte(r.ipv4.DstIP)),
		data:       r.ipv4.Payload,
		fragmented: r.ipv4.Flags&layers.IPv4MoreFragments != 0,
	}, true
}

func (r *reference) readIPv6(data []byte) (t transport, ok bool) {
	if len(data) < 40 {
		return t, false
	}
	// gopacket counts the length from behind a hop-by-hop header.
	end := 40 + int(binary.BigEndian.Uint16(data[4:]))
	if end > len(data) {
		return t, false
	}
	// So it shall read the IPv6 header alone; the extensions come below.
	next := layers.IPProtocol(data[6])
	data[6] = byte(layers.IPProtocolNoNextHeader)
	if r.ipv6.DecodeFromBytes(data[:end], r) != nil || r.ipv6.Version != 6 {
		return t, false
	}
	t = transport{
		version: 6,
		proto:   next,
		src:     netip.AddrFrom16([16]byte(r.ipv6.SrcIP)),
		dst:     netip.AddrFrom16([16]byte(r.ipv6.DstIP)),
		data:    r.ipv6.Payload,
	}
	for r.extensions = 0; isExtension(t.proto); r.extensions++ {
		if r.extensions == 6 || !r.readExtension(&t) {
			return t, false
		}
	}
	return t, true
}

func isExtension(p layers.IPProtocol) bool {
	switch p {
	case layers.IPProtocolIPv6HopByHop, layers.IPProtocolIPv6Routing, layers.IPProtocolIPv6Fragment,
		layers.IPProtocolAH, layers.IPProtocolIPv6Destination:
		return true
	default:
		return false
	}
}

// readExtension goes on to what is behind t's extension header.
func (r *reference) readExtension(t *transport) bool {
	switch t.proto {
	case layers.IPProtocolIPv6Fragment:
		return readFragment(t)
	case layers.IPProtocolAH:
		return r.readAH(t)
	default:
		if r.skipper.DecodeFromBytes(t.data, r) != nil {
			return false
		}
		t.proto, t.data = r.skipper.NextHeader, r.skipper.Payload
		return true
	}
}

// readFragment takes a detour: gopacket has no reusable layer for fragments.
func readFragment(t *transport) bool {
	if len(t.data) < 8 {
		return false
	}
	p := gopacket.NewPacket(t.data[:8], layers.LayerTypeIPv6Fragment, gopacket.DecodeOptions{NoCopy: true})
	h := p.Layer(layers.LayerTypeIPv6Fragment).(*layers.IPv6Fragment)
	t.proto, t.data = h.NextHeader, t.data[8:]
	t.fragmented = t.fragmented || h.MoreFragments
	return h.FragmentOffset == 0
}

func (r *reference) readAH(t *transport) bool {
	// gopacket panics at an AH without its 12 bytes; see ipv6_skip_exthdr(),
	// which takes its length as any other.
	if len(t.data) >= 8 && t.data[1] == 0 {
		t.proto, t.data = layers.IPProtocol(t.data[0]), t.data[8:]
		return true
	}
	if r.ah.DecodeFromBytes(t.data, r) != nil {
		return false
	}
	t.proto, t.data = r.ah.NextHeader, r.ah.Payload
	return true
}

// readTCP finds segments with SYN and without ACK.
func (r *reference) readTCP(t transport) (src, dst uint16, ok bool) {
	if len(t.data) < 20 {
		return 0, 0, false
	}
	fill(t.data, 20, int(t.data[12]>>4)*4, byte(layers.TCPOptionKindNop))
	err := r.tcp.DecodeFromBytes(t.data, r)
	// A first fragment need not have all of the options.
	if r.tcp.DataOffset < 5 || err != nil && !t.fragmented {
		return 0, 0, false
	}
	return uint16(r.tcp.SrcPort), uint16(r.tcp.DstPort), r.tcp.SYN && !r.tcp.ACK
}

// readUDP finds datagrams to a low port.
func (r *reference) readUDP(t transport) (src, dst uint16, ok bool) {
	r.truncated = false
	if r.udp.DecodeFromBytes(t.data, r) != nil || r.truncated && !t.fragmented {
		return 0, 0, false
	}
	// Without a length it goes on to the packet's end, in IPv6 alone: see
	// __udp6_lib_rcv() and __udp4_lib_rcv().
	if r.udp.Length == 0 && t.version == 4 {
		return 0, 0, false
	}
	return uint16(r.udp.SrcPort), uint16(r.udp.DstPort), r.udp.DstPort < 1024
}

// fill sets those bytes of b from start to end that it has.
func fill(b []byte, start, end int, value byte) {
	for i := start; i < end && i < len(b); i++ {
		b[i] = value
	}
}
