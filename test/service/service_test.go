// SPDX-License-Identifier: Apache-2.0

package service

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"gadget.example/network/test/e2e/attempt"
)

const (
	unit     = "netgadget.service"
	unitFile = "/etc/systemd/system/" + unit
)

// The service's exposure as README.md states it, and as systemd-analyze of Debian bookworm rates it, from 0 to 10: as it is, with
// --netns all, and that of a service that does nothing about it.
const (
	exposed         = 3.1
	exposedEntering = 3.5
	exposedWithout  = 9.6
)

// ofUnits are folders in which there are units.
var ofUnits = []string{"/etc", "/run/systemd/system"}

// needsGuest skips what is for the guest alone.
func needsGuest(t *testing.T) {
	t.Helper()
	if os.Getenv(inGuest) == "" {
		t.Skip("needs a guest: E2E_KERNEL names its kernel")
	}
	booted(t)
}

func show(t *testing.T, property string) string {
	t.Helper()
	return do(t, "systemctl", "show", "--property="+property, "--value", unit)
}

func wantState(t *testing.T, active, enabled string) {
	t.Helper()
	got := show(t, "ActiveState") + ", " + show(t, "UnitFileState")
	if wanted := active + ", " + enabled; got != wanted {
		t.Errorf("wanted the service %s, got %s", wanted, got)
	}
}

// TestTheServiceReportsToTheJournal installs it, and takes it back: see each step.
func TestTheServiceReportsToTheJournal(t *testing.T) {
	needsGuest(t)
	before := tree(t, places)
	caller, server := startPair(t, 1001, false)
	older, olderServer := startPair(t, 1003, true)

	said := do(t, "netgadget", "install", "--now", "--", "--lifecycle")
	if !strings.Contains(said, "wrote "+unitFile+", enabled and running") {
		t.Errorf("install said %q", said)
	}
	wantState(t, "active", "enabled")

	t.Run("each event is a line of the journal", func(t *testing.T) {
		wantTold(t, caller, server)
	})
	t.Run("a restart goes on", func(t *testing.T) {
		wantTold(t, caller, server)
	})
	t.Run("it is started again when it has died", func(t *testing.T) {
		pid := show(t, "MainPID")
		do(t, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", unit)
		await(t, "another start", func() (bool, error) {
			return show(t, "MainPID") != pid && show(t, "ActiveState") == "active", nil
		})
		wantTold(t, caller, server)
	})
	t.Run("installed again as it is, it goes on", func(t *testing.T) {
		pid := show(t, "MainPID")
		said := do(t, "netgadget", "install", "--now", "--", "--lifecycle")
		if show(t, "MainPID") != pid || !strings.Contains(said, unitFile+" is as it was") {
			t.Errorf("wanted it as it was, install said %q", said)
		}
	})
	t.Run("systemd rates it", func(t *testing.T) {
		wantExposure(t, exposed)
	})
	t.Run("it watches other namespaces when it is asked to", func(t *testing.T) {
		do(t, "netgadget", "install", "--now", "--", "--lifecycle", "--netns", "all", "--filter", "proc.comm!=100% $HOME \"quoted\"")
		younger, youngerServer := startPair(t, 1005, true)
		fourth := show(t, "InvocationID")
		truth := talk(t, caller, server)
		truth = append(truth, talk(t, older, olderServer)...)
		truth = append(truth, talk(t, younger, youngerServer)...)
		wantExposure(t, exposedEntering)
		told(t, fourth, len(truth))
		do(t, "systemctl", "stop", unit)
		compare(t, journal(t, fourth), truth)
		wantState(t, "inactive", "enabled")
	})

	if said := do(t, "netgadget", "uninstall"); said != "removed "+unitFile {
		t.Errorf("uninstall said %q", said)
	}
	if said := do(t, "netgadget", "uninstall"); !strings.Contains(said, "nothing to remove") {
		t.Errorf("a second uninstall said %q", said)
	}
	wantSame(t, places, before)
}

// wantExposure wants the stated number: it is the same for each unit of a version of systemd.
func wantExposure(t *testing.T, stated float64) {
	t.Helper()
	report := do(t, "systemd-analyze", "security", "--no-pager", unit)
	overall := regexp.MustCompile(`Overall exposure level for netgadget.service: ([0-9.]+)`).FindStringSubmatch(report)
	if overall == nil {
		t.Fatalf("no overall exposure level in\n%s", report)
	}
	if exposure, err := strconv.ParseFloat(overall[1], 64); err != nil || exposure != stated {
		t.Errorf("wanted an exposure of %.1f, got %s, %v\n%s", stated, overall[1], err, report)
	}
}

// TestInstallWithoutNowIsForTheNextBoot, and uninstall stops what was started since.
func TestInstallWithoutNowIsForTheNextBoot(t *testing.T) {
	needsGuest(t)
	before := tree(t, places)
	do(t, "netgadget", "install")
	wantState(t, "inactive", "enabled")
	do(t, "systemctl", "start", unit)
	pid := show(t, "MainPID")
	do(t, "netgadget", "uninstall")
	if _, err := os.Stat(filepath.Join("/proc", pid)); err == nil {
		t.Errorf("process %s of the service is still there", pid)
	}
	wantSame(t, places, before)
}

// TestAMistakeIsToldAndChangesNothing: one line, status 1, and the system is as it was.
func TestAMistakeIsToldAndChangesNothing(t *testing.T) {
	needsGuest(t)
	untouched := tree(t, places)
	const (
		loose  = "/usr/local/bin/loose"
		staged = "/tmp/netgadget"
		users  = "/opt/users/netgadget"
	)
	for _, path := range []string{loose, staged, users} {
		do(t, "mkdir", "-p", filepath.Dir(path))
		do(t, "cp", installed, path)
	}
	do(t, "chmod", "g+w", loose)
	do(t, "chown", "1000", filepath.Dir(users))
	for name, test := range map[string]struct {
		uid     uint32
		unit    string // there before
		command []string
		say     string
	}{
		"a wrong value":       {command: []string{installed, "install", "--", "--port", "70000"}, say: `^netgadget: --port 70000: at most 65535$`},
		"a contradiction":     {command: []string{installed, "install", "--", "--tcp-only", "--udp-only"}, say: `^netgadget: --tcp-only and --udp-only exclude each other`},
		"no such namespace":   {command: []string{installed, "install", "--", "--netns", "nosuch"}, say: `^netgadget: --netns nosuch: /run/netns has no`},
		"a command":           {command: []string{installed, "install", "--", "--", "true"}, say: `^netgadget: a service watches the host, not a COMMAND`},
		"another image":       {command: []string{installed, "install", "--", "--image", "other"}, say: `^netgadget: --image, --image-file: the service runs the image`},
		"flags without --":    {command: []string{installed, "install", "--lifecycle"}, say: "^netgadget: unknown flag: --lifecycle; the flags of `netgadget run` follow --$"},
		"a word":              {command: []string{installed, "install", "word"}, say: `^netgadget: what does "word" mean\? `},
		"fails to start":      {command: []string{installed, "install", "--now", "--", "--filter", "nosuch==1"}, say: `^netgadget: the service does not start: .*nosuch`},
		"not root":            {uid: 1000, command: []string{installed, "install"}, say: `^netgadget: must be run as root`},
		"uninstall, not root": {uid: 1000, command: []string{installed, "uninstall"}, say: `^netgadget: must be run as root`},
		"writable by a group": {command: []string{loose, "install"}, say: `^netgadget: the service would run ` + loose + ` as root, and others than root can change ` + loose + `; install it first: install -m 0755`},
		"in a user's folder":  {command: []string{users, "install"}, say: `others than root can change /opt/users; install it first`},
		"in /tmp":             {command: []string{staged, "install"}, say: `^netgadget: the service would run ` + staged + `, and a service has no /tmp; install it first`},
		"somebody else's unit": {
			unit: "[Service]\nExecStart=/bin/true\n", command: []string{installed, "install"}, say: `was not written by netgadget: remove it, or give --force`,
		},
		"uninstall, somebody else's unit": {
			unit: "[Service]\nExecStart=/bin/true\n", command: []string{installed, "uninstall"}, say: `was not written by netgadget: remove it yourself, or give --force`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if test.unit != "" {
				if err := os.WriteFile(systemRoot+unitFile, []byte(test.unit), 0o644); err != nil {
					t.Fatal(err)
				}
				defer os.Remove(systemRoot + unitFile)
				do(t, "systemctl", "daemon-reload")
			}
			before := tree(t, ofUnits)
			cmd := inSystem(test.command[0], test.command[1:]...)
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: test.uid, Gid: test.uid}
			out, err := cmd.CombinedOutput()
			said := strings.TrimSpace(string(out))
			if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 || !regexp.MustCompile(test.say).MatchString(said) || strings.Contains(said, "\n") {
				t.Errorf("wanted status 1 and one line that matches %q, got %v\n%s", test.say, err, said)
			}
			wantSame(t, ofUnits, before)
		})
	}
	do(t, "rm", "-r", loose, staged, filepath.Dir(users))
	wantSame(t, places, untouched)
}

// TestForceReplacesSomebodyElsesUnit, which uninstall then takes for its own.
func TestForceReplacesSomebodyElsesUnit(t *testing.T) {
	needsGuest(t)
	before := tree(t, places)
	if err := os.WriteFile(systemRoot+unitFile, []byte("[Service]\nExecStart=/bin/true\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	do(t, "systemctl", "daemon-reload")
	wantExposure(t, exposedWithout)
	do(t, "netgadget", "install", "--force")
	do(t, "netgadget", "uninstall")
	wantSame(t, places, before)
}

// TestWithoutSystemdItIsTold where nothing says that systemd is there.
func TestWithoutSystemdItIsTold(t *testing.T) {
	needsGuest(t)
	for _, name := range []string{"install", "uninstall"} {
		cmd := inSystem("unshare", "-m", "sh", "-c", "mount -t tmpfs none /run && exec netgadget "+name)
		out, err := cmd.CombinedOutput()
		if said := strings.TrimSpace(string(out)); err == nil || !strings.HasPrefix(said, "netgadget: systemd does not run this machine") || strings.Contains(said, "\n") {
			t.Errorf("%s: wanted one line about systemd, got %v\n%s", name, err, said)
		}
	}
}

// wantTold has a caller talk, ends the run of the service, and compares the journal of that run with what was said.
func wantTold(t *testing.T, caller *agent, server attempt.Process) {
	t.Helper()
	invocation := show(t, "InvocationID")
	truth := talk(t, caller, server)
	told(t, invocation, len(truth))
	do(t, "systemctl", "restart", unit)
	compare(t, journal(t, invocation), truth)
}
