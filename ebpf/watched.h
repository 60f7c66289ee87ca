/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_WATCHED_H
#define NETWORK_WATCHED_H

/*
 * Whether the socket filter is attached to a network namespace: hooks see what
 * happens in all of them. Asked of the kernel, for attempts that the filter did
 * not see.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "report.h"

#define MAX_PACKET_SOCKETS 64 /* of one namespace, that are looked at */
#define MAX_USED_MAPS 64 /* of one program: include/linux/bpf.h */
#define DISPATCHER_MAPS 4 /* of IG's program: more than it has */

/*
 * Where the kernel has a map of this gadget's run that the filter has, in both
 * images: see events_array(). The one that counts has no ring.
 */
static __always_inline void *map_of_filter(void)
{
	void *volatile map = &workspaces;
	void *address = NULL;

	bpf_probe_read_kernel(&address, sizeof(address), (void *)&map);
	return address;
}

/*
 * Whether a program is the filter: it has a map of this gadget's run. Not static:
 * verified once. Linux 5.10 lets such functions have numbers alone.
 */
__noinline int is_filter(__u64 address)
{
	struct bpf_prog *prog = (void *)address;
	struct bpf_map **maps = BPF_CORE_READ(prog, aux, used_maps);
	__u32 count = BPF_CORE_READ(prog, aux, used_map_cnt);
	struct bpf_map *map;

	for (int i = 0; i < MAX_USED_MAPS && i < count; i++) {
		map = NULL;
		bpf_probe_read_kernel(&map, sizeof(map), &maps[i]);
		if ((void *)map == map_of_filter())
			return true;
	}
	return false;
}

/*
 * IG attaches a program that calls the filter, by the only entry of a map. NULL
 * for other programs.
 */
static __always_inline struct bpf_prog *called_by(struct bpf_prog *prog)
{
	struct bpf_map **maps = BPF_CORE_READ(prog, aux, used_maps);
	__u32 count = BPF_CORE_READ(prog, aux, used_map_cnt);
	struct bpf_prog *called = NULL;
	struct bpf_map *map;

	for (int i = 0; i < DISPATCHER_MAPS && i < count; i++) {
		map = NULL;
		bpf_probe_read_kernel(&map, sizeof(map), &maps[i]);
		if (BPF_CORE_READ(map, map_type) != BPF_MAP_TYPE_PROG_ARRAY)
			continue;
		bpf_probe_read_kernel(
			&called, sizeof(called),
			(void *)map +
				bpf_core_field_offset(struct bpf_array, ptrs));
	}
	return called;
}

/* Not static: verified once, and not for each socket. */
__noinline int has_filter(__u64 address)
{
	struct sock *sk = (void *)address;
	struct bpf_prog *prog = BPF_CORE_READ(sk, sk_filter, prog);
	struct bpf_prog *called;

	if (!prog)
		return false;
	called = called_by(prog);
	return is_filter((__u64)(called ?: prog));
}

/* The packet sockets of a namespace are in a list: see packet_create(). */
__noinline int is_watched(__u64 address)
{
	struct net *net = (void *)address;
	struct hlist_node *node = BPF_CORE_READ(net, packet.sklist.first);
	struct sock *sk;

	for (int i = 0; i < MAX_PACKET_SOCKETS && node; i++) {
		sk = (void *)node -
		     bpf_core_field_offset(struct sock, __sk_common.skc_node);
		if (has_filter((__u64)sk))
			return true;
		node = BPF_CORE_READ(node, next);
	}
	return false;
}

#endif
