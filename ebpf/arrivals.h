/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_ARRIVALS_H
#define NETWORK_ARRIVALS_H

/*
 * Pending arrivals. The socket filter sees a segment before the kernel has decided
 * what becomes of it (NAT, firewall, routes, groups of sockets, programs). So an
 * attempt that arrives waits for the kernel's answer: tcp_conn_request() with its
 * sequence number has the listener that got it. What goes out again was forwarded.
 * If neither comes, nobody took it.
 *
 * A datagram waits where it may be forwarded, and for that alone: the kernel has
 * no place where to ask that does not cost each of them.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "conntrack.h"
#include "deliver.h"
#include "holders.h"
#include "once.h"
#include "read.h"
#include "report.h"
#include "socket.h"
#include "talked.h"

/*
 * The answer comes in the same softirq, but where a program of user space decides
 * (NFQUEUE), or a neighbour must be found for what is forwarded.
 */
#define ANSWER_WITHIN_NS (NSEC_PER_SEC / 2)
/* So many may wait: others that came with it can be before it. */
#define MAX_PENDING 512
#define PENDING_ENTRIES (4 * MAX_PENDING)
#define SETTLED_BY_PACKET 2
#define SETTLED_BY_CLOCK 4

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PENDING_ENTRIES);
	__type(key, struct arrival);
	__type(value, struct report);
} arrivals SEC(".maps");

/* The same in their order; those that were settled are among them still. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, PENDING_ENTRIES);
	__type(value, struct arrival);
} pending SEC(".maps");

/* The last one of this CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct arrival);
} latest_arrival SEC(".maps");

struct arriving {
	__u64 begun; /* arrivals that were to wait */
	__u64 ended; /* of them, that do not, or no more */
	__u64 queued;
	__u64 unqueued;
	__u64 answered; /* by the kernel: a listener took it */
	__u64 unserved; /* of them, where nobody is known to serve it */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct arriving);
} arriving SEC(".maps");

/* Whether no answer is awaited any more; user space writes it when a run ends. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} ending SEC(".maps");

static __always_inline bool ends_now(void)
{
	__u32 zero = 0;
	__u64 *now = bpf_map_lookup_elem(&ending, &zero);

	return now && *now;
}

static __always_inline struct arriving *get_arriving(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&arriving, &zero);
}

static __always_inline bool awaits_answers(void)
{
	struct arriving *a = get_arriving();

	return a && is_any_left(&a->begun, &a->ended);
}

static __always_inline struct arrival *get_latest_arrival(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&latest_arrival, &zero);
}

static __always_inline __u64 number_of(const struct attempt *a)
{
	return a->proto == IPPROTO_TCP ? a->seq : a->start;
}

/* TTL or hop limit, of the header that the packet begins with. */
static __always_inline __u8 hops_of(struct __sk_buff *ctx, __u8 version)
{
	struct sk_buff *skb = (void *)ctx;
	void *network = READ(skb, head) + READ(skb, network_header);
	__u8 hops = 0;

	bpf_probe_read_kernel(
		&hops, sizeof(hops),
		network + (version == 4 ?
				   __builtin_offsetof(struct ipv4_start, ttl) :
				   __builtin_offsetof(struct ipv6_start,
						      hop_limit)));
	return hops;
}

/* It waits no longer; true for one program alone. */
static __always_inline bool end_arrival(const struct arrival *key)
{
	struct arriving *a = get_arriving();

	if (!a || bpf_map_delete_elem(&arrivals, key))
		return false;
	__sync_fetch_and_add(&a->ended, 1);
	return true;
}

/* Where a SYN was seen before it is remembered who got it. */
static __always_inline struct sightings *sightings_of(
	const struct report *report)
{
	struct packet_id id = { .ends = report->ends,
				.number = report->attempt.seq };

	return bpf_map_lookup_elem(&attempts, &id);
}

/*
 * Who got a SYN that is sent again, the first time: the listener may be gone when
 * nobody has taken this one.
 */
static __always_inline void find_first(struct workspace *space, __u32 runs_in)
{
	struct report *report = &space->report;
	struct sightings *before;

	if (report->attempt.proto != IPPROTO_TCP || !report->retries)
		return;
	before = sightings_of(report);
	if (!before || !before->listener)
		return;
	report->socket = before->socket;
	report->is_taken = true;
	find_listener(space, before->listener, runs_in);
	report->found.has_ends = report->found.known;
}

/* False: it does not wait, as there is no room, or the same one does. */
static __always_inline bool await_answer(struct __sk_buff *skb,
					 struct workspace *space)
{
	struct report *report = &space->report;
	struct arrival key = { report->ends, number_of(&report->attempt) };
	struct arrival *latest = get_latest_arrival();
	struct arriving *a = get_arriving();

	if (!a || !latest)
		return false;
	find_first(space, IN_PACKET);
	report->hops = hops_of(skb, report->attempt.version);
	report->found.task = 0; /* it may have ended when this is told */
	__sync_fetch_and_add(&a->begun, 1); /* before it can end */
	if (bpf_map_update_elem(&arrivals, &key, report, BPF_NOEXIST)) {
		__sync_fetch_and_add(&a->ended, 1);
		return false;
	}
	if (bpf_map_push_elem(&pending, &key, 0)) {
		end_arrival(&key);
		return false;
	}
	*latest = key;
	__sync_fetch_and_add(&a->queued, 1);
	return true;
}

/* The same, with a copy of its report. */
static __always_inline bool take_arrival(const struct arrival *key,
					 struct report *to)
{
	struct report *report = bpf_map_lookup_elem(&arrivals, key);

	if (!report)
		return false;
	__builtin_memcpy(to, report, sizeof(*to));
	/* Another CPU can have put another one in its place meanwhile. */
	return to->ends.remote_port == key->ends.remote_port &&
	       is_same(&to->ends.remote, &key->ends.remote) &&
	       number_of(&to->attempt) == key->number && end_arrival(key);
}

/* As the other side of a packet has its ends. */
static __always_inline void set_arrived_as(struct tuple *to,
					   const struct tuple *sent)
{
	*to = *sent;
	to->local = sent->remote;
	to->remote = sent->local;
	to->local_port = sent->remote_port;
	to->remote_port = sent->local_port;
}

/* Whether an arrival was forwarded: it waits no longer. */
static __always_inline bool is_handed_on(const struct arrival *key, __u8 hops)
{
	struct report *report = bpf_map_lookup_elem(&arrivals, key);

	return report && report->hops != hops && end_arrival(key);
}

/*
 * What goes out has come in before: nobody here took it, but for what tc leads
 * through another device, or copies there, as it comes in. That has come no hop
 * further.
 */
static __always_inline void hand_on(struct __sk_buff *skb,
				    struct workspace *space)
{
	const struct report *report = &space->report;
	__u8 hops = hops_of(skb, report->attempt.version);
	struct arrival *key = &space->arrival;

	key->number = number_of(&report->attempt);
	set_arrived_as(&key->ends, &report->ends);
	if (is_handed_on(key, hops) || !report->translated)
		return;
	set_arrived_as(&key->ends, &report->socket);
	is_handed_on(key, hops);
}

/* An attempt is reported if it is asked for. True: an event was sent. */
static __always_inline bool report_attempt(void *ctx, struct workspace *space,
					   bool has_waited)
{
	struct report *report = &space->report;

	if (wants_found(report))
		return has_waited ? deliver_late(ctx, space) :
				    deliver(ctx, space);
	if (follow && report->found.known && !report->found.followed)
		note_served(report);
	else if (!report->found.known)
		count_left_out(report->attempt.egress);
	return false;
}

enum settled {
	NOT_SETTLED,
	SETTLED,
	SETTLED_BY_EVENT,
};

/* Nobody took it: how it was refused, if it was. */
static __always_inline bool tell_refused(void *ctx, struct workspace *space)
{
	struct report *report = &space->report;
	const struct refusal *refusal = &report->refusal;
	struct outcome *o = &report->outcome;

	o->event = failed;
	o->cause = refusal->cause ?: CAUSE_LOCAL_DROP;
	o->icmp_type = refusal->icmp_type;
	o->icmp_code = refusal->icmp_code;
	o->by = refusal->by;
	o->drop = report->drop;
	if (refusal->time)
		o->latency = refusal->time - report->time;
	return tell_outcome(ctx, space);
}

/* A listener whose queue is full gets a SYN and drops it: see tcp_conn_request(). */
static __always_inline void tell_full(void *ctx, struct workspace *space)
{
	struct outcome *o = &space->report.outcome;

	o->event = failed;
	o->cause = CAUSE_LOCAL_DROP;
	o->reason = REASON_ACCEPT_QUEUE;
	o->latency = space->report.now - space->report.time;
	tell_outcome(ctx, space);
}

static __always_inline bool is_full(struct sock *listener)
{
	return READ(listener, sk_ack_backlog) >
	       READ(listener, sk_max_ack_backlog);
}

/*
 * Nobody took it. A SYN that is sent again while its handshake goes on is the
 * same listener's, if that is there still. True: an event was sent.
 */
static __always_inline bool settle(void *ctx, struct workspace *space)
{
	struct report *report = &space->report;
	bool is_tcp = report->attempt.proto == IPPROTO_TCP, sent;

	if (report->forwarded && !forwarded)
		return false;
	find_first(space, report->runs_in);
	sent = report_attempt(ctx, space, true);
	if (wants_outcome() && is_tcp && report->is_told && !report->is_taken &&
	    !report->forwarded)
		sent |= tell_refused(ctx, space);
	return sent;
}

static __always_inline bool is_awaited(const struct report *report, __u64 now)
{
	return !ends_now() && !is_past(report->now, ANSWER_WITHIN_NS, now);
}

/*
 * Settles what has waited longest; not if there is none, or it is awaited still,
 * unless too many are.
 */
static __always_inline enum settled settle_oldest(void *ctx,
						  struct workspace *space,
						  enum runs_in runs_in,
						  __u64 now)
{
	struct arriving *a = get_arriving();
	struct arrival *key = &space->arrival;
	struct report *report;
	bool crowded;

	if (!a || a->queued == a->unqueued || bpf_map_peek_elem(&pending, key))
		return NOT_SETTLED;
	crowded = a->queued - a->unqueued > MAX_PENDING;
	report = bpf_map_lookup_elem(&arrivals, key);
	if (report && !crowded && is_awaited(report, now))
		return NOT_SETTLED;
	if (bpf_map_pop_elem(&pending, key))
		return NOT_SETTLED;
	report = bpf_map_lookup_elem(&arrivals, key);
	if (report && !crowded && is_awaited(report, now)) {
		/* Another program has taken the one that was looked at. */
		bpf_map_push_elem(&pending, key, 0);
		return NOT_SETTLED;
	}
	__sync_fetch_and_add(&a->unqueued, 1);
	if (!take_arrival(key, &space->report))
		return SETTLED;
	space->report.runs_in = runs_in;
	space->report.now = now;
	return settle(ctx, space) ? SETTLED_BY_EVENT : SETTLED;
}

/* Not static: verified once. Of the packet, or what was settled before, is the time. */
__noinline int settle_from_packet(struct __sk_buff *skb)
{
	struct workspace *space = get_workspace(IN_PACKET);

	if (!space)
		return NOT_SETTLED;
	return settle_oldest(skb, space, IN_PACKET, space->report.now);
}

static __always_inline void settle_by_clock(void *ctx)
{
	struct arriving *a = get_arriving();
	struct workspace *space;
	__u64 now;

	if (!a || a->queued == a->unqueued)
		return;
	space = get_workspace(IN_HOOK);
	now = bpf_ktime_get_boot_ns();
	for (int i = 0; space && i < SETTLED_BY_CLOCK; i++)
		if (!settle_oldest(ctx, space, IN_HOOK, now))
			break;
}

/* A segment by its headers, but for the namespace; false for what is not of IP. */
static __always_inline bool read_headers(void *network, __u8 version,
					 const struct tcp_header *tcp,
					 struct arrival *taken)
{
	struct tuple *t = &taken->ends;

	if (version != 4 && version != 6)
		return false;
	t->version = version;
	t->proto = IPPROTO_TCP;
	t->remote_port = bpf_ntohs(tcp->source);
	t->local_port = bpf_ntohs(tcp->dest);
	if (t->version == 4) {
		BPF_CORE_READ_INTO(&t->remote.v4, (struct iphdr *)network,
				   saddr);
		BPF_CORE_READ_INTO(&t->local.v4, (struct iphdr *)network,
				   daddr);
	} else {
		BPF_CORE_READ_INTO(&t->remote, (struct ipv6hdr *)network,
				   saddr);
		BPF_CORE_READ_INTO(&t->local, (struct ipv6hdr *)network, daddr);
	}
	taken->number = bpf_ntohl(tcp->seq);
	return true;
}

/* A segment as the listener that got it sees it; false: it is none. */
static __always_inline bool read_segment(struct sk_buff *skb, struct sock *sk,
					 struct arrival *taken)
{
	unsigned char *head = READ(skb, head);
	void *network = head + READ(skb, network_header);
	void *transport = head + READ(skb, transport_header);
	struct tcp_header tcp;
	__u8 version;

	taken->ends.netns = READ(sk, __sk_common.skc_net.net, ns.inum);
	return !bpf_probe_read_kernel(&tcp, sizeof(tcp), transport) &&
	       !bpf_probe_read_kernel(&version, sizeof(version), network) &&
	       read_headers(network, version >> 4, &tcp, taken);
}

/*
 * The arrival of a segment that a listener has got: as it is, or as it was before
 * conntrack has translated it, or, if something else has, the last one of this CPU.
 */
static __always_inline bool take_answered(struct sk_buff *skb,
					  const struct arrival *taken,
					  struct report *report)
{
	struct arrival *latest = get_latest_arrival();
	struct arrival key = *taken;
	struct tracked came;

	if (take_arrival(&key, report))
		return true;
	if (read_original(skb, &came)) {
		key.ends.local = came.daddr;
		key.ends.local_port = came.dport;
		key.ends.remote = came.saddr;
		key.ends.remote_port = came.sport;
		if (take_arrival(&key, report))
			return true;
	}
	if (!latest || latest->number != taken->number ||
	    latest->ends.netns != taken->ends.netns)
		return false;
	key = *latest;
	return take_arrival(&key, report);
}

/* A listener has got a SYN. */
static __always_inline void answer(void *ctx, struct sock *sk,
				   struct sk_buff *skb)
{
	struct arriving *a = get_arriving();
	struct arrival taken = {};
	struct sightings *known;
	struct workspace *space;
	struct report *report;
	__u64 number;

	if (!a || !awaits_answers())
		return;
	space = get_workspace(IN_HOOK);
	if (!space || !read_segment(skb, sk, &taken))
		return;
	report = &space->report;
	if (!take_answered(skb, &taken, report))
		return;
	number = socket_number(sk);
	known = sightings_of(report);
	if (known) {
		known->listener = number;
		known->socket = taken.ends;
	}
	report->runs_in = IN_HOOK;
	report->now = bpf_ktime_get_boot_ns();
	report->forwarded = false;
	report->is_taken = true;
	report->is_refused = wants_outcome() && is_full(sk);
	report->socket = taken.ends;
	__builtin_memset(&report->found, 0, sizeof(report->found));
	find_listener(space, number, IN_HOOK);
	report->found.has_ends = report->found.known;
	__sync_fetch_and_add(&a->answered, 1);
	if (!report->found.known)
		__sync_fetch_and_add(&a->unserved, 1);
	report_attempt(ctx, space, false);
	if (!report->is_refused)
		return;
	if (report->is_told && !(known && known->is_refused))
		tell_full(ctx, space);
	if (known)
		known->is_refused = true;
}

#endif
