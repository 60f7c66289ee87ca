// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

const initPackage = "gadget.example/network/internal/vm/init"

// inits holds the init of each architecture once it is built.
var inits = struct {
	sync.Mutex
	byArch map[string][]byte
}{byArch: map[string][]byte{}}

// readInit returns the guest's PID 1, built with the go command unless the caller brings one.
func readInit(ctx context.Context, c Config) ([]byte, error) {
	if c.Init != "" {
		return os.ReadFile(c.Init)
	}
	inits.Lock()
	defer inits.Unlock()
	if b, ok := inits.byArch[c.Kernel.Arch]; ok {
		return b, nil
	}
	b, err := buildInit(ctx, c.Kernel.Arch)
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", initPackage, err)
	}
	inits.byArch[c.Kernel.Arch] = b
	return b, nil
}

func buildInit(ctx context.Context, arch string) (b []byte, err error) {
	dir, err := os.MkdirTemp("", "vm-init-*")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	out := filepath.Join(dir, "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, initPackage)
	// A go command that is killed leaves its temporary files: in ours.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOTMPDIR="+dir)
	if said, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(string(said)))
	}
	return os.ReadFile(out)
}
