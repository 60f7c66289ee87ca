// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func TestAFloodIsWithheldFromItsOwnerAlone(t *testing.T) {
	const packets, limit = 200, 20
	mine := between(protoUDP, there4, here4)
	nobodys := between(protoUDP, there4, otherPort4)

	g := load(t, parameters{"rate_limit": uint32(limit)})
	g.bookPort(t, entry{netns: someNetNS, local: here4, proto: protoUDP, owner: someone})
	start := time.Now()
	flood := g.give(t, slices.Repeat([]packet{nobodys}, packets)...)
	other := g.give(t, slices.Repeat([]packet{mine}, limit)...)
	// The bucket is full at first, and gets a token for every 20th of a second.
	most := limit + int(time.Since(start)*limit/time.Second) + 1
	if len(flood) < limit || len(flood) > most {
		t.Errorf("of %d packets of nobody's %d were reported, want %d to %d", packets, len(flood), limit, most)
	}
	if len(other) != limit {
		t.Errorf("beside a flood, of %d packets of another owner %d were reported, want all", limit, len(other))
	}
	g.expect(t, counted{
		reported: uint64(len(flood) + limit), withheld: uint64(packets - len(flood) - 1), announced: 1,
	})
}

func TestNoLimitWithholdsNothing(t *testing.T) {
	const packets = 2000
	g := load(t, parameters{"rate_limit": uint32(0)})
	g.give(t, slices.Repeat([]packet{between(protoUDP, there4, here4)}, packets)...)
	g.expect(t, counted{reported: packets})
}

// TestTheNextEventTellsWhatWasWithheld has the first one that is withheld wait
// for the clock: it will be told by an event of its own.
func TestTheNextEventTellsWhatWasWithheld(t *testing.T) {
	g := load(t, parameters{"rate_limit": uint32(10)})
	p := between(protoTCP, there4, here4)
	for _, step := range []struct {
		empty bool     // has the bucket been emptied?
		give  int      // packets
		told  []uint64 // by the event of each that is reported
	}{
		{false, 1, []uint64{0}},
		{true, 5, nil},
		{false, 2, []uint64{4, 0}},
		{true, 2, nil},
		{false, 1, []uint64{2}},
	} {
		if g.fillBuckets(t); step.empty {
			g.emptyBuckets(t)
		}
		var want []event
		for _, n := range step.told {
			want = append(want, telling(p.event(false, someNetNS), n))
		}
		got := g.give(t, slices.Repeat([]packet{p}, step.give)...)
		if err := difference(p.frame(), got, want); err != nil {
			t.Errorf("%d times, with the bucket emptied: %t: %v", step.give, step.empty, err)
		}
	}
	g.expect(t, counted{reported: 4, withheld: 6, announced: 1})
}

// refuse puts a ring in place of this CPU's that has room, but is paused: the
// kernel refuses what the gadget takes for possible.
func (g *gadget) refuse(t *testing.T) {
	t.Helper()
	cpu, err := cpus() // the test stays on the first one
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PerfEventOpen(&unix.PerfEventAttr{
		Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_BPF_OUTPUT, Sample_type: unix.PERF_SAMPLE_RAW,
	}, -1, cpu[0], -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		t.Fatalf("opening a perf event: %v", err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	ring, err := unix.Mmap(fd, 0, 2*unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatalf("mapping a perf ring: %v", err)
	}
	t.Cleanup(func() { _ = unix.Munmap(ring) })
	if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_PAUSE_OUTPUT, 1); err != nil {
		t.Fatalf("pausing a perf ring: %v", err)
	}
	if err := g.collection.Maps["events"].Put(uint32(cpu[0]), uint32(fd)); err != nil {
		t.Fatalf("giving a CPU another ring: %v", err)
	}
}

func TestWhatALostEventWouldHaveToldTheNextOneTells(t *testing.T) {
	stayOnOneCPU(t)
	g := load(t, parameters{"rate_limit": uint32(10)})
	p := between(protoTCP, there4, here4)
	g.give(t, p)
	g.emptyBuckets(t)
	g.give(t, p, p, p)
	g.fillBuckets(t)
	g.refuse(t)
	g.give(t, p)
	g.expect(t, counted{reported: 1, withheld: 2, announced: 1, lost: 1})
	g.resume(t)
	got := g.give(t, p)
	if err := difference(p.frame(), got, []event{telling(p.event(false, someNetNS), 2)}); err != nil {
		t.Error(err)
	}
}

// TestOneProgramAtATimeTellsOfAnOwner has another CPU's program be about to.
func TestOneProgramAtATimeTellsOfAnOwner(t *testing.T) {
	g := load(t, parameters{"rate_limit": uint32(10)})
	p := between(protoTCP, there4, here4)
	g.give(t, p)
	g.emptyBuckets(t)
	g.give(t, p, p, p)
	g.fillBuckets(t)
	owner := g.books[limitBook].keys(t)[0]
	if err := g.books[tellingBook].Put(owner, uint32(1)); err != nil {
		t.Fatal(err)
	}
	own := p.event(false, someNetNS)
	compare(t, "while another one tells", g.give(t, p), []event{own})
	g.books[tellingBook].clear(t)
	compare(t, "after it", g.give(t, p, p), []event{telling(own, 2), own})
}

// TestEachOneWithheldIsToldOnce gives packets of one owner on two CPUs at the
// same time, some of which get a token.
func TestEachOneWithheldIsToldOnce(t *testing.T) {
	const limit, packets = 20_000, 300_000 // on each CPU
	g := setup{params: parameters{"rate_limit": uint32(limit)}, ring: 64 << 20, clock: true}.load(t)
	frame := between(protoTCP, there4, here4).frame()
	onTwoCPUs(t, func() error {
		one := giver{program: g.program, run: ebpf.RunOptions{Repeat: packets}}
		return one.test(frame, someNetNS)
	})
	g.age(t, announcedBook, time.Second)
	if err := g.tick(); err != nil {
		t.Fatal(err)
	}
	events, err := g.drain(nil)
	if err != nil {
		t.Fatal(err)
	}
	got := g.counted(t)
	want := counted{reported: uint64(len(events)), withheld: 2*packets - uint64(len(events))}
	if got != want || got.withheld == 0 {
		t.Errorf("of %d packets the gadget counts\n got %+v\nwant %+v, and some withheld", 2*packets, got, want)
	}
	if told := told(events); told != got.withheld {
		t.Errorf("%d were withheld, the events tell of %d", got.withheld, told)
	}
	t.Logf("%+v", got)
}

// A party is who an attempt is for: a process of a namespace, young or not.
type party struct {
	pid, netns uint32 // pid 0: nobody is known
	family     uint32 // as in struct owner
	old        bool   // a second, at least
	crowded    bool   // its family has started many at once
}

// attempt books the party's socket on a port, and returns an attempt for it.
func (p party) attempt(tb testing.TB, g *gadget, port uint16, now uint64) (packet, event) {
	tb.Helper()
	packet := udp4.with(toPort(port))
	if p.crowded {
		g.crowd(tb, p.netns, p.family)
	}
	if p.pid == 0 {
		return packet, packet.event(false, p.netns)
	}
	owner := someone
	owner.PID = uint64(p.pid)
	e := entry{netns: p.netns, local: packet.to(), proto: packet.proto, owner: owner, started: now, family: p.family}
	if p.old {
		e.started -= uint64(time.Second)
	}
	g.bookPort(tb, e)
	return packet, owned(packet.event(false, p.netns), owner)
}

// share tells whether an attempt for one party takes the token of another one's;
// sure: the young ones have been young to the end.
func (g *gadget) share(tb testing.TB, one, other party) (share, sure bool) {
	tb.Helper()
	g.books[portBook].clear(tb)
	g.books[limitBook].clear(tb)
	now := bootTime(tb)
	first, want1 := one.attempt(tb, g, 100, now)
	got, err := g.verdict(first.frame(), one.netns)
	if err := errors.Join(err, difference(first.frame(), got, []event{want1})); err != nil {
		tb.Fatal(err)
	}
	g.emptyBuckets(tb)
	second, want2 := other.attempt(tb, g, 200, now)
	got, err = g.verdict(second.frame(), other.netns)
	if share = len(got) == 0; !share {
		err = errors.Join(err, difference(second.frame(), got, []event{want2}))
	}
	if err != nil {
		tb.Fatal(err)
	}
	return share, bootTime(tb)-now < uint64(time.Second)
}

func TestABucketIsSharedByOneProcessOrACrowdedYoungFamily(t *testing.T) {
	g := load(t, parameters{"rate_limit": uint32(1)})
	nobody := party{netns: someNetNS}
	young := func(pid, family uint32) party { return party{pid: pid, netns: someNetNS, family: family} }
	crowded := func(pid, family uint32) party {
		return party{pid: pid, netns: someNetNS, family: family, crowded: true}
	}
	old := func(pid, family uint32) party { return party{pid: pid, netns: someNetNS, family: family, old: true} }
	away := func(p party) party { p.netns++; return p }
	for _, c := range []struct {
		name       string
		one, other party
		share      bool
	}{
		{"two sockets of a process", old(1, 0), old(1, 0), true},
		{"two processes", old(1, 0), old(2, 0), false},
		{"a process in two namespaces", old(1, 0), away(old(1, 0)), false},
		{"nobody, twice", nobody, nobody, true},
		{"nobody, in two namespaces", nobody, away(nobody), false},
		{"a process and nobody", old(1, 0), nobody, false},
		{"two young ones of a family", young(1, 9), young(2, 9), false},
		{"a young one, twice", young(1, 9), young(1, 9), true},
		{"two young ones of a crowded family", crowded(1, 9), crowded(2, 9), true},
		{"two young ones of two crowded families", crowded(1, 9), crowded(2, 8), false},
		{"two young ones of a crowded family, in two namespaces", crowded(1, 9), away(crowded(2, 9)), false},
		{"one of a crowded family, and one that has got old", crowded(1, 9), old(2, 9), false},
		{"one of a crowded family, and its ancestor", crowded(1, 9), old(9, 0), false},
		{"a young one and its ancestor", young(1, 9), old(9, 0), false},
		{"two of a family that have got old", old(1, 9), old(2, 9), false},
		{"a young one, and one that has got old", young(1, 9), old(2, 9), false},
		{"one that has got old, and its ancestor", old(1, 9), old(9, 0), false},
		{"one that has got old, twice", old(1, 9), old(1, 9), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			share, sure := g.share(t, c.one, c.other)
			for end := time.Now().Add(patience); !sure && time.Now().Before(end); {
				share, sure = g.share(t, c.one, c.other)
			}
			if share != c.share {
				t.Errorf("%+v and %+v share a bucket: got %t, want %t", c.one, c.other, share, c.share)
			}
		})
	}
}

func TestSentAndReceivedOnesAreLimitedApart(t *testing.T) {
	w := newVeth(t, false)
	g := load(t, parameters{"rate_limit": uint32(1)})
	w.attach(t, g)
	got, err := w.send(g, tcp4)
	err = errors.Join(err,
		difference(tcp4.frame(), got.egress, []event{tcp4.event(true, w.netns(true))}),
		difference(tcp4.frame(), got.ingress, []event{tcp4.event(false, w.netns(false))}))
	if err != nil {
		t.Errorf("of nobody's one token a second: %v", err)
	}
}
