// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf"
	containercollection "github.com/inspektor-gadget/inspektor-gadget/pkg/container-collection"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators"

	"gadget.example/network/internal/tap"
)

// whose namespaces are told of when they are entered: enum whose of ebpf/enter.h.
type whose uint32

const (
	thoseOfFollowed whose = iota + 1
	everybodys
)

// entering is struct entering of ebpf/enter.h.
type entering struct {
	whose whose
	but   [2]uint32 // process IDs
}

// namespaces attaches the gadget to network namespaces, in place of IG, which is
// too late for those that a process enters.
type namespaces struct {
	tap      *tap.Tap
	programs tapPrograms
}

// noAttacher has IG attach the gadget to no namespace.
type noAttacher struct{}

func (noAttacher) AttachContainer(*containercollection.Container) error { return nil }
func (noAttacher) DetachContainer(*containercollection.Container) error { return nil }

// newNamespaces attaches to the namespaces of files, and to all that are entered
// from now on, whose they may be; everybody's, then also to those that there are.
func newNamespaces(gadgetCtx operators.GadgetContext, files []string, whose whose) (n *namespaces, err error) {
	n = &namespaces{}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	maps := map[string]*ebpf.Map{}
	for _, name := range []string{"events", "entered", "entering", "watched"} {
		if maps[name], err = loadedMap(gadgetCtx, name); err != nil {
			return n, err
		}
	}
	if n.programs, err = newTapPrograms(maps["events"], maps["watched"]); err != nil {
		return n, fmt.Errorf("preparing to watch network namespaces: %w", err)
	}
	n.tap, err = tap.Start(tap.Config{
		Filter: n.programs.dispatch.FD(), Mark: n.programs.mark.FD(), Count: n.programs.count.FD(),
		Entered: maps["entered"].FD(), Watched: maps["watched"].FD(),
	})
	if err != nil {
		return n, err
	}
	if reason := n.tap.Unprivileged; reason != nil {
		gadgetCtx.Logger().Debugf("a process can be in a new network namespace before it is watched: %v", reason)
	}
	value := entering{whose, [2]uint32{uint32(os.Getpid()), uint32(n.tap.PID())}}
	if err = maps["entering"].Put(uint32(0), value); err != nil {
		return n, fmt.Errorf("asking for the network namespaces that are entered: %w", err)
	}
	return n, n.attach(files, whose == everybodys)
}

func loadedMap(gadgetCtx operators.GadgetContext, name string) (*ebpf.Map, error) {
	v, _ := gadgetCtx.GetVar(operators.MapPrefix + name)
	m, ok := v.(*ebpf.Map)
	if !ok {
		return nil, fmt.Errorf("the gadget has no map %q: it is another gadget, or an older one", name)
	}
	return m, nil
}

func (n *namespaces) attach(files []string, all bool) error {
	for _, file := range files {
		if err := n.tap.Attach(file); err != nil {
			return fmt.Errorf("watching the network namespace %s: %w", file, err)
		}
	}
	if !all {
		return nil
	}
	found, err := allNetNS()
	if err != nil {
		return fmt.Errorf("looking for network namespaces: %w", err)
	}
	for _, file := range found {
		// What has gone meanwhile is no loss.
		if err := n.tap.Attach(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue
		}
	}
	return nil
}

// late is how many times a process was in a namespace before that was watched.
func (n *namespaces) late() (uint64, error) {
	if n == nil {
		return 0, nil
	}
	return n.tap.Late()
}

func (n *namespaces) close() error {
	if n == nil {
		return nil
	}
	var err error
	if n.tap != nil {
		err = n.tap.Close()
	}
	return errors.Join(err, n.programs.close())
}

// netNSDir is where `ip netns` keeps network namespaces by name.
const netNSDir = "/run/netns"

// AllNetNS stands for every network namespace among Options.NetNS.
const AllNetNS = "all"

// Enters is whether network namespaces are watched from the moment that somebody enters them.
func (o Options) Enters() bool { return o.followed() != "" || len(o.NetNS) > 0 }

// netNSFiles are the files of the namespaces to watch where it is not IG that
// watches them: when these were asked for, or somebody is followed, who can go to
// others. Else nil.
func (o Options) netNSFiles() (files []string, err error) {
	pid := o.followed()
	if pid == "" && len(o.NetNS) == 0 {
		return nil, nil
	}
	files = []string{}
	if pid != "" {
		files = append(files, "/proc/1/ns/net", processNetNS(os.Getpid()), "/proc/"+pid+"/ns/net")
	}
	for _, process := range o.NetNSOf {
		files = append(files, processNetNS(process))
	}
	for _, asked := range o.NetNS {
		if asked == AllNetNS {
			continue
		}
		file, err := netNSFile(asked)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

func processNetNS(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }
