// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// registryAddress is a Service's, as testdata has it.
const registryAddress = "10.96.0.100:5000"

// What `kubectl gadget run` gets.
const (
	gadgetName      = registryAddress + "/network:latest"
	connectionsName = registryAddress + "/network-connections:latest"
)

// gadgetPatch gives IG's probes the time that they take on an emulated machine: each starts a program of 77 MB, for which
// IG's manifest has a second.
const gadgetPatch = `{"spec": {"template": {"spec": {"containers": [{"name": "gadget",
	"startupProbe": {"timeoutSeconds": 60, "failureThreshold": 60}, "readinessProbe": {"timeoutSeconds": 60, "periodSeconds": 30}}]}}}}`

// prepare starts the pods, has the registry take the images, and deploys Inspektor Gadget.
func (c *cluster) prepare(ctx context.Context) error {
	if err := c.startPods(ctx); err != nil {
		return err
	}
	c.progress("The pods are ready")
	for local, name := range map[string]string{*image: gadgetName, *connectionsImage: connectionsName} {
		if err := push(ctx, local, name); err != nil {
			return err
		}
	}
	c.progress("The registry has the images")
	if err := c.deploy(ctx); err != nil {
		return err
	}
	c.progress("Inspektor Gadget is ready")
	return nil
}

// all runs kubectl with each line of arguments.
func (c *cluster) all(ctx context.Context, lines ...[]string) error {
	for _, args := range lines {
		if _, err := c.kubectl(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) startPods(ctx context.Context) error {
	lines := [][]string{{"apply", "-f", filepath.Join("testdata", "namespaces.yaml")}}
	timeout := "--timeout=" + waitLimit.String()
	namespaces := []string{"shop", "depot", "registry"}
	for _, namespace := range namespaces {
		// Without it no pod is taken.
		lines = append(lines, []string{"wait", "--for=create", "serviceaccount/default", "-n", namespace, timeout})
	}
	for _, name := range []string{"dns.yaml", "workloads.yaml"} {
		lines = append(lines, []string{"apply", "-f", filepath.Join("testdata", name)})
	}
	for _, namespace := range append(namespaces, "kube-system") {
		lines = append(lines, []string{"wait", "--for=condition=Ready", "pod", "--all", "-n", namespace, timeout})
	}
	return c.all(ctx, lines...)
}

// push puts an image into the registry with the stock ig, whose store it leaves as it was.
func push(ctx context.Context, local, name string) error {
	if err := ig(ctx, "tag", local, name); err != nil {
		return err
	}
	return errors.Join(ig(ctx, "push", "--insecure-registries", registryAddress, name), ig(ctx, "remove", name))
}

// ig runs the one that IG names, or that is in PATH, on images.
func ig(ctx context.Context, args ...string) error {
	program := os.Getenv("IG")
	if program == "" {
		program = "ig"
	}
	if out, err := exec.CommandContext(ctx, program, append([]string{"image"}, args...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s image %v: %w: %s", program, args, err, out)
	}
	return nil
}

// deploy installs Inspektor Gadget as its own command does.
func (c *cluster) deploy(ctx context.Context) error {
	return c.all(ctx,
		[]string{
			"gadget", "deploy", "--image", gadgetImage, "--image-pull-policy", "Never", "--liveness-probe=false", "--wait=false",
			"--daemon-config", filepath.Join("testdata", "daemon.yaml"),
		},
		[]string{"patch", "daemonset", "gadget", "-n", "gadget", "-p", gadgetPatch},
		[]string{"rollout", "status", "daemonset", "gadget", "-n", "gadget", "--timeout=" + waitLimit.String()},
	)
}
