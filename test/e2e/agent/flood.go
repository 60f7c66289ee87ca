// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// flood sends as fast as it can, and counts what the kernel has taken.
func flood(step attempt.Step, report *attempt.Report) error {
	if step.Protocol == attempt.TCP {
		return floodForged(step, report)
	}
	fd, err := unix.Socket(family(step), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	return sendCount(fd, step, report, func(int) []byte { return nil })
}

func sendCount(fd int, step attempt.Step, report *attempt.Report, packet func(i int) []byte) error {
	dst := sockaddr(step.Dst)
	for report.Packets < step.Count {
		err := unix.Sendto(fd, packet(report.Packets), 0, dst)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("sendto, after %d: %w", report.Packets, err)
		}
		report.Packets++
	}
	return nil
}

// Lengths in bytes, without options.
const (
	ipv4Header = 20
	tcpHeader  = 20
)

// floodForged sends IPv4 packets with a SYN segment each, from addresses that
// count up from that of Src.
func floodForged(step attempt.Step, report *attempt.Report) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	first := step.Src.Addr().As4()
	return sendCount(fd, step, report, func(i int) []byte {
		var src [4]byte
		binary.BigEndian.PutUint32(src[:], binary.BigEndian.Uint32(first[:])+uint32(i))
		return forgedSYN(netip.AddrPortFrom(netip.AddrFrom4(src), step.Src.Port()), step.Dst, uint32(i))
	})
}

// forgedSYN leaves the IPv4 header's length and checksum to the kernel, see
// raw(7).
func forgedSYN(src, dst netip.AddrPort, sequence uint32) []byte {
	packet := make([]byte, ipv4Header+tcpHeader)
	packet[0], packet[8], packet[9] = 4<<4|ipv4Header/4, 64, unix.IPPROTO_TCP
	copy(packet[12:16], src.Addr().AsSlice())
	copy(packet[16:20], dst.Addr().AsSlice())
	segment := packet[ipv4Header:]
	binary.BigEndian.PutUint16(segment, src.Port())
	binary.BigEndian.PutUint16(segment[2:], dst.Port())
	binary.BigEndian.PutUint32(segment[4:], sequence)
	segment[12], segment[13] = tcpHeader/4<<4, 1<<1 // SYN
	binary.BigEndian.PutUint16(segment[14:], 1<<15-1)
	binary.BigEndian.PutUint16(segment[16:], checksum(packet[12:], unix.IPPROTO_TCP+tcpHeader))
	return packet
}

// checksum is TCP's (RFC 9293, 3.1): over both addresses and the segment, and
// the protocol and length that are given as a sum.
func checksum(data []byte, sum uint32) uint16 {
	for i := 0; i < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
