// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"gadget.example/network/internal/gadget"
)

// gadgetRuns are with what parameters the gadget is run. No limit is in the way where all is reported.
var gadgetRuns = []struct {
	name   string
	params map[string]string
}{
	{"nothing to report", map[string]string{"port": "1"}},
	{"nothing to report, --lifecycle", map[string]string{"port": "1", "lifecycle": "true"}},
	{"all reported", map[string]string{"rate-limit": "0"}},
	{"all reported, --lifecycle", map[string]string{"rate-limit": "0", "lifecycle": "true"}},
}

// BenchmarkHooks measures what each hook of the gadget costs each operation, by the
// kernel's own statistics of programs, and what the operation takes bare and while the
// gadget runs, when nobody counts. It prints the tables of docs/performance.md.
func BenchmarkHooks(b *testing.B) {
	for b.Loop() {
		if err := measureTraps(); err != nil {
			b.Fatal(err)
		}
		bare, err := measureOperations(b.Context(), *turns, nil)
		if err != nil {
			b.Fatalf("bare: %v", err)
		}
		all := []hooked{}
		for _, r := range gadgetRuns {
			on, err := measureHooks(b.Context(), r.params)
			if err != nil {
				b.Fatalf("%s: %v", r.name, err)
			}
			fmt.Printf("\n%s (an empty program counts %.0f ns, which are not in the numbers)\n\n%s", r.name, on.empty, markdown(on.rows(bare)))
			all = append(all, on)
		}
		fmt.Printf("\n%s", markdown(summary(bare, all)))
	}
}

// done is what an operation took, ns, and what each program that ran meanwhile did.
type done struct {
	name     string
	took     float64
	programs map[string]use
}

// sum is what all programs took, ns.
func (d done) sum() (sum float64) {
	for _, p := range d.programs {
		sum += p.runs * p.took
	}
	return sum
}

// use is of a program, by operation.
type use struct {
	runs, took float64 // took: ns
}

// hooked are operations while the gadget runs.
type hooked struct {
	plain, counted []done // without the kernel's statistics, and with them
	empty          float64
}

func measureHooks(ctx context.Context, params map[string]string) (h hooked, err error) {
	params = maps.Clone(params)
	params["host"] = "true"
	before, err := loaded()
	if err != nil {
		return h, err
	}
	defer before.close()
	_, err = gadget.Run(ctx, gadget.Options{
		AutoMount: true,
		Params:    params,
		OnReady: func(ctx context.Context) error {
			if h.plain, err = measureOperations(ctx, *turns, nil); err != nil {
				return err
			}
			return h.count(ctx, before)
		},
	})
	return h, err
}

// emptyProgram is the name of the one that is measured beside the gadget's.
const emptyProgram = "empty"

// count does all once more, with the kernel's statistics of those programs that have been
// loaded since, and of an empty one, at a place that all connects of TCP come by.
func (h *hooked) count(ctx context.Context, before programs) error {
	since, err := loaded()
	if err != nil {
		return err
	}
	defer since.close()
	maps.DeleteFunc(since, func(id ebpf.ProgramID, _ program) bool { _, old := before[id]; return old })
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return err
	}
	defer stats.Close()
	return withEmpty("tcp_connect", link.Kprobe, func(p *ebpf.Program) error {
		all := maps.Clone(since)
		all[0] = program{p, emptyProgram}
		if h.counted, err = measureOperations(ctx, *turns, all); err != nil {
			return err
		}
		var runs, took float64
		for _, d := range h.counted {
			u := d.programs[emptyProgram]
			runs, took = runs+u.runs, took+u.runs*u.took
			delete(d.programs, emptyProgram)
		}
		h.empty = took / runs
		return nil
	})
}

// rows are the table's, its head first.
func (h *hooked) rows(bare []done) [][]string {
	rows := [][]string{{"", "bare, ns", "with the gadget", "of bare", "its programs", "each of them"}}
	for i, d := range h.plain {
		counted := h.counted[i]
		sum, each := counted.split(h.empty)
		rows = append(rows, []string{
			d.name, fmt.Sprintf("%.0f", bare[i].took), fmt.Sprintf("%.0f", d.took),
			fmt.Sprintf("%.2f", d.took/bare[i].took), fmt.Sprintf("%.0f", sum), each,
		})
	}
	return rows
}

// summary is the table of all runs: the time of all programs, ns, and the ratio to bare.
func summary(bare []done, all []hooked) [][]string {
	rows := [][]string{{"programs, ns (operation, of bare)", "bare, ns"}}
	for _, r := range gadgetRuns {
		rows[0] = append(rows[0], r.name)
	}
	for i, d := range bare {
		row := []string{d.name, fmt.Sprintf("%.0f", d.took)}
		for _, on := range all {
			sum, _ := on.counted[i].split(on.empty)
			row = append(row, fmt.Sprintf("%.0f (%.2f)", sum, on.plain[i].took/d.took))
		}
		rows = append(rows, row)
	}
	return rows
}

// leastRuns of a program by operation: what runs less often does so by the clock.
const leastRuns = 0.1

// split is the sum of programs' time, ns, and who has which part of it, all net of what
// an empty program counts.
func (d done) split(empty float64) (sum float64, each string) {
	names := slices.SortedFunc(maps.Keys(d.programs), func(a, b string) int {
		x, y := d.programs[a], d.programs[b]
		return cmp.Or(-cmp.Compare(x.runs*(x.took-empty), y.runs*(y.took-empty)), cmp.Compare(a, b))
	})
	var parts []string
	for _, name := range names {
		p := d.programs[name]
		if p.runs < leastRuns {
			continue
		}
		sum += p.runs * (p.took - empty)
		part := fmt.Sprintf("%s %.0f", strings.TrimPrefix(name, "network_"), p.took-empty)
		if times := fmt.Sprintf("%.1f", p.runs); times != "1.0" {
			part = fmt.Sprintf("%s × %s", strings.TrimSuffix(times, ".0"), part)
		}
		parts = append(parts, part)
	}
	return sum, strings.Join(parts, ", ")
}

// measureOperations does all operations by turns, of which the medians count; the first
// turn is not among them, as it makes all that is made but once.
func measureOperations(ctx context.Context, turns int, counted programs) ([]done, error) {
	rest, err := newRest()
	if err != nil {
		return nil, err
	}
	defer rest.Close()
	var all [][]done
	for range turns + 1 {
		var turn []done
		for _, s := range scenarios() {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			did, err := s.measure(rest, counted)
			if err != nil {
				return nil, err
			}
			turn = append(turn, did...)
		}
		all = append(all, turn)
	}
	var result []done
	for i := range all[0] {
		var took []float64
		var middle []done // of the turn in which the programs took the middle of their times
		for _, turn := range all[1:] {
			took, middle = append(took, turn[i].took), append(middle, turn[i])
		}
		slices.SortFunc(middle, func(a, b done) int { return cmp.Compare(a.sum(), b.sum()) })
		d := middle[len(middle)/2]
		d.took = median(took)
		result = append(result, d)
	}
	return result, nil
}

func (s scenario) measure(rest *rest, counted programs) (all []done, err error) {
	operations, err := s.begin()
	if err != nil {
		return nil, err
	}
	for _, o := range operations {
		before, err := counted.uses()
		if err != nil {
			return nil, err
		}
		start := time.Now()
		for i := range s.times {
			if err := o.do(i); err != nil {
				return nil, fmt.Errorf("%s: %w", o.name, err)
			}
		}
		took := time.Since(start)
		if err := rest.take(); err != nil {
			return nil, err
		}
		after, err := counted.uses()
		if err != nil {
			return nil, err
		}
		if o.name == "" {
			continue
		}
		all = append(all, done{o.name, float64(took.Nanoseconds()) / float64(s.times), difference(before, after, float64(s.times))})
	}
	return all, nil
}

// difference is the use between two readings, of one of many operations.
func difference(before, after map[string]ebpf.ProgramStats, times float64) map[string]use {
	uses := map[string]use{}
	for name, s := range after {
		if n := s.RunCount - before[name].RunCount; n > 0 {
			uses[name] = use{float64(n) / times, float64((s.Runtime - before[name].Runtime).Nanoseconds()) / float64(n)}
		}
	}
	return uses
}

// rest waits until the kernel has ended what it does later: a socket is destroyed when
// nobody can look at it any more (RCU).
type rest struct{ outer, inner *ebpf.Map }

func newRest() (*rest, error) {
	spec := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	inner, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, err
	}
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: spec})
	if err != nil {
		return nil, errors.Join(err, inner.Close())
	}
	return &rest{outer, inner}, nil
}

func (r *rest) Close() { r.outer.Close(); r.inner.Close() }

// take waits twice: when the second wait is over, what the first one let begin has been
// done. Who changes a map of maps waits for all who look at it, see
// maybe_wait_bpf_programs().
func (r *rest) take() error {
	for range 2 {
		if err := r.outer.Put(uint32(0), r.inner); err != nil {
			return err
		}
	}
	return nil
}

// programs are loaded ones.
type programs map[ebpf.ProgramID]program

type program struct {
	*ebpf.Program
	name string
}

func (all programs) close() {
	for _, p := range all {
		p.Close()
	}
}

// loaded opens all programs that the kernel has.
func loaded() (programs, error) {
	all := programs{}
	for id, err := ebpf.ProgramGetNextID(0); ; id, err = ebpf.ProgramGetNextID(id) {
		if errors.Is(err, fs.ErrNotExist) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		info, err := p.Info() // it has the whole name, by the program's types
		if err != nil {
			return nil, err
		}
		all[id] = program{p, info.Name}
	}
}

func (all programs) uses() (map[string]ebpf.ProgramStats, error) {
	uses := map[string]ebpf.ProgramStats{}
	for _, p := range all {
		s, err := p.Stats()
		if err != nil {
			return nil, err
		}
		uses[p.name] = *s
	}
	return uses, nil
}

// withEmpty does what it is given while a program that does nothing is attached.
func withEmpty(function string, attach attacher, do func(*ebpf.Program) error) error {
	p, err := newKprobe(nil)
	if err != nil {
		return err
	}
	defer p.Close()
	l, err := attach(function, p, nil)
	if err != nil {
		return err
	}
	if l != nil {
		defer l.Close()
	}
	return do(p)
}

type attacher func(function string, p *ebpf.Program, o *link.KprobeOptions) (link.Link, error)

// measureTraps prints what it costs to be called at all, for which no program is to
// blame: by connects of UDP, which are short.
func measureTraps() error {
	rest, err := newRest()
	if err != nil {
		return err
	}
	defer rest.Close()
	ways := []struct {
		name   string
		attach attacher
		took   []float64
	}{
		{"nothing", func(string, *ebpf.Program, *link.KprobeOptions) (link.Link, error) { return nil, nil }, nil},
		{"an empty kprobe", link.Kprobe, nil},
		{"an empty kretprobe", link.Kretprobe, nil},
	}
	for range trapRounds {
		for i := range ways {
			w := &ways[i]
			err := withEmpty("__ip4_datagram_connect", w.attach, func(*ebpf.Program) error {
				all, err := scenario{200, overIPv4.peers}.measure(rest, nil)
				w.took = append(w.took, all[0].took)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	for _, w := range ways {
		fmt.Printf("connect of UDP, with %s: %.0f ns\n", w.name, median(w.took))
	}
	return nil
}

// trapRounds go through all of measureTraps.
const trapRounds = 7
