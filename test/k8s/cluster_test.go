// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gadget.example/network/test/k8s/controlplane"
)

// startLimit bounds the start of the cluster, and waitLimit each wait for something in it: emulated, it is slow.
const (
	startLimit = 15 * time.Minute
	waitLimit  = 10 * time.Minute
)

// cluster is one that runs.
type cluster struct {
	staged
	begin   time.Time
	ctx     context.Context // done when the node has ended, or the cluster is no longer wanted
	end     context.CancelCauseFunc
	control *controlplane.ControlPlane
	node    *node
	// enter is a script that runs a command where the cluster is, with its programs in PATH.
	enter string
}

// startCluster starts a cluster in this network namespace.
func startCluster(ctx context.Context, s staged) (*cluster, error) {
	if err := makeNetwork(); err != nil {
		return nil, err
	}
	c := &cluster{staged: s, begin: time.Now()}
	c.ctx, c.end = context.WithCancelCause(ctx)
	limited, cancel := context.WithTimeout(c.ctx, startLimit)
	defer cancel()
	for _, start := range []func(context.Context) error{c.startControl, c.startNode} {
		if err := start(limited); err != nil {
			return nil, errors.Join(err, c.stop())
		}
	}
	return c, nil
}

// progress prints how far the cluster is.
func (c *cluster) progress(what string) {
	fmt.Printf("%s after %v\n", what, time.Since(c.begin).Round(time.Second))
}

func (c *cluster) startControl(ctx context.Context) error {
	state := filepath.Join(c.Dir, "control-plane")
	if err := os.Mkdir(state, 0o755); err != nil {
		return err
	}
	var err error
	c.control, err = controlplane.Start(ctx, controlplane.Config{
		Programs: c.Kubernetes, Dir: state, Address: controlAddresses[0].Addr(), Services: serviceRanges,
	})
	if err != nil {
		return err
	}
	c.progress("The control plane is ready")
	return c.writeEnter()
}

func (c *cluster) startNode(ctx context.Context) (err error) {
	if c.node, err = startNode(ctx, c.staged, c.control); err != nil {
		return err
	}
	c.progress("The node's programs are started")
	go func() {
		<-c.node.ended
		c.end(c.node.err)
	}()
	for _, condition := range []string{"create", "condition=Ready"} {
		if _, err := c.kubectl(ctx, "wait", "--for="+condition, "node/"+nodeName, "--timeout", startLimit.String()); err != nil {
			return err
		}
	}
	c.progress("The node is ready")
	return nil
}

func (c *cluster) stop() error {
	if c.node != nil {
		c.node.end()
	}
	if c.control != nil {
		return c.control.Stop()
	}
	return nil
}

// writeEnter writes the script by which one looks at the cluster by hand.
func (c *cluster) writeEnter() error {
	c.enter = filepath.Join(c.Dir, "enter")
	script := fmt.Sprintf(`#!/bin/sh
# enter COMMAND [ARG...]: runs a command where the cluster is, with its programs in PATH.
exec nsenter --net=/proc/%d/ns/net env KUBECONFIG='%s' PATH='%s' "$@"
`, os.Getpid(), c.control.Kubeconfig, c.path())
	return os.WriteFile(c.enter, []byte(script), 0o755)
}

func (c *cluster) path() string { return c.Kubernetes + ":" + c.IG + ":" + os.Getenv("PATH") }

// command is one with the cluster's programs in its PATH: kubectl finds kubectl-gadget there.
func (c *cluster) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	for _, dir := range []string{c.Kubernetes, c.IG} {
		if path := filepath.Join(dir, name); !strings.Contains(name, "/") {
			if _, err := os.Stat(path); err == nil {
				name = path
			}
		}
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.control.Kubeconfig, "PATH="+c.path())
	return cmd
}

// kubectl returns what it prints on its standard output. Its standard error is in the error.
func (c *cluster) kubectl(ctx context.Context, args ...string) (string, error) {
	cmd := c.command(ctx, "kubectl", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return string(out), cause
		}
		return string(out), fmt.Errorf("kubectl %s: %w: %s; the node's log is %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()), c.node.log)
	}
	return strings.TrimSpace(string(out)), nil
}

// must is kubectl where it has to succeed.
func (c *cluster) must(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, waitLimit)
	defer cancel()
	out, err := c.kubectl(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
