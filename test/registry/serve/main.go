// SPDX-License-Identifier: Apache-2.0

// Command serve serves a registry on the loopback interface while a command runs, and
// ends as that does:
//
//	serve DIR COMMAND [ARG...]
//
// DIR is what the registry holds. The command gets its host and port as REGISTRY.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"time"

	"gadget.example/network/test/registry"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "serve: wanted DIR COMMAND [ARG...]")
		os.Exit(2)
	}
	err := serve(os.Args[1], os.Args[2:])
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

func serve(dir string, command []string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: registry.New(context.Background(), dir), ReadHeaderTimeout: time.Minute}
	defer server.Close()
	go func() { _ = server.Serve(listener) }() // until it is closed
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "REGISTRY="+listener.Addr().String())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
