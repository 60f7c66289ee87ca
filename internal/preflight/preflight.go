// SPDX-License-Identifier: Apache-2.0

// Package preflight answers whether a machine can run the gadget through
// Inspektor Gadget (ig), and what exactly is missing when it cannot. It only
// reads files: nothing is loaded, attached or mounted.
package preflight

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Finding is the answer to one check.
type Finding struct {
	Name  string
	Found bool
	// Required findings are those that ig does not run without.
	Required bool
	// Detail says what was found, or what is missing.
	Detail string
	// Fix says what to do about it; empty when found.
	Fix string
}

// String is the finding as one line of a report.
func (f Finding) String() string {
	switch {
	case f.Found:
		return fmt.Sprintf("found    %s: %s", f.Name, f.Detail)
	case f.Required:
		return fmt.Sprintf("missing  %s: %s; %s", f.Name, f.Detail, f.Fix)
	default:
		return fmt.Sprintf("missing  %s (optional): %s; %s", f.Name, f.Detail, f.Fix)
	}
}

// Host is the machine to check.
type Host struct {
	// Root is where the machine's file tree stands, "/" for this one.
	Root string
	// RuntimePath is the container runtime that ig watches in place of those
	// it knows; empty for none. ig takes it from RUNTIME_PATH.
	RuntimePath string
	// AutoMount tells that ig may mount debugfs and tracefs by itself
	// (its flag --auto-mount-filesystems, host.Config in its Go API).
	AutoMount bool
	// Enters tells that the run watches network namespaces from the moment that somebody enters them
	// (netgadget's --netns and COMMAND).
	Enters bool
	// AllNetNS tells that it looks for every network namespace that there is (--netns all).
	AllNetNS bool
	// Unlimited tells that whoever starts it lifts the limit of locked memory.
	Unlimited bool
}

// ThisHost is the machine that the process runs on, with an ig that mounts
// nothing, which is ig's default.
func ThisHost() Host {
	return Host{Root: "/", RuntimePath: os.Getenv("RUNTIME_PATH")}
}

// Run checks this machine. See [ThisHost].
func Run() []Finding { return ThisHost().Run() }

type answer struct {
	found       bool
	detail, fix string
}

func found(detail string) answer        { return answer{found: true, detail: detail} }
func missing(detail, fix string) answer { return answer{detail: detail, fix: fix} }

var checks = []struct {
	name     string
	required bool
	look     func(Host) answer
}{
	{"kernel", true, Host.kernel},
	{"BTF", true, Host.btf},
	{"kprobes", true, Host.kprobes},
	{"perf events", true, Host.perfEvents},
	{"IPv6 functions", true, Host.ipv6},
	{"kernel memory", true, Host.kernelMemory},
	{"debugfs", true, Host.debugfs},
	{"tracefs", true, Host.tracefs},
	{"privileges", true, Host.privileges},
	{"bpffs", false, Host.bpffs},
	{"other network namespaces", false, Host.otherNamespaces},
	{"container runtime", false, Host.containerRuntime},
	{"container sockets", false, Host.containerSockets},
}

// Run makes every check, always in the same order.
func (h Host) Run() []Finding {
	findings := make([]Finding, 0, len(checks))
	for _, c := range checks {
		a := c.look(h)
		findings = append(findings, Finding{
			Name: c.name, Found: a.found, Required: c.required, Detail: a.detail, Fix: a.fix,
		})
	}
	return findings
}

// Missing is nil when nothing that is required is missing, else an error of one
// line that names everything that is, and what to do about it.
func Missing(findings []Finding) error {
	var parts []string
	for _, f := range findings {
		if f.Required && !f.Found {
			parts = append(parts, f.Detail+": "+f.Fix)
		}
	}
	if parts == nil {
		return nil
	}
	return errors.New("this machine cannot run ig: " + strings.Join(parts, "; "))
}

func (h Host) path(name string) string { return filepath.Join(h.Root, name) }

func (h Host) exists(name string) bool {
	_, err := os.Stat(h.path(name))
	return err == nil
}

// read returns a file's text without the white space around it, and "" for a
// file that cannot be read.
func (h Host) read(name string) string {
	text, err := os.ReadFile(h.path(name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
