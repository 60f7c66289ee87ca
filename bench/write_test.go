// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// docs is where tables and plots are written to.
var docs = flag.String("write", "", "folder of performance.md, for its tables and plots; none: they are printed alone")

// tell prints a table, and writes it where that is asked for. Its first row is its head.
func tell(section string, rows [][]string) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return errors.Join(w.Flush(), writeSection(section, rows))
}

// writeSection puts a table between its marks in performance.md, with the machine that
// it was measured on.
func writeSection(name string, rows [][]string) error {
	if *docs == "" {
		return nil
	}
	machine, err := describe()
	if err != nil {
		return err
	}
	file := filepath.Join(*docs, "performance.md")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	begin, end := fmt.Sprintf("<!-- %s: made by make bench-write -->\n", name), fmt.Sprintf("<!-- end of %s -->", name)
	before, rest, opened := strings.Cut(string(text), begin)
	_, after, closed := strings.Cut(rest, end)
	if !opened || !closed {
		return fmt.Errorf("%s has no marks %q and %q", file, strings.TrimSpace(begin), end)
	}
	return os.WriteFile(file, []byte(before+begin+markdown(rows)+"\n"+machine+"\n"+end+after), 0o644)
}

func markdown(rows [][]string) string {
	var text strings.Builder
	for i, row := range rows {
		fmt.Fprintf(&text, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(&text, "|%s\n", strings.Repeat("---|", len(row)))
		}
	}
	return text.String()
}

// describe says what the numbers depend on, and nothing that tells whose machine it is.
func describe() (string, error) {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	model := "processor of " + runtime.GOARCH
	if found := regexp.MustCompile(`model name\s*: (.*)`).FindSubmatch(info); found != nil {
		model = string(found[1])
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", err
	}
	// What a vendor puts behind the numbers is of no use to others.
	release := regexp.MustCompile(`^[0-9.]*[0-9]`).FindString(unix.ByteSliceToString(name.Release[:]))
	machine := fmt.Sprintf("%s, %d CPUs, Linux %s", model, runtime.NumCPU(), release)
	if strings.Contains(string(info), " hypervisor") {
		machine += ", in a virtual machine"
	}
	return machine + ".", nil
}

// writeBars draws a group of bars for each of the groups: one bar a series.
func writeBars(name, title, unit string, groups, series []string, values [][]float64) error {
	if *docs == "" {
		return nil
	}
	p := plot.New()
	p.Title.Text, p.Y.Label.Text = title, unit
	p.Y.Min = 0
	p.Legend.Top, p.Legend.Left = true, true
	p.NominalX(groups...)
	p.X.Min, p.X.Max = -0.6, float64(len(groups))-0.4 // whole groups at both ends
	const width = vg.Length(14)
	for i, s := range series {
		bars, err := plotter.NewBarChart(plotter.Values(values[i]), width)
		if err != nil {
			return err
		}
		bars.Offset = width * vg.Length(2*i+1-len(series)) / 2
		bars.Color, bars.LineStyle.Width = plotutil.Color(i), 0
		p.Add(bars)
		p.Legend.Add(s, bars)
	}
	// Room for the legend above the bars.
	p.Y.Max *= 1.6
	return p.Save(9*vg.Inch, 5*vg.Inch, filepath.Join(*docs, name+".svg"))
}
