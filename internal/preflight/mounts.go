// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"fmt"
	"slices"
	"strings"
)

// debugfs and tracefs: ig ends at once when one of them is not mounted at the
// paths where it looks (host.Init), also when it does not use them.
func (h Host) debugfs() answer {
	return h.filesystem("debugfs", "CONFIG_DEBUG_FS", "/sys/kernel/debug")
}

func (h Host) tracefs() answer {
	// A look into this directory mounts tracefs, where the kernel does so on
	// its own; the look comes before the mounts are read.
	if h.exists("/sys/kernel/debug/tracing/events") {
		return found("/sys/kernel/debug/tracing")
	}
	return h.filesystem("tracefs", "CONFIG_TRACING", "/sys/kernel/tracing", "/sys/kernel/debug/tracing")
}

func (h Host) filesystem(kind, option string, at ...string) answer {
	for _, path := range at {
		if h.mounted(path) == kind {
			return found(path)
		}
	}
	switch {
	case !slices.Contains(strings.Fields(h.read("/proc/filesystems")), kind):
		return missing("the kernel has no "+kind, "boot a kernel with "+option)
	case h.AutoMount:
		return found("not mounted yet, ig mounts it on " + at[0])
	}
	return missing(kind+" is not mounted",
		fmt.Sprintf("mount -t %s %s %s, or run ig with --auto-mount-filesystems", kind, kind, at[0]))
}

// bpffs is where eBPF objects are pinned. ig starts without it.
func (h Host) bpffs() answer {
	const path = "/sys/fs/bpf"
	if h.mounted(path) != "bpf" {
		return missing("bpffs is not mounted", "mount -t bpf bpf "+path)
	}
	return found(path)
}

// mounted returns the kind of file system that is mounted on exactly this path;
// "" for none.
func (h Host) mounted(path string) string {
	kind := ""
	for line := range strings.Lines(h.read("/proc/self/mounts")) {
		// device, mount point, kind, …; a later line covers an earlier one.
		if fields := strings.Fields(line); len(fields) > 2 && fields[1] == path {
			kind = fields[2]
		}
	}
	return kind
}
