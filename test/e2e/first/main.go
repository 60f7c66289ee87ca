// SPDX-License-Identifier: Apache-2.0

// Command first is a command whose first system call is clone: the first instruction
// of the process is that of first (see first_amd64.s), and not of Go's runtime. Parent
// and child each send a datagram to 127.77.255.1 port 83, and end.
//
// It is linked with -ldflags '-E main.first'.
package main

func first()

func main() { first() }
