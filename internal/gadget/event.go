// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/inspektor-gadget/inspektor-gadget/pkg/datasource"
	"golang.org/x/sys/unix"
)

// Event is one attempt to talk, as a network namespace saw it, or with the
// parameter "lifecycle" what became of it.
type Event struct {
	Kind     Kind
	Time     time.Time
	NetNS    uint32 // inode number of the network namespace
	Egress   bool   // sent by this namespace; false: received
	Protocol Protocol
	Peer     netip.AddrPort // the remote address, with the port that was called
	Src      netip.AddrPort // the initiator
	Dst      netip.AddrPort // the endpoint that it called
	Local    netip.AddrPort // this side's end as its socket has it; zero when none is known
	Remote   netip.AddrPort // the other end, likewise
	Proc     Process        // zero when nobody is known to own the socket
	Thread   string         // name of the thread, where Proc.Comm is the process's
	Retries  uint32         // how often this SYN was sent before
	// Suppressed counts the attempts of the same owner that the rate limit has
	// withheld since its event before.
	Suppressed uint32

	// Of what has failed: what the application gets (0 for what was received), what
	// ended it (see the field "cause" in gadget.yaml) and why, and the address that
	// the packet bore which did, if one did. Of ICMP also its type and code.
	Error              unix.Errno
	Cause, Reason      string
	By                 netip.Addr
	ICMPType, ICMPCode uint8
	// Drop is why the kernel dropped its packet: a number of its enum
	// skb_drop_reason, or 0.
	Drop uint32

	Latency  time.Duration // until it was established, or has failed
	Duration time.Duration // of what is closed: since it was established
	TxBytes  uint64        // of what is closed: payload that was sent
	RxBytes  uint64        // likewise: payload that was received

	// With the parameter "paths": of the process, when it connected or opened its
	// port; empty when they are not known.
	ExePath string
	Cwd     string
}

// Kind is what an event tells.
type Kind uint8

// The kinds, as enum network_event in program.h has them.
const (
	Attempt Kind = iota
	Established
	Failed
	Closed // what was established
)

func (k Kind) String() string {
	if names := []string{"attempt", "established", "failed", "closed"}; int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("event#%d", uint8(k))
}

// Protocol is an IP protocol number, see IANA's "Protocol Numbers".
type Protocol uint16

// The protocols that are reported.
const (
	TCP Protocol = unix.IPPROTO_TCP
	UDP Protocol = unix.IPPROTO_UDP
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	default:
		return fmt.Sprintf("proto#%d", uint16(p))
	}
}

// Process is who owns a socket. Its numbers are those of the initial
// namespaces.
type Process struct {
	Comm    string
	PID     uint32 // of the process (thread group)
	TID     uint32 // of the thread
	MountNS uint64 // inode number
	UID     uint32
	GID     uint32
	Parent  Parent
}

// Parent is the process that started a Process.
type Parent struct {
	Comm string
	PID  uint32
	TID  uint32
}

// decoder reads events by the fields of IG's data source.
type decoder struct {
	order     binary.ByteOrder
	kind      datasource.FieldAccessor
	timestamp datasource.FieldAccessor
	netns     datasource.FieldAccessor
	egress    datasource.FieldAccessor
	peer      endpointFields
	src       endpointFields
	dst       endpointFields
	local     endpointFields
	remote    endpointFields
	proc      processFields
	thread    datasource.FieldAccessor

	retries, suppressed datasource.FieldAccessor
	exePath             datasource.FieldAccessor
	cwd                 datasource.FieldAccessor
	outcome             outcomeFields
}

type outcomeFields struct {
	errno, cause, reason, by, byVersion, icmpType, icmpCode, drop datasource.FieldAccessor
	latency, duration, tx, rx                                     datasource.FieldAccessor
}

type endpointFields struct {
	addr, port, proto, version datasource.FieldAccessor
}

type processFields struct {
	comm, pid, tid, mntns, uid, gid  datasource.FieldAccessor
	parentComm, parentPID, parentTID datasource.FieldAccessor
}

func newDecoder(ds datasource.DataSource) (*decoder, error) {
	var missing []string
	field := func(name string) datasource.FieldAccessor {
		f := ds.GetField(name)
		if f == nil {
			missing = append(missing, name)
		}
		return f
	}
	endpoint := func(name string) endpointFields {
		return endpointFields{
			addr: field(name + ".addr_raw"), port: field(name + ".port"),
			proto: field(name + ".proto_raw"), version: field(name + ".version"),
		}
	}
	d := &decoder{
		order:     ds.ByteOrder(),
		kind:      field("event_raw"),
		timestamp: field("timestamp_raw"),
		netns:     field("netns_id"),
		egress:    field("egress"),
		peer:      endpoint("endpoint"),
		src:       endpoint("src"),
		dst:       endpoint("dst"),
		local:     endpoint("local"),
		remote:    endpoint("remote"),
		thread:    field("thread"),
		retries:   field("retries"), suppressed: field("suppressed"),
		exePath: field("exepath"),
		cwd:     field("cwd"),
		proc: processFields{
			comm: field("proc.comm"), pid: field("proc.pid"), tid: field("proc.tid"),
			mntns: field("proc.mntns_id"), uid: field("proc.creds.uid"), gid: field("proc.creds.gid"),
			parentComm: field("proc.parent.comm"), parentPID: field("proc.parent.pid"), parentTID: field("proc.parent.tid"),
		},
		outcome: outcomeFields{
			errno: field("error_raw"), cause: field("cause"), reason: field("reason"),
			by: field("by.addr_raw"), byVersion: field("by.version"),
			icmpType: field("icmp_type"), icmpCode: field("icmp_code"), drop: field("drop_raw"),
			latency: field("latency_ns"), duration: field("duration_ns"), tx: field("tx_bytes"), rx: field("rx_bytes"),
		},
	}
	if missing != nil {
		return nil, fmt.Errorf("the image's events have no field %s: it is another gadget, or an older one", strings.Join(missing, ", "))
	}
	return d, nil
}

// sentinel tells a sentinel (see drain) from an event, and of which CPU.
// An event's IP version is never 0.
func (d *decoder) sentinel(data datasource.Data) (cpu int, ok bool) {
	if d.dst.version.Get(data)[0] != 0 {
		return 0, false
	}
	return int(d.order.Uint64(d.timestamp.Get(data))), true
}

func (d *decoder) uint32(f datasource.FieldAccessor, data datasource.Data) uint32 {
	return d.order.Uint32(f.Get(data))
}

// owner is whose attempts the rate limit counts an event with.
func (d *decoder) owner(data datasource.Data) Owner {
	return Owner{PID: d.uint32(d.proc.pid, data), Comm: cString(d.proc.comm.Get(data)), Egress: d.egress.Get(data)[0] != 0}
}

// called is the service that an attempt calls.
func (d *decoder) called(data datasource.Data) (service, bool) {
	dst, err := d.endpoint(d.dst, data)
	return service{
		netNS: d.uint32(d.netns, data), at: dst, proto: uint8(d.order.Uint16(d.dst.proto.Get(data))),
	}, err == nil
}

func (d *decoder) event(data datasource.Data) (e Event, err error) {
	e = Event{
		Kind:   d.kindOf(data),
		Time:   time.Unix(0, int64(d.order.Uint64(d.timestamp.Get(data)))),
		NetNS:  d.uint32(d.netns, data),
		Egress: d.egress.Get(data)[0] != 0,
		Proc: Process{
			Comm:    cString(d.proc.comm.Get(data)),
			PID:     d.uint32(d.proc.pid, data),
			TID:     d.uint32(d.proc.tid, data),
			MountNS: d.order.Uint64(d.proc.mntns.Get(data)),
			UID:     d.uint32(d.proc.uid, data),
			GID:     d.uint32(d.proc.gid, data),
			Parent: Parent{
				Comm: cString(d.proc.parentComm.Get(data)),
				PID:  d.uint32(d.proc.parentPID, data),
				TID:  d.uint32(d.proc.parentTID, data),
			},
		},
		Thread:     cString(d.thread.Get(data)),
		Protocol:   Protocol(d.order.Uint16(d.dst.proto.Get(data))),
		Retries:    d.uint32(d.retries, data),
		Suppressed: d.uint32(d.suppressed, data),
		ExePath:    cString(d.exePath.Get(data)),
		Cwd:        cString(d.cwd.Get(data)),
	}
	d.setOutcome(&e, data)
	for _, end := range []struct {
		fields endpointFields
		to     *netip.AddrPort
	}{{d.peer, &e.Peer}, {d.src, &e.Src}, {d.dst, &e.Dst}, {d.local, &e.Local}, {d.remote, &e.Remote}} {
		if *end.to, err = d.endpoint(end.fields, data); err != nil {
			return e, err
		}
	}
	if e.Remote == netip.AddrPortFrom(unspecified(e.Remote.Addr()), 0) {
		e.Local, e.Remote = netip.AddrPort{}, netip.AddrPort{}
	}
	return e, nil
}

func (d *decoder) kindOf(data datasource.Data) Kind { return Kind(d.kind.Get(data)[0]) }

// setOutcome reads how an attempt has gone on.
func (d *decoder) setOutcome(e *Event, data datasource.Data) {
	f := d.outcome
	e.Error = unix.Errno(d.uint32(f.errno, data))
	e.Cause, e.Reason = cString(f.cause.Get(data)), cString(f.reason.Get(data))
	e.ICMPType, e.ICMPCode = f.icmpType.Get(data)[0], f.icmpCode.Get(data)[0]
	e.Drop = d.uint32(f.drop, data)
	e.Latency = time.Duration(d.order.Uint64(f.latency.Get(data)))
	e.Duration = time.Duration(d.order.Uint64(f.duration.Get(data)))
	e.TxBytes, e.RxBytes = d.order.Uint64(f.tx.Get(data)), d.order.Uint64(f.rx.Get(data))
	if raw := f.by.Get(data); f.byVersion.Get(data)[0] == 4 {
		e.By = netip.AddrFrom4([4]byte(raw[:4]))
	} else {
		e.By = netip.AddrFrom16([16]byte(raw[:16]))
	}
	if e.By.IsUnspecified() {
		e.By = netip.Addr{}
	}
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func (d *decoder) endpoint(f endpointFields, data datasource.Data) (netip.AddrPort, error) {
	raw := f.addr.Get(data)
	port := d.order.Uint16(f.port.Get(data))
	switch version := f.version.Get(data)[0]; version {
	case 4:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(raw[:4])), port), nil
	case 6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(raw[:16])), port), nil
	default:
		return netip.AddrPort{}, fmt.Errorf("IP version %d of an endpoint is neither 4 nor 6", version)
	}
}

func cString(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}
