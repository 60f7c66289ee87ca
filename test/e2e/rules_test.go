// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rules are a namespace's nftables rules of one family, in a table of their own.
type rules struct {
	conn   *nftables.Conn
	family int
	table  *nftables.Table
}

// lastTable is the number of the last one: others can be there.
var lastTable int

// addRules has the kernel take rules of both families, until they are removed.
func (ns *namespace) addRules(t *testing.T, write func(*rules)) (remove func()) {
	t.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.fd)))
	if err != nil {
		t.Fatal(err)
	}
	var tables []*nftables.Table
	lastTable++
	for _, family := range families {
		r := &rules{conn: conn, family: family}
		r.table = conn.AddTable(&nftables.Table{Name: fmt.Sprint("e2e-", lastTable), Family: r.nfproto()})
		tables = append(tables, r.table)
		write(r)
	}
	if err := conn.Flush(); err != nil {
		t.Fatalf("rules in %s: %v", ns.name, err)
	}
	return func() {
		t.Helper()
		for _, table := range tables {
			conn.DelTable(table)
		}
		if err := conn.Flush(); err != nil {
			t.Fatalf("removing rules from %s: %v", ns.name, err)
		}
	}
}

func (r *rules) nfproto() nftables.TableFamily {
	if r.family == 4 {
		return nftables.TableFamilyIPv4
	}
	return nftables.TableFamilyIPv6
}

// The chains that rules are added to.
var (
	natOutput = nftables.Chain{
		Name: "output", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	}
	natPostrouting = nftables.Chain{
		Name: "postrouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	}
	filterOutput = nftables.Chain{
		Name: "filter", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	}
	natPrerouting = nftables.Chain{
		Name: "prerouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	}
	natInput = nftables.Chain{
		Name: "input", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityNATSource,
	}
	rawPrerouting = nftables.Chain{
		Name: "raw", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	}
	manglePrerouting = nftables.Chain{
		Name: "mangle", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle,
	}
	filterInput = nftables.Chain{
		Name: "filter-in", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	}
	filterForward = nftables.Chain{
		Name: "filter-on", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	}
	rawOutput = nftables.Chain{
		Name: "raw-out", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRaw,
	}
)

// add adds a rule to a chain: matches and then what is to be done.
func (r *rules) add(chain nftables.Chain, parts ...[]expr.Any) {
	chain.Table = r.table
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: r.conn.AddChain(&chain), Exprs: slices.Concat(parts...)})
}

// transport matches packets of TCP and UDP, and not of ICMP.
func (*rules) transport() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{unix.IPPROTO_TCP}, ToData: []byte{unix.IPPROTO_UDP}},
	}
}

// service has what is sent to any service go to an address.
func (r *rules) service(to netip.Addr) {
	r.add(natOutput, r.transport(), r.to(ofServices.prefix(r.family, 0)), r.dnat(to, turnedPort))
}

// to matches packets to one of the addresses.
func (r *rules) to(prefix netip.Prefix) []expr.Any {
	return matchPrefix(prefix, map[int]uint32{4: 16, 6: 24}[r.family])
}

func (r *rules) from(prefix netip.Prefix) []expr.Any {
	return matchPrefix(prefix, map[int]uint32{4: 12, 6: 8}[r.family])
}

// matchPrefix compares an address at an offset in the IP header.
func matchPrefix(prefix netip.Prefix, at uint32) []expr.Any {
	length := uint32(prefix.Addr().BitLen() / 8)
	mask := net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: mask, Xor: make([]byte, length)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: prefix.Masked().Addr().AsSlice()},
	}
}

// Ports in the header of TCP and UDP: where they are, in bytes.
const (
	sourcePortAt = 0
	portAt       = 2
)

// matchPort compares one of the ports.
func matchPort(at uint32, port int) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: at, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, uint16(port))},
	}
}

// turned loads a port of the packet, some bits of it turned, so that each port
// becomes another one, and no two the same.
func turned(register uint32, at uint32, bits uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: at, Len: 2},
		&expr.Bitwise{
			SourceRegister: register, DestRegister: register, Len: 2,
			Mask: []byte{0xff, 0xff}, Xor: binary.BigEndian.AppendUint16(nil, bits),
		},
	}
}

// translate changes an address of the packet, and the port of that end.
func (r *rules) translate(kind expr.NATType, addr netip.Addr, at uint32, bits uint16) []expr.Any {
	return slices.Concat(
		[]expr.Any{&expr.Immediate{Register: 1, Data: addr.AsSlice()}},
		turned(2, at, bits),
		[]expr.Any{&expr.NAT{Type: kind, Family: uint32(r.nfproto()), RegAddrMin: 1, RegProtoMin: 2}})
}

func (r *rules) dnat(addr netip.Addr, bits uint16) []expr.Any {
	return r.translate(expr.NATTypeDestNAT, addr, portAt, bits)
}

func (r *rules) snat(addr netip.Addr) []expr.Any {
	return r.translate(expr.NATTypeSourceNAT, addr, sourcePortAt, turnedSource)
}

func (*rules) redirect(bits uint16) []expr.Any {
	return append(turned(1, portAt, bits), &expr.Redir{RegisterProtoMin: 1})
}

// masquerade chooses another port for the source, at random.
func (*rules) masquerade() []expr.Any { return []expr.Any{&expr.Masq{FullyRandom: true}} }
