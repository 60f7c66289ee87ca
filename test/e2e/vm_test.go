// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"gadget.example/network/internal/vm"
	"gadget.example/network/test/e2e/measured"
	"gadget.example/network/test/guest"
)

const (
	inGuest        = "guest" // value of E2E_IN
	guestArtifacts = "/e2e"
	guestTests     = "/e2e/e2e.test"
	guestScripts   = "/e2e/testdata"
)

// guestModules are the drivers of the devices that the tests make, and what the
// rules that they write are made of.
var guestModules = []string{
	"veth", "8021q", "tun", "overlay", "bridge", "bonding", "macvlan", "dummy", "ifb", "vrf",
	"nf_tables", "nft_chain_nat", "nft_nat", "nft_masq", "nft_redir", "nft_tproxy", "nft_ct", "nft_reject_ipv4", "nft_reject_ipv6",
	"nft_compat", "xt_nat", "xt_MASQUERADE", "xt_REDIRECT", "xt_tcpudp",
	"sch_ingress", "cls_matchall", "act_gact", "act_mirred",
}

// runInVM runs these same tests, built for the guest, in a VM, with go test's own
// arguments, and returns their status.
func runInVM(ctx context.Context, lacking error, args ...string) (int, error) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("skipped: needs a virtual machine, which takes minutes: not with -short")
		return 0, nil
	}
	if lacking != nil {
		fmt.Printf("%v\nrunning the tests in a VM\n", lacking)
	}
	dir, err := os.MkdirTemp("", "e2e-*")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)

	config, err := guestConfig(ctx, dir, args)
	if err != nil {
		return 1, err
	}
	ctx, cancel := context.WithTimeout(ctx, guest.Limit())
	defer cancel()
	measured.Write(os.Stdout, measured.Release, config.Kernel.Release)
	result, err := vm.Run(ctx, config)
	if err != nil {
		return 1, err
	}
	measured.Write(os.Stdout, measured.Accelerator, result.Accelerator)
	measured.Write(os.Stdout, measured.Boot, result.Boot.String())
	fmt.Printf("in a VM with Linux %s: boot %v, tests %v\n", config.Kernel.Release, result.Boot.Round(time.Second), result.Command.Round(time.Second))
	return result.ExitStatus, nil
}

// reason is an error in one line, as a table has it.
func reason(err error) string {
	var guest *vm.GuestError
	if errors.As(err, &guest) {
		return "the guest " + guest.Reason
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

func guestConfig(ctx context.Context, dir string, args []string) (vm.Config, error) {
	kernel, err := guest.Kernel(ctx)
	if err != nil {
		return vm.Config{}, err
	}
	if err := linkArtifacts(ctx, dir, kernel.Arch); err != nil {
		return vm.Config{}, err
	}
	tests := filepath.Join(dir, filepath.Base(guestTests))
	if err := guest.GoCommand(ctx, kernel.Arch, "test", "-c", "-o", tests, ".").Run(); err != nil {
		return vm.Config{}, fmt.Errorf("building the tests for the guest: %w", err)
	}
	commands, err := guestCommands(ctx, kernel.Arch)
	if err != nil {
		return vm.Config{}, err
	}
	files := []vm.File{{Guest: guestTests, Host: tests}, {Guest: guestScripts, Host: "testdata"}}
	for _, name := range []string{igBinary, gadgetctlBinary, netgadgetBinary, agentBinary, firstBinary, imageFile, connectionsFile} {
		files = append(files, vm.File{Guest: filepath.Join(guestArtifacts, name), Host: filepath.Join(dir, name)})
	}
	files = append(files, accounts()...)
	return vm.Config{
		Kernel:  kernel,
		Files:   append(files, commands...),
		Modules: guest.Modules(kernel, guestModules),
		Command: append([]string{guestTests}, guest.Args(args)...),
		Env:     []string{"E2E_IN=" + inGuest, "IMAGE_FILE=" + os.Getenv("IMAGE_FILE")},
		Dir:     guestArtifacts,
		CPUs:    guestCPUs,
		MaxCPUs: maxCPUs(kernel.Arch),
		// The programs under test take half a GB of it, unpacked.
		MemoryMiB: 3072,
		Stdout:    os.Stdout, Stderr: os.Stderr,
	}, nil
}

// maxCPUs is more than there are where QEMU can do that.
func maxCPUs(arch string) int {
	if arch == "amd64" {
		return guestMaxCPUs
	}
	return guestCPUs
}

// guestCommands are a shell, the usual commands and, if there is one, runc: this
// machine's own, or Debian's for a guest of another architecture.
func guestCommands(ctx context.Context, arch string) ([]vm.File, error) {
	if arch != runtime.GOARCH {
		cache, err := guest.Cache()
		if err != nil {
			return nil, err
		}
		return vm.Userland(ctx, arch, cache, os.Stderr)
	}
	files, err := vm.Busybox()
	if err != nil {
		return nil, err
	}
	if runc, err := exec.LookPath("runc"); err == nil {
		files = append(append(sharedLibraries(runc), vm.File{Guest: guestRunc, Host: runc}), files...)
	}
	return append(iptablesFiles(), files...), nil
}

// iptablesFiles are the program, if there is one, and what it loads.
func iptablesFiles() []vm.File {
	program, err := exec.LookPath(iptablesProgram)
	if err != nil {
		return nil
	}
	files := append(sharedLibraries(program), vm.File{Guest: filepath.Join("/usr/sbin", iptablesProgram), Host: program})
	plugins, _ := filepath.Glob("/usr/lib/*/xtables/libxt_*.so") // fails for no pattern of ours
	for _, plugin := range plugins {
		files = append(files, vm.File{Guest: plugin, Host: plugin})
	}
	return files
}

// accounts are the users that the guest's scripts work as.
func accounts() []vm.File {
	return []vm.File{
		{Guest: "/etc/passwd", Data: []byte("root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"), Mode: 0o644},
		{Guest: "/etc/group", Data: []byte("root:x:0:\nnogroup:x:65534:\n"), Mode: 0o644},
	}
}

// sharedLibraries are what a dynamically linked program needs beside it.
func sharedLibraries(program string) []vm.File {
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return nil // static
	}
	var files []vm.File
	for field := range strings.FieldsSeq(string(out)) {
		if filepath.IsAbs(field) {
			files = append(files, vm.File{Guest: field, Host: field})
		}
	}
	return files
}

// prepareGuest puts the images where the stock ig looks for them.
func prepareGuest() error {
	for _, file := range []string{imageFile, connectionsFile} {
		out, err := exec.Command(artifact(igBinary), "image", "import", artifact(file)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ig image import: %w: %s", err, out)
		}
	}
	return nil
}

// linkArtifacts gathers what make left for an architecture, and builds the agent.
func linkArtifacts(ctx context.Context, dir, arch string) error {
	for _, name := range []string{igBinary, gadgetctlBinary, netgadgetBinary, imageFile, connectionsFile} {
		foreign := arch != runtime.GOARCH && filepath.Ext(name) != ".tar"
		build := "../../build"
		if foreign {
			build = filepath.Join(build, arch)
		}
		built, err := filepath.Abs(filepath.Join(build, name))
		if err != nil {
			return err
		}
		if name == igBinary && !foreign && os.Getenv("IG") != "" {
			built = os.Getenv("IG")
		}
		if file := os.Getenv("IMAGE_FILE"); name == imageFile && file != "" {
			built = file
		}
		if _, err := os.Stat(built); err != nil {
			return fmt.Errorf("%w; `make build build/gadgetctl` builds it, for another architecture `make test-kernels`", err)
		}
		if err := os.Symlink(built, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := guest.GoCommand(ctx, arch, "build", "-o", filepath.Join(dir, agentBinary), "./agent").Run(); err != nil {
		return fmt.Errorf("building the agent: %w", err)
	}
	first := []string{"build", "-ldflags", "-E main.first", "-o", filepath.Join(dir, firstBinary), "./first"}
	if err := guest.GoCommand(ctx, arch, first...).Run(); err != nil {
		return fmt.Errorf("building the program that forks first: %w", err)
	}
	return nil
}
