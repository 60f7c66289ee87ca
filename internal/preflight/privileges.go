// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Capability is one that a run cannot do without.
type Capability struct {
	Name string // CAP_NET_RAW
	// What is what a run does with it.
	What string

	bit uint // in a set, from linux/capability.h
	// instead has the names and bits of others that serve as well.
	instead map[string]uint
	// needed, if not nil, says which runs and machines need it.
	needed func(Host) bool
}

// capabilities are the least set, found by dropping one at a time: TestTheLeastCapabilities in test/e2e.
var capabilities = []Capability{
	{Name: "CAP_SYS_ADMIN", bit: 21, What: "load eBPF programs, watch container runtimes and enter network namespaces"},
	{Name: "CAP_NET_ADMIN", bit: 12, What: "read the last events at the end of a run"},
	{Name: "CAP_NET_RAW", bit: 13, What: "open the packet sockets that see each attempt"},
	{Name: "CAP_SYS_PTRACE", bit: 19, What: "see the namespaces of other processes"},
	{
		Name: "CAP_SYS_RESOURCE", bit: 24, What: "lock memory for eBPF maps (or raise the limit: ulimit -l unlimited)",
		needed: func(h Host) bool { return h.olderThan(5, 11) && !h.locksAnyMemory() },
	},
	{
		Name: "CAP_SYS_NICE", bit: 23, What: "be at a network namespace before who enters it goes on (--netns, COMMAND)",
		needed: func(h Host) bool { return h.Enters },
	},
	{
		Name: "CAP_DAC_READ_SEARCH", bit: 2, What: "find network namespaces that only files of other users' processes keep (--netns all)",
		instead: map[string]uint{"CAP_DAC_OVERRIDE": 1},
		needed:  func(h Host) bool { return h.AllNetNS },
	},
}

// Capabilities are the names of those that a run needs on this machine, always in the same order.
func (h Host) Capabilities() (names []string) {
	for _, c := range capabilities {
		if c.needed == nil || c.needed(h) {
			names = append(names, c.Name)
		}
	}
	return names
}

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
	var details []string
	for _, c := range h.lacking() {
		details = append(details, fmt.Sprintf("no %s, to %s", c.Name, c.What))
	}
	if len(details) > 0 {
		return missing(strings.Join(details, ", "),
			"run with "+strings.Join(h.Capabilities(), ", ")+" (a container: --privileged, or --cap-add for each)")
	}
	// ig looks at these two before anything else, and without them it has
	// neither containers nor --host.
	if !h.exists("/proc/1/ns/mnt") || !h.exists("/proc/1/ns/net") {
		return missing("the namespaces of process 1 (/proc/1/ns) cannot be read",
			"run where process 1 may be read: the host's /proc, with CAP_SYS_PTRACE and all that process 1 has")
	}
	return found("root, " + strings.Join(h.Capabilities(), ", "))
}

// lacking are those that a run needs and this process has not.
func (h Host) lacking() (all []Capability) {
	needed := h.Capabilities()
	for _, c := range capabilities {
		has := h.hasCapability(c.bit)
		for _, bit := range c.instead {
			has = has || h.hasCapability(bit)
		}
		if !has && slices.Contains(needed, c.Name) {
			all = append(all, c)
		}
	}
	return all
}

// otherNamespaces tells what the runs lack that watch other network namespaces.
func (h Host) otherNamespaces() answer {
	host := h
	host.Enters, host.AllNetNS = false, false
	ownNeeds := host.Capabilities()
	host.Enters, host.AllNetNS = true, true
	for _, c := range host.lacking() {
		if !slices.Contains(ownNeeds, c.Name) {
			return missing("no "+c.Name+", to "+c.What, "run with "+c.Name+", or watch the host's network namespace alone")
		}
	}
	return found("can be watched from the moment that they are entered")
}

// locksAnyMemory is whether there is no limit for locked memory: as long as that is so, nobody has to lift it.
func (h Host) locksAnyMemory() bool {
	if h.Unlimited {
		return true
	}
	for line := range strings.Lines(h.read("/proc/self/limits")) {
		if limit, ok := strings.CutPrefix(line, "Max locked memory"); ok {
			fields := strings.Fields(limit) // soft, hard, unit
			return len(fields) > 1 && fields[0] == "unlimited" && fields[1] == "unlimited"
		}
	}
	return false
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
