// SPDX-License-Identifier: Apache-2.0

//go:build hooks

package unit

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// threadName is what the tests' sending threads call themselves.
const threadName = "fifteen-letters"

// inThreadOf runs do on a thread of the namespace that has another name than its
// process, and returns both.
func inThreadOf(t *testing.T, ns netns.NsHandle, do func() error) (self process, err error) {
	t.Helper()
	err = inside(ns, func() error {
		name, err := unix.BytePtrFromString(threadName)
		if err != nil {
			return err
		}
		if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0, 0, 0); err != nil {
			return fmt.Errorf("naming a thread: %w", err)
		}
		runtime.KeepAlive(name)
		if self, err = thisProcess(); err != nil {
			return err
		}
		return do()
	})
	return self, err
}

// thisProcess is the calling thread, but for what it cannot know: which of its
// parent's threads has started it.
func thisProcess() (process, error) {
	comm, err1 := os.ReadFile("/proc/self/comm")
	parent, err2 := os.ReadFile(fmt.Sprintf("/proc/%d/comm", os.Getppid()))
	var mntns unix.Stat_t
	err3 := unix.Stat("/proc/thread-self/ns/mnt", &mntns)
	return process{
		Comm: strings.TrimSpace(string(comm)), ParentComm: strings.TrimSpace(string(parent)), Thread: threadName,
		PID: uint64(os.Getpid()), TID: uint64(unix.Gettid()), ParentPID: uint64(os.Getppid()),
		UID: uint64(os.Getuid()), GID: uint64(os.Getgid()), MntNS: mntns.Ino, Set: true,
	}, errors.Join(err1, err2, err3)
}

// withoutParentTID is a process as far as thisProcess() knows it.
func withoutParentTID(p process) process {
	p.ParentTID = 0
	return p
}

// A rawKey is a key of the raw senders, without its namespace.
type rawKey struct {
	number         uint32
	sport, dport   uint16
	version, proto uint8
}

func keyOf(p packet) rawKey {
	return rawKey{p.number(), p.sport, p.dport, uint8(version(p.src)), p.proto}
}

// rawSenders are those of a namespace.
func (b *book) rawSenders(t *testing.T, netns uint32) map[rawKey]process {
	t.Helper()
	all := map[rawKey]process{}
	for _, key := range b.keysOf(t, netns, "") {
		value := make([]byte, b.value.size)
		if err := b.Lookup(key, value); err != nil {
			t.Fatal(err)
		}
		number := func(name string) uint64 { return b.key.field(name).uint(key) }
		all[rawKey{
			uint32(number("number")), uint16(number("sport")), uint16(number("dport")),
			uint8(number("version")), uint8(number("proto")),
		}] = withoutParentTID(b.value.decodeProcess(value))
	}
	return all
}

// A rawSocket is one that packets are sent from.
type rawSocket struct {
	domain, kind, proto int
	headers             bool // IP_HDRINCL
}

// message sends some bytes, in pieces.
func (s rawSocket) message(to unix.Sockaddr, pieces ...[]byte) func() error {
	return s.with(func(fd int) error {
		_, err := unix.SendmsgBuffers(fd, pieces, nil, to, 0)
		return err
	})
}

// datagram sends some bytes by sendto().
func (s rawSocket) datagram(to unix.Sockaddr, data []byte) func() error {
	return s.with(func(fd int) error { return unix.Sendto(fd, data, 0, to) })
}

func (s rawSocket) with(send func(fd int) error) func() error {
	return func() error {
		fd, err := unix.Socket(s.domain, s.kind|unix.SOCK_CLOEXEC, s.proto)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		if s.headers {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_HDRINCL, 1); err != nil {
				return err
			}
		}
		return send(fd)
	}
}

// sendMany sends messages of one piece each by one sendmmsg().
func sendMany(to unix.SockaddrInet4, messages ...[]byte) func(fd int) error {
	type mmsghdr struct {
		header unix.Msghdr
		length uint32
	}
	return func(fd int) error {
		addr := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr}
		headers, pieces := make([]mmsghdr, len(messages)), make([]unix.Iovec, len(messages))
		for i, m := range messages {
			pieces[i].Base = &m[0]
			pieces[i].SetLen(len(m))
			h := &headers[i].header
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&addr)), unix.SizeofSockaddrInet4
			h.Iov = &pieces[i]
			h.SetIovlen(1)
		}
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&headers[0])), uintptr(len(headers)), 0, 0, 0)
		if errno != 0 || int(n) != len(messages) {
			return fmt.Errorf("sendmmsg: %d of %d messages: %w", n, len(messages), errno)
		}
		return nil
	}
}

// A sendingCase is a system call, and whom it leaves as the sender of what.
type sendingCase struct {
	name string
	send func() error
	want []packet
}

func rawCases() []sendingCase {
	tcp4, udp4 := between(protoTCP, here4, there4), between(protoUDP, here4, there4)
	tcp6, udp6 := between(protoTCP, here6, here6), between(protoUDP, here6, here6)
	udp4.payload, udp6.payload = []byte("question"), []byte("question")
	another := udp4.with(func(p *packet) { p.payload, p.sport = []byte("another"), 1000 })
	transport := func(p packet) []byte { return p.frame()[p.l4():] }
	ip := func(p packet) []byte { return p.frame()[l3:] }
	to4, to6 := &unix.SockaddrInet4{Addr: there4.Addr().As4()}, &unix.SockaddrInet6{Addr: here6.Addr().As16()}
	raw := func(domain, proto int) rawSocket { return rawSocket{domain: domain, kind: unix.SOCK_RAW, proto: proto} }
	headers := func(domain int) rawSocket { return rawSocket{domain, unix.SOCK_RAW, unix.IPPROTO_RAW, true} }
	cut := func(b []byte, at ...int) (pieces [][]byte) {
		for _, n := range at {
			pieces, b = append(pieces, b[:n]), b[n:]
		}
		return append(pieces, b)
	}
	return []sendingCase{
		{"a datagram", raw(unix.AF_INET, protoUDP).datagram(to4, transport(udp4)), []packet{udp4}},
		{"a SYN", raw(unix.AF_INET, protoTCP).datagram(to4, transport(tcp4)), []packet{tcp4}},
		{"an IPv6 datagram", raw(unix.AF_INET6, protoUDP).datagram(to6, transport(udp6)), []packet{udp6}},
		{"an IPv6 SYN", raw(unix.AF_INET6, protoTCP).datagram(to6, transport(tcp6)), []packet{tcp6}},
		{"a datagram by sendmsg()", raw(unix.AF_INET, protoUDP).message(to4, transport(udp4)), []packet{udp4}},
		{"a datagram in three pieces", raw(unix.AF_INET, protoUDP).message(to4, cut(transport(udp4), 2, 7)...), []packet{udp4}},
		{"a SYN in four pieces", raw(unix.AF_INET6, protoTCP).message(to6, cut(transport(tcp6), 1, 4, 10)...), []packet{tcp6}},
		{
			"two datagrams at once", raw(unix.AF_INET, protoUDP).with(sendMany(*to4, transport(udp4), transport(another))),
			[]packet{udp4, another},
		},
		{"with an IP header", headers(unix.AF_INET).datagram(to4, ip(udp4)), []packet{udp4}},
		{"with IP options", headers(unix.AF_INET).datagram(to4, ip(tcp4.with(options(8)))), []packet{tcp4}},
		{"with an IP header, in pieces", headers(unix.AF_INET).message(to4, cut(ip(tcp4), 20, 8)...), []packet{tcp4}},
		{"with an IPv6 header", raw(unix.AF_INET6, unix.IPPROTO_RAW).datagram(to6, ip(udp6)), []packet{udp6}},

		{"the end of a header is missing", raw(unix.AF_INET, protoUDP).datagram(to4, transport(udp4)[:7]), nil},
		{"the end of a SYN is missing", raw(unix.AF_INET, protoTCP).datagram(to4, transport(tcp4)[:19]), nil},
		{"an echo request", raw(unix.AF_INET, protoICMP).datagram(to4, []byte{8, 0, 0xF7, 0xFF, 0, 0, 0, 0}), nil},
		{"an IP header of another protocol", headers(unix.AF_INET).datagram(to4, ip(udp4.with(proto(253)))), nil},
		{
			"an extension header", raw(unix.AF_INET6, unix.IPPROTO_RAW).datagram(to6, ip(udp6.with(chain(extension{proto: protoDest})))),
			nil,
		},
	}
}

func packetCases() []sendingCase {
	const loopback = 1
	device := func(link uint16) unix.Sockaddr {
		return &unix.SockaddrLinklayer{Ifindex: loopback, Protocol: networkOrder(link), Halen: 6}
	}
	frames := rawSocket{domain: unix.AF_PACKET, kind: unix.SOCK_RAW}
	packets := rawSocket{domain: unix.AF_PACKET, kind: unix.SOCK_DGRAM}
	all := ownPackets()
	var cs []sendingCase
	for _, p := range all {
		link := uint16(typeIPv6)
		if p.src.Is4() {
			link = typeIPv4
		}
		tagged := p.with(tags(typeVLAN))
		cs = append(cs,
			sendingCase{p.title() + " in a frame", frames.datagram(device(link), p.frame()), []packet{p}},
			sendingCase{p.title() + " in a tagged frame", frames.datagram(device(typeVLAN), tagged.frame()), []packet{p}},
			sendingCase{p.title() + " without one", packets.datagram(device(link), p.frame()[l3:]), []packet{p}})
	}
	return append(cs,
		sendingCase{"an echo request", packets.datagram(device(typeIPv4), all[0].with(proto(protoICMP)).frame()[l3:]), nil},
		sendingCase{"what is no IP", packets.datagram(device(0x88B5), slices.Repeat([]byte{0xAB}, 64)), nil},
		sendingCase{"the end of a header is missing", packets.datagram(device(typeIPv4), all[0].frame()[l3:l4of4+19]), nil},
	)
}

func TestSystemCallsBookWhoSendsFromRawSockets(t *testing.T) {
	g := hook(t, nil, "network_raw_ipv4", "network_raw_ipv6", "network_packet")
	for _, c := range slices.Concat(rawCases(), packetCases()) {
		t.Run(c.name, func(t *testing.T) {
			g.books[rawBook].clear(t) // a new namespace can have the number of another one
			home := newHome(t)
			self, err := inThreadOf(t, home, c.send)
			if err != nil {
				t.Fatal(err)
			}
			want := map[rawKey]process{}
			for _, p := range c.want {
				want[keyOf(p)] = self
			}
			if got := g.books[rawBook].rawSenders(t, inode(t, home)); !maps.Equal(got, want) {
				t.Errorf("the senders are\n got %v\nwant %v", got, want)
			}
		})
	}
}

// TestSystemCallsBookProcessesByTheirNames whatever their threads are called.
func TestSystemCallsBookProcessesByTheirNames(t *testing.T) {
	g := hook(t, nil, portHooks...)
	home := newHome(t)
	self, err := inThreadOf(t, home, func() error {
		fd, err := realSocket{proto: protoUDP, local: here4}.open()
		t.Cleanup(func() { _ = unix.Close(fd) })
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b := g.books[portBook]
	keys := b.keysOf(t, inode(t, home), "local.")
	if len(keys) != 1 {
		t.Fatalf("one port is open, want one entry, got %d", len(keys))
	}
	value := make([]byte, b.value.size)
	if err := b.Lookup(keys[0], value); err != nil {
		t.Fatal(err)
	}
	if got := withoutParentTID(b.value.decodeProcess(value)); got != self {
		t.Errorf("a thread of another name has opened a port\n got %v\nwant %v", got, self)
	}
}
