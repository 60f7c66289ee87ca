// SPDX-License-Identifier: Apache-2.0

package image

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestTheReadmeListsEveryFieldAndParameter(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(tree(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	c := export(t, pristine(t))
	var params []string
	for p := range maps.Values(metadataOf(t, c).Params["ebpf"]) {
		params = append(params, "--"+p.Key)
	}
	slices.Sort(params)
	for heading, want := range map[string][]string{
		"Fields":     members(t, c.objects["amd64"], "event"),
		"Parameters": params,
	} {
		if got := firstColumn(string(readme), heading); !slices.Equal(got, want) {
			t.Errorf("README's table %s: wanted %q, got %q", heading, want, got)
		}
	}
}

var codeCell = regexp.MustCompile("(?m)^\\| `([^`]+)` \\|")

// firstColumn gives what a table's first column has in code type, sorted.
func firstColumn(readme, heading string) []string {
	_, section, _ := strings.Cut(readme, "\n### "+heading+"\n")
	section, _, _ = strings.Cut(section, "\n#")
	var names []string
	for _, cell := range codeCell.FindAllStringSubmatch(section, -1) {
		names = append(names, cell[1])
	}
	slices.Sort(names)
	return names
}
