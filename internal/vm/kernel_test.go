// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestDistributionDecidesThePackage(t *testing.T) {
	tests := []struct{ name, osRelease, arch, want, err string }{
		{"Debian", "ID=debian\n", "amd64", "linux-image-cloud-amd64", ""},
		{"Debian on arm64", "ID=debian\n", "arm64", "linux-image-cloud-arm64", ""},
		{"Ubuntu is like Debian, but first itself", "ID=ubuntu\nID_LIKE=debian\n", "amd64", "linux-image-virtual", ""},
		{"derived", "ID=mint\nID_LIKE=\"ubuntu debian\"\n", "amd64", "linux-image-virtual", ""},
		{"another", "ID=\"other\"\n", "amd64", "", `distribution "other"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "os-release")
			write(t, file, test.osRelease, 0o644)
			got, err := metaPackage(file, test.arch)
			if got != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("%q: got %q, %v; want %q, %q", test.osRelease, got, err, test.want, test.err)
			}
		})
	}
}

// fakeApt puts programs on the PATH that stand in for apt's, with a kernel in two packages, as Ubuntu has it.
func fakeApt(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	write(t, filepath.Join(dir, "os-release"), "ID=ubuntu\n", 0o644)
	write(t, filepath.Join(dir, "apt-cache"), `#!/bin/sh
for name; do :; done
case $name in
linux-image-virtual) depends="linux-image-9.9-generic" ;;
linux-image-9.9-generic) depends="kmod, linux-base (>= 4.5), linux-modules-9.9-generic | nothing" ;;
linux-modules-9.9-generic) depends="wireless-regdb" ;;
*) exit 0 ;;
esac
printf 'Package: %s\nVersion: 9.9-1\nDepends: %s\n' "$name" "$depends"
`, 0o755)
	write(t, filepath.Join(dir, "apt-get"), `#!/bin/sh
for package; do :; done
[ "${package#*=}" = 9.9-1 ] && : > "${package%=*}_9.9-1_amd64.deb"
`, 0o755)
	write(t, filepath.Join(dir, "dpkg-deb"), `#!/bin/sh
case $2 in
*linux-image-*) mkdir -p "$3/boot" && : > "$3/boot/vmlinuz-9.9-generic" ;;
*) mkdir -p "$3/lib/modules/9.9-generic" && : > "$3/lib/modules/9.9-generic/modules.builtin" ;;
esac
`, 0o755)
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	return dir
}

func TestKernelIsFetchedOnceAndWhole(t *testing.T) {
	apt, cache := fakeApt(t), filepath.Join(t.TempDir(), "new", "cache")
	osRelease := filepath.Join(apt, "os-release")
	first, err := fetchKernel(context.Background(), osRelease, cache, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "linux-image-9.9-generic_9.9-1_"+runtime.GOARCH)
	want := Kernel{
		Image:      filepath.Join(dir, "boot/vmlinuz-9.9-generic"),
		ModulesDir: filepath.Join(dir, "lib/modules/9.9-generic"),
		Release:    "9.9-generic",
		Arch:       runtime.GOARCH,
	}
	if first != want {
		t.Errorf("got %+v, want %+v", first, want)
	}
	write(t, filepath.Join(apt, "apt-get"), "#!/bin/sh\nexit 1\n", 0o755)
	if again, err := fetchKernel(context.Background(), osRelease, cache, nil); err != nil || again != want {
		t.Errorf("second time: got %+v, %v; want the first's", again, err)
	}
	if left, err := os.ReadDir(cache); err != nil || len(left) != 1 {
		t.Errorf("in the cache: %v, %v; want one kernel", left, err)
	}
}

func TestFetchThatFailsSaysWhatToDoAndLeavesNothing(t *testing.T) {
	tests := []struct{ name, program, script, err string }{
		{"lists are empty", "apt-cache", "echo 'E: No packages found' >&2; exit 100", "apt-get update"},
		{"lists know nothing", "apt-cache", "exit 0", "apt-get update"},
		{"lists are old", "apt-get", "echo 'E: 404' >&2; exit 100", "apt-get update"},
		{"package is broken", "dpkg-deb", "echo 'not an archive' >&2; exit 2", "not an archive"},
		{"no kernel in it", "dpkg-deb", `mkdir -p "$3"`, "0 kernels in it"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			apt, cache := fakeApt(t), t.TempDir()
			write(t, filepath.Join(apt, test.program), "#!/bin/sh\n"+test.script+"\n", 0o755)
			_, err := fetchKernel(context.Background(), filepath.Join(apt, "os-release"), cache, nil)
			if err == nil || !strings.Contains(err.Error(), test.err) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, test.err)
			}
			if left, err := os.ReadDir(cache); err != nil || len(left) != 0 {
				t.Errorf("in the cache: %v, %v; want nothing", left, err)
			}
		})
	}
}
