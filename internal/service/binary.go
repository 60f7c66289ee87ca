// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// away are folders whose content a service does not see (ProtectHome=, PrivateTmp=), or that do not last.
var away = []string{"/home", "/root", "/run", "/tmp", "/var/tmp", "/dev", "/proc"}

// trusted says why root must not run a program at every boot: somebody else can change it, or it will be gone.
func trusted(binary string) error {
	const fix = "; install it first: install -m 0755 %s /usr/local/bin/netgadget, and run that one"
	for _, dir := range away {
		if strings.HasPrefix(binary, dir+"/") {
			return fmt.Errorf("the service would run %s, and a service has no %s"+fix, binary, dir, binary)
		}
	}
	for path := binary; ; path = filepath.Dir(path) {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || stat.Uid != 0 || info.Mode().Perm()&0o022 != 0 {
			return fmt.Errorf("the service would run %s as root, and others than root can change %s"+fix, binary, path, binary)
		}
		if path == filepath.Dir(path) {
			return nil
		}
	}
}

// Self is this program's path, without symbolic links.
func Self() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}
