// SPDX-License-Identifier: Apache-2.0

// Package k8s runs the image as most people will: by `kubectl gadget run`, in a real cluster with one node.
//
// The control plane runs on this machine, in a network namespace of the test's own: etcd, the API server, the controller
// manager and the scheduler need no kernel of their own. The node is a guest of internal/vm that has containerd, the kubelet
// and kube-proxy; a tap device leads from it to the control plane. The images of its pods are made here, from what is built
// here: nothing is pulled from anywhere but the registry in the cluster.
//
// The test binary is both sides: it makes what the cluster takes, and starts itself again in the new namespace, where it
// starts the cluster and runs the tests. Flags:
//
//	-image        the gadget's image in ig's store, that is pushed to the registry
//	-connections  likewise that which counts
//	-netgadget    the program that makes policies of what was printed
//	-dir          an empty folder for the cluster's state, its logs, and what the gadget printed
//	-keep         let the cluster run when the tests are done, until it is interrupted
//
// The environment:
//
//	E2E_KERNEL    name of the node's kernel (see vm.Kernels)
//	IG            the ig that pushes the image
//	KERNEL_CACHE  folder for the kernel, in place of the user's cache folder; what else is kept is beside it
package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	image            = flag.String("image", "network:latest", "the gadget's image in ig's store")
	connectionsImage = flag.String("connections", "network-connections:latest", "that which counts")
	netgadget        = flag.String("netgadget", "netgadget", "the program that makes policies")
	dir              = flag.String("dir", "", "a folder for the cluster's state, its logs and what the gadget printed; what was there is removed")
	keep             = flag.Bool("keep", false, "let the cluster run until it is interrupted")
)

// stagedEnv is set in the process that runs the cluster: the file that says what was made for it.
const stagedEnv = "K8S_STAGED"

func TestMain(m *testing.M) {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	status, err := run(ctx, m)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "k8s:", err)
		status = 1
	}
	os.Exit(status)
}

func run(ctx context.Context, m *testing.M) (int, error) {
	if testing.Short() {
		fmt.Println("skipped: needs a cluster, which takes minutes: not with -short")
		return 0, nil
	}
	if file := os.Getenv(stagedEnv); file != "" {
		return runCluster(ctx, m, file)
	}
	if *dir == "" {
		return 1, errors.New("-dir has to name a folder for the cluster")
	}
	where, err := filepath.Abs(*dir)
	if err != nil {
		return 1, err
	}
	if err := errors.Join(os.RemoveAll(where), os.MkdirAll(where, 0o755)); err != nil {
		return 1, err
	}
	staged, err := stage(ctx, where)
	if err != nil {
		return 1, err
	}
	b, err := json.Marshal(staged)
	if err != nil {
		return 1, err
	}
	file := filepath.Join(where, "staged.json")
	if err := os.WriteFile(file, b, 0o644); err != nil {
		return 1, err
	}
	return again(ctx, file)
}

// again runs this program in a network namespace of its own. It is told to end when ctx is done, and the kernel kills it
// should this process die.
func again(ctx context.Context, staged string) (int, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.Env = append(os.Environ(), stagedEnv+"="+staged)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	// The parent whose death Pdeathsig is about is the thread that started it: it has to live as long.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(1, exit.ExitCode()), nil
	}
	return 0, err
}

// theCluster is where the tests run.
var theCluster *cluster

func runCluster(ctx context.Context, m *testing.M, file string) (status int, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 1, err
	}
	var s staged
	if err := json.Unmarshal(b, &s); err != nil {
		return 1, err
	}
	theCluster, err = startCluster(ctx, s)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, theCluster.stop()) }()
	status = 1
	if err = errors.Join(serveOutside(ctx), theCluster.prepare(theCluster.ctx)); err == nil {
		status = m.Run()
	}
	if *keep {
		fmt.Printf("The cluster runs until you press Ctrl-C (%v). Look at it: %s kubectl get pods -A\n", err, theCluster.enter)
		<-theCluster.ctx.Done()
	}
	return status, err
}
