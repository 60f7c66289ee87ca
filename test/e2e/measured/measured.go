// SPDX-License-Identifier: Apache-2.0

// Package measured is how the e2e tests tell what they found to who runs them: in
// lines of what they print.
package measured

import (
	"fmt"
	"io"
	"strings"
)

// What is measured. Times are as time.Duration prints them.
const (
	Release     = "release"     // of the kernel, as uname -r has it
	Accelerator = "accelerator" // what ran the VM: "kvm" or "tcg"
	Boot        = "boot"        // time until the VM's kernel ran the tests
	Ready       = "ready"       // time from the start of netgadget until its gadget sees every packet
	Digest      = "digest"      // of the gadget image in netgadget
	Verified    = "verified"    // instructions that the verifier went through for the socket filter
	Failure     = "failure"     // why there are no results
)

const mark = "measured: "

// Write writes what was measured, which has one line.
func Write(w io.Writer, name, value string) {
	fmt.Fprintf(w, "%s%s %s\n", mark, name, value)
}

// Parse reads a line, and tells whether it is one that Write wrote.
func Parse(line string) (name, value string, ok bool) {
	text, ok := strings.CutPrefix(line, mark)
	if !ok {
		return "", "", false
	}
	return strings.Cut(text, " ")
}
