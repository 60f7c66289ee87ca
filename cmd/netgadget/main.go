// SPDX-License-Identifier: Apache-2.0

// Command netgadget tells which process tried to talk to whom.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// exitStatus ends the program with a status of its own, after err, if any.
type exitStatus struct {
	status int
	err    error
}

func (e exitStatus) Error() string { return fmt.Sprint(e.err) }
func (e exitStatus) Unwrap() error { return e.err }

func main() {
	os.Exit(status(newRootCommand().Execute()))
}

// status prints an error, and returns what to exit with.
func status(err error) int {
	if err == nil {
		return 0
	}
	var exit exitStatus
	if !errors.As(err, &exit) {
		exit = exitStatus{status: 1, err: err}
	}
	if exit.err != nil {
		fmt.Fprintln(os.Stderr, "netgadget:", exit.err)
	}
	return exit.status
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "netgadget",
		Short:         "Which process tried to talk to whom",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newRunCommand(), newDoctorCommand(), newVersionCommand())
	return root
}
