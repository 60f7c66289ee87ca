/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_RING_H
#define NETWORK_RING_H

/*
 * The rings that carry events: one for each CPU that was online when the
 * gadget started, and still is. What a ring refuses is lost, so the kernel is
 * asked first how full it is.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "read.h"

/* What a record has besides its data, and is rounded up to; in bytes. */
#define RECORD_OVERHEAD 32 /* see perf_prepare_sample() */

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} events SEC(".maps");

enum ring {
	RING_HAS_ROOM,
	RING_IS_FULL,
	RING_IS_MISSING,
};

/*
 * Where the kernel has the map: a program holds it as a pointer that it cannot
 * follow, but can read from its stack as a number.
 */
static __always_inline struct bpf_array *events_array(void)
{
	void *volatile map = &events;
	struct bpf_array *array = NULL;

	bpf_probe_read_kernel(&array, sizeof(array), (void *)&map);
	return array;
}

/* This CPU's perf event, or NULL: see __bpf_perf_event_output(). */
static __always_inline struct perf_event *ring_event(void)
{
	int cpu = bpf_get_smp_processor_id();
	struct bpf_event_entry *entry = NULL;
	struct perf_event *event;

	bpf_probe_read_kernel(&entry, sizeof(entry),
			      (void *)events_array() +
				      bpf_core_field_offset(struct bpf_array,
							    ptrs) +
				      cpu * sizeof(void *));
	if (!entry)
		return NULL;
	event = READ(entry, event);
	/* A CPU that was offline meanwhile does not serve it any more. */
	return FIELD(event, oncpu) == cpu ? event : NULL;
}

/* Whether a record of so many bytes fits: see ring_buffer_has_space(). */
static __always_inline enum ring look_at_ring(__u64 bytes)
{
	struct perf_event *event = ring_event();
	struct perf_event_mmap_page *page;
	struct perf_buffer *rb;
	__u64 head = 0, used;

	if (!event)
		return RING_IS_MISSING;
	rb = FIELD(event, rb);
	if (!rb)
		return RING_IS_MISSING;
	page = FIELD(rb, user_page);
	bpf_core_read(&head, sizeof(head), &rb->head);
	used = head - FIELD(page, data_tail);
	if (used + bytes + RECORD_OVERHEAD >= FIELD(page, data_size))
		return RING_IS_FULL;
	return RING_HAS_ROOM;
}

#endif
