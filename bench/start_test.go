// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/object"
)

// BenchmarkStart measures how long the gadget takes until it is ready, step by step: by
// what IG tells of its own steps, and by when the kernel says that it got each program.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		first, err := markNow("")
		if err != nil {
			b.Fatal(err)
		}
		t, each, err := measureStart(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		fmt.Printf("CPU of this program before: %s ms, of its kernel %s\n\n%s", ms(first.user), ms(first.sys),
			markdown(t.rows("loading each, and what is between", each)))
	}
}

// BenchmarkLoad measures what a start does with the eBPF object, by hand: reading it, the
// kernel's types, the maps, the programs.
func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		t, each, err := loadByHand()
		if err != nil {
			b.Fatal(err)
		}
		if err := tell("load", t.rows("verifying", each)); err != nil {
			b.Fatal(err)
		}
	}
}

// mark is a moment of a start.
type mark struct {
	name      string
	at        time.Time
	user, sys time.Duration // CPU time of this process until then
}

func markNow(name string) (m mark, err error) {
	var usage unix.Rusage
	err = unix.Getrusage(unix.RUSAGE_SELF, &usage)
	return mark{name, time.Now(), time.Duration(usage.Utime.Nano()), time.Duration(usage.Stime.Nano())}, err
}

// timeline is steps, each from its mark to the next one.
type timeline struct {
	mu    sync.Mutex
	marks []mark
	errs  []error
}

// steps begin with these of IG's messages, the first time that they come.
var steps = []struct{ message, name string }{
	{`operator "`, "the image again, for the run"},
	{`program "`, "IG's operators"},
	{`pre-starting op "`, "operators before the start: containers, namespaces"},
	{`creating ebpf collection`, "maps and programs, see below"},
	{`starting tracer "`, "the ring"},
	{`Attaching `, "attaching"},
	{`Running iterator "`, "older sockets, and netgadget's own maps and programs"},
}

func (t *timeline) mark(name string) {
	m, err := markNow(name)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.marks, t.errs = append(t.marks, m), append(t.errs, err)
}

// measureStart runs the gadget until it is ready, as netgadget does. It returns for each program but the
// last how long it was until the kernel got the next one.
func measureStart(ctx context.Context) (t *timeline, each []programLoad, err error) {
	t = &timeline{}
	t.mark("the image, for the command's flags")
	if _, err := gadget.Params(ctx, gadget.Image{}, nil); err != nil {
		return nil, nil, err
	}
	t.mark("the host, IG's operators, and the image for its parameters")
	left := slices.Clone(steps)
	_, err = gadget.Run(ctx, gadget.Options{
		AutoMount: true,
		Params:    map[string]string{"host": "true"},
		OnMessage: func(message string) {
			if len(left) > 0 && strings.HasPrefix(message, left[0].message) {
				t.mark(left[0].name)
				left = left[1:]
			}
		},
		OnReady: func(context.Context) (err error) {
			t.mark("ready")
			each, err = loads()
			return err
		},
	})
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("no message of IG's begins with %q", left[0].message)
	}
	return t, each, errors.Join(append(t.errs, err)...)
}

// rows are the table's, its head first: of the steps, and of the programs that take most.
func (t *timeline) rows(title string, each []programLoad) [][]string {
	rows := [][]string{{"", "ms", "of all", "CPU, user", "CPU, kernel"}}
	first, last := t.marks[0], t.marks[len(t.marks)-1]
	row := func(name string, from, to mark) {
		took := to.at.Sub(from.at)
		rows = append(rows, []string{name, ms(took), percent(took, last.at.Sub(first.at)), ms(to.user - from.user), ms(to.sys - from.sys)})
	}
	for i, m := range t.marks[1:] {
		row(t.marks[i].name, t.marks[i], m)
	}
	row("all", first, last)
	slices.SortFunc(each, func(a, b programLoad) int { return cmp.Compare(b.took, a.took) })
	var sum time.Duration
	for _, l := range each {
		sum += l.took
	}
	rows = append(rows, []string{fmt.Sprintf("of it, %s, %d programs", title, len(each)), ms(sum), percent(sum, last.at.Sub(first.at)), "", ""})
	for _, l := range each[:min(mostShown, len(each))] {
		rows = append(rows, []string{"of these, " + l.name, ms(l.took), percent(l.took, last.at.Sub(first.at)), "", ""})
	}
	return rows
}

func percent(part, all time.Duration) string {
	return fmt.Sprintf("%.1f%%", 100*float64(part)/float64(all))
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000) }

// programLoad is of a program: how long it was until the kernel got the next one.
type programLoad struct {
	name string
	took time.Duration
}

// loads are those of the gadget's programs that the kernel has now, but for the last one.
func loads() (all []programLoad, err error) {
	programs, err := loaded()
	if err != nil {
		return nil, err
	}
	defer programs.close()
	type moment struct {
		name string
		at   time.Duration
	}
	var moments []moment
	for _, p := range programs {
		if p.name != "network" && !strings.HasPrefix(p.name, "network_") {
			continue
		}
		info, err := p.Info()
		if err != nil {
			return nil, err
		}
		at, _ := info.LoadTime()
		moments = append(moments, moment{p.name, at})
	}
	slices.SortFunc(moments, func(a, b moment) int { return cmp.Compare(a.at, b.at) })
	for i := range len(moments) - 1 {
		all = append(all, programLoad{moments[i].name, moments[i+1].at - moments[i].at})
	}
	return all, nil
}

// mostShown are the programs that have a row of their own.
const mostShown = 8

// verified is what the verifier says of its work (print_verification_stats() in
// kernel/bpf/verifier.c).
var verified = regexp.MustCompile(`verification time (\d+) usec`)

// loadByHand is what IG does for a start with the object, one thing after the other. It
// returns how long the verifier took for each program, which is part of that.
func loadByHand() (t *timeline, each []programLoad, err error) {
	t = &timeline{}
	t.mark("reading the object")
	spec, err := object.Read()
	if err != nil {
		return nil, nil, err
	}
	t.mark("the kernel's types")
	btf.FlushKernelSpec()
	if _, err := btf.LoadKernelSpec(); err != nil {
		return nil, nil, err
	}
	t.mark(fmt.Sprintf("%d maps, for a try", len(spec.Maps)))
	for name, m := range spec.Maps {
		created, err := ebpf.NewMap(m)
		if err != nil {
			return nil, nil, fmt.Errorf("map %s: %w", name, err)
		}
		created.Close()
	}
	t.mark(fmt.Sprintf("the same maps, and %d programs", len(spec.Programs)))
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	t.mark("their names, by their types")
	for _, p := range c.Programs {
		if _, err := p.Info(); err != nil {
			return nil, nil, err
		}
	}
	t.mark("ready")
	for name, p := range c.Programs {
		found := verified.FindStringSubmatch(p.VerifierLog)
		if found == nil {
			return nil, nil, fmt.Errorf("program %s: the verifier does not say how long it took: %q", name, p.VerifierLog)
		}
		us, err := strconv.Atoi(found[1])
		if err != nil {
			return nil, nil, err
		}
		each = append(each, programLoad{name, time.Duration(us) * time.Microsecond})
	}
	return t, each, errors.Join(t.errs...)
}
