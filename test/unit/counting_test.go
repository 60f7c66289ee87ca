// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"

	"gadget.example/network/test/object"
)

// connectionsImage is where `make build` leaves the image that counts.
const connectionsImage = "../../build/network-connections.tar"

// A counter is the socket filter of the image that counts.
type counter struct {
	filter     *ebpf.Program
	rows       *ebpf.Map
	key, value layout
}

func loadCounter(tb testing.TB, params parameters) *counter {
	tb.Helper()
	spec, err := object.ReadArchive(connectionsImage)
	if err != nil {
		tb.Fatal(err)
	}
	if err := errors.Join(params.set(spec), object.Keep(spec, filterProgram)); err != nil {
		tb.Fatal(err)
	}
	c := &counter{}
	rows := spec.Maps["counted"]
	key, err1 := structLayout(rows.Key)
	value, err2 := structLayout(rows.Value)
	loaded, err3 := object.Load(spec)
	if err := errors.Join(err1, err2, err3); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(loaded.Close)
	c.filter, c.rows, c.key, c.value = loaded.Programs[filterProgram], loaded.Maps["counted"], key, value
	// What is received does not wait for an answer.
	if err := loaded.Maps[endingBook].Put(uint32(0), bit(true)); err != nil {
		tb.Fatal(err)
	}
	return c
}

// A total is what rows count, together.
type total struct{ attempts, uncounted, rows, parts uint64 }

// take reads all rows and takes them away, as IG does.
func (c *counter) take(to *total) error {
	const batch = 100
	var cursor ebpf.MapBatchCursor
	keys, values := arrays(batch, c.rows.KeySize()), arrays(batch, c.rows.ValueSize())
	for {
		n, err := c.rows.BatchLookupAndDelete(&cursor, keys.Interface(), values.Interface(), nil)
		last := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !last {
			return err
		}
		for i := range n {
			key, value := keys.Index(i).Bytes(), values.Index(i).Bytes()
			to.attempts += c.value.field("attempts").uint(value)
			to.uncounted += c.value.field("uncounted").uint(value)
			to.rows++
			if c.key.field("part").uint(key) != 0 {
				to.parts++
			}
		}
		if last {
			return nil
		}
	}
}

// arrays makes a slice of arrays, as the library wants them.
func arrays(n int, size uint32) reflect.Value {
	return reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]())), n, n)
}

// TestCountsAreExactWhileTheyAreRead has each CPU count attempts of the same row, as
// fast as it can, while the rows are read and taken away.
func TestCountsAreExactWhileTheyAreRead(t *testing.T) {
	const attempts = 20_000
	c := loadCounter(t, nil)
	cpus, err := cpus()
	if err != nil {
		t.Fatal(err)
	}
	var counting sync.WaitGroup
	var left atomic.Int64
	failed := make(chan error, len(cpus))
	for _, cpu := range cpus {
		left.Add(1)
		counting.Go(func() {
			defer left.Add(-1)
			p := udp4
			p.sport += uint16(cpu)
			failed <- onCPU(cpu, func() error {
				g := giver{program: c.filter}
				for range attempts {
					if err := g.test(p.frame(), someNetNS); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	var got total
	for left.Load() > 0 {
		if err := c.take(&got); err != nil {
			t.Fatal(err)
		}
	}
	counting.Wait()
	if err := c.take(&got); err != nil {
		t.Fatal(err)
	}
	for range cpus {
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("read in %d rows, %d of which counted at the same time as another", got.rows, got.parts)
	if want := attempts * uint64(len(cpus)); got.attempts != want || got.uncounted != 0 {
		t.Errorf("counted %d attempts, and %d without a row, want %d and none", got.attempts, got.uncounted, want)
	}
}

// TestWhatHasNoRowIsTold: nothing is lost in silence when there are too many rows.
func TestWhatHasNoRowIsTold(t *testing.T) {
	const rows, attempts = 16, 50
	c := loadCounter(t, parameters{"counted_max_entries": uint32(rows)})
	var got total
	err := onCPU(0, func() error {
		g := giver{program: c.filter}
		p := udp4
		for i := range attempts {
			p.src = netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
			if err := g.test(p.frame(), someNetNS); err != nil {
				return err
			}
		}
		if err := c.take(&got); err != nil {
			return err
		}
		return g.test(udp4.frame(), someNetNS) // whose row tells
	})
	if err != nil {
		t.Fatal(err)
	}
	counted := got.attempts
	if err := c.take(&got); err != nil {
		t.Fatal(err)
	}
	if counted == 0 || counted+got.uncounted != attempts || got.attempts != counted+1 {
		t.Errorf("of %d attempts %d were counted and %d told of, want all together", attempts, counted, got.uncounted)
	}
}
