// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestWrongCommandLineIsOneLine(t *testing.T) {
	for args, want := range map[string]string{
		"":                      "requires at least 1 arg",
		"--file x -- true":      "--file x: want HOST:GUEST",
		"--file x:rel -- true":  "--file x:rel: want HOST:GUEST",
		"--timeout fast -- x":   "invalid argument",
		"--no-such-flag -- cmd": "unknown flag",
	} {
		status := 0
		cmd := newCommand(&status)
		cmd.SetArgs(strings.Fields(args))
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("boot %s: got %v, want one line with %q", args, err, want)
		}
	}
}
