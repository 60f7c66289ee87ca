// SPDX-License-Identifier: Apache-2.0

// Command server echoes what it gets, as a server in Go does that knows nothing of how its listener was made:
//
//	server ADDRESS FILE  listens by Go's net package, which is MPTCP where there is such, and writes its socket's inode
//	                     number into FILE: /proc/net/tcp has none that a descriptor leads to
//	server               takes the listener that was handed over as descriptor 3, as systemd does
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// handedOver is the first descriptor that systemd hands over (SD_LISTEN_FDS_START in sd-daemon.h).
const handedOver = 3

func main() {
	fmt.Fprintln(os.Stderr, "server:", serve(os.Args[1:]))
	os.Exit(1)
}

// serve returns why it cannot go on.
func serve(args []string) error {
	listener, err := listen(args)
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn) // until the client has had enough
		}()
	}
}

func listen(args []string) (net.Listener, error) {
	if len(args) != 2 {
		return net.FileListener(os.NewFile(handedOver, "listener"))
	}
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return nil, err
	}
	return listener, writeInode(listener.(*net.TCPListener), args[1])
}

func writeInode(listener *net.TCPListener, file string) error {
	conn, err := listener.SyscallConn()
	if err != nil {
		return err
	}
	var stat syscall.Stat_t
	var statErr error
	if err := conn.Control(func(fd uintptr) { statErr = syscall.Fstat(int(fd), &stat) }); err != nil {
		return err
	}
	if statErr != nil {
		return statErr
	}
	// At once: who reads it waits for its end of line.
	return os.WriteFile(file, fmt.Appendln(nil, stat.Ino), 0o644)
}
