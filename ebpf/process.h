/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_PROCESS_H
#define NETWORK_PROCESS_H

/*
 * A process as its user knows it: by its own name, whatever its threads call
 * themselves. A worker of io_uring is a thread of the process that it works for
 * (Linux 5.12, and what was ported back from there).
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <gadget/types.h>

#include "../program.h"
#include "read.h"

#define INIT_PID 1 /* ancestor of all that have no elder one */
#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */

/* A kernel thread (NFS, an MPTCP subflow) works for somebody who is not known. */
static __always_inline bool is_kernel_thread(struct task_struct *task)
{
	return READ(task, flags) & PF_KTHREAD;
}

/* When the task's process was started, ns since the boot. */
static __always_inline __u64 started_at(struct task_struct *task)
{
	return READ(task, group_leader, start_boottime);
}

/* Fills in a task's process as it is now, and the task's own name. */
static __always_inline void read_process(struct gadget_process *proc,
					 char thread[THREAD_LEN],
					 struct task_struct *task)
{
	struct task_struct *self = typed(task), *parent;

	proc->pid = FIELD(self, tgid);
	proc->tid = FIELD(self, pid);
	proc->creds.uid = FIELD(self, cred, uid.val);
	proc->creds.gid = FIELD(self, cred, gid.val);
	proc->mntns_id = FIELD(self, nsproxy, mnt_ns, ns.inum);
	BPF_CORE_READ_INTO(&proc->comm, task, group_leader, comm);
	bpf_probe_read_kernel(thread, THREAD_LEN, &task->comm);

	parent = FIELD(self, real_parent);
	proc->parent.pid = FIELD(parent, tgid);
	proc->parent.tid = FIELD(parent, pid);
	BPF_CORE_READ_INTO(&proc->parent.comm, parent, group_leader, comm);
}

/*
 * Which process: its ID alone can be another's later. A key of maps. The address
 * of struct pid stays as long as the process does, also when another of its
 * threads than the first executes a program: see de_thread().
 */
struct process {
	__u64 pid_struct;
	__u64 started; /* ns since the boot */
	__u64 pid;
};

static __always_inline void set_process_id(struct process *process,
					   struct task_struct *task)
{
	struct task_struct *self = typed(task);
	struct task_struct *leader = FIELD(self, group_leader);

	process->pid_struct = (__u64)FIELD(leader, thread_pid);
	process->started = FIELD(leader, start_boottime);
	process->pid = FIELD(self, tgid);
}

static __always_inline bool is_same_process(const struct process *a,
					    const struct process *b)
{
	return a->pid == b->pid && a->started == b->started;
}

/* The first thread of a process that lives, or NULL. */
static __always_inline struct task_struct *leader_of(
	const struct process *process)
{
	struct pid *pid = (void *)process->pid_struct;
	struct hlist_node *node;
	struct task_struct *task, *self;

	if (!pid)
		return NULL;
	node = READ(pid, tasks[PIDTYPE_TGID].first);
	if (!node)
		return NULL;
	task = (void *)node -
	       bpf_core_field_offset(struct task_struct, pid_links) -
	       PIDTYPE_TGID * sizeof(*node);
	self = typed(task);
	if (FIELD(self, tgid) != process->pid ||
	    FIELD(self, group_leader, start_boottime) != process->started ||
	    !FIELD(self, signal, live.counter))
		return NULL;
	return task;
}

#endif
