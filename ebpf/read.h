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
#define cast_to(type, address)                    \
	((const void *)bpf_rdonly_cast((address), \
				       bpf_core_type_id_kernel(type)))

#define load_field(from, field) \
	(((typeof(from))cast_to(typeof(*(from)), (from)))->field)
#define load_fields1(from, a) load_field(from, a)
#define load_fields2(from, a, b) load_field(load_fields1(from, a), b)
#define load_fields3(from, a, b, c) load_field(load_fields2(from, a, b), c)
#define pick_fourth(a, b, c, fourth, ...) fourth
#define load_fields(from, ...)                                             \
	pick_fourth(__VA_ARGS__, load_fields3, load_fields2, load_fields1, \
		    0)(from, __VA_ARGS__)

/*
 * A number or a pointer, behind up to two pointers: READ(skb, dev, ifindex). A pointer
 * is one for the verifier as well. Where a number is wanted (the difference of two, an
 * argument of a function that is not static), and for what is rare, there is
 * BPF_CORE_READ().
 */
#define READ(from, ...)                                \
	(can_cast() ? load_fields(from, __VA_ARGS__) : \
		      BPF_CORE_READ(from, __VA_ARGS__))

#endif
