// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// The books by their names in the object.
const (
	connectionBook = "connections"
	synBook        = "syns"
	portBook       = "ports"
	slotBook       = "used_slots"
	rawBook        = "raw_senders"
	askedBook      = "asked" // of the hooks
	pageBook       = "sockets"
	pathBook       = "socket_paths"
	listenerBook   = "listeners"
	arrivalBook    = "arrivals"
	arrivingBook   = "arriving"
	endingBook     = "ending"
	limitBook      = "limits"
	tellingBook    = "telling"
	flowBook       = "flows"
	unsentBook     = "unsent"
	announcedBook  = "announced"
	queuedBook     = "queued"
	counterBook    = "counters"
)

// allBooks are those that the socket filter has.
var allBooks = []string{
	connectionBook, synBook, portBook, slotBook, rawBook, pageBook, pathBook,
	listenerBook, arrivalBook, arrivingBook, endingBook, limitBook, tellingBook, flowBook, unsentBook, announcedBook, queuedBook, counterBook,
}

// A book is a map with the layout of its keys and values.
type book struct {
	*ebpf.Map
	key, value layout
}

func newBook(spec *ebpf.MapSpec, m *ebpf.Map) (*book, error) {
	key, err1 := structLayout(spec.Key)
	value, err2 := structLayout(spec.Value)
	return &book{Map: m, key: key, value: value}, errors.Join(err1, err2)
}

// structLayout is none for numbers, and for what a queue has as its key.
func structLayout(t btf.Type) (layout, error) {
	if _, structure := btf.UnderlyingType(t).(*btf.Struct); !structure {
		return layout{}, nil
	}
	return layoutOf(t)
}

// keys are those of all entries. Unlike a value, a key can be read while sockets
// are destroyed: in the middle of what reads a value, the kernel runs no program
// of a kprobe on that CPU, and so misses the end of a socket (5.10 and later:
// bpf_disable_instrumentation(), trace_call_bpf()).
func (b *book) keys(tb testing.TB) (all [][]byte) {
	tb.Helper()
	var last any
	for {
		key := make([]byte, b.KeySize())
		err := b.NextKey(last, key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return all
		}
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, key)
		last = key
	}
}

// values are those of all entries.
func (b *book) values(tb testing.TB) (all [][]byte) {
	tb.Helper()
	for _, key := range b.keys(tb) {
		value := make([]byte, b.value.size)
		if err := b.Lookup(key, value); err != nil {
			tb.Fatal(err)
		}
		all = append(all, value)
	}
	return all
}

// rewrite changes the values of all entries.
func (b *book) rewrite(tb testing.TB, change func(value []byte)) {
	tb.Helper()
	values := b.values(tb)
	for i, key := range b.keys(tb) {
		change(values[i])
		if err := b.Put(key, values[i]); err != nil {
			tb.Fatal(err)
		}
	}
}

func (b *book) clear(tb testing.TB) {
	tb.Helper()
	for _, key := range b.keys(tb) {
		if err := b.Delete(key); err != nil {
			tb.Fatal(err)
		}
	}
}

// An entry of the books is a socket and its owner.
type entry struct {
	netns  uint32
	local  netip.AddrPort // 0.0.0.0 and :: are every address
	remote netip.AddrPort // of connections
	proto  uint8
	slot   uint64 // of ports

	sk, since uint64 // the socket's address and when it got it; 0: made up
	device    uint32
	isn       uint32 // of a TCP connection; 0: that of the tests' packets
	started   uint64 // the process, in nanoseconds since the boot
	family    uint32 // the process that a young one counts with, or 0
	called    uint64 // when it was told to send, in nanoseconds since the boot
	progress  uint8  // of a connection's first SYN: enum progress
	// As in struct owner.
	ipv6only, connected, closed, crowded bool
	// unpaged: the socket's page in the books had to make way. idle: nothing that it
	// has sent is on its way, whatever the others have.
	unpaged, idle bool

	owner process
}

func (p packet) from() netip.AddrPort { return netip.AddrPortFrom(p.src, p.sport) }
func (p packet) to() netip.AddrPort   { return netip.AddrPortFrom(p.dst, p.dport) }

func version(a netip.Addr) uint64 {
	if a.Is4() {
		return 4
	}
	return 6
}

// encodeTuple fills in the struct tuple at a path: "local.".
func (l layout) encodeTuple(b []byte, path string, e entry) {
	put := func(name string, v uint64) { l.field(path+name).putUint(b, v) }
	copy(l.field(path+"local").of(b), e.local.Addr().AsSlice())
	put("local_port", uint64(e.local.Port()))
	if e.remote.IsValid() {
		copy(l.field(path+"remote").of(b), e.remote.Addr().AsSlice())
		put("remote_port", uint64(e.remote.Port()))
	}
	put("netns", uint64(e.netns))
	put("version", version(e.local.Addr()))
	put("proto", uint64(e.proto))
}

func bit(on bool) uint64 {
	if on {
		return 1
	}
	return 0
}

// madeUp counts the sockets that are none.
var madeUp uint64

// write puts an entry into a book, and the socket's page into theirs.
func (g *gadget) write(tb testing.TB, into string, e entry, path string) {
	tb.Helper()
	madeUp++
	if e.sk == 0 {
		e.sk = 0xFFFF_0000_0000_0000 + madeUp<<12
	}
	if e.since == 0 {
		e.since = madeUp
	}
	if e.isn == 0 {
		e.isn = synSequence
	}
	b := g.books[into]
	key := make([]byte, b.key.size)
	b.key.encodeTuple(key, path, e)
	if into == portBook {
		b.key.field("slot").putUint(key, e.slot)
	}
	err := b.Put(key, b.encodeOwner(e))
	if err == nil && !e.unpaged {
		p := g.books[pageBook]
		page := make([]byte, p.value.size)
		p.value.field("since").putUint(page, e.since)
		copy(p.value.field(map[string]string{portBook: "port", connectionBook: "connection"}[into]).of(page), key)
		err = p.Put(e.sk, page)
	}
	if err != nil {
		tb.Fatalf("booking %+v: %v", e, err)
	}
}

// encodeOwner is an entry as struct owner.
func (b *book) encodeOwner(e entry) []byte {
	value := make([]byte, b.value.size)
	for name, v := range map[string]uint64{
		"sk": e.sk, "since": e.since, "device": uint64(e.device), "isn": uint64(e.isn),
		"started": e.started, "called": e.called, "family": uint64(e.family), "progress": uint64(e.progress),
		"ipv6only": bit(e.ipv6only), "connected": bit(e.connected), "closed": bit(e.closed),
		"crowded": bit(e.crowded),
	} {
		b.value.field(name).putUint(value, v)
	}
	b.value.encodeProcess(value, e.owner)
	return value
}

// bookPort books a socket that has a port.
func (g *gadget) bookPort(tb testing.TB, e entry) {
	tb.Helper()
	e.remote = netip.AddrPort{}
	g.write(tb, portBook, e, "local.")
	g.useSlot(tb, e)
}

// useSlot has the filter look where an open port is.
func (g *gadget) useSlot(tb testing.TB, e entry) {
	tb.Helper()
	const buckets = 4096 // of ports, by the kind of address
	var slots [8]byte
	if e.slot >= uint64(len(slots)) {
		return
	}
	kind := uint32(0)
	switch e.local.Addr() {
	case netip.IPv4Unspecified():
		kind = 1
	case netip.IPv6Unspecified():
		kind = 2
	}
	bucket := kind*buckets + uint32(e.local.Port())%buckets
	err := g.books[slotBook].Lookup(bucket, &slots)
	slots[e.slot] = 1
	if err := errors.Join(err, g.books[slotBook].Put(bucket, slots)); err != nil {
		tb.Fatalf("booking %+v: %v", e, err)
	}
}

// bookConnection books a socket by both of its ends.
func (g *gadget) bookConnection(tb testing.TB, e entry) {
	tb.Helper()
	g.write(tb, connectionBook, e, "")
}

// bookSyn books a connection by the sequence number of its SYN as well.
func (g *gadget) bookSyn(tb testing.TB, e entry) {
	tb.Helper()
	g.bookConnection(tb, e)
	b := g.books[synBook]
	key, value := make([]byte, b.key.size), make([]byte, b.value.size)
	b.key.field("netns").putUint(key, uint64(e.netns))
	b.key.field("isn").putUint(key, synSequence)
	b.value.encodeTuple(value, "", e)
	if err := b.Put(key, value); err != nil {
		tb.Fatal(err)
	}
}

// bookRaw books who has sent a packet from a raw socket.
func (g *gadget) bookRaw(tb testing.TB, p packet, e entry) {
	tb.Helper()
	b := g.books[rawBook]
	key := make([]byte, b.key.size)
	for name, v := range map[string]uint64{
		"netns": uint64(e.netns), "number": uint64(p.number()), "version": version(p.src), "proto": uint64(p.proto),
		"sport": uint64(p.sport), "dport": uint64(p.dport),
	} {
		b.key.field(name).putUint(key, v)
	}
	if err := b.Put(key, b.encodeOwner(e)); err != nil {
		tb.Fatal(err)
	}
}
