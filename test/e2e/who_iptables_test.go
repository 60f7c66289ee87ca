// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/nftables"

	"gadget.example/network/test/e2e/attempt"
)

// iptablesProgram is Debian's, which goes by the name that it is given first.
const iptablesProgram = "xtables-nft-multi"

func lacksIPTables() error {
	_, err := exec.LookPath(iptablesProgram)
	return err
}

// iptablesCases are translations that the program people use has written.
func iptablesCases() []whoCase {
	var cases []whoCase
	for _, protocol := range []attempt.Protocol{attempt.TCP, attempt.UDP} {
		for _, c := range []struct {
			translation
			chain string
			rule  func(family, port int) string
		}{
			{toService, "OUTPUT", func(family, port int) string {
				to := fmt.Sprint(at(overVeth.address(family, 2), toService.servedPort(port)))
				return fmt.Sprintf("-d %s -j DNAT --to-destination %s", ofServices.prefix(family, 0).Masked(), to)
			}},
			{toProxy, "OUTPUT", func(family, port int) string {
				return fmt.Sprintf("-d %s -j REDIRECT --to-ports %d", overVeth.prefix(family, 0).Masked(), toProxy.servedPort(port))
			}},
			{toMasquerade, "POSTROUTING", func(family, _ int) string {
				return fmt.Sprintf("-d %s -j MASQUERADE --random-fully", overVeth.prefix(family, 0).Masked())
			}},
		} {
			name := string(protocol) + " out, NAT by iptables: " + c.name
			cases = append(cases, whoCase{name: name, needs: lacksIPTables, play: func(s *stage, name string) {
				port := newPort(protocol)
				left := s.pair.ends[0]
				for _, family := range families {
					left.iptables(s.t, family, "-A", c.chain, "-p", strings.ToLower(string(protocol)), c.rule(family, port))
				}
				defer left.forgetIPTables(s.t)
				s.translated(name, protocol, c.translation, port)
			}})
		}
	}
	return cases
}

// iptables changes the table of translations.
func (ns *namespace) iptables(t *testing.T, family int, options ...string) {
	t.Helper()
	command := map[int]string{4: "iptables", 6: "ip6tables"}[family]
	args := append([]string{command, "-t", "nat"}, strings.Fields(strings.Join(options, " "))...)
	err := ns.do(func() error {
		out, err := exec.Command(iptablesProgram, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s in %s: %v", strings.Join(args, " "), ns.name, err)
	}
}

// forgetIPTables removes the tables, too, which iptables leaves.
func (ns *namespace) forgetIPTables(t *testing.T) {
	t.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.fd)))
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		conn.DelTable(&nftables.Table{Name: "nat", Family: family})
	}
	if err := conn.Flush(); err != nil {
		t.Fatalf("removing iptables' rules from %s: %v", ns.name, err)
	}
}
