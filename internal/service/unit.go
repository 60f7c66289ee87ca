// SPDX-License-Identifier: Apache-2.0

package service

import (
	"bytes"
	_ "embed"
	"fmt"
	"strings"
	"text/template"
)

// Name is that of the unit.
const Name = "netgadget.service"

// mark is the unit's first line: by it install and uninstall know what is theirs.
const mark = "# Written by `netgadget install`; `netgadget uninstall` removes it."

// Unit is what the service is made of.
type Unit struct {
	// Binary is the absolute path of netgadget.
	Binary string
	// Args are those of `netgadget run`.
	Args []string
	// Capabilities are the names of those that such a run needs: CAP_NET_RAW.
	Capabilities []string
	// Realtime is whether the run takes real-time priority, to be at a network namespace in time.
	Realtime bool
}

//go:embed netgadget.service.tmpl
var text string

var unitTemplate = template.Must(template.New(Name).Parse(text))

// String is the text of the unit.
func (u Unit) String() string {
	command := []string{quote(u.Binary), "run"}
	for _, arg := range u.Args {
		command = append(command, quote(arg))
	}
	var b bytes.Buffer
	err := unitTemplate.Execute(&b, map[string]any{
		"Mark": mark, "Command": strings.Join(command, " "), "Capabilities": strings.Join(u.Capabilities, " "), "Realtime": u.Realtime,
	})
	if err != nil {
		panic(err) // the template is of this package
	}
	return b.String()
}

// quote writes a word so that systemd reads the same: see "Command lines" of systemd.service(5), and
// "Specifiers" of systemd.unit(5).
func quote(word string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(word) {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '%' || c == '$':
			b.WriteByte(c)
			b.WriteByte(c)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
