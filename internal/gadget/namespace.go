// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"errors"
	"fmt"

	containercollection "github.com/inspektor-gadget/inspektor-gadget/pkg/container-collection"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators/localmanager"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/types"
)

// attacherVar is where IG's operators find what attaches the gadget.
const attacherVar = "ebpfInstance"

// watchNetNSOf attaches the gadget to the network namespaces of processes, the
// way in which IG attaches it to a container's.
func watchNetNSOf(gadgetCtx operators.GadgetContext, pids []int) error {
	if len(pids) == 0 {
		return nil
	}
	instance, _ := gadgetCtx.GetVar(attacherVar)
	attacher, ok := instance.(localmanager.Attacher)
	if !ok {
		return errors.New("this version of Inspektor Gadget cannot watch a network namespace of choice")
	}
	for _, pid := range pids {
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
	}
	return nil
}
