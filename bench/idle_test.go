// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// idleFor is how long the machine idles with each way.
const idleFor = 20 * time.Second

// BenchmarkIdle measures the gadget's clock on an idle machine, beside programs
// that do nothing at the same places: how often it runs, and how much of a
// processor's time that takes.
func BenchmarkIdle(b *testing.B) {
	all, err := newHooks()
	if err != nil {
		b.Fatal(err)
	}
	defer all.collection.Close()
	ways := []struct {
		name     string
		programs map[string]*ebpf.Program // by function
	}{{"empty programs", map[string]*ebpf.Program{}}, {"gadget's clock", map[string]*ebpf.Program{}}}
	for name, function := range map[string]string{"network_timeout": "process_timeout", "network_shepherd": "vmstat_shepherd"} {
		empty, err := newKprobe(asm.Instructions{})
		if err != nil {
			b.Fatal(err)
		}
		defer empty.Close()
		ways[0].programs[function], ways[1].programs[function] = empty, all.collection.Programs[name]
	}
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	for b.Loop() {
		for _, w := range ways {
			runs, took, err := idle(w.programs)
			if err != nil {
				b.Fatalf("%s: %v", w.name, err)
			}
			fmt.Printf("idle  %-15s %5.1f runs/s  %6d ns each  %.5f%% of one CPU\n", w.name, float64(runs)/idleFor.Seconds(),
				took.Nanoseconds()/int64(max(runs, 1)), 100*took.Seconds()/idleFor.Seconds())
		}
	}
}

// idle attaches kprobes while the machine idles, and returns how often they ran and
// for how long.
func idle(programs map[string]*ebpf.Program) (runs uint64, took time.Duration, err error) {
	for function, program := range programs {
		l, err := link.Kprobe(function, program, nil)
		if err != nil {
			return 0, 0, err
		}
		defer l.Close()
	}
	time.Sleep(idleFor)
	for _, program := range programs {
		stats, statsErr := program.Stats()
		if statsErr != nil {
			err = errors.Join(err, statsErr)
			continue
		}
		runs += stats.RunCount
		took += stats.Runtime
	}
	return runs, took, err
}
