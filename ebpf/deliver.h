/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_DELIVER_H
#define NETWORK_DELIVER_H

/*
 * What becomes of an event: it is sent, or waits for room in a ring, or is
 * withheld and counted.
 *
 * Of what the rate limit withholds from an owner, the first attempt waits for
 * the clock, and tells of the others if no event of the owner has until then.
 */

#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/macros.h>

#ifdef COUNTS_CONNECTIONS
#include "count.h"
#endif
#include "event.h"
#include "limit.h"
#include "lives.h"
#include "params.h"
#include "report.h"
#include "ring.h"

/* An owner can have one part in so many of the places that are free. */
#define SHARES 8
/* How many that wait an attempt sends beside its own, and the clock. */
#define SENT_BY_PACKET 2
#define SENT_BY_CLOCK 64
/* What the clock leaves free in a ring: a packet can interrupt it. */
#define CLOCK_LEAVES 16384 /* bytes */
/* How long what was withheld first waits. */
#define ANNOUNCED_AFTER_NS (NSEC_PER_SEC / 2)

const volatile __u32 unsent_max_entries = 8192;
EVENT_PARAM(unsent_max_entries);

/* Events for which there was no room, oldest first. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 8192);
	__type(value, struct waiting_event);
} unsent SEC(".maps");

/* The first attempts that were withheld, of each owner one. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 512);
	__type(value, struct waiting_event);
} announced SEC(".maps");

/* How many events were put into the queues, and taken out. */
struct queued {
	__u64 unsent_in;
	__u64 unsent_out;
	__u64 announced_in;
	__u64 announced_out;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct queued);
} queued SEC(".maps");

/* What became of the attempts that were to be reported, by CPU. */
struct counters {
	__u64 reported; /* events */
	__u64 lost; /* events that the ring had no room for */
	__u64 withheld; /* attempts that the rate limit has held back */
	__u64 without_ring; /* of them, where the CPU had no ring */
	__u64 left_out_sent; /* attempts of nobody, where somebody is wanted */
	__u64 left_out_received;
	__u64 outcomes; /* events that tell what became of a reported attempt */
	__u64 outcomes_lost; /* for which there was no room */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

/* By one, in the given counter of this CPU: the clock is interrupted. */
#define count_as(counter)                                                   \
	do {                                                                \
		__u32 zero = 0;                                             \
		struct counters *c = bpf_map_lookup_elem(&counters, &zero); \
                                                                            \
		if (c)                                                      \
			__sync_fetch_and_add(&c->counter, 1);               \
	} while (0)

static __always_inline void count_left_out(bool egress)
{
	if (egress)
		count_as(left_out_sent);
	else
		count_as(left_out_received);
}

static __always_inline struct queued *get_queued(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&queued, &zero);
}

static __always_inline __u64 event_size(void)
{
	if (paths)
		return sizeof(struct event);
	return wants_outcome() ? EVENT_LEN : ATTEMPT_LEN;
}

/* Not of an attempt of its own: one has been reported. */
static __always_inline bool is_outcome(const struct event *event)
{
	return lifecycle && !failed_only && event->event_raw;
}

static __always_inline void count_lost(const struct event *event)
{
	if (is_outcome(event))
		count_as(outcomes_lost);
	else
		count_as(lost);
}

/* The owner's next event tells what this one would have told. */
__noinline int fail_to_send(__u32 runs_in)
{
	struct workspace *space = get_workspace(runs_in);
	struct delivery *d;
	struct limit *limit;

	if (!space)
		return false;
	d = &space->delivery;
	limit = d->event.suppressed ? bpf_map_lookup_elem(&limits, &d->owner) :
				      NULL;
	if (limit)
		untell_withheld(limit, d->event.suppressed);
	count_lost(&d->event);
	return false;
}

/* What only the program itself can do, with what was prepared. */
static __always_inline void send(void *ctx, struct workspace *space,
				 __u32 runs_in)
{
	struct event *event = &space->delivery.event;

	if (bpf_perf_event_output(ctx, &events, BPF_F_CURRENT_CPU, event,
				  event_size()))
		fail_to_send(runs_in);
	else if (is_outcome(event))
		count_as(outcomes);
	else
		count_as(reported);
}

/*
 * Has the event wait until a ring has room. The fewer places are free, the
 * fewer can one owner have: the next one finds some.
 */
static __always_inline bool keep(const struct delivery *d, struct limit *limit)
{
	struct queued *q = get_queued();
	__s32 free;

	if (!q || !limit)
		return false;
	free = unsent_max_entries - (__u32)(q->unsent_in - q->unsent_out);
	if (limit->unsent * SHARES >= free ||
	    bpf_map_push_elem(&unsent, d, BPF_ANY))
		return false;
	__sync_fetch_and_add(&limit->unsent, 1);
	__sync_fetch_and_add(&q->unsent_in, 1);
	return true;
}

/* Has the event wait for the clock, if none of its owner does already. */
static __always_inline bool announce(const struct delivery *d,
				     struct limit *limit)
{
	struct queued *q = get_queued();

	if (!q || limit->announced)
		return false;
	limit->announced = 1;
	if (bpf_map_push_elem(&announced, d, BPF_ANY)) {
		limit->announced = 0;
		return false;
	}
	__sync_fetch_and_add(&q->announced_in, 1);
	return true;
}

static __always_inline void count_withheld(struct limit *limit)
{
	if (limit)
		__sync_fetch_and_add(&limit->withheld, 1);
	count_as(withheld);
}

/* False: it is only announced, and will be reported. */
static __always_inline bool withhold(const struct delivery *d,
				     struct limit *limit)
{
	if (limit && announce(d, limit))
		return false;
	count_withheld(limit);
	return true;
}

/* Tells of what was withheld; what has waited has no paths, as they are long. */
static __always_inline void prepare_late(struct delivery *d,
					 struct limit *limit, __u32 runs_in)
{
	if (paths)
		clear_paths(runs_in);
	d->event.suppressed = limit ? tell_withheld(limit, &d->owner) : 0;
}

/*
 * What comes before an event is sent needs no context, so that these functions need
 * not be static: each is verified once, and not wherever something is told. True: the
 * workspace has an event, and the ring has room.
 */

/* One for which there was no room. */
__noinline int prepare_unsent(__u32 runs_in, __u32 leave)
{
	struct workspace *space = get_workspace(runs_in);
	struct queued *q = get_queued();
	struct delivery *d;
	struct limit *limit;

	if (!space || !q || q->unsent_in == q->unsent_out)
		return false;
	d = &space->delivery;
	if (look_at_ring(event_size() + leave) != RING_HAS_ROOM ||
	    bpf_map_pop_elem(&unsent, d))
		return false;
	__sync_fetch_and_add(&q->unsent_out, 1);
	limit = bpf_map_lookup_elem(&limits, &d->owner);
	if (limit)
		__sync_fetch_and_add(&limit->unsent, -1);
	prepare_late(d, limit, runs_in);
	return true;
}

/* One that was withheld half a second ago or longer. */
__noinline int prepare_announced(__u32 runs_in)
{
	struct workspace *space = get_workspace(runs_in);
	struct queued *q = get_queued();
	struct delivery *d;
	struct limit *limit;

	if (!space || !q || q->announced_in == q->announced_out)
		return false;
	d = &space->delivery;
	if (look_at_ring(event_size() + CLOCK_LEAVES) != RING_HAS_ROOM ||
	    bpf_map_peek_elem(&announced, d) ||
	    d->event.timestamp_raw + ANNOUNCED_AFTER_NS >
		    bpf_ktime_get_boot_ns() ||
	    bpf_map_pop_elem(&announced, d))
		return false;
	__sync_fetch_and_add(&q->announced_out, 1);
	limit = bpf_map_lookup_elem(&limits, &d->owner);
	if (limit) /* first: what is withheld from now on is announced again */
		limit->announced = 0;
	prepare_late(d, limit, runs_in);
	return true;
}

/* In place of an event. */
static __always_inline void count_report(struct workspace *space)
{
#ifdef COUNTS_CONNECTIONS
	if (space->report.outcome.event)
		count_outcome(&space->report);
	else
		count_attempt(&space->report);
#endif
	begin_life(space);
}

/* An attempt's, if its owner may have one. */
__noinline int prepare_attempt(__u32 runs_in, __u32 has_waited)
{
	struct workspace *space = get_workspace(runs_in);
	struct limit *limit = NULL;
	struct delivery *d;
	bool over = false;
	enum ring ring;

	/*
	 * Where it is not used, as nothing is built, clang has callers leave it unset,
	 * and the verifier does not take that.
	 */
	asm volatile("" : : "r"(has_waited));
	if (!space)
		return false;
	d = &space->delivery;
	if (IS_COUNTING) {
		count_report(space);
		return false;
	}
	if (failed_only && !space->report.outcome.event) {
		begin_life(space);
		return false;
	}
	if (rate_limit) {
		limit = find_limit(&d->owner, &space->report);
		over = limit && !take_token(&limit->attempts, rate_limit,
					    space->report.now);
	}
	if (over && limit->announced) { /* a flood's, as a rule: no event */
		count_withheld(limit);
		return false;
	}
	build_event(runs_in, has_waited);
	if (over) {
		if (!withhold(d, limit))
			begin_life(space);
		return false;
	}
	ring = look_at_ring(event_size());
	if (ring == RING_HAS_ROOM || (!rate_limit && ring == RING_IS_FULL)) {
		begin_life(space);
		if (limit)
			d->event.suppressed = tell_withheld(limit, &d->owner);
		return true;
	}
	if (!limit)
		limit = find_limit(&d->owner, &space->report);
	if (keep(d, limit) || !withhold(d, limit))
		begin_life(space);
	else if (ring == RING_IS_MISSING)
		count_as(without_ring);
	return false;
}

/* What became of an attempt that was reported: it costs its owner no more. */
__noinline int prepare_outcome(__u32 runs_in)
{
	struct workspace *space = get_workspace(runs_in);
	struct delivery *d;
	struct limit *limit;

	if (!space)
		return false;
	if (IS_COUNTING) {
		count_report(space);
		return false;
	}
	d = &space->delivery;
	build_event(runs_in, false);
	if (look_at_ring(event_size()) == RING_HAS_ROOM)
		return true;
	limit = find_limit(&d->owner, &space->report);
	if (!keep(d, limit))
		count_lost(&d->event);
	return false;
}

/* Sends what waits, as often as something happens that costs nobody a wait. */
static __always_inline void send_by_clock(void *ctx)
{
	struct queued *q = get_queued();
	struct workspace *space;

	if (!q || (q->unsent_in == q->unsent_out &&
		   q->announced_in == q->announced_out))
		return;
	space = get_workspace(IN_HOOK);
	if (!space)
		return;
	for (int i = 0; i < SENT_BY_CLOCK; i++) {
		if (!prepare_unsent(IN_HOOK, CLOCK_LEAVES))
			break;
		send(ctx, space, IN_HOOK);
	}
	for (int i = 0; i < SENT_BY_CLOCK; i++) {
		if (!prepare_announced(IN_HOOK))
			break;
		send(ctx, space, IN_HOOK);
	}
}

/* The event of the packet itself was sent. */
static __always_inline bool send_unsent_from_packet(struct __sk_buff *skb,
						    struct workspace *space)
{
	if (!prepare_unsent(IN_PACKET, 0))
		return false;
	send(skb, space, IN_PACKET);
	return true;
}

/* Sends an attempt's event, if its owner may and this CPU can. */
static __always_inline bool deliver_event(void *ctx, struct workspace *space,
					  bool has_waited)
{
	__u32 runs_in = space->report.runs_in;

	if (!prepare_attempt(runs_in, has_waited))
		return false;
	send(ctx, space, runs_in);
	return true;
}

static __always_inline bool deliver(void *ctx, struct workspace *space)
{
	return deliver_event(ctx, space, false);
}

static __always_inline bool deliver_late(void *ctx, struct workspace *space)
{
	return deliver_event(ctx, space, true);
}

static __always_inline bool deliver_outcome(void *ctx, struct workspace *space)
{
	__u32 runs_in = space->report.runs_in;

	if (!prepare_outcome(runs_in))
		return false;
	send(ctx, space, runs_in);
	return true;
}

/* Tells what became of the report's attempt. True: an event was sent. */
static __always_inline bool tell_outcome(void *ctx, struct workspace *space)
{
	if (!failed_only)
		return deliver_outcome(ctx, space);
	return space->report.outcome.event == failed && deliver(ctx, space);
}

#endif
