// SPDX-License-Identifier: Apache-2.0

//go:build hooks

package unit

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// begin opens a socket, which the test closes, and has it connect without an end.
func (c connectCase) begin(fd *int) func() error {
	return func() (err error) {
		if *fd, err = unix.Socket(c.domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		err = unix.Bind(*fd, socketAddress(c.bind))
		if e := unix.Connect(*fd, socketAddress(c.to)); !errors.Is(e, unix.EINPROGRESS) {
			err = errors.Join(err, e)
		}
		return err
	}
}

// TestSystemCallsWhoseSYNNobodyHasSeenAreReportedOnce: the filter comes after the
// SYN. They are as old as the call.
func TestSystemCallsWhoseSYNNobodyHasSeenAreReportedOnce(t *testing.T) {
	hooks := append(slices.Clone(connectHooks), "network_set_state", "network_retransmit", "network_destruct")
	g := hook(t, parameters{"egress_only": true}, hooks...)
	for _, c := range []struct {
		name    string
		closed  bool     // at once; else its SYN is sent again
		retries []uint64 // of each event: of the hook's, and of the SYNs that follow
	}{
		{"closed", true, []uint64{0}},
		{"sent again", false, []uint64{0, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := newHome(t)
			call := connectCase{domain: unix.AF_INET, bind: here4, to: there4, local: here4, remote: there4}
			var fd int
			before := bootTime(t)
			self, err := inThreadOf(t, home, call.begin(&fd))
			after := bootTime(t)
			if err != nil {
				t.Fatal(err)
			}
			attachIn(t, home, g.dispatched(t, 0))
			if c.closed {
				_ = unix.Close(fd)
			}
			for i, retries := range c.retries {
				e, at, err := g.next(time.Now().Add(patience))
				if err != nil {
					t.Fatal(err)
				}
				e.Proc = withoutParentTID(e.Proc)
				compare(t, c.name, []event{e}, []event{call.event(inode(t, home), self)})
				if g.retries != retries {
					t.Errorf("event %d has %d retries, want %d", i, g.retries, retries)
				}
				if i == 0 && (at < before || at > after) {
					t.Errorf("the hook's event is of time %d, want one from %d to %d", at, before, after)
				}
			}
			if !c.closed {
				_ = unix.Close(fd)
			}
			if e, _, err := g.next(time.Unix(1, 0)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("wanted no more events, got %v, %v", e, err)
			}
		})
	}
}
