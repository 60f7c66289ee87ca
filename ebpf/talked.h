/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_TALKED_H
#define NETWORK_TALKED_H

/*
 * Who works for those that are followed without being followed: daemons that
 * they talk to over a Unix socket, or over the loopback device.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "books.h"
#include "follow.h"
#include "report.h"

/* More than UNIX_PATH_MAX of include/uapi/linux/un.h, for the verifier. */
#define UNIX_PATH_LEN 128

/* Unix sockets of daemons: a key of a map, zeros behind the path. */
struct unix_path {
	__u32 len;
	char path[UNIX_PATH_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32);
	__type(key, struct unix_path);
	__type(value, __u8);
} talked_unix SEC(".maps");

/*
 * Where daemons have received attempts of this host's processes: address,
 * port and protocol as a tuple's local end.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 128);
	__type(key, struct tuple);
	__type(value, __u8);
} served SEC(".maps");

/*
 * Processes that are followed and have listened, by the address of their
 * struct pid, which a socket keeps when they have ended: see init_peercred().
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, __u8);
} own_listeners SEC(".maps");

static __always_inline void note_listener(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 pid = (__u64)BPF_CORE_READ(task, group_leader, thread_pid);
	__u8 one = 1;

	if (is_followed(task))
		bpf_map_update_elem(&own_listeners, &pid, &one, BPF_ANY);
	else
		bpf_map_delete_elem(&own_listeners, &pid);
}

/* A Unix socket has got its peer: who listens there, and at which path. */
static __always_inline void note_connected(struct sock *sk)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct unix_sock *peer =
		(void *)BPF_CORE_READ((struct unix_sock *)sk, peer);
	struct unix_address *addr = BPF_CORE_READ(peer, addr);
	__u64 pid = (__u64)BPF_CORE_READ(sk, sk_peer_pid);
	struct unix_path key = {};
	__u8 one = 1;

	if (!is_followed(task) || !addr ||
	    bpf_map_lookup_elem(&own_listeners, &pid))
		return;
	key.len = (BPF_CORE_READ(addr, len) - sizeof(__kernel_sa_family_t)) &
		  (UNIX_PATH_LEN - 1);
	bpf_probe_read_kernel(key.path, key.len,
			      (void *)addr +
				      bpf_core_field_offset(struct unix_address,
							    name) +
				      sizeof(__kernel_sa_family_t));
	bpf_map_update_elem(&talked_unix, &key, &one, BPF_ANY);
}

/* Received over loopback by somebody who is not followed. */
static __always_inline void note_served(const struct report *report)
{
	struct tuple key = report->ends;
	__u8 one = 1;

	if (report->attempt.egress || report->device != LOOPBACK_IFINDEX)
		return;
	__builtin_memset(&key.remote, 0, sizeof(key.remote));
	key.remote_port = 0;
	bpf_map_update_elem(&served, &key, &one, BPF_ANY);
}

#endif
