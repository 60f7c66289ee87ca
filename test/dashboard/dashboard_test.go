// SPDX-License-Identifier: Apache-2.0

// Package dashboard has Prometheus' own engine answer what docs/grafana-dashboard.json
// asks, of what Prometheus would have scraped. It is a module of its own: what that
// depends on must not move what IG depends on.
package dashboard

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	promlabels "github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/stretchr/testify/require"

	"gadget.example/network/test/metrics"
)

// board is what is checked of the dashboard.
type board struct {
	Templating struct {
		List []struct {
			Name, Type, Definition string
		}
	}
	Panels []struct {
		Title   string
		Targets []struct {
			Expr, LegendFormat string
		}
	}
}

func readBoard(t *testing.T) board {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "grafana-dashboard.json"))
	require.NoError(t, err)
	var b board
	require.NoError(t, json.Unmarshal(text, &b))
	require.NotEmpty(t, b.Panels)
	return b
}

// expand puts in what Grafana does: all of each variable.
func expand(expr string) string {
	return strings.NewReplacer("$__rate_interval", "1m", "$namespace", ".*", "$process", ".*").Replace(expr)
}

// between is how long after one another the scrapes were.
const between = 5 * time.Second

// recorded are the series that Prometheus has after scraping what testdata has: what a
// real run served, with traffic between the scrapes. See testdata/README.
func recorded(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("testdata/scrape-*.txt")
	require.NoError(t, err)
	require.Greater(t, len(files), 3)
	slices.Sort(files)
	series := map[string][]string{}
	for i, file := range files {
		f, err := os.Open(file)
		require.NoError(t, err)
		p := expfmt.NewTextParser(model.LegacyValidation)
		families, err := p.TextToMetricFamilies(f)
		require.NoError(t, errorsOf(err, f.Close()))
		for name, family := range families {
			for _, m := range family.GetMetric() {
				labels := map[string]string{model.MetricNameLabel: name}
				for _, l := range m.GetLabel() {
					if l.GetValue() != "" { // an empty label is none
						labels[l.GetName()] = l.GetValue()
					}
				}
				id := promlabels.FromMap(labels).String()
				for len(series[id]) < i {
					series[id] = append(series[id], "_")
				}
				series[id] = append(series[id], fmt.Sprint(m.GetCounter().GetValue()))
			}
		}
	}
	return load(series)
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func load(series map[string][]string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "load %s\n", between)
	for _, id := range slices.Sorted(maps.Keys(series)) {
		fmt.Fprintf(&text, "  %s %s\n", id, strings.Join(series[id], " "))
	}
	return text.String()
}

// inACluster is what is made up: the same metrics have these labels there.
const inACluster = `
load 5s
  network_attempts_total{comm="nginx", egress="true", protocol="TCP", k8s_namespace="shop", k8s_owner_name="web", endpoint_k8s_kind="svc", endpoint_k8s_namespace="db", endpoint_k8s_name="postgres"} 0 5 10 15 20 25 30 35
`

// TestEveryPanelAsksForWhatThereIs checks each query's metrics and labels.
func TestEveryPanelAsksForWhatThereIs(t *testing.T) {
	labels := slices.Concat(metrics.Labels, metrics.PeerLabels)
	asked := map[string]bool{}
	for _, panel := range readBoard(t).Panels {
		for _, target := range panel.Targets {
			expr, err := parser.ParseExpr(expand(target.Expr))
			require.NoError(t, err, "%s: %s", panel.Title, target.Expr)
			var by []string
			parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
				switch n := node.(type) {
				case *parser.VectorSelector:
					require.Contains(t, metrics.Names, n.Name, panel.Title)
					asked[n.Name] = true
					for _, m := range n.LabelMatchers {
						if m.Name != model.MetricNameLabel {
							require.Contains(t, labels, m.Name, panel.Title)
						}
					}
				case *parser.AggregateExpr:
					require.Subset(t, labels, n.Grouping, panel.Title)
					by = append(by, n.Grouping...)
				}
				return nil
			})
			for part := range strings.SplitSeq(target.LegendFormat, "{{") {
				if label, _, ok := strings.Cut(part, "}}"); ok {
					require.Contains(t, by, label, "%s: the legend has a label that the query leaves out", panel.Title)
				}
			}
		}
	}
	require.ElementsMatch(t, metrics.Names, slices.Collect(maps.Keys(asked)), "metrics that panels ask for")
}

func TestEveryVariableIsALabel(t *testing.T) {
	for _, v := range readBoard(t).Templating.List {
		if v.Type != "query" {
			continue
		}
		metric, label, ok := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(v.Definition, "label_values("), ")"), ", ")
		require.True(t, ok, v.Definition)
		require.Contains(t, metrics.Names, metric)
		require.Contains(t, metrics.Labels, label)
	}
}

// TestEveryPanelShowsSomething evaluates each query at the time of the last scrape.
func TestEveryPanelShowsSomething(t *testing.T) {
	storage := promqltest.LoadedStorage(t, recorded(t)+inACluster)
	defer storage.Close()
	engine := promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery)
	at := time.Unix(0, 0).Add(7 * between)
	for _, panel := range readBoard(t).Panels {
		for _, target := range panel.Targets {
			query, err := engine.NewInstantQuery(t.Context(), storage, nil, expand(target.Expr), at)
			require.NoError(t, err, panel.Title)
			result := query.Exec(t.Context())
			require.NoError(t, result.Err, panel.Title)
			vector, err := result.Vector()
			require.NoError(t, err, panel.Title)
			require.NotEmpty(t, vector, "%s: %s", panel.Title, target.Expr)
			t.Logf("%s: %d series, such as %s", panel.Title, len(vector), vector[0])
			require.True(t, slices.ContainsFunc(vector, func(s promql.Sample) bool { return !math.IsNaN(s.F) }), panel.Title)
		}
	}
}
