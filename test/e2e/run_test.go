// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"testing"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

const storedImage = "network:latest"

// local is an agent that talks to itself, in a namespace of its own.
func local(t *testing.T) *actors {
	t.Helper()
	ns := newNamespace(t, "alone")
	for _, family := range families {
		ns.address(t, "lo", overLoopback.prefix(family, 1))
	}
	caller := startAgent(t, ns, agentOptions{})
	return &actors{pair: &pair{ends: [2]*namespace{ns, ns}}, callers: [2]*agent{caller, caller}}
}

// datagrams is a call that sends so many from each CPU, which nobody answers.
func datagrams(count int) call {
	c := call{name: "datagrams", path: overLoopback, to: 1, arrives: true}
	c.request = attempt.Request{Protocol: attempt.UDP, Count: count, EachCPU: true}
	return c.aim(4, closedPort, true)
}

func TestAnImageRunsByEveryNameForIt(t *testing.T) {
	a := local(t)
	for name, image := range map[string]gadget.Image{
		"embedded":         {},
		"in ig's store":    {Name: storedImage},
		"in an archive":    {File: artifact(imageFile)},
		"archive and name": {File: artifact(imageFile), Name: storedImage},
	} {
		t.Run(name, func(t *testing.T) {
			var truth []want
			o := gadget.Options{Image: image, NetNSOf: a.netNSOf(), Params: map[string]string{"verify-image": "false"}}
			events := watch(t, o, func() { truth = a.make(t, []call{datagrams(1)}) })
			compare(t, events, truth)
		})
	}
}

// nearRing is how many datagrams, each sent and received, a ring holds the events of,
// and little more: some 790 of 330 bytes.
const nearRing = 380

// TestNoEventIsMissingOrExtraWhenARunEndsAtOnce fills the rings from all CPUs,
// but does not overflow them, and ends.
func TestNoEventIsMissingOrExtraWhenARunEndsAtOnce(t *testing.T) {
	a := local(t)
	for range 3 {
		var truth []want
		o := gadget.Options{NetNSOf: a.netNSOf(), Params: map[string]string{"rate-limit": "0"}}
		events := watch(t, o, func() {
			truth = a.make(t, []call{datagrams(nearRing)})
		})
		compare(t, events, truth)
	}
}

// TestLostEventsAreCounted has nobody read until more events came than the rings
// hold.
func TestLostEventsAreCounted(t *testing.T) {
	a := local(t)
	wantNothingLeft(t, func() {
		var truth []want
		sent, got := make(chan struct{}), uint64(0)
		o := gadget.Options{
			NetNSOf: a.netNSOf(), Params: map[string]string{"rate-limit": "0"},
			OnEvent: func(e gadget.Event) {
				<-sent
				if isOurs(e.Dst.Addr()) {
					got++
				}
			},
		}
		summary, err := account(t, o, func() {
			defer close(sent)
			truth = a.make(t, []call{datagrams(5000)})
		})
		if err != nil {
			t.Errorf("wanted no error of a run that lost events, got %v", err)
		}
		var lost *gadget.LostError
		if err := summary.Err(); !errors.As(err, &lost) {
			t.Fatalf("wanted a LostError, got %d events of %d and %v", got, len(truth), err)
		}
		if got+lost.Samples != uint64(len(truth)) || summary.Lost != summary.ReaderLost || summary.Withheld != 0 {
			t.Errorf("wanted %d events read or lost, got %d read and %d lost: %s, by the reader's count %d", len(truth), got, lost.Samples, summary, summary.ReaderLost)
		}
	})
}

func TestACancelledRunReportsWhatCameBefore(t *testing.T) {
	a := local(t)
	wantNothingLeft(t, func() {
		var truth []want
		var events []seen
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ready := make(chan struct{})
		ended := make(chan error, 1)
		go func() {
			_, err := gadget.Run(ctx, gadget.Options{
				Params: map[string]string{"host": "true"}, NetNSOf: a.netNSOf(),
				OnEvent: func(e gadget.Event) {
					if isOurs(e.Dst.Addr()) {
						events = append(events, fromEvent(e))
					}
				},
				OnReady: func(ctx context.Context) error {
					close(ready)
					<-ctx.Done()
					return nil
				},
			})
			ended <- err
		}()
		select {
		case <-ready:
			truth = a.make(t, []call{datagrams(10)})
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("wanted no error of a run that was cancelled, got %v", err)
			}
		case err := <-ended:
			t.Fatalf("the gadget: %v", err)
		}
		compare(t, events, truth)
	})
}

func TestAFailedRunLeavesNothing(t *testing.T) {
	broken := errors.New("what was watched failed")
	for name, test := range map[string]struct {
		options gadget.Options
		want    []string
	}{
		"no such image":            {gadget.Options{Image: gadget.Image{Name: "nosuch:tag"}, Params: map[string]string{"pull": "never"}}, []string{"nosuch:tag"}},
		"no such file":             {gadget.Options{Image: gadget.Image{File: "missing.tar"}}, []string{"missing.tar", "no such file"}},
		"no such image in file":    {gadget.Options{Image: gadget.Image{File: artifact(imageFile), Name: "other:latest"}}, []string{"other:latest"}},
		"no such process":          {gadget.Options{NetNSOf: []int{1 << 30}}, []string{"1073741824"}},
		"what is watched fails":    {gadget.Options{OnReady: func(context.Context) error { return broken }}, []string{broken.Error()}},
		"no such parameter's name": {gadget.Options{Params: map[string]string{"colour": "red"}}, []string{"--colour"}},
	} {
		t.Run(name, func(t *testing.T) {
			wantNothingLeft(t, func() {
				if test.options.Params == nil {
					test.options.Params = map[string]string{}
				}
				test.options.Params["host"] = "true"
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				_, err := gadget.Run(ctx, test.options)
				wantError(t, err, test.want...)
			})
		})
	}
}
