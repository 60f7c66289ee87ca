// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// ports are the client's, each of which is used once, so that it tells the attempt.
var ports atomic.Uint32

const firstPort = 20000

// attempt is a connection, or a datagram, and what came of it.
type attempt struct {
	conn   net.Conn
	client netip.AddrPort
}

// connect reaches for a service from the client's namespace, and asks all but the last byte. A datagram is not sent yet.
func (s *started) connect(v service) (*attempt, error) {
	a := &attempt{client: netip.AddrPortFrom(netip.MustParseAddr(clientAddress), uint16(firstPort+ports.Add(1)))}
	err := within(s.machine.client, func() (err error) {
		dialer := net.Dialer{Timeout: limit, LocalAddr: net.TCPAddrFromAddrPort(a.client)}
		if v.network == "udp" {
			dialer.LocalAddr = net.UDPAddrFromAddrPort(a.client)
		}
		a.conn, err = dialer.Dial(v.network, netip.AddrPortFrom(s.address, v.port).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := a.conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	if v.network == "tcp" && v.ask != "" {
		_, err = a.conn.Write([]byte(v.ask[:len(v.ask)-1]))
	}
	return a, err
}

// finish asks the rest, and wants an answer.
func (a *attempt) finish(v service) error {
	rest := v.ask
	if v.network == "tcp" && rest != "" {
		rest = rest[len(rest)-1:]
	}
	if rest != "" {
		if _, err := a.conn.Write([]byte(rest)); err != nil {
			return err
		}
	}
	if n, err := a.conn.Read(make([]byte, 1024)); n == 0 {
		return fmt.Errorf("no answer: %w", err)
	}
	return nil
}

// use makes an attempt that does not count.
func (s *started) use(v service) error {
	a, err := s.connect(v)
	if err != nil {
		return fmt.Errorf("%s: connecting: %w", s.name, err)
	}
	defer a.conn.Close()
	if err := a.finish(v); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return nil
}
