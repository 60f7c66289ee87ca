// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"gadget.example/network/internal/preflight"
	"gadget.example/network/internal/service"
)

func newInstallCommand() *cobra.Command {
	var options service.Options
	install := &cobra.Command{
		Use:   "install [--now] [--force] [-- FLAG...]",
		Short: "Make `netgadget run` a service of systemd, with as few privileges as it needs",
		Long: "Writes " + service.Path + ", which has this program run with the flags\n" +
			"after --, those of `netgadget run`, and enables it. Each event is a line of JSON in the\n" +
			"journal: journalctl -u netgadget -o cat\n\n" +
			"Run again, it changes the service to what is asked for then.",
		Example: "  netgadget install --now -- --lifecycle --netns all",
		Args:    beforeDash,
	}
	install.Flags().BoolVar(&options.Now, "now", false, "start it at once, too; it is up when every attempt is seen")
	install.Flags().BoolVar(&options.Force, "force", false, "replace a unit of this name that netgadget did not write")
	install.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return fmt.Errorf("%w; the flags of `netgadget run` follow --", err)
	})
	install.RunE = func(cmd *cobra.Command, args []string) error {
		unit, err := newUnit(cmd, args)
		if err != nil {
			return err
		}
		changed, err := service.Install(cmd.Context(), unit, options)
		if err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), told(changed, options.Now))
		return nil
	}
	return install
}

// newUnit is the service of what `netgadget run` takes.
func newUnit(cmd *cobra.Command, args []string) (unit service.Unit, err error) {
	if asksForImage(args) { // before it is looked for
		return unit, errors.New("--image, --image-file: the service runs the image that netgadget carries")
	}
	run := newRunCommand()
	run.SetContext(cmd.Context())
	flags, err := parseRunFlags(run, args)
	switch {
	case errors.Is(err, errHelp):
		return unit, errors.New("`netgadget run --help` lists the flags")
	case err != nil:
		return unit, err
	case len(flags.command) > 0:
		return unit, errors.New("a service watches the host, not a COMMAND: give flags alone")
	}
	if err := flags.options.Check(); err != nil {
		return unit, err
	}
	if err := service.Available(); err != nil {
		return unit, err
	}
	host := flags.host()
	if err := preflight.Missing(host.Run()); err != nil {
		return unit, err
	}
	host.Unlimited = true // by the unit
	unit = service.Unit{Args: args, Capabilities: host.Capabilities(), Realtime: host.Enters}
	unit.Binary, err = service.Self()
	return unit, err
}

func asksForImage(args []string) bool {
	flags := (&runFlags{}).ownFlags()
	flags.ParseErrorsAllowlist.UnknownFlags = true
	flags.SetOutput(io.Discard)
	_ = flags.Parse(args) // what is wrong is told by who reads all of them
	return flags.Changed("image") || flags.Changed("image-file")
}

// beforeDash refuses words that are neither flags nor behind --.
func beforeDash(cmd *cobra.Command, args []string) error {
	if dash := cmd.ArgsLenAtDash(); len(args) > 0 && dash != 0 {
		return fmt.Errorf("what does %q mean? The flags of `netgadget run` follow --", args[0])
	}
	return nil
}

func told(changed, now bool) string {
	what := service.Path + " is as it was"
	if changed {
		what = "wrote " + service.Path
	}
	if now {
		return what + ", enabled and running; its events: journalctl -u netgadget -o cat"
	}
	return what + ", enabled for the next boot; to start it now: systemctl restart netgadget"
}
