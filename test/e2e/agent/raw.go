// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
)

// Lengths in bytes, beside those of flood.go.
const (
	ipv6Header = 40
	udpHeader  = 8
)

// madeSYNs counts the segments that this process has made: no two have one
// sequence number, else the second would be the first one sent again.
var madeSYNs = uint32(os.Getpid()) << 16

// sendMade sends packets of the agent's own making from a raw or a packet socket.
func sendMade(step attempt.Step, report *attempt.Report) error {
	open := openMaker
	if step.Do == attempt.Packet {
		open = openPacket
	}
	fd, to, err := open(step)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var packets [][][]byte
	for i := range max(step.Count, 1) {
		made := attempt.Report{Process: report.Process, Src: portAfter(step.Src, i), Dst: step.Dst, Packets: 1 + step.Again}
		packet, err := madePacket(step, made.Src)
		if err != nil {
			return err
		}
		packets = append(packets, parts(step, packet))
		report.Steps = append(report.Steps, made)
	}
	if step.Several {
		return sendSeveral(fd, packets, to)
	}
	for _, packet := range packets {
		for range 1 + step.Again {
			if _, err := unix.SendmsgBuffers(fd, packet, nil, to, 0); err != nil {
				return fmt.Errorf("sendmsg: %w", err)
			}
		}
	}
	return nil
}

func portAfter(a netip.AddrPort, i int) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), a.Port()+uint16(i))
}

// parts are the buffers that a packet is sent from.
func parts(step attempt.Step, packet []byte) [][]byte {
	if !step.Split {
		return [][]byte{packet}
	}
	const size = 6 // no header ends with a part
	return slices.Collect(slices.Chunk(packet, size))
}

// openMaker opens a raw socket, for packets with their IP header or without.
func openMaker(step attempt.Step) (fd int, to unix.Sockaddr, err error) {
	protocol := ipProtocol(step.Protocol)
	if step.Header {
		protocol = unix.IPPROTO_RAW
	}
	fd, err = unix.Socket(family(step), unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return 0, nil, fmt.Errorf("raw socket: %w", err)
	}
	// Ports are none of a raw socket's business; IPv6 refuses them.
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(step.Src.Addr(), 0))); err != nil {
		unix.Close(fd)
		return 0, nil, fmt.Errorf("binding a raw socket to %s: %w", step.Src.Addr(), err)
	}
	return fd, sockaddr(netip.AddrPortFrom(step.Dst.Addr(), 0)), nil
}

// openPacket opens a packet socket, for packets with their link header or without.
func openPacket(step attempt.Step) (fd int, to unix.Sockaddr, err error) {
	device, err := net.InterfaceByName(step.Device)
	if err != nil {
		return 0, nil, fmt.Errorf("device %s: %w", step.Device, err)
	}
	kind := unix.SOCK_DGRAM
	if step.Link {
		kind = unix.SOCK_RAW
	}
	fd, err = unix.Socket(unix.AF_PACKET, kind|unix.SOCK_CLOEXEC, 0) // 0: it receives nothing
	if err != nil {
		return 0, nil, fmt.Errorf("packet socket: %w", err)
	}
	address := &unix.SockaddrLinklayer{
		Protocol: networkOrder(etherType(step.Dst.Addr())), Ifindex: device.Index, Halen: uint8(len(step.LinkDst)),
	}
	copy(address.Addr[:], step.LinkDst)
	return fd, address, nil
}

func ipProtocol(p attempt.Protocol) int {
	if p == attempt.UDP {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

func etherType(a netip.Addr) int {
	if a.Is4() {
		return unix.ETH_P_IP
	}
	return unix.ETH_P_IPV6
}

// madePacket has the headers that the step's socket leaves to its user.
func madePacket(step attempt.Step, src netip.AddrPort) ([]byte, error) {
	packet := madeTransport(step.Protocol, src, step.Dst)
	if step.Header || step.Do == attempt.Packet {
		packet = append(madeIP(step.Protocol, src.Addr(), step.Dst.Addr(), len(packet)), packet...)
	}
	if !step.Link {
		return packet, nil
	}
	device, err := net.InterfaceByName(step.Device)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", step.Device, err)
	}
	link := slices.Concat(step.LinkDst, device.HardwareAddr)
	return append(binary.BigEndian.AppendUint16(link, uint16(etherType(src.Addr()))), packet...), nil
}

// madeTransport is a SYN segment or an empty datagram.
func madeTransport(p attempt.Protocol, src, dst netip.AddrPort) []byte {
	header, at := make([]byte, tcpHeader), 16
	if p == attempt.UDP {
		header, at = make([]byte, udpHeader), 6
		binary.BigEndian.PutUint16(header[4:], udpHeader)
	} else {
		madeSYNs++
		binary.BigEndian.PutUint32(header[4:], madeSYNs)
		header[12], header[13] = tcpHeader/4<<4, 1<<1 // SYN
		binary.BigEndian.PutUint16(header[14:], 1<<15-1)
	}
	binary.BigEndian.PutUint16(header, src.Port())
	binary.BigEndian.PutUint16(header[2:], dst.Port())
	pseudo := slices.Concat(src.Addr().AsSlice(), dst.Addr().AsSlice(), header)
	binary.BigEndian.PutUint16(header[at:], checksum(pseudo, uint32(ipProtocol(p)+len(header))))
	return header
}

// madeIP is a header without options, see RFC 791 and RFC 8200.
func madeIP(p attempt.Protocol, src, dst netip.Addr, payload int) []byte {
	if src.Is4() {
		header := make([]byte, ipv4Header)
		header[0], header[8], header[9] = 4<<4|ipv4Header/4, 64, byte(ipProtocol(p))
		binary.BigEndian.PutUint16(header[2:], uint16(ipv4Header+payload))
		copy(header[12:], src.AsSlice())
		copy(header[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(header[10:], checksum(header, 0))
		return header
	}
	header := make([]byte, ipv6Header)
	header[0], header[6], header[7] = 6<<4, byte(ipProtocol(p)), 64
	binary.BigEndian.PutUint16(header[4:], uint16(payload))
	copy(header[8:], src.AsSlice())
	copy(header[24:], dst.AsSlice())
	return header
}

// message is the kernel's struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

// sendSeveral sends packets in one call.
func sendSeveral(fd int, packets [][][]byte, to unix.Sockaddr) error {
	name, length, err := rawSockaddr(to)
	if err != nil {
		return err
	}
	messages := make([]message, len(packets))
	for i, packet := range packets {
		vectors := make([]unix.Iovec, len(packet))
		for j := range packet {
			vectors[j].Base = &packet[j][0]
			vectors[j].SetLen(len(packet[j]))
		}
		messages[i].header.Name, messages[i].header.Namelen = (*byte)(name), length
		messages[i].header.Iov = &vectors[0]
		messages[i].header.SetIovlen(len(vectors))
	}
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), 0, 0, 0)
	switch {
	case errno != 0:
		return fmt.Errorf("sendmmsg: %w", errno)
	case int(n) != len(messages):
		return errors.New("sendmmsg has sent some")
	}
	return nil
}

// rawSockaddr is an address as the kernel has it.
func rawSockaddr(a unix.Sockaddr) (name unsafe.Pointer, length uint32, err error) {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		raw := &unix.RawSockaddrInet4{Family: unix.AF_INET, Port: networkOrder(a.Port), Addr: a.Addr}
		return unsafe.Pointer(raw), unix.SizeofSockaddrInet4, nil
	case *unix.SockaddrInet6:
		raw := &unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: networkOrder(a.Port), Addr: a.Addr}
		return unsafe.Pointer(raw), unix.SizeofSockaddrInet6, nil
	case *unix.SockaddrLinklayer:
		raw := &unix.RawSockaddrLinklayer{
			Family: unix.AF_PACKET, Protocol: a.Protocol, Ifindex: int32(a.Ifindex), Halen: a.Halen, Addr: a.Addr,
		}
		return unsafe.Pointer(raw), unix.SizeofSockaddrLinklayer, nil
	default:
		return nil, 0, fmt.Errorf("%T is no address for it", a)
	}
}

// networkOrder is a number as the kernel reads it from a struct's field.
func networkOrder(v int) (n uint16) {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&n))[:], uint16(v))
	return n
}
