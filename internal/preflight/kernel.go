// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"
)

// The oldest kernel that the gadget is written for: bpf_probe_read_kernel in
// socket filters.
const oldestMajor, oldestMinor = 5, 10

func (h Host) kernelVersion() (release string, major, minor int) {
	release = h.read("/proc/sys/kernel/osrelease")
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return release, 0, 0
	}
	return release, major, minor
}

func (h Host) olderThan(wantMajor, wantMinor int) bool {
	_, major, minor := h.kernelVersion()
	return major < wantMajor || major == wantMajor && minor < wantMinor
}

func (h Host) kernel() answer {
	release, major, _ := h.kernelVersion()
	fix := fmt.Sprintf("boot Linux %d.%d or newer", oldestMajor, oldestMinor)
	switch {
	case major == 0:
		return missing(fmt.Sprintf("the kernel's version %q cannot be read", release), "mount procfs on /proc")
	case h.olderThan(oldestMajor, oldestMinor):
		return missing("the kernel is Linux "+release, fix)
	}
	return found("Linux " + release)
}

func (h Host) btf() answer {
	const file = "/sys/kernel/btf/vmlinux"
	if !h.exists(file) {
		return missing("the kernel has no BTF (no "+file+")", "boot a kernel with CONFIG_DEBUG_INFO_BTF")
	}
	return found(file)
}

// kprobes: the socket enricher attaches kprobes and kretprobes through the perf
// PMU "kprobe", which the kernel registers exactly when it has
// CONFIG_KPROBE_EVENTS (kernel/events/core.c). The way by tracefs, for kernels
// before 4.17, depends on the same option.
func (h Host) kprobes() answer {
	const (
		pmu = "/sys/bus/event_source/devices/kprobe"
		fix = "boot a kernel that has them, as distributions' kernels do, here or in a VM"
	)
	switch {
	case !h.exists(pmu + "/type"):
		return missing("the kernel has no kprobes (CONFIG_KPROBES, CONFIG_KPROBE_EVENTS)", fix)
	case !h.exists(pmu + "/format/retprobe"):
		return missing("the kernel has no kretprobes (CONFIG_KRETPROBES)", fix)
	case h.read("/sys/kernel/debug/kprobes/enabled") == "0":
		// They would attach and never fire.
		return missing("kprobes are switched off", "echo 1 > /sys/kernel/debug/kprobes/enabled")
	}
	return found(pmu)
}

// perfEvents: kprobes and the gadget's own buffer are perf events. The file
// exists exactly when the kernel has them; its value does not bind root.
func (h Host) perfEvents() answer {
	const file = "/proc/sys/kernel/perf_event_paranoid"
	if !h.exists(file) {
		return missing("the kernel has no perf events (CONFIG_PERF_EVENTS)", "boot a kernel with CONFIG_PERF_EVENTS")
	}
	return found(file + " is " + h.read(file))
}

// ipv6: the socket enricher gives up when it cannot probe inet6_bind,
// inet6_release and udpv6_sendmsg, which a kernel without IPv6 does not have.
func (h Host) ipv6() answer {
	const probed = "inet6_bind"
	// The table of symbols is long: read only when the short way fails, as it
	// does under ipv6.disable=1, which leaves the functions in place.
	if !h.exists("/proc/sys/net/ipv6") && !h.hasSymbol(probed) {
		return missing("the kernel has no IPv6, whose functions ig probes", "modprobe ipv6, or boot a kernel with CONFIG_IPV6")
	}
	return found(probed)
}

func (h Host) hasSymbol(symbol string) bool {
	file, err := os.Open(h.path("/proc/kallsyms"))
	if err != nil {
		return false
	}
	defer file.Close()

	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// address, type, name, module
		if fields := bytes.Fields(lines.Bytes()); len(fields) > 2 && string(fields[2]) == symbol {
			return true
		}
	}
	return false
}

// kernelMemory: in the lockdown mode "confidentiality" the kernel refuses
// kprobes and bpf_probe_read_kernel (LOCKDOWN_KPROBES, LOCKDOWN_BPF_READ_KERNEL).
func (h Host) kernelMemory() answer {
	modes := h.read("/sys/kernel/security/lockdown")
	if strings.Contains(modes, "[confidentiality]") {
		return missing("the kernel is locked down (confidentiality) and refuses kprobes",
			"boot without lockdown=confidentiality")
	}
	return found("eBPF may read it (no lockdown=confidentiality)")
}
