// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// listsAge is how old a suite's lists may be: the archive renews its own a few times a day.
const listsAge = 24 * time.Hour

// keyrings are where package debian-archive-keyring has the keys of the archive, newer Debian first.
var keyrings = []string{
	"/usr/share/keyrings/debian-archive-keyring.pgp",
	"/usr/share/keyrings/debian-archive-keyring.gpg",
}

// errNoArchive is about machines that are not Debian's, such as Ubuntu's.
var errNoArchive = errors.New("this machine's apt has no archive with the label")

// suite is an apt of its own, with one suite of Debian's: its lists, its state and its configuration are in one folder.
// It is locked while it is open, as apt's programs do not wait for each other.
type suite struct {
	dir  string
	lock *os.File
}

// openSuite waits until no other process or goroutine has the folder open.
func openSuite(ctx context.Context, dir string) (*suite, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return &suite{dir: dir, lock: f}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for who else uses %s: %w", dir, ctx.Err()), f.Close())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Close lets others open the folder.
func (s *suite) Close() error { return s.lock.Close() }

// apt works with the suite's lists.
func (s *suite) apt() apt {
	return apt{env: []string{"APT_CONFIG=" + s.path("apt.conf")}, hint: "the suite's lists are in " + s.dir}
}

func (s *suite) path(name string) string { return filepath.Join(s.dir, name) }

// renew updates the lists if they are old, and says if it tried. That it failed does not matter while there are lists:
// what they name is in the cache, or its download fails.
func (s *suite) renew(ctx context.Context, spec KernelSpec, progress io.Writer) (tried bool, err error) {
	info, missing := os.Stat(s.path("updated"))
	if missing == nil && time.Since(info.ModTime()) < listsAge {
		return false, nil
	}
	err = s.update(ctx, spec, progress)
	if err == nil || missing != nil || ctx.Err() != nil {
		return true, err
	}
	if progress != nil {
		fmt.Fprintf(progress, "The lists of %s stay as they are: %v\n", spec.Suite, err)
	}
	return true, nil
}

// update gets the suite's lists from the archive, which apt checks against the archive's signature.
func (s *suite) update(ctx context.Context, spec KernelSpec, progress io.Writer) error {
	if err := s.configure(ctx, spec); err != nil {
		return err
	}
	// Without the error mode, an archive that cannot be reached is a warning.
	if _, err := command(ctx, "", s.apt().env, progress, "apt-get", "update", "-o", "APT::Update::Error-Mode=any"); err != nil {
		return fmt.Errorf("%w (is the archive reachable, and does it still have the suite?)", err)
	}
	return os.WriteFile(s.path("updated"), nil, 0o644)
}

// configure writes the configuration: the machine's own way to its archive, and nothing else of the machine's (its hooks
// and its pins are about its own packages).
func (s *suite) configure(ctx context.Context, spec KernelSpec) error {
	archive, err := debianArchive(ctx, spec.Suite)
	if err != nil {
		return err
	}
	keyring, err := findKeyring()
	if err != nil {
		return err
	}
	acquire, err := acquireOptions(ctx)
	if err != nil {
		return err
	}
	for _, dir := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(s.path(dir), 0o755); err != nil {
			return err
		}
	}
	source := fmt.Sprintf("deb [arch=%s signed-by=%s] %s %s main\n", spec.Arch, keyring, archive, spec.Suite)
	return errors.Join(
		os.WriteFile(s.path("sources.list"), []byte(source), 0o644),
		os.WriteFile(s.path("apt.conf"), []byte(acquire+s.options(spec.Arch)), 0o644),
	)
}

// options are the paths and all else in which this apt is not the machine's (apt.conf(5) has the names). Packages are
// downloaded as root where the caller is: apt's own download user cannot write below a user's folder.
func (s *suite) options(arch string) string {
	return fmt.Sprintf(`APT::Architecture "%s";
APT::Architectures { "%s"; };
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Dir::State "%s";
Dir::State::status "/dev/null";
Dir::State::lists "%s/";
Dir::Cache "%s";
Dir::Cache::archives "%s/";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "%s";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
`, arch, arch, s.dir, s.path("lists"), s.dir, s.path("archives"), s.path("sources.list"))
}

// debianArchive is where the machine's apt gets Debian's packages, or its security updates if the suite is one of those.
func debianArchive(ctx context.Context, suite string) (string, error) {
	label := "Debian"
	if strings.HasSuffix(suite, "-security") {
		label = "Debian-Security"
	}
	out, err := command(ctx, "", nil, nil, "apt-get", "indextargets", "--format", "$(REPO_URI)",
		"Created-By: Packages", "Origin: Debian", "Label: "+label)
	if err != nil {
		return "", err
	}
	for uri := range strings.Lines(string(out)) {
		if uri = strings.TrimSpace(uri); uri != "" {
			return uri, nil
		}
	}
	return "", fmt.Errorf("%w %q: only Debian has it (on Debian: is it in apt's sources, and did apt-get update run?)",
		errNoArchive, label)
}

func findKeyring() (string, error) {
	for _, k := range keyrings {
		if _, err := os.Stat(k); err == nil {
			return k, nil
		}
	}
	return "", fmt.Errorf("no keys to check Debian's archive with (%s): install package debian-archive-keyring", keyrings[0])
}

// acquireOptions are the machine's settings of how files are got: proxies, certificates, time-outs.
func acquireOptions(ctx context.Context) (string, error) {
	out, err := command(ctx, "", nil, nil, "apt-config", "dump")
	if err != nil {
		return "", err
	}
	var options strings.Builder
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "Acquire::") && !strings.HasPrefix(line, "Acquire::IndexTargets") {
			options.WriteString(line)
		}
	}
	return options.String(), nil
}
