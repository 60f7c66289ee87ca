// SPDX-License-Identifier: Apache-2.0

// Package controlplane runs the control plane of a Kubernetes cluster on this machine: etcd of Debian's, and Kubernetes' own
// API server, controller manager and scheduler. It needs no root, no container and no node:
//
//	programs, err := binaries.Kubernetes(ctx, binaries.ControlPlane...)
//	c, err := controlplane.Start(ctx, controlplane.Config{Programs: programs, Dir: t.TempDir()})
//	defer c.Stop()
//	out, err := c.Kubectl(ctx, "apply", "--dry-run=server", "-f", file).CombinedOutput()
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Config says where a control plane runs.
type Config struct {
	// Programs is the folder that has kube-apiserver, kube-controller-manager, kube-scheduler and kubectl.
	Programs string
	// Dir is an empty folder for its state, its keys and its logs.
	Dir string
	// Address is where the API server listens; default 127.0.0.1. Nodes need another one.
	Address netip.Addr
	// Services are the ranges of the Services' addresses: one, or one of each family. Default: 10.96.0.0/16.
	Services []netip.Prefix
	// APIServerOnly leaves out the controller manager and the scheduler: then the server takes and checks objects, and
	// nothing becomes of them.
	APIServerOnly bool
}

// ControlPlane is one that runs.
type ControlPlane struct {
	*Authority
	// URL is the API server's.
	URL string
	// Kubeconfig is the file by which an administrator reaches it.
	Kubeconfig string

	config    Config
	processes []*process
}

// Start starts a control plane and returns when it is ready. ctx bounds the start alone; Stop ends what was started, and so
// does the kernel when this process dies. The error has the last lines of the log of the part that failed.
func Start(ctx context.Context, config Config) (*ControlPlane, error) {
	if !config.Address.IsValid() {
		config.Address = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if len(config.Services) == 0 {
		config.Services = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	}
	authority, err := newAuthority()
	if err != nil {
		return nil, err
	}
	c := &ControlPlane{Authority: authority, config: config, Kubeconfig: filepath.Join(config.Dir, "admin.kubeconfig")}
	if err := c.startAll(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func (c *ControlPlane) startAll(ctx context.Context) error {
	etcd, err := c.startEtcd(ctx)
	if err != nil {
		return err
	}
	if err := c.startAPIServer(ctx, etcd); err != nil || c.config.APIServerOnly {
		return err
	}
	return errors.Join(c.startControllers(), c.startScheduler())
}

// Stop ends all parts, the last one first.
func (c *ControlPlane) Stop() error {
	var all error
	for len(c.processes) > 0 {
		last := len(c.processes) - 1
		all = errors.Join(all, c.processes[last].stop())
		c.processes = c.processes[:last]
	}
	return all
}

// Kubectl is a command of an administrator's.
func (c *ControlPlane) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.config.Programs, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig)
	return cmd
}

// Configuration is the content of a kubeconfig file for an identity.
func (c *ControlPlane) Configuration(who Identity) []byte {
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: test
contexts: [{name: test, context: {cluster: test, user: test}}]
clusters: [{name: test, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: test, user: {client-certificate-data: %s, client-key-data: %s}}]
`, c.URL, base64(c.Certificate), base64(who.Certificate), base64(who.Key))
}

func (c *ControlPlane) startEtcd(ctx context.Context) (url string, err error) {
	program, err := exec.LookPath("etcd")
	if err != nil {
		return "", fmt.Errorf("%w (it is Debian's package etcd-server)", err)
	}
	ports, err := freePorts(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 2)
	if err != nil {
		return "", err
	}
	url, peers := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	p, err := c.start(program,
		"--data-dir", filepath.Join(c.config.Dir, "etcd"),
		"--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers,
		"--unsafe-no-fsync", // nothing of a test's has to outlive the machine
	)
	if err != nil {
		return "", err
	}
	return url, p.await(ctx, func() bool { return healthy(ctx, nil, url+"/health") })
}

func (c *ControlPlane) startAPIServer(ctx context.Context, etcd string) error {
	ports, err := freePorts(c.config.Address, 1)
	if err != nil {
		return err
	}
	address := netip.AddrPortFrom(c.config.Address, ports[0])
	c.URL = "https://" + address.String()
	keys, err := c.writeKeys()
	if err != nil {
		return err
	}
	// Loopback is no address for a Service's endpoint: without nodes nobody asks for that one.
	endpoints := "lease"
	if c.config.Address.IsLoopback() {
		endpoints = "none"
	}
	p, err := c.start(filepath.Join(c.config.Programs, "kube-apiserver"), append(keys,
		"--etcd-servers", etcd,
		"--bind-address", address.Addr().String(), "--advertise-address", address.Addr().String(),
		"--secure-port", fmt.Sprint(address.Port()),
		"--endpoint-reconciler-type", endpoints,
		"--service-cluster-ip-range", c.services(),
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--authorization-mode", "Node,RBAC",
		"--enable-admission-plugins", "NodeRestriction",
		"--allow-privileged",
		"--kubelet-preferred-address-types", "InternalIP",
	)...)
	if err != nil {
		return err
	}
	client, err := c.httpClient()
	if err != nil {
		return err
	}
	return p.await(ctx, func() bool { return healthy(ctx, client, c.URL+"/readyz") })
}

// writeKeys writes the API server's keys, and the administrator's configuration, and returns the flags that name them.
func (c *ControlPlane) writeKeys() ([]string, error) {
	var inside []netip.Addr // the Service's addresses of the API server itself
	for _, prefix := range c.config.Services {
		inside = append(inside, prefix.Masked().Addr().Next())
	}
	serving, err := c.Server([]string{"kubernetes", "kubernetes.default", "kubernetes.default.svc"}, append(inside, c.config.Address)...)
	if err != nil {
		return nil, err
	}
	kubelets, err := c.Client("kube-apiserver", "system:masters")
	if err != nil {
		return nil, err
	}
	accounts, err := c.Client("service accounts")
	if err != nil {
		return nil, err
	}
	admin, err := c.Client("admin", "system:masters")
	if err != nil {
		return nil, err
	}
	files := []struct {
		flag, name string
		content    []byte
	}{
		{"--client-ca-file", "ca.crt", c.Certificate},
		{"--kubelet-certificate-authority", "ca.crt", c.Certificate},
		{"--tls-cert-file", "apiserver.crt", serving.Certificate},
		{"--tls-private-key-file", "apiserver.key", serving.Key},
		{"--kubelet-client-certificate", "kubelets.crt", kubelets.Certificate},
		{"--kubelet-client-key", "kubelets.key", kubelets.Key},
		{"--service-account-key-file", "accounts.key", accounts.Key},
		{"--service-account-signing-key-file", "accounts.key", accounts.Key},
		{"", filepath.Base(c.Kubeconfig), c.Configuration(admin)},
	}
	var flags []string
	for _, f := range files {
		path := filepath.Join(c.config.Dir, f.name)
		if err := os.WriteFile(path, f.content, 0o600); err != nil {
			return nil, err
		}
		if f.flag != "" {
			flags = append(flags, f.flag, path)
		}
	}
	return flags, nil
}

func (c *ControlPlane) startControllers() error {
	config, err := c.writeConfiguration("kube-controller-manager")
	if err != nil {
		return err
	}
	_, err = c.start(filepath.Join(c.config.Programs, "kube-controller-manager"),
		"--kubeconfig", config, "--secure-port", "0", "--leader-elect=false", "--use-service-account-credentials",
		"--root-ca-file", filepath.Join(c.config.Dir, "ca.crt"),
		"--service-account-private-key-file", filepath.Join(c.config.Dir, "accounts.key"),
		"--service-cluster-ip-range", c.services(),
	)
	return err
}

func (c *ControlPlane) startScheduler() error {
	config, err := c.writeConfiguration("kube-scheduler")
	if err != nil {
		return err
	}
	_, err = c.start(filepath.Join(c.config.Programs, "kube-scheduler"), "--kubeconfig", config, "--secure-port", "0", "--leader-elect=false")
	return err
}

// writeConfiguration writes a configuration for a part of the cluster, which the API server knows by its user's name.
func (c *ControlPlane) writeConfiguration(name string) (path string, err error) {
	who, err := c.Client("system:" + name)
	if err != nil {
		return "", err
	}
	path = filepath.Join(c.config.Dir, name+".kubeconfig")
	return path, os.WriteFile(path, c.Configuration(who), 0o600)
}

func (c *ControlPlane) start(program string, args ...string) (*process, error) {
	p, err := startProcess(c.config.Dir, program, args...)
	if err == nil {
		c.processes = append(c.processes, p)
	}
	return p, err
}

func (c *ControlPlane) services() string {
	var ranges []string
	for _, prefix := range c.config.Services {
		ranges = append(ranges, prefix.String())
	}
	return strings.Join(ranges, ",")
}

// freePorts are ports of an address that nobody has; they are all held until the last is known, so that they differ.
func freePorts(address netip.Addr, n int) (ports []uint16, err error) {
	for range n {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(address, 0)))
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).AddrPort().Port())
	}
	return ports, nil
}
