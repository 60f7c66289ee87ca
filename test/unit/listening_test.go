// SPDX-License-Identifier: Apache-2.0

//go:build hooks

package unit

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A served socket is one that listens, and who has opened it and accepts on it:
// process and thread.
type served struct{ opener, server [2]uint64 }

// servedSocket is what is booked of a socket that listens.
func (g *gadget) servedSocket(t *testing.T, fd int) served {
	t.Helper()
	b := g.books[listenerBook]
	number, value := socketNumber(t, fd), make([]byte, b.value.size)
	if err := b.Lookup(number, value); err != nil {
		t.Fatalf("looking up socket %d among those that listen: %v", number, err)
	}
	if got := b.value.field("number").uint(value); got != number {
		t.Errorf("the entry of socket %d is of socket %d", number, got)
	}
	holder := func(name string) [2]uint64 {
		return [2]uint64{b.value.field(name + ".process.pid").uint(value), b.value.field(name + ".tid").uint(value)}
	}
	return served{holder("opener"), holder("server")}
}

// acceptNone accepts where nobody has connected.
func acceptNone(fd int) error {
	if _, _, err := unix.Accept(fd); !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("accepting what nobody has connected: got %w, want %w", err, unix.EAGAIN)
	}
	return nil
}

func TestSystemCallsBookWhoListensAndWhoAccepts(t *testing.T) {
	g := hook(t, nil, "network_listen", "network_accept")
	listener := realSocket{proto: protoTCP, local: here4, listens: true}
	home := newHome(t)
	fd := -1
	opener, err := inThreadOf(t, home, func() (err error) {
		fd, err = listener.open()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	expect := func(when string, want served) {
		t.Helper()
		if got := g.servedSocket(t, fd); got != want {
			t.Errorf("%s: got %v, want %v", when, got, want)
		}
	}
	id := func(p process) [2]uint64 { return [2]uint64{p.PID, p.TID} }
	expect("after listen()", served{opener: id(opener)})

	server, err := inThreadOf(t, home, func() error { return acceptNone(fd) })
	if err != nil {
		t.Fatal(err)
	}
	expect("after accept()", served{id(opener), id(server)})

	// As if it were older than the hooks.
	g.books[listenerBook].clear(t)
	if server, err = inThreadOf(t, home, func() error { return acceptNone(fd) }); err != nil {
		t.Fatal(err)
	}
	expect("after accept() alone", served{id(server), id(server)})
}

// TestSystemCallsNameTheListenerThatGetsASYN before it is accepted. Its thread calls
// itself, so that it is there still.
func TestSystemCallsNameTheListenerThatGetsASYN(t *testing.T) {
	g := hook(t, parameters{"ingress_only": true}, filterProgram, "network_listen", "network_accept", "network_conn_request")
	home := newHome(t)
	attachIn(t, home, g.dispatched(t, 0))
	listener := realSocket{proto: protoTCP, local: here4, listens: true}
	call := connectCase{domain: unix.AF_INET, bind: otherPort4, to: here4}
	sockets := []int{-1, -1}
	var got event
	self, err := inThreadOf(t, home, func() (err error) {
		if sockets[0], err = listener.open(); err != nil {
			return err
		}
		if err = call.begin(&sockets[1])(); err != nil {
			return err
		}
		got, _, err = g.next(time.Now().Add(patience))
		return err
	})
	for _, fd := range sockets {
		_ = unix.Close(fd)
	}
	if err != nil {
		t.Fatal(err)
	}
	got.Proc = withoutParentTID(got.Proc)
	want := owned(between(protoTCP, otherPort4, here4).event(false, inode(t, home)), self)
	compare(t, "a SYN for a listener", []event{got}, []event{want})
	g.expectArrived(t, "after it", arrived{begun: 1, ended: 1, answered: 1})
}
