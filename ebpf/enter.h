/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_ENTER_H
#define NETWORK_ENTER_H

/*
 * Tells user space that a process is in a network namespace that nobody
 * watches, before the process goes on in it. What is told wakes a thread on the
 * same CPU, which comes first when the kernel is about to leave to the process:
 * see exit_to_user_mode_loop().
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/macros.h>

#include "books.h"
#include "follow.h"

const volatile __u32 watched_max_entries = 64;
EVENT_PARAM(watched_max_entries);

enum whose {
	NOBODYS,
	THOSE_OF_FOLLOWED,
	EVERYBODYS,
};

/* Whose namespaces are to be told; user space sets it. */
struct entering {
	__u32 whose; /* enum whose */
	__u32 but[2]; /* process IDs of user space's own */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct entering);
} entering SEC(".maps");

/*
 * Namespaces that user space watches: the address of struct net, by inode
 * number. It writes this.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u64);
} watched SEC(".maps");

/* The rings that user space waits at. */
struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} entered SEC(".maps");

/* What is told. */
struct entry {
	__u32 netns;
	__u32 pid;
	__u32 tid;
	__u32 limited; /* to some CPUs, by somebody's wish */
	__u64 switches; /* how often the thread has left a CPU so far */
};

static __always_inline bool is_told(struct task_struct *task, __u32 pid)
{
	struct entering *entering_now;
	__u32 zero = 0;

	entering_now = bpf_map_lookup_elem(&entering, &zero);
	if (!entering_now || entering_now->whose == NOBODYS ||
	    is_kernel_thread(task))
		return false;
	if (entering_now->whose == THOSE_OF_FOLLOWED)
		return is_followed(task);
	return pid != entering_now->but[0] && pid != entering_now->but[1];
}

static __always_inline bool is_limited(struct task_struct *task)
{
	return bpf_core_field_exists(task->user_cpus_ptr) &&
	       BPF_CORE_READ(task, user_cpus_ptr);
}

static __always_inline void tell_entry(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 ids = bpf_get_current_pid_tgid();
	struct entry entry = { .pid = ids >> 32, .tid = ids };

	if (!is_told(task, entry.pid))
		return;
	entry.netns = BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
	entry.limited = is_limited(task);
	entry.switches =
		BPF_CORE_READ(task, nvcsw) + BPF_CORE_READ(task, nivcsw);
	if (entry.netns && !bpf_map_lookup_elem(&watched, &entry.netns))
		bpf_perf_event_output(ctx, &entered, BPF_F_CURRENT_CPU, &entry,
				      sizeof(entry));
}

#endif
