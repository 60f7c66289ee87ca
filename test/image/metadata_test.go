// SPDX-License-Identifier: Apache-2.0

package image

import (
	"encoding/json"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/columns/formatter/textcolumns"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/datasource"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/gadget-service/api"
	metadatav1 "github.com/inspektor-gadget/inspektor-gadget/pkg/metadata/v1"
	"gopkg.in/yaml.v3"
)

func TestEveryFieldAndParameterIsDescribed(t *testing.T) {
	for source, c := range map[string]struct {
		image, name string
		structs     []string // that its fields are of
	}{
		"network":     {pristine(t), "network", []string{"event"}},
		"connections": {pristineCounting(t), "network connections", []string{"connection", "connection_counts"}},
	} {
		t.Run(source, func(t *testing.T) {
			wantAllDescribed(t, export(t, c.image), c.name, source, c.structs...)
		})
	}
}

func metadataOf(t *testing.T, c content) (metadata metadatav1.GadgetMetadata) {
	t.Helper()
	if err := yaml.Unmarshal(c.metadata, &metadata); err != nil {
		t.Fatal(err)
	}
	return metadata
}

func wantAllDescribed(t *testing.T, c content, gadget, source string, structs ...string) {
	t.Helper()
	if text := string(c.metadata); strings.Contains(text, "TODO") {
		t.Errorf("wanted metadata without TODO, got\n%s", text)
	}
	metadata := metadataOf(t, c)
	described, ok := metadata.DataSources[source]
	if !ok {
		t.Fatalf("wanted the data source %s, got\n%s", source, c.metadata)
	}
	fields, params := map[string]string{}, map[string]string{}
	for name, f := range described.Fields {
		fields[name] = f.Annotations["description"]
	}
	for name, p := range metadata.Params["ebpf"] {
		params[name] = p.Description
	}
	for _, object := range c.objects {
		wantDescribed(t, "field", members(t, object, structs...), fields)
		wantDescribed(t, "parameter", parameters(t, object), params)
	}
	if metadata.Name != gadget || metadata.Description == "" {
		t.Errorf("wanted a described gadget %s, got %q: %q", gadget, metadata.Name, metadata.Description)
	}
}

// TestParametersAreTheSameInBothImages: but for those that say something else, as they
// are about counts.
func TestParametersAreTheSameInBothImages(t *testing.T) {
	own := []string{"lifecycle", "lives_max_entries"}
	whole := metadataOf(t, export(t, pristine(t))).Params["ebpf"]
	for name, counting := range metadataOf(t, export(t, pristineCounting(t))).Params["ebpf"] {
		p, ok := whole[name]
		if ok && !slices.Contains(own, name) && !reflect.DeepEqual(p, counting) {
			t.Errorf("parameter %s: wanted %+v, as of the image network, got %+v", name, p, counting)
		}
	}
}

// wantDescribed checks that all names of the program are described, and that no
// name is left that the program no longer has. Beside its fields the metadata may
// lay out their parts (proc.pid), what ig formats from them (timestamp, from
// timestamp_raw, or latency, from latency_ns), and what ig itself adds about containers and pods (runtime., k8s.).
func wantDescribed(t *testing.T, kind string, names []string, descriptions map[string]string) {
	t.Helper()
	for _, name := range names {
		if strings.TrimSpace(descriptions[name]) == "" {
			t.Errorf("%s %s: wanted a description, got none", kind, name)
		}
	}
	for name := range descriptions {
		whole, _, _ := strings.Cut(name, ".")
		if whole == "runtime" || whole == "k8s" {
			continue
		}
		from := func(suffix string) bool { return slices.Contains(names, whole+suffix) }
		if !slices.ContainsFunc([]string{"", "_raw", "_ns", "_bytes"}, from) {
			t.Errorf("%s %s: wanted none but the program's %q, got it in the metadata", kind, name, names)
		}
	}
}

// members are those of structs of the object, sorted.
func members(t *testing.T, object []byte, structs ...string) []string {
	t.Helper()
	types := collection(t, object).Types
	var names []string
	for _, name := range structs {
		var found *btf.Struct
		if err := types.TypeByName(name, &found); err != nil {
			t.Fatalf("wanted struct %s, got %v", name, err)
		}
		for _, m := range found.Members {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}

// parameters are the variables that GADGET_PARAM marks, sorted.
func parameters(t *testing.T, object []byte) []string {
	t.Helper()
	var names []string
	for name := range collection(t, object).Variables {
		if param, ok := strings.CutPrefix(name, "gadget_param_"); ok {
			names = append(names, param)
		}
	}
	slices.Sort(names)
	return names
}

func TestTheDefaultTableFits120Characters(t *testing.T) {
	header := defaultHeader(t, pristine(t))
	t.Log(header)
	if len(header) > 120 {
		t.Errorf("wanted at most 120 characters, got %d: %q", len(header), header)
	}
	for _, column := range []string{"TIME", "COMM", "PID", "EGRESS", "ENDPOINT", "PROTO"} {
		if !strings.Contains(header, column) {
			t.Errorf("wanted the column %s, got %q", column, header)
		}
	}
}

// defaultHeader is the first line of `ig run -o columns` where standard output is
// no terminal. ig adds its columns for containers when it can read process 1: for
// that it gets a process 1 of its own.
func defaultHeader(t *testing.T, image string) string {
	t.Helper()
	text := run(t, exec.Command("unshare", "--mount", "--pid", "--fork", "--mount-proc",
		igBinary(t), "image", "inspect", image, "--auto-mount-filesystems", "--verify-image=false",
		"--show-datasources", "-o", "json"))
	var sources []*api.DataSource
	if err := json.Unmarshal([]byte(text), &sources); err != nil {
		t.Fatalf("wanted data sources, got %v\n%s", err, text)
	}
	at := slices.IndexFunc(sources, func(s *api.DataSource) bool { return s.Name == "network" })
	if at < 0 {
		t.Fatalf("wanted the data source network, got\n%s", text)
	}
	source, err := datasource.NewFromAPI(sources[at])
	if err != nil {
		t.Fatal(err)
	}
	if source.GetField("runtime.containerName") == nil {
		t.Fatalf("wanted ig's fields for containers, got\n%s", text)
	}
	parser, err := source.Parser()
	if err != nil {
		t.Fatal(err)
	}
	table := parser.GetTextColumnsFormatter(textcolumns.WithAutoScale(false))
	if err := table.SetShowColumns(defaultColumns(sources[at])); err != nil {
		t.Fatal(err)
	}
	return table.FormatHeader()
}

// defaultColumns are the columns that ig run shows, in its order (the default of
// its flag --fields).
func defaultColumns(source *api.DataSource) []string {
	shown := slices.DeleteFunc(slices.Clone(source.Fields), func(f *api.Field) bool {
		return datasource.FieldFlagUnreferenced.In(f.Flags) || datasource.FieldFlagContainer.In(f.Flags) ||
			datasource.FieldFlagEmpty.In(f.Flags) || datasource.FieldFlagHidden.In(f.Flags)
	})
	slices.SortStableFunc(shown, func(a, b *api.Field) int { return int(a.Order - b.Order) })
	names := make([]string, len(shown))
	for i, f := range shown {
		names[i] = f.FullName
	}
	return names
}
