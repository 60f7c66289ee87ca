/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_FAMILY_H
#define NETWORK_FAMILY_H

/*
 * Young processes: who forks a process for each attempt is no new owner each
 * time. Their family is an ancestor that was there for a while before them.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "params.h"
#include "process.h"
#include "read.h"

#define YOUNG_NS NSEC_PER_SEC
/* By how much an ancestor is older: more than links of a chain of forks are. */
#define ELDER_NS (NSEC_PER_SEC / 10)
#define MAX_GENERATIONS 8 /* that are looked at */

static __always_inline bool is_young(__u64 started, __u64 now)
{
	return now - started < YOUNG_NS;
}

/* Of the first thread of a process. Not static: verified once. */
__noinline __u32 family_of(__u64 address)
{
	struct task_struct *task = typed((struct task_struct *)address);
	__u64 started = FIELD(task, group_leader, start_boottime);

	if (!is_young(started, bpf_ktime_get_boot_ns()))
		return 0;
	for (int i = 0; i < MAX_GENERATIONS; i++) {
		task = FIELD(task, group_leader, real_parent);
		if (started - FIELD(task, group_leader, start_boottime) >=
		    ELDER_NS)
			return FIELD(task, tgid);
	}
	return INIT_PID;
}

/* The process ID of a young task's family, else 0. */
static __always_inline __u32 find_family(struct task_struct *task)
{
	return family_of((__u64)BPF_CORE_READ(task, group_leader));
}

#endif
