// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/inspektor-gadget/inspektor-gadget/pkg/params"
	log "github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/internal/preflight"
)

var errHelp = errors.New("help was asked for")

// runFlags is what the command line of `run` says.
type runFlags struct {
	options gadget.Options
	timeout time.Duration
	strict  bool
	wait    bool
	command []string
}

// defaults are those of netgadget where they differ from IG's.
var defaults = map[string]string{
	"output": "json",
	"host":   "true", // the host's own processes, not containers alone; but for who asks for some containers
}

func parseRunFlags(cmd *cobra.Command, args []string) (*runFlags, error) {
	f := &runFlags{}
	if i := slices.Index(args, "--"); i >= 0 {
		args, f.command = args[:i], args[i+1:]
		if len(f.command) == 0 {
			return nil, errors.New("no COMMAND after --")
		}
	}

	// Our own flags and those for every image first: the image has the others.
	first := f.ownFlags()
	addParams(first, gadget.GlobalParams())
	first.ParseErrorsAllowlist.UnknownFlags = true
	first.SetOutput(io.Discard)
	if err := first.Parse(args); err != nil && !errors.Is(err, pflag.ErrHelp) {
		return nil, mistake(err)
	}
	image := f.options.Image // which flags that are made anew forget
	help := slices.Contains(args, "-h") || slices.Contains(args, "--help")
	cmd.Flags().AddFlagSet(f.ownFlags())
	if help && os.Geteuid() != 0 {
		cmd.Long += "\n\nAs root, this help lists the flags of the gadget and of Inspektor Gadget too."
		return nil, errHelp
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("must be run as root to load eBPF programs; try sudo")
	}
	if !f.options.Verbose {
		log.SetLevel(log.ErrorLevel)
	}

	all, err := gadget.Params(cmd.Context(), image, setParams(first))
	if errors.Is(err, fs.ErrPermission) { // IG makes eBPF maps already here
		err = cmp.Or(preflight.Missing(f.host().Run()), err)
	}
	if err != nil {
		return nil, err
	}
	addParams(cmd.Flags(), all)
	if help {
		return nil, errHelp
	}
	return f, f.parse(cmd.Flags(), args)
}

func (f *runFlags) ownFlags() *pflag.FlagSet {
	own := pflag.NewFlagSet("run", pflag.ContinueOnError)
	own.StringVar(&f.options.Image.Name, "image", "", "gadget image of ig's local store or a registry, in place of the embedded one")
	own.StringVar(&f.options.Image.File, "image-file", "", "gadget image in an archive made by `ig image export`")
	own.BoolVarP(&f.options.Verbose, "verbose", "v", false, "print Inspektor Gadget's debug messages")
	own.BoolVar(&f.options.AutoMount, "auto-mount-filesystems", false, "mount bpffs, debugfs and tracefs where they are not")
	own.DurationVarP(&f.timeout, "timeout", "t", 0, "end after this time (10s, 5m), a COMMAND by SIGTERM; 0 for never")
	own.BoolVar(&f.wait, "wait", false, "with a COMMAND: go on until the processes that it has left have ended, too")
	own.StringArrayVar(&f.options.NetNS, "netns", nil, "network namespace to watch in place of the host's and containers': a file, a name of `ip netns`, or all; repeatable")
	own.BoolVar(&f.options.DropReasons, "drop-reasons", false, "with --lifecycle or --failed-only: ask the kernel why it has dropped a packet, Linux 5.17 or newer (the field drop)")
	own.BoolVar(&f.strict, "strict", false, "fail when events were lost: more came than could be read")
	return own
}

// addParams makes flags of the image's parameters, but for those that are
// netgadget's own.
func addParams(flags *pflag.FlagSet, all params.Params) {
	for _, p := range all {
		if flags.Lookup(p.Key) != nil {
			continue
		}
		if value, ok := defaults[p.Key]; ok {
			p.DefaultValue = value
		}
		alias := p.Alias
		if alias != "" && flags.ShorthandLookup(alias) != nil {
			alias = ""
		}
		flag := flags.VarPF(&paramValue{Param: p}, p.Key, alias, p.Description)
		flag.DefValue = p.DefaultValue
		if p.IsBoolFlag() {
			flag.NoOptDefVal = "true"
		}
	}
}

// paramValue is a parameter as the value of a flag.
type paramValue struct{ *params.Param }

func (v *paramValue) Set(value string) error {
	if err := gadget.CheckValue(v.ParamDesc, value); err != nil {
		return err
	}
	return v.Param.Set(value)
}

func (f *runFlags) parse(flags *pflag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		return mistake(err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("what does %q mean? A command to run follows --", flags.Arg(0))
	}
	if f.timeout < 0 {
		return fmt.Errorf("--timeout %s: at least 0", f.timeout)
	}
	if f.wait && len(f.command) == 0 {
		return errors.New("--wait: for what? A command to run follows --")
	}
	f.options.Params = maps.Clone(defaults)
	set := setParams(flags)
	maps.Copy(f.options.Params, set)
	if filter := gadget.ContainerFilter(set); filter != "" {
		if len(f.command) > 0 {
			return fmt.Errorf("--%s and a COMMAND exclude each other: it is the command that is followed, wherever it goes", filter)
		}
		// With the host's processes IG filters nothing: see its local manager.
		if _, ok := set["host"]; !ok {
			f.options.Params["host"] = "false"
		}
	}
	if f.options.Params["output"] == "columns" {
		f.options.Hints = os.Stdout
	}
	return nil
}

// setParams are the parameters that the command line sets.
func setParams(flags *pflag.FlagSet) map[string]string {
	values := map[string]string{}
	flags.Visit(func(flag *pflag.Flag) {
		if v, ok := flag.Value.(*paramValue); ok {
			values[flag.Name] = v.String()
		}
	})
	return values
}

// mistake says what is wrong on the command line: of a value what a parameter's
// mistake says, of anything else where to look.
func mistake(err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return fmt.Errorf("%w; `netgadget run --help` lists the flags", err)
	}
	flag := invalid.GetFlag()
	if _, ok := flag.Value.(*paramValue); ok {
		return invalid.Unwrap()
	}
	own := &params.ParamDesc{Key: flag.Name, TypeHint: params.TypeHint(flag.Value.Type())}
	return gadget.WrongValue(own, invalid.GetValue(), invalid.Unwrap())
}
