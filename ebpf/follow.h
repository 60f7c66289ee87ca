/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_FOLLOW_H
#define NETWORK_FOLLOW_H

/*
 * One process and all that it starts from now on, wherever they go: known by
 * fork alone, so that no namespace, session or user makes a difference.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/macros.h>

#include "family.h"
#include "params.h"

const volatile __u32 followed_max_entries = 64;
EVENT_PARAM(followed_max_entries);

/*
 * Processes that are followed and live, but for the first: when each was
 * started, by its ID. A process of the same ID later was started later.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u64);
} followed SEC(".maps");

struct following {
	__u64 unfollowed; /* processes for which there was no place */
	__u64 ended; /* the first process has: its ID is another's */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct following);
} following SEC(".maps");

static __always_inline struct following *get_following(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&following, &zero);
}

static __always_inline bool is_first_followed(__u32 pid)
{
	struct following *f = get_following();

	return pid == follow && f && !f->ended;
}

/* Whether the task's process is followed. */
static __always_inline bool is_followed(struct task_struct *task)
{
	__u64 *started;
	__u32 pid;

	if (!follow)
		return false;
	pid = BPF_CORE_READ(task, tgid);
	started = bpf_map_lookup_elem(&followed, &pid);
	if (started && *started == started_at(task))
		return true;
	return is_first_followed(pid);
}

/* Before the child can run. A thread is of a process that is known. */
static __always_inline void follow_child(struct task_struct *parent,
					 struct task_struct *child)
{
	__u32 pid = BPF_CORE_READ(child, tgid);
	__u64 started = started_at(child);
	struct following *f;

	if (pid == BPF_CORE_READ(parent, tgid) || !is_followed(parent))
		return;
	if (!bpf_map_update_elem(&followed, &pid, &started, BPF_ANY))
		return;
	f = get_following();
	if (f)
		__sync_fetch_and_add(&f->unfollowed, 1);
}

/* A thread has ended, perhaps the last one: see do_exit(). */
static __always_inline void unfollow(struct task_struct *task)
{
	__u32 pid = BPF_CORE_READ(task, tgid);
	struct following *f = get_following();

	if (BPF_CORE_READ(task, signal, live.counter))
		return;
	if (pid == follow && f)
		f->ended = 1;
	bpf_map_delete_elem(&followed, &pid);
}

#endif
