// SPDX-License-Identifier: Apache-2.0

// Package metrics is what Prometheus gets of the image network-connections: what the
// e2e tests compare a scrape with, and the dashboard may ask for.
package metrics

// Names are those of the counters.
var Names = []string{
	"network_attempts_total", "network_established_total", "network_failed_total", "network_closed_total",
	"network_sent_bytes_total", "network_received_bytes_total", "network_uncounted_total",
}

// Labels are those that every one of them has. None is an address or a port, so that
// there are not too many.
var Labels = []string{
	"comm", "egress", "protocol", "error", "cause", "k8s_namespace", "k8s_owner_name", "runtime_containerName",
}

// PeerLabels are further ones in a cluster.
var PeerLabels = []string{"endpoint_k8s_kind", "endpoint_k8s_namespace", "endpoint_k8s_name"}

// ScopeLabels are further ones that OpenTelemetry adds.
var ScopeLabels = []string{"otel_scope_name", "otel_scope_version", "otel_scope_schema_url"}
