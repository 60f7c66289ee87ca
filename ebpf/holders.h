/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_HOLDERS_H
#define NETWORK_HOLDERS_H

/*
 * Who serves a socket: a process that lives and has a descriptor of it.
 *
 * That is who has accepted on it last; before, who has listened, or was found to
 * hold it when the gadget started. Daemons fork and exit, so when these hold it no
 * more, it is the first of the processes that they have started, or that those
 * have, that does.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/macros.h>

#include "family.h"
#include "follow.h"
#include "process.h"
#include "read.h"
#include "report.h"

#define SOCKFS_MAGIC 0x534F434B /* include/uapi/linux/magic.h */
/* Descriptors of a process that are looked at: so often as many. */
#define DESCRIPTORS 256
#define MAX_LOOKS 4
#define MAX_SEARCHED 16 /* processes, for the heir of one */

const volatile __u32 listeners_max_entries = 8192;
GADGET_PARAM(listeners_max_entries);

/* Of a TCP socket that listens: its opener, and who has accepted last. */
struct listening {
	__u64 number;
	struct holder opener;
	struct holder server; /* all zero: nobody has yet */
	__u64 is_older; /* the opener was found when the gadget started */
	__u64 unserved; /* when nobody was found to serve it, ns since the boot */
};

/*
 * By the number of the socket (its inode's), which no other socket gets: what is
 * left of one that is gone is harmless. All sockets behind one of MPTCP have the
 * number of that one, see mptcp_subflow_create_socket().
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct listening);
} listeners SEC(".maps");

/* By the process that has exited, or a child of which has left some. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2048);
	__type(key, struct process);
	__type(value, struct heirs);
} heirs SEC(".maps");

/* 0: it is no process's, or no more. */
static __always_inline __u64 socket_number(struct sock *sk)
{
	struct socket *socket = READ(sk, sk_socket);
	struct socket_alloc *alloc =
		(void *)socket -
		bpf_core_field_offset(struct socket_alloc, socket);

	return socket ? READ(alloc, vfs_inode.i_ino) : 0;
}

static __always_inline void set_holder(struct holder *holder,
				       struct task_struct *task)
{
	set_process_id(&holder->process, task);
	holder->task = (__u64)task;
	holder->tid = READ(task, pid);
	holder->family = find_family(task);
	holder->descriptor = 0;
}

/* The current process has a new listener. */
static __always_inline void book_listener(struct sock *sk)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct listening listener = { .number = socket_number(sk) };

	if (!listener.number || is_kernel_thread(task))
		return;
	set_holder(&listener.opener, task);
	bpf_map_update_elem(&listeners, &listener.number, &listener, BPF_ANY);
}

/* The current process accepts on a listener. */
static __always_inline void book_server(struct sock *sk)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 number = socket_number(sk);
	struct listening *known, listener = {};

	known = bpf_map_lookup_elem(&listeners, &number);
	if (known && known->server.task == (__u64)task &&
	    known->server.tid == READ(task, pid))
		return;
	if (!number || is_kernel_thread(task))
		return;
	if (known && known->number == number)
		listener = *known;
	listener.number = number;
	listener.unserved = 0;
	set_holder(&listener.server, task);
	if (!listener.opener.process.pid)
		listener.opener = listener.server;
	bpf_map_update_elem(&listeners, &number, &listener, BPF_ANY);
}

/*
 * A task was found to hold a listener. Of several processes the first counts, but
 * for process 1: that holds what it has opened for others.
 */
static __always_inline void book_older_listener(__u64 number,
						struct task_struct *task,
						__u32 descriptor)
{
	struct listening *known = bpf_map_lookup_elem(&listeners, &number);
	struct listening listener = { .number = number, .is_older = true };

	if (known && !(known->is_older && !known->server.process.pid &&
		       known->opener.process.pid == INIT_PID))
		return;
	set_holder(&listener.opener, task);
	listener.opener.descriptor = descriptor;
	bpf_map_update_elem(&listeners, &number, &listener,
			    known ? BPF_EXIST : BPF_NOEXIST);
}

static __always_inline struct heirs *heirs_of(const struct process *process)
{
	static const struct heirs none = {};

	bpf_map_update_elem(&heirs, process, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&heirs, process);
}

static __always_inline void add_heir(struct heirs *heirs,
				     struct task_struct *task)
{
	__u64 count = heirs->count, pid = BPF_CORE_READ(task, tgid);
	struct process *free;

	if (count >= MAX_HEIRS)
		return;
	free = &heirs->of[count];
	barrier_var(free); /* Linux 5.10 forgets a bound that is on the stack */
	for (int i = 0; i < MAX_HEIRS; i++)
		if (i < count && heirs->of[i].pid == pid)
			return;
	set_process_id(free, task);
	heirs->count = count + 1;
}

static __always_inline struct list_head *children_of(struct task_struct *task)
{
	return (void *)task +
	       bpf_core_field_offset(struct task_struct, children);
}

static __always_inline bool has_children(struct task_struct *task)
{
	struct list_head *head = children_of(task);

	return READ(head, next) != head;
}

/* The children of a thread. */
static __always_inline void add_children(struct heirs *heirs,
					 struct task_struct *parent)
{
	struct list_head *head = children_of(parent), *node;

	node = BPF_CORE_READ(head, next);
	for (int i = 0; i < MAX_HEIRS && node && node != head; i++) {
		add_heir(heirs,
			 (void *)node - bpf_core_field_offset(
						struct task_struct, sibling));
		node = BPF_CORE_READ(node, next);
	}
}

/*
 * A thread has ended, see do_exit(): another one of its process gets its children,
 * or, when all end at once, a stranger does. A process that leaves others behind is
 * remembered by its parent as well, which may end after it.
 */
static __always_inline void leave_heirs(struct task_struct *task)
{
	struct task_struct *self = typed(task), *parent;
	struct task_struct *leader = FIELD(self, group_leader);
	bool lives = FIELD(self, signal, live.counter);
	bool leaves = has_children(task);
	struct process ended, above;
	struct heirs *mine, *parents;

	if (lives && !leaves) /* most threads */
		return;
	set_process_id(&ended, task);
	if (leaves) {
		mine = heirs_of(&ended);
		if (mine)
			add_children(mine, task);
	}
	if (lives || !bpf_map_lookup_elem(&heirs, &ended))
		return;
	parent = BPF_CORE_READ(leader, real_parent);
	set_process_id(&above, parent);
	if (above.pid == INIT_PID)
		return;
	parents = heirs_of(&above);
	if (parents)
		add_heir(parents, leader);
}

/* Whether an open file is the socket of that number. */
static __always_inline bool is_socket(struct file *file, __u64 number)
{
	struct inode *inode = READ(file, f_inode);

	return inode && FIELD(inode, i_ino) == number &&
	       FIELD(inode, i_sb, s_magic) == SOCKFS_MAGIC;
}

/* The same of an address, or 0. Not static: verified once, and not for each file. */
__noinline int is_socket_of_file(__u64 address, __u64 number)
{
	return address && is_socket((void *)address, number);
}

static __always_inline bool is_socket_at(struct fdtable *table,
					 __u32 descriptor, __u64 number)
{
	struct fdtable *self = typed(table);
	struct file **files = FIELD(self, fd);
	struct file *file = NULL;

	if (descriptor >= FIELD(self, max_fds))
		return false;
	bpf_probe_read_kernel(&file, sizeof(file), &files[descriptor]);
	return is_socket_of_file((__u64)file, number);
}

#define NOT_HELD (-1) /* by any descriptor */
#define MAYBE_HELD (-2) /* by one that was not looked at */

/*
 * A descriptor of a socket, of the table at an address, from one on. Not static:
 * verified once. Linux 5.10 lets such functions have numbers alone.
 */
__noinline int find_descriptor(__u64 address, __u64 number, __u32 from)
{
	struct fdtable *table = typed((struct fdtable *)address);
	struct file **files = FIELD(table, fd);
	__u32 count = FIELD(table, max_fds);
	struct file *file;

	for (int i = 0; i < DESCRIPTORS; i++) {
		if (from + i >= count)
			return NOT_HELD;
		file = NULL;
		bpf_probe_read_kernel(&file, sizeof(file), &files[from + i]);
		if (file && is_socket_of_file((__u64)file, number))
			return from + i;
	}
	return from + DESCRIPTORS >= count ? NOT_HELD : MAYBE_HELD;
}

static __always_inline int descriptor_of(struct task_struct *task,
					 __u32 expected, __u64 number,
					 int looks)
{
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	int found = MAYBE_HELD;

	if (!table)
		return MAYBE_HELD;
	if (is_socket_at(table, expected, number))
		return expected;
	for (int i = 0; i < looks && found == MAYBE_HELD; i++)
		found = find_descriptor((__u64)table, number, i * DESCRIPTORS);
	return found;
}

/*
 * The thread that has dealt with a socket, if it is there; else the first one of
 * its process. NULL: the process does not live.
 */
static __always_inline struct task_struct *task_of(const struct holder *holder)
{
	struct task_struct *leader = leader_of(&holder->process);
	struct task_struct *task = (void *)holder->task;
	struct task_struct *self = typed(task);

	if (leader && task && FIELD(self, pid) == holder->tid &&
	    FIELD(self, tgid) == holder->process.pid &&
	    !FIELD(self, exit_state))
		return task;
	return leader;
}

static __always_inline void set_server(struct workspace *space,
				       struct task_struct *task, __u32 family)
{
	struct found *found = &space->report.found;

	read_process(&found->proc, found->thread, task);
	found->task = (__u64)task;
	found->started = started_at(task);
	found->family = family;
	found->followed = is_followed(task);
	found->known = true;
}

/* Whether a process that has dealt with the socket holds it still: it serves. */
static __always_inline bool serves(struct workspace *space,
				   struct holder *holder)
{
	struct task_struct *task = task_of(holder);
	int descriptor;

	if (!task)
		return false;
	descriptor = descriptor_of(task, holder->descriptor,
				   space->search.number, MAX_LOOKS);
	if (descriptor < 0)
		return false;
	holder->descriptor = descriptor;
	set_server(space, task, holder->family);
	return true;
}

static __always_inline void search_later(struct search *search,
					 const struct process *process)
{
	__u32 count = search->count;

	if (count >= MAX_LEFT)
		return;
	search->left[count] = *process;
	search->count = count + 1;
}

/* A step through those whom a process has started. True: it is over. */
__noinline int search_heir(__u32 runs_in)
{
	struct workspace *space = get_workspace(runs_in);
	struct heirs *known, *children;
	struct task_struct *task;
	struct search *search;
	struct process *next;
	__u32 count;

	if (!space)
		return true;
	search = &space->search;
	children = &search->children;
	children->count = 0;
	count = search->count - 1;
	if (count >= MAX_LEFT)
		return true;
	next = &search->next;
	*next = search->left[count];
	search->count = count;

	task = leader_of(next);
	if (task && descriptor_of(task, 0, search->number, 1) >= 0) {
		set_server(space, task, 0);
		return true;
	}
	if (task) {
		add_children(children, task);
	} else {
		known = bpf_map_lookup_elem(&heirs, next);
		if (known)
			*children = *known;
	}
	for (int i = MAX_HEIRS - 1; i >= 0; i--)
		if (i < children->count)
			search_later(search, &children->of[i]);
	return false;
}

/*
 * Fills in who serves the socket of a search. Not static: verified once.
 */
__noinline int find_server(__u32 runs_in)
{
	struct workspace *space = get_workspace(runs_in);
	struct search *search;

	if (!space)
		return 0;
	search = &space->search;
	if (!search->number || serves(space, &search->server) ||
	    serves(space, &search->opener))
		return 0;
	search->count = 0;
	search_later(search, &search->opener.process);
	if (search->server.process.pid &&
	    !is_same_process(&search->server.process, &search->opener.process))
		search_later(search, &search->server.process);
	for (int i = 0; i < MAX_SEARCHED; i++)
		if (search_heir(runs_in))
			break;
	return 0;
}

/*
 * Copies what is known of a listener. A map that forgets what is oldest puts
 * another entry in its place at once, also under somebody's eyes.
 */
static __always_inline bool read_listener(struct search *search, __u64 number)
{
	struct listening *l = bpf_map_lookup_elem(&listeners, &number);

	if (!number || !l)
		return false;
	search->number = number;
	search->opener = l->opener;
	search->server = l->server;
	return bpf_map_lookup_elem(&listeners, &number) == l &&
	       l->number == number;
}

/* How long a search is not repeated that has found nobody: it is long. */
#define SEARCH_AGAIN_NS (NSEC_PER_SEC / 100)

/* Who serves a TCP socket that listens. */
static __always_inline void find_listener(struct workspace *space, __u64 number,
					  __u32 runs_in)
{
	struct listening *l = bpf_map_lookup_elem(&listeners, &number);
	__u64 now = bpf_ktime_get_boot_ns();

	if (!l || (l->unserved && now < l->unserved + SEARCH_AGAIN_NS))
		return;
	/* It may just have got another server. */
	if (!read_listener(&space->search, number) &&
	    !read_listener(&space->search, number))
		return;
	find_server(runs_in);
	l = bpf_map_lookup_elem(&listeners, &number);
	if (!l)
		return;
	l->unserved = space->report.found.known ? 0 : now;
	l->opener.descriptor = space->search.opener.descriptor;
	l->server.descriptor = space->search.server.descriptor;
}

#endif
