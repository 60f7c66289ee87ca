// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strconv"
	"testing"

	"github.com/inspektor-gadget/inspektor-gadget/pkg/params"

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

func TestWhoAsksForContainersGetsNoneOfTheHosts(t *testing.T) {
	for _, test := range []struct {
		args []string
		host string
	}{
		{nil, "true"},
		{[]string{"--containername", "web"}, "false"},
		{[]string{"--k8s-podname", "web-1"}, "false"},
		{[]string{"--containername", "web", "--host"}, "true"},
		{[]string{"--host=false"}, "false"},
		{[]string{"--containername", ""}, "true"},
	} {
		f := &runFlags{}
		flags := f.ownFlags()
		all := params.Params{}
		for _, key := range []string{"containername", "k8s-podname"} {
			all.Add((&params.ParamDesc{Key: key}).ToParam())
		}
		all.Add((&params.ParamDesc{Key: "host", TypeHint: params.TypeBool}).ToParam())
		addParams(flags, all)
		if err := f.parse(flags, test.args); err != nil {
			t.Errorf("%q: %v", test.args, err)
		}
		if got := f.options.Params["host"]; got != test.host {
			t.Errorf("%q: wanted host %s, got %s", test.args, test.host, got)
		}
	}
}
