// SPDX-License-Identifier: Apache-2.0

package service

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheUnitRunsWhatIsAskedFor(t *testing.T) {
	u := Unit{
		Binary: "/usr/local/bin/netgadget", Args: []string{"--lifecycle", "--filter", `proc.comm!=100% $HOME "a\b"` + "\n"},
		Capabilities: []string{"CAP_NET_RAW", "CAP_SYS_ADMIN"},
	}
	text := u.String()
	for _, want := range []string{
		`ExecStart="/usr/local/bin/netgadget" run "--lifecycle" "--filter" "proc.comm!=100%% $$HOME \"a\\b\"\x0a"`,
		"CapabilityBoundingSet=CAP_NET_RAW CAP_SYS_ADMIN",
		"RestrictRealtime=yes",
		"[Install]",
	} {
		if !strings.Contains("\n"+text, "\n"+want+"\n") {
			t.Errorf("wanted the line %s in\n%s", want, text)
		}
	}
	if !isOwn(text) {
		t.Errorf("wanted to know the unit as one of ours:\n%s", text)
	}
	u.Realtime = true
	if strings.Contains(u.String(), "RestrictRealtime") {
		t.Error("wanted real-time priority to be allowed where it is taken")
	}
}

func TestWhoCanBeChangedByOthersIsNotTrusted(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "netgadget")
	if err := os.WriteFile(binary, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := trusted(binary); err == nil || !strings.Contains(err.Error(), "install it first: install -m 0755 "+binary+" /usr/local/bin/netgadget") {
		t.Errorf("wanted what is in a temporary folder to be refused, got %v", err)
	}
	if err := trusted("/bin/sh"); err != nil {
		t.Errorf("wanted a program of the system's to be trusted, got %v", err)
	}
}
