// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"gadget.example/network/internal/gadget"
)

const (
	turns     = 3
	loops     = 1_500   // connections of a turn, from connect to close
	datagrams = 100_000 // of a turn, to a high port
)

// cost is what a turn took: each connection and each datagram, until the gadget was
// ready, and bytes of kernel memory that its maps have.
type cost struct {
	connection, datagram, ready time.Duration
	memory                      uint64
}

// BenchmarkImages measures what a host pays for a run of the gadget: bare and with it,
// by turns. With nothing to report (--port 1), and with everything.
func BenchmarkImages(b *testing.B) {
	for b.Loop() {
		for _, port := range []string{"1", "0"} {
			var bare, on []cost
			for range turns {
				var without cost
				with, err := runWith(b.Context(), port)
				if err := errors.Join(err, without.measure()); err != nil {
					b.Fatal(err)
				}
				bare, on = append(bare, without), append(on, with)
			}
			tell(middle(bare), middle(on), port)
		}
	}
}

func tell(bare, on cost, port string) {
	fmt.Printf("--port %s  bare         connection %8d ns               datagram %6d ns\n", port, bare.connection.Nanoseconds(), bare.datagram.Nanoseconds())
	fmt.Printf("--port %s  this image   connection %8d ns, %.2f of bare  datagram %6d ns, %.2f of bare  ready %5.1f s  maps %6d KiB\n",
		port, on.connection.Nanoseconds(), float64(on.connection)/float64(bare.connection),
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

func runWith(ctx context.Context, port string) (c cost, err error) {
	start := time.Now()
	_, err = gadget.Run(ctx, gadget.Options{
		AutoMount: true,
		Params:    map[string]string{"host": "true", "port": port},
		OnReady: func(context.Context) error {
			c.ready = time.Since(start)
			if c.memory, err = mapMemory(); err != nil {
				return err
			}
			return c.measure()
		},
	})
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
		if _, err := connectOnce(listener, server); err != nil {
			return err
		}
	}
	return nil
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
