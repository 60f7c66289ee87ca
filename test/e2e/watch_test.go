// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"maps"
	"testing"
	"time"

	"gadget.example/network/internal/gadget"
)

// limit bounds one run of the gadget, and is no part of any result: a machine
// that emulates another, and has more to do, takes a minute to start one.
const limit = 15 * time.Minute

// watch runs the gadget while traffic runs, and returns the events between the
// tests' own addresses.
func watch(t *testing.T, o gadget.Options, traffic func()) []seen {
	t.Helper()
	var events []seen
	o.OnEvent = func(e gadget.Event) {
		if isOurs(e.Src.Addr()) || isOurs(e.Dst.Addr()) {
			events = append(events, withFate(e))
		}
	}
	if err := runWith(t, o, traffic); err != nil {
		t.Fatalf("the gadget: %v", err)
	}
	return events
}

// runWith runs the gadget on the host and the namespaces of o until traffic,
// which runs in the test's goroutine, returns. Lost events are an error.
func runWith(t *testing.T, o gadget.Options, traffic func()) error {
	t.Helper()
	summary, err := account(t, o, traffic)
	return errors.Join(err, summary.Err())
}

// account does the same, and returns what became of the attempts.
func account(t *testing.T, o gadget.Options, traffic func()) (gadget.Summary, error) {
	t.Helper()
	params := map[string]string{"host": "true"}
	maps.Copy(params, o.Params)
	o.Params = params

	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	ready := make(chan struct{})
	done := make(chan struct{})
	o.OnReady = func(context.Context) error {
		close(ready)
		<-done
		return nil
	}
	var summary gadget.Summary
	ended := make(chan error, 1)
	go func() {
		var err error
		summary, err = gadget.Run(ctx, o)
		ended <- err
	}()
	select {
	case err := <-ended:
		return summary, err
	case <-ready:
	}
	func() {
		defer close(done) // also when the test fails here
		traffic()
	}()
	err := <-ended
	return summary, err
}
