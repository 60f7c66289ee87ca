// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gadget.example/network/internal/vm"
)

const (
	inGuest        = "guest" // value of E2E_IN
	guestArtifacts = "/e2e"
	guestTests     = "/e2e/e2e.test"
	guestScripts   = "/e2e/testdata"
	// vmLimit bounds a guest whatever go test's own limit is.
	vmLimit = 30 * time.Minute
)

// guestModules are the drivers of the devices that the tests make.
var guestModules = []string{"veth", "8021q", "tun", "overlay"}

// runInVM runs these same tests, built for the guest, in a VM, and returns their
// status.
func runInVM(ctx context.Context, lacking error) (int, error) {
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

	config, err := guestConfig(ctx, dir)
	if err != nil {
		return 1, err
	}
	ctx, cancel := context.WithTimeout(ctx, testLimit())
	defer cancel()
	result, err := vm.Run(ctx, config)
	if err != nil {
		return 1, err
	}
	fmt.Printf("in a VM with Linux %s: boot %v, tests %v\n", config.Kernel.Release, result.Boot.Round(time.Second), result.Command.Round(time.Second))
	return result.ExitStatus, nil
}

// testLimit leaves the driver some of go test's own time to clean up.
func testLimit() time.Duration {
	if f := flag.Lookup("test.timeout"); f != nil {
		if limit, ok := f.Value.(flag.Getter).Get().(time.Duration); ok && limit > 0 {
			return min(vmLimit, limit*9/10)
		}
	}
	return vmLimit
}

func guestConfig(ctx context.Context, dir string) (vm.Config, error) {
	kernel, err := fetchKernel(ctx)
	if err != nil {
		return vm.Config{}, err
	}
	if err := linkArtifacts(dir); err != nil {
		return vm.Config{}, err
	}
	tests := filepath.Join(dir, filepath.Base(guestTests))
	if err := goCommand("test", "-c", "-o", tests, ".").Run(); err != nil {
		return vm.Config{}, fmt.Errorf("building the tests for the guest: %w", err)
	}
	busybox, err := vm.Busybox()
	if err != nil {
		return vm.Config{}, err
	}
	files := []vm.File{{Guest: guestTests, Host: tests}, {Guest: guestScripts, Host: "testdata"}}
	for _, name := range []string{igBinary, netgadgetBinary, agentBinary, imageFile} {
		files = append(files, vm.File{Guest: filepath.Join(guestArtifacts, name), Host: filepath.Join(dir, name)})
	}
	files = append(files, accounts()...)
	if runc, err := exec.LookPath("runc"); err == nil {
		files = append(files, sharedLibraries(runc)...)
		files = append(files, vm.File{Guest: guestRunc, Host: runc})
	}
	return vm.Config{
		Kernel:  kernel,
		Files:   append(files, busybox...),
		Modules: guestModules,
		Command: append([]string{guestTests}, guestArgs(os.Args[1:])...),
		Env:     []string{"E2E_IN=" + inGuest},
		Dir:     guestArtifacts,
		// The programs under test take half a GB of it, unpacked.
		MemoryMiB: 3072,
		Stdout:    os.Stdout, Stderr: os.Stderr,
	}, nil
}

func fetchKernel(ctx context.Context) (vm.Kernel, error) {
	cache := os.Getenv("KERNEL_CACHE")
	if cache == "" {
		var err error
		if cache, err = vm.DefaultCache(); err != nil {
			return vm.Kernel{}, err
		}
	}
	return vm.Fetch(ctx, os.Getenv("E2E_KERNEL"), cache, os.Stderr)
}

// guestArgs are go test's flags but those that name files of this machine.
func guestArgs(args []string) []string {
	return slices.DeleteFunc(slices.Clone(args), func(arg string) bool {
		return slices.ContainsFunc([]string{"testlogfile", "outputdir", "coverprofile", "cpuprofile", "memprofile", "blockprofile", "mutexprofile", "trace", "gocoverdir"},
			func(name string) bool { return strings.HasPrefix(strings.TrimLeft(arg, "-"), "test."+name) })
	})
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

// prepareGuest puts the image where the stock ig looks for it.
func prepareGuest() error {
	out, err := exec.Command(artifact(igBinary), "image", "import", artifact(imageFile)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ig image import: %w: %s", err, out)
	}
	return nil
}

// linkArtifacts gathers what `make build` left, and builds the agent.
func linkArtifacts(dir string) error {
	for _, name := range []string{igBinary, netgadgetBinary, imageFile} {
		built, err := filepath.Abs(filepath.Join("../../build", name))
		if err != nil {
			return err
		}
		if name == igBinary && os.Getenv("IG") != "" {
			built = os.Getenv("IG")
		}
		if file := os.Getenv("IMAGE_FILE"); name == imageFile && file != "" {
			built = file
		}
		if _, err := os.Stat(built); err != nil {
			return fmt.Errorf("%w; `make build` builds it", err)
		}
		if err := os.Symlink(built, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := goCommand("build", "-o", filepath.Join(dir, agentBinary), "./agent").Run(); err != nil {
		return fmt.Errorf("building the agent: %w", err)
	}
	return nil
}

// goCommand builds static programs: they run in guests and in containers.
func goCommand(args ...string) *exec.Cmd {
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd
}
