// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"os"
	"strconv"
	"testing"
	"time"
	"unicode/utf8"

	metadatav1 "github.com/inspektor-gadget/inspektor-gadget/pkg/metadata/v1"
	"gopkg.in/yaml.v3"
)

// widest is how many characters a table may have.
const widest = 120

// TestTablesOfOutcomesFit120Characters adds up the widths that the columns have.
func TestTablesOfOutcomesFit120Characters(t *testing.T) {
	text, err := os.ReadFile("../../gadget.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var metadata metadatav1.GadgetMetadata
	if err := yaml.Unmarshal(text, &metadata); err != nil {
		t.Fatal(err)
	}
	fields := metadata.DataSources["network"].Fields
	for param, named := range map[string][]column{"failed-only": failuresTable, "lifecycle": lifecycleTable} {
		sum := len(named) - 1 // spaces between them
		for _, c := range named {
			width := c.width
			if width == 0 {
				if width, err = strconv.Atoi(fields[c.field].Annotations["columns.width"]); err != nil {
					t.Errorf("--%s: the width of %s: %v", param, c.field, err)
				}
			}
			sum += width
		}
		if sum > widest {
			t.Errorf("--%s: wanted at most %d characters, got %d", param, widest, sum)
		}
	}
}

func TestTheTableIsThatOfTheParameters(t *testing.T) {
	for _, test := range []struct {
		params map[string]string
		want   []column
	}{
		{map[string]string{"output": "columns", "failed-only": "true"}, failuresTable},
		{map[string]string{"output": "columns", "lifecycle": "true"}, lifecycleTable},
		{map[string]string{"output": "columns", "lifecycle": "true", "failed-only": "true"}, failuresTable},
		{map[string]string{"output": "columns"}, nil},
		{map[string]string{"output": "columns", "failed-only": "true", "fields": "error"}, nil},
		{map[string]string{"output": "json", "failed-only": "true"}, nil},
	} {
		got := Options{Params: test.params}.table()
		if len(got) != len(test.want) || len(got) > 0 && got[2] != test.want[2] {
			t.Errorf("%v: wanted %v, got %v", test.params, test.want, got)
		}
	}
}

// TestADurationFitsItsColumn wants the unit to be in it.
func TestADurationFitsItsColumn(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Second:              "1s",
		3021345678:               "3.02s",
		59994 * time.Millisecond: "59.99s",
		59996 * time.Millisecond: "1m0s",
		131123456789:             "2m11s",
		9*time.Hour + 59*time.Minute + 59*time.Second: "9h59m59s",
	} {
		got := short(d)
		if got != want || utf8.RuneCountInString(got) > 8 {
			t.Errorf("%d ns: wanted %q, got %q", d, want, got)
		}
	}
}
