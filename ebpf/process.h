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
	struct task_struct *parent = READ(task, real_parent);

	proc->pid = READ(task, tgid);
	proc->tid = READ(task, pid);
	proc->creds.uid = READ(task, cred, uid.val);
	proc->creds.gid = READ(task, cred, gid.val);
	proc->mntns_id = READ(task, nsproxy, mnt_ns, ns.inum);
	BPF_CORE_READ_INTO(&proc->comm, task, group_leader, comm);
	bpf_probe_read_kernel(thread, THREAD_LEN, &task->comm);

	proc->parent.pid = READ(parent, tgid);
	proc->parent.tid = READ(parent, pid);
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
	process->pid_struct = (__u64)READ(task, group_leader, thread_pid);
	process->started = started_at(task);
	process->pid = READ(task, tgid);
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
	struct task_struct *task;

	if (!pid)
		return NULL;
	node = READ(pid, tasks[PIDTYPE_TGID].first);
	if (!node)
		return NULL;
	task = (void *)node -
	       bpf_core_field_offset(struct task_struct, pid_links) -
	       PIDTYPE_TGID * sizeof(*node);
	if (READ(task, tgid) != process->pid ||
	    started_at(task) != process->started ||
	    !READ(task, signal, live.counter))
		return NULL;
	return task;
}

#endif
