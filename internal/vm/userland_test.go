// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestUserlandIsFetchedOnceAndKeptByPackage(t *testing.T) {
	debian, cache := fakeDebian(t), t.TempDir()
	write(t, filepath.Join(debian, "apt-cache"), `#!/bin/sh
for name; do :; done
printf 'Package: %s\nVersion: %s\n' "$name" "$(cat '`+debian+`/lists')"
`, 0o755)
	write(t, filepath.Join(debian, "busybox"), "#!/bin/sh\nprintf '%s\\n' bin/busybox bin/sh sbin/ip\n", 0o755)
	var want []File
	for _, name := range userlandPackages {
		want = append(want, File{Guest: "/", Host: filepath.Join(cache, name+"_9.9-1_arm64")})
	}
	want = append(want, File{Guest: "/bin/sh", Link: busyboxPath}, File{Guest: "/sbin/ip", Link: busyboxPath})
	same := func(a, b File) bool { return a.Guest == b.Guest && a.Host == b.Host && a.Link == b.Link }
	for range 2 {
		files, err := Userland(t.Context(), "arm64", cache, nil)
		if err != nil || !slices.EqualFunc(files, want, same) {
			t.Errorf("got %+v, %v; want %+v", files, err, want)
		}
	}
	asked := "update\n" + strings.Join(userlandPackages, "\n") + "\n"
	if got := read(t, filepath.Join(debian, "log")); got != asked {
		t.Errorf("asked of apt-get: %q, want %q", got, asked)
	}
	source := read(t, filepath.Join(cache, "apt", userlandSuite+"_arm64", "sources.list"))
	if want := "deb [arch=arm64 "; !strings.HasPrefix(source, want) {
		t.Errorf("source %q, want one that begins with %q", source, want)
	}
}
