// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"gadget.example/network/internal/vm"
	"gadget.example/network/test/guest"
	"gadget.example/network/test/k8s/binaries"
	"gadget.example/network/test/k8s/images"
	"gadget.example/network/test/rootfs"
)

// Images by the names that manifests and containerd's configuration have.
const (
	pauseImage    = "localhost/pause:latest"
	busyboxImage  = "localhost/busybox:latest"
	registryImage = "localhost/registry:latest"
	dnsImage      = "localhost/coredns:latest"
	gadgetImage   = "localhost/inspektor-gadget:latest"
)

// staged is what was made for the cluster: files and folders of this machine.
type staged struct {
	Dir        string // for the cluster's state
	Kubernetes string // folder of Kubernetes' programs
	IG         string // folder of IG's
	DNS        string // folder of coredns
	Kernel     vm.Kernel
	Root       string   // the node's root file system
	Node       string   // test/k8s/node, built
	Images     []string // archives
}

// nodeRecipe is the node's root file system. Perl and its like, which packages' scripts are for, are too dear for its memory.
var nodeRecipe = rootfs.Recipe{
	Packages: []string{"containerd", "runc", "containernetworking-plugins", "iptables", "conntrack", "iproute2", "kmod", "systemd"},
	Unneeded: append([]string{
		"usr/share/perl*", "usr/lib/*/perl*", "usr/bin/containerd-stress", "var/lib/dpkg/info/*", "boot", "lib/udev",
	}, rootfs.Unneeded...),
}

// stage makes what the cluster takes; that which takes long, once.
func stage(ctx context.Context, dir string) (s staged, err error) {
	s.Dir = dir
	if s.Kubernetes, err = binaries.Kubernetes(ctx, append(binaries.ControlPlane, binaries.Node...)...); err != nil {
		return s, err
	}
	if s.IG, err = binaries.IG(ctx, "cmd/kubectl-gadget", "gadget-container/gadgettracermanager", "gadget-container/cleanup"); err != nil {
		return s, err
	}
	if s.DNS, err = binaries.DNS(ctx); err != nil {
		return s, err
	}
	if s.Kernel, err = guest.Kernel(ctx); err != nil {
		return s, err
	}
	cache, err := guest.Cache()
	if err != nil {
		return s, err
	}
	if s.Root, err = nodeRecipe.Make(ctx, filepath.Join(filepath.Dir(cache), "k8s")); err != nil {
		return s, err
	}
	built := filepath.Join(dir, "built")
	if err := os.Mkdir(built, 0o755); err != nil {
		return s, err
	}
	if err := guest.GoCommand(ctx, s.Kernel.Arch, "build", "-ldflags=-s -w", "-o", built+"/", "./node", "./registry").Run(); err != nil {
		return s, fmt.Errorf("build the node's programs: %w", err)
	}
	s.Node = filepath.Join(built, "node")
	s.Images, err = writeImages(ctx, s, built)
	return s, err
}

// writeImages makes an image of each program that pods run.
func writeImages(ctx context.Context, s staged, built string) (archives []string, err error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	pause := filepath.Join(built, "pause")
	if err := buildPause(ctx, pause); err != nil {
		return nil, err
	}
	applets := []images.File{{Path: "/bin/busybox", Host: busybox}}
	for _, name := range []string{"sh", "sleep", "httpd", "wget", "nc", "nslookup"} {
		applets = append(applets, images.File{Path: "/bin/" + name, Link: "busybox"})
	}
	applets = append(applets, images.File{Path: "/www/index.html", Data: []byte("hello\n")})
	for _, image := range []images.Image{
		{Name: pauseImage, Files: []images.File{{Path: "/pause", Host: pause}}, Config: v1.ImageConfig{Entrypoint: []string{"/pause"}}},
		{Name: busyboxImage, Files: applets, Config: v1.ImageConfig{Cmd: []string{"/bin/sh"}}},
		{
			Name:   registryImage,
			Files:  []images.File{{Path: "/registry", Host: filepath.Join(built, "registry")}},
			Config: v1.ImageConfig{Entrypoint: []string{"/registry"}},
		},
		{
			Name:   dnsImage,
			Files:  []images.File{{Path: "/coredns", Host: filepath.Join(s.DNS, "coredns")}},
			Config: v1.ImageConfig{Entrypoint: []string{"/coredns"}},
		},
		// As IG's own Dockerfiles/gadget.Dockerfile, without the hooks for other runtimes than containerd.
		{Name: gadgetImage, Files: []images.File{
			{Path: "/bin/gadgettracermanager", Host: filepath.Join(s.IG, "gadgettracermanager")},
			{Path: "/cleanup", Host: filepath.Join(s.IG, "cleanup")},
		}},
	} {
		archive := filepath.Join(built, fmt.Sprintf("image-%d.tar", len(archives)))
		if err := images.Write(archive, image); err != nil {
			return nil, err
		}
		archives = append(archives, archive)
	}
	return archives, nil
}

// buildPause compiles Kubernetes' own program that holds a pod's namespaces.
func buildPause(ctx context.Context, out string) error {
	source, err := binaries.Source(ctx)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "clang", "-Os", "-static", "-DVERSION=test", "-o", out, filepath.Join(source, "build", "pause", "linux", "pause.c"))
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("clang: %w: %s", err, said)
	}
	return nil
}
