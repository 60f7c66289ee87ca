/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_HOST_H
#define NETWORK_HOST_H

/*
 * Which network namespace is the host's, where ig reports containers alone. It is
 * attached to their namespaces then, so what nobody known sends or receives there
 * is a container's; but a container can be in the host's namespace.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "params.h"
#include "process.h"

#define MAX_ANCESTORS 64 /* of ig, that are looked at */

/* Inode number of the namespace; 0: it is not known, and what is nobody's is left out. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} host SEC(".maps");

static __always_inline __u64 *get_host(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&host, &zero);
}

static __always_inline bool is_of_container(__u32 netns)
{
	__u64 *of_host = get_host();

	return of_host && *of_host && *of_host != netns;
}

/*
 * In the context of ig, once: process 1 of its PID namespace is the host's, for ig
 * as well. It need not be that of the machine: a host can be a container itself.
 */
static __always_inline void find_host(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 *of_host = get_host();
	struct upid in_namespace;
	struct pid *pid;
	__u32 level;

	if (!gadget_filter_by_mntns || !of_host || *of_host)
		return;
	level = BPF_CORE_READ(task, thread_pid, level);
	for (int i = 0; i < MAX_ANCESTORS; i++) {
		pid = BPF_CORE_READ(task, group_leader, thread_pid);
		if (BPF_CORE_READ(pid, level) < level)
			return;
		bpf_probe_read_kernel(&in_namespace, sizeof(in_namespace),
				      (void *)pid +
					      bpf_core_field_offset(struct pid,
								    numbers) +
					      level * sizeof(in_namespace));
		if (in_namespace.nr == INIT_PID) {
			*of_host =
				BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
			return;
		}
		task = BPF_CORE_READ(task, real_parent);
	}
}

#endif
