// SPDX-License-Identifier: Apache-2.0

// Package attempt is the language of the end-to-end tests: what an agent (the
// command test/e2e/agent) is asked to do on the network, and what it says that
// it did. Agents are the oracle: events are compared with their reports.
package attempt

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"
)

// Protocol is what an attempt is made with.
type Protocol string

// The protocols that an agent speaks.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	ICMP Protocol = "ICMP" // an echo request, in its IPv6 form as well
)

// Request asks an agent for one thing. Requests and reports are lines of JSON
// on the agent's standard input and output.
type Request struct {
	// Serve makes the agent listen on Dst, and answer what comes, until it ends.
	// Without, it calls Dst.
	Serve    bool
	Protocol Protocol
	Dst      netip.AddrPort

	// Src is bound to first; port 0 leaves the port to the kernel, the zero
	// value both.
	Src netip.AddrPort
	// Device, if not empty, is the one that the socket is bound to.
	Device string

	// Thread makes a thread other than the process's first do it.
	Thread bool
	// NonBlocking makes the connect one that returns at once, and then waits.
	NonBlocking bool
	// SYNRetries is the kernel's TCP_SYNCNT; 0 is the kernel's default.
	SYNRetries int

	// Payload is how many bytes are sent with TCP, or in each UDP datagram.
	Payload int
	// Answered makes a UDP attempt wait for the answer of who serves.
	Answered bool
	// Count is how many UDP datagrams are sent from the socket; 0 means 1.
	Count int
	// EachCPU sends them from every processor in turn, Count from each.
	EachCPU bool

	// Steps, if there are any, are carried out in place of all else. Inherited
	// names the sockets that the process was started with, from descriptor 3 on.
	Steps     []Step   `json:",omitempty"`
	Inherited []string `json:",omitempty"`
}

func (r Request) String() string {
	b, err := json.Marshal(r)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Process is who did it. Its numbers are those that the agent sees.
type Process struct {
	Comm       string // the process's: its first thread's
	Thread     string // the name of the thread that did it
	PID, TID   uint32
	UID, GID   uint32
	MountNS    uint64 // inode number
	ParentPID  uint32
	ParentComm string
}

// Report says what came of a Request.
type Report struct {
	Process Process
	Src     netip.AddrPort // as bound by the kernel
	Dst     netip.AddrPort
	Packets int    // SYN segments or datagrams that were sent
	Error   string // what the application got; empty for success
	Errno   int    // likewise; 0 for success
	// Took is how long a call took, from before connect() until it was known how that
	// went.
	Took time.Duration
	// Began is when a call began, or one that is served was accepted: ns since the boot.
	Began int64
	// Talked is how long a connection was there for certain: from when it could be
	// used until its last turn that the other side waited for.
	Talked time.Duration
	// Bytes of payload that the application sent and received.
	Sent, Received int
	// Failed tells that the request could not be carried out at all.
	Failed string
	// Steps are the reports on a list of steps.
	Steps []Report `json:",omitempty"`
}

func (p Process) String() string {
	return fmt.Sprintf("%s pid %d thread %s %d uid %d gid %d mntns %d parent %s %d",
		p.Comm, p.PID, p.Thread, p.TID, p.UID, p.GID, p.MountNS, p.ParentComm, p.ParentPID)
}
