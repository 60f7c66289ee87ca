// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"golang.org/x/sys/unix"

	"gadget.example/network/test/e2e/attempt"
	"gadget.example/network/test/metrics"
)

// metricKey is the labels by which metrics tell counts apart, on a host.
type metricKey struct {
	comm     string
	egress   bool
	protocol string
	errno    string
	cause    string
}

// metricsAt is where ig listens.
const metricsAt = "127.77.78.1:2224"

// scrape reads ig's metrics as Prometheus does, of some processes.
func scrape(comms []string) (map[metricKey]counts, error) {
	response, err := http.Get("http://" + metricsAt + "/metrics")
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		return nil, fmt.Errorf("reading metrics: %w", err)
	}
	sums := map[metricKey]counts{}
	for name, family := range families {
		if !strings.HasPrefix(name, "network_") {
			continue // of the Go runtime, and of ig's process
		}
		for _, m := range family.GetMetric() {
			if err := addMetric(sums, comms, name, m); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return sums, nil
}

// addMetric adds one value, of some processes.
func addMetric(to map[metricKey]counts, comms []string, name string, m *dto.Metric) error {
	key, err := readLabels(m)
	if err != nil {
		return err
	}
	sum, value := to[key], uint64(m.GetCounter().GetValue())
	switch name {
	case "network_attempts_total":
		sum.Attempts += value
	case "network_established_total":
		sum.Established += value
	case "network_failed_total":
		sum.Failed += value
	case "network_closed_total":
		sum.Closed += value
	case "network_sent_bytes_total":
		sum.TxBytes += value
	case "network_received_bytes_total":
		sum.RxBytes += value
	case "network_uncounted_total":
		if value != 0 {
			return fmt.Errorf("wanted none, got %d", value)
		}
	default:
		return fmt.Errorf("wanted no metrics but %q", metrics.Names)
	}
	if slices.Contains(comms, key.comm) {
		to[key] = sum
	}
	return nil
}

// readLabels reads the labels, which are those that there must be, on a host.
func readLabels(m *dto.Metric) (metricKey, error) {
	labels := map[string]string{}
	for _, l := range m.GetLabel() {
		labels[l.GetName()] = l.GetValue()
	}
	names, want := slices.Sorted(maps.Keys(labels)), slices.Sorted(slices.Values(slices.Concat(metrics.Labels, metrics.ScopeLabels)))
	if !slices.Equal(names, want) {
		return metricKey{}, fmt.Errorf("wanted the labels %q, got %q", want, names)
	}
	egress, err := strconv.ParseBool(labels["egress"])
	return metricKey{labels["comm"], egress, labels["protocol"], labels["error"], labels["cause"]}, err
}

// rowsAsMetrics adds up rows of the same labels, of some processes.
func rowsAsMetrics(rows map[countKey]counts, comms []string) map[metricKey]counts {
	sums := map[metricKey]counts{}
	for row, c := range rows {
		key := metricKey{row.comm, row.egress, row.protocol, "", row.cause}
		if row.errno != 0 {
			key.errno = unix.ErrnoName(unix.Errno(row.errno))
		}
		sum := sums[key]
		sum.add(c)
		if slices.Contains(comms, row.comm) {
			sums[key] = sum
		}
	}
	return sums
}

// A metered caller calls a metered server.
const (
	meteredCaller = "metered-caller"
	meteredServer = "metered-server"
)

// A meter makes traffic of which it is known what it adds to the metrics.
type meter struct {
	caller, server *agent
	want           map[metricKey]counts
}

func (m *meter) add(key metricKey, c counts) {
	sum := m.want[key]
	sum.add(c)
	m.want[key] = sum
}

// run has connections that talk, calls that are refused, calls without a route, of
// which no device sees a packet, and datagrams, by both families.
func (m *meter) run(t *testing.T) {
	t.Helper()
	const calls = 5
	refused := metricKey{meteredCaller, true, "TCP", "ECONNREFUSED", "rst"}
	nowhere := metricKey{meteredCaller, true, "TCP", "EHOSTUNREACH", "no-route"}
	for i, family := range families {
		host := overLoopback.address(family, 1)
		port, closed, low := newPort(attempt.TCP), newPort(attempt.TCP), 100+i
		talk := &attempt.Talk{Turns: []int{100 + i, 20_000 + i}}
		name := fmt.Sprint("metered ", port)
		m.server.do(t, attempt.Request{Steps: []attempt.Step{
			{Do: attempt.Serve, Protocol: attempt.TCP, Src: at(host, port), Talk: talk, Count: calls, Lingers: true, Socket: name},
			{Do: attempt.Open, Protocol: attempt.UDP, Src: at(host, low), Socket: name + " UDP"},
		}})
		var steps []attempt.Step
		for range calls {
			steps = append(steps,
				attempt.Step{Do: attempt.Call, Protocol: attempt.TCP, Dst: at(host, port), Talk: talk, Lingers: true},
				attempt.Step{Do: attempt.Call, Protocol: attempt.TCP, Dst: at(host, closed)},
				attempt.Step{Do: attempt.Call, Protocol: attempt.UDP, Dst: at(host, low)},
				attempt.Step{Do: attempt.Call, Protocol: attempt.TCP, Dst: at(unreachable.address(family, 1), tcpPort), Unsure: true})
		}
		for i, report := range m.caller.do(t, attempt.Request{Steps: steps}).Steps {
			switch i % 4 {
			case 0:
				m.add(metricKey{meteredCaller, true, "TCP", "", ""}, talkedCounts(report))
			case 1:
				m.add(metricKey{meteredCaller, true, "TCP", "", ""}, counts{Attempts: 1})
				m.add(refused, counts{Failed: 1})
			case 2:
				m.add(metricKey{meteredCaller, true, "UDP", "", ""}, counts{Attempts: 1})
				m.add(metricKey{meteredServer, false, "UDP", "", ""}, counts{Attempts: 1})
			case 3:
				m.add(metricKey{meteredCaller, true, "TCP", "", ""}, counts{Attempts: 1})
				m.add(nowhere, counts{Failed: 1})
			}
		}
		served := m.server.do(t, attempt.Request{Steps: []attempt.Step{
			{Do: attempt.Served, Socket: name, Count: calls},
			{Do: attempt.Close, Socket: name},
			{Do: attempt.Close, Socket: name + " UDP"},
		}})
		for _, report := range served.Steps[0].Steps {
			m.add(metricKey{meteredServer, false, "TCP", "", ""}, talkedCounts(report))
		}
	}
}

// talkedCounts are those of one connection that was closed.
func talkedCounts(r attempt.Report) counts {
	return counts{Attempts: 1, Established: 1, Closed: 1, TxBytes: uint64(r.Sent), RxBytes: uint64(r.Received)}
}

// await scrapes until the metrics are what they must be. They are never more, and
// never less than they were, however often they are scraped between two readings.
func (m *meter) await(t *testing.T) {
	t.Helper()
	var before, got map[metricKey]counts
	err := eventually(func() (err error) {
		before = got
		if got, err = scrape([]string{meteredCaller, meteredServer}); err != nil {
			return err
		}
		for key, c := range got {
			if !atMost(before[key], c) || !atMost(c, m.want[key]) {
				t.Fatalf("%+v: got %+v after %+v, and wanted %+v in the end", key, c, before[key], m.want[key])
			}
		}
		if !maps.Equal(got, m.want) {
			return fmt.Errorf("wanted %+v, got %+v", m.want, got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func atMost(a, b counts) bool {
	return a.Attempts <= b.Attempts && a.Established <= b.Established && a.Failed <= b.Failed &&
		a.Closed <= b.Closed && a.TxBytes <= b.TxBytes && a.RxBytes <= b.RxBytes
}

// TestMetricsAreWhatHappened has the stock ig export what it counts, and scrapes that
// while there is traffic. What was not read at the end is in ig's last rows.
func TestMetricsAreWhatHappened(t *testing.T) {
	p := newPair(t, hostNamespace(t), newNamespace(t, "other"))
	prober := startAgent(t, p.ends[0], agentOptions{name: "prober"})
	serveProbes(t, prober)
	m := &meter{
		caller: startAgent(t, p.ends[0], agentOptions{name: meteredCaller}),
		server: startAgent(t, p.ends[0], agentOptions{name: meteredServer}), want: map[metricKey]counts{},
	}
	_, undo := routed(unreachable, unix.RTN_UNREACHABLE)(&stage{t: t, pair: p})
	defer undo()
	ig := startIGOn(t, connectionsImage, "--host", "-o", "json",
		"--otel-metrics-listen", "--otel-metrics-listen-address", metricsAt, "--otel-metrics-name", "connections:network")
	caller := startAgent(t, p.ends[0], agentOptions{})
	awaitReady(t, caller, ig)
	awaitKnown(t, caller, "prober", ig)
	for range 3 {
		m.run(t)
		m.await(t)
	}
	m.run(t)
	rows, err := sumRows(ig.stop(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := rowsAsMetrics(rows, []string{meteredCaller, meteredServer}); !maps.Equal(got, m.want) {
		t.Errorf("ig's rows: wanted %+v, got %+v", m.want, got)
	}
}
