// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// aMap's values are {u32 pid; u64 wide; u16 narrow}.
func aMap() gadgetMap {
	number := func(size uint32) *btf.Int { return &btf.Int{Size: size} }
	return gadgetMap{Map: &ebpf.Map{}, value: &btf.Struct{Size: 24, Members: []btf.Member{
		{Name: "pid", Type: number(4)},
		{Name: "wide", Type: &btf.Typedef{Name: "u64", Type: number(8)}, Offset: 64},
		{Name: "narrow", Type: number(2), Offset: 128},
	}}}
}

func TestANumberIsFoundByItsName(t *testing.T) {
	value := make([]byte, 24)
	binary.NativeEndian.PutUint32(value, 7)
	binary.NativeEndian.PutUint64(value[8:], 1<<40)
	for name, want := range map[string]uint64{"pid": 7, "wide": 1 << 40} {
		f := fields{of: aMap()}
		if got := f.find(name).uint(value); f.err != nil || got != want {
			t.Errorf("%q: wanted %d, got %d, %v", name, want, got, f.err)
		}
	}
}

func TestAFieldThatIsNotThereIsNamed(t *testing.T) {
	for name, want := range map[string]string{"tid": `no "tid"`, "narrow": "2 bytes"} {
		f := fields{of: aMap()}
		f.find(name)
		if f.err == nil || !strings.Contains(f.err.Error(), want) {
			t.Errorf("%q: wanted an error with %q, got %v", name, want, f.err)
		}
	}
}
