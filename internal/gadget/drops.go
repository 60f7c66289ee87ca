// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/btf"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/datasource"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators"
)

// What the gadget's program for dropped packets is attached to: see network_drop()
// in program.bpf.c.
const (
	dropProgram    = "programs.network_drop.attach_to"
	dropTracepoint = "kfree_skb"
)

// prepareDropReasons has IG attach the program that the image says not to attach.
func (o Options) prepareDropReasons(gadgetCtx operators.GadgetContext) error {
	if !o.DropReasons {
		return nil
	}
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return fmt.Errorf("reading the kernel's types: %w", err)
	}
	var reasons *btf.Enum
	if err := kernel.TypeByName("skb_drop_reason", &reasons); err != nil {
		return errors.New("--drop-reasons: this kernel has no reasons for a drop; Linux 5.17 and later have")
	}
	config, _ := gadgetCtx.GetVar("config")
	settings, ok := config.(interface{ Set(key string, value any) })
	if !ok {
		return errors.New("--drop-reasons: Inspektor Gadget keeps no settings of its programs")
	}
	settings.Set(dropProgram, dropTracepoint)
	return nil
}

// emptyDrop has the reason be empty where nothing was dropped: the kernel has a name
// for that as well, SKB_NOT_DROPPED_YET.
func emptyDrop(ds datasource.DataSource) error {
	raw, shown := ds.GetField("drop_raw"), ds.GetField("drop")
	if raw == nil || shown == nil {
		return nil
	}
	return ds.Subscribe(func(_ datasource.DataSource, data datasource.Data) error {
		reason, err := raw.Uint32(data)
		if err == nil && reason == 0 {
			err = shown.PutString(data, "")
		}
		return err
	}, priorityLast)
}
