// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"cmp"
	"encoding/binary"
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
	leftover leftoverMap

	mu     sync.Mutex
	closed bool
	read   uint64 // events
	owners map[ownerKey]*Withheld
}

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
	a.leftover, err = newLeftoverMap(gadgetCtx)
	return err
}

// enter counts an event that was read, and what it tells: attempts of its owner
// that were withheld. It is false when the account is closed: then the event is
// of no part of the run.
func (a *account) enter(suppressed uint32, owner func() Owner) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	a.read++
	if suppressed > 0 {
		a.add(owner(), uint64(suppressed))
	}
	return true
}

func (a *account) add(o Owner, attempts uint64) {
	key := ownerKey{o.PID, o.Egress}
	if a.owners[key] == nil {
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
	leftover, err := a.leftover.read()
	if err != nil {
		return s, false, err
	}
	after, err := a.counters.read()
	if err != nil {
		return s, false, err
	}
	if !must && (before != after || after.reported != a.read) {
		return s, false, nil
	}

	a.closed = true
	for _, w := range leftover {
		a.add(w.Owner, w.Attempts)
	}
	s = Summary{Reported: a.read, Withheld: after.withheld, Lost: after.lost}
	for w := range maps.Values(a.owners) {
		s.Owners = append(s.Owners, *w)
	}
	slices.SortFunc(s.Owners, func(a, b Withheld) int {
		return cmp.Or(cmp.Compare(b.Attempts, a.Attempts), cmp.Compare(a.PID, b.PID))
	})
	return s, true, nil
}

// perCPUMap is one of the gadget's maps, with a value for each CPU.
type perCPUMap struct {
	*ebpf.Map
	value *btf.Struct
}

// newPerCPUMap finds a map by its name, and the layout of its values.
func newPerCPUMap(gadgetCtx operators.GadgetContext, name string) (m perCPUMap, err error) {
	variable, _ := gadgetCtx.GetVar(operators.MapPrefix + name)
	specVariable, _ := gadgetCtx.GetVar(operators.MapSpecPrefix + name)
	loaded, ok := variable.(*ebpf.Map)
	spec, hasSpec := specVariable.(*ebpf.MapSpec)
	if !ok || !hasSpec {
		return m, fmt.Errorf("the gadget has no map %q: it is another gadget, or an older one", name)
	}
	value, ok := btf.UnderlyingType(spec.Value).(*btf.Struct)
	if !ok {
		return m, fmt.Errorf("the gadget's map %q says nothing of its values: it is another gadget, or an older one", name)
	}
	return perCPUMap{Map: loaded, value: value}, nil
}

// each calls f with the value of each CPU at an index.
func (m perCPUMap) each(index uint32, f func(value []byte)) error {
	values, err := m.LookupBytes(index)
	if err != nil || values == nil {
		return fmt.Errorf("reading %s at %d: %w", m, index, err)
	}
	// The kernel rounds up, see bpf_percpu_array_copy().
	stride := (int(m.ValueSize()) + 7) &^ 7
	for value := range slices.Chunk(values, stride) {
		f(value)
	}
	return nil
}

// span is where a field is in a value.
type span struct{ offset, size int }

func (s span) of(value []byte) []byte { return value[s.offset : s.offset+s.size] }

// uint reads a field of 4 or 8 bytes.
func (s span) uint(value []byte) uint64 {
	if s.size == 4 {
		return uint64(binary.NativeEndian.Uint32(s.of(value)))
	}
	return binary.NativeEndian.Uint64(s.of(value))
}

// fields are spans of fields by their path: the names of those within which each
// is.
type fields struct {
	of  perCPUMap
	err error // the first
}

func (f *fields) find(path ...string) span {
	found := span{}
	var in btf.Type = f.of.value
	for _, name := range path {
		member, ok := memberOf(in, name)
		if !ok {
			f.err = cmp.Or(f.err, fmt.Errorf("the gadget's map %s has no %q: it is another gadget, or an older one", f.of, path))
			return span{}
		}
		found.offset += int(member.Offset.Bytes())
		in = member.Type
	}
	size, err := btf.Sizeof(in)
	f.err = cmp.Or(f.err, err)
	found.size = size
	return found
}

// findUint finds a number.
func (f *fields) findUint(path ...string) span {
	found := f.find(path...)
	if found.size != 4 && found.size != 8 {
		f.err = cmp.Or(f.err, fmt.Errorf("%q in the gadget's map %s has %d bytes, not 4 or 8", path, f.of, found.size))
	}
	return found
}

func memberOf(t btf.Type, name string) (btf.Member, bool) {
	s, ok := btf.UnderlyingType(t).(*btf.Struct)
	if !ok {
		return btf.Member{}, false
	}
	i := slices.IndexFunc(s.Members, func(m btf.Member) bool { return m.Name == name })
	if i < 0 {
		return btf.Member{}, false
	}
	return s.Members[i], true
}

// counterMap holds what the gadget has counted, see ebpf/event.h.
type counterMap struct {
	perCPUMap
	reported, lost, withheld span
}

// counted is the sum over all CPUs, in attempts.
type counted struct{ reported, lost, withheld uint64 }

func newCounterMap(gadgetCtx operators.GadgetContext) (c counterMap, err error) {
	if c.perCPUMap, err = newPerCPUMap(gadgetCtx, "counters"); err != nil {
		return c, err
	}
	f := fields{of: c.perCPUMap}
	c.reported, c.lost, c.withheld = f.findUint("reported"), f.findUint("lost"), f.findUint("withheld")
	return c, f.err
}

func (c counterMap) read() (sum counted, err error) {
	err = c.each(0, func(value []byte) {
		sum.reported += c.reported.uint(value)
		sum.lost += c.lost.uint(value)
		sum.withheld += c.withheld.uint(value)
	})
	return sum, err
}

// leftoverMap holds what was withheld and no event has told yet, see
// ebpf/limit.h.
type leftoverMap struct {
	perCPUMap
	pid, egress, count, comm span
}

func newLeftoverMap(gadgetCtx operators.GadgetContext) (l leftoverMap, err error) {
	if l.perCPUMap, err = newPerCPUMap(gadgetCtx, "withheld"); err != nil {
		return l, err
	}
	f := fields{of: l.perCPUMap}
	l.pid, l.egress = f.findUint("key", "pid"), f.findUint("key", "egress")
	l.count, l.comm = f.findUint("count"), f.find("last", "found", "proc", "comm")
	return l, f.err
}

func (l leftoverMap) read() (all []Withheld, err error) {
	for index := range l.MaxEntries() {
		err := l.each(index, func(value []byte) {
			attempts := l.count.uint(value)
			if attempts == 0 {
				return
			}
			owner := Owner{PID: uint32(l.pid.uint(value)), Comm: cString(l.comm.of(value)), Egress: l.egress.uint(value) != 0}
			all = append(all, Withheld{Owner: owner, Attempts: attempts})
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}
