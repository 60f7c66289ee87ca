// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"gadget.example/network/internal/vm"
	"gadget.example/network/test/k8s/controlplane"
	"gadget.example/network/test/k8s/node/setup"
)

const (
	nodeName = "node"
	// nodeRoot is the guest's folder that becomes the node's root file system.
	nodeRoot = "/r"
	// nodeMemory holds the root file system and the images, in half of it at most, and what runs.
	nodeMemory = 6144 // MiB
)

// node is the guest.
type node struct {
	log   string // file with what its programs write
	stop  context.CancelFunc
	ended chan struct{} // closed when it has ended
	err   error         // how, after that
}

// startNode boots the guest and returns when its programs are started.
func startNode(ctx context.Context, s staged, c *controlplane.ControlPlane) (*node, error) {
	config, err := nodeConfig(s, c)
	if err != nil {
		return nil, err
	}
	n := &node{log: filepath.Join(s.Dir, "node.log"), ended: make(chan struct{})}
	log, err := os.Create(n.log)
	if err != nil {
		return nil, err
	}
	read, write := io.Pipe()
	config.Stdout, config.Stderr = write, write
	own, stop := context.WithCancel(context.WithoutCancel(ctx))
	n.stop = stop
	ready := make(chan struct{})
	go func() {
		defer log.Close()
		for lines := bufio.NewReader(read); ; {
			line, err := lines.ReadString('\n')
			fmt.Fprint(log, line)
			if strings.TrimSpace(line) == setup.Ready {
				close(ready)
			}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(n.ended)
		result, err := vm.Run(own, config)
		if err == nil {
			err = fmt.Errorf("the node ended with status %d", result.ExitStatus)
		}
		n.err = fmt.Errorf("%w; its log is %s", errors.Join(err, write.Close()), n.log)
	}()
	select {
	case <-ready:
		return n, nil
	case <-n.ended:
		return nil, n.err
	case <-ctx.Done():
		n.end()
		return nil, fmt.Errorf("the node is not ready: %w; its log is %s", ctx.Err(), n.log)
	}
}

// end ends the guest, which has nothing to lose.
func (n *node) end() {
	n.stop()
	<-n.ended
}

func nodeConfig(s staged, c *controlplane.ControlPlane) (vm.Config, error) {
	files, err := nodeFiles(s, c)
	if err != nil {
		return vm.Config{}, err
	}
	return vm.Config{
		Kernel: s.Kernel, Files: files, MemoryMiB: nodeMemory, Tap: tapName,
		Command: []string{"/node"}, Console: filepath.Join(s.Dir, "console.log"),
	}, nil
}

// nodeFiles are the guest's. What is put into the root file system comes before it: of two files with one path the first
// counts. /lib and its like are links there.
func nodeFiles(s staged, c *controlplane.ControlPlane) ([]vm.File, error) {
	kubelet, err := c.Client("system:node:"+nodeName, "system:nodes")
	if err != nil {
		return nil, err
	}
	serving, err := c.Server([]string{nodeName}, addresses(nodeAddresses)...)
	if err != nil {
		return nil, err
	}
	proxy, err := c.Client("system:kube-proxy")
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(nodeSetup(s))
	if err != nil {
		return nil, err
	}
	files := []vm.File{
		{Guest: "/node", Host: s.Node},
		{Guest: "/sbin/modprobe", Link: "/node"},
		{Guest: setup.ConfigPath, Data: config}, // before the node's root file system is that
		{Guest: nodeRoot + setup.ConfigPath, Data: config},
		{Guest: nodeRoot + "/usr/lib/modules/" + s.Kernel.Release, Host: s.Kernel.ModulesDir},
		{Guest: nodeRoot + "/etc/kubernetes/ca.crt", Data: c.Certificate},
		{Guest: nodeRoot + "/etc/kubernetes/kubelet.crt", Data: serving.Certificate},
		{Guest: nodeRoot + "/etc/kubernetes/kubelet.key", Data: serving.Key},
		{Guest: nodeRoot + "/etc/kubernetes/kubelet.kubeconfig", Data: c.Configuration(kubelet)},
		{Guest: nodeRoot + "/etc/kubernetes/kube-proxy.kubeconfig", Data: c.Configuration(proxy)},
		{Guest: nodeRoot + "/etc/resolv.conf", Data: []byte("\n")},
	}
	for name, path := range map[string]string{
		"kubelet.yaml": "/etc/kubernetes/kubelet.yaml", "containerd.toml": "/etc/containerd/config.toml", "cni.conflist": "/etc/cni/net.d/10-bridge.conflist",
	} {
		files = append(files, vm.File{Guest: nodeRoot + path, Host: filepath.Join("testdata", name)})
	}
	for _, name := range []string{"kubelet", "kube-proxy"} {
		files = append(files, vm.File{Guest: nodeRoot + "/usr/local/bin/" + name, Host: filepath.Join(s.Kubernetes, name)})
	}
	for _, archive := range s.Images {
		files = append(files, vm.File{Guest: nodeRoot + inNode(archive), Host: archive})
	}
	return append(files, vm.File{Guest: nodeRoot, Host: s.Root}), nil
}

// inNode is where an archive of an image is there.
func inNode(archive string) string { return "/images/" + filepath.Base(archive) }

func nodeSetup(s staged) setup.Config {
	c := setup.Config{
		Root: nodeRoot, State: []string{"/var/lib/containerd", "/var/lib/kubelet"}, Hostname: nodeName,
		// What kube-proxy sets is there when connections are tracked.
		Modules:   []string{"br_netfilter", "nf_conntrack", "overlay"},
		Addresses: nodeAddresses, Gateways: addresses(controlAddresses),
		Sysctls: map[string]string{
			"/proc/sys/net/ipv4/ip_forward":          "1",
			"/proc/sys/net/ipv6/conf/all/forwarding": "1",
			// So that what pods send to a Service is led to it on a bridge too.
			"/proc/sys/net/bridge/bridge-nf-call-iptables":  "1",
			"/proc/sys/net/bridge/bridge-nf-call-ip6tables": "1",
		},
		Runtime: []string{"/usr/bin/containerd"},
		Programs: [][]string{
			{
				"/usr/local/bin/kubelet", "--config", "/etc/kubernetes/kubelet.yaml", "--kubeconfig", "/etc/kubernetes/kubelet.kubeconfig",
				"--hostname-override", nodeName, "--node-ip", join(addresses(nodeAddresses)),
			},
			{
				"/usr/local/bin/kube-proxy", "--kubeconfig", "/etc/kubernetes/kube-proxy.kubeconfig",
				"--hostname-override", nodeName, "--cluster-cidr", join(podRanges), "--conntrack-max-per-core", "0",
			},
		},
	}
	for _, archive := range s.Images {
		c.Images = append(c.Images, inNode(archive))
	}
	return c
}
