// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"encoding/binary"
	"net/netip"
)

// Numbers of include/uapi/linux/if_ether.h, in.h and in6.h.
const (
	ethernetLen = 14

	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeVLAN = 0x8100
	typeIPv6 = 0x86DD
	typeQinQ = 0x88A8

	protoHop      = 0
	protoICMP     = 1
	protoIPIP     = 4
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoGRE      = 47
	protoESP      = 50
	protoAH       = 51
	protoNone     = 59
	protoDest     = 60
	protoSCTP     = 132
	protoMobility = 135
	protoUDPLite  = 136
	protoHIP      = 139
	protoShim6    = 140

	fin = 0x01
	syn = 0x02
	rst = 0x04
	psh = 0x08
	ack = 0x10
	urg = 0x20
	ece = 0x40
	cwr = 0x80

	dontFragment  = 0x4000
	moreFragments = 0x2000 // of IPv4; an IPv6 fragment header has 0x0001
)

// synSequence is the sequence number of all TCP segments.
const synSequence = 0x01020304

// A packet is what a test sends, by its fields. Lengths are made to fit.
type packet struct {
	dstMAC   [6]byte  // all zero: this host's
	tags     []uint16 // VLAN tags by their protocol numbers, outermost first
	link     uint16   // Ethernet protocol; 0: that of the addresses
	src, dst netip.Addr
	options  []byte      // of IPv4, a multiple of 4 bytes
	fragment uint16      // flags and offset of IPv4
	chain    []extension // of IPv6

	proto        uint8
	sport, dport uint16
	flags        uint8  // of TCP
	tcpOptions   []byte // a multiple of 4 bytes
	payload      []byte
	padding      int // bytes behind the IP packet
}

// An extension is an IPv6 extension header.
type extension struct {
	proto    uint8
	hdrlen   uint8  // as the header has it
	fragment uint16 // a fragment header's offset and flags
}

// len is the header's length in bytes, see RFC 8200 section 4 and RFC 4302
// section 2.2.
func (e extension) len() int {
	switch e.proto {
	case protoFragment:
		return 8
	case protoAH:
		return (int(e.hdrlen) + 2) * 4
	default:
		return (int(e.hdrlen) + 1) * 8
	}
}

// with returns the packet changed.
func (p packet) with(changes ...func(*packet)) packet {
	for _, change := range changes {
		change(&p)
	}
	return p
}

// frame is the packet behind an Ethernet header.
func (p packet) frame() []byte {
	b := make([]byte, 0, 256)
	b = append(b, p.dstMAC[:]...)
	b = append(b, 0x02, 0, 0, 0, 0, 0xFE)
	for _, tag := range p.tags {
		b = binary.BigEndian.AppendUint16(b, tag)
		b = append(b, 0x20, 0x07) // priority 1, VLAN 7
	}
	link := p.link
	if link == 0 && p.src.Is4() {
		link = typeIPv4
	} else if link == 0 {
		link = typeIPv6
	}
	b = binary.BigEndian.AppendUint16(b, link)
	if p.src.Is4() {
		b = p.appendIPv4(b)
	} else {
		b = p.appendIPv6(b)
	}
	b = p.appendTransport(b)
	return append(b, make([]byte, p.padding)...)
}

func (p packet) transportLen() int {
	return map[uint8]int{protoTCP: 20 + len(p.tcpOptions), protoUDP: 8}[p.proto] + len(p.payload)
}

func (p packet) appendIPv4(b []byte) []byte {
	ihl := 20 + len(p.options)
	b = append(b, byte(0x40|ihl/4), 0)
	b = binary.BigEndian.AppendUint16(b, uint16(ihl+p.transportLen()))
	b = append(b, 0x12, 0x34)
	b = binary.BigEndian.AppendUint16(b, p.fragment)
	b = append(b, 64, p.proto, 0, 0)
	b = append(b, p.src.AsSlice()...)
	b = append(b, p.dst.AsSlice()...)
	return append(b, p.options...)
}

func (p packet) appendIPv6(b []byte) []byte {
	length := p.transportLen()
	for _, e := range p.chain {
		length += e.len()
	}
	next := func(i int) byte {
		if i < len(p.chain) {
			return p.chain[i].proto
		}
		return p.proto
	}
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, next(0), 64)
	b = append(b, p.src.AsSlice()...)
	b = append(b, p.dst.AsSlice()...)
	for i, e := range p.chain {
		at := len(b)
		b = append(b, make([]byte, e.len())...)
		b[at] = next(i + 1)
		b[at+1] = e.hdrlen
		if e.proto == protoFragment {
			binary.BigEndian.PutUint16(b[at+2:], e.fragment)
		}
	}
	return b
}

func (p packet) appendTransport(b []byte) []byte {
	switch p.proto {
	case protoTCP:
		b = binary.BigEndian.AppendUint16(b, p.sport)
		b = binary.BigEndian.AppendUint16(b, p.dport)
		b = binary.BigEndian.AppendUint32(b, synSequence)
		b = append(b, 0, 0, 0, 0, byte((20+len(p.tcpOptions))/4<<4), p.flags, 0xFF, 0xFF, 0, 0, 0, 0)
		b = append(b, p.tcpOptions...)
	case protoUDP:
		b = binary.BigEndian.AppendUint16(b, p.sport)
		b = binary.BigEndian.AppendUint16(b, p.dport)
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(p.payload)))
		b = append(b, 0, 0)
	}
	return append(b, p.payload...)
}

// number tells packets of the same ends apart: by a SYN's sequence, by the first
// bytes of a datagram, as they are.
func (p packet) number() uint32 {
	if p.proto == protoTCP {
		return synSequence
	}
	if len(p.payload) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(p.payload)
}

// event is what the program reports of the packet when it is an attempt.
func (p packet) event(egress bool, netns uint32) event {
	version := uint8(6)
	if p.src.Is4() {
		version = 4
	}
	return newEvent(egress, netns, version, p.proto,
		netip.AddrPortFrom(p.src, p.sport), netip.AddrPortFrom(p.dst, p.dport))
}

// nowhere is the end of a socket that is not known.
func nowhere(proto, version uint8) endpoint {
	addr := netip.IPv6Unspecified()
	if version == 4 {
		addr = netip.IPv4Unspecified()
	}
	return endpoint{netip.AddrPortFrom(addr, 0), proto, version}
}

// newEvent is an attempt of src to talk to dst, by nobody known. The peer is
// the remote address, with the port that was called.
func newEvent(egress bool, netns uint32, version, proto uint8, src, dst netip.AddrPort) event {
	peer := src.Addr()
	if egress {
		peer = dst.Addr()
	}
	end := func(a netip.AddrPort) endpoint { return endpoint{a, proto, version} }
	return event{
		Egress:   egress,
		NetNS:    netns,
		Protocol: proto,
		Src:      end(src),
		Dst:      end(dst),
		Peer:     end(netip.AddrPortFrom(peer, dst.Port())),
		Local:    nowhere(proto, version),
		Remote:   nowhere(proto, version),
	}
}
