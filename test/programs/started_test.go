// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// started is a program that was started.
type started struct {
	program
	machine *machine
	address netip.Addr
	log     string     // path of what it says
	ended   chan error // of the command
}

// environment is what a program's command has.
func (s *started) environment() ([]string, error) {
	env := []string{"ADDRESS=" + s.address.String()}
	if s.config == "" {
		return env, nil
	}
	b, err := os.ReadFile(guestRoot + filepath.Join(configs, s.config))
	if err != nil {
		return nil, err
	}
	text := strings.NewReplacer("ADDRESS", s.address.String(), "NETNS", fmt.Sprintf("/proc/%d/ns/net", s.machine.keeper)).Replace(string(b))
	path := fmt.Sprintf("/run/%s-%s", s.address, s.config)
	return append(env, "CONFIG="+path), os.WriteFile(guestRoot+path, []byte(text), 0o644)
}

// start starts a program, and does not wait for it.
func (m *machine) start(place int) (*started, error) {
	s := &started{program: programs[place], machine: m, address: address(place), ended: make(chan error, 1)}
	s.log = filepath.Join(os.TempDir(), s.address.String()+".log")
	env, err := s.environment()
	if err != nil {
		return nil, err
	}
	log, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := inRoot(s.command, env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { s.ended <- cmd.Wait() }()
	return s, nil
}

// awaitListening waits until each service has its sockets, and the command of a daemon has ended.
func (s *started) awaitListening() error {
	err := awaitOr("the start of "+s.name, limit, func() (bool, error) {
		select {
		case err := <-s.ended:
			if err != nil || !s.daemon {
				return false, errors.Join(fmt.Errorf("%s has ended", s.name), err)
			}
			s.ended <- nil
		default:
			if s.daemon {
				return false, nil
			}
		}
		for _, v := range s.services {
			if inodes, err := s.listeners(v); err != nil || len(inodes) == 0 {
				return false, err
			}
			if !v.published {
				continue
			}
			if inodes, err := listening(1, v.network, netip.AddrPortFrom(s.address, v.port)); err != nil || len(inodes) == 0 {
				return false, err // who proxies is to be there too, or nobody could take it for the receiver
			}
		}
		return true, nil
	})
	if err == nil {
		return nil
	}
	said, _ := os.ReadFile(s.log)
	return fmt.Errorf("%w; it said: %s", err, said)
}

// place is where a service's sockets are: a process in their network namespace, and their port.
func (s *started) place(v service) (pid int, at netip.AddrPort) {
	if v.published {
		return s.machine.keeper, netip.AddrPortFrom(netip.MustParseAddr(containerAddress), containerPort)
	}
	return 1, netip.AddrPortFrom(s.address, v.port)
}

// listeners are the inode numbers of the sockets by which a service can be reached.
func (s *started) listeners(v service) (inodes []uint64, err error) {
	pid, at := s.place(v)
	if inodes, err = listening(pid, v.network, at); err != nil || v.mptcp == "" || inodes == nil {
		return inodes, err
	}
	b, _ := os.ReadFile(guestRoot + v.mptcp) // or it will be there
	if !strings.HasSuffix(string(b), "\n") {
		return nil, nil
	}
	inode, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return append(inodes, inode), err
}

// listening are the inode numbers of the sockets that get what comes for an address.
func listening(pid int, network string, at netip.AddrPort) (inodes []uint64, err error) {
	all, err := sockets(pid, network)
	for _, socket := range all {
		addr := socket.local.Addr()
		if socket.listens && socket.local.Port() == at.Port() && (addr == at.Addr() || addr.IsUnspecified()) {
			inodes = append(inodes, socket.inode)
		}
	}
	return inodes, err
}

// accepted is the inode number of a connection's socket at the service; 0 while nobody has accepted it.
func (s *started) accepted(v service, client netip.AddrPort) (uint64, error) {
	pid, _ := s.place(v)
	all, err := sockets(pid, v.network)
	if err != nil {
		return 0, err
	}
	for _, socket := range all {
		if socket.remote == client && !socket.listens {
			return socket.inode, nil
		}
	}
	return 0, nil
}
