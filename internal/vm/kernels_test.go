// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestKernelTableMakesSense(t *testing.T) {
	seen := map[string]bool{"": true}
	for _, s := range Kernels() {
		if seen[s.Name] {
			t.Errorf("two kernels with the name %q, or none", s.Name)
		}
		seen[s.Name] = true
		if _, err := machineFor(s.Arch); err != nil {
			t.Errorf("kernel %s: %v", s.Name, err)
		}
		if !strings.HasPrefix(s.Package, "linux-image-") || !strings.HasSuffix(s.Package, "-"+s.Arch) || s.Suite == "" {
			t.Errorf("kernel %s: package %q of suite %q, want one of kernels for %s", s.Name, s.Package, s.Suite, s.Arch)
		}
	}
	Kernels()[0].Name = "changed"
	if slices.Contains(kernelNames(), "changed") {
		t.Error("who changes what Kernels returns changes the table")
	}
}

func TestKernelThatIsNotInTheTableIsRefused(t *testing.T) {
	_, err := Fetch(t.Context(), "2.4", t.TempDir(), nil)
	if want := `kernel "2.4" is not known: there are 5.10, 6.1,`; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

// fakeDebian puts programs on the PATH that stand in for apt's on a Debian machine. They work only with a configuration of
// ours, and write what they were asked to dir/log. The archive has the version in dir/archive, the lists that in dir/lists.
func fakeDebian(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	write(t, filepath.Join(dir, "apt-config"), `#!/bin/sh
cat <<'END'
APT::Update::Post-Invoke:: "touch /hooked";
Acquire "";
Acquire::http::Proxy "http://proxy.example:3142";
Acquire::IndexTargets::deb::DEP-11::MetaKey "$(COMPONENT)/dep11/Components-$(NATIVE_ARCHITECTURE).yml";
Dir::Etc "etc/apt";
END
`, 0o755)
	write(t, filepath.Join(dir, "apt-cache"), `#!/bin/sh
test -e "$APT_CONFIG" || exit 9
for name; do :; done
case $name in
linux-image-cloud-amd64) depends="linux-base-cloud-amd64, linux-image-9.9-cloud-amd64 (= 9.9-1)" ;;
linux-image-9.9-cloud-amd64) depends="dracut | linux-initramfs-tool, linux-base-9.9-cloud-amd64, linux-binary-9.9-cloud-amd64" ;;
linux-b*-9.9-cloud-amd64) depends="kmod" ;;
*) exit 0 ;;
esac
printf 'Package: %s\nVersion: %s\nDepends: %s\n' "$name" "$(cat '`+dir+`/lists')" "$depends"
`, 0o755)
	write(t, filepath.Join(dir, "archive"), "9.9-1", 0o644)
	write(t, filepath.Join(dir, "apt-get"), `#!/bin/sh
dir='`+dir+`'
for last; do :; done
case "$*" in
indextargets*"Label: Debian-Security") printf '%s\n' "http://archive.example/security/" "http://second.example/" ;;
indextargets*) echo "http://archive.example/debian/" ;;
update*) test -e "$APT_CONFIG" && cp "$dir/archive" "$dir/lists" && echo update >> "$dir/log" ;;
*download*)
	test -e "$APT_CONFIG" && test "${last#*=}" = "$(cat "$dir/archive")" || exit 100
	echo "${last%=*}" >> "$dir/log" && : > "${last%=*}_${last#*=}_amd64.deb" ;;
esac
`, 0o755)
	write(t, filepath.Join(dir, "dpkg-deb"), `#!/bin/sh
modules=$3/usr/lib/modules/9.9-cloud-amd64
mkdir -p "$modules"
case $2 in
*linux-binary-*) : > "$modules/vmlinuz" ;;
*linux-base-*) : > "$modules/modules.builtin" ;;
esac
`, 0o755)
	write(t, filepath.Join(dir, "keyring.gpg"), "keys", 0o644)
	old := keyrings
	t.Cleanup(func() { keyrings = old })
	keyrings = []string{filepath.Join(dir, "keyring.pgp"), filepath.Join(dir, "keyring.gpg")}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	return dir
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const (
	oldSuite  = "apt/bullseye-security_amd64"
	newSuite  = "apt/trixie-backports_amd64"
	fakeParts = "linux-image-9.9-cloud-amd64\nlinux-base-9.9-cloud-amd64\nlinux-binary-9.9-cloud-amd64\n"
)

func TestNamedKernelIsFetchedOnceWithAnAptOfItsOwn(t *testing.T) {
	debian, cache := fakeDebian(t), t.TempDir()
	dir := filepath.Join(cache, "linux-image-9.9-cloud-amd64_9.9-1_amd64")
	want := Kernel{
		Image:      filepath.Join(dir, "usr/lib/modules/9.9-cloud-amd64/vmlinuz"),
		ModulesDir: filepath.Join(dir, "usr/lib/modules/9.9-cloud-amd64"),
		Release:    "9.9-cloud-amd64",
		Arch:       "amd64",
	}
	for _, name := range []string{"newest", "newest", "5.10"} {
		if k, err := Fetch(t.Context(), name, cache, nil); err != nil || k != want {
			t.Errorf("kernel %s: got %+v, %v; want %+v", name, k, err, want)
		}
	}
	if got, want := read(t, filepath.Join(debian, "log")), "update\n"+fakeParts+"update\n"; got != want {
		t.Errorf("asked of apt-get:\n%swant, for two suites with one kernel:\n%s", got, want)
	}
	for suite, archive := range map[string]string{
		oldSuite: "http://archive.example/security/ bullseye-security",
		newSuite: "http://archive.example/debian/ trixie-backports",
	} {
		want := "deb [arch=amd64 signed-by=" + debian + "/keyring.gpg] " + archive + " main\n"
		if got := read(t, filepath.Join(cache, suite, "sources.list")); got != want {
			t.Errorf("%s: sources\ngot:  %swant: %s", suite, got, want)
		}
	}
	conf := read(t, filepath.Join(cache, newSuite, "apt.conf"))
	for text, want := range map[string]bool{
		`Acquire::http::Proxy "http://proxy.example:3142";`:         true,
		`Dir::State::lists "` + cache + "/" + newSuite + `/lists/"`: true,
		`Dir::Etc::sourceparts "/dev/null";`:                        true,
		"Post-Invoke":                                               false,
		"DEP-11":                                                    false,
		`Dir::Etc "etc/apt";`:                                       false,
	} {
		if strings.Contains(conf, text) != want {
			t.Errorf("configuration has %q: %v, want %v. It is:\n%s", text, !want, want, conf)
		}
	}
}

func TestListsAreRenewedWhenTheyAreOld(t *testing.T) {
	tests := []struct {
		name          string
		old           bool   // the lists are
		lost          bool   // the kernel is, from the cache
		archive       string // "": it cannot be reached
		version, asks string
	}{
		{"lists are new", false, false, "9.9-2", "9.9-1", ""},
		{"lists are old", true, false, "9.9-2", "9.9-2", "update\n" + fakeParts},
		{"lists are old and there is no network", true, false, "", "9.9-1", ""},
		{"lists are new and name what is gone", false, true, "9.9-2", "9.9-2", "update\n" + fakeParts},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			debian, cache := fakeDebian(t), t.TempDir()
			first, err := Fetch(t.Context(), "newest", cache, nil)
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(debian, "log"), "", 0o644)
			write(t, filepath.Join(debian, "archive"), test.archive, 0o644)
			if test.archive == "" {
				err = os.Remove(filepath.Join(debian, "archive"))
			}
			if test.old {
				before := time.Now().Add(-2 * listsAge)
				err = errors.Join(err, os.Chtimes(filepath.Join(cache, newSuite, "updated"), before, before))
			}
			if test.lost {
				err = errors.Join(err, os.RemoveAll(strings.TrimSuffix(first.ModulesDir, "/usr/lib/modules/"+first.Release)))
			}
			if err != nil {
				t.Fatal(err)
			}
			k, err := Fetch(t.Context(), "newest", cache, nil)
			if err != nil || !strings.Contains(k.Image, "_"+test.version+"_") {
				t.Errorf("got %+v, %v; want version %s", k, err, test.version)
			}
			if got := read(t, filepath.Join(debian, "log")); got != test.asks {
				t.Errorf("asked of apt-get: %q, want %q", got, test.asks)
			}
		})
	}
}

func TestNamedKernelThatCannotBeHadSaysWhy(t *testing.T) {
	tests := []struct{ name, program, script, err string }{
		{"not Debian", "apt-get", "exit 0", `this machine's apt has no archive with the label "Debian-Security": only Debian has it`},
		{"no apt", "apt-get", "exec nothing", "apt-get indextargets"},
		{
			"suite is not there", "apt-get", `case $1 in indextargets) echo http://a.example/ ;; *) echo "E: no Release file" >&2; exit 100 ;; esac`,
			"E: no Release file (is the archive reachable, and does it still have the suite?)",
		},
		{"suite lost the kernel", "apt-cache", "exit 0", "apt has no package linux-image-cloud-amd64 (the suite's lists are in "},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			debian, cache := fakeDebian(t), t.TempDir()
			write(t, filepath.Join(debian, test.program), "#!/bin/sh\n"+test.script+"\n", 0o755)
			_, err := Fetch(t.Context(), "5.10", cache, nil)
			const start = "get kernel 5.10 from Debian's suite bullseye-security: "
			if err == nil || !strings.HasPrefix(err.Error(), start) || !strings.Contains(err.Error(), test.err) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line: %s… %s", err, start, test.err)
			}
			if left, err := filepath.Glob(filepath.Join(cache, "[^a]*")); err != nil || len(left) != 0 {
				t.Errorf("in the cache: %v, %v; want no kernel", left, err)
			}
		})
	}
	t.Run("no keys", func(t *testing.T) {
		fakeDebian(t)
		keyrings = []string{filepath.Join(t.TempDir(), "none")}
		if _, err := Fetch(t.Context(), "5.10", t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "install package debian-archive-keyring") {
			t.Errorf("got %v, want the package with the keys", err)
		}
	})
}

func TestSuiteIsOpenedByOneAtATime(t *testing.T) {
	dir := t.TempDir()
	first, err := openSuite(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := openSuite(canceled, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("while it is open: got %v, want an error that is %v", err, context.Canceled)
	}
	second := make(chan error)
	go func() {
		s, err := openSuite(t.Context(), dir)
		if err == nil {
			err = s.Close()
		}
		second <- err
	}()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Errorf("after it was closed: %v", err)
	}
}

// TestOldestKernelComesFromTheArchive is the one test here that needs Debian's archive, and it only once a day.
func TestOldestKernelComesFromTheArchive(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("gets a kernel from Debian's archive: not with -short")
	}
	dir, err := DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	k, err := Fetch(limit(t, bootLimit), "5.10", dir, os.Stderr)
	if errors.Is(err, errNoArchive) {
		t.Skip(err)
	}
	if err != nil || !strings.HasPrefix(k.Release, "5.10.") {
		t.Errorf("got %+v, %v; want a release 5.10", k, err)
	}
}
