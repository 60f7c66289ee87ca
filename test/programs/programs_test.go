// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"sync"
	"testing"

	"gadget.example/network/internal/gadget"
)

// order is when the programs are started.
type order string

const (
	before order = "before"
	after  order = "after"
)

// TestPrograms starts all programs before the gadget, then all after it, and connects to each.
func TestPrograms(t *testing.T) {
	if os.Getenv(inGuest) == "" {
		t.Skip("boots a VM with real programs, which takes minutes: set E2E_KERNEL to a kernel's name (make test-programs)")
	}
	m := newMachine(t)
	var results []*result
	t.Cleanup(func() { fmt.Println(table(results)) })
	for _, o := range []order{before, after} {
		t.Run(string(o), func(t *testing.T) {
			m.clear(t)
			r := &round{order: o, machine: m, arrivals: newArrivals()}
			if o == before {
				r.start(t)
				r.useAll(t)
			}
			options := gadget.Options{
				Params:  map[string]string{"host": "true", "rate-limit": "0"},
				NetNSOf: []int{m.keeper},
				OnEvent: r.arrivals.add,
				OnReady: func(context.Context) error {
					if o == after {
						r.start(t)
					}
					for _, s := range r.running {
						for _, v := range s.services {
							results = append(results, r.test(t, s, v))
						}
					}
					return nil
				},
			}
			if _, err := os.Stat(guestImage); err == nil {
				options.Image.File = guestImage
			}
			summary, err := gadget.Run(t.Context(), options)
			if err != nil {
				t.Fatalf("the gadget: %v", err)
			}
			if err := summary.Err(); err != nil {
				t.Errorf("the gadget: %v", err)
			}
		})
	}
	m.clear(t)
}

// round is a run of the gadget, and programs of one order.
type round struct {
	order    order
	machine  *machine
	arrivals *arrivals
	running  []*started
}

// start starts the programs that were chosen, all at once, and waits for them.
func (r *round) start(t *testing.T) {
	wanted := regexp.MustCompile(*chosen)
	var all []*started
	for place, p := range programs {
		if !wanted.MatchString(p.name) {
			continue
		}
		s, err := r.machine.start(place)
		if err != nil {
			t.Errorf("%s: %v", p.name, err)
			continue
		}
		all = append(all, s)
	}
	for _, s := range all {
		if err := s.awaitListening(); err != nil {
			t.Error(err)
			continue
		}
		r.running = append(r.running, s)
	}
}

// useAll has each service answer: who serves has accepted before the gadget runs.
func (r *round) useAll(t *testing.T) {
	var wg sync.WaitGroup
	for _, s := range r.running {
		for _, v := range s.services {
			wg.Go(func() {
				if err := s.use(v); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
}

// test makes the attempts, and judges whom the gadget names.
func (r *round) test(t *testing.T, s *started, v service) *result {
	res := &result{order: r.order, program: s.name, network: v.network, named: map[string]int{}}
	earlier := map[int]bool{}
	t.Run(fmt.Sprintf("%s/%s", s.name, v.network), func(t *testing.T) {
		for i := range *attempts {
			seen, err := r.try(s, v)
			if err != nil {
				t.Errorf("attempt %d: %v", i+1, err)
				res.attempts++
				continue
			}
			seen.earlier = earlier
			for _, fault := range res.enter(seen) {
				t.Errorf("attempt %d: %s\n%s", i+1, fault, seen)
			}
			maps.Copy(earlier, seen.acceptors)
		}
	})
	return res
}

// try makes an attempt, and looks at everything while the connection is there.
func (r *round) try(s *started, v service) (*sight, error) {
	inodes, err := s.listeners(v)
	if err != nil {
		return nil, err
	}
	seen := &sight{service: v, holders: holders(inodes...)}
	for pid := range seen.holders {
		seen.before = append(seen.before, readProcess(pid))
	}
	a, err := s.connect(v)
	if err != nil {
		return nil, err
	}
	defer a.conn.Close()
	seen.client = a.client
	if v.network == "tcp" {
		if err := findAcceptors(s, v, a.client, seen); err != nil {
			return nil, err
		}
	}
	if err := a.finish(v); err != nil {
		return nil, fmt.Errorf("%w: %s", err, seen)
	}
	_ = awaitOr("an event", limit/6, func() (bool, error) { return r.arrivals.any(a.client, v), nil }) // or there is none, which counts
	seen.events = r.arrivals.take(a.client)
	// Who listens now, too: a worker may have come meanwhile.
	if inodes, err = s.listeners(v); err != nil {
		return nil, err
	}
	maps.Copy(seen.holders, holders(inodes...))
	for _, e := range seen.events {
		seen.named = append(seen.named, readProcess(int(e.Proc.PID)))
	}
	return seen, nil
}

// findAcceptors waits until the connection is somebody's. Who has the listener too is who accepted; or else its nearest
// ancestor who does, which has handed the connection on.
func findAcceptors(s *started, v service, client netip.AddrPort, seen *sight) error {
	var inode uint64
	err := awaitOr("the acceptance of a connection", limit, func() (_ bool, err error) {
		inode, err = s.accepted(v, client)
		return inode != 0, err
	})
	if err != nil {
		return err
	}
	seen.servers = holders(inode)
	seen.acceptors = map[int]bool{}
	for pid := range seen.servers {
		for pid > 1 && !seen.holders[pid] {
			pid = readProcess(pid).parent
		}
		if pid > 1 {
			seen.acceptors[pid] = true
		}
	}
	return nil
}

// arrivals are the events of attempts that arrive, by the client's end.
type arrivals struct {
	mu       sync.Mutex
	byClient map[netip.AddrPort][]gadget.Event
}

func newArrivals() *arrivals { return &arrivals{byClient: map[netip.AddrPort][]gadget.Event{}} }

func (a *arrivals) add(e gadget.Event) {
	if e.Egress {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.byClient[e.Src] = append(a.byClient[e.Src], e)
}

// any tells if there is an event; of a port that is published, one that names somebody.
func (a *arrivals) any(client netip.AddrPort, v service) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.byClient[client] {
		if !v.published || e.Proc.PID != 0 {
			return true
		}
	}
	return false
}

func (a *arrivals) take(client netip.AddrPort) []gadget.Event {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.byClient[client]
}
