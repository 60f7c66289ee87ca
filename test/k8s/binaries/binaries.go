// SPDX-License-Identifier: Apache-2.0

// Package binaries builds the programs of a cluster from the Go module proxy, once: Kubernetes' own by the module in
// test/k8s/kubernetes, and CoreDNS by that in test/k8s/dns, whose versions must not move those of the project, and IG's by
// IG's own module.
package binaries

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"gadget.example/network/test/guest"
)

const (
	kubernetesModule = "k8s.io/kubernetes"
	dnsModule        = "github.com/coredns/coredns"
	igModule         = "github.com/inspektor-gadget/inspektor-gadget"
)

// The programs of a control plane, of a node, and of those who use it.
var (
	ControlPlane = []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"}
	Node         = []string{"kubelet", "kube-proxy"}
)

// module is the folder of a module in test/k8s.
func module(ctx context.Context, name string) (string, error) {
	top, err := goPrint(ctx, "", "list", "-m", "-f", "{{.Dir}}")
	return filepath.Join(top, "test", "k8s", name), err
}

// Source is the folder with Kubernetes' sources.
func Source(ctx context.Context) (string, error) {
	dir, err := module(ctx, "kubernetes")
	if err != nil {
		return "", err
	}
	return goPrint(ctx, dir, "list", "-m", "-f", "{{.Dir}}", kubernetesModule)
}

// Kubernetes builds the programs that are not in the cache yet, and returns the folder that has them.
func Kubernetes(ctx context.Context, names ...string) (string, error) {
	source, err := module(ctx, "kubernetes")
	if err != nil {
		return "", err
	}
	version, err := goPrint(ctx, source, "list", "-m", "-f", "{{.Version}}", kubernetesModule)
	if err != nil {
		return "", err
	}
	numbers := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(numbers) != 3 {
		return "", fmt.Errorf("%s %s: a version has three numbers", kubernetesModule, version)
	}
	// What a release's binary tells of itself: the nodes' versions are compared with the API server's.
	flags := []string{"-s", "-w"}
	for _, value := range []string{"gitVersion=" + version, "gitMajor=" + numbers[0], "gitMinor=" + numbers[1], "gitTreeState=archive"} {
		flags = append(flags, "-X", "k8s.io/component-base/version."+value)
	}
	b := builder{name: "kubernetes", version: version, source: source, flags: strings.Join(flags, " ")}
	packages := map[string]string{}
	for _, name := range names {
		packages[name] = kubernetesModule + "/cmd/" + name
	}
	return b.build(ctx, packages)
}

// DNS builds coredns if it is not in the cache yet, and returns the folder that has it.
func DNS(ctx context.Context) (string, error) {
	source, err := module(ctx, "dns")
	if err != nil {
		return "", err
	}
	version, err := goPrint(ctx, source, "list", "-m", "-f", "{{.Version}}", dnsModule)
	if err != nil {
		return "", err
	}
	b := builder{name: "dns", version: version, source: source, flags: "-s -w"}
	return b.build(ctx, map[string]string{"coredns": dnsModule})
}

// IG builds those programs of IG's own that a cluster takes, by the folders below its module, and returns the folder that
// has them: kubectl-gadget from cmd/kubectl-gadget, and so on.
func IG(ctx context.Context, folders ...string) (string, error) {
	found, err := goPrint(ctx, "", "list", "-m", "-f", "{{.Version}} {{.Dir}}", igModule)
	if err != nil {
		return "", err
	}
	version, source, _ := strings.Cut(found, " ")
	b := builder{
		name: "ig", version: version, source: source,
		flags: "-s -w -X " + igModule + "/internal/version.version=" + version,
	}
	packages := map[string]string{}
	for _, folder := range folders {
		packages[filepath.Base(folder)] = igModule + "/" + folder
	}
	return b.build(ctx, packages)
}

type builder struct {
	name, version string
	source        string // the folder of the main module
	flags         string // for the linker
}

// build builds what is missing. Two that build the same do it twice, and either's is whole.
func (b builder) build(ctx context.Context, packages map[string]string) (dir string, err error) {
	if dir, err = b.cache(); err != nil {
		return "", err
	}
	for name, path := range packages {
		file := filepath.Join(dir, name)
		if _, err := os.Stat(file); err == nil {
			continue
		}
		fmt.Fprintf(os.Stderr, "Building %s %s (minutes the first time)\n", name, b.version)
		start := time.Now()
		if err := b.buildOne(ctx, file, path); err != nil {
			return "", fmt.Errorf("build %s %s: %w", name, b.version, err)
		}
		fmt.Fprintf(os.Stderr, "Built %s in %v\n", name, time.Since(start).Round(time.Second))
	}
	return dir, nil
}

func (b builder) buildOne(ctx context.Context, file, path string) (err error) {
	part, err := os.MkdirTemp(filepath.Dir(file), ".build-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(part)) }()
	built := filepath.Join(part, "program")
	cmd := guest.GoCommand(ctx, runtime.GOARCH, "build", "-ldflags", b.flags, "-o", built, path)
	cmd.Dir = b.source
	if err := cmd.Run(); err != nil {
		return err
	}
	return os.Rename(built, file)
}

// cache is the folder for this module, these versions of what it is made of, and this compiler.
func (b builder) cache() (string, error) {
	kernels, err := guest.Cache()
	if err != nil {
		return "", err
	}
	key := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join(b.source, name))
		if err != nil {
			return "", err
		}
		key.Write(content)
	}
	fmt.Fprint(key, b.flags, runtime.Version(), runtime.GOARCH)
	dir := filepath.Join(filepath.Dir(kernels), fmt.Sprintf("%s-%s-%x", b.name, b.version, key.Sum(nil)[:6]))
	return dir, os.MkdirAll(dir, 0o755)
}

// goPrint returns what a go command prints, in a folder.
func goPrint(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}
