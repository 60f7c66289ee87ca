// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// someone is the process that the tests give sockets to: every field is set,
// and no two are alike.
var someone = process{
	Comm: "fifteen-letters", ParentComm: "its-parent",
	PID: 0x11223344, TID: 0x55667788, ParentPID: 0x0A0B0C0D,
	UID: 0x01020304, GID: 0x05060708, MntNS: 0xF0000000,
	Set: true,
}

// own makes a process the owner of a local port, as IG's socket enricher does.
func (g *gadget) own(netns uint32, family uint16, proto uint8, port uint16, ipv6only bool, p process) error {
	key := make([]byte, g.socketKey.size)
	g.socketKey.field("netns").putUint(key, uint64(netns))
	g.socketKey.field("family").putUint(key, uint64(family))
	g.socketKey.field("proto").putUint(key, uint64(proto))
	g.socketKey.field("port").putUint(key, uint64(port))

	val := make([]byte, g.socketVal.size)
	g.socketVal.field("mntns").putUint(val, p.MntNS)
	g.socketVal.field("pid_tgid").putUint(val, p.PID<<32|p.TID)
	g.socketVal.field("uid_gid").putUint(val, p.GID<<32|p.UID)
	g.socketVal.field("ppid").putUint(val, p.ParentPID)
	copy(g.socketVal.field("task").of(val), p.Comm)
	copy(g.socketVal.field("ptask").of(val), p.ParentComm)
	if ipv6only {
		g.socketVal.field("ipv6only").putUint(val, 1)
	}
	if err := g.sockets.Put(key, val); err != nil {
		return fmt.Errorf("giving a socket to a process: %w", err)
	}
	return nil
}

func family(p packet) uint16 {
	if p.src.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// owned is an event with its owner.
func owned(e event, by process) event {
	e.Proc = by
	return e
}

func TestReceivedAttemptNamesTheOwnerOfItsPort(t *testing.T) {
	const other = someNetNS + 1
	for _, c := range []struct {
		name     string
		packet   packet
		netns    uint32
		family   uint16
		proto    uint8
		port     uint16
		ipv6only bool
		known    bool
	}{
		{"TCP over IPv4", tcp4, someNetNS, unix.AF_INET, protoTCP, tcp4.dport, false, true},
		{"UDP over IPv4", udp4, someNetNS, unix.AF_INET, protoUDP, udp4.dport, false, true},
		{"TCP over IPv6", tcp6, someNetNS, unix.AF_INET6, protoTCP, tcp6.dport, false, true},
		{"UDP over IPv6", udp6, someNetNS, unix.AF_INET6, protoUDP, udp6.dport, false, true},
		{"IPv4 to a dual-stack socket", tcp4, someNetNS, unix.AF_INET6, protoTCP, tcp4.dport, false, true},
		{"IPv4 to an IPv6-only socket", tcp4, someNetNS, unix.AF_INET6, protoTCP, tcp4.dport, true, false},
		{"IPv6 to an IPv4 socket", tcp6, someNetNS, unix.AF_INET, protoTCP, tcp6.dport, false, false},
		{"TCP to a UDP socket", tcp4, someNetNS, unix.AF_INET, protoUDP, tcp4.dport, false, false},
		{"another port", tcp4, someNetNS, unix.AF_INET, protoTCP, tcp4.dport + 1, false, false},
		{"the remote port", tcp4, someNetNS, unix.AF_INET, protoTCP, tcp4.sport, false, false},
		{"another network namespace", tcp4, other, unix.AF_INET, protoTCP, tcp4.dport, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := load(t, nil)
			if err := g.own(c.netns, c.family, c.proto, c.port, c.ipv6only, someone); err != nil {
				t.Fatal(err)
			}
			want := c.packet.event(false, someNetNS)
			if c.known {
				want.Proc = someone
			}
			got, err := g.verdict(c.packet.frame(), someNetNS)
			if err := errors.Join(err, difference(c.packet.frame(), got, []event{want})); err != nil {
				t.Error(err)
			}
		})
	}
}

// What is left of an event, wherever it was built, must not turn up in the
// next one: on the stack, in a buffer of the CPU, in the ring.
func TestAttemptOfNobodyHasNoProcessWhateverWasReportedBefore(t *testing.T) {
	g := load(t, nil)
	for _, p := range attempts {
		if err := g.own(someNetNS, family(p), p.proto, p.dport, false, someone); err != nil {
			t.Fatal(err)
		}
	}
	for _, before := range attempts {
		for _, p := range attempts {
			nobody := p.with(ports(p.sport, p.dport+1))
			name := fmt.Sprintf("%s after %s", p.title(), before.title())
			t.Run(name, func(t *testing.T) { g.followOwned(t, before, nobody) })
		}
	}
}

// followOwned sends packets that someone owns and one of nobody by turns, with
// nothing in between that could clean up after the program.
func (g *gadget) followOwned(t *testing.T, before, nobody packet) {
	t.Helper()
	rounds := []uint32{1, 2}
	frames := [][]byte{before.frame(), nobody.frame()}
	err := onOneCPU(func() error {
		for _, n := range rounds {
			g.run.Repeat = n
			if err := g.test(frames[0], someNetNS); err != nil {
				return err
			}
			g.run.Repeat = 1
			if err := g.test(frames[1], someNetNS); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var want []event
	for _, n := range rounds {
		for range n {
			want = append(want, owned(before.event(false, someNetNS), someone))
		}
		want = append(want, nobody.event(false, someNetNS))
	}
	got, err := g.drain(nil)
	if err := errors.Join(err, difference(slices.Concat(frames...), got, want)); err != nil {
		t.Error(err)
	}
}

func TestTrafficOfNobodyHasNoProcessWhateverWasReportedBefore(t *testing.T) {
	w := newVeth(t, false)
	server := someone
	client := process{Comm: "client", PID: 1, TID: 2, ParentPID: 3, UID: 4, GID: 5, MntNS: 6, Set: true}
	for _, p := range attempts {
		// Both ends have the namespace id 0 here: the port tells them apart.
		err := errors.Join(w.watcher.own(wireNetNS, family(p), p.proto, p.dport, false, server),
			w.watcher.own(wireNetNS, family(p), p.proto, p.sport, false, client))
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range attempts {
		t.Run(p.title(), func(t *testing.T) {
			nobody := p.with(ports(p.sport+100, p.dport+100))
			w.expect(t, p, client, server)
			w.expect(t, nobody, process{}, process{})
			w.expect(t, p.with(ports(p.sport, nobody.dport)), client, process{})
			w.expect(t, p.with(ports(nobody.sport, p.dport)), process{}, server)
			w.expect(t, nobody, process{}, process{})
		})
	}
}

// expect sends an attempt and compares whose it is said to be.
func (w *wire) expect(t *testing.T, p packet, sender, receiver process) {
	t.Helper()
	frame, _ := w.adapt(p.frame())
	got, err := w.exchange(frame)
	err = errors.Join(err,
		difference(frame, got.egress, []event{owned(p.event(true, wireNetNS), sender)}),
		difference(frame, got.ingress, []event{owned(p.event(false, wireNetNS), receiver)}))
	if err != nil {
		t.Error(err)
	}
}
