// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"gadget.example/network/test/object"
)

// BenchmarkInstructions counts what the filter executes for a packet that is no
// attempt: instructions of eBPF, as compiled, and calls of the kernel's helpers.
func BenchmarkInstructions(b *testing.B) {
	spec, err := object.Read()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		for _, p := range innocent {
			m, err := newMachine(spec, "network", p)
			if err == nil {
				err = m.run()
			}
			if err != nil {
				b.Fatalf("%s: %v", p.name, err)
			}
			fmt.Printf("filter  %-24s %4d instructions, of them %d calls\n", p.name, m.executed, m.calls)
		}
	}
}

// innocentPacket is a packet that is no attempt.
type innocentPacket struct {
	name     string
	protocol uint16 // Ethernet's
	bytes    []byte // from the network header on
}

// Flags of the TCP header: a data segment has ACK.
const ack = 0x10

var innocent = []innocentPacket{
	{"ARP", 0x0806, make([]byte, 28)},
	{"TCP data, IPv4", 0x0800, packet(4, 6)},
	{"TCP data, IPv6", 0x86DD, packet(6, 6)},
	{"UDP to a high port, IPv4", 0x0800, packet(4, 17)},
	{"UDP to a high port, IPv6", 0x86DD, packet(6, 17)},
}

// packet has the headers of a packet between two high ports.
func packet(version, protocol byte) []byte {
	ip := make([]byte, 40)
	ip[0], ip[6] = 0x60, protocol
	if version == 4 {
		ip = make([]byte, 20)
		ip[0], ip[9] = 0x45, protocol
	}
	transport := make([]byte, 20)
	binary.BigEndian.PutUint16(transport, 40_000)
	binary.BigEndian.PutUint16(transport[2:], 50_000)
	transport[12], transport[13] = 5<<4, ack
	return append(ip, transport...)
}

// Where the machine has its memory. There is no NULL, and no two meet.
const (
	contextBase = 0x1000_0000
	stackTop    = 0x2000_0000
	rodataBase  = 0x3000_0000
	frameSize   = 512
	stackSize   = 4 * frameSize
)

// machine executes a socket filter, as far as a packet that is no attempt comes.
type machine struct {
	instructions asm.Instructions
	at           map[asm.RawInstructionOffset]int // index by offset
	offsets      []asm.RawInstructionOffset
	registers    [11]uint64
	context      [192]byte // struct __sk_buff
	stack        [stackSize]byte
	rodata       []byte
	packet       []byte
	functions    map[string]int // index of a function's first instruction
	callers      []caller

	executed, calls int
}

// caller is what a function goes back to.
type caller struct {
	next  int // instruction
	saved [4]uint64
}

func newMachine(spec *ebpf.CollectionSpec, program string, p innocentPacket) (*machine, error) {
	m := &machine{
		instructions: spec.Programs[program].Instructions,
		at:           map[asm.RawInstructionOffset]int{},
		packet:       p.bytes,
		functions:    map[string]int{},
	}
	for i := m.instructions.Iterate(); i.Next(); {
		m.at[i.Offset] = i.Index
		m.offsets = append(m.offsets, i.Offset)
		if name := i.Ins.Symbol(); name != "" {
			m.functions[name] = i.Index
		}
	}
	rodata := spec.Maps[".rodata"]
	if rodata == nil || len(rodata.Contents) != 1 {
		return nil, errors.New("the object has no parameters")
	}
	m.rodata = rodata.Contents[0].Value.([]byte)
	// Offsets as in include/uapi/linux/bpf.h: len, protocol, ifindex.
	binary.NativeEndian.PutUint32(m.context[0:], uint32(14+len(p.bytes)))
	protocol := binary.BigEndian.AppendUint16(nil, p.protocol)
	binary.NativeEndian.PutUint32(m.context[16:], uint32(binary.NativeEndian.Uint16(protocol)))
	binary.NativeEndian.PutUint32(m.context[40:], 2)
	m.registers[asm.R1], m.registers[asm.RFP] = contextBase, stackTop
	return m, nil
}

// memory is what is at an address.
func (m *machine) memory(address uint64, size int) ([]byte, error) {
	for _, area := range []struct {
		base  uint64
		bytes []byte
	}{{contextBase, m.context[:]}, {stackTop - stackSize, m.stack[:]}, {rodataBase, m.rodata}} {
		at := address - area.base
		if at < uint64(len(area.bytes)) && at+uint64(size) <= uint64(len(area.bytes)) {
			return area.bytes[at : at+uint64(size)], nil
		}
	}
	return nil, fmt.Errorf("nothing is at %#x", address)
}

// run executes until the filter is left.
func (m *machine) run() error {
	const most = 1000
	for i := 0; m.executed < most; {
		ins := m.instructions[i]
		m.executed++
		i++
		switch {
		case ins.OpCode.JumpOp() == asm.Exit && ins.OpCode.Class() == asm.JumpClass:
			if len(m.callers) == 0 {
				return nil
			}
			i = m.leave()
		case ins.IsFunctionCall():
			m.enter(i)
			i = m.functions[ins.Reference()]
		default:
			jump, err := m.step(ins)
			if err != nil {
				return fmt.Errorf("%v: %w", ins, err)
			}
			if jump {
				i = m.at[m.offsets[i]+asm.RawInstructionOffset(ins.Offset)]
			}
		}
	}
	return errors.New("the filter goes on and on")
}

// enter keeps what a function leaves as it was: R6 to R9.
func (m *machine) enter(next int) {
	m.callers = append(m.callers, caller{next, [4]uint64(m.registers[asm.R6:asm.RFP])})
	m.registers[asm.RFP] -= frameSize
}

func (m *machine) leave() (next int) {
	last := m.callers[len(m.callers)-1]
	m.callers = m.callers[:len(m.callers)-1]
	copy(m.registers[asm.R6:], last.saved[:])
	m.registers[asm.RFP] += frameSize
	return last.next
}

// step executes an instruction; true: it jumps.
func (m *machine) step(ins asm.Instruction) (jump bool, err error) {
	switch class := ins.OpCode.Class(); {
	case ins.OpCode.IsDWordLoad():
		m.registers[ins.Dst] = uint64(ins.Constant)
		if ins.IsLoadFromMap() {
			m.registers[ins.Dst] = rodataBase + uint64(ins.Constant>>32)
		}
		return false, nil
	case class == asm.LdXClass:
		b, err := m.memory(m.registers[ins.Src]+uint64(ins.Offset), ins.OpCode.Size().Sizeof())
		if err == nil {
			m.registers[ins.Dst] = number(b)
		}
		return false, err
	case class == asm.StClass || class == asm.StXClass:
		value := uint64(ins.Constant)
		if class == asm.StXClass {
			value = m.registers[ins.Src]
		}
		b, err := m.memory(m.registers[ins.Dst]+uint64(ins.Offset), ins.OpCode.Size().Sizeof())
		if err == nil {
			copy(b, binary.NativeEndian.AppendUint64(nil, value)[:len(b)])
		}
		return false, err
	case class.IsALU():
		return false, m.calculate(ins)
	case ins.OpCode.JumpOp() == asm.Call:
		return false, m.call(ins)
	default:
		return m.compare(ins)
	}
}

// number reads an integer of this machine's byte order.
func number(b []byte) uint64 {
	var whole [8]byte
	copy(whole[:], b)
	return binary.NativeEndian.Uint64(whole[:]) // little-endian, as both architectures are
}

// operands of a calculation or a comparison.
func (m *machine) operands(ins asm.Instruction, narrow bool) (a, b uint64) {
	a, b = m.registers[ins.Dst], uint64(ins.Constant)
	if ins.OpCode.Source() == asm.RegSource {
		b = m.registers[ins.Src]
	}
	if narrow {
		a, b = uint64(uint32(a)), uint64(uint32(b))
	}
	return a, b
}

func (m *machine) calculate(ins asm.Instruction) error {
	narrow := ins.OpCode.Class() == asm.ALUClass
	a, b := m.operands(ins, narrow)
	switch ins.OpCode.ALUOp() {
	case asm.Mov:
		a = b
	case asm.Add:
		a += b
	case asm.Sub:
		a -= b
	case asm.And:
		a &= b
	case asm.Or:
		a |= b
	case asm.Xor:
		a ^= b
	case asm.Mul:
		a *= b
	case asm.LSh:
		a <<= b
	case asm.RSh:
		a >>= b
	case asm.ArSh:
		a = uint64(int64(a) >> b)
	case asm.Swap:
		a, narrow = swapped(a, ins.Constant), false
	default:
		return errors.New("this calculation is not known")
	}
	if narrow {
		a = uint64(uint32(a))
	}
	m.registers[ins.Dst] = a
	return nil
}

func swapped(a uint64, bits int64) uint64 {
	b := binary.BigEndian.AppendUint64(nil, a)
	return number(append(b[8-bits/8:], make([]byte, 8)...)[:8])
}

func (m *machine) compare(ins asm.Instruction) (bool, error) {
	a, b := m.operands(ins, ins.OpCode.Class() == asm.Jump32Class)
	switch ins.OpCode.JumpOp() {
	case asm.Ja:
		return true, nil
	case asm.JEq:
		return a == b, nil
	case asm.JNE:
		return a != b, nil
	case asm.JGT:
		return a > b, nil
	case asm.JGE:
		return a >= b, nil
	case asm.JLT:
		return a < b, nil
	case asm.JLE:
		return a <= b, nil
	case asm.JSet:
		return a&b != 0, nil
	case asm.JSGT:
		return int64(a) > int64(b), nil
	case asm.JSLT:
		return int64(a) < int64(b), nil
	default:
		return false, errors.New("this comparison is not known")
	}
}

// call is bpf_skb_load_bytes(), or the same counted from the network header.
func (m *machine) call(ins asm.Instruction) error {
	m.calls++
	switch asm.BuiltinFunc(ins.Constant) {
	case asm.FnSkbLoadBytes, asm.FnSkbLoadBytesRelative:
	default:
		return errors.New("this call is not known")
	}
	off, size := m.registers[asm.R2], int(m.registers[asm.R4])
	to, err := m.memory(m.registers[asm.R3], size)
	if err != nil {
		return err
	}
	if off+uint64(size) > uint64(len(m.packet)) {
		m.registers[asm.R0] = ^uint64(0)
		return nil
	}
	copy(to, m.packet[off:])
	m.registers[asm.R0] = 0
	return nil
}
