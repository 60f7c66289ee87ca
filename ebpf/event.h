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
#include "owner.h"
#include "packet.h"
#include "paths.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} events SEC(".maps");

GADGET_TRACER(network, events, event);

/* What is sent of an event without paths, in bytes. */
#define EVENT_LEN __builtin_offsetof(struct event, cwd)

/* All that is known of one attempt. */
struct report {
	struct attempt attempt;
	struct found found;
	struct event event;
};

/*
 * Too large for the stack, and what is in a map the verifier does not follow.
 * It is this CPU's, and a packet's filter runs with softirqs off: see
 * dev_queue_xmit().
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct report);
} reports SEC(".maps");

/* All zero, but for paths: there is no field of another report. */
static __always_inline struct report *new_report(const struct attempt *a)
{
	struct report *report;
	__u32 zero = 0;

	report = bpf_map_lookup_elem(&reports, &zero);
	if (!report)
		return NULL;
	report->attempt = *a;
	__builtin_memset(&report->found, 0, sizeof(report->found));
	__builtin_memset(&report->event, 0, EVENT_LEN);
	return report;
}

static __always_inline void set_meta(struct event *event, __u32 netns,
				     const struct attempt *a)
{
	event->timestamp_raw = bpf_ktime_get_boot_ns();
	event->netns_id = netns;
	event->egress = a->egress;
	event->protocol_raw = a->proto;
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

static __always_inline void send_event(void *ctx, struct event *event)
{
	bpf_perf_event_output(ctx, &events, BPF_F_CURRENT_CPU, event,
			      paths ? sizeof(*event) : EVENT_LEN);
}

static __always_inline void send_report(struct __sk_buff *skb,
					struct report *report)
{
	struct event *event = &report->event;

	set_meta(event, netns_of(skb), &report->attempt);
	set_endpoints(event, &report->attempt);
	event->proc = report->found.proc;
	if (paths)
		set_paths(event, &report->found);
	send_event(skb, event);
}

#endif
