/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_OWNER_H
#define NETWORK_OWNER_H

/*
 * Who: the process that owns the socket of this namespace's side.
 */

#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/sockets-map.h>
#include <gadget/types.h>

#include "packet.h"

/*
 * IG's socket enricher knows a socket by its local port alone, so that it can
 * name a neighbour on the same port of another address.
 */
static __always_inline struct gadget_socket_value *find_socket(
	__u32 netns, const struct attempt *a)
{
	struct gadget_socket_value *socket;
	struct gadget_socket_key key;

	/* the padding is part of the key, and no initializer clears it */
	__builtin_memset(&key, 0, sizeof(key));
	key.netns = netns;
	key.family = a->version == 4 ? GADGET_SE_AF_INET : GADGET_SE_AF_INET6;
	key.proto = a->proto;
	key.port = a->egress ? a->sport : a->dport;

	socket = bpf_map_lookup_elem(&gadget_sockets, &key);
	if (socket || a->version == 6)
		return socket;

	/* a dual-stack socket takes IPv4 as well */
	key.family = GADGET_SE_AF_INET6;
	socket = bpf_map_lookup_elem(&gadget_sockets, &key);
	return socket && !socket->ipv6only ? socket : NULL;
}

/*
 * Fills in the owner of the attempt's socket in the namespace netns. Returns
 * false, and leaves proc as it is, when nobody is known.
 */
static __always_inline bool find_owner(__u32 netns, const struct attempt *a,
				       struct gadget_process *proc)
{
	struct gadget_socket_value *socket = find_socket(netns, a);

	gadget_process_populate_from_socket(socket, proc);
	return socket;
}

#endif
