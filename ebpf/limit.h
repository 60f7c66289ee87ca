/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_LIMIT_H
#define NETWORK_LIMIT_H

/*
 * Floods: who makes more attempts than the rate limit has some withheld, and
 * nobody else. What is withheld is counted, and told by the owner's next event;
 * when none follows, the last attempt is reported after all, within a second.
 */

#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/macros.h>

#include "event.h"
#include "params.h"

#define NSEC_PER_SEC 1000000000ULL

/* Owners of a CPU with attempts withheld that no event has told yet. */
#define MAX_WITHHELD 64
#define WITHHELD_PROBES 4

/* Who: what nobody is known to own is one owner's, by namespace and direction. */
struct limit_key {
	__u32 netns;
	__u32 pid;
	__u32 egress;
};

/* When the owner's bucket is full again, ns since the boot. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct limit_key);
	__type(value, __u64);
} buckets SEC(".maps");

/* Of one owner on one CPU: what no other CPU writes needs no lock. */
struct withheld {
	struct limit_key key;
	__u32 count; /* 0: free */
	struct report last; /* one of them */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_WITHHELD);
	__type(key, __u32);
	__type(value, struct withheld);
} withheld SEC(".maps");

/* Set while a packet's filter is at them: the clock can interrupt it. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} withheld_busy SEC(".maps");

static __always_inline void set_limit_key(struct limit_key *key,
					  const struct report *report)
{
	key->netns = report->ends.netns;
	key->pid = report->found.proc.pid;
	key->egress = report->attempt.egress;
}

static __always_inline bool is_key(const struct limit_key *a,
				   const struct limit_key *b)
{
	return a->netns == b->netns && a->pid == b->pid &&
	       a->egress == b->egress;
}

/*
 * A bucket of rate_limit tokens, as many a second: it holds the time at which
 * it would be full. Processors that take one at a time can take one too many.
 */
static __always_inline bool take_token(const struct limit_key *key, __u64 now)
{
	__u64 *bucket = bpf_map_lookup_elem(&buckets, key);
	__u64 token = NSEC_PER_SEC / (rate_limit ?: 1), full = now + token;

	if (!bucket) {
		bpf_map_update_elem(&buckets, key, &full, BPF_ANY);
		return true;
	}
	if (*bucket < now)
		*bucket = now;
	if (*bucket + token > now + NSEC_PER_SEC)
		return false;
	__sync_fetch_and_add(bucket, token);
	return true;
}

static __always_inline struct withheld *probe(const struct limit_key *key,
					      __u32 i)
{
	__u32 index = (key->pid + key->netns + key->egress * 31 + i) &
		      (MAX_WITHHELD - 1);

	return bpf_map_lookup_elem(&withheld, &index);
}

/* How many attempts of an owner this CPU has withheld; they are told now. */
static __always_inline __u32 tell_withheld(const struct limit_key *key)
{
	struct withheld *w;
	__u32 count = 0;

	for (int i = 0; i < WITHHELD_PROBES; i++) {
		w = probe(key, i);
		if (!w || !w->count || !is_key(&w->key, key))
			continue;
		count += w->count;
		w->count = 0;
	}
	return count;
}

/* When no place is free the attempt is counted, and no event tells of it. */
static __always_inline void withhold(const struct limit_key *key,
				     const struct report *report)
{
	struct counters *counters = get_counters();
	struct withheld *w, *place = NULL;

	if (counters)
		__sync_fetch_and_add(&counters->withheld, 1);
	for (int i = 0; i < WITHHELD_PROBES; i++) {
		w = probe(key, i);
		if (!w)
			return;
		if (w->count && is_key(&w->key, key)) {
			place = w;
			break;
		}
		if (!w->count && !place)
			place = w;
	}
	if (!place)
		return;
	place->key = *key;
	place->last = *report;
	place->count++;
}

/* The event that would have told was lost: another one will. */
static __always_inline void untell_withheld(const struct report *report)
{
	struct limit_key key = {};
	struct withheld *w;

	set_limit_key(&key, report);
	for (int i = 0; i < WITHHELD_PROBES; i++) {
		w = probe(&key, i);
		if (!w || !is_key(&w->key, &key))
			continue;
		w->count += report->suppressed;
		return;
	}
}

/*
 * Whether the owner's limit holds the attempt back. If not, the report tells
 * what was held back before it.
 */
static __always_inline bool is_withheld(struct report *report)
{
	struct limit_key key = {};
	__u32 zero = 0, *busy;
	bool over;

	if (!rate_limit)
		return false;
	busy = bpf_map_lookup_elem(&withheld_busy, &zero);
	if (!busy)
		return false;
	set_limit_key(&key, report);
	over = !take_token(&key, report->time);
	*(volatile __u32 *)busy = 1;
	if (over)
		withhold(&key, report);
	else
		report->suppressed = tell_withheld(&key);
	*(volatile __u32 *)busy = 0;
	return over;
}

/*
 * Reports the last attempt that was withheld from an owner, if there is one in
 * the place. Not static: verified once, and not for each place.
 */
__noinline int report_withheld(struct bpf_perf_event_data *ctx, __u32 place)
{
	struct workspace *space = get_workspace(IN_CLOCK);
	struct counters *counters = get_counters();
	struct withheld *w = bpf_map_lookup_elem(&withheld, &place);
	__u32 others;

	if (!space || !counters || !w || !w->count)
		return 0;
	others = w->count - 1;
	space->report = w->last;
	space->report.suppressed = others;
	w->count = 0;
	__sync_fetch_and_add(&counters->withheld, -1);
	if (!send_report(ctx, space))
		w->count = others;
	return 0;
}

/* Of all owners that no event of theirs has told about. */
static __always_inline void report_all_withheld(struct bpf_perf_event_data *ctx)
{
	__u32 zero = 0, *busy = bpf_map_lookup_elem(&withheld_busy, &zero);

	if (!rate_limit || !busy || *(volatile __u32 *)busy)
		return;
	for (__u32 place = 0; place < MAX_WITHHELD; place++)
		report_withheld(ctx, place);
}

#endif
