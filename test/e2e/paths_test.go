// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gadget.example/network/internal/gadget"
	"gadget.example/network/test/e2e/attempt"
)

// paths are what an event says of files.
type paths struct{ exe, cwd string }

// pathsOf are those of a process now, as the kernel tells them.
func pathsOf(t *testing.T, a *agent) paths {
	t.Helper()
	var p paths
	var err error
	for link, to := range map[string]*string{"exe": &p.exe, "cwd": &p.cwd} {
		if *to, err = os.Readlink(filepath.Join("/proc", fmt.Sprint(a.pid), link)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// deepDir makes a folder whose path has so many bytes, at least.
func deepDir(t *testing.T, length int) string {
	t.Helper()
	dir := openDir(t)
	for len(dir) < length {
		dir = filepath.Join(dir, strings.Repeat("d", 100))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// pathsPlay has a server open a port in one folder and go to serve in another one, and a
// caller call it by TCP and UDP. It returns the paths that are to be seen of
// each, by who is named: caller and server.
func pathsPlay(t *testing.T, caller, server *agent) map[string]paths {
	t.Helper()
	tcp, udp := newPort(attempt.TCP), newPort(attempt.UDP)
	chdir := func(a *agent, dir string) paths {
		a.do(t, attempt.Request{Steps: []attempt.Step{{Do: attempt.Chdir, Dir: dir}}})
		return pathsOf(t, a)
	}
	chdir(server, openDir(t))
	server.do(t, attempt.Request{Steps: []attempt.Step{
		{Do: attempt.Listen, Protocol: attempt.TCP, Src: at(anyHost(4), tcp), Socket: "tcp"},
		{Do: attempt.Open, Protocol: attempt.UDP, Src: at(anyHost(4), udp), Socket: "udp"},
	}})
	serves := chdir(server, "/")

	called := chdir(caller, openDir(t))
	caller.do(t, attempt.Request{Steps: []attempt.Step{
		{Do: attempt.Call, Protocol: attempt.TCP, Dst: at(overLoopback.address(4, 1), tcp)},
		{Do: attempt.Call, Protocol: attempt.UDP, Dst: at(overLoopback.address(4, 1), udp)},
		{Do: attempt.Chdir, Dir: deepDir(t, 600)}, // longer than an event has room for
		{Do: attempt.Call, Protocol: attempt.TCP, Dst: at(overLoopback.address(4, 1), tcp)},
		{Do: attempt.Chdir, Dir: "/"},
		{Do: attempt.Call, Protocol: attempt.TCP, Dst: at(overLoopback.address(4, 1), tcp)},
	}})
	return map[string]paths{"server": serves, "caller": called}
}

func TestPathsAreThoseOfWhoConnectsAndWhoServes(t *testing.T) {
	ns := newNamespace(t, "left")
	ns.address(t, "lo", overLoopback.prefix(4, 1))
	caller := startAgent(t, ns, agentOptions{name: "caller"})
	server := startAgent(t, ns, agentOptions{name: "server"})

	for _, on := range []string{"true", "false"} {
		t.Run("paths="+on, func(t *testing.T) {
			var wanted map[string]paths
			var events []gadget.Event
			o := gadget.Options{
				NetNSOf: []int{caller.pid}, Params: map[string]string{"paths": on},
				OnEvent: func(e gadget.Event) { events = append(events, e) },
			}
			if err := runWith(t, o, func() { wanted = pathsPlay(t, caller, server) }); err != nil {
				t.Fatal(err)
			}
			server, caller := wanted["server"], wanted["caller"]
			for comm, want := range map[string][]paths{
				"server": {server, server, server, server},
				"caller": {caller, caller, {exe: caller.exe}, {exe: caller.exe, cwd: "/"}},
			} {
				if on == "false" {
					want = make([]paths, len(want))
				}
				if got := pathsIn(events, comm); !slices.Equal(got, want) {
					t.Errorf("paths of %s:\n got %q\nwant %q", comm, got, want)
				}
			}
		})
	}
}

// pathsIn are the paths in the events that name a process, in the order of time.
func pathsIn(events []gadget.Event, comm string) (all []paths) {
	slices.SortFunc(events, func(a, b gadget.Event) int { return a.Time.Compare(b.Time) })
	for _, e := range events {
		if e.Proc.Comm == comm {
			all = append(all, paths{e.ExePath, e.Cwd})
		}
	}
	return all
}
