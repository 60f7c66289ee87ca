// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"cmp"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var packets = flag.Int("packets", 20000, "how many packets TestFuzzMany compares with gopacket's reading")

// FuzzPacket compares the program's verdict on a frame with gopacket's reading
// of the same bytes. All of them are received, so that none answers another one.
// See generator for what an input is.
func FuzzPacket(f *testing.F) {
	// A fuzz worker is a process, which comes by here as well.
	g := load(f, nil)
	for _, c := range cases() {
		f.Add(append([]byte{rawFrame}, c.frame()...))
	}
	source := newSource(1)
	for range 64 {
		f.Add(slices.Clone(source.next()))
	}
	var r reference
	generate := newGenerator()
	f.Fuzz(func(t *testing.T, input []byte) {
		frame := generate.frame(input)
		var want []event
		if e, ok := r.frame(frame, false, loopbackMAC, someNetNS); ok && !isTooShortToTest(frame) {
			want = append(want, e)
		}
		got, err := g.verdict(frame, someNetNS)
		if err := errors.Join(err, difference(frame, got, want)); err != nil {
			t.Error(err)
		}
	})
}

// A source gives the fuzzer's inputs; the same ones for the same seed.
type source struct {
	random *rand.ChaCha8
	buffer [96]byte
}

func newSource(seed uint64) *source {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return &source{random: rand.NewChaCha8(key)}
}

func (s *source) next() []byte {
	_, _ = s.random.Read(s.buffer[:]) // never fails
	return s.buffer[:]
}

// A tally counts what was compared.
type tally struct {
	packets, attempts, ipv4, ipv6, tcp, udp int
	tagged, extended, fragmented            int
}

func (t *tally) add(r *reference, want []event) {
	t.packets++
	if len(want) == 0 {
		return
	}
	count := func(n *int, yes bool) {
		if yes {
			*n++
		}
	}
	t.attempts++
	count(&t.ipv4, want[0].Dst.Version == 4)
	count(&t.ipv6, want[0].Dst.Version == 6)
	count(&t.tcp, want[0].Dst.Proto == protoTCP)
	count(&t.udp, want[0].Dst.Proto == protoUDP)
	count(&t.tagged, r.tags > 0)
	count(&t.extended, r.extensions > 0)
	count(&t.fragmented, r.fragmented)
}

func (t *tally) merge(o tally) {
	t.packets += o.packets
	t.attempts += o.attempts
	t.ipv4 += o.ipv4
	t.ipv6 += o.ipv6
	t.tcp += o.tcp
	t.udp += o.udp
	t.tagged += o.tagged
	t.extended += o.extended
	t.fragmented += o.fragmented
}

func (t *tally) String() string {
	return fmt.Sprintf("%d packets compared, %d of them attempts: %d IPv4, %d IPv6; %d TCP, %d UDP; "+
		"%d with VLAN tags, %d with extension headers, %d first fragments",
		t.packets, t.attempts, t.ipv4, t.ipv6, t.tcp, t.udp, t.tagged, t.extended, t.fragmented)
}

// batch is how many packets share a look at the ring; their events would fill
// a fraction of it.
const batch = 500

// A comparer runs batches of packets on a gadget of its own.
type comparer struct {
	gadget    *gadget
	generator *generator
	reference reference
	frames    [][]byte
	want, got []event
	tally     tally
}

// compare generates n packets from a seed. The number of a packet, counted from 1,
// serves as its network namespace, which tells its events from those of the others.
func (c *comparer) compare(seed uint64, n int) error {
	c.frames, c.want = c.frames[:0], c.want[:0]
	src := newSource(seed)
	for i := 1; i <= n; i++ {
		frame := c.generator.frame(src.next())
		c.frames = append(c.frames, frame)
		before := len(c.want)
		if e, ok := c.reference.frame(frame, false, loopbackMAC, uint32(i)); ok && !isTooShortToTest(frame) {
			c.want = append(c.want, e)
		}
		c.tally.add(&c.reference, c.want[before:])
		if err := c.gadget.test(frame, uint32(i)); err != nil && !errors.Is(err, errRejected) {
			return fmt.Errorf("sent %x: %w", frame, err)
		}
	}
	var err error
	if c.got, err = c.gadget.drain(c.got[:0]); err != nil {
		return err
	}
	return c.check()
}

// check compares the events of a batch. They are in order on each CPU alone.
func (c *comparer) check() error {
	slices.SortStableFunc(c.got, func(a, b event) int { return cmp.Compare(a.NetNS, b.NetNS) })
	if slices.Equal(c.got, c.want) {
		return nil
	}
	of := func(events []event, i int) []event {
		return slices.DeleteFunc(slices.Clone(events), func(e event) bool { return e.NetNS != uint32(i) })
	}
	var errs []error
	for i, frame := range c.frames {
		errs = append(errs, difference(frame, of(c.got, i+1), of(c.want, i+1)))
	}
	return errors.Join(errs...)
}

func TestFuzzMany(t *testing.T) {
	var (
		next   atomic.Int64
		total  tally
		mutex  sync.Mutex
		work   sync.WaitGroup
		failed atomic.Bool
	)
	start := time.Now()
	for i := range max(2, runtime.GOMAXPROCS(0)) { // with both ways to read headers
		c := &comparer{gadget: load(t, parameters{"is_oldest": i%2 != 0}), generator: newGenerator()}
		work.Go(func() {
			for !failed.Load() {
				seed := int(next.Add(1)) - 1
				n := min(batch, *packets-seed*batch)
				if n <= 0 {
					break
				}
				if err := c.compare(uint64(seed), n); err != nil {
					failed.Store(true)
					t.Errorf("batch %d: %v", seed, err)
				}
			}
			mutex.Lock()
			defer mutex.Unlock()
			total.merge(c.tally)
		})
	}
	work.Wait()
	t.Logf("%v, in %v", &total, time.Since(start).Round(time.Millisecond))
}

// On a wire a packet takes longer, so that there are fewer of them.
func TestFuzzTraffic(t *testing.T) {
	for i, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			var (
				r     reference
				total tally
			)
			w, generate, src := k.open(t), newGenerator(), newSource(uint64(i))
			start := time.Now()
			for range *packets / 50 {
				frame, ok := w.adapt(generate.frame(src.next()))
				if !ok {
					continue
				}
				if err := w.check(&r, frame); err != nil {
					t.Fatal(err)
				}
				var want []event
				if e, ok := w.want(&r, frame, true, w.netns(true)); ok {
					want = append(want, e)
				}
				total.add(&r, want)
			}
			t.Logf("%v, in %v", &total, time.Since(start).Round(time.Millisecond))
		})
	}
}
