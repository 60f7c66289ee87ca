// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"gadget.example/network/internal/gadget"
)

const (
	loops     = 1_000  // connections of a turn, from connect to close
	datagrams = 30_000 // of a turn, to a high port
)

// turns: more where other work is in the way, fewer where time is counted instructions.
var turns = flag.Int("turns", 3, "how often BenchmarkImages goes through all hosts")

// cost is what a turn took: each connection and each datagram, until the gadget was
// ready, and bytes of kernel memory that its maps have.
type cost struct {
	connection, datagram, ready time.Duration
	memory                      uint64
}

// hosts are what a turn goes through: a host without the gadget, and with it.
var hosts = []struct {
	name   string
	params map[string]string // nil: bare
}{
	{name: "bare"},
	{"this image", map[string]string{}},
	{"this image, --lifecycle", map[string]string{"lifecycle": "true"}},
}

// BenchmarkImages measures what a host pays for a run of the gadget: bare and with it,
// by turns. With nothing to report (--port 1), and with everything.
func BenchmarkImages(b *testing.B) {
	for b.Loop() {
		for _, port := range []string{"1", "0"} {
			costs := make([][]cost, len(hosts))
			for range *turns {
				for i, host := range hosts {
					c, err := measureHost(b.Context(), host.params, port)
					if err != nil {
						b.Fatalf("--port %s, %s: %v", port, host.name, err)
					}
					costs[i] = append(costs[i], c)
				}
			}
			for i, host := range hosts {
				tellHost(host.name, middle(costs[0]), middle(costs[i]), port)
			}
		}
	}
}

func tellHost(name string, bare, on cost, port string) {
	fmt.Printf("--port %s  %-23s  connection %8d ns, %.2f of bare  datagram %6d ns, %.2f of bare  ready %5.1f s  maps %6d KiB\n",
		port, name, on.connection.Nanoseconds(), float64(on.connection)/float64(bare.connection),
		on.datagram.Nanoseconds(), float64(on.datagram)/float64(bare.datagram), on.ready.Seconds(), on.memory>>10)
}

// middle is the medians of the turns.
func middle(costs []cost) cost {
	var connections, all, ready []time.Duration
	for _, c := range costs {
		connections, all, ready = append(connections, c.connection), append(all, c.datagram), append(ready, c.ready)
	}
	return cost{median(connections), median(all), median(ready), costs[len(costs)-1].memory}
}

func measureHost(ctx context.Context, params map[string]string, port string) (c cost, err error) {
	if params == nil {
		return c, c.measure()
	}
	params = maps.Clone(params)
	params["host"], params["port"] = "true", port
	return measureRun(ctx, gadget.Options{AutoMount: true, Params: params}, (*cost).measure)
}

// measureRun measures a host with the gadget.
func measureRun(ctx context.Context, o gadget.Options, measure func(*cost) error) (c cost, err error) {
	start := time.Now()
	o.OnReady = func(context.Context) error {
		c.ready = time.Since(start)
		if c.memory, err = mapMemory(); err != nil {
			return err
		}
		return measure(&c)
	}
	_, err = gadget.Run(ctx, o)
	return c, err
}

func (c *cost) measure() error {
	start := time.Now()
	if err := loopMany(); err != nil {
		return err
	}
	c.connection = time.Since(start) / loops
	start = time.Now()
	if err := sendMany(); err != nil {
		return err
	}
	c.datagram = time.Since(start) / datagrams
	return nil
}

// loopMany makes connections from connect to close, one after the other. They end in
// order, as most do: each of their changes of state is one that the gadget may look at.
func loopMany() error {
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(listener)
	if err := errors.Join(unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(listener, 16)); err != nil {
		return err
	}
	server, err := unix.Getsockname(listener)
	if err != nil {
		return err
	}
	for range loops {
		if err := talkOnce(listener, server); err != nil {
			return err
		}
	}
	return nil
}

func talkOnce(listener int, server unix.Sockaddr) (err error) {
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(client)) }()
	if err := unix.Connect(client, server); err != nil {
		return err
	}
	accepted, _, err := unix.Accept(listener)
	if err != nil {
		return err
	}
	// The server's end closes first: the TIME_WAIT is its, and uses up no port.
	defer func() { err = errors.Join(err, unix.Close(accepted)) }()
	var buffer [64]byte
	_, err = unix.Write(client, buffer[:])
	if err == nil {
		_, err = unix.Read(accepted, buffer[:])
	}
	return err
}

func sendMany() error {
	receiver, err1 := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	sender, err2 := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	defer unix.Close(receiver)
	defer unix.Close(sender)
	if err := unix.Bind(receiver, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	to, err := unix.Getsockname(receiver)
	if err != nil {
		return err
	}
	payload := make([]byte, 64)
	for range datagrams {
		if err := unix.Sendto(sender, payload, 0, to); err != nil {
			return err
		}
	}
	return nil
}

// mapMemory is that of all maps of the machine: those that others have are few.
func mapMemory() (sum uint64, err error) {
	for id := ebpf.MapID(0); ; {
		id, err = ebpf.MapGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return sum, nil
		}
		if err != nil {
			return 0, err
		}
		m, err := ebpf.NewMapFromID(id)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		info, err := m.Info()
		m.Close()
		if err != nil {
			return 0, err
		}
		if n, ok := info.Memlock(); ok {
			sum += n
		}
	}
}
