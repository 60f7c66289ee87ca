// SPDX-License-Identifier: Apache-2.0

package results

import (
	"io"
	"slices"
	"strings"
	"testing"
)

func TestReasonsOfSkippedTestsAreGivenOnce(t *testing.T) {
	const (
		runc = `{"Action":"output","Package":"p","Test":"TestA","Output":"    container_test.go:28: needs a container runtime: no runc\n"}`
		skip = `{"Action":"skip","Package":"p","Test":"TestA"}`
	)
	events := []string{
		`{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}`,
		runc,
		`{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}`,
		skip, runc, skip, skip,
	}
	r, err := Read(strings.NewReader(strings.Join(events, "\n")), io.Discard, nil)
	want := []string{"needs a container runtime: no runc", "no reason given"}
	if err != nil || r.Skipped != 3 || !slices.Equal(r.Reasons, want) {
		t.Errorf("wanted 3 skipped for %q, got %+v, %v", want, r, err)
	}
}

func TestEachLineOfOutputIsGiven(t *testing.T) {
	const events = `{"Action":"output","Package":"p","Output":"before\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"in a test\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`
	var got []string
	_, err := Read(strings.NewReader(events), io.Discard, func(line string) { got = append(got, line) })
	if want := []string{"before", "in a test"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("wanted %q, got %q, %v", want, got, err)
	}
}
