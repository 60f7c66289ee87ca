// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"gadget.example/network/internal/gadget"
)

// connectionsImage is the image that counts, in ig's store.
const connectionsImage = "network-connections:latest"

// countKey is what attempts that are counted together have in common.
type countKey struct {
	comm     string
	uid      uint32
	mountNS  uint64
	netNS    uint32
	egress   bool
	protocol string
	peer     netip.AddrPort
	errno    uint32 // of those that have failed, as the next
	cause    string
}

// counts are what became of them.
type counts struct {
	Attempts    uint64 `json:"attempts"`
	Established uint64 `json:"established"`
	Failed      uint64 `json:"failed"`
	Closed      uint64 `json:"closed"`
	TxBytes     uint64 `json:"tx_bytes"`
	RxBytes     uint64 `json:"rx_bytes"`
}

func (c *counts) add(more counts) {
	c.Attempts += more.Attempts
	c.Established += more.Established
	c.Failed += more.Failed
	c.Closed += more.Closed
	c.TxBytes += more.TxBytes
	c.RxBytes += more.RxBytes
}

// countedRow is a row of `ig run network-connections -o json`.
type countedRow struct {
	Comm     string     `json:"comm"`
	UID      uint32     `json:"uid"`
	MountNS  uint64     `json:"mntns_id"`
	NetNS    uint32     `json:"netns_id"`
	Egress   *bool      `json:"egress"`
	Protocol string     `json:"protocol"`
	Endpoint igEndpoint `json:"endpoint"`
	Errno    uint32     `json:"error_raw"`
	Cause    string     `json:"cause"`
	counts
	Uncounted uint64 `json:"uncounted"`
}

// sumRows adds up ig's rows of the tests' own addresses.
func sumRows(lines []string) (map[countKey]counts, error) {
	sums := map[countKey]counts{}
	for _, line := range lines {
		var rows []countedRow
		if err := json.Unmarshal([]byte(line), &rows); err != nil {
			return nil, fmt.Errorf("wanted a line of rows in JSON, got %w: %s", err, line)
		}
		for _, r := range rows {
			if r.Egress == nil || r.Uncounted != 0 {
				return nil, fmt.Errorf("wanted a direction and none that is uncounted in %s", line)
			}
			key := countKey{
				r.Comm, r.UID, r.MountNS, r.NetNS, *r.Egress, r.Protocol, r.Endpoint.addrPort(), r.Errno, r.Cause,
			}
			sum := sums[key]
			sum.add(r.counts)
			if isOurs(key.peer.Addr()) {
				sums[key] = sum
			}
		}
	}
	return sums, nil
}

// sumEvents counts what events tell.
func sumEvents(events []seen) map[countKey]counts {
	sums := map[countKey]counts{}
	for _, e := range events {
		key := countKey{
			comm: e.owner.Comm, uid: e.owner.UID, mountNS: e.owner.MountNS,
			netNS: e.netNS, egress: e.egress, protocol: e.protocol, peer: e.peer,
		}
		var one counts
		switch e.kind {
		case gadget.Attempt:
			if e.retries > 0 {
				continue
			}
			one.Attempts = 1
		case gadget.Established:
			one.Established = 1
		case gadget.Failed:
			key.errno, key.cause, one.Failed = uint32(e.errno), e.cause, 1
		case gadget.Closed:
			one.Closed, one.TxBytes, one.RxBytes = 1, e.tx, e.rx
		}
		sum := sums[key]
		sum.add(one)
		sums[key] = sum
	}
	return sums
}

// settled is an error while what became of an attempt is still to be counted.
func settled(sums map[countKey]counts, attempts int) error {
	var all, tcp counts
	for key, sum := range sums {
		all.add(sum)
		if key.protocol == "TCP" {
			tcp.add(sum)
		}
	}
	if all.Attempts != uint64(attempts) || tcp.Established+tcp.Failed != tcp.Attempts || tcp.Closed != tcp.Established {
		return fmt.Errorf("wanted %d attempts, each of TCP with its end, got %+v, of TCP %+v", attempts, all, tcp)
	}
	return nil
}

// TestConnectionsAreCounted has the image that counts watch the same as the one that
// tells of each: attempts are compared with the truth, and counts with what was told.
func TestConnectionsAreCounted(t *testing.T) {
	a := newActors(t, newPair(t, hostNamespace(t), newNamespace(t, "other")))
	prober := startAgent(t, a.pair.ends[0], agentOptions{name: "prober"})
	serveProbes(t, prober)
	ig := startIGOn(t, connectionsImage, "--host", "-o", "json")
	var truth []want
	var rows map[countKey]counts
	events := watch(t, gadget.Options{Params: map[string]string{"lifecycle": "true"}}, func() {
		awaitReady(t, a.callers[0], ig)
		awaitKnown(t, a.callers[0], "prober", ig)
		for _, w := range a.make(t, attempts()) {
			if w.netNS == a.pair.ends[0].inode { // the other one is not the host's
				truth = append(truth, w)
			}
		}
		attempted := 0
		for _, w := range truth {
			if w.retries == 0 {
				attempted++
			}
		}
		err := eventually(func() (err error) {
			rows, err = sumRows(ig.output())
			return errors.Join(err, settled(rows, attempted))
		})
		if err != nil {
			t.Error(err)
		}
		if rows, err = sumRows(ig.stop(t)); err != nil { // and what was not read yet
			t.Error(err)
		}
	})
	var told []seen
	for _, e := range events {
		if e.kind == gadget.Attempt {
			told = append(told, e)
		}
	}
	compare(t, told, truth)
	if want := sumEvents(events); !maps.Equal(rows, want) {
		for key := range want {
			if rows[key] != want[key] {
				t.Errorf("%+v: wanted %+v, got %+v", key, want[key], rows[key])
			}
		}
		for key := range rows {
			if _, known := want[key]; !known {
				t.Errorf("%+v: wanted none, got %+v", key, rows[key])
			}
		}
	}
	errnos := map[uint32]bool{}
	for key := range rows {
		errnos[key.errno] = true
	}
	if !errnos[uint32(unix.ECONNREFUSED)] {
		t.Errorf("wanted some that were refused, got errors %v", errnos)
	}
}

// TestContainersAreCounted has the image that counts see containers alone. Of one that
// runc has started without a daemon, ig knows when it was ready before: so some are.
func TestContainersAreCounted(t *testing.T) {
	wantRunc(t)
	ig := startIGOn(t, connectionsImage, "-o", "json")
	var started [][]want
	err := eventually(func() error {
		started = append(started, callFrom(t, startContainer(t, fmt.Sprintf("e2e-counted-%d", len(started)))))
		rows, err := sumRows(ig.output())
		if err != nil {
			return err
		}
		for _, calls := range started {
			if err = allCounted(rows, calls); err == nil {
				return nil
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	ig.stop(t)
}

func allCounted(rows map[countKey]counts, calls []want) error {
	for _, w := range calls {
		key := countKey{
			comm: w.owner.Comm, uid: w.owner.UID, mountNS: w.owner.MountNS,
			netNS: w.netNS, egress: w.egress, protocol: w.protocol, peer: w.peer,
		}
		if got := rows[key].Attempts; got != 1 {
			return fmt.Errorf("wanted one attempt of %+v, got %d in %+v", key, got, rows)
		}
	}
	return nil
}
