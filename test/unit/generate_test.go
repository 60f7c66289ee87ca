// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// maxFrame is what BPF_PROG_TEST_RUN takes in one page, with room to spare.
const maxFrame = 3000

// A generator makes frames out of bytes. Few random bytes make a packet, so
// that most inputs are read as a recipe: a packet with chosen fields, or one of
// the table, and what is broken of it then.
type generator struct {
	templates [][]byte
	recipe    []byte
}

func newGenerator() *generator {
	g := &generator{}
	for _, c := range cases() {
		g.templates = append(g.templates, c.frame())
	}
	return g
}

const rawFrame = 0 // an input's first byte: the others are the frame

func (g *generator) frame(input []byte) []byte {
	g.recipe = input
	var f []byte
	switch g.below(8) {
	case rawFrame:
		f = slices.Clone(g.recipe)
	case 1, 2:
		f = slices.Clone(g.templates[g.word()%len(g.templates)])
		f = g.mutate(f)
	default:
		f = g.packet().frame()
		f = g.mutate(f)
	}
	return f[:min(len(f), maxFrame)]
}

// below takes a number from 0 to n-1 from the recipe; 0 at its end.
func (g *generator) below(n int) int {
	if len(g.recipe) == 0 {
		return 0
	}
	b := g.recipe[0]
	g.recipe = g.recipe[1:]
	return int(b) % n
}

func (g *generator) byte() byte { return byte(g.below(256)) }
func (g *generator) word() int  { return g.below(256)<<8 | g.below(256) }

// rarely is true one time in n.
func (g *generator) rarely(n int) bool { return g.below(n) == 1 }

// oneOf takes one of the usual values, or now and then any.
func (g *generator) oneOf(values ...uint16) uint16 {
	if g.rarely(8) {
		return uint16(g.word())
	}
	return values[g.below(len(values))]
}

// The first is what a recipe that has ended gives.
var (
	addresses4 = addresses("192.0.2.1", "198.51.100.2", "10.0.0.1", "127.0.0.1", "0.0.0.0", "223.255.255.255",
		"224.0.0.1", "239.255.255.255", "240.0.0.0", "255.255.255.255")
	addresses6 = addresses("2001:db8::1", "2001:db8:2::2", "fe80::1", "::1", "::", "::ffff:192.0.2.1",
		"::ffff:255.255.255.255", "ff02::1", "ff0e::2", "feff::")
)

func addresses(text ...string) (as []netip.Addr) {
	for _, s := range text {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

func (g *generator) address(known []netip.Addr) netip.Addr {
	a := known[g.below(len(known))]
	if g.rarely(2) {
		b := a.AsSlice()
		b[g.below(len(b))] = g.byte()
		a, _ = netip.AddrFromSlice(b)
	}
	return a
}

// packet composes one.
func (g *generator) packet() packet {
	p := packet{
		proto:   uint8(g.oneOf(protoTCP, protoUDP, protoTCP, protoUDP, protoTCP, protoUDP, protoESP, protoICMP)),
		sport:   g.oneOf(40000, 53, 0, 65535),
		dport:   g.oneOf(53, 443, 0, 1, 1023, 1024, 65535),
		flags:   uint8(g.oneOf(syn, syn, syn, syn|ece|cwr, syn|fin, syn|ack, ack, rst)),
		payload: make([]byte, g.below(64)),
	}
	known := addresses4
	if g.rarely(2) {
		known = addresses6
		p.chain = g.chain()
	} else {
		p.fragment = g.oneOf(0, 0, 0, dontFragment, moreFragments, moreFragments|1, 1, 0x8000)
		p.options = make([]byte, 4*max(0, g.below(16)-5))
	}
	p.src, p.dst = g.address(known[:6]), g.address(known)
	if g.rarely(4) {
		p.tags = slices.Repeat([]uint16{g.oneOf(typeVLAN, typeQinQ)}, 1+g.below(9))
	}
	if g.rarely(4) {
		p.tcpOptions = make([]byte, 4*g.below(11))
	}
	if g.rarely(4) {
		p.padding = g.below(64)
	}
	if g.rarely(16) {
		p.dstMAC[g.below(6)] = g.byte()
	}
	return p
}

// chain composes extension headers: often none, seldom too many.
func (g *generator) chain() (es []extension) {
	for range max(0, g.below(12)-4) {
		e := extension{
			proto:    []uint8{protoHop, protoRouting, protoFragment, protoAH, protoDest}[g.below(5)],
			hdrlen:   uint8(g.below(4)),
			fragment: []uint16{0, 1, 1, 6, 8, 9}[g.below(6)],
		}
		if g.rarely(32) {
			e.hdrlen = g.byte()
		}
		es = append(es, e)
	}
	return es
}

// mutate breaks a frame as long as the recipe says so, most often not at all.
func (g *generator) mutate(f []byte) []byte {
	for range max(0, g.below(8)-3) {
		if len(f) < ethernetLen+1 {
			return f
		}
		f = g.mutation(f)
	}
	return f
}

func (g *generator) mutation(f []byte) []byte {
	// Half of the mutations hit the headers, whose fields decide most.
	pos := g.word() % len(f)
	if g.rarely(2) {
		pos %= min(len(f), 128)
	}
	switch g.below(9) {
	case 0:
		f[pos] = g.byte()
	case 1:
		f[pos] ^= 1 << g.below(8)
	case 2:
		f = f[:pos]
	case 3:
		f = append(f, make([]byte, g.below(40))...)
	case 4:
		f = slices.Insert(f, pos, make([]byte, g.below(24))...)
	case 5:
		f = slices.Delete(f, pos, min(len(f), pos+g.below(24)))
	case 6:
		fixLengths(f)
	default:
		g.mutateField(f)
	}
	return f
}

// A place of a frame, for those who break it: it is not a decoder.
func headers(f []byte) (version byte, ip, l4 int) {
	ip = ethernetLen
	for ip+4 < len(f) && (f[ip-2] == 0x81 && f[ip-1] == 0 || f[ip-2] == 0x88 && f[ip-1] == 0xA8) {
		ip += 4
	}
	if ip+40 > len(f) || f[ip]>>4 != 6 {
		return 4, ip, ip + int(f[min(ip, len(f)-1)]&0xF)*4
	}
	l4 = ip + 40
	for next := f[ip+6]; l4+8 <= len(f); {
		switch next {
		case protoHop, protoRouting, protoDest, protoAH, protoFragment:
			e := extension{proto: next, hdrlen: f[l4+1]}
			next = f[l4]
			l4 += e.len()
		default:
			return 6, ip, l4
		}
	}
	return 6, ip, l4
}

// fixLengths makes the IP header's length what is there.
func fixLengths(f []byte) {
	version, ip, _ := headers(f)
	switch {
	case version == 6:
		binary.BigEndian.PutUint16(f[ip+4:], uint16(len(f)-ip-40))
	case ip+4 <= len(f):
		binary.BigEndian.PutUint16(f[ip+2:], uint16(len(f)-ip))
	}
}

// mutateField sets a field that decides, to a value next to where it does.
func (g *generator) mutateField(f []byte) {
	version, ip, l4 := headers(f)
	left := len(f) - ip
	put8 := func(at int, values ...uint16) {
		if v := g.oneOf(values...); at < len(f) {
			f[at] = byte(v)
		}
	}
	put16 := func(at int, values ...uint16) {
		if v := g.oneOf(values...); at+2 <= len(f) {
			binary.BigEndian.PutUint16(f[at:], v)
		}
	}
	behind := uint16(max(0, len(f)-l4))
	choice := g.below(12)
	switch {
	case choice == 0:
		put16(ip-2, typeIPv4, typeIPv6, typeVLAN, typeQinQ, typeARP, 60)
	case choice == 1:
		put8(ip, 0x45, 0x46, 0x4F, 0x44, 0x60, 0x65, 0x05, 0x55)
	case choice == 2 && version == 4:
		put16(ip+2, uint16(left), uint16(left-1), uint16(left+1), 0, 20, 28, 40)
	case choice == 2:
		put16(ip+4, uint16(left-40), uint16(left-41), uint16(left-39), 0, 8, 20)
	case choice == 3 && version == 4:
		put16(ip+6, 0, moreFragments, 1, moreFragments|1, dontFragment, 0x8000)
	case choice == 4 && version == 4:
		put8(ip+9, protoTCP, protoUDP, protoESP, protoAH, protoFragment)
	case choice <= 4:
		put8(ip+6, protoTCP, protoUDP, protoHop, protoRouting, protoFragment, protoAH, protoDest, protoESP)
	case choice <= 6:
		put16(l4+2, 0, 1, 1023, 1024, 65535)
	case choice <= 8:
		put8(l4+13, syn, ack, syn|ack, 0, 0xFF, 0xEF)
	case choice == 9:
		put8(l4+12, 0x50, 0x60, 0x40, 0xF0, 0x00)
	default:
		put16(l4+4, behind, behind-1, behind+1, 0, 7, 8, 65535)
	}
}
