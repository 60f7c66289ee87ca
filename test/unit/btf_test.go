// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf/btf"
)

// A field is where a structure of the object keeps a value, in bytes.
type field struct{ offset, size uint32 }

func (f field) of(b []byte) []byte { return b[f.offset : f.offset+f.size] }

// uint reads an integer of 1, 2, 4 or 8 bytes in the byte order of the machine.
func (f field) uint(b []byte) uint64 {
	switch b = f.of(b); len(b) {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.NativeEndian.Uint16(b))
	case 4:
		return uint64(binary.NativeEndian.Uint32(b))
	default:
		return binary.NativeEndian.Uint64(b)
	}
}

func (f field) putUint(b []byte, v uint64) {
	switch b = f.of(b); len(b) {
	case 1:
		b[0] = byte(v)
	case 2:
		binary.NativeEndian.PutUint16(b, uint16(v))
	case 4:
		binary.NativeEndian.PutUint32(b, uint32(v))
	default:
		binary.NativeEndian.PutUint64(b, v)
	}
}

// A layout is a structure's fields by their path: "proc.creds.uid". Offsets
// come from the object's BTF, so that a test never knows better than it.
type layout struct {
	name   string
	size   uint32
	fields map[string]field
}

func layoutOf(t btf.Type) (layout, error) {
	size, err := btf.Sizeof(t)
	if err != nil {
		return layout{}, fmt.Errorf("size of %v: %w", t, err)
	}
	l := layout{name: t.TypeName(), size: uint32(size), fields: map[string]field{}}
	return l, l.add("", 0, t)
}

func (l layout) add(prefix string, base uint32, t btf.Type) error {
	var members []btf.Member
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	}
	for _, m := range members {
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			return fmt.Errorf("size of %s%s: %w", prefix, m.Name, err)
		}
		at := base + m.Offset.Bytes()
		l.fields[prefix+m.Name] = field{at, uint32(size)}
		if err := l.add(prefix+m.Name+".", at, m.Type); err != nil {
			return err
		}
	}
	return nil
}

// field panics for a path that the object does not have: the test is wrong.
func (l layout) field(path string) field {
	f, ok := l.fields[path]
	if !ok {
		panic(fmt.Sprintf("struct %s of the eBPF object has no field %s", l.name, path))
	}
	return f
}

// An endpoint is a gadget_l4endpoint_t.
type endpoint struct {
	netip.AddrPort
	Proto, Version uint8
}

func (e endpoint) String() string {
	return fmt.Sprintf("%v/%d/v%d", e.AddrPort, e.Proto, e.Version)
}

// A process is a gadget_process, with the name of its thread, which is a field of
// the event's own. Its zero value is that of nobody.
type process struct {
	Comm, ParentComm, Thread                        string
	PID, TID, ParentPID, ParentTID, UID, GID, MntNS uint64
	// Set: some byte of them is not zero, be it one of no field above.
	Set bool
}

func (p process) String() string {
	if p == (process{}) {
		return "nobody"
	}
	return fmt.Sprintf("{comm %q, thread %q, pid %d, tid %d, uid %d, gid %d, mntns %d, parent %q, ppid %d, ptid %d}",
		p.Comm, p.Thread, p.PID, p.TID, p.UID, p.GID, p.MntNS, p.ParentComm, p.ParentPID, p.ParentTID)
}

// An event is what the program reports, without its time, its retries and its
// paths.
type event struct {
	Egress         bool
	NetNS          uint32
	Protocol       uint8
	Src, Dst, Peer endpoint
	Local, Remote  endpoint // the socket's, or nowhere
	Proc           process
	Suppressed     uint64
}

func (e event) String() string {
	return fmt.Sprintf("{egress %v, netns %d, protocol %d, src %v, dst %v, endpoint %v, local %v, remote %v, proc %v, suppressed %d}",
		e.Egress, e.NetNS, e.Protocol, e.Src, e.Dst, e.Peer, e.Local, e.Remote, e.Proc, e.Suppressed)
}

type endpointLayout struct{ addr, port, proto, version field }

func (l layout) endpoint(path string) endpointLayout {
	return endpointLayout{
		addr:    l.field(path + ".addr_raw"),
		port:    l.field(path + ".port"),
		proto:   l.field(path + ".proto_raw"),
		version: l.field(path + ".version"),
	}
}

func (l endpointLayout) decode(b []byte) endpoint {
	raw := [16]byte(l.addr.of(b))
	addr := netip.AddrFrom16(raw)
	e := endpoint{Proto: uint8(l.proto.uint(b)), Version: uint8(l.version.uint(b))}
	// An IPv4 address fills 4 of the 16 bytes; the others must be zero.
	if e.Version == 4 && [12]byte(raw[4:]) == [12]byte{} {
		addr = netip.AddrFrom4([4]byte(raw[:4]))
	}
	e.AddrPort = netip.AddrPortFrom(addr, uint16(l.port.uint(b)))
	return e
}

func (l endpointLayout) encode(b []byte, e endpoint) {
	copy(l.addr.of(b), e.Addr().AsSlice())
	l.port.putUint(b, uint64(e.Port()))
	l.proto.putUint(b, uint64(e.Proto))
	l.version.putUint(b, uint64(e.Version))
}

// An eventLayout decodes struct event.
type eventLayout struct {
	layout
	timestamp, netns, egress, protocol field
	thread, retries, suppressed        field
	src, dst, peer, local, remote      endpointLayout
}

func newEventLayout(types *btf.Spec) (*eventLayout, error) {
	var s *btf.Struct
	if err := types.TypeByName("event", &s); err != nil {
		return nil, fmt.Errorf("looking up struct event in the object's BTF: %w", err)
	}
	l, err := layoutOf(s)
	if err != nil {
		return nil, err
	}
	return &eventLayout{
		layout:    l,
		timestamp: l.field("timestamp_raw"),
		netns:     l.field("netns_id"),
		egress:    l.field("egress"),
		protocol:  l.field("protocol_raw"),

		thread: l.field("thread"), retries: l.field("retries"), suppressed: l.field("suppressed"),

		src: l.endpoint("src"), dst: l.endpoint("dst"), peer: l.endpoint("endpoint"),
		local: l.endpoint("local"), remote: l.endpoint("remote"),
	}, nil
}

// sent is how many bytes of an event are sent: without paths, and how it went on, no
// byte of nobody is behind them; for the others see perf_output_sample().
func (l *eventLayout) sent(paths bool) int {
	if !paths {
		return int(l.suppressed.offset + l.suppressed.size)
	}
	return (int(l.size)+4+7)/8*8 - 4
}

// decode reads an event, of which no byte may be left that none of its fields has.
func (l *eventLayout) decode(b []byte) (event, error) {
	e := l.read(b)
	want := make([]byte, l.size)
	l.encode(want, e)
	for _, other := range []field{l.timestamp, l.retries} {
		copy(other.of(want), other.of(b))
	}
	if n := l.sent(false); !bytes.Equal(b[:n], want[:n]) {
		return event{}, fmt.Errorf("the event %v has bytes of no field of its\n got %x\nwant %x", e, b[:n], want[:n])
	}
	return e, nil
}

func (l *eventLayout) read(b []byte) event {
	return event{
		Egress:     l.egress.uint(b) != 0,
		NetNS:      uint32(l.netns.uint(b)),
		Protocol:   uint8(l.protocol.uint(b)),
		Src:        l.src.decode(b),
		Dst:        l.dst.decode(b),
		Peer:       l.peer.decode(b),
		Local:      l.local.decode(b),
		Remote:     l.remote.decode(b),
		Proc:       l.decodeProcess(b),
		Suppressed: l.suppressed.uint(b),
	}
}

func (l *eventLayout) encode(b []byte, e event) {
	l.egress.putUint(b, bit(e.Egress))
	l.netns.putUint(b, uint64(e.NetNS))
	l.protocol.putUint(b, uint64(e.Protocol))
	l.src.encode(b, e.Src)
	l.dst.encode(b, e.Dst)
	l.peer.encode(b, e.Peer)
	l.local.encode(b, e.Local)
	l.remote.encode(b, e.Remote)
	l.encodeProcess(b, e.Proc)
	l.suppressed.putUint(b, e.Suppressed)
	l.field("by.version").putUint(b, uint64(e.Src.Version))
}

func isSet(b []byte) bool {
	return slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}

// decodeProcess reads the gadget_process in the field proc, and the field thread.
func (l layout) decodeProcess(b []byte) process {
	if !isSet(l.field("proc").of(b)) && !isSet(l.field("thread").of(b)) {
		return process{}
	}
	number := func(path string) uint64 { return l.field("proc." + path).uint(b) }
	return process{
		Comm:       cString(l.field("proc.comm").of(b)),
		ParentComm: cString(l.field("proc.parent.comm").of(b)),
		Thread:     cString(l.field("thread").of(b)),
		PID:        number("pid"),
		TID:        number("tid"),
		ParentPID:  number("parent.pid"),
		ParentTID:  number("parent.tid"),
		UID:        number("creds.uid"),
		GID:        number("creds.gid"),
		MntNS:      number("mntns_id"),
		Set:        true,
	}
}

func (l layout) encodeProcess(b []byte, p process) {
	for path, v := range map[string]uint64{
		"pid": p.PID, "tid": p.TID, "parent.pid": p.ParentPID, "parent.tid": p.ParentTID,
		"creds.uid": p.UID, "creds.gid": p.GID, "mntns_id": p.MntNS,
	} {
		l.field("proc."+path).putUint(b, v)
	}
	copy(l.field("proc.comm").of(b), p.Comm)
	copy(l.field("proc.parent.comm").of(b), p.ParentComm)
	copy(l.field("thread").of(b), p.Thread)
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
