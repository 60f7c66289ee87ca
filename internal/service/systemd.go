// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Available says why there can be no service.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("must be run as root: services are the administrator's; try sudo")
	}
	// By that systemd says that it is process 1: see sd_booted(3).
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return errors.New("systemd does not run this machine: run `netgadget run` by its own service manager")
	}
	return nil
}

func systemctl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err == nil {
		return nil
	}
	said, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if said == "" {
		said = err.Error()
	}
	return fmt.Errorf("systemctl %s: %s", strings.Join(args, " "), said)
}

// lastSaid is the last line of the service's own in the journal.
func lastSaid(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=1", "--identifier=netgadget",
		"--unit="+Name).Output()
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(strings.TrimSpace(string(out)), "netgadget: ")
}
