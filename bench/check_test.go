// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/features"
)

// check lets the regression guard run: its verdict goes by time, so that it is asked for.
var check = flag.Bool("check", false, "fail when the filter costs more than its limits")

// Limits of a packet that is no attempt. They leave room above what the filter costs
// today, so that what else a machine does is not taken for a regression.
const (
	mostOfFloor       = 0.8 // the goal is 1.25
	mostOfFloorCopied = 1.9 // before Linux 6.2, where headers are copied
	mostOfPlain       = 0.6 // TCP: the plain filter knows nothing else
)

// readsInPlace is the first version of Linux where the filter copies no headers, see
// ebpf/version.h.
const readsInPlace = 6<<16 | 2<<8

// tries: a limit counts as crossed when it is each time.
const tries = 3

// BenchmarkCheck compares the filter with the floor and with the plain filter, of the
// same run. It fails above the limits.
func BenchmarkCheck(b *testing.B) {
	if !*check {
		b.Skip("by make bench-check")
	}
	filters, closeAll, err := load(guarded)
	if err != nil {
		b.Fatal(err)
	}
	defer closeAll()
	most, err := mostOfTheFloor()
	if err != nil {
		b.Fatal(err)
	}
	compared := slices.DeleteFunc(kinds(), func(k kind) bool { return !slices.Contains(usual, k.name) })
	for b.Loop() {
		var above []string
		for range tries {
			m, err := measure(compared, filters)
			if err != nil {
				b.Fatal(err)
			}
			if above = m.above(most); len(above) == 0 {
				break
			}
		}
		for _, line := range above {
			b.Error(line)
		}
	}
}

func mostOfTheFloor() (float64, error) {
	version, err := features.LinuxVersionCode()
	if version < readsInPlace {
		return mostOfFloorCopied, err
	}
	return mostOfFloor, err
}

// above prints how the filter compares, and returns where it is above its limits.
func (m *measured) above(most float64) (lines []string) {
	ours, floor, plain := m.index(ourFilter), m.index(floorFilter), m.index(plainFilter)
	for i, k := range m.kinds {
		line := fmt.Sprintf("%-26s %5.1f ns: %.2f of the floor (at most %.2f)", k.name, m.net(i, ours), m.ratio(i, ours, floor), most)
		above := m.ratio(i, ours, floor) > most
		if strings.HasPrefix(k.name, "TCP") {
			line += fmt.Sprintf(", %.2f of the plain filter (at most %.2f)", m.ratio(i, ours, plain), mostOfPlain)
			above = above || m.ratio(i, ours, plain) > mostOfPlain
		}
		fmt.Println(line)
		if above {
			lines = append(lines, line)
		}
	}
	return lines
}
