// SPDX-License-Identifier: Apache-2.0

// Command talk is a static program for the tests of package vm: it writes BYTES bytes of a known pattern to standard
// output and as many to standard error, leaves a child behind that holds both open, and kills itself.
package main

import (
	"log"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

func main() {
	log.SetFlags(0)
	if os.Args[1] == "linger" {
		pause()
	}
	n, err := strconv.Atoi(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	child := exec.Command(os.Args[0], "linger")
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	if err := child.Start(); err != nil {
		log.Fatal(err)
	}
	pattern := make([]byte, n)
	for i := range pattern {
		pattern[i] = byte(i * 7 >> 3)
	}
	done := make(chan error)
	for _, f := range []*os.File{os.Stdout, os.Stderr} {
		go func() {
			_, err := f.Write(pattern)
			done <- err
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			log.Fatal(err)
		}
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		log.Fatal(err)
	}
	pause()
}

// pause waits for a signal that ends the program; the runtime would call select {} a deadlock, and say so.
func pause() {
	for {
		_ = syscall.Pause()
	}
}
