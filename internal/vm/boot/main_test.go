// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"gadget.example/network/internal/vm"
)

func TestWrongCommandLineIsOneLine(t *testing.T) {
	for args, want := range map[string]string{
		"":                      "requires at least 1 arg",
		"--file x -- true":      "--file x: want HOST:GUEST",
		"--file x:rel -- true":  "--file x:rel: want HOST:GUEST",
		"--timeout fast -- x":   "invalid argument",
		"--no-such-flag -- cmd": "unknown flag",
		"--kernel 2.4 -- cmd":   `kernel "2.4" is not known: there are 5.10,`,
	} {
		status := 0
		cmd := newCommand(&status)
		cmd.SetArgs(strings.Fields(args))
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("boot %s: got %v, want one line with %q", args, err, want)
		}
	}
}

func TestHelpNamesTheKernels(t *testing.T) {
	status := 0
	help := newCommand(&status).Long
	for _, k := range vm.Kernels() {
		if !strings.Contains(help, "\n"+k.Name+" ") {
			t.Errorf("kernel %s is not in the help:\n%s", k.Name, help)
		}
	}
}
