// SPDX-License-Identifier: Apache-2.0

// Command node makes of a guest of internal/vm the node of a cluster, and runs its programs: containerd, kubelet and
// kube-proxy. It ends when one of them does. What they write goes to its standard output, with the program's name in front
// of each line; Ready on a line of its own says that all are started.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"gadget.example/network/test/k8s/node/setup"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("node: ")
	log.Fatal(run())
}

func run() error {
	c, err := readConfig()
	switch {
	case err != nil:
		return err
	case filepath.Base(os.Args[0]) == "modprobe":
		return modprobe(c.Root)
	case len(os.Args) == 1:
		if err := prepare(c); err != nil {
			return err
		}
		return startSystemd()
	case os.Args[1] == asFirst:
		return becomeSystemd()
	case os.Args[1] == asPrograms:
		return endSystemd(runPrograms(c))
	}
	return fmt.Errorf("%q: nothing that this program can be", os.Args[1])
}

func readConfig() (c setup.Config, err error) {
	b, err := os.ReadFile(setup.ConfigPath)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("%s: %w", setup.ConfigPath, err)
	}
	return c, nil
}

// prepare makes of the guest what systemd and the node's programs expect.
func prepare(c setup.Config) error {
	if err := errors.Join(enterRoot(c.Root), mountState(c.State), name(c.Hostname)); err != nil {
		return err
	}
	// The kernel's package has no index of its modules: it is made where they are installed.
	if err := command("depmod").Run(); err != nil {
		return fmt.Errorf("depmod: %w", err)
	}
	for _, module := range c.Modules {
		if err := command("modprobe", module).Run(); err != nil {
			return fmt.Errorf("modprobe %s: %w", module, err)
		}
	}
	if err := connect(c.Addresses, c.Gateways); err != nil {
		return err
	}
	for file, value := range c.Sysctls {
		if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// runPrograms runs the node's programs until one of them ends.
func runPrograms(c setup.Config) error {
	programs := newPrograms()
	if err := programs.startRuntime(c.Runtime); err != nil {
		return err
	}
	for _, archive := range c.Images {
		if err := importImage(archive); err != nil {
			return err
		}
	}
	for _, args := range c.Programs {
		if err := programs.start(args); err != nil {
			return err
		}
	}
	fmt.Println(setup.Ready)
	return <-programs.ended
}
