/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_PATHS_H
#define NETWORK_PATHS_H

/*
 * The executable and the working directory of a process: of one that serves, as
 * they are, and else as they were when it connected or opened its port. Off, unless
 * asked for.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/macros.h>
#include <gadget/types.h>

#include "../program.h"
#include "report.h"

#define NAME_MAX 255 /* include/uapi/linux/limits.h */
#define MAX_PATH_DEPTH 40 /* names and mounts of one path */

const volatile bool paths = false;
EVENT_PARAM(paths);

const volatile __u32 socket_paths_max_entries = 256;
EVENT_PARAM(socket_paths_max_entries);

struct socket_paths {
	__u64 since; /* of the socket's page */
	char cwd[PATH_LEN];
	char exepath[PATH_LEN];
};

/* By the address of struct sock. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 256);
	__type(key, __u64);
	__type(value, struct socket_paths);
} socket_paths SEC(".maps");

/* A walk up to the root: see prepend_path() in fs/d_path.c. */
struct walk {
	struct dentry *dentry;
	struct mount *mount;
	__u64 start; /* of what is written so far */
};

/*
 * A path is written from its end to the left. The space behind it is for the
 * verifier, which would also follow each step of a walk that is on the stack.
 */
struct path_buffer {
	char text[PATH_LEN + NAME_MAX + 1];
	struct walk walk;
	struct socket_paths paths;
};

/* This CPU's, as a workspace is. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CONTEXTS);
	__type(key, __u32);
	__type(value, struct path_buffer);
} path_buffer SEC(".maps");

static __always_inline struct path_buffer *get_path_buffer(__u32 runs_in)
{
	return bpf_map_lookup_elem(&path_buffer, &runs_in);
}

enum walked {
	WALKED_UP,
	WALKED_TO_ROOT,
	WALKED_NOWHERE, /* the path is too long, or not to be read */
};

static __always_inline enum walked prepend_name(struct path_buffer *buffer,
						struct dentry *dentry)
{
	const unsigned char *name = BPF_CORE_READ(dentry, d_name.name);
	__u32 len = BPF_CORE_READ(dentry, d_name.len);
	__u64 start = buffer->walk.start;

	if (len > NAME_MAX || len >= start)
		return WALKED_NOWHERE;
	start = (start - len - 1) & (PATH_LEN - 1);
	buffer->walk.start = start;
	buffer->text[start] = '/';
	if (bpf_probe_read_kernel(&buffer->text[start + 1], len & NAME_MAX,
				  name))
		return WALKED_NOWHERE;
	return WALKED_UP;
}

/* Not inline: Linux 5.10 takes a loop only if it goes back by a jump. */
static __noinline int walk_up(struct path_buffer *buffer)
{
	struct walk *w = &buffer->walk;
	/* BPF_CORE_READ() would look for struct walk in the kernel. */
	struct dentry *dentry = w->dentry, *parent;
	struct mount *mount = w->mount, *below;

	parent = BPF_CORE_READ(dentry, d_parent);
	below = BPF_CORE_READ(mount, mnt_parent);
	if (dentry == BPF_CORE_READ(mount, mnt.mnt_root)) {
		if (below == mount)
			return WALKED_TO_ROOT;
		w->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
		w->mount = below;
		return WALKED_UP;
	}
	if (prepend_name(buffer, dentry) != WALKED_UP)
		return WALKED_NOWHERE;
	if (dentry == parent) /* in no folder: see memfd_create() */
		return WALKED_TO_ROOT;
	w->dentry = parent;
	return WALKED_UP;
}

/* Writes into the buffer's text, from walk.start on; false: it is unknown. */
static __noinline bool write_path(struct path_buffer *buffer,
				  struct dentry *dentry, struct vfsmount *mnt)
{
	int walked = WALKED_UP;

	buffer->walk.dentry = dentry;
	buffer->walk.mount =
		(void *)mnt - bpf_core_field_offset(struct mount, mnt);
	buffer->walk.start = PATH_LEN - 1;
	buffer->text[PATH_LEN - 1] = 0;

	for (int i = 0; i < MAX_PATH_DEPTH; i++) {
		walked = walk_up(buffer);
		if (walked != WALKED_UP)
			break;
	}
	if (walked != WALKED_TO_ROOT)
		return false;
	if (buffer->walk.start == PATH_LEN - 1) {
		buffer->walk.start = PATH_LEN - 2;
		buffer->text[PATH_LEN - 2] = '/';
	}
	return true;
}

/* Reads PATH_LEN bytes; an empty path is one that is not known. */
static __always_inline void read_path(struct path_buffer *buffer,
				      struct path *path, char *to)
{
	__u64 start;

	__builtin_memset(to, 0, PATH_LEN);
	if (!write_path(buffer, BPF_CORE_READ(path, dentry),
			BPF_CORE_READ(path, mnt)))
		return;
	start = buffer->walk.start & (PATH_LEN - 1);
	bpf_probe_read_kernel_str(to, PATH_LEN, &buffer->text[start]);
}

static __always_inline void read_task_paths(struct path_buffer *buffer,
					    struct task_struct *task, char *cwd,
					    char *exepath)
{
	read_path(buffer, &BPF_CORE_READ(task, fs)->pwd, cwd);
	read_path(buffer, &BPF_CORE_READ(task, mm, exe_file)->f_path, exepath);
}

static __always_inline void read_paths(struct task_struct *task, __u32 runs_in,
				       char *cwd, char *exepath)
{
	struct path_buffer *buffer = get_path_buffer(runs_in);

	if (buffer)
		read_task_paths(buffer, task, cwd, exepath);
}

/* Remembers the paths of the current process for a socket of its. */
static __always_inline void book_paths(__u64 sk, __u64 since)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct path_buffer *buffer;

	if (!paths)
		return;
	buffer = get_path_buffer(IN_HOOK);
	if (!buffer)
		return;
	buffer->paths.since = since;
	read_task_paths(buffer, task, buffer->paths.cwd, buffer->paths.exepath);
	bpf_map_update_elem(&socket_paths, &sk, &buffer->paths, BPF_ANY);
}

static __always_inline void forget_paths(__u64 sk)
{
	if (paths)
		bpf_map_delete_elem(&socket_paths, &sk);
}

#endif
