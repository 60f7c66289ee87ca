// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// aMap's values are {u32 pid; struct {u64 wide; u16 narrow} in}.
func aMap() perCPUMap {
	number := func(size uint32) *btf.Int { return &btf.Int{Size: size} }
	in := &btf.Struct{Size: 16, Members: []btf.Member{
		{Name: "wide", Type: number(8)},
		{Name: "narrow", Type: number(2), Offset: 64},
	}}
	return perCPUMap{Map: &ebpf.Map{}, value: &btf.Struct{Size: 24, Members: []btf.Member{
		{Name: "pid", Type: number(4)},
		{Name: "in", Type: &btf.Typedef{Name: "in", Type: in}, Offset: 64},
	}}}
}

func TestAFieldIsFoundByTheNamesThatLeadToIt(t *testing.T) {
	value := make([]byte, 24)
	binary.NativeEndian.PutUint32(value, 7)
	binary.NativeEndian.PutUint64(value[8:], 1<<40)
	f := fields{of: aMap()}
	for _, test := range []struct {
		path []string
		want uint64
	}{
		{[]string{"pid"}, 7},
		{[]string{"in", "wide"}, 1 << 40},
	} {
		if got := f.findUint(test.path...).uint(value); f.err != nil || got != test.want {
			t.Errorf("%q: wanted %d, got %d, %v", test.path, test.want, got, f.err)
		}
	}
}

func TestAFieldThatIsNotThereIsNamed(t *testing.T) {
	for _, test := range []struct {
		path []string
		want string
	}{
		{[]string{"tid"}, `no ["tid"]`},
		{[]string{"pid", "wide"}, `no ["pid" "wide"]`},
		{[]string{"in", "narrow"}, "2 bytes"},
	} {
		f := fields{of: aMap()}
		f.findUint(test.path...)
		if f.err == nil || !strings.Contains(f.err.Error(), test.want) {
			t.Errorf("%q: wanted an error with %q, got %v", test.path, test.want, f.err)
		}
	}
}
