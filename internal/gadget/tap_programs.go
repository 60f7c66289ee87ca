// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// tapPrograms are what namespaces are watched with.
type tapPrograms struct {
	targets  *ebpf.Map     // of dispatch: the gadget's socket filter
	dispatch *ebpf.Program // calls it: itself it is too long for a socket, see sk_filter_charge()
	mark     *ebpf.Program // adds the namespace of its caller to those that are watched
	count    *ebpf.Program // returns how many use one that is watched: see newCount
}

func newTapPrograms(events, watched *ebpf.Map) (p tapPrograms, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	filter, err := findFilter(events)
	if err != nil {
		return p, err
	}
	defer filter.Close()
	p.targets, err = ebpf.NewMap(&ebpf.MapSpec{Name: "filters", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return p, fmt.Errorf("making a map of programs: %w", err)
	}
	if err = p.targets.Put(uint32(0), filter); err != nil {
		return p, fmt.Errorf("filling a map of programs: %w", err)
	}
	if p.dispatch, err = newDispatch(p.targets); err != nil {
		return p, fmt.Errorf("loading the program that calls the filter: %w", err)
	}
	k, err := readNetNSLayout()
	if err != nil {
		return p, err
	}
	if p.mark, err = newMark(watched, k); err != nil {
		return p, fmt.Errorf("loading the program that marks namespaces: %w", err)
	}
	p.count, err = newCount(watched, k)
	if err != nil {
		return p, fmt.Errorf("loading the program that counts users: %w", err)
	}
	return p, nil
}

func (p tapPrograms) close() error {
	return errors.Join(p.targets.Close(), p.dispatch.Close(), p.mark.Close(), p.count.Close())
}

// findFilter finds the gadget's socket filter among all programs: it uses the
// gadget's events.
func findFilter(events *ebpf.Map) (*ebpf.Program, error) {
	info, err := events.Info()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", events, err)
	}
	wanted, _ := info.ID()
	for id, err := ebpf.ProgramGetNextID(0); ; id, err = ebpf.ProgramGetNextID(id) {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errors.New("the gadget has no socket filter: it is another gadget")
		}
		if err != nil {
			return nil, fmt.Errorf("looking for the gadget's socket filter: %w", err)
		}
		program, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // it is gone
		}
		if program.Type() == ebpf.SocketFilter && usesMap(program, wanted) {
			return program, nil
		}
		program.Close()
	}
}

func usesMap(program *ebpf.Program, id ebpf.MapID) bool {
	info, err := program.Info()
	if err != nil {
		return false
	}
	ids, _ := info.MapIDs()
	return slices.Contains(ids, id)
}

func newDispatch(targets *ebpf.Map) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "dispatch",
		Type: ebpf.SocketFilter,
		Instructions: asm.Instructions{
			asm.LoadMapPtr(asm.R2, targets.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
		License: "GPL",
	})
}

// netNSLayout is where the kernel has what leads to a network namespace, in bytes.
type netNSLayout struct {
	nsproxy int32 // in struct task_struct
	netNS   int32 // in struct nsproxy
	inode   int32 // in struct net
	users   int32 // in struct net
}

func readNetNSLayout() (l netNSLayout, err error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return l, fmt.Errorf("reading the kernel's types: %w", err)
	}
	find := func(name string, path ...string) (int32, bool) {
		var s *btf.Struct
		if kernel.TypeByName(name, &s) != nil {
			return 0, false
		}
		return memberOffset(s, path)
	}
	var ok [4]bool
	l.nsproxy, ok[0] = find("task_struct", "nsproxy")
	l.netNS, ok[1] = find("nsproxy", "net_ns")
	l.inode, ok[2] = find("net", "ns", "inum")
	// Before Linux 5.11, from then on, and from 6.18 on.
	for _, path := range [][]string{{"count"}, {"ns", "count"}, {"ns", "__ns_ref"}} {
		if !ok[3] {
			l.users, ok[3] = find("net", path...)
		}
	}
	if slices.Contains(ok[:], false) {
		return l, fmt.Errorf("the kernel keeps network namespaces in another way (%v): tell the authors", ok)
	}
	return l, nil
}

// memberOffset finds a member of a member, also in structs and unions without a
// name.
func memberOffset(t btf.Type, path []string) (int32, bool) {
	var members []btf.Member
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	}
	for _, m := range members {
		offset := int32(m.Offset.Bytes())
		rest := path
		switch {
		case m.Name == path[0] && len(path) == 1:
			return offset, true
		case m.Name == path[0]:
			rest = path[1:]
		case m.Name != "":
			continue
		}
		if inner, ok := memberOffset(m.Type, rest); ok {
			return offset + inner, true
		}
	}
	return 0, false
}

// readKernel reads size bytes at the address in from + offset to the stack.
func readKernel(to int16, size int32, from asm.Register, offset int32) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R3, from),
		asm.Add.Imm(asm.R3, offset),
		asm.Mov.Reg(asm.R1, asm.RFP),
		asm.Add.Imm(asm.R1, int32(to)),
		asm.Mov.Imm(asm.R2, size),
		asm.FnProbeReadKernel.Call(),
	}
}

// Places on the stack.
const (
	markPointer = -8
	markInode   = -16
)

func newMark(watched *ebpf.Map, l netNSLayout) (*ebpf.Program, error) {
	program := asm.Instructions{
		asm.Mov.Imm(asm.R0, 0),
		asm.StoreMem(asm.RFP, markPointer, asm.R0, asm.DWord),
		asm.StoreMem(asm.RFP, markInode, asm.R0, asm.DWord),
		asm.FnGetCurrentTask.Call(),
	}
	program = append(program, readKernel(markPointer, 8, asm.R0, l.nsproxy)...)
	program = append(program, asm.LoadMem(asm.R6, asm.RFP, markPointer, asm.DWord))
	program = append(program, readKernel(markPointer, 8, asm.R6, l.netNS)...)
	program = append(program, asm.LoadMem(asm.R6, asm.RFP, markPointer, asm.DWord))
	program = append(program, readKernel(markInode, 4, asm.R6, l.inode)...)
	program = append(program,
		asm.LoadMapPtr(asm.R1, watched.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, markInode),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, markPointer),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call(),
		asm.Return(),
	)
	return ebpf.NewProgram(&ebpf.ProgramSpec{Name: "mark", Type: ebpf.RawTracepoint, Instructions: program, License: "GPL"})
}

// newCount takes an inode number as what a tracepoint has as its first argument, and
// returns how many use that namespace: processes (those that share an nsproxy are
// one), sockets, and who holds its file; 0 if it is not watched.
func newCount(watched *ebpf.Map, l netNSLayout) (*ebpf.Program, error) {
	const end = "end"
	program := asm.Instructions{
		asm.Mov.Imm(asm.R0, 0),
		asm.StoreMem(asm.RFP, markPointer, asm.R0, asm.DWord),
		asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord),
		asm.StoreMem(asm.RFP, markInode, asm.R6, asm.DWord),
		asm.LoadMapPtr(asm.R1, watched.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, markInode),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, end),
		asm.LoadMem(asm.R6, asm.R0, 0, asm.DWord),
	}
	program = append(program, readKernel(markPointer, 4, asm.R6, l.users)...)
	program = append(program,
		asm.LoadMem(asm.R0, asm.RFP, markPointer, asm.Word),
		asm.Return().WithSymbol(end),
	)
	return ebpf.NewProgram(&ebpf.ProgramSpec{Name: "count_users", Type: ebpf.RawTracepoint, Instructions: program, License: "GPL"})
}
