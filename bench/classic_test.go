// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/net/bpf"
)

// attemptsFilter is what the gadget reports, as one asks tcpdump for it. Its tcp[]
// knows IPv4 alone: IPv6 is counted from the IP header.
const attemptsFilter = "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn" +
	" or (ip6[6] == 6 and ip6[53] & 0x12 == 0x02)" +
	" or (udp and dst portrange 0-1023)"

// tcpdump compiles a filter for Ethernet to classic BPF.
func tcpdump(expression string) ([]bpf.RawInstruction, error) {
	out, err := exec.Command("tcpdump", "-y", "EN10MB", "-ddd", expression).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil, fmt.Errorf("tcpdump -ddd %q: %s", expression, strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return nil, err
	}
	// Their number, and one a line: code, jt, jf, k.
	numbers := strings.Fields(string(out))
	var program []bpf.RawInstruction
	for at := 1; at+4 <= len(numbers); at += 4 {
		var n [4]uint64
		for i := range n {
			if n[i], err = strconv.ParseUint(numbers[at+i], 10, 32); err != nil {
				return nil, err
			}
		}
		program = append(program, bpf.RawInstruction{Op: uint16(n[0]), Jt: uint8(n[1]), Jf: uint8(n[2]), K: uint32(n[3])})
	}
	return program, nil
}

// Where the registers of classic BPF are: the kernel has A and X in the same places,
// see bpf_convert_filter(). What is loaded from a packet comes into R0, and R6 has to
// be the context.
const (
	registerA       = asm.R0
	registerX       = asm.R7
	registerContext = asm.R6
)

// extended is a program of classic BPF in eBPF. The kernel runs a classic filter
// as eBPF too, but reads packets without a call there, as eBPF cannot. cbpfc, which
// translates as well, reads packets by pointers: socket filters have none.
func extended(classic []bpf.RawInstruction) (*ebpf.Program, error) {
	program := asm.Instructions{asm.Mov.Reg(registerContext, asm.R1)}
	for i, raw := range classic {
		part, err := extend(raw, i)
		if err != nil {
			return nil, fmt.Errorf("instruction %d of tcpdump's: %w", i, err)
		}
		part[0] = part[0].WithSymbol(label(i))
		program = append(program, part...)
	}
	return ebpf.NewProgram(&ebpf.ProgramSpec{Name: "tcpdump", Type: ebpf.SocketFilter, License: "GPL", Instructions: program})
}

func label(i int) string { return "at" + strconv.Itoa(i) }

// extend translates one instruction: those that tcpdump uses for filters like ours.
func extend(raw bpf.RawInstruction, i int) (asm.Instructions, error) {
	switch ins := raw.Disassemble().(type) {
	case bpf.LoadAbsolute:
		return asm.Instructions{asm.LoadAbs(int32(ins.Off), sizeOf(ins.Size))}, nil
	case bpf.LoadIndirect:
		return asm.Instructions{asm.LoadInd(asm.R0, registerX, int32(ins.Off), sizeOf(ins.Size))}, nil
	case bpf.LoadMemShift: // X = 4 * (byte & 0xF), and A stays: nothing reads it after that
		return asm.Instructions{
			asm.LoadAbs(int32(ins.Off), asm.Byte),
			asm.And.Imm(asm.R0, 0xF),
			asm.LSh.Imm(asm.R0, 2),
			asm.Mov.Reg(registerX, asm.R0),
		}, nil
	case bpf.ALUOpConstant:
		if ins.Op != bpf.ALUOpAnd {
			return nil, fmt.Errorf("%v is not known", ins)
		}
		return asm.Instructions{asm.And.Imm32(registerA, int32(ins.Val))}, nil
	case bpf.Jump:
		return asm.Instructions{asm.Ja.Label(label(i + 1 + int(ins.Skip)))}, nil
	case bpf.JumpIf:
		return extendJump(ins, i)
	case bpf.RetConstant:
		return asm.Instructions{asm.Mov.Imm(asm.R0, int32(ins.Val)), asm.Return()}, nil
	default:
		return nil, fmt.Errorf("%v is not known", ins)
	}
}

func extendJump(ins bpf.JumpIf, i int) (asm.Instructions, error) {
	op, found := map[bpf.JumpTest]asm.JumpOp{
		bpf.JumpEqual: asm.JEq, bpf.JumpNotEqual: asm.JNE, bpf.JumpGreaterThan: asm.JGT, bpf.JumpGreaterOrEqual: asm.JGE,
		bpf.JumpLessThan: asm.JLT, bpf.JumpLessOrEqual: asm.JLE, bpf.JumpBitsSet: asm.JSet,
	}[ins.Cond]
	if !found {
		return nil, fmt.Errorf("%v is not known", ins)
	}
	jumps := asm.Instructions{op.Imm32(registerA, int32(ins.Val), label(i+1+int(ins.SkipTrue)))}
	if ins.SkipFalse > 0 {
		jumps = append(jumps, asm.Ja.Label(label(i+1+int(ins.SkipFalse))))
	}
	return jumps, nil
}

func sizeOf(bytes int) asm.Size {
	return map[int]asm.Size{1: asm.Byte, 2: asm.Half, 4: asm.Word}[bytes]
}
