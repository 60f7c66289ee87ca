// SPDX-License-Identifier: Apache-2.0

package main

import "golang.org/x/sys/unix"

const sysStat = unix.SYS_NEWFSTATAT
