// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/internal/preflight"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"netgadget": main})
}

// TestOnThisMachine runs what needs no eBPF, and what a machine that cannot run
// ig gets to see. The rest is in test/e2e.
func TestOnThisMachine(t *testing.T) {
	_, err := gadget.ReadVersions()
	conditions := map[string]bool{
		"image":  err == nil, // made by `make build`
		"root":   os.Geteuid() == 0,
		"cannot": preflight.Missing(preflight.Run()) != nil,
	}
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Condition: func(name string) (bool, error) {
			value, ok := conditions[name]
			if !ok {
				return false, fmt.Errorf("no condition %q", name)
			}
			return value, nil
		},
	})
}
