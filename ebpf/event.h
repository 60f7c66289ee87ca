/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_EVENT_H
#define NETWORK_EVENT_H

/*
 * Builds an event and sends it. A step owns its fields.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/macros.h>
#include <gadget/types.h>

#include "../program.h"
#include "packet.h"
#include "paths.h"
#include "report.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} events SEC(".maps");

GADGET_TRACER(network, events, event);

/* What is sent of an event without paths, in bytes. */
#define EVENT_LEN __builtin_offsetof(struct event, cwd)

/* What became of the attempts that were to be reported, by CPU. */
struct counters {
	__u64 reported; /* events */
	__u64 lost; /* events that the ring had no room for */
	__u64 withheld; /* attempts that the rate limit has held back */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

static __always_inline struct counters *get_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counters, &zero);
}

static __always_inline void set_meta(struct event *event,
				     const struct report *report)
{
	event->timestamp_raw = report->time;
	event->netns_id = report->ends.netns;
	event->egress = report->attempt.egress;
	event->protocol_raw = report->attempt.proto;
	event->retries = report->retries;
	event->suppressed = report->suppressed;
}

static __always_inline void set_l4endpoint(struct gadget_l4endpoint_t *endpoint,
					   const union gadget_ip_addr_t *addr,
					   __u16 port, const struct attempt *a)
{
	endpoint->addr_raw = *addr;
	endpoint->port = port;
	endpoint->proto_raw = a->proto;
	endpoint->version = a->version;
}

static __always_inline void set_endpoints(struct event *event,
					  const struct attempt *a)
{
	set_l4endpoint(&event->src, &a->saddr, a->sport, a);
	set_l4endpoint(&event->dst, &a->daddr, a->dport, a);
	set_l4endpoint(&event->endpoint, a->egress ? &a->daddr : &a->saddr,
		       a->dport, a);
}

/* IG keeps a path only where it was told to, and as long as it was told to. */
#define copy_ig_path(to, socket, path)                                      \
	do {                                                                \
		__u32 len = PATH_LEN;                                       \
		if (bpf_core_field_size((socket)->path) < len)              \
			len = bpf_core_field_size((socket)->path);          \
		if (bpf_core_field_exists((socket)->path))                  \
			bpf_probe_read_kernel_str(to, len, (socket)->path); \
	} while (0)

static __always_inline void set_paths(struct event *event,
				      const struct found *found)
{
	struct gadget_socket_value *older;
	struct socket_paths *booked;
	__u64 sk = found->sk;

	__builtin_memset(event->cwd, 0, PATH_LEN);
	__builtin_memset(event->exepath, 0, PATH_LEN);
	if (found->is_older) {
		older = bpf_map_lookup_elem(&gadget_sockets, &found->older);
		if (!older)
			return;
		copy_ig_path(event->cwd, older, cwd);
		copy_ig_path(event->exepath, older, exepath);
		return;
	}
	booked = bpf_map_lookup_elem(&socket_paths, &sk);
	if (!booked || booked->since != found->since)
		return;
	__builtin_memcpy(event->cwd, booked->cwd, PATH_LEN);
	__builtin_memcpy(event->exepath, booked->exepath, PATH_LEN);
}

/* False: the event is lost. */
static __always_inline bool send_event(void *ctx, struct event *event)
{
	struct counters *counters = get_counters();
	long err;

	err = bpf_perf_event_output(ctx, &events, BPF_F_CURRENT_CPU, event,
				    paths ? sizeof(*event) : EVENT_LEN);
	if (counters)
		__sync_fetch_and_add(
			err ? &counters->lost : &counters->reported, 1);
	return !err;
}

static __always_inline bool send_report(void *ctx, struct workspace *space)
{
	struct report *report = &space->report;
	struct event *event = &space->event;

	/* All zero, but for paths: no field is left of another event. */
	__builtin_memset(event, 0, EVENT_LEN);
	set_meta(event, report);
	set_endpoints(event, &report->attempt);
	event->proc = report->found.proc;
	if (paths)
		set_paths(event, &report->found);
	return send_event(ctx, event);
}

#endif
