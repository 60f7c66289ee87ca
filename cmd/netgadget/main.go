// SPDX-License-Identifier: Apache-2.0

// Command netgadget tells which process tried to talk to whom.
package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"

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
		fmt.Fprintln(os.Stderr, "netgadget:", plain(exit.err))
	}
	return exit.status
}

// goFunction begins the errors of package strconv, which IG passes on: of a
// number in a filter, for one.
var goFunction = regexp.MustCompile(`strconv\.\w+: parsing `)

// plain is an error without names of Go functions.
func plain(err error) string {
	return goFunction.ReplaceAllString(err.Error(), "")
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "netgadget",
		Short:         "Which process tried to talk to whom",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newRunCommand(), newPolicyCommand(), newDoctorCommand(), newInstallCommand(), newUninstallCommand(), newVersionCommand())
	return root
}
