// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree is a machine: file names with their text.
type tree map[string]string

// capable is the tree of a machine that has everything.
func capable() tree {
	return tree{
		"/proc/1/ns/mnt":                         "",
		"/proc/1/ns/net":                         "",
		"/proc/filesystems":                      "nodev\tdebugfs\nnodev\ttracefs\nnodev\tbpf\n\text4\n",
		"/proc/kallsyms":                         "0000000000000000 T inet6_bind\t[ipv6]\n",
		"/proc/self/mounts":                      "none /sys/kernel/debug debugfs rw 0 0\nnone /sys/kernel/tracing tracefs rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n",
		"/proc/self/status":                      "Name:\tig\nUid:\t1000\t0\t0\t0\nCapEff:\t000001ffffffffff\n",
		"/proc/self/uid_map":                     "         0          0 4294967295\n",
		"/proc/sys/kernel/osrelease":             "6.1.0-37-amd64\n",
		"/proc/sys/kernel/perf_event_paranoid":   "3\n",
		"/proc/sys/net/ipv6/conf/all/forwarding": "0\n",
		"/run/docker.sock":                       "",

		"/sys/bus/event_source/devices/kprobe/format/retprobe": "config:0\n",
		"/sys/bus/event_source/devices/kprobe/type":            "8\n",
		"/sys/kernel/btf/vmlinux":                              "",
		"/sys/kernel/debug/kprobes/enabled":                    "1\n",
		"/sys/kernel/security/lockdown":                        "none [integrity] confidentiality\n",
		"/usr/bin/runc":                                        "",
	}
}

// without is the capable machine with the files below the prefixes gone.
func without(prefixes ...string) tree {
	t := capable()
	maps.DeleteFunc(t, func(name, _ string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
	})
	return t
}

// with is the tree with one file's text changed.
func (tr tree) with(name, text string) tree {
	tr[name] = text
	return tr
}

// lackingBit is the capable machine where the process has every capability but one.
func lackingBit(bit uint) tree {
	return capable().with(status, fmt.Sprintf("Uid: 0 0 0 0\nCapEff: %016x\n", uint64(0x1ffffffffff)&^(1<<bit)))
}

const lackingAll = "Uid: 0 0 0 0\nCapEff: 0000000000000000\n"

func (tr tree) host(t *testing.T) Host {
	t.Helper()
	root := t.TempDir()
	for name, text := range tr {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Host{Root: root}
}

// missingNames are the checks that did not find what they look for.
func missingNames(findings []Finding) []string {
	var names []string
	for _, f := range findings {
		if !f.Found {
			names = append(names, f.Name)
		}
	}
	return names
}

const (
	status  = "/proc/self/status"
	mounts  = "/proc/self/mounts"
	release = "/proc/sys/kernel/osrelease"
	pmu     = "/sys/bus/event_source/devices/kprobe"
)

func TestWhatIsMissingIsNamed(t *testing.T) {
	tests := map[string]struct {
		tree tree
		want []string // the checks that find nothing
		say  string   // in the error; "" when the machine can run ig all the same
	}{
		"nothing": {tree: capable()},
		"a kernel before 5.10": {
			capable().with(release, "5.4.0-200-generic"),
			[]string{"kernel"},
			"the kernel is Linux 5.4.0-200-generic: boot Linux 5.10 or newer",
		},
		"a kernel of an older major": {capable().with(release, "4.19.0"), []string{"kernel"}, "Linux 4.19.0"},
		"the oldest kernel serves":   {tree: capable().with(release, "5.10.0-35-amd64")},
		"no /proc": {
			without("/proc/"),
			[]string{"kernel", "perf events", "IPv6 functions", "debugfs", "tracefs", "privileges", "bpffs", "other network namespaces"},
			"mount procfs on /proc",
		},
		"BTF":        {without("/sys/kernel/btf"), []string{"BTF"}, "CONFIG_DEBUG_INFO_BTF"},
		"kprobes":    {without(pmu), []string{"kprobes"}, "the kernel has no kprobes (CONFIG_KPROBES"},
		"kretprobes": {without(pmu + "/format"), []string{"kprobes"}, "CONFIG_KRETPROBES"},
		"kprobes switched off": {
			capable().with("/sys/kernel/debug/kprobes/enabled", "0\n"),
			[]string{"kprobes"},
			"kprobes are switched off: echo 1 > /sys/kernel/debug/kprobes/enabled",
		},
		"perf events": {without("/proc/sys/kernel/perf_event_paranoid"), []string{"perf events"}, "CONFIG_PERF_EVENTS"},
		"IPv6": {
			without("/proc/sys/net/ipv6").with("/proc/kallsyms", "0 T inet_bind\n"),
			[]string{"IPv6 functions"},
			"modprobe ipv6",
		},
		"IPv6 disabled, its functions there": {tree: without("/proc/sys/net/ipv6")},
		"lockdown": {
			capable().with("/sys/kernel/security/lockdown", "none integrity [confidentiality]\n"),
			[]string{"kernel memory"},
			"locked down (confidentiality)",
		},
		"mounts": {
			capable().with(mounts, "/dev/vda / ext4 rw 0 0\n"),
			[]string{"debugfs", "tracefs", "bpffs"},
			"debugfs is not mounted: mount -t debugfs debugfs /sys/kernel/debug, or",
		},
		"tracefs that the kernel mounts by itself": {
			tree: capable().with(mounts, "d /sys/kernel/debug debugfs rw 0 0\nb /sys/fs/bpf bpf rw 0 0\n").
				with("/sys/kernel/debug/tracing/events/enable", "0\n"),
		},
		"debugfs covered by another mount": {
			capable().with(mounts, capable()[mounts]+"none /sys/kernel/debug tmpfs rw 0 0\n"),
			[]string{"debugfs"},
			"debugfs is not mounted",
		},
		"debugfs in the kernel": {
			capable().with(mounts, "none /sys/kernel/tracing tracefs rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n").
				with("/proc/filesystems", "nodev\ttracefs\n"),
			[]string{"debugfs"},
			"the kernel has no debugfs: boot a kernel with CONFIG_DEBUG_FS",
		},
		"root": {
			capable().with(status, "Uid:\t0\t1000\t0\t0\nCapEff:\t000001ffffffffff\n"),
			[]string{"privileges"},
			"not root (user 1000): run as root",
		},
		"the initial user namespace": {
			capable().with("/proc/self/uid_map", "0 100000 65536\n"),
			[]string{"privileges"},
			"root only of a user namespace",
		},
		"every capability": {
			capable().with(status, lackingAll),
			[]string{"privileges", "other network namespaces"},
			"no CAP_SYS_ADMIN, to load eBPF programs, watch container runtimes and enter network namespaces, no CAP_NET_ADMIN, to",
		},
		"CAP_SYS_ADMIN":  {lackingBit(21), []string{"privileges"}, "no CAP_SYS_ADMIN, to load"},
		"CAP_NET_ADMIN":  {lackingBit(12), []string{"privileges"}, "no CAP_NET_ADMIN, to read the last events"},
		"CAP_NET_RAW":    {lackingBit(13), []string{"privileges"}, "no CAP_NET_RAW, to open the packet sockets that see each attempt: run with CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_PTRACE (a container"},
		"CAP_SYS_PTRACE": {lackingBit(19), []string{"privileges"}, "no CAP_SYS_PTRACE, to see the namespaces"},
		"CAP_SYS_RESOURCE on 5.10": {
			lackingBit(24).with(release, "5.10.0"), []string{"privileges"}, "no CAP_SYS_RESOURCE, to lock memory for eBPF maps (or raise the limit",
		},
		"CAP_SYS_RESOURCE on 5.10, where no limit is": {
			tree: lackingBit(24).with(release, "5.10.0").with("/proc/self/limits", "Max locked memory         unlimited            unlimited            bytes\n"),
		},
		"CAP_SYS_RESOURCE on 5.11 does not matter": {tree: lackingBit(24).with(release, "5.11.0")},
		"CAP_SYS_NICE":        {tree: lackingBit(23), want: []string{"other network namespaces"}},
		"CAP_DAC_READ_SEARCH": {tree: lackingBit(2).with(status, "Uid: 0 0 0 0\nCapEff: 000001fffffffff9\n"), want: []string{"other network namespaces"}},
		"CAP_DAC_OVERRIDE in place of CAP_DAC_READ_SEARCH": {tree: lackingBit(2)},
		"process 1": {without("/proc/1/ns/net"), []string{"privileges"}, "the namespaces of process 1"},
		"bpffs": {
			tree: capable().with(mounts, "n /sys/kernel/debug debugfs rw 0 0\nn /sys/kernel/tracing tracefs rw 0 0\n"),
			want: []string{"bpffs"},
		},
		"container runtimes": {
			tree: without("/usr/bin/runc", "/run/"), want: []string{"container runtime", "container sockets"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			findings := test.tree.host(t).Run()
			if got := missingNames(findings); !slices.Equal(got, test.want) {
				t.Errorf("missing: wanted %q, got %q", test.want, got)
			}
			wantMissing(t, findings, test.say)
		})
	}
}

// wantMissing checks the error of one line; "" wants none.
func wantMissing(t *testing.T, findings []Finding, say string) {
	t.Helper()
	err := Missing(findings)
	switch {
	case say == "" && err != nil:
		t.Errorf("wanted a machine that can run ig, got %q", err)
	case say != "" && err == nil:
		t.Errorf("wanted an error that says %q, got none", say)
	case say != "":
		if text := err.Error(); !strings.Contains(text, say) || strings.Contains(text, "\n") {
			t.Errorf("wanted one line that says %q, got %q", say, text)
		}
	}
}

func TestARunNeedsWhatItAsksFor(t *testing.T) {
	for name, test := range map[string]struct {
		tree             tree
		enters, allNetNS bool
		say              string
	}{
		"a namespace, no CAP_SYS_NICE":        {lackingBit(23), true, false, "no CAP_SYS_NICE, to be at a network namespace before"},
		"a namespace, no CAP_DAC_READ_SEARCH": {lackingBit(2), true, false, ""},
		"all, no CAP_DAC_READ_SEARCH":         {capable().with(status, "Uid: 0 0 0 0\nCapEff: 000001fffffffff9\n"), true, true, "no CAP_DAC_READ_SEARCH, to find network namespaces"},
		"all, with every capability":          {capable(), true, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			host := test.tree.host(t)
			host.Enters, host.AllNetNS = test.enters, test.allNetNS
			wantMissing(t, host.Run(), test.say)
		})
	}
}

func TestEverythingMissingIsInOneLine(t *testing.T) {
	tr := without(pmu, "/sys/kernel/btf")
	want := "this machine cannot run ig: " +
		"the kernel has no BTF (no /sys/kernel/btf/vmlinux): boot a kernel with CONFIG_DEBUG_INFO_BTF; " +
		"the kernel has no kprobes (CONFIG_KPROBES, CONFIG_KPROBE_EVENTS): " +
		"boot a kernel that has them, as distributions' kernels do, here or in a VM"
	err := Missing(tr.host(t).Run())
	if err == nil || err.Error() != want {
		t.Errorf("wanted %q\ngot %v", want, err)
	}
}

func TestFilesystemsThatIgMountsAreNotMissing(t *testing.T) {
	unmounted := capable().with(mounts, "")
	host := unmounted.host(t)
	host.AutoMount = true
	if got, want := missingNames(host.Run()), []string{"bpffs"}; !slices.Equal(got, want) {
		t.Errorf("missing: wanted %q, got %q", want, got)
	}

	host = unmounted.with("/proc/filesystems", "nodev\tdebugfs\n").host(t)
	host.AutoMount = true
	wantMissing(t, host.Run(), "the kernel has no tracefs")
}

func TestRuntimePathReplacesTheKnownRuntimes(t *testing.T) {
	for path, want := range map[string]bool{"/opt/runtime": true, "/opt/nothing": false} {
		host := capable().with("/opt/runtime", "").host(t)
		host.RuntimePath = path
		for _, f := range host.Run() {
			if f.Name == "container runtime" && (f.Found != want || !strings.Contains(f.Detail, path)) {
				t.Errorf("RUNTIME_PATH %s: wanted found %v and the path, got %v", path, want, f)
			}
		}
	}
}

func TestALineSaysFoundOrMissing(t *testing.T) {
	for want, f := range map[string]Finding{
		"found    BTF: here":                           {Name: "BTF", Found: true, Required: true, Detail: "here"},
		"missing  BTF: not here; do this":              {Name: "BTF", Required: true, Detail: "not here", Fix: "do this"},
		"missing  bpffs (optional): not here; do this": {Name: "bpffs", Detail: "not here", Fix: "do this"},
	} {
		if got := f.String(); got != want {
			t.Errorf("wanted %q, got %q", want, got)
		}
	}
}

// TestThisMachine holds on every machine: what it has is not known here.
func TestThisMachine(t *testing.T) {
	findings := Run()
	names := map[string]bool{}
	required := false
	for _, f := range findings {
		t.Log(f)
		if names[f.Name] {
			t.Errorf("wanted one finding a check, got two of %q", f.Name)
		}
		names[f.Name] = true
		if f.Detail == "" || (f.Fix == "") != f.Found || strings.Contains(f.String(), "\n") {
			t.Errorf("wanted a detail, a fix exactly when missing, and one line; got %+v", f)
		}
		required = required || f.Required && !f.Found
	}
	if err := Missing(findings); (err != nil) != required {
		t.Errorf("something required is missing: %v; got the error %v", required, err)
	}
}
