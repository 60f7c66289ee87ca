/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_READ_H
#define NETWORK_READ_H

/*
 * Reads the kernel's memory. Since Linux 6.2 a program may take an address for what it
 * says that is there, and load it as the kernel's own code does: a fault reads 0.
 * Before, each value is a call, which takes ten times as long.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "version.h"

extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __weak __ksym;

/* The type is the kernel's, which has what is read. */
#define cast(from)                      \
	((typeof(from))bpf_rdonly_cast( \
		(from), bpf_core_type_id_kernel(typeof(*(from)))))

#define walk1(from, a) ((from)->a)
#define walk2(from, a, b) ((from)->a->b)
#define walk3(from, a, b, c) ((from)->a->b->c)
#define pick_fourth(a, b, c, fourth, ...) fourth
#define walk(from, ...) \
	pick_fourth(__VA_ARGS__, walk3, walk2, walk1, 0)(from, __VA_ARGS__)

/*
 * A number or a pointer, behind up to two pointers: READ(skb, dev, ifindex). A pointer
 * is one for the verifier as well, of the type that the kernel's own code follows it as.
 * Where a number is wanted (the difference of two, an argument of a function that is not
 * static), and for what is rare, there is BPF_CORE_READ().
 */
#define READ(from, ...)                               \
	(can_cast() ? walk(cast(from), __VA_ARGS__) : \
		      BPF_CORE_READ(from, __VA_ARGS__))

/*
 * Where more than one value is read of the same: FIELD() reads what typed() has given,
 * or READ(), or FIELD(). Each cast is a call, and costs whoever loads the program on
 * a kernel without it: cilium/ebpf looks for it among all types of all modules, each
 * time anew.
 */
#define typed(from) (can_cast() ? cast(from) : (from))
#define FIELD(from, ...)                        \
	(can_cast() ? walk(from, __VA_ARGS__) : \
		      BPF_CORE_READ(from, __VA_ARGS__))

#endif
