// SPDX-License-Identifier: GPL-2.0

/*
 * The image network-connections: the same gadget, which counts attempts in the
 * kernel by who, peer, port and outcome, in place of an event for each.
 */

#define COUNTS_CONNECTIONS
#include "../program.bpf.c"
