// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	containercollection "github.com/inspektor-gadget/inspektor-gadget/pkg/container-collection"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/gadgets"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators/localmanager"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/types"
)

// watchNetNSOf attaches the gadget to the network namespace of a process, the
// way in which IG attaches it to a container's.
func watchNetNSOf(gadgetCtx operators.GadgetContext, pid int) error {
	instance, _ := gadgetCtx.GetVar("ebpfInstance")
	attacher, ok := instance.(localmanager.Attacher)
	if !ok {
		return errors.New("this version of Inspektor Gadget cannot watch a network namespace of choice")
	}
	process := &containercollection.Container{
		Runtime: containercollection.RuntimeMetadata{
			BasicRuntimeMetadata: types.BasicRuntimeMetadata{
				ContainerID:  fmt.Sprintf("process %d", pid),
				ContainerPID: uint32(pid),
			},
		},
	}
	if err := attacher.AttachContainer(process); err != nil {
		return fmt.Errorf("watching the network namespace of process %d: %w", pid, err)
	}
	return nil
}

// mountNSFilter is what IG filters containers by, with one mount namespace.
type mountNSFilter struct {
	namespaces *ebpf.Map
}

func newMountNSFilter(inode uint64) (*mountNSFilter, error) {
	// As gadget_mntns_filter_map in IG's gadget/mntns_filter.h.
	namespaces, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "mntns_filter", Type: ebpf.Hash,
		KeySize: 8, ValueSize: 4, MaxEntries: 1024,
	})
	if err != nil {
		return nil, fmt.Errorf("creating the filter by mount namespace: %w", err)
	}
	if err := namespaces.Put(inode, uint32(1)); err != nil {
		return nil, errors.Join(fmt.Errorf("filling the filter by mount namespace: %w", err), namespaces.Close())
	}
	return &mountNSFilter{namespaces: namespaces}, nil
}

func (f *mountNSFilter) use(gadgetCtx operators.GadgetContext) {
	gadgetCtx.SetVar(gadgets.MntNsFilterMapName, f.namespaces)
	gadgetCtx.SetVar(gadgets.FilterByMntNsName, true)
}

func (f *mountNSFilter) close() error {
	if f == nil {
		return nil
	}
	return f.namespaces.Close()
}
