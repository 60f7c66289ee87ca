// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"gadget.example/network/test/object"
)

const (
	// Less than a sixth of what the verifier goes through,
	// BPF_COMPLEXITY_LIMIT_INSNS in include/linux/bpf.h: other kernels need more for
	// the same program.
	maxVerified = 150_000
	// With parameters that have programs do more.
	maxVerifiedWithAll = 250_000
	// All that the gadget's own maps may take, in bytes.
	maxMemory = 20 << 20
)

// loadObject loads all programs and maps of the object, as IG does; or, of the
// programs, some.
func loadObject(tb testing.TB, params parameters, some ...string) (*ebpf.CollectionSpec, *ebpf.Collection) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: loads eBPF programs")
	}
	spec, err := object.Read()
	if err != nil {
		tb.Fatal(err)
	}
	return spec, loadAll(tb, spec, params, some...)
}

// loadAll does the same with a given object.
func loadAll(tb testing.TB, spec *ebpf.CollectionSpec, params parameters, some ...string) *ebpf.Collection {
	tb.Helper()
	if err := params.set(spec); err != nil {
		tb.Fatal(err)
	}
	maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool {
		return len(some) > 0 && !slices.Contains(some, name)
	})
	c, err := object.Load(spec)
	if errors.Is(err, ebpf.ErrNotSupported) {
		tb.Skipf("this kernel lacks what the gadget's programs need: %v", err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

func TestVerifierIsFarFromItsLimit(t *testing.T) {
	t.Run("as they are", func(t *testing.T) {
		expectVerified(t, nil, maxVerified)
	})
	t.Run("all", func(t *testing.T) {
		expectVerified(t, parameters{"lifecycle": true, "paths": true, "forwarded": true, "udp_flows": true}, maxVerifiedWithAll)
	})
	t.Run("failures", func(t *testing.T) {
		expectVerified(t, parameters{"failed_only": true, "paths": true}, maxVerifiedWithAll)
	})
	for name, params := range map[string]parameters{
		"counting":             nil,
		"counting containers'": {"gadget_filter_by_mntns": true},
		"counting attempts":    {"lifecycle": false, "udp_flows": true},
	} {
		t.Run(name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("needs root: loads eBPF programs")
			}
			spec, err := object.ReadArchive(connectionsImage)
			if err != nil {
				t.Fatal(err)
			}
			expectLittle(t, loadAll(t, spec, params), maxVerifiedWithAll)
		})
	}
}

func expectVerified(t *testing.T, params parameters, most uint32) {
	t.Helper()
	_, c := loadObject(t, params)
	expectLittle(t, c, most)
}

func expectLittle(t *testing.T, c *ebpf.Collection, most uint32) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(c.Programs)) {
		info, err := c.Programs[name].Info()
		if err != nil {
			t.Fatal(err)
		}
		n, ok := info.VerifiedInstructions()
		if !ok {
			t.Skip("needs Linux 5.16: it tells the verified instructions")
		}
		t.Logf("%6d instructions verified of %s", n, name)
		if n > most {
			t.Errorf("program %s: %d instructions verified, want at most %d", name, n, most)
		}
	}
}

func TestOwnMapsAreSmall(t *testing.T) {
	// IG replaces it by its own.
	shared := []string{"gadget_mntns_filter_map"}
	_, c := loadObject(t, nil)
	total := uint64(0)
	for _, name := range slices.Sorted(maps.Keys(c.Maps)) {
		if slices.Contains(shared, name) {
			continue
		}
		info, err := c.Maps[name].Info()
		if err != nil {
			t.Fatal(err)
		}
		n, ok := info.Memlock()
		if !ok {
			t.Skip("needs /proc/self/fdinfo: it tells the memory of maps")
		}
		t.Logf("%8d bytes of %s", n, name)
		total += n
	}
	t.Logf("%8d bytes", total)
	if total > maxMemory {
		t.Errorf("the gadget's maps take %d bytes, want at most %d", total, maxMemory)
	}
}
