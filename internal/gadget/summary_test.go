// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"errors"
	"testing"
)

func TestASummaryIsOneLine(t *testing.T) {
	flood := Withheld{Owner{PID: 4242, Comm: "flood", Egress: true}, 98000}
	nobody := Withheld{Owner{}, 766}
	for name, test := range map[string]struct {
		summary Summary
		want    string
	}{
		"nothing": {Summary{}, "0 attempts reported, 0 withheld by the rate limit, 0 lost"},
		"all reported": {
			Summary{Reported: 1}, "1 attempt reported, 0 withheld by the rate limit, 0 lost",
		},
		"how they ended": {
			Summary{Reported: 5, Established: 3, Failed: 1, OutcomesLost: 1},
			"5 attempts reported (3 established, 1 failed), 0 withheld by the rate limit, 0 lost; how they went on: 1 event lost",
		},
		"owners": {
			Summary{Reported: 1234, Withheld: 98766, Owners: []Withheld{flood, nobody}},
			"1234 attempts reported, 98766 withheld by the rate limit (flood 4242 sent: 98000, nobody received: 766), 0 lost",
		},
		"more owners than a line names": {
			Summary{Withheld: 98776, Owners: []Withheld{flood, nobody, {Owner{PID: 1, Comm: "a"}, 5}, {Owner{PID: 2, Comm: "b"}, 3}, {Owner{PID: 3, Comm: "c"}, 2}}},
			"0 attempts reported, 98776 withheld by the rate limit (flood 4242 sent: 98000, nobody received: 766, a 1 received: 5, and 2 more), 0 lost",
		},
		"what would have told of an owner is lost": {
			Summary{Reported: 7, Withheld: 98010, Lost: 3, ReaderLost: 3, Owners: []Withheld{flood}},
			"7 attempts reported, 98010 withheld by the rate limit (flood 4242 sent: 98000, unknown: 10), 3 lost",
		},
		"as many processes as attempts": {
			Summary{Withheld: 12, Owners: []Withheld{{Owner{PID: 1, Comm: "one", Egress: true}, 4}, {Owner{PID: 2, Comm: "fork", Egress: true}, 3}, {Owner{PID: 3, Comm: "fork", Egress: true}, 3}, {Owner{PID: 4, Comm: "fork"}, 2}}},
			"0 attempts reported, 12 withheld by the rate limit (fork, 2 processes, sent: 6, one 1 sent: 4, fork 4 received: 2), 0 lost",
		},
		"CPUs without a buffer": {
			Summary{Reported: 3, Withheld: 2, WithoutBuffer: 2},
			"3 attempts reported, 2 withheld by the rate limit (unknown: 2), 0 lost; 2 of those withheld were on CPUs that have no buffer, as they were offline when the gadget started or since",
		},
		"a name of two lines": {
			Summary{Withheld: 1, Owners: []Withheld{{Owner{PID: 9, Comm: "a\nb\x1b"}, 1}}},
			"0 attempts reported, 1 withheld by the rate limit (a?b? 9 received: 1), 0 lost",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.summary.String(); got != test.want {
				t.Errorf("wanted %q\ngot    %q", test.want, got)
			}
		})
	}
}

func TestASummaryTellsWhatAFilterLeftOut(t *testing.T) {
	comm, both := []string{"--comm"}, []string{"--comm", "--uid"}
	for _, test := range []struct {
		summary Summary
		want    string
	}{
		{Summary{Reported: 1, LeftOutBy: comm}, ""},
		{Summary{LeftOutReceived: 1, LeftOutBy: comm}, "1 attempt whose process is not known was left out by --comm"},
		{Summary{LeftOutSent: 1, LeftOutReceived: 2, LeftOutBy: both}, "3 attempts whose process is not known were left out by --comm and --uid"},
		{Summary{LeftOutSent: 2, LeftOutReceived: 5}, "2 attempts whose process is not known were left out: only the command's are reported"},
		{Summary{LeftOutReceived: 5}, ""},
	} {
		if got := test.summary.Unknown(); got != test.want {
			t.Errorf("wanted %q, got %q", test.want, got)
		}
	}
}

func TestLostEventsAreTheErrorOfASummary(t *testing.T) {
	for name, test := range map[string]struct {
		summary Summary
		want    uint64
	}{
		"none":                  {Summary{Reported: 5, Withheld: 7}, 0},
		"by the gadget's count": {Summary{Lost: 3, ReaderLost: 2}, 3},
		"by the reader's count": {Summary{ReaderLost: 2}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.summary.Err()
			var lost *LostError
			if errors.As(err, &lost) != (test.want > 0) {
				t.Fatalf("wanted an error for %d lost events, got %v", test.want, err)
			}
			if lost != nil && lost.Samples != test.want {
				t.Errorf("wanted %d lost events, got %d", test.want, lost.Samples)
			}
		})
	}
}
