/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_PROCESS_H
#define NETWORK_PROCESS_H

/*
 * The current process as its user knows it: by its own name, whatever its
 * threads call themselves. A worker of io_uring is a thread of the process that
 * it works for (Linux 5.12, and what was ported back from there).
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <gadget/types.h>

#include "../program.h"

#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */

/* A kernel thread (NFS, an MPTCP subflow) works for somebody who is not known. */
static __always_inline bool is_kernel_thread(struct task_struct *task)
{
	return BPF_CORE_READ(task, flags) & PF_KTHREAD;
}

/* Fills in the current process, and its thread's name. */
static __always_inline void read_process(struct gadget_process *proc,
					 char thread[THREAD_LEN])
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct *parent = BPF_CORE_READ(task, real_parent);
	__u64 ids = bpf_get_current_pid_tgid();
	__u64 creds = bpf_get_current_uid_gid();

	proc->pid = ids >> 32;
	proc->tid = ids;
	proc->creds.uid = creds;
	proc->creds.gid = creds >> 32;
	proc->mntns_id = BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);
	BPF_CORE_READ_INTO(&proc->comm, task, group_leader, comm);
	bpf_get_current_comm(thread, THREAD_LEN);

	proc->parent.pid = BPF_CORE_READ(parent, tgid);
	proc->parent.tid = BPF_CORE_READ(parent, pid);
	BPF_CORE_READ_INTO(&proc->parent.comm, parent, group_leader, comm);
}

#endif
