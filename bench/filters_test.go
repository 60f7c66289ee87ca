// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"gadget.example/network/test/object"
)

// filter is a socket filter that is measured.
type filter struct {
	name    string
	program *ebpf.Program
	// The protocols of which it returns whether a packet is an attempt.
	decides []byte
	// It counts from the Ethernet header, as if every device had one.
	ethernet bool
	close    func()
	maps     map[string]*ebpf.Map
	ring     *ring // what it delivers to, if it is read
}

// The names under which they are printed; nothing is measured but net of the first.
const (
	emptyFilter  = "empty"
	floorFilter  = "floor"
	stableFilter = "floor, from the IP header"
	loadsFilter  = "absolute loads"
	tcpdumpers   = "tcpdump's, as eBPF"
	plainFilter  = "plain"
	ourFilter    = "this gadget"
)

// decided are those of them that tell by what they return.
var decided = map[string][]byte{
	floorFilter:  {protoTCP, protoUDP},
	stableFilter: {protoTCP, protoUDP},
	loadsFilter:  {protoTCP, protoUDP},
	tcpdumpers:   {protoTCP, protoUDP},
	plainFilter:  {protoTCP},
}

// maker makes a filter.
type maker struct {
	name string
	make func() (filter, error)
}

// guarded are the filters that bench-check compares.
var guarded = []maker{
	{emptyFilter, func() (filter, error) { return fromInstructions(asm.Mov.Imm(asm.R0, 0), asm.Return()) }},
	{floorFilter, func() (filter, error) { return fromInstructions(floor(asm.FnSkbLoadBytes)...) }},
	{plainFilter, func() (filter, error) { return compile("testdata/plain.bpf.c", "plain") }},
	{ourFilter, ours},
}

// stable is the floor for real traffic, where a filter finds the link header first.
var stable = maker{stableFilter, func() (filter, error) { return fromInstructions(floor(asm.FnSkbLoadBytesRelative)...) }}

// makers are all of them.
func makers() []maker {
	gadgetFilter := func(gadget, function string) func() (filter, error) {
		return func() (filter, error) {
			// The headers that the image is built with are those of IG's module.
			headers, err := filepath.EvalSymlinks(includeDir + "/gadget")
			if err != nil {
				return filter{}, err
			}
			return compile(filepath.Join(headers, "../../gadgets", gadget, "program.bpf.c"), function)
		}
	}
	return []maker{
		guarded[0],
		guarded[1],
		stable,
		{loadsFilter, func() (filter, error) { return fromInstructions(absoluteLoads()...) }},
		guarded[3],
		{tcpdumpers, func() (filter, error) {
			classic, err := tcpdump(attemptsFilter)
			if err != nil {
				return filter{}, err
			}
			program, err := extended(classic)
			return filter{program: program, ethernet: true}, err
		}},
		guarded[2],
		{"IG's advise_networkpolicy", gadgetFilter("advise_networkpolicy", "ig_trace_net")},
		{"IG's trace_dns", gadgetFilter("trace_dns", "ig_trace_dns")},
	}
}

// load makes filters; close unloads them.
func load(makers []maker) (filters []filter, closeAll func(), err error) {
	closeAll = func() {
		for _, f := range filters {
			f.program.Close()
			if f.close != nil {
				f.close()
			}
		}
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, nil, err
	}
	for _, m := range makers {
		f, err := m.make()
		if err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("%s: %w", m.name, err)
		}
		f.name, f.decides = m.name, decided[m.name]
		filters = append(filters, f)
	}
	return filters, closeAll, nil
}

func fromInstructions(instructions ...asm.Instruction) (filter, error) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, License: "GPL", Instructions: instructions})
	return filter{program: program}, err
}

// Offsets in struct __sk_buff of include/uapi/linux/bpf.h.
const (
	skbProtocol = 16
	skbSegments = 164
)

// floor is the least that tells an attempt from what is none: a look at what the
// kernel knows of the packet, one load of the headers that it has as a rule, and tests
// of them.
func floor(load asm.BuiltinFunc) asm.Instructions {
	const v4, v6 = 40, 64 // where the headers are, bytes below the frame pointer
	headers := func(at int16, size int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, 0),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, -int32(at)),
			asm.Mov.Imm(asm.R4, size),
			asm.Mov.Imm(asm.R5, unix.BPF_HDR_START_NET),
			load.Call(),
			asm.JNE.Imm(asm.R0, 0, "none"),
		}
	}
	transport := func(proto asm.Instruction, at int16, tcp string) asm.Instructions {
		return asm.Instructions{
			proto,
			asm.JEq.Imm(asm.R2, unix.IPPROTO_TCP, tcp),
			asm.JNE.Imm(asm.R2, unix.IPPROTO_UDP, "none"),
			asm.LoadMem(asm.R2, asm.RFP, at+2, asm.Half),
			asm.HostTo(asm.BE, asm.R2, asm.Half),
			asm.JLT.Imm(asm.R2, 1024, "attempt"),
			asm.Ja.Label("none"),
			asm.LoadMem(asm.R2, asm.RFP, at+13, asm.Byte).WithSymbol(tcp),
			asm.And.Imm(asm.R2, 0x12),
			asm.JEq.Imm(asm.R2, 0x02, "attempt"),
			asm.Ja.Label("none"),
		}
	}
	from4, from6 := headers(v4, 40), headers(v6, 60)
	from4[0], from6[0] = from4[0].WithSymbol("v4"), from6[0].WithSymbol("v6")
	options := asm.Instructions{
		asm.LoadMem(asm.R2, asm.RFP, -v4, asm.Byte),
		asm.JNE.Imm(asm.R2, 0x45, "none"),
	}
	return slices.Concat(byProtocol,
		from4, options, transport(asm.LoadMem(asm.R2, asm.RFP, -v4+9, asm.Byte), -v4+20, "tcp4"),
		from6, transport(asm.LoadMem(asm.R2, asm.RFP, -v6+6, asm.Byte), -v6+40, "tcp6"))
}

// absoluteLoads decides as the floor does, but loads each field alone, by an instruction
// of its own: a call as well, but one that copies nothing. It counts from the IP header
// (SKF_NET_OFF of include/uapi/linux/filter.h), and ends the program where nothing is.
func absoluteLoads() asm.Instructions {
	const net = -0x100000
	transport := func(proto, at int32, tcp string) asm.Instructions {
		return asm.Instructions{
			asm.LoadAbs(net+proto, asm.Byte),
			asm.JEq.Imm(asm.R0, unix.IPPROTO_TCP, tcp),
			asm.JNE.Imm(asm.R0, unix.IPPROTO_UDP, "none"),
			asm.LoadAbs(net+at+2, asm.Half),
			asm.JLT.Imm(asm.R0, 1024, "attempt"),
			asm.Ja.Label("none"),
			asm.LoadAbs(net+at+13, asm.Byte).WithSymbol(tcp),
			asm.And.Imm(asm.R0, 0x12),
			asm.JEq.Imm(asm.R0, 0x02, "attempt"),
			asm.Ja.Label("none"),
		}
	}
	v4 := asm.Instructions{asm.LoadAbs(net, asm.Byte).WithSymbol("v4"), asm.JNE.Imm(asm.R0, 0x45, "none")}
	v6 := transport(6, 40, "tcp6")
	v6[0] = v6[0].WithSymbol("v6")
	return slices.Concat(byProtocol, v4, transport(9, 20, "tcp4"), v6)
}

// byProtocol is the look at what the kernel knows: it goes on at "v4" or "v6".
var byProtocol = asm.Instructions{
	asm.Mov.Reg(asm.R6, asm.R1),
	asm.LoadMem(asm.R2, asm.R6, skbSegments, asm.Word),
	asm.JGT.Imm(asm.R2, 1, "none"),
	asm.LoadMem(asm.R2, asm.R6, skbProtocol, asm.Word),
	asm.JEq.Imm(asm.R2, int32(onWire(typeIPv4)), "v4"),
	asm.JEq.Imm(asm.R2, int32(onWire(typeIPv6)), "v6"),
	asm.Mov.Imm(asm.R0, 0).WithSymbol("none"),
	asm.Return(),
	asm.Mov.Imm(asm.R0, 1).WithSymbol("attempt"),
	asm.Return(),
}

// onWire is a number of 16 bits as the kernel has it where it is in network byte order.
func onWire(host uint16) uint16 { return host<<8 | host>>8 } // both architectures are little-endian

// ours is the gadget's filter with its parameters as they are, alone: its hooks may be
// of kinds that this kernel does not have.
func ours() (filter, error) { return oursWith(nil) }

func oursWith(params map[string]any) (filter, error) {
	spec, err := object.Read()
	if err != nil {
		return filter{}, err
	}
	if err := object.Keep(spec, "network"); err != nil {
		return filter{}, err
	}
	for name, value := range params {
		if err := spec.Variables[name].Set(value); err != nil {
			return filter{}, fmt.Errorf("setting parameter %s: %w", name, err)
		}
	}
	c, err := object.Load(spec)
	if err != nil {
		return filter{}, err
	}
	return filter{program: c.Programs["network"], close: c.Close, maps: c.Maps}, nil
}

// includeDir is what `make build` leaves: IG's headers.
const includeDir = "../build/include"

// compile makes a socket filter of C that counts from the Ethernet header.
func compile(source, function string) (filter, error) {
	folder, err := os.MkdirTemp("", "bench")
	if err != nil {
		return filter{}, err
	}
	defer os.RemoveAll(folder)
	target := filepath.Join(folder, "filter.o")
	arguments := []string{"-target", "bpf", "-O2", "-g", "-Wno-unknown-attributes", "-I", includeDir, "-c", source, "-o", target}
	// Where Debian has <asm/types.h>.
	if triple, err := exec.Command("clang", "-print-multiarch").Output(); err == nil {
		arguments = append(arguments, "-I", "/usr/include/"+strings.TrimSpace(string(triple)))
	}
	if out, err := exec.Command("clang", arguments...).CombinedOutput(); err != nil {
		return filter{}, fmt.Errorf("compiling %s: %w\n%s", filepath.Base(source), err, out)
	}
	spec, err := ebpf.LoadCollectionSpec(target)
	if err != nil {
		return filter{}, err
	}
	if err := object.Keep(spec, function); err != nil {
		return filter{}, err
	}
	// What a gadget reads of IG's map of sockets it finds by CO-RE; its own idea of them
	// does, as the map is empty.
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		Programs: ebpf.ProgramOptions{ExtraRelocationTargets: []*btf.Spec{spec.Types}},
	})
	if err != nil {
		return filter{}, fmt.Errorf("loading %s: %w", filepath.Base(source), err)
	}
	return filter{program: c.Programs[function], ethernet: true, close: c.Close}, nil
}
