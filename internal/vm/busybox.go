// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

const busyboxPath = "/bin/busybox"

// Busybox gives a guest a shell and the usual commands: this machine's static busybox as /bin/busybox, and links to it by
// the names of all its applets, /bin/sh among them. They come last in Config.Files if the caller's own are to win.
func Busybox() ([]File, error) {
	host, err := findBusybox()
	if err != nil {
		return nil, err
	}
	loader, err := interpreter(host)
	if err != nil {
		return nil, err
	}
	if loader != "" {
		return nil, fmt.Errorf("%s is dynamically linked: install a static one (Debian, Ubuntu: apt-get install busybox-static)", host)
	}
	links, err := applets(host)
	return append([]File{{Guest: busyboxPath, Host: host}}, links...), err
}

func findBusybox() (string, error) {
	host, err := exec.LookPath("busybox")
	if err != nil {
		return "", errors.New("busybox not found: install it (Debian, Ubuntu: apt-get install busybox-static)")
	}
	return host, nil
}

// applets are links to busybox by the names of all its applets, which this machine's busybox lists.
func applets(host string) ([]File, error) {
	out, err := exec.Command(host, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list-full: %w", host, err)
	}
	files := []File{{Guest: "/bin/sh", Link: busyboxPath}}
	for applet := range strings.FieldsSeq(string(out)) {
		if p := "/" + applet; p != busyboxPath && p != "/bin/sh" {
			files = append(files, File{Guest: p, Link: busyboxPath})
		}
	}
	return files, nil
}
