// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"slices"
	"strconv"
	"strings"
)

// Bits of a capability set, from linux/capability.h.
const (
	capNetRaw      = 13
	capSysAdmin    = 21
	capSysResource = 24
	capSyslog      = 34
)

// privileges gives the first one that is missing: the later ones mean nothing
// without it.
func (h Host) privileges() answer {
	if uid := h.effectiveUID(); uid != "0" {
		// ig compares the user ID, whatever the capabilities are.
		return missing("not root (user "+uid+")", "run as root, for example with sudo")
	}
	if !h.inInitialUserNamespace() {
		return missing("root only of a user namespace, which may not load eBPF for the machine",
			"run as the machine's root, outside of rootless containers")
	}
	names, lacking := h.capabilities()
	if len(lacking) > 0 {
		return missing("no "+strings.Join(lacking, ", "), "run with all capabilities (a container: --privileged)")
	}
	// ig looks at these two before anything else, and without them it has
	// neither containers nor --host.
	if !h.exists("/proc/1/ns/mnt") || !h.exists("/proc/1/ns/net") {
		return missing("the namespaces of process 1 (/proc/1/ns) cannot be read",
			"run where process 1 may be read: the host's /proc, with CAP_SYS_PTRACE and all that process 1 has")
	}
	return found("root, " + strings.Join(names, ", "))
}

// capabilities returns the names of those that ig uses, and of them those that
// this process lacks.
func (h Host) capabilities() (names, lacking []string) {
	wanted := []struct {
		name   string
		bit    uint
		wanted bool
	}{
		// bpf(), perf_event_open(), and setns() into each network namespace.
		{"CAP_SYS_ADMIN", capSysAdmin, true},
		// The raw packet socket that the socket filter sits on.
		{"CAP_NET_RAW", capNetRaw, true},
		// Before 5.11 maps count as locked memory, whose limit ig lifts.
		{"CAP_SYS_RESOURCE", capSysResource, h.olderThan(5, 11)},
	}
	for _, c := range wanted {
		if !c.wanted {
			continue
		}
		names = append(names, c.name)
		if !h.hasCapability(c.bit) {
			lacking = append(lacking, c.name)
		}
	}
	return names, lacking
}

func (h Host) effectiveUID() string {
	// real, effective, saved, file system
	if uids := h.status("Uid:"); len(uids) > 1 {
		return uids[1]
	}
	return "unknown"
}

func (h Host) hasCapability(bit uint) bool {
	set := h.status("CapEff:")
	if len(set) == 0 {
		return false
	}
	mask, err := strconv.ParseUint(set[0], 16, 64)
	return err == nil && mask&(1<<bit) != 0
}

// status returns the words of one line of /proc/self/status, without its key.
func (h Host) status(key string) []string {
	for line := range strings.Lines(h.read("/proc/self/status")) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == key {
			return fields[1:]
		}
	}
	return nil
}

// inInitialUserNamespace: only that one maps all user IDs to themselves
// (user_namespaces(7)).
func (h Host) inInitialUserNamespace() bool {
	return slices.Equal(strings.Fields(h.read("/proc/self/uid_map")), []string{"0", "0", "4294967295"})
}
