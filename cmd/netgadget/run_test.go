// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strconv"
	"testing"

	"gadget.example/network/internal/gadget"
)

func TestLostEventsFailAStrictRun(t *testing.T) {
	lost := gadget.Summary{Reported: 5, Lost: 1, ReaderLost: 1}
	for name, test := range map[string]struct {
		flags   runFlags
		summary gadget.Summary
		err     error
		want    int
	}{
		"strict, lost":       {runFlags{strict: true}, lost, nil, 1},
		"strict, none lost":  {runFlags{strict: true}, gadget.Summary{Reported: 5, Withheld: 3}, nil, 0},
		"not strict, lost":   {runFlags{}, lost, nil, 0},
		"not strict, failed": {runFlags{}, lost, errors.New("the gadget failed"), 1},
	} {
		t.Run(name, func(t *testing.T) {
			if got := status(test.flags.conclude(test.summary, test.err)); got != test.want {
				t.Errorf("wanted exit status %d, got %d", test.want, got)
			}
		})
	}
}

func TestAnErrorNamesNoGoFunction(t *testing.T) {
	_, number := strconv.ParseUint("abc", 10, 32)
	for _, test := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("starting the gadget: parsing comparison value as uint: %w", number), `starting the gadget: parsing comparison value as uint: "abc": invalid syntax`},
		{errors.New("parsing the image: no such file"), "parsing the image: no such file"},
	} {
		if got := plain(test.err); got != test.want {
			t.Errorf("wanted %q\ngot    %q", test.want, got)
		}
	}
}
