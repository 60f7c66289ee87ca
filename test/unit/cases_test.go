// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"fmt"
	"net/netip"
	"slices"
)

// Who hears of a packet.
type audience uint8

const (
	nobody   audience = 0
	receiver audience = 1
	sender   audience = 2
	both              = receiver | sender
)

// A testCase is a packet and who reports it.
type testCase struct {
	name   string
	packet packet
	edit   func(frame []byte) []byte // breaks the frame; nil: it stays
	by     audience
}

func (c testCase) frame() []byte {
	f := c.packet.frame()
	if c.edit != nil {
		f = c.edit(f)
	}
	return f
}

// want is what the program reports.
func (c testCase) want(egress bool, netns uint32) []event {
	if egress && c.by&sender == 0 || !egress && c.by&receiver == 0 {
		return nil
	}
	return []event{c.packet.event(egress, netns)}
}

var (
	tcp4 = packet{
		src: netip.MustParseAddr("192.0.2.1"), dst: netip.MustParseAddr("198.51.100.2"),
		proto: protoTCP, sport: 40000, dport: 443, flags: syn,
	}
	udp4 = packet{
		src: netip.MustParseAddr("192.0.2.3"), dst: netip.MustParseAddr("203.0.113.4"),
		proto: protoUDP, sport: 40001, dport: 53, payload: []byte("question"),
	}
	tcp6 = packet{
		src: netip.MustParseAddr("2001:db8::1"), dst: netip.MustParseAddr("2001:db8:2::2"),
		proto: protoTCP, sport: 40002, dport: 443, flags: syn,
	}
	udp6 = packet{
		src: netip.MustParseAddr("2001:db8::3"), dst: netip.MustParseAddr("2001:db8:2::4"),
		proto: protoUDP, sport: 40003, dport: 53, payload: []byte("question"),
	}
	attempts = []packet{tcp4, udp4, tcp6, udp6}
)

// Where the headers of an untagged frame with the plain packets above begin.
const (
	l3    = ethernetLen
	l4of4 = l3 + 20
	l4of6 = l3 + 40
)

func (p packet) l4() int {
	if p.src.Is4() {
		return l4of4 + len(p.options)
	}
	return l4of6
}

func (p packet) title() string {
	name := map[uint8]string{protoTCP: "TCP", protoUDP: "UDP"}[p.proto]
	if p.src.Is4() {
		return name + " over IPv4"
	}
	return name + " over IPv6"
}

// at overwrites bytes of a frame.
func at(offset int, with ...byte) func([]byte) []byte {
	return func(f []byte) []byte {
		copy(f[offset:], with)
		return f
	}
}

// edits makes several.
func edits(all ...func([]byte) []byte) func([]byte) []byte {
	return func(f []byte) []byte {
		for _, edit := range all {
			f = edit(f)
		}
		return f
	}
}

func payload(n int) func(*packet) { return func(p *packet) { p.payload = make([]byte, n) } }
func padding(n int) func(*packet) { return func(p *packet) { p.padding = n } }

func flags(f uint8) func(*packet)     { return func(p *packet) { p.flags = f } }
func proto(n uint8) func(*packet)     { return func(p *packet) { p.proto = n } }
func fragment(f uint16) func(*packet) { return func(p *packet) { p.fragment = f } }
func to(addr string) func(*packet)    { return func(p *packet) { p.dst = netip.MustParseAddr(addr) } }
func tags(t ...uint16) func(*packet)  { return func(p *packet) { p.tags = t } }
func link(t uint16) func(*packet)     { return func(p *packet) { p.link = t } }
func mac(m ...byte) func(*packet)     { return func(p *packet) { copy(p.dstMAC[:], m) } }
func options(n int) func(*packet)     { return func(p *packet) { p.options = slices.Repeat([]byte{1}, n) } }

func tcpOptions(n int) func(*packet) {
	return func(p *packet) { p.tcpOptions = slices.Repeat([]byte{1}, n) }
}

func ports(src, dst uint16) func(*packet) {
	return func(p *packet) { p.sport, p.dport = src, dst }
}
func chain(e ...extension) func(*packet) { return func(p *packet) { p.chain = e } }

// cases is the table: every kind of packet, and who reports it.
func cases() []testCase {
	return slices.Concat(plainCases(), flagCases(), portCases(), linkCases(), addressCases(), protocolCases(),
		ipv4Cases(), ipv6Cases(), chainCases(), fragmentCases(), transportCases())
}

func plainCases() (cs []testCase) {
	for _, p := range attempts {
		cs = append(cs,
			testCase{name: p.title(), packet: p, by: both},
			testCase{name: p.title() + " without payload", packet: p.with(payload(0)), by: both},
			testCase{name: p.title() + " with much payload", packet: p.with(payload(1200)), by: both},
			testCase{name: p.title() + " padded behind its end", packet: p.with(padding(18)), by: both})
	}
	return cs
}

func flagCases() (cs []testCase) {
	verdicts := []struct {
		flags uint8
		by    audience
	}{
		{syn, both},
		{syn | ece | cwr, both},
		{syn | fin, both},
		{syn | rst, both},
		{syn | psh | urg, both},
		{syn | ack, nobody},
		{syn | ack | ece, nobody},
		{ack, nobody},
		{ack | psh, nobody},
		{ack | fin, nobody},
		{rst, nobody},
		{rst | ack, nobody},
		{fin, nobody},
		{0, nobody},
		{0xFF, nobody},
		{0xFF &^ ack, both},
		{0xFF &^ syn, nobody},
	}
	for _, p := range []packet{tcp4, tcp6} {
		for _, v := range verdicts {
			name := fmt.Sprintf("%s with flags %#02x", p.title(), v.flags)
			cs = append(cs, testCase{name: name, packet: p.with(flags(v.flags)), by: v.by})
		}
	}
	return cs
}

func portCases() (cs []testCase) {
	for _, p := range attempts {
		for _, port := range []uint16{0, 1, 1023, 1024, 65535} {
			by := both
			if p.proto == protoUDP && port >= 1024 {
				by = nobody
			}
			cs = append(cs,
				testCase{name: fmt.Sprintf("%s to port %d", p.title(), port), packet: p.with(ports(40000, port)), by: by},
				testCase{name: fmt.Sprintf("%s from 53 to %d", p.title(), port), packet: p.with(ports(53, port)), by: by},
				testCase{name: fmt.Sprintf("%s from %d", p.title(), port), packet: p.with(ports(port, p.dport)), by: both})
		}
	}
	return cs
}

func linkCases() (cs []testCase) {
	for _, p := range attempts {
		for _, v := range []struct {
			name   string
			change func(*packet)
			by     audience
		}{
			{"to every host", mac(0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF), nobody},
			{"to a group of hosts", mac(0x01, 0, 0x5E, 0, 0, 1), nobody},
			{"to a group of IPv6 hosts", mac(0x33, 0x33, 0, 0, 0, 1), nobody},
			{"to another host", mac(0x02, 0, 0, 0, 0, 0x99), sender},
			{"behind an 802.1Q tag", tags(typeVLAN), both},
			{"behind an 802.1ad tag", tags(typeQinQ), both},
			{"behind two 802.1Q tags", tags(typeVLAN, typeVLAN), both},
			{"behind an 802.1ad and an 802.1Q tag", tags(typeQinQ, typeVLAN), both},
			{"behind 8 tags", tags(slices.Repeat([]uint16{typeVLAN}, 8)...), both},
			{"in a frame of type 0", link(1), nobody},
			{"in an 802.3 frame", link(60), nobody},
			{"in an ARP frame", link(typeARP), nobody},
			{"in a PPPoE frame", link(0x8864), nobody},
			{"in an MPLS frame", link(0x8847), nobody},
			{"in an old QinQ frame", link(0x9100), nobody},
			{"in a frame of an unknown type", link(0xFFFF), nobody},
			{"tagged, as ARP", func(p *packet) { p.tags, p.link = []uint16{typeVLAN}, typeARP }, nobody},
		} {
			cs = append(cs, testCase{name: p.title() + " " + v.name, packet: p.with(v.change), by: v.by})
		}
	}
	return cs
}

func addressCases() (cs []testCase) {
	for _, v := range []struct {
		packet packet
		dst    string
		by     audience
	}{
		{tcp4, "223.255.255.255", both},
		{tcp4, "224.0.0.1", nobody},
		{udp4, "224.0.0.251", nobody},
		{udp4, "239.255.255.250", nobody},
		{udp4, "240.0.0.1", both},
		{udp4, "255.255.255.254", both},
		{udp4, "255.255.255.255", nobody},
		{tcp4, "0.0.0.0", both},
		{tcp4, "127.0.0.1", both},
		{tcp6, "::", both},
		{tcp6, "::1", both},
		{tcp6, "fe80::1", both},
		{tcp6, "::ffff:192.0.2.1", both},
		{tcp6, "::ffff:224.0.0.1", both},
		{udp6, "feff::1", both},
		{udp6, "ff02::1", nobody},
		{udp6, "ff0e::1", nobody},
		{tcp6, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", nobody},
	} {
		cs = append(cs, testCase{name: v.packet.title() + " to " + v.dst, packet: v.packet.with(to(v.dst)), by: v.by})
	}
	return cs
}

func protocolCases() (cs []testCase) {
	for _, p := range []packet{tcp4, tcp6} {
		for _, n := range []uint8{
			protoICMP, protoIPIP, 41, protoGRE, protoESP, 58, protoNone, 94, 103, protoSCTP,
			protoMobility, protoUDPLite, protoHIP, protoShim6, 253, 255,
		} {
			// The bytes of a SYN, under another name.
			other := p.with(proto(n))
			other.payload = p.frame()[p.l4():]
			cs = append(cs, testCase{name: fmt.Sprintf("%s's bytes as protocol %d", p.title(), n), packet: other})
		}
	}
	// IPv4 has no extension headers.
	for _, n := range []uint8{protoHop, protoRouting, protoFragment, protoAH, protoDest} {
		header := make([]byte, 12)
		header[0], header[1] = protoTCP, 1
		if n != protoAH {
			header = append(header, 0, 0, 0, 0)
		}
		other := tcp4.with(proto(n))
		other.payload = append(header, tcp4.frame()[l4of4:]...)
		cs = append(cs, testCase{name: fmt.Sprintf("IPv4 with extension header %d", n), packet: other})
	}
	return cs
}

func ipv4Cases() (cs []testCase) {
	for _, p := range []packet{tcp4, udp4} {
		whole := len(p.frame()) - l3
		for _, v := range []struct {
			name   string
			change func(*packet)
			edit   func([]byte) []byte
			by     audience
		}{
			{"with 4 bytes of options", options(4), nil, both},
			{"with 40 bytes of options", options(40), nil, both},
			{"with malformed options", options(8), at(l3+20, 7, 0xFF, 0xFF), both},
			{"with every TOS bit", nil, at(l3+1, 0xFF), both},
			{"with a hop left", nil, at(l3+8, 1), both},
			{"of version 0", nil, at(l3, 0x05), nobody},
			{"of version 5", nil, at(l3, 0x55), nobody},
			{"of version 6", nil, at(l3, 0x65), nobody},
			{"of header length 0", nil, at(l3, 0x40), nobody},
			{"of header length 16", nil, at(l3, 0x44), nobody},
			// Where such a header ends, there is what looks like a SYN.
			{
				"of header length 0, with a SYN in it", nil,
				edits(at(l3, 0x40), at(l3+9, protoTCP, 0, 0, 0x50, syn)), nobody,
			},
			{
				"of header length 16, with a SYN in it", nil,
				edits(at(l3, 0x44), at(l3+9, protoTCP), at(l4of4+8, 0x50, syn)), nobody,
			},
			{"of header length 60, beyond its end", payload(0), at(l3, 0x4F), nobody},
			{"of total length 0", nil, at(l3+2, 0, 0), nobody},
			{"of total length 19", nil, at(l3+2, 0, 19), nobody},
			{"of total length 20", nil, at(l3+2, 0, 20), nobody},
			{"of total length up to half of its ports", nil, at(l3+2, 0, 22), nobody},
			{"of total length one byte too many", nil, at(l3+2, 0, byte(whole+1)), nobody},
			{"of total length one byte too many, padded", padding(1), lastByteInside(p, whole), both},
			{"of total length 65535", nil, at(l3+2, 0xFF, 0xFF), nobody},
			{"in an IPv6 frame", link(typeIPv6), nil, nobody},
		} {
			changed := p
			if v.change != nil {
				changed = p.with(v.change)
			}
			cs = append(cs, testCase{name: p.title() + " " + v.name, packet: changed, edit: v.edit, by: v.by})
		}
	}
	return cs
}

// lastByteInside makes the packet one byte longer than whole.
func lastByteInside(p packet, whole int) func([]byte) []byte {
	if p.src.Is4() {
		return at(l3+2, 0, byte(whole+1))
	}
	return at(l3+4, 0, byte(whole+1-40))
}

func ipv6Cases() (cs []testCase) {
	for _, p := range []packet{tcp6, udp6} {
		whole := len(p.frame()) - l3
		for _, v := range []struct {
			name   string
			change func(*packet)
			edit   func([]byte) []byte
			by     audience
		}{
			{"with a traffic class and a flow label", nil, at(l3, 0x6F, 0xFF, 0xFF, 0xFF), both},
			{"with a hop left", nil, at(l3+7, 1), both},
			{"of version 0", nil, at(l3, 0x00), nobody},
			{"of version 4", nil, at(l3, 0x45), nobody},
			{"of version 7", nil, at(l3, 0x70), nobody},
			{"of payload length 0", nil, at(l3+4, 0, 0), nobody},
			{"of payload length 7", nil, at(l3+4, 0, 7), nobody},
			{"of payload length one byte too many", nil, at(l3+4, 0, byte(whole-40+1)), nobody},
			{"of payload length one byte too many, padded", padding(1), lastByteInside(p, whole), both},
			{"of payload length 65535", nil, at(l3+4, 0xFF, 0xFF), nobody},
			{"in an IPv4 frame", link(typeIPv4), nil, nobody},
		} {
			changed := p
			if v.change != nil {
				changed = p.with(v.change)
			}
			cs = append(cs, testCase{name: p.title() + " " + v.name, packet: changed, edit: v.edit, by: v.by})
		}
	}
	return cs
}

func chainCases() (cs []testCase) {
	hop := extension{proto: protoHop}
	routing := extension{proto: protoRouting, hdrlen: 2}
	whole := extension{proto: protoFragment}
	auth := extension{proto: protoAH, hdrlen: 4}
	dest := extension{proto: protoDest, hdrlen: 1}
	for _, p := range []packet{tcp6, udp6} {
		for _, v := range []struct {
			name  string
			chain []extension
			edit  func([]byte) []byte
			by    audience
		}{
			{"hop-by-hop options", []extension{hop}, nil, both},
			{"a routing header", []extension{routing}, nil, both},
			{"a fragment header, whole", []extension{whole}, nil, both},
			{"an authentication header", []extension{auth}, nil, both},
			{"the shortest authentication header", []extension{{proto: protoAH}}, nil, both},
			{"destination options", []extension{dest}, nil, both},
			{"long destination options", []extension{{proto: protoDest, hdrlen: 100}}, nil, both},
			{"every extension header", []extension{hop, dest, routing, whole, auth, dest}, nil, both},
			{"hop-by-hop options at the end", []extension{dest, hop}, nil, both},
			{"6 extension headers", slices.Repeat([]extension{dest}, 6), nil, both},
			{"7 extension headers", slices.Repeat([]extension{dest}, 7), nil, nobody},
			{"10 extension headers", slices.Repeat([]extension{hop}, 10), nil, nobody},
			{"no next header behind options", []extension{dest}, at(l4of6, protoNone), nobody},
			{"ESP behind a fragment header", []extension{whole}, at(l4of6, protoESP), nobody},
			{"options that reach beyond the packet", []extension{dest}, at(l4of6+1, 0xFF), nobody},
			{"an authentication header beyond the packet", []extension{auth}, at(l4of6+1, 0xFF), nobody},
		} {
			name := p.title() + " with " + v.name
			cs = append(cs, testCase{name: name, packet: p.with(chain(v.chain...)), edit: v.edit, by: v.by})
		}
	}
	return cs
}

// A fragment header's or an IPv4 header's: offsets are in units of 8 bytes.
func fragmentCases() (cs []testCase) {
	for _, p := range []packet{tcp4, udp4} {
		for _, v := range []struct {
			name  string
			field uint16
			by    audience
		}{
			{"not to be fragmented", dontFragment, both},
			{"with the reserved bit", 0x8000, both},
			{"the first fragment", moreFragments, both},
			{"a middle fragment", moreFragments | 1, nobody},
			{"the last fragment", 1, nobody},
			{"the last fragment, far off", 0x1FFF, nobody},
		} {
			cs = append(cs, testCase{name: p.title() + ", " + v.name, packet: p.with(fragment(v.field)), by: v.by})
		}
	}
	for _, p := range []packet{tcp6, udp6} {
		for _, v := range []struct {
			name  string
			field uint16
			by    audience
		}{
			{"the only fragment", 0, both},
			{"with the reserved bits", 0x0006, both},
			{"the first fragment", 1, both},
			{"a middle fragment", 1<<3 | 1, nobody},
			{"the last fragment", 1 << 3, nobody},
			{"the last fragment, far off", 0x1FFF << 3, nobody},
		} {
			header := extension{proto: protoFragment, fragment: v.field}
			dest := extension{proto: protoDest}
			cs = append(cs,
				testCase{name: p.title() + ", " + v.name, packet: p.with(chain(header)), by: v.by},
				testCase{name: p.title() + " with options, " + v.name, packet: p.with(chain(dest, header, dest)), by: v.by})
		}
	}
	// Every bit of an offset counts.
	for bit := range 13 {
		later := uint16(1) << bit
		cs = append(cs,
			testCase{name: fmt.Sprintf("UDP over IPv4, the fragment at %d", later*8), packet: udp4.with(fragment(later))},
			testCase{
				name:   fmt.Sprintf("UDP over IPv6, the fragment at %d", later*8),
				packet: udp6.with(chain(extension{proto: protoFragment, fragment: later << 3})),
			})
	}
	return append(cs, cutFragmentCases()...)
}

// What does not fit into a first fragment is in a later one.
func cutFragmentCases() []testCase {
	const l4in6 = l4of6 + 8
	first4, first6 := fragment(moreFragments), chain(extension{proto: protoFragment, fragment: 1})
	only6 := chain(extension{proto: protoFragment})
	return []testCase{
		{"UDP over IPv4, longer than its first fragment", udp4.with(first4), at(l4of4+4, 0x20, 0), both},
		{"UDP over IPv6, longer than its first fragment", udp6.with(first6), at(l4in6+4, 0x20, 0), both},
		{"UDP over IPv6, longer than its only fragment", udp6.with(only6), at(l4in6+4, 0x20, 0), nobody},
		{"TCP over IPv4, options in the next fragment", tcp4.with(first4), at(l4of4+12, 0xA0), both},
		{"TCP over IPv6, options in the next fragment", tcp6.with(first6), at(l4in6+12, 0xA0), both},
		{"TCP over IPv6, options beyond the only fragment", tcp6.with(only6), at(l4in6+12, 0xA0), nobody},
		{
			"TCP over IPv6, options in the next fragment, behind another header",
			tcp6.with(chain(extension{proto: protoFragment, fragment: 1}, extension{proto: protoDest})),
			at(l4in6+8+12, 0xA0), both,
		},
		{"TCP over IPv4, flags in the next fragment", tcp4.with(first4, padding(8)), at(l3+2, 0, 28), nobody},
		{"TCP over IPv6, flags in the next fragment", tcp6.with(first6, padding(8)), at(l3+4, 0, 16), nobody},
		{"ESP over IPv4, the first fragment", tcp4.with(first4), at(l3+9, protoESP), nobody},
		{"ESP over IPv4, a later fragment", tcp4.with(fragment(1)), at(l3+9, protoESP), nobody},
		{"ESP over IPv6, the first fragment", tcp6.with(first6), at(l4of6, protoESP), nobody},
	}
}

func transportCases() (cs []testCase) {
	for _, p := range []packet{tcp4, tcp6} {
		l4 := p.l4()
		for _, v := range []struct {
			name   string
			change func(*packet)
			edit   func([]byte) []byte
			by     audience
		}{
			{"with 4 bytes of options", tcpOptions(4), nil, both},
			{"with 40 bytes of options", tcpOptions(40), nil, both},
			{"with malformed options", tcpOptions(8), at(l4+20, 2, 0xFF, 0), both},
			{"with data (Fast Open)", payload(100), nil, both},
			{"of data offset 0", nil, at(l4+12, 0x00), nobody},
			{"of data offset 16", nil, at(l4+12, 0x40), nobody},
			{"of data offset 24, beyond its end", nil, at(l4+12, 0x60), nobody},
			{"of data offset 24, in its padding", padding(40), at(l4+12, 0x60), nobody},
			{"of data offset 60, to its end", payload(40), at(l4+12, 0xF0), both},
			{"with every reserved bit", nil, at(l4+12, 0x5F), both},
		} {
			changed := p
			if v.change != nil {
				changed = p.with(v.change)
			}
			cs = append(cs, testCase{name: p.title() + " " + v.name, packet: changed, edit: v.edit, by: v.by})
		}
	}
	return append(cs, datagramCases()...)
}

func datagramCases() (cs []testCase) {
	for _, p := range []packet{udp4, udp6} {
		toTheEnd := nobody
		if p.src.Is6() {
			toTheEnd = both // see __udp6_lib_rcv()
		}
		for _, v := range []struct {
			length byte
			by     audience
		}{{0, toTheEnd}, {1, nobody}, {7, nobody}, {8, both}, {15, both}, {16, both}, {17, nobody}, {255, nobody}} {
			name := fmt.Sprintf("%s of length %d, with 8 bytes", p.title(), v.length)
			cs = append(cs, testCase{name: name, packet: p, edit: at(p.l4()+4, 0, v.length), by: v.by})
		}
	}
	return cs
}
