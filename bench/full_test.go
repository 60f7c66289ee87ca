// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// BenchmarkFull measures whether a packet that is no attempt costs more when the
// gadget knows as many sockets, connections and attempts as it can.
func BenchmarkFull(b *testing.B) {
	filters, closeAll, err := load([]maker{guarded[0], {"nothing known", ours}, {"all that fits known", ours}})
	if err != nil {
		b.Fatal(err)
	}
	defer closeAll()
	entries, maps, err := fill(filters[2].maps)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		m, err := measure(kinds(), filters)
		if err != nil {
			b.Fatal(err)
		}
		rows := [][]string{{"ns a packet", "nothing known", fmt.Sprintf("%d entries in %d maps", entries, maps), "of nothing known"}}
		for i, k := range m.kinds {
			rows = append(rows, []string{k.name, fmt.Sprintf("%.1f", m.net(i, 1)), fmt.Sprintf("%.1f", m.net(i, 2)), fmt.Sprintf("%.2f", m.ratio(i, 2, 1))})
		}
		if err := tell("full", rows); err != nil {
			b.Fatal(err)
		}
	}
}

// fill makes entries with keys of chance until a map is full, in all of them that
// begin without any.
func fill(all map[string]*ebpf.Map) (entries, maps int, err error) {
	for name, m := range all {
		switch m.Type() {
		case ebpf.Hash, ebpf.LRUHash:
		default:
			continue
		}
		key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
		for range m.MaxEntries() {
			if _, err := rand.Read(key); err != nil {
				return 0, 0, err
			}
			err := m.Put(key, value)
			if errors.Is(err, unix.E2BIG) {
				break
			}
			if err != nil {
				return 0, 0, fmt.Errorf("filling %s: %w", name, err)
			}
			entries++
		}
		maps++
	}
	return entries, maps, nil
}
