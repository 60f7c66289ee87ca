// SPDX-License-Identifier: Apache-2.0

// Command boot runs a command in a virtual machine, with a kernel of this machine's distribution or one of Debian's by
// name, and exits as the command did.
//
//	go run ./internal/vm/boot --busybox --module veth --kernel 6.12 -- uname -a
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"gadget.example/network/internal/vm"
)

type options struct {
	kernel  string
	cache   string
	files   []string
	busybox bool
	timeout time.Duration
	config  vm.Config
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	status := 0
	if err := newCommand(&status).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "boot:", err)
		status = 125
	}
	os.Exit(status)
}

func newCommand(status *int) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "boot [flags] -- COMMAND [ARG...]",
		Short: "Run a command in a virtual machine, with a kernel of this machine's distribution or of Debian's",
		Long: `Run a command in a virtual machine, with a kernel of this machine's distribution or of Debian's.

` + kernelList() + `
The exit status is the command's; 125 if it has none, because the machine could not be
made, panicked or did not end in time.`,
		Args:          cobra.MinimumNArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.config.Command = args
			var err error
			*status, err = o.run(cmd.Context())
			return err
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringVar(&o.kernel, "kernel", "", "name of the kernel (default: the newest of this machine's distribution)")
	f.StringVar(&o.cache, "kernel-cache", "", "folder for kernels (default: gadget-network/kernels in the user's cache folder)")
	f.StringArrayVar(&o.config.Modules, "module", nil, "kernel module to load first, with what it depends on; repeatable")
	f.StringArrayVar(&o.files, "file", nil, "HOST:GUEST, a file or folder to put into the machine; repeatable")
	f.BoolVar(&o.busybox, "busybox", false, "put this machine's static busybox into the machine, as its shell and commands")
	f.StringArrayVar(&o.config.Env, "env", nil, "KEY=VALUE for the command's environment; repeatable")
	f.StringVar(&o.config.Dir, "dir", "/", "the command's working directory in the machine")
	f.StringArrayVar(&o.config.System, "system", nil, "program of the machine's to become process 1, and, repeated, its arguments; it needs --root")
	f.StringVar(&o.config.Root, "root", "", "folder of the machine's that is the root of --system; the command finds it at /proc/1/root")
	f.DurationVar(&o.timeout, "timeout", 5*time.Minute, "stop the machine after this time")
	f.IntVar(&o.config.MemoryMiB, "memory", 2048, "the machine's memory in MiB")
	f.IntVar(&o.config.CPUs, "cpus", 2, "the machine's processors")
	f.IntVar(&o.config.MaxCPUs, "max-cpus", 0, "processors that the machine's kernel takes for possible (default: those of --cpus)")
	f.BoolVar(&o.config.Counted, "counted", false, "let the machine's time be that of its instructions, 1 ns each: emulated, and slow; 5.10 needs --cpus 1 with it")
	f.StringVar(&o.config.Console, "console", "", "file to keep the kernel's console log in")
	return cmd
}

// kernelList is the table of --kernel's names for the help.
func kernelList() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-14s %-7s %-18s %s\n", "KERNEL", "ARCH", "DEBIAN'S SUITE", "PACKAGE")
	for _, s := range vm.Kernels() {
		fmt.Fprintf(&b, "%-14s %-7s %-18s %s\n", s.Name, s.Arch, s.Suite, s.Package)
	}
	return b.String()
}

func (o *options) run(ctx context.Context) (int, error) {
	c := o.config
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	for _, f := range o.files {
		host, guest, ok := strings.Cut(f, ":")
		if !ok || host == "" || !path.IsAbs(guest) {
			return 0, fmt.Errorf("--file %s: want HOST:GUEST with an absolute path in the guest", f)
		}
		c.Files = append(c.Files, vm.File{Host: host, Guest: guest})
	}
	if o.busybox {
		files, err := vm.Busybox()
		if err != nil {
			return 0, err
		}
		c.Files = append(c.Files, files...)
	}
	var err error
	if c.Kernel, err = fetch(ctx, o.kernel, o.cache); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	result, err := vm.Run(ctx, c)
	return result.ExitStatus, err
}

func fetch(ctx context.Context, name, dir string) (vm.Kernel, error) {
	if dir == "" {
		var err error
		if dir, err = vm.DefaultCache(); err != nil {
			return vm.Kernel{}, err
		}
	}
	return vm.Fetch(ctx, name, dir, os.Stderr)
}
