// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators"
)

// talked are the daemons that those who are followed have talked to, see
// ebpf/talked.h. What these do for them is nobody's who is followed.
type talked struct {
	unix   *ebpf.Map
	served *ebpf.Map

	mu     sync.Mutex
	called map[service]bool
}

// service is what a daemon receives at.
type service struct {
	netNS uint32
	at    netip.AddrPort
	proto uint8
}

// mostCalled bounds the services that are remembered: a scan calls each.
const mostCalled = 1 << 16

func newTalked() *talked { return &talked{called: map[service]bool{}} }

func (t *talked) attach(gadgetCtx operators.GadgetContext) (err error) {
	if t.unix, err = loadedMap(gadgetCtx, "talked_unix"); err != nil {
		return err
	}
	t.served, err = loadedMap(gadgetCtx, "served")
	return err
}

// enter takes note of an attempt that was sent.
func (t *talked) enter(s service) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.called) < mostCalled {
		t.called[s] = true
	}
}

// names are the daemons, as a line has them.
func (t *talked) names() ([]string, error) {
	var names []string
	key, value := make([]byte, t.unix.KeySize()), make([]byte, 1)
	entries := t.unix.Iterate()
	for entries.Next(&key, &value) {
		names = append(names, unixName(key))
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("reading who was talked to: %w", err)
	}
	services, err := t.services()
	for _, s := range services {
		if name := s.at.String(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, err
}

// services are those that both were called and have received.
func (t *talked) services() (services []service, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key, value := make([]byte, t.served.KeySize()), make([]byte, 1)
	entries := t.served.Iterate()
	for entries.Next(&key, &value) {
		if s := decodeService(key); t.called[s] {
			services = append(services, s)
		}
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("reading who was talked to: %w", err)
	}
	return services, nil
}

// decodeService reads struct tuple of ebpf/socket.h: of it the local end.
func decodeService(key []byte) service {
	const netNS, port, version, proto = 32, 36, 40, 41
	addr := netip.AddrFrom16([16]byte(key[:16]))
	if key[version] == 4 {
		addr = netip.AddrFrom4([4]byte(key[:4]))
	}
	return service{
		netNS: binary.NativeEndian.Uint32(key[netNS:]),
		at:    netip.AddrPortFrom(addr, binary.NativeEndian.Uint16(key[port:])),
		proto: key[proto],
	}
}

// unixName reads struct unix_path of ebpf/talked.h. A name that is no file's begins
// with a zero.
func unixName(key []byte) string {
	path := key[4:]
	path = path[:min(len(path), int(binary.NativeEndian.Uint32(key)))]
	if len(path) > 0 && path[0] == 0 {
		return "@" + printable(string(path[1:]))
	}
	name, _, _ := strings.Cut(string(path), "\x00")
	return printable(name)
}
