// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/binary"
	"slices"
)

// Numbers of include/uapi/linux/if_ether.h, in.h, in6.h and tcp.h.
const (
	ethernetLen = 14
	typeIPv4    = 0x0800
	typeARP     = 0x0806
	typeIPv6    = 0x86DD

	protoTCP  = 6
	protoUDP  = 17
	protoDest = 60 // destination options of IPv6

	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10

	highPort = 50_000
	dnsPort  = 53
)

// kind is a kind of packet, as an interface hands it to a filter.
type kind struct {
	name     string
	frame    []byte
	segments uint32 // of a super-packet: how many the wire has of it
	attempt  bool
}

// proto is the number behind the IP header; of other packets none.
func (k kind) proto() byte {
	switch packet := k.frame[ethernetLen:]; packet[0] >> 4 {
	case 4:
		return packet[9]
	case 6:
		return packet[6]
	default:
		return 0
	}
}

// kinds are what is measured: a host's usual packets first.
func kinds() []kind {
	const (
		small = 100   // bytes of payload
		quic  = 1_200 // of a datagram, RFC 9000 section 14
		// A page has to hold the packet, which is one part of it in BPF_PROG_TEST_RUN.
		super = 2 * 1_200
	)
	all := []kind{{name: "ARP", frame: frame(typeARP, make([]byte, 28))}}
	for _, v := range []struct {
		name string
		ip   func(proto byte, rest []byte) []byte
	}{{"IPv4", ipv4}, {"IPv6", ipv6}} {
		all = append(all,
			kind{name: "TCP data, " + v.name, frame: v.ip(protoTCP, tcp(flagACK, small))},
			kind{name: "TCP data of many segments, " + v.name, frame: v.ip(protoTCP, tcp(flagACK, super)), segments: 2},
			kind{name: "UDP to a high port, " + v.name, frame: v.ip(protoUDP, udp(highPort, small))},
			kind{name: "UDP of QUIC's size, " + v.name, frame: v.ip(protoUDP, udp(highPort, quic-8))},
			kind{name: "SYN+ACK, " + v.name, frame: v.ip(protoTCP, tcp(flagSYN|flagACK, 0))},
			kind{name: "RST, " + v.name, frame: v.ip(protoTCP, tcp(flagRST, 0))},
		)
	}
	return append(all,
		kind{name: "TCP data, IPv6, options", frame: ipv6(protoDest, options(protoTCP, tcp(flagACK, small)))},
		kind{name: "UDP to a high port, IPv6, options", frame: ipv6(protoDest, options(protoUDP, udp(highPort, small)))},
	)
}

// attempts are what the gadget reports.
func attempts() []kind {
	return []kind{
		{name: "SYN, IPv4", frame: ipv4(protoTCP, tcp(flagSYN, 0)), attempt: true},
		{name: "SYN, IPv6", frame: ipv6(protoTCP, tcp(flagSYN, 0)), attempt: true},
		{name: "UDP to port 53, IPv4", frame: ipv4(protoUDP, udp(dnsPort, 40)), attempt: true},
		{name: "UDP to port 53, IPv6", frame: ipv6(protoUDP, udp(dnsPort, 40)), attempt: true},
	}
}

// frame goes to the loopback device's address, which is zero.
func frame(protocol uint16, packet []byte) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, ethernetLen-2), protocol), packet...)
}

func ipv4(proto byte, rest []byte) []byte {
	header := make([]byte, 20)
	header[0], header[8], header[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(rest)))
	copy(header[12:], []byte{192, 0, 2, 1, 192, 0, 2, 2})
	return frame(typeIPv4, append(header, rest...))
}

func ipv6(proto byte, rest []byte) []byte {
	header := make([]byte, 40)
	header[0], header[6], header[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(header[4:], uint16(len(rest)))
	for i, last := range []byte{1, 2} {
		copy(header[8+16*i:], []byte{0x20, 0x01, 0x0D, 0xB8})
		header[8+16*i+15] = last
	}
	return frame(typeIPv6, append(header, rest...))
}

// options is one extension header of IPv6 with nothing but padding.
func options(proto byte, rest []byte) []byte {
	return append([]byte{proto, 0, 1, 4, 0, 0, 0, 0}, rest...)
}

func tcp(flags byte, payload int) []byte {
	header := make([]byte, 20+payload)
	binary.BigEndian.PutUint16(header, 40_000)
	binary.BigEndian.PutUint16(header[2:], highPort)
	header[12], header[13] = 5<<4, flags
	return header
}

func udp(port uint16, payload int) []byte {
	header := make([]byte, 8+payload)
	binary.BigEndian.PutUint16(header, 40_000)
	binary.BigEndian.PutUint16(header[2:], port)
	binary.BigEndian.PutUint16(header[4:], uint16(len(header)))
	return header
}

// data is what BPF_PROG_TEST_RUN takes: a filter finds the packet from the IP header
// on. One that counts from the Ethernet header finds that behind another one.
func (k kind) data(ethernet bool) []byte {
	if ethernet {
		return slices.Concat(k.frame[:ethernetLen], k.frame)
	}
	return k.frame
}
