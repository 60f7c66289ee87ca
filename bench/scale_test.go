// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"gadget.example/network/internal/gadget"
)

// scaleRounds are short; the medians count.
const scaleRounds = 15

// BenchmarkScale measures what a packet takes in the gadget's filter as a host has more
// network namespaces that it is attached to, and more connections.
func BenchmarkScale(b *testing.B) {
	filters, closeAll, err := load([]maker{guarded[0], guarded[3]})
	if err != nil {
		b.Fatal(err)
	}
	defer closeAll()
	runtime.LockOSThread() // of the network namespace
	defer runtime.UnlockOSThread()
	for b.Loop() {
		s := scale{empty: filters[0].program, ours: filters[1].program}
		for _, grow := range []func() error{s.addNamespaces, s.addConnections} {
			if err := s.within(grow); err != nil {
				b.Fatal(err)
			}
		}
		if err := tell("scale", s.rows()); err != nil {
			b.Fatal(err)
		}
	}
}

// scale measures a host as it grows.
type scale struct {
	empty, ours *ebpf.Program
	steps       [][]step // of each thing that grows
}

// step is a host of some size: what each packet took in ours, more than in the empty
// filter that saw the same packets.
type step struct {
	name                  string
	datagram, connections float64 // ns, each packet
}

// within does something in a new network namespace that both filters are attached to.
func (s *scale) within(do func() error) (err error) {
	leave, err := enterNew()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leave()) }()
	for _, p := range []*ebpf.Program{s.empty, s.ours} {
		socket, err := listenLarge(p)
		if err != nil {
			return err
		}
		defer unix.Close(socket)
	}
	// What nobody reads waits from now on, as much as can.
	if err := loopMany(); err != nil {
		return err
	}
	s.steps = append(s.steps, nil)
	return do()
}

func listenLarge(p *ebpf.Program) (socket int, err error) {
	if err := allowLarge(); err != nil {
		return -1, err
	}
	return listen(attachProgram(p))
}

// addNamespaces attaches the gadget's filter to more and more namespaces.
func (s *scale) addNamespaces() error {
	var sockets []int
	defer func() {
		for _, socket := range sockets {
			unix.Close(socket) // the last of its namespace
		}
	}()
	for _, n := range []int{1, 10, 100, 1_000} {
		for len(sockets)+1 < n {
			leave, err := enterNew()
			if err != nil {
				return err
			}
			socket, err := listenLarge(s.ours)
			if err := errors.Join(err, leave()); err != nil {
				return err
			}
			sockets = append(sockets, socket)
		}
		if err := s.measure(many(n, "network namespace")); err != nil {
			return err
		}
	}
	return nil
}

// addConnections has more and more connections be open over loopback, both ends.
func (s *scale) addConnections() error {
	const most = 1_000_000
	// And a listener for each some of them.
	all, err := newCrowd(2*most + most/100)
	if err != nil {
		return err
	}
	defer all.close()
	open := 0
	for _, n := range []int{0, 1_000, 100_000, most} {
		if err := all.connect(open, n-open); err != nil {
			return fmt.Errorf("opening %d connections: %w", n, err)
		}
		open = n
		if err := s.measure(many(n, "connection")); err != nil {
			return err
		}
	}
	return nil
}

func many(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (s *scale) measure(name string) error {
	var datagrams, connections []float64
	for range scaleRounds {
		datagram, err1 := s.each(sendMany)
		connection, err2 := s.each(loopMany)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		datagrams, connections = append(datagrams, datagram), append(connections, connection)
	}
	last := len(s.steps) - 1
	s.steps[last] = append(s.steps[last], step{name, median(datagrams), median(connections)})
	return nil
}

// each is what a packet takes, in ns, of what do sends.
func (s *scale) each(do func() error) (float64, error) {
	var runs uint64
	var took time.Duration
	emptyRuns, emptyTook, err := counted(s.empty, func() (err error) {
		runs, took, err = counted(s.ours, do)
		return err
	})
	if err == nil && (runs == 0 || emptyRuns == 0) {
		err = errors.New("no packet was seen")
	}
	return float64(took)/float64(runs) - float64(emptyTook)/float64(emptyRuns), err
}

// rows tell of each step, and what it is of the first of its kind.
func (s *scale) rows() [][]string {
	rows := [][]string{{"", "a datagram's packet, ns", "of the first", "a connection's packet, ns", "of the first"}}
	for _, steps := range s.steps {
		for _, st := range steps {
			rows = append(rows, []string{
				st.name, fmt.Sprintf("%.1f", st.datagram), fmt.Sprintf("%.2f", st.datagram/steps[0].datagram),
				fmt.Sprintf("%.1f", st.connections), fmt.Sprintf("%.2f", st.connections/steps[0].connections),
			})
		}
	}
	return rows
}

// BenchmarkScaleRun measures what a run of the gadget, with all its hooks, costs a host as
// it has more sockets, connections and network namespaces: bare and with it, for each.
func BenchmarkScaleRun(b *testing.B) {
	runtime.LockOSThread() // of the network namespace
	defer runtime.UnlockOSThread()
	// Else each measurement leaves work to one that comes a minute later.
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", []byte("0"), 0); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		for _, n := range []int{10, 1_000, 100_000} {
			err := compare(b, many(n, "socket"), n, func(c *crowd) error { return c.open(0, n) })
			if err != nil {
				b.Fatal(err)
			}
		}
		for _, n := range []int{1_000, 100_000} {
			err := compare(b, many(n, "connection"), 3*n, func(c *crowd) error { return c.connect(0, n) })
			if err != nil {
				b.Fatal(err)
			}
		}
		if err := compareNamespaces(b); err != nil {
			b.Fatal(err)
		}
	}
}

// compare measures a host that has grown by so many files: bare, with a gadget that is
// younger, and with one that is older than what the host has.
func compare(b *testing.B, name string, files int, grow func(*crowd) error) error {
	var bare, younger, older cost
	err := withCrowd(files, func(c *crowd) (err error) {
		if err := grow(c); err != nil {
			return err
		}
		if err := bare.measureOften(); err != nil {
			return err
		}
		younger, err = measureRun(b.Context(), everything(), (*cost).measureOften)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s that are older: %w", name, err)
	}
	tellHost(name+" before", bare, younger, "0")
	err = withCrowd(files, func(c *crowd) (err error) {
		older, err = measureRun(b.Context(), everything(), func(on *cost) error {
			return errors.Join(grow(c), on.measureOften())
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("%s that are younger: %w", name, err)
	}
	tellHost(name+" after", bare, older, "0")
	return nil
}

func withCrowd(files int, do func(*crowd) error) error {
	c, err := newCrowd(files)
	if err != nil {
		return err
	}
	defer c.close()
	return do(c)
}

// often is how often a host of one size is measured.
const often = 3

// measureOften takes medians: what a run before has left to do is in the way of the first.
func (c *cost) measureOften() error {
	var all []cost
	for range often {
		var one cost
		if err := one.measure(); err != nil {
			return err
		}
		all = append(all, one)
	}
	m := middle(all)
	c.connection, c.datagram = m.connection, m.datagram
	return nil
}

// everything is a run that reports all of this host.
func everything() gadget.Options {
	return gadget.Options{AutoMount: true, Params: map[string]string{"host": "true", "rate-limit": "0"}}
}

// compareNamespaces has the gadget watch more and more network namespaces.
func compareNamespaces(b *testing.B) (err error) {
	var names []string
	defer func() {
		for _, name := range names {
			err = errors.Join(err, netns.DeleteNamed(name))
		}
	}()
	for _, n := range []int{1, 10, 100, 1_000} {
		for len(names)+1 < n {
			name := fmt.Sprintf("bench%d", len(names))
			if err := makeNamed(name); err != nil {
				return err
			}
			names = append(names, name)
		}
		var bare cost
		if err := bare.measureOften(); err != nil {
			return err
		}
		o := everything()
		o.NetNS = []string{gadget.AllNetNS}
		on, err := measureRun(b.Context(), o, (*cost).measureOften)
		if err != nil {
			return err
		}
		tellHost(many(n, "network namespace"), bare, on, "0")
	}
	return nil
}

// makeNamed makes a network namespace, as `ip netns add` does.
func makeNamed(name string) error {
	here, err := netns.Get()
	if err != nil {
		return err
	}
	defer here.Close()
	created, err := netns.NewNamed(name)
	if err != nil {
		return err
	}
	return errors.Join(created.Close(), raise("lo", ""), netns.Set(here))
}
