// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// socket is a line of /proc/net/tcp or udp.
type socket struct {
	local, remote netip.AddrPort
	listens       bool   // or, of UDP, has no peer
	inode         uint64 // 0: nobody has accepted it yet
}

// States of sockets in /proc/net, see include/net/tcp_states.h. A UDP socket without a peer is closed.
const (
	stateClose  = 0x07
	stateListen = 0x0a
)

// sockets are those of a protocol in the network namespace of a process.
func sockets(pid int, network string) (all []socket, err error) {
	for _, name := range []string{network, network + "6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, name))
		if err != nil {
			return nil, err
		}
		_, lines, _ := strings.Cut(string(b), "\n")
		for line := range strings.Lines(lines) {
			s, err := parseSocket(line, network)
			if err != nil {
				return nil, fmt.Errorf("/proc/net/%s: %q: %w", name, line, err)
			}
			all = append(all, s)
		}
	}
	return all, nil
}

func parseSocket(line, network string) (s socket, err error) {
	fields := strings.Fields(line)
	const local, remote, state, inode = 1, 2, 3, 9
	if len(fields) <= inode {
		return s, errors.New("too few fields")
	}
	number, err := strconv.ParseUint(fields[state], 16, 8)
	if err != nil {
		return s, err
	}
	s.listens = number == stateListen || network == "udp" && number == stateClose
	if s.local, err = parseEndpoint(fields[local]); err != nil {
		return s, err
	}
	if s.remote, err = parseEndpoint(fields[remote]); err != nil {
		return s, err
	}
	s.inode, err = strconv.ParseUint(fields[inode], 10, 64)
	return s, err
}

// parseEndpoint reads an address, 32 bits at a time in the host's byte order, and a port.
func parseEndpoint(s string) (netip.AddrPort, error) {
	address, number, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for word := range slices.Chunk(b, 4) {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	addr, ok := netip.AddrFromSlice(b)
	port, err := strconv.ParseUint(number, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("endpoint %q", s)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), nil
}

// process is what /proc says of one.
type process struct {
	pid, parent int
	name        string
	command     string
	dead        bool // there is none any more, or nothing of it but its status
}

func (p process) String() string {
	if p.dead {
		return fmt.Sprintf("%d (dead)", p.pid)
	}
	return fmt.Sprintf("%d %q parent %d: %s", p.pid, p.name, p.parent, p.command)
}

func readProcess(pid int) process {
	p := process{pid: pid, dead: true}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return p
	}
	// The name may have spaces and parentheses of its own.
	first, last := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	rest := bytes.Fields(b[last+1:])
	p.name, p.dead = string(b[first+1:last]), bytes.ContainsAny(rest[0], "ZX")
	p.parent, _ = strconv.Atoi(string(rest[1])) // the kernel writes numbers
	command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	p.command = strings.TrimSpace(string(bytes.ReplaceAll(command, []byte{0}, []byte(" "))))
	return p
}

// holders are the processes that have a descriptor for one of the sockets.
func holders(inodes ...uint64) map[int]bool {
	var wanted []string
	for _, inode := range inodes {
		wanted = append(wanted, fmt.Sprintf("socket:[%d]", inode))
	}
	found := map[int]bool{}
	for _, pid := range processes() {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, entry := range entries {
			if target, err := os.Readlink(filepath.Join(dir, entry.Name())); err == nil && slices.Contains(wanted, target) {
				found[pid] = true
				break
			}
		}
	}
	return found
}

func processes() (pids []int) {
	entries, _ := os.ReadDir("/proc") // is always there
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func describe(pids map[int]bool) string {
	var all []string
	for _, pid := range slices.Sorted(maps.Keys(pids)) {
		all = append(all, readProcess(pid).String())
	}
	if all == nil {
		return "nobody"
	}
	return strings.Join(all, "; ")
}
