/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_TRACEPOINT_H
#define NETWORK_TRACEPOINT_H

/*
 * Raw tracepoints. Until Linux 7.0 the kernel calls their programs with preemption
 * off. Since then another task can come in the middle of one, and of its
 * tracepoints that program is skipped meanwhile: prog->active, __bpf_trace_run().
 * So a program holds its CPU itself. Between the kernel's mark and that are some
 * nanoseconds, and so they are after it.
 *
 * From 6.10 to 6.14 the verifier forbids calls of functions that are not static
 * where preemption is off, and nothing is to be held there.
 */

#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

#include "version.h"

extern void bpf_preempt_disable(void) __weak __ksym;
extern void bpf_preempt_enable(void) __weak __ksym;

static __always_inline void hold_cpu(void)
{
	if (is_preemptible())
		bpf_preempt_disable();
}

static __always_inline void release_cpu(void)
{
	if (is_preemptible())
		bpf_preempt_enable();
}

#endif
