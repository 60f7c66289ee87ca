// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	// Rounds go through all filters and kinds of packets, so that what else the machine
	// does falls on all of them alike; the medians count.
	packetRounds = 101
	// repeats of one filter with one packet; preparing them then costs less than 1 ns of each.
	repeats = 20_000
)

// measured is what each kind of packet costs with each filter, net of an empty one.
type measured struct {
	kinds   []kind
	filters []filter
	// By kind and filter, each round, ns.
	rounds [][][]float64
}

// BenchmarkPackets measures what a packet costs that is no attempt: with this gadget's
// filter, and with others.
func BenchmarkPackets(b *testing.B) {
	filters, closeAll, err := load(makers())
	if err != nil {
		b.Fatal(err)
	}
	defer closeAll()
	for b.Loop() {
		m, err := measure(kinds(), filters)
		if err == nil {
			err = errors.Join(tell("packets", m.rows()), m.plot())
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// measure runs all filters with all kinds of packets. The first filter is the empty one.
func measure(kinds []kind, filters []filter) (*measured, error) {
	runtime.LockOSThread() // its clock is read
	defer runtime.UnlockOSThread()
	m := &measured{kinds: kinds, filters: filters, rounds: make([][][]float64, len(kinds))}
	for i := range kinds {
		m.rounds[i] = make([][]float64, len(filters))
	}
	for _, k := range slices.Concat(kinds, attempts()) {
		for _, f := range filters {
			if err := f.verify(k); err != nil {
				return nil, err
			}
		}
	}
	for range packetRounds {
		for i, k := range kinds {
			var empty float64
			for j, f := range filters {
				took, err := f.run(k)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", f.name, k.name, err)
				}
				if j == 0 {
					empty = took
				}
				m.rounds[i][j] = append(m.rounds[i][j], took-empty)
			}
		}
	}
	return m, nil
}

// run returns what one packet takes, in ns. The kernel's own count is of whole ns; the
// thread's clock leaves out what others ran meanwhile.
func (f filter) run(k kind) (float64, error) {
	options := f.options(k)
	options.Repeat = repeats
	start, err := threadTime()
	if err != nil {
		return 0, err
	}
	if _, err := f.program.Run(options); err != nil {
		return 0, err
	}
	end, err := threadTime()
	return float64(end-start) / repeats, err
}

// verify finds filters that are cheap because they do not do their work.
func (f filter) verify(k kind) error {
	if !slices.Contains(f.decides, k.proto()) {
		return nil
	}
	verdict, err := f.program.Run(f.options(k))
	if err == nil && (verdict != 0) != k.attempt {
		err = errors.New("it takes an attempt for none, or the reverse")
	}
	if err != nil {
		return fmt.Errorf("%s, %s: %w", f.name, k.name, err)
	}
	return nil
}

func (f filter) options(k kind) *ebpf.RunOptions {
	var skb [48]uint32 // struct __sk_buff
	skb[skbSegments/4] = k.segments
	return &ebpf.RunOptions{Data: k.data(f.ethernet), Context: skb[:]}
}

func threadTime() (time.Duration, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano()), err
}

// net is the median of a kind with a filter, in ns.
func (m *measured) net(kind, filter int) float64 { return median(m.rounds[kind][filter]) }

// ratio is the median of the rounds' ratios of two filters.
func (m *measured) ratio(kind, filter, to int) float64 {
	ratios := make([]float64, 0, packetRounds)
	for round, ns := range m.rounds[kind][filter] {
		ratios = append(ratios, ns/m.rounds[kind][to][round])
	}
	return median(ratios)
}

func (m *measured) index(name string) int {
	return slices.IndexFunc(m.filters, func(f filter) bool { return f.name == name })
}

// leastNs: a floor below it is too near to nothing for a ratio to mean something.
const leastNs = 5

// rows are the table's, its head first: ns, and in brackets the ratio to the floor.
func (m *measured) rows() [][]string {
	head := []string{"ns a packet (of the floor)"}
	for _, f := range m.filters[1:] {
		head = append(head, f.name)
	}
	rows := [][]string{head}
	floor := m.index(floorFilter)
	for i, k := range m.kinds {
		row := []string{k.name}
		for j := range m.filters[1:] {
			cell := fmt.Sprintf("%.1f", m.net(i, j+1))
			if m.net(i, floor) >= leastNs && j+1 != floor {
				cell += fmt.Sprintf(" (%.2f)", m.ratio(i, j+1, floor))
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	return rows
}

// plot draws what most packets are.
func (m *measured) plot() error {
	var series []string
	var values [][]float64
	for j, f := range m.filters[1:] {
		if f.name == stableFilter {
			continue // as high as the floor
		}
		series = append(series, f.name)
		var heights []float64
		for _, name := range usual {
			kind := slices.IndexFunc(m.kinds, func(k kind) bool { return k.name == name })
			heights = append(heights, m.net(kind, j+1))
		}
		values = append(values, heights)
	}
	return writeBars("packets", "A packet that is no attempt", "ns, net of an empty filter", usual, series, values)
}

// usual are most of a host's packets that have no segments.
var usual = []string{"TCP data, IPv4", "TCP data, IPv6", "UDP to a high port, IPv4", "UDP to a high port, IPv6"}
