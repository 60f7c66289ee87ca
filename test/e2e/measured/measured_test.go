// SPDX-License-Identifier: Apache-2.0

package measured

import (
	"strings"
	"testing"
)

func TestWhatIsWrittenIsRead(t *testing.T) {
	var b strings.Builder
	Write(&b, Failure, "the guest panicked: so it did")
	line := strings.TrimSuffix(b.String(), "\n")
	if name, value, ok := Parse(line); !ok || name != Failure || value != "the guest panicked: so it did" {
		t.Errorf("wanted what was written, got %q, %q, %v of %q", name, value, ok, line)
	}
	for _, line := range []string{"", "PASS", "measuring: boot 8s", "measured: boot"} {
		if name, value, ok := Parse(line); ok {
			t.Errorf("wanted nothing of %q, got %q, %q", line, name, value)
		}
	}
}
