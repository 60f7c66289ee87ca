// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators"
)

// account tells what became of the attempts of a run: by the events that were
// read, and by the gadget's own counters for what no event tells.
type account struct {
	counters counterMap
	queued   queuedMap
	awaited  queuedMap // connections whose first SYN was not seen yet
	arriving queuedMap // attempts that wait for the kernel's answer
	ending   *ebpf.Map // whether any does
	unserved span      // of these, in their map: see Summary
	living   queuedMap // attempts whose end is awaited
	lives    *ebpf.Map // the same, one by one

	mu     sync.Mutex
	closed bool
	read   uint64             // events
	kinds  [Closed + 1]uint64 // of them, those that tell how an attempt went on
	owners map[ownerKey]*Withheld
}

// mostCounted bounds the owners that are told apart: who forks for each attempt
// has as many.
const mostCounted = 1 << 16

type ownerKey struct {
	pid    uint32
	egress bool
}

func newAccount() *account { return &account{owners: map[ownerKey]*Withheld{}} }

// attach finds the gadget's maps.
func (a *account) attach(gadgetCtx operators.GadgetContext) (err error) {
	if a.counters, err = newCounterMap(gadgetCtx); err != nil {
		return err
	}
	a.queued, err = newQueuedMap(gadgetCtx, "queued",
		[]string{"unsent_in", "announced_in"}, []string{"unsent_out", "announced_out"})
	if err != nil {
		return err
	}
	if a.awaited, err = newQueuedMap(gadgetCtx, "progresses", []string{"begun"}, []string{"ended"}); err != nil {
		return err
	}
	if a.arriving, err = newQueuedMap(gadgetCtx, "arriving", []string{"begun"}, []string{"ended"}); err != nil {
		return err
	}
	if a.living, err = newQueuedMap(gadgetCtx, "living", []string{"begun"}, []string{"ended"}); err != nil {
		return err
	}
	if a.lives, err = loadedMap(gadgetCtx, "lives"); err != nil {
		return err
	}
	f := fields{of: a.arriving.gadgetMap}
	a.unserved = f.find("unserved")
	a.ending, err = loadedMap(gadgetCtx, "ending")
	return errors.Join(f.err, err)
}

// endArrivals has the gadget await no answer any more: those that can come have.
func (a *account) endArrivals() error {
	value := make([]byte, a.ending.ValueSize())
	value[0] = 1
	if err := a.ending.Put(uint32(0), value); err != nil {
		return fmt.Errorf("writing %s: %w", a.ending, err)
	}
	return nil
}

// enter counts an event that was read, as an attempt or as what it tells of one, and
// the attempts of its owner that were withheld. It is false when the account is closed: then the event is
// of no part of the run.
func (a *account) enter(kind Kind, suppressed uint32, owner func() Owner) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	a.read++
	a.kinds[min(kind, Closed)]++
	if suppressed > 0 {
		a.add(owner(), uint64(suppressed))
	}
	return true
}

func (a *account) add(o Owner, attempts uint64) {
	key := ownerKey{o.PID, o.Egress}
	if a.owners[key] == nil {
		if len(a.owners) == mostCounted {
			return
		}
		a.owners[key] = &Withheld{}
	}
	a.owners[key].Owner = o
	a.owners[key].Attempts += attempts
}

// close settles the account if every event that the gadget has sent was read,
// which can be true when the rings were just drained: not if it has sent more
// since. Then it does so only if it must.
func (a *account) close(must bool) (s Summary, ok bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before, err := a.counters.read()
	if err != nil {
		return s, false, err
	}
	waiting, err := a.queued.read()
	if err != nil {
		return s, false, err
	}
	after, err := a.counters.read()
	if err != nil {
		return s, false, err
	}
	if !must && (before != after || waiting.put != waiting.taken || after.reported+after.outcomes != a.read) {
		return s, false, nil
	}

	a.closed = true
	s = Summary{
		// What waits still is not reported.
		Reported: a.kinds[Attempt], Established: a.kinds[Established], Failed: a.kinds[Failed], OutcomesLost: after.outcomesLost,
		Withheld: after.withheld + waiting.put - waiting.taken, Lost: after.lost,
		WithoutBuffer: after.withoutRing, LeftOutSent: after.leftOutSent, LeftOutReceived: after.leftOutReceived,
	}
	err = a.arriving.each(func(value []byte) { s.Unserved = a.unserved.uint(value) })
	if err != nil {
		return s, false, err
	}
	if err := a.countUnended(&s); err != nil {
		return s, false, err
	}
	for w := range maps.Values(a.owners) {
		s.Owners = append(s.Owners, *w)
	}
	slices.SortFunc(s.Owners, func(a, b Withheld) int {
		return cmp.Or(cmp.Compare(b.Attempts, a.Attempts), cmp.Compare(a.PID, b.PID))
	})
	return s, true, nil
}

// countUnended counts the attempts whose end is awaited still, and those that are
// not any more: there was no room for so many.
func (a *account) countUnended(s *Summary) error {
	l, err := a.living.read()
	if err != nil {
		return err
	}
	var key, value []byte
	lives := a.lives.Iterate()
	for lives.Next(&key, &value) {
		s.Unended++
	}
	if err := lives.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("counting %s: %w", a.lives, err)
	}
	if unended := l.put - l.taken; l.put > l.taken && unended > s.Unended {
		s.Forgotten = unended - s.Unended
	}
	return nil
}

// gadgetMap is one of the gadget's maps.
type gadgetMap struct {
	*ebpf.Map
	value *btf.Struct
}

// newGadgetMap finds a map by its name, and the layout of its values.
func newGadgetMap(gadgetCtx operators.GadgetContext, name string) (m gadgetMap, err error) {
	if m.Map, err = loadedMap(gadgetCtx, name); err != nil {
		return m, err
	}
	v, _ := gadgetCtx.GetVar(operators.MapSpecPrefix + name)
	if spec, ok := v.(*ebpf.MapSpec); ok {
		if m.value, ok = btf.UnderlyingType(spec.Value).(*btf.Struct); ok {
			return m, nil
		}
	}
	return m, fmt.Errorf("the gadget's map %q says nothing of its values: it is another gadget, or an older one", name)
}

// each calls f with the first value of an array, or of each CPU's.
func (m gadgetMap) each(f func(value []byte)) error {
	values, err := m.LookupBytes(uint32(0))
	if err != nil || values == nil {
		return fmt.Errorf("reading %s: %w", m, err)
	}
	// The kernel rounds up, see bpf_percpu_array_copy().
	stride := (int(m.ValueSize()) + 7) &^ 7
	for value := range slices.Chunk(values, stride) {
		f(value)
	}
	return nil
}

// span is where a number is in a value.
type span struct{ offset, size int }

// uint reads a number of 4 or 8 bytes.
func (s span) uint(value []byte) uint64 {
	number := value[s.offset : s.offset+s.size]
	if s.size == 4 {
		return uint64(binary.NativeEndian.Uint32(number))
	}
	return binary.NativeEndian.Uint64(number)
}

// fields finds numbers in a map's values by their names.
type fields struct {
	of  gadgetMap
	err error // the first
}

func (f *fields) find(name string) span {
	members := f.of.value.Members
	i := slices.IndexFunc(members, func(m btf.Member) bool { return m.Name == name })
	if i < 0 {
		f.err = cmp.Or(f.err, fmt.Errorf("the gadget's map %s has no %q: it is another gadget, or an older one", f.of, name))
		return span{}
	}
	size, err := btf.Sizeof(members[i].Type)
	if err == nil && size != 4 && size != 8 {
		err = fmt.Errorf("%q in the gadget's map %s has %d bytes, not 4 or 8", name, f.of, size)
	}
	f.err = cmp.Or(f.err, err)
	return span{int(members[i].Offset.Bytes()), size}
}

// counterMap holds what the gadget has counted, see ebpf/deliver.h.
type counterMap struct {
	gadgetMap
	reported, lost, withheld, withoutRing, leftOutSent, leftOutReceived span
	outcomes, outcomesLost                                              span
}

// counted is the sum over all CPUs, in attempts; and in events that tell how
// attempts went on.
type counted struct {
	reported, lost, withheld, withoutRing, leftOutSent, leftOutReceived uint64
	outcomes, outcomesLost                                              uint64
}

func newCounterMap(gadgetCtx operators.GadgetContext) (c counterMap, err error) {
	if c.gadgetMap, err = newGadgetMap(gadgetCtx, "counters"); err != nil {
		return c, err
	}
	f := fields{of: c.gadgetMap}
	c.reported, c.lost, c.withheld = f.find("reported"), f.find("lost"), f.find("withheld")
	c.withoutRing = f.find("without_ring")
	c.leftOutSent, c.leftOutReceived = f.find("left_out_sent"), f.find("left_out_received")
	c.outcomes, c.outcomesLost = f.find("outcomes"), f.find("outcomes_lost")
	return c, f.err
}

func (c counterMap) read() (sum counted, err error) {
	err = c.each(func(value []byte) {
		sum.reported += c.reported.uint(value)
		sum.lost += c.lost.uint(value)
		sum.withheld += c.withheld.uint(value)
		sum.withoutRing += c.withoutRing.uint(value)
		sum.leftOutSent += c.leftOutSent.uint(value)
		sum.leftOutReceived += c.leftOutReceived.uint(value)
		sum.outcomes += c.outcomes.uint(value)
		sum.outcomesLost += c.outcomesLost.uint(value)
	})
	return sum, err
}

// queuedMap holds how much was put somewhere to wait, and how much was taken from
// there, see struct queued in ebpf/deliver.h and struct progresses in ebpf/books.h.
type queuedMap struct {
	gadgetMap
	put, taken []span
}

// queued is what was put and what was taken. It is taken in the order in which it
// was put, as a rule.
type queued struct{ put, taken uint64 }

func newQueuedMap(gadgetCtx operators.GadgetContext, name string, put, taken []string) (q queuedMap, err error) {
	if q.gadgetMap, err = newGadgetMap(gadgetCtx, name); err != nil {
		return q, err
	}
	f := fields{of: q.gadgetMap}
	for i := range put {
		q.put = append(q.put, f.find(put[i]))
		q.taken = append(q.taken, f.find(taken[i]))
	}
	return q, f.err
}

func (q queuedMap) read() (sum queued, err error) {
	err = q.each(func(value []byte) {
		for i := range q.put {
			sum.put += q.put[i].uint(value)
			sum.taken += q.taken[i].uint(value)
		}
	})
	return sum, err
}
