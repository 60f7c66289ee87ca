/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_VERSION_H
#define NETWORK_VERSION_H

/*
 * What the running kernel can do beyond Linux 5.10. The verifier knows its version
 * as a constant, and does not look at what is for another one.
 */

#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

extern int LINUX_KERNEL_VERSION __kconfig;

/* For tests: as if none were newer than the oldest. */
const volatile bool is_oldest = false;

#define LINUX(major, minor) (((major) << 16) + ((minor) << 8))

/* bpf_cast_to_kern_ctx() and bpf_rdonly_cast() */
static __always_inline bool can_cast(void)
{
	return !is_oldest && LINUX_KERNEL_VERSION >= LINUX(6, 2);
}

/* A task can preempt another one in a raw tracepoint. */
static __always_inline bool is_preemptible(void)
{
	return LINUX_KERNEL_VERSION >= LINUX(7, 0);
}

#endif
