// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"fmt"
	"strings"

	finder "github.com/inspektor-gadget/inspektor-gadget/pkg/container-hook/runtime-finder"
	client "github.com/inspektor-gadget/inspektor-gadget/pkg/container-utils/runtime-client"
)

// containerRuntime: ig learns of containers by watching the runtime's binary,
// and without one it has no list of containers at all.
func (h Host) containerRuntime() answer {
	const effect = "ig runs with --host only, and events name no container"
	if h.RuntimePath != "" {
		if !h.exists(h.RuntimePath) {
			return missing(fmt.Sprintf("RUNTIME_PATH is %s, which does not exist: %s", h.RuntimePath, effect),
				"unset RUNTIME_PATH, or correct it")
		}
		return found(h.RuntimePath + " (RUNTIME_PATH)")
	}
	// ig's container hook watches conmon besides the finder's list.
	var present []string
	for _, path := range append([]string{"/usr/bin/conmon"}, finder.RuntimePaths...) {
		if h.exists(path) {
			present = append(present, path)
		}
	}
	if present == nil {
		return missing("no runc, crun or conmon where ig looks: "+effect,
			"install runc or crun, or set RUNTIME_PATH to the runtime's binary")
	}
	return found(strings.Join(present, ", "))
}

// containerSockets: from these ig has the names of containers that were started
// before it.
func (h Host) containerSockets() answer {
	var present []string
	for _, path := range []string{
		client.DockerDefaultSocketPath,
		client.ContainerdDefaultSocketPath,
		client.CrioDefaultSocketPath,
		client.PodmanDefaultSocketPath,
	} {
		if h.exists(path) {
			present = append(present, path)
		}
	}
	if present == nil {
		return missing("no docker, containerd, cri-o or podman: containers that already run have no name",
			"start the runtime's service, or give its socket to ig (--docker-socketpath and so on)")
	}
	return found(strings.Join(present, ", "))
}
