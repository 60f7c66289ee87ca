// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A namespace's id is what IG's dispatcher says it is.
const someNetNS = 4026531992

// loopbackMAC is the address of the device that receives in BPF_PROG_TEST_RUN.
var loopbackMAC [6]byte

// difference describes what a frame was reported as, where that is wrong.
func difference(frame []byte, got, want []event) error {
	if slices.Equal(got, want) {
		return nil
	}
	return fmt.Errorf("sent %x\n got %v\nwant %v", frame, got, want)
}

func TestReceivedFrameIsReportedOnlyWhenItIsAnAttempt(t *testing.T) {
	g := load(t, nil)
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			got, err := g.verdict(c.frame(), someNetNS)
			if err != nil {
				t.Fatalf("sent %x: %v", c.frame(), err)
			}
			if err := difference(c.frame(), got, c.want(false, someNetNS)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNinthTagIsNotRead(t *testing.T) {
	g := load(t, nil)
	frame := tcp4.with(tags(slices.Repeat([]uint16{typeQinQ}, 9)...)).frame()
	got, err := g.verdict(frame, someNetNS)
	if err := errors.Join(err, difference(frame, got, nil)); err != nil {
		t.Error(err)
	}
}

func TestReferenceAgreesWithTheTable(t *testing.T) {
	var r reference
	for _, c := range cases() {
		for _, egress := range []bool{false, true} {
			var got []event
			if e, ok := r.frame(c.frame(), egress, loopbackMAC, someNetNS); ok {
				got = append(got, e)
			}
			if err := difference(c.frame(), got, c.want(egress, someNetNS)); err != nil {
				t.Errorf("%s, egress %v: %v", c.name, egress, err)
			}
		}
	}
}

// wholePackets are those that the cutting tests take apart.
func wholePackets() map[string]packet {
	ps := map[string]packet{}
	for _, p := range attempts {
		ps[p.title()] = p.with(payload(8))
		ps[p.title()+" behind two tags"] = p.with(payload(8), tags(typeQinQ, typeVLAN))
		if p.proto == protoTCP {
			ps[p.title()+" with TCP options"] = p.with(tcpOptions(20))
		}
		if p.src.Is4() {
			ps[p.title()+" with IP options"] = p.with(options(12))
		} else {
			ps[p.title()+" with extension headers"] = p.with(chain(extension{proto: protoHop},
				extension{proto: protoAH, hdrlen: 1}, extension{proto: protoFragment, fragment: 1}))
		}
	}
	return ps
}

func TestCutPacketIsIgnoredAtEveryLength(t *testing.T) {
	g := load(t, nil)
	for name, p := range wholePackets() {
		t.Run(name, func(t *testing.T) {
			frame := p.frame()
			for n := range len(frame) + 1 {
				var want []event
				if n == len(frame) {
					want = []event{p.event(false, someNetNS)}
				}
				got, err := g.verdict(frame[:n], someNetNS)
				if err := errors.Join(err, difference(frame[:n], got, want)); err != nil {
					t.Errorf("cut to %d of %d bytes: %v", n, len(frame), err)
				}
			}
		})
	}
}

// bootTime is in nanoseconds since the boot.
func bootTime(tb testing.TB) uint64 {
	tb.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		tb.Fatal(err)
	}
	return uint64(ts.Nano())
}

func TestEventHasTheTimeSinceTheBoot(t *testing.T) {
	g := load(t, nil)
	before := bootTime(t)
	if err := g.test(tcp4.frame(), someNetNS); err != nil {
		t.Fatal(err)
	}
	after := bootTime(t)
	_, at, err := g.next(time.Now().Add(patience))
	if err != nil {
		t.Fatal(err)
	}
	if at < before || at > after {
		t.Errorf("event of time %d, want one from %d to %d", at, before, after)
	}
}

func TestEgressIsARealBoolean(t *testing.T) {
	g := load(t, nil)
	if size := g.events.egress.size; size != 1 {
		t.Errorf("egress has %d bytes, want 1", size)
	}
}
