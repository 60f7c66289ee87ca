// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf/btf"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/datasource"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators"
)

// The gadget's programs that the image says not to attach, and what netgadget has them
// attached to: see network_drop() and network_security() in program.bpf.c.
var (
	ofDrops = map[string]string{"network_drop": "kfree_skb"}
	ofCalls = map[string]string{
		"network_security": "security_socket_connect", "network_security_return": "security_socket_connect",
	}
)

// prepareHooks has IG attach the programs that the image says not to attach, where
// what they tell is asked for.
func (o Options) prepareHooks(gadgetCtx operators.GadgetContext) error {
	if !o.asksForOutcomes() {
		return nil
	}
	programs := maps.Clone(ofCalls)
	if o.DropReasons {
		if err := haveDropReasons(); err != nil {
			return err
		}
		maps.Copy(programs, ofDrops)
	}
	config, _ := gadgetCtx.GetVar("config")
	settings, ok := config.(interface{ Set(key string, value any) })
	if !ok {
		return errors.New("no settings of programs: it is another version of Inspektor Gadget")
	}
	for program, hook := range programs {
		settings.Set("programs."+program+".attach_to", hook)
	}
	return nil
}

func haveDropReasons() error {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return fmt.Errorf("reading the kernel's types: %w", err)
	}
	var reasons *btf.Enum
	if err := kernel.TypeByName("skb_drop_reason", &reasons); err != nil {
		return errors.New("--drop-reasons: this kernel has no reasons for a drop; Linux 5.17 and later have")
	}
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
