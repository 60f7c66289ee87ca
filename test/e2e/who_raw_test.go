// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"

	"gadget.example/network/test/e2e/attempt"
)

// ways are how packets of a program's own making are sent.
var ways = []attempt.Step{
	{Do: attempt.Raw},
	{Do: attempt.Raw, Split: true},
	{Do: attempt.Raw, Several: true, Count: 3},
	{Do: attempt.Raw, Header: true},
	{Do: attempt.Raw, Header: true, Several: true, Split: true, Count: 3},
	{Do: attempt.Packet},
	{Do: attempt.Packet, Several: true, Split: true, Count: 3},
	{Do: attempt.Packet, Link: true},
	{Do: attempt.Packet, Link: true, Split: true},
	{Do: attempt.Packet, Link: true, Several: true, Count: 3},
}

// describe says what a way is.
func describe(way attempt.Step) string {
	said := string(way.Do) + " socket"
	if way.Header || way.Link {
		said += ", with its header"
	}
	if way.Split {
		said += ", in parts"
	}
	if way.Several {
		said += ", by sendmmsg"
	}
	return said
}

func rawCases() []whoCase {
	var cases []whoCase
	for _, protocol := range []attempt.Protocol{attempt.TCP, attempt.UDP} {
		for _, way := range ways {
			cases = append(cases, whoCase{name: fmt.Sprintf("%s by %s", protocol, describe(way)), play: made(protocol, way)})
		}
		cases = append(cases,
			whoCase{name: fmt.Sprintf("%s by raw and packet sockets, from a port that another has", protocol), play: borrowed(protocol, false)},
			whoCase{name: fmt.Sprintf("%s by raw and packet sockets, beside one who sends from the port", protocol), play: borrowed(protocol, true)})
	}
	return cases
}

// made has callers send packets of their own making from ports that nobody has,
// to the other end.
func made(protocol attempt.Protocol, way attempt.Step) func(*stage, string) {
	return func(s *stage, name string) {
		port := newPort(protocol)
		open := s.openAway(protocol, port)
		var acts []act
		for i := range max(2*rawCallers, s.attempts/2/max(way.Count, 1)) {
			acts = append(acts, s.madeAct(protocol, way, i, port, newSource()))
			for range way.Count - 1 {
				newSource()
			}
		}
		s.wave(name, acts)
		s.shut(open...)
	}
}

// openAway opens a port of both families at the other end.
func (s *stage) openAway(protocol attempt.Protocol, port int) []handle {
	return s.openAt(s.away[0], protocol, port, none)
}

// rawCallers are those callers who are root: others may not.
const rawCallers = callers / 2

func (s *stage) madeAct(protocol attempt.Protocol, way attempt.Step, i, port, source int) act {
	family := families[i/rawCallers%2]
	step := way
	step.Protocol, step.Src, step.Dst = protocol, at(overVeth.address(family, 1), source), at(overVeth.address(family, 2), port)
	if step.Do == attempt.Packet {
		step.Device, step.LinkDst = overVeth.device, endMACs[1]
	}
	return act{by: s.callers[i%rawCallers*2], beyond: s.pair.ends[1], to: s.is(s.away[0]), raw: true, step: step}
}

// borrowed has them send from ports that other processes have, who may send from
// there at that moment: a datagram to the same destination, or, as TCP cannot, a
// SYN segment to another.
func borrowed(protocol attempt.Protocol, both bool) func(*stage, string) {
	return func(s *stage, name string) {
		port := newPort(protocol)
		open, other := s.openAway(protocol, port), port
		if protocol == attempt.TCP {
			other = newPort(protocol)
			open = append(open, s.openAway(protocol, other)...)
		}
		var acts []act
		for i := range max(2*rawCallers, s.attempts/2) {
			way := ways[i%len(ways)]
			way.Several, way.Count = false, 0
			raw := s.madeAct(protocol, way, i, port, newSource())
			raw.spared = rawBorrowed
			lender := handle{by: s.callers[i%rawCallers*2+1], name: fmt.Sprint(name, i)}
			acts = append(acts, act{by: lender.by, step: attempt.Step{
				Do: attempt.Open, Protocol: protocol, Socket: lender.name, Src: raw.step.Src, ReuseAddr: true,
			}})
			open = append(open, lender)
			if both {
				call := raw
				call.by, call.raw, call.spared = lender.by, false, callSpared(protocol)
				call.step = attempt.Step{Do: attempt.Call, Protocol: protocol, Socket: lender.name, Dst: at(raw.step.Dst.Addr(), other)}
				acts = append(acts, call)
			}
			acts = append(acts, raw)
		}
		s.wave(name, acts)
		s.shut(open...)
	}
}

// callSpared: nothing in a datagram tells whose it is.
func callSpared(protocol attempt.Protocol) excuse {
	if protocol == attempt.UDP {
		return sameSource
	}
	return ""
}
