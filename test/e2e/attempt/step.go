// SPDX-License-Identifier: Apache-2.0

package attempt

import "net/netip"

// Action is what a Step does.
type Action string

// What an agent does step by step. Sockets that are kept have names.
const (
	Open    Action = "open"    // opens a socket, and binds it to Src if that is valid
	Listen  Action = "listen"  // the same for TCP, and listens; nothing is accepted
	Accept  Action = "accept"  // the same, and closes each connection when its caller has
	Call    Action = "call"    // connects to Dst, or sends a datagram there, from the socket of the name or a new one
	Flows   Action = "flows"   // sends Count UDP datagrams to Dst from each of Sockets sockets, in turns, and gets an answer to each
	Flood   Action = "flood"   // sends Count UDP datagrams to Dst from one socket as fast as it can, or as many SYN segments with forged sources: addresses from Src's on
	Storm   Action = "storm"   // has Count child processes, one after the other, send a UDP datagram to Dst each, IPv4's
	Await   Action = "await"   // waits until the connection of the socket of the name is there, and counts the SYN segments
	Raw     Action = "raw"     // sends what a call from Src to Dst would, a SYN segment or a datagram, from a raw socket
	Packet  Action = "packet"  // the same from a packet socket, by Device
	Close   Action = "close"   // closes the socket of the name
	Inbox   Action = "inbox"   // gets ready for what other agents give
	Give    Action = "give"    // gives the socket of the name to the agent with the process ID To, and closes it
	Take    Action = "take"    // takes one that was given, under the name
	Rename  Action = "rename"  // does no more than Comm says
	Chdir   Action = "chdir"   // goes to the folder Dir
	Daemon  Action = "daemon"  // starts a program that listens on Src and hands its socket on, Count times; the socket's end is the program's
	Drain   Action = "drain"   // accepts what waits at the socket of the name; its report has who came in its Steps
	Confine Action = "confine" // has a security module forbid this thread connections of TCP (Landlock, Linux 6.7)
	Child   Action = "child"   // has a child process carry out Steps; it has ended when the step is over

	Serve      Action = "serve"      // listens, and has Talk with Count connections that it accepts
	Served     Action = "served"     // waits until those are over; its report has one of each in its Steps
	Converse   Action = "converse"   // has Talk on the socket of the name, and closes it
	Disconnect Action = "disconnect" // takes the connection from the socket of the name, which stays
)

// Attempts says whether a step is an attempt to talk, which its report tells of.
func (s Step) Attempts() bool {
	return s.Do == Call || s.Do == Flows || s.Do == Raw || s.Do == Packet
}

// Uring is a way to connect by io_uring.
type Uring string

// The ways there are: in the call that submits it where that does not block, by a
// worker thread, and by the thread that polls for submissions.
const (
	Submitted Uring = "submitted"
	Worker    Uring = "worker"
	Polled    Uring = "polled"
)

// Talk is what the two ends of a connection say. Who calls says the first turn.
type Talk struct {
	Turns      []int // bytes of each turn
	ServerEnds bool  // closes first; else who calls does
	Reset      bool  // who closes first sends RST, and not FIN
	// Unread has who calls, if it closes first, not read a last turn that is short:
	// the kernel sends RST.
	Unread bool
}

// Hello is what a call by fast open sends at once: a part of the first turn.
const Hello = "hello"

// Step is one of a list that an agent carries out on its own.
type Step struct {
	Do Action
	// Socket is the name by which the socket is kept; without one it is closed
	// when the step is over.
	Socket   string `json:",omitempty"`
	Protocol Protocol
	Src, Dst netip.AddrPort

	DualStack   bool `json:",omitempty"` // an IPv6 socket for IPv4 as well; Src and Dst may be of either
	MPTCP       bool `json:",omitempty"`
	Go          bool `json:",omitempty"` // Listen as Go's net package does
	FastOpen    bool `json:",omitempty"`
	ReuseAddr   bool `json:",omitempty"`
	ReusePort   bool `json:",omitempty"`
	NonBlocking bool `json:",omitempty"` // connects and does not wait
	Lingers     bool `json:",omitempty"` // closes with FIN, so that TIME_WAIT follows, and not with RST
	Connected   bool `json:",omitempty"` // UDP: by connect, at Open or else before it sends
	Transparent bool `json:",omitempty"` // takes what is for other addresses
	Thread      bool `json:",omitempty"` // done by a thread that ends thereafter

	// Device, if not empty, is the one that the socket is bound to, or that Packet
	// sends by.
	Device string `json:",omitempty"`
	// Uring is how a TCP call connects by io_uring; empty: it does not.
	Uring Uring `json:",omitempty"`
	// Header has Raw write the IP header, Link has Packet write the link header.
	Header bool `json:",omitempty"`
	Link   bool `json:",omitempty"`
	// LinkDst is the link address that Packet sends to.
	LinkDst []byte `json:",omitempty"`
	// Several sends by sendmmsg, Count packets from ports from Src's on, whose
	// reports are in Steps; without, it is sendmsg.
	Several bool `json:",omitempty"`
	Split   bool `json:",omitempty"` // a packet is in several buffers, which part its headers
	// Again is how many more times Raw or Packet send the very same, one at a time.
	Again int `json:",omitempty"`
	// Unsure: the kernel may refuse a call before it has chosen its source, of
	// which the report then has what is known.
	Unsure bool `json:",omitempty"`

	// Sockets and Count are those of Flows, whose sockets are kept under the name
	// and a number each; its report has one of each in its Steps. Count is Flood's
	// and Storm's, too.
	Sockets int `json:",omitempty"`
	Count   int `json:",omitempty"`

	// Becomes has Daemon execute a program each time, and not start one; UID is the
	// user and the group that the last of them is.
	Becomes bool   `json:",omitempty"`
	UID     uint32 `json:",omitempty"`

	// Talk follows a call that has succeeded.
	Talk *Talk `json:",omitempty"`
	// Waits has a call that is NonBlocking wait for its end by poll.
	Waits bool `json:",omitempty"`
	// Deferred is fast open by TCP_FASTOPEN_CONNECT, and not by MSG_FASTOPEN.
	Deferred bool `json:",omitempty"`
	// GivesUp ends a call that is NonBlocking at once: the socket that is kept is
	// disconnected, another is closed.
	GivesUp bool `json:",omitempty"`
	// SYNRetries is the kernel's TCP_SYNCNT; 0 is the kernel's default.
	SYNRetries int `json:",omitempty"`
	// Narrow listens with the shortest queue there is: one connection waits in it.
	Narrow bool `json:",omitempty"`
	// Signal is what the process sends to itself while its call waits: SIGKILL, or
	// SIGSTOP, from which its parent wakes it. A Child step has it, too.
	Signal int `json:",omitempty"`

	// Comm, if not empty, is how the process calls itself from now on, or the
	// thread that does it.
	Comm string `json:",omitempty"`

	Dir   string `json:",omitempty"`
	To    int    `json:",omitempty"`
	Steps []Step `json:",omitempty"` // the child's
	// Inherit are sockets that the child has from its start.
	Inherit []string `json:",omitempty"`
}
