// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// programs are the node's, each of which is to run as long as the node does.
type programs struct {
	ended chan error // the end of any
	lines sync.Mutex // one line at a time
}

func newPrograms() *programs { return &programs{ended: make(chan error, 1)} }

// start starts a program and passes on what it writes.
func (p *programs) start(args []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	name := filepath.Base(args[0])
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	go p.copyLines(name, r)
	go func() {
		_ = cmd.Wait() // what it tells is in the state
		select {
		case p.ended <- fmt.Errorf("%s ended: %s", name, cmd.ProcessState):
		default: // another one's end has been told
		}
	}()
	return nil
}

func (p *programs) copyLines(name string, r io.ReadCloser) {
	defer r.Close()
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			p.lines.Lock()
			fmt.Printf("%s: %s", name, line)
			p.lines.Unlock()
		}
		if err != nil {
			return
		}
	}
}

// startRuntime starts containerd and waits until it answers.
func (p *programs) startRuntime(args []string) error {
	if err := p.start(args); err != nil {
		return err
	}
	for exec.Command("ctr", "version").Run() != nil {
		select {
		case err := <-p.ended:
			return err
		case <-time.After(time.Second):
		}
	}
	return nil
}

// importImage has containerd take an image in, where the kubelet finds it.
func importImage(archive string) error {
	if err := command("ctr", "-n", "k8s.io", "image", "import", "--snapshotter", "native", archive).Run(); err != nil {
		return fmt.Errorf("import %s: %w", archive, err)
	}
	return os.Remove(archive) // it is in the node's memory
}

func command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd
}
