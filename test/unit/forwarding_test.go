// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// gateway4 is an address of newGateway()'s.
var gateway4 = netip.MustParseAddrPort("192.0.2.80:443")

// newGateway is a wire to a namespace that forwards what is for others, and has what
// comes to an address of its own go to there4.
func newGateway(tb testing.TB) *wire {
	tb.Helper()
	w := newVeth(tb, false)
	ns := w.namespaces[1]
	newWayOut(tb, ns)
	lo := setUp(tb, ns, "lo")
	withNetlink(tb, ns, func(h *netlink.Handle) error {
		device, err := h.LinkByIndex(lo)
		if err != nil {
			return err
		}
		for _, own := range []netip.Addr{gateway4.Addr(), sentinel.dst} {
			addr, err := netlink.ParseAddr(netip.PrefixFrom(own, 32).String())
			if err == nil {
				err = h.AddrAdd(device, addr)
			}
			if err != nil {
				return fmt.Errorf("adding %v: %w", own, err)
			}
		}
		return nil
	})
	redirect(tb, ns)
	err := inside(ns, func() error {
		var errs []error
		for name, value := range map[string]string{
			"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/there/rp_filter": "0",
			"netfilter/nf_conntrack_checksum": "0", // TCP's are not right
		} {
			errs = append(errs, os.WriteFile("/proc/sys/net/"+name, []byte(value), 0))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		tb.Fatalf("having a namespace forward: %v", err)
	}
	return w
}

// redirect sends what comes to the gateway's address on, as a published port does.
func redirect(tb testing.TB, ns netns.NsHandle) {
	tb.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		tb.Fatal(err)
	}
	const family = nftables.TableFamilyIPv4
	table := conn.AddTable(&nftables.Table{Name: "unit", Family: family})
	chain := conn.AddChain(&nftables.Chain{
		Table: table, Name: "prerouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	const toGateway = 16 // offset of the destination in the IP header
	rule := append([]expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: toGateway, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: gateway4.Addr().AsSlice()},
	}, translate(expr.NATTypeDestNAT, there4, there6)(family)...)
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: rule})
	if err := conn.Flush(); err != nil {
		tb.Fatalf("redirecting what comes to %v: %v", gateway4, err)
	}
}

// setChecksum makes an IPv4 header one that the kernel takes.
func setChecksum(frame []byte) {
	sum := uint32(0)
	for b := frame[l3:l4of4]; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	sum = sum>>16 + sum&0xFFFF
	binary.BigEndian.PutUint16(frame[l3+10:], ^uint16(sum>>16+sum))
}

// TestWhatIsForwardedIsNotReported by the namespace that forwards it, also where it
// has come to an address of that: it waits until it has gone out again.
func TestWhatIsForwardedIsNotReported(t *testing.T) {
	w := newGateway(t)
	for name, params := range map[string]parameters{
		"all":          {},
		"ingress only": {"ingress_only": true},
		"a port":       {"port": gateway4.Port()},
	} {
		for _, to := range []netip.AddrPort{gateway4, stranger4} {
			for _, proto := range []uint8{protoTCP, protoUDP} {
				p := between(proto, netip.MustParseAddrPort("192.0.2.81:40000"), netip.AddrPortFrom(to.Addr(), gateway4.Port()))
				t.Run(fmt.Sprintf("%s, %s to %v", name, p.title(), to), func(t *testing.T) {
					g := setup{params: params, clock: true, awaits: true}.load(t)
					w.attach(t, g)
					frame, _ := w.adapt(p.frame())
					setChecksum(frame)
					if _, err := w.exchange(frame); err != nil {
						t.Fatal(err)
					}
					got, err := g.drain(nil)
					if err != nil {
						t.Fatal(err)
					}
					g.setEnding(t, true)
					got = append(got, g.settled(t)...)
					var want []event
					if params["ingress_only"] == nil {
						want = []event{p.event(true, w.netns(true))}
					}
					compare(t, "of what is forwarded", slices.DeleteFunc(got, isSentinel), want)
				})
			}
		}
	}
}
