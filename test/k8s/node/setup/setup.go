// SPDX-License-Identifier: Apache-2.0

// Package setup is what this machine tells the program that makes a node of a guest.
package setup

import "net/netip"

const (
	// ConfigPath is where the guest has the Config, as JSON.
	ConfigPath = "/node.json"
	// Ready is the line that says that all programs of the node are started.
	Ready = "node: ready"
)

// Config is what a node is made of. Paths are those of its own root file system, but for Root.
type Config struct {
	// Root is the folder of the guest that becomes its root file system.
	Root string
	// State are folders that get a tmpfs each: the kubelet wants its state to be on a file system that it knows.
	State    []string
	Hostname string
	// Modules are what the kernel would not load by itself.
	Modules []string
	// Addresses are those of eth0; Gateways, one a family, are where all else is.
	Addresses []netip.Prefix
	Gateways  []netip.Addr
	// Sysctls are files below /proc/sys, and what is written to them when the network is up.
	Sysctls map[string]string
	// Runtime is containerd's command line. Images are archives that it imports, and that are removed then.
	Runtime []string
	Images  []string
	// Programs are the command lines of what is started then.
	Programs [][]string
}
