// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/util/validation"
)

func FuzzNamesAreValid(f *testing.F) {
	for _, s := range []string{"", "web", "-", "a.b", "a.-b", "Web_1", "ä", strings.Repeat("a", 254), strings.Repeat("a.", 200), strings.Repeat("-", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := subdomain(s)
		require.Empty(t, validation.IsDNS1123Subdomain(got), "of %q: %q", s, got)
		if len(validation.IsDNS1123Subdomain(s)) == 0 {
			require.Equal(t, s, got, "it was valid")
		}
	})
}
