/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_REPORT_H
#define NETWORK_REPORT_H

/*
 * What is known of an attempt, from the packet to the event.
 */

#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/types.h>

#include "../program.h"
#include "host.h"
#include "packet.h"
#include "params.h"
#include "process.h"
#include "socket.h"

/* Whose socket a packet is of. */
struct found {
	struct gadget_process proc; /* all zero: nobody is known */
	char thread[THREAD_LEN]; /* name of the thread */
	__u64 sk; /* of a socket in the books, as in struct owner */
	__u64 since;
	__u64 started; /* the process, ns since the boot */
	__u64 called; /* as in struct owner */
	__u64 task; /* who serves the socket now: a struct task_struct, or 0 */
	__u32 family; /* as in struct owner */
	bool known;
	bool has_ends; /* those of report->socket */
	bool is_reported; /* the attempt was, before it reached a device */
	bool followed; /* as in struct owner */
};

/* What ended an attempt: see causes in event.h. */
enum cause : __u8 {
	CAUSE_NONE, /* not known, or it has not failed */
	CAUSE_RST,
	CAUSE_ICMP,
	CAUSE_SILENCE,
	CAUSE_NO_ROUTE,
	CAUSE_NO_PORT,
	CAUSE_DENIED,
	CAUSE_GAVE_UP,
	CAUSE_LOCAL_DROP,
	CAUSES,
};

/* The cause in detail: see reasons in event.h. That of ICMP is its code. */
enum reason : __u8 {
	REASON_NONE,
	REASON_OUTPUT,
	REASON_CONNECT,
	REASON_SECURITY,
	REASON_NO_ROUTE,
	REASON_UNREACHABLE_ROUTE,
	REASON_PROHIBIT_ROUTE,
	REASON_BLACKHOLE_ROUTE,
	REASON_ACCEPT_QUEUE,
	REASONS,
};

/* A packet that has refused an attempt, and when, ns since the boot. */
struct refusal {
	__u64 time;
	union gadget_ip_addr_t by;
	enum cause cause; /* CAUSE_NONE: there was none */
	__u8 icmp_type;
	__u8 icmp_code;
};

/* What became of an attempt; times in ns. */
struct outcome {
	__u64 latency;
	__u64 duration;
	__u64 tx; /* bytes */
	__u64 rx;
	union gadget_ip_addr_t by;
	__u32 error; /* errno */
	__u32 drop; /* enum skb_drop_reason of this kernel */
	__u8 event; /* enum network_event */
	enum cause cause;
	enum reason reason;
	__u8 icmp_type;
	__u8 icmp_code;
};

/* All that is known of one attempt. */
struct report {
	__u64 time; /* when it was seen, ns since the boot */
	__u64 now; /* the same, but of what is reported late */
	struct attempt attempt;
	struct tuple ends; /* on the wire */
	struct tuple socket; /* as the socket of this side has them */
	struct found found;
	struct outcome outcome;
	struct refusal refusal; /* of what waits */
	__u32 drop; /* likewise, as in struct outcome */
	__u32 device; /* ifindex of the interface that saw it */
	__u32 retries;
	__u32 runs_in; /* enum runs_in: where it is made */
	__u8 hops; /* that a packet which waits has left: TTL or hop limit */
	bool translated; /* the socket has other ends than the wire */
	bool forwarded; /* on its way through this namespace */
	bool is_taken; /* by a listener */
	bool is_refused; /* by it: its queue is full; or by its own connect() */
	bool is_told; /* it was reported, or is with what became of it */
};

/* A process that has dealt with a socket, and the thread that last did. */
struct holder {
	struct process process;
	__u64 task; /* the thread's struct task_struct */
	__u32 tid;
	__u32 family; /* of a young process, else 0: see find_family() */
	__u64 descriptor; /* where it was found last: a hint */
};

#define MAX_HEIRS 4 /* processes that are remembered of one that left more */
#define MAX_LEFT 8 /* processes that are still to be looked at */

/* Processes that another one has started, or left: the first of them. */
struct heirs {
	struct process of[MAX_HEIRS];
	__u64 count;
};

/* For who serves a socket: see find_server(). */
struct search {
	__u64 number; /* the socket's, see socket_number() */
	struct holder opener;
	struct holder server;
	struct process next;
	struct process left[MAX_LEFT];
	__u64 count;
	struct heirs children;
};

/* What waits for the kernel's answer, see arrivals.h: a key of maps. */
struct arrival {
	struct tuple ends; /* as they came */
	__u64 number; /* a SYN's sequence number, a datagram's first bytes */
	__u64 pad; /* a tuple is a multiple of 16 bytes */
};

/*
 * An attempt whose end is awaited, see lives.h: the socket's ends, and whether it
 * has called. One that meets its own call, or one from the other side at the same
 * time, has two lives. A key of maps.
 */
struct life_key {
	struct tuple ends;
	__u64 egress;
	__u64 pad; /* a tuple is a multiple of 16 bytes */
};

/*
 * Of what is counted when it begins and when it ends. None ends before it has begun:
 * what is read first cannot be ahead.
 */
static __always_inline bool is_any_left(const volatile __u64 *begun,
					const volatile __u64 *ended)
{
	__u64 over = *ended;

	return *begun != over;
}

/* The packet as the socket of this side would see it. */
static __always_inline void set_ends(struct tuple *ends, __u32 netns,
				     const struct attempt *a)
{
	ends->local = a->egress ? a->saddr : a->daddr;
	ends->remote = a->egress ? a->daddr : a->saddr;
	ends->netns = netns;
	ends->local_port = a->egress ? a->sport : a->dport;
	ends->remote_port = a->egress ? a->dport : a->sport;
	ends->version = a->version;
	ends->proto = a->proto;
}

/* Of a packet's attempt, in what has nothing else. */
static __always_inline void begin_report(struct report *report,
					 const struct __sk_buff *skb)
{
	report->time = report->now = bpf_ktime_get_boot_ns();
	report->device = skb->ifindex;
	set_ends(&report->ends, netns_of(skb), &report->attempt);
	report->socket = report->ends;
}

/* By the port on the wire, or that which a program has asked for. */
static __always_inline bool wants_called_port(const struct report *report)
{
	return wants_port(report->attempt.dport) ||
	       (report->translated && wants_port(report->socket.remote_port));
}

/*
 * Nobody is no process that anyone asked for: its zeros would match "--uid 0". Where
 * containers were, what is in the namespace of one of them is its own.
 */
static __always_inline bool wants_found(struct report *report)
{
	struct found *found = &report->found;

	if (!found->known)
		return !filters_by_process() &&
		       (!gadget_filter_by_mntns ||
			is_of_container(report->ends.netns));
	return wants_process(&found->proc) && (!follow || found->followed);
}

/* Whose attempts the rate limit counts together: a key, no byte is unset. */
struct limit_key {
	__u32 netns;
	__u32 pid; /* 0: of nobody who is known */
	__u32 egress;
	__u32 family; /* of young processes: pid is their ancestor's */
};

/* An event and whose it is. */
struct delivery {
	struct limit_key owner;
	struct event event;
};

/* The same without paths, as it waits to be sent. */
struct waiting_event {
	struct limit_key owner;
	__u8 event[EVENT_LEN];
};

_Static_assert(__builtin_offsetof(struct delivery, event) ==
		       __builtin_offsetof(struct waiting_event, event),
	       "a delivery does not begin as what waits of it");

/*
 * Too large for the stack, and what is in a map the verifier does not follow.
 * It is this CPU's: a packet's filter runs with softirqs off, see
 * dev_queue_xmit(), and what it interrupts has one of its own: a hook, none of
 * which runs in another one, see trace_call_bpf(). Raw tracepoints do.
 */
struct workspace {
	struct report report;
	struct search search;
	struct arrival arrival; /* that is looked for */
	struct life_key life; /* likewise */
	struct delivery delivery;
};

enum runs_in {
	IN_PACKET,
	IN_HOOK,
	IN_TRACEPOINT, /* a raw one */
	IN_NESTED, /* that has interrupted one */
	CONTEXTS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CONTEXTS);
	__type(key, __u32);
	__type(value, struct workspace);
} workspaces SEC(".maps");

static __always_inline struct workspace *get_workspace(enum runs_in runs_in)
{
	__u32 index = runs_in;

	return bpf_map_lookup_elem(&workspaces, &index);
}

#endif
