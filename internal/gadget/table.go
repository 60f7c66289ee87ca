// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/inspektor-gadget/inspektor-gadget/pkg/datasource"
)

// fieldsParam is the parameter of IG's command line printer that says which columns
// a table has.
const fieldsParam = "fields"

// column is one of a table; its width is in characters, 0 for what the image says.
// IG makes the fields that it formats later, so of these that is the only one.
type column struct {
	field string
	width int
}

// Tables that tell how attempts went on, of 120 characters at most.
var (
	lifecycleTable = []column{
		{"proc.comm", 15},
		{"proc.pid", 7},
		{"event", 0},
		{"endpoint", 21},
		{"error", 0},
		{"cause", 10},
		{"by", 15},
		{"latency", 0},
		{"tx", 0},
		{"rx", 0},
	}
	failuresTable = []column{
		{"proc.comm", 15},
		{"proc.pid", 7},
		{"egress", 6},
		{"endpoint", 21},
		{"error", 0},
		{"cause", 10},
		{"reason", 18},
		{"by", 15},
		{"latency", 0},
	}
)

// table is the one that the parameters ask for; nil is the image's own.
func (o Options) table() []column {
	_, chosen := o.Params[fieldsParam]
	switch {
	case chosen || !strings.Contains(o.Params[outputParam], "columns"):
		return nil
	case o.asks(failedOnlyParam):
		return failuresTable
	case o.asks(lifecycleParam):
		return lifecycleTable
	}
	return nil
}

// withTable chooses the columns of the table.
func (o Options) withTable() Options {
	table := o.table()
	if table == nil {
		return o
	}
	names := make([]string, len(table))
	for i, c := range table {
		names[i] = c.field
	}
	o.Params = maps.Clone(o.Params)
	o.Params[fieldsParam] = strings.Join(names, ",")
	o.columns = slices.Clone(table)
	return o
}

// setTable gives the columns their widths.
func (o Options) setTable(ds datasource.DataSource) {
	for _, c := range o.columns {
		if f := ds.GetField(c.field); f != nil && c.width > 0 {
			f.AddAnnotation("columns.width", strconv.Itoa(c.width))
			f.AddAnnotation("columns.minwidth", strconv.Itoa(c.width))
			f.AddAnnotation("columns.maxwidth", strconv.Itoa(c.width))
		}
	}
}

// shortenLatency has what takes a second or more fit its column: IG tells it to the
// nanosecond, and its unit would be cut off.
func (o Options) shortenLatency(ds datasource.DataSource) error {
	raw, shown := ds.GetField("latency_ns"), ds.GetField("latency")
	if o.columns == nil || raw == nil || shown == nil {
		return nil
	}
	return ds.Subscribe(func(_ datasource.DataSource, data datasource.Data) error {
		ns, err := raw.Uint64(data)
		if d := time.Duration(ns); err == nil && d >= time.Second {
			err = shown.PutString(data, short(d))
		}
		return err
	}, priorityLast)
}

// short is a duration of a second or more in 8 characters, up to ten hours.
func short(d time.Duration) string {
	if d.Round(10*time.Millisecond) < time.Minute {
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
