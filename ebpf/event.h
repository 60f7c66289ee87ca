/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_EVENT_H
#define NETWORK_EVENT_H

/*
 * Builds an event. A step owns its fields.
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
#include "ring.h"

GADGET_TRACER(network, events, event);

static __always_inline void set_meta(struct event *event,
				     const struct report *report)
{
	event->timestamp_raw = report->time;
	event->netns_id = report->ends.netns;
	event->egress = report->attempt.egress;
	event->protocol_raw = report->attempt.proto;
	event->retries = report->retries;
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

static __always_inline void set_process(struct event *event,
					const struct report *report)
{
	static const union gadget_ip_addr_t none = {};
	const struct tuple *t = &report->socket;
	const struct attempt *a = &report->attempt;

	event->proc = report->found.proc;
	__builtin_memcpy(event->thread, report->found.thread, THREAD_LEN);
	if (report->found.has_ends) {
		set_l4endpoint(&event->local, &t->local, t->local_port, a);
		set_l4endpoint(&event->remote, &t->remote, t->remote_port, a);
		return;
	}
	/* IG drops an event with an address of no IP version. */
	set_l4endpoint(&event->local, &none, 0, a);
	set_l4endpoint(&event->remote, &none, 0, a);
}

static __always_inline void set_endpoints(struct event *event,
					  const struct attempt *a)
{
	set_l4endpoint(&event->src, &a->saddr, a->sport, a);
	set_l4endpoint(&event->dst, &a->daddr, a->dport, a);
	set_l4endpoint(&event->endpoint, a->egress ? &a->daddr : &a->saddr,
		       a->dport, a);
}

/* Those of who serves the socket now, or of who has opened it. */
static __always_inline void set_paths(struct event *event,
				      const struct report *report)
{
	const struct found *found = &report->found;
	struct socket_paths *booked;
	__u64 sk = found->sk;

	__builtin_memset(event->cwd, 0, PATH_LEN);
	__builtin_memset(event->exepath, 0, PATH_LEN);
	if (found->task) {
		read_paths((void *)found->task, report->runs_in, event->cwd,
			   event->exepath);
		return;
	}
	booked = bpf_map_lookup_elem(&socket_paths, &sk);
	if (!booked || booked->since != found->since)
		return;
	__builtin_memcpy(event->cwd, booked->cwd, PATH_LEN);
	__builtin_memcpy(event->exepath, booked->exepath, PATH_LEN);
}

/*
 * All zero, but for paths: no field is left of another event. What has waited has no
 * paths: they are long.
 */
static __always_inline void build_event(struct event *event,
					const struct report *report,
					bool has_waited)
{
	__builtin_memset(event, 0, EVENT_LEN);
	set_meta(event, report);
	set_endpoints(event, &report->attempt);
	set_process(event, report);
	if (paths && has_waited) {
		__builtin_memset(event->cwd, 0, PATH_LEN);
		__builtin_memset(event->exepath, 0, PATH_LEN);
	} else if (paths) {
		set_paths(event, report);
	}
}

#endif
