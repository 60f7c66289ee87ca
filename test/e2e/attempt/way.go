// SPDX-License-Identifier: Apache-2.0

package attempt

import "net/netip"

// Ways a command's processes come to be, or go, before they talk. As the agent's
// arguments they make it try each so often, and report on standard output.
const (
	WayFork       = "fork"
	WayDaemon     = "daemon"        // double fork and setsid: the parent has ended
	WayThread     = "thread"        // another than the process's first
	WayMount      = "unshare-mount" // and the other namespaces
	WayNet        = "unshare-net"
	WayPID        = "unshare-pid"
	WayUser       = "unshare-user"
	WayUTS        = "unshare-uts"
	WayIPC        = "unshare-ipc"
	WayBorn       = "clone-net"      // born in a new network namespace
	WayBornMapped = "clone-user-net" // and a user namespace that owns it
	WayEnter      = "setns"          // into a network namespace that is there: one of Files
	WayChroot     = "chroot"
	WaySetuid     = "setuid" // executes a program of another user, with that user's rights
)

// Ways asks for them.
type Ways struct {
	Names []string
	Tries int // of each
	Files []string
}

// Sent is an attempt of one of them.
type Sent struct {
	Way      string
	Protocol Protocol
	Dst      netip.AddrPort
	PID      uint32
	NetNS    uint32 // inode number; 0: that of the agent
}
