// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gadget.example/network/internal/vm"
	"gadget.example/network/test/report/results"
)

const digest = "sha256:77"

var oldest = vm.KernelSpec{Name: "9.9", Suite: "suite", Package: "linux-image-9.9", Arch: "arm64"}

// say is an event of `go test -json`.
func say(line string) string {
	return `{"Action":"output","Package":"e2e","Output":"` + line + `\n"}` + "\n"
}

const (
	passed  = `{"Action":"pass","Package":"e2e","Test":"TestA"}` + "\n"
	skipped = `{"Action":"output","Package":"e2e","Test":"TestB","Output":"a_test.go:1: needs runc\n"}` + "\n" +
		`{"Action":"skip","Package":"e2e","Test":"TestB"}` + "\n"
	failed = `{"Action":"fail","Package":"e2e","Test":"TestC"}` + "\n"
	good   = `{"Action":"pass","Package":"e2e"}` + "\n"
	bad    = `{"Action":"fail","Package":"e2e"}` + "\n"
)

// tests stands in for `go test`: it prints events and exits.
func tests(t *testing.T, events, exit string) *exec.Cmd {
	t.Helper()
	file := filepath.Join(t.TempDir(), "events")
	if err := os.WriteFile(file, []byte(events), 0o644); err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(t.Context(), "sh", "-c", `cat "$1"; exit "$2"`, "sh", file, exit)
}

func TestARowSaysWhatCameOfAKernel(t *testing.T) {
	all := say("measured: release 9.9-cloud") + say("measured: digest "+digest) + say("measured: ready 12.34s") +
		say("measured: verified 12345") + say("measured: boot 8.04s") + say("measured: accelerator tcg")
	for name, test := range map[string]struct {
		events, exit string
		green        bool
		want         string
	}{
		"all passed": {all + passed + good, "0", true, "| 9.9 | 9.9-cloud | arm64 | tcg | 8.0 s | 12.3 s | 12,345 | 1 | 0 | 0 |"},
		"one was skipped": {
			all + passed + skipped + good, "0", true,
			"| 9.9 | 9.9-cloud | arm64 | tcg | 8.0 s | 12.3 s | 12,345 | 1 | 0 | 1: needs runc |",
		},
		"one failed": {
			all + passed + failed + bad, "1", false,
			"| 9.9 | 9.9-cloud | arm64 | tcg | 8.0 s | 12.3 s | 12,345 | 1 | 1 | 0 |",
		},
		"the guest panicked": {
			say("measured: release 9.9-cloud") + say("measured: failure the guest panicked: a|b") + passed + bad, "1", false,
			`| 9.9 | 9.9-cloud | arm64 | ? | ? | ? | ? | 1 | 1: the guest panicked: a\|b | 0 |`,
		},
		"another image": {
			say("measured: digest sha256:78") + passed + good, "0", false,
			"| 9.9 | ? | arm64 | ? | ? | ? | ? | 1 | 0: image sha256:78 was tested, not " + digest + " | 0 |",
		},
		"no image told":   {passed + good, "0", false, "image without a digest was tested"},
		"go test failed":  {passed + good, "2", false, "| 1 | 0: go test: exit status 2 | 0 |"},
		"nothing was run": {"", "1", false, "| 0 | 0: no test passed | 0 |"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := testKernel(t.Context(), tests(t, test.events, test.exit), oldest, digest, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.String(); !strings.Contains(got, test.want) || r.green() != test.green {
				t.Errorf("wanted green %v and %s\ngot %v and %s", test.green, test.want, r.green(), got)
			}
			if sum := total([]row{r}); (sum.Failed == 0) != test.green {
				t.Errorf("wanted green %v, got %s in all", test.green, sum)
			}
		})
	}
}

func TestProgressAndTheLastWordsOfAGuestAreShown(t *testing.T) {
	var out strings.Builder
	events := say("--- PASS: TestA/part (1.00s)") + say("--- PASS: TestA (1.00s)") + say("e2e: the guest panicked; its console log is /tmp/console.log, and ends:") +
		say("  | Kernel panic") + bad
	if _, err := testKernel(t.Context(), tests(t, events, "1"), oldest, digest, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"  PASS: TestA (1.00s)\n", "/tmp/console.log", "  | Kernel panic"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("wanted %q in\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "  PASS: TestA/part") {
		t.Errorf("wanted no line for a part of a test, got\n%s", &out)
	}
}

func TestKernelsAreChosenByName(t *testing.T) {
	all := []vm.KernelSpec{{Name: "one"}, {Name: "two"}, {Name: "three"}}
	for _, test := range []struct{ names, want []string }{
		{nil, []string{"one", "two", "three"}},
		{[]string{"three", "one"}, []string{"one", "three"}},
	} {
		chosen, err := choose(slices.Clone(all), test.names)
		var got []string
		for _, k := range chosen {
			got = append(got, k.Name)
		}
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("of %q: wanted %q, got %q, %v", test.names, test.want, got, err)
		}
	}
	if _, err := choose(all, []string{"one", "four"}); err == nil || !strings.Contains(err.Error(), `"four" is not known: there are one, two, three`) {
		t.Errorf("wanted the kernel that is not known, got %v", err)
	}
}

func TestTheTableIsWrittenWhenItIsWholeAndGreen(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "README.md")
	if err := os.WriteFile(file, []byte("before\n"+begin+"old\n"+end+"after\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	two := vm.KernelSpec{Name: "10.0"}
	kernels := []vm.KernelSpec{oldest, two}
	green := func(k vm.KernelSpec) row {
		return row{
			Kernel: k, Measured: map[string]string{"digest": digest},
			Results: results.Results{Passed: 7}, Took: 90 * time.Second,
		}
	}
	red := green(two)
	red.Results.Failed = 1
	older := green(two)
	older.Measured["digest"] = "sha256:76"
	if err := green(oldest).save(dir); err != nil {
		t.Fatal(err)
	}
	for want, r := range map[string]row{"10.0 is not green": red, "not green with image " + digest: older} {
		if err := r.save(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := load(dir, kernels, digest); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("wanted %q, got %v", want, err)
		}
	}
	if _, err := load(dir, append(kernels, vm.KernelSpec{Name: "11"}), digest); err == nil {
		t.Error("wanted an error for a kernel that was not tested")
	}
	if err := green(two).save(dir); err != nil {
		t.Fatal(err)
	}
	rows, err := load(dir, kernels, digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := write(file, table(rows, digest)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	text := string(b)
	if err != nil || !strings.HasPrefix(text, "before\n"+begin+header+"\n| 9.9 |") || !strings.HasSuffix(text, end+"after\n") ||
		!strings.Contains(text, "the runs took 3m0s") || strings.Contains(text, "old\n") {
		t.Errorf("wanted the table between the marks, got %v\n%s", err, text)
	}
	if err := os.WriteFile(file, []byte("no marks\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := write(file, ""); err == nil || !strings.Contains(err.Error(), "no place for the table") {
		t.Errorf("wanted an error for a file without marks, got %v", err)
	}
}

func TestATableNeedsAFile(t *testing.T) {
	err := options{onlyTable: true}.test(t.Context(), io.Discard)
	if err == nil || !strings.Contains(err.Error(), "name one with -readme") {
		t.Errorf("wanted an error that says what to name, got %v", err)
	}
}
