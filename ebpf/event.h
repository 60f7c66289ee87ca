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
#include "params.h"
#include "paths.h"
#include "report.h"
#include "ring.h"

#ifndef COUNTS_CONNECTIONS
GADGET_TRACER(network, events, event);
#endif

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

/* As users see them. */
static const char causes[CAUSES][CAUSE_LEN] = {
	[CAUSE_RST] = "rst",	     [CAUSE_ICMP] = "icmp",
	[CAUSE_SILENCE] = "silence", [CAUSE_NO_ROUTE] = "no-route",
	[CAUSE_NO_PORT] = "no-port", [CAUSE_DENIED] = "denied",
	[CAUSE_GAVE_UP] = "gave-up", [CAUSE_LOCAL_DROP] = "local-drop",
};

static const char reasons[REASONS][REASON_LEN] = {
	[REASON_OUTPUT] = "output-hook",
	[REASON_CONNECT] = "connect-hook",
	[REASON_SECURITY] = "security-module",
	[REASON_NO_ROUTE] = "none-matches",
	[REASON_UNREACHABLE_ROUTE] = "unreachable",
	[REASON_PROHIBIT_ROUTE] = "prohibit",
	[REASON_BLACKHOLE_ROUTE] = "blackhole",
	[REASON_ACCEPT_QUEUE] = "accept-queue-full",
};

/* Codes of ICMP's "destination unreachable": RFC 792, 1122, 1812. */
#define ICMP_CODES 16

static const char icmp_codes[ICMP_CODES][REASON_LEN] = {
	"net-unreachable",	"host-unreachable", "protocol-unreachable",
	"port-unreachable",	"too-big",	    "source-route-failed",
	"net-unknown",		"host-unknown",	    "source-isolated",
	"net-prohibited",	"host-prohibited",  "net-unreachable-tos",
	"host-unreachable-tos", "admin-prohibited", "precedence-violation",
	"precedence-cutoff",
};

/* The same of ICMPv6: RFC 4443, section 3.1. */
#define ICMPV6_CODES 8

static const char icmpv6_codes[ICMPV6_CODES][REASON_LEN] = {
	"no-route",	    "admin-prohibited",
	"beyond-scope",	    "address-unreachable",
	"port-unreachable", "source-policy",
	"reject-route",	    "source-routing",
};

#define ICMP_TIME_EXCEEDED_TYPE 11
#define ICMPV6_TIME_EXCEEDED_TYPE 3

static __always_inline void set_icmp_reason(struct event *event,
					    const struct outcome *o,
					    __u8 version)
{
	static const char exceeded[REASON_LEN] = "ttl-exceeded";
	__u32 code = o->icmp_code;

	if (version == 4 && o->icmp_type == ICMP_UNREACHABLE) {
		if (code < ICMP_CODES)
			__builtin_memcpy(event->reason, icmp_codes[code],
					 REASON_LEN);
	} else if (version == 6 && o->icmp_type == ICMPV6_UNREACHABLE) {
		if (code < ICMPV6_CODES)
			__builtin_memcpy(event->reason, icmpv6_codes[code],
					 REASON_LEN);
	} else if (o->icmp_type == (version == 4 ? ICMP_TIME_EXCEEDED_TYPE :
						   ICMPV6_TIME_EXCEEDED_TYPE)) {
		__builtin_memcpy(event->reason, exceeded, REASON_LEN);
	}
}

/* How it ended: all zero of what has not. */
static __always_inline void set_outcome(struct event *event,
					const struct report *report)
{
	const struct outcome *o = &report->outcome;
	__u8 version = report->attempt.version;
	__u32 cause = o->cause, reason = o->reason;

	event->by.version = version;
	if (!wants_outcome() || !o->event)
		return;
	event->timestamp_raw = report->now;
	event->event_raw = o->event;
	event->error_raw = o->error;
	event->drop_raw = o->drop;
	event->icmp_type = o->icmp_type;
	event->icmp_code = o->icmp_code;
	event->by.addr_raw = o->by;
	event->latency_ns = o->latency;
	event->duration_ns = o->duration;
	event->tx_bytes = o->tx;
	event->rx_bytes = o->rx;
	if (cause < CAUSES)
		__builtin_memcpy(event->cause, causes[cause], CAUSE_LEN);
	if (cause == CAUSE_ICMP)
		set_icmp_reason(event, o, version);
	else if (reason < REASONS)
		__builtin_memcpy(event->reason, reasons[reason], REASON_LEN);
}

static __always_inline void set_endpoints(struct event *event,
					  const struct attempt *a)
{
	set_l4endpoint(&event->src, &a->saddr, a->sport, a);
	set_l4endpoint(&event->dst, &a->daddr, a->dport, a);
	set_l4endpoint(&event->endpoint, a->egress ? &a->daddr : &a->saddr,
		       a->dport, a);
}

/* Those of who serves the socket now, or of who has opened it, if they are known. */
static __always_inline void set_paths(struct event *event,
				      const struct report *report,
				      __u32 runs_in)
{
	const struct found *found = &report->found;
	struct socket_paths *booked;
	__u64 sk = found->sk;

	if (found->task) {
		read_paths((void *)found->task, runs_in, event->cwd,
			   event->exepath);
		return;
	}
	booked = bpf_map_lookup_elem(&socket_paths, &sk);
	if (!booked || booked->since != found->since)
		return;
	__builtin_memcpy(event->cwd, booked->cwd, PATH_LEN);
	__builtin_memcpy(event->exepath, booked->exepath, PATH_LEN);
}

/* Of a workspace's event. Not static: verified once, and not for each call in a loop. */
__noinline int clear_paths(__u32 runs_in)
{
	struct workspace *space = get_workspace(runs_in);

	if (!space)
		return false;
	__builtin_memset(space->delivery.event.cwd, 0, PATH_LEN);
	__builtin_memset(space->delivery.event.exepath, 0, PATH_LEN);
	return true;
}

/*
 * Makes the event of a workspace's report. All zero, but for paths: no field is left
 * of another event. What has waited has no paths: they are long. Not static: verified
 * once, and not for all that can come before.
 */
__noinline int build_event(__u32 runs_in, __u32 has_waited)
{
	struct workspace *space = get_workspace(runs_in);
	struct report *report;
	struct event *event;

	if (!space)
		return false;
	report = &space->report;
	event = &space->delivery.event;
	__builtin_memset(event, 0, EVENT_LEN);
	set_meta(event, report);
	set_endpoints(event, &report->attempt);
	set_process(event, report);
	set_outcome(event, report);
	if (paths)
		clear_paths(runs_in);
	if (paths && !has_waited)
		set_paths(event, report, runs_in);
	return true;
}

#endif
