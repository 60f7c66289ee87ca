// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// One of so many attempts is a connection, the others are datagrams to a DNS server.
	connectionOf = 4
	// What waits for its time is looked at so often.
	loadTick = 500 * time.Microsecond
	// A generator that was held up makes up for so much, and no more: a host does not
	// send all that it has not sent for long at once.
	loadBurst = 5 * time.Millisecond
)

// generator makes attempts, each one packet that leaves by a device of its own and that
// nobody answers or receives.
type generator struct {
	udp int
	tcp unix.SockaddrInet4
}

// newGenerator has the pair's client send to an address on its network that is no device's.
func newGenerator() (*generator, error) {
	device, err := netlink.LinkByName(clientDevice)
	if err != nil {
		return nil, err
	}
	err = netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: device.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: net.ParseIP(nobodyIPv4), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
	})
	if err != nil {
		return nil, err
	}
	g := &generator{tcp: unix.SockaddrInet4{Port: highPort, Addr: [4]byte(net.ParseIP(nobodyIPv4).To4())}}
	if g.udp, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, err
	}
	if err := unix.Connect(g.udp, &unix.SockaddrInet4{Port: dnsPort, Addr: g.tcp.Addr}); err != nil {
		return nil, errors.Join(err, g.close())
	}
	return g, nil
}

// nobodyIPv4 is an address of the pair's network that neither end has.
const nobodyIPv4 = "192.0.2.3"

func (g *generator) close() error { return unix.Close(g.udp) }

// send makes attempts at a rate per second, as well as it can, for a time. Its thread
// must stay in the network namespace.
func (g *generator) send(rate float64, during time.Duration) (sent uint64, err error) {
	tick := unix.NsecToTimespec(loadTick.Nanoseconds())
	var due float64
	for start, last := time.Now(), time.Now(); ; {
		now := time.Now()
		if now.Sub(start) >= during {
			return sent, nil
		}
		due += rate * min(now.Sub(last), loadBurst).Seconds()
		last = now
		for ; due >= 1; due-- {
			if err := g.attempt(sent); err != nil {
				return sent, err
			}
			sent++
		}
		if err := unix.Nanosleep(&tick, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return sent, err
		}
	}
}

func (g *generator) attempt(number uint64) error {
	if number%connectionOf != 0 {
		_, err := unix.Write(g.udp, make([]byte, 40))
		return err
	}
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	// It is closed before the SYN would be sent again.
	if err = unix.Connect(socket, &g.tcp); errors.Is(err, unix.EINPROGRESS) {
		err = nil
	}
	return errors.Join(err, unix.Close(socket))
}
