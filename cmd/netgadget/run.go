// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/internal/preflight"
	"gadget.example/network/internal/service"
)

// statusOwnFailure is the exit status when netgadget itself failed and not the
// command it ran, as with timeout(1) and env(1).
const statusOwnFailure = 125

func newRunCommand() *cobra.Command {
	run := &cobra.Command{
		Use:   "run [flags] [-- COMMAND [ARG...]]",
		Short: "Report attempts to talk: of the whole host, or of one command",
		Long: "Reports who tries to talk to whom, as JSON lines or (-o columns) a table, until\n" +
			"it is interrupted.\n\n" +
			"With a COMMAND, it reports only what the command and all that it starts do,\n" +
			"wherever they go, and exits as the command did, with 124 if its --timeout was\n" +
			"over, or with 125 if netgadget itself failed. The events are on standard output;\n" +
			"what the command writes there goes to standard error.\n\n" +
			"In the end, one line on standard error tells how many attempts were reported,\n" +
			"withheld by the rate limit, and lost.",
		// Which flags there are, only the image tells.
		DisableFlagParsing: true,
	}
	run.RunE = func(cmd *cobra.Command, args []string) error {
		flags, err := parseRunFlags(cmd, args)
		if errors.Is(err, errHelp) {
			return cmd.Help()
		}
		if err != nil {
			return failure(args, err)
		}
		if err := preflight.Missing(flags.host().Run()); err != nil {
			return failure(args, err)
		}
		if len(flags.command) > 0 {
			return runCommand(cmd.Context(), flags)
		}
		return runHost(cmd.Context(), flags)
	}
	return run
}

// host is this machine, for a run of these flags.
func (f *runFlags) host() preflight.Host {
	host := preflight.ThisHost()
	host.AutoMount = f.options.AutoMount
	host.Enters = len(f.command) > 0 || f.options.Enters()
	host.AllNetNS = slices.Contains(f.options.NetNS, gadget.AllNetNS)
	return host
}

// runHost reports until it is interrupted or the time is over.
func runHost(ctx context.Context, flags *runFlags) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	if flags.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, flags.timeout)
		defer cancel()
	}
	flags.options.OnReady = func(ctx context.Context) error {
		if err := service.Ready(); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}
	summary, err := gadget.Run(ctx, flags.options)
	return flags.conclude(summary, err)
}

func runCommand(ctx context.Context, flags *runFlags) error {
	command := exec.Command(flags.command[0], flags.command[1:]...)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stderr, os.Stderr

	status, summary, err := gadget.RunCommand(ctx, flags.options, gadget.Command{
		Cmd: command, Wait: flags.wait, Timeout: flags.timeout,
	})
	err = flags.conclude(summary, err)
	var start *gadget.StartError
	switch {
	case errors.As(err, &start):
		return exitStatus{status: start.Status, err: err}
	case err != nil:
		return exitStatus{status: statusOwnFailure, err: err}
	case status != 0:
		return exitStatus{status: status}
	}
	return nil
}

// conclude tells what became of the attempts of a run that did not fail.
func (f *runFlags) conclude(summary gadget.Summary, err error) error {
	if err != nil {
		return err
	}
	for _, note := range summary.Notes() {
		fmt.Fprintln(os.Stderr, "netgadget:", note)
	}
	if unknown := summary.Unknown(); unknown != "" {
		fmt.Fprintln(os.Stderr, "netgadget:", unknown)
	}
	last := summary.String()
	if beyond := summary.Beyond(); beyond != "" {
		last += "; " + beyond
	}
	fmt.Fprintln(os.Stderr, "netgadget:", last)
	if f.strict {
		return summary.Err()
	}
	return nil
}

// failure is an error of netgadget's own, before a command, if any, was run.
func failure(args []string, err error) error {
	if slices.Contains(args, "--") {
		return exitStatus{status: statusOwnFailure, err: err}
	}
	return err
}
