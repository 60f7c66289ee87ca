// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/grpc"

	"gadget.example/network/test/e2e/attempt"
)

// logged is what a log record tells of an attempt.
type logged struct {
	comm, protocol, addr string
	port                 int64
	egress               bool
}

// logCollector is what ig exports to: it counts records by what they tell.
type logCollector struct {
	collector.UnimplementedLogsServiceServer
	mu      sync.Mutex
	records map[logged]int
}

func (c *logCollector) Export(_ context.Context, request *collector.ExportLogsServiceRequest) (*collector.ExportLogsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range request.GetResourceLogs() {
		for _, scope := range resource.GetScopeLogs() {
			for _, record := range scope.GetLogRecords() {
				c.records[readRecord(record.GetAttributes())]++
			}
		}
	}
	return &collector.ExportLogsServiceResponse{}, nil
}

// of counts the records of processes.
func (c *logCollector) of(comms ...string) map[logged]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := map[logged]int{}
	for record, n := range c.records {
		for _, comm := range comms {
			if record.comm == comm {
				found[record] = n
			}
		}
	}
	return found
}

func readRecord(attributes []*common.KeyValue) logged {
	values := map[string]*common.AnyValue{}
	for _, a := range attributes {
		values[a.GetKey()] = a.GetValue()
	}
	return logged{
		comm:     values["proc.comm"].GetStringValue(),
		protocol: values["protocol"].GetStringValue(),
		addr:     values["endpoint.addr"].GetStringValue(),
		port:     values["endpoint.port"].GetIntValue(),
		egress:   values["egress"].GetBoolValue(),
	}
}

// collectLogs serves a collector, and returns it and a configuration by which ig
// exports to it, under the name "collector".
func collectLogs(t *testing.T) (c *logCollector, config string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c = &logCollector{records: map[logged]int{}}
	server := grpc.NewServer()
	collector.RegisterLogsServiceServer(server, c)
	go server.Serve(listener) //nolint:errcheck // it ends when the test does
	t.Cleanup(server.Stop)
	config = filepath.Join(t.TempDir(), "config.yaml")
	text := fmt.Sprintf("operator:\n  otel-logs:\n    exporters:\n      collector: {exporter: otlp-grpc, endpoint: %q, insecure: true}\n", listener.Addr())
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return c, config
}

// TestEventsAreLogRecords has the stock ig export each event as a record of
// OpenTelemetry's, by both families and protocols.
func TestEventsAreLogRecords(t *testing.T) {
	const callerName, serverName = "logged-caller", "logged-server"
	p := newPair(t, hostNamespace(t), newNamespace(t, "other"))
	caller := startAgent(t, p.ends[0], agentOptions{name: callerName})
	server := startAgent(t, p.ends[0], agentOptions{name: serverName})
	prober := startAgent(t, p.ends[0], agentOptions{name: "prober"})
	serveProbes(t, prober)
	c, config := collectLogs(t)
	ig := startIG(t, "--host", "-o", "json", "--config", config, "--otel-logs-exporter", "network:collector")
	awaitReady(t, prober, ig)
	awaitKnown(t, prober, "prober", ig)
	want := map[logged]int{}
	for _, family := range families {
		host := overLoopback.address(family, 1)
		tcp, udp := newPort(attempt.TCP), 200
		server.do(t, attempt.Request{Steps: []attempt.Step{
			{Do: attempt.Listen, Protocol: attempt.TCP, Src: at(host, tcp), Socket: fmt.Sprint("TCP ", host)},
			{Do: attempt.Open, Protocol: attempt.UDP, Src: at(host, udp), Socket: fmt.Sprint("UDP ", host)},
		}})
		caller.do(t, attempt.Request{Steps: []attempt.Step{
			{Do: attempt.Call, Protocol: attempt.TCP, Dst: at(host, tcp)}, {Do: attempt.Call, Protocol: attempt.UDP, Dst: at(host, udp)},
		}})
		for _, comm := range []string{callerName, serverName} {
			want[logged{comm, "TCP", host.String(), int64(tcp), comm == callerName}]++
			want[logged{comm, "UDP", host.String(), int64(udp), comm == callerName}]++
		}
	}
	err := eventually(func() error {
		if got := c.of(callerName, serverName); !maps.Equal(got, want) {
			return fmt.Errorf("wanted the records %+v, got %+v", want, got)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	ig.stop(t)
}
