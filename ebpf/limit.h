/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_LIMIT_H
#define NETWORK_LIMIT_H

/*
 * Who makes more attempts than the rate limit has some withheld, and nobody
 * else. How many an owner's next event tells.
 */

#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

#include "family.h"
#include "params.h"
#include "report.h"

/* Young processes of one family that get a limit of their own, in a second. */
#define NEWCOMERS 32

/* One owner's. Programs of several CPUs add to it, see tell_withheld(). */
struct limit {
	__u64 attempts; /* bucket, see take_token() */
	__u64 newcomers; /* a family's */
	__u32 withheld; /* attempts, since the owner is known */
	__u32 told; /* of them, by events */
	__s32 unsent; /* events that wait for room */
	__u32 announced; /* an event that will tell of more waits for the clock */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct limit_key);
	__type(value, struct limit);
} limits SEC(".maps");

/* Owners of whom a program is telling now: an entry is a lock. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 128);
	__type(key, struct limit_key);
	__type(value, __u32);
} telling SEC(".maps");

static __always_inline struct limit *get_limit(const struct limit_key *key)
{
	static const struct limit fresh = {};
	struct limit *limit = bpf_map_lookup_elem(&limits, key);

	if (limit)
		return limit;
	bpf_map_update_elem(&limits, key, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&limits, key);
}

/*
 * A bucket of so many tokens, and as many a second: it holds the time at which
 * it would be full. Processors that take one at a time can take one too many.
 */
static __always_inline bool take_token(__u64 *bucket, __u32 tokens, __u64 now)
{
	__u64 token = NSEC_PER_SEC / (tokens ?: 1);

	if (*bucket < now)
		*bucket = now;
	if (*bucket + token > now + NSEC_PER_SEC)
		return false;
	__sync_fetch_and_add(bucket, token);
	return true;
}

/*
 * Whose limit the attempt counts with, and its key: its process's own, as a
 * rule. Of the young processes of a family so many get one a second; those that
 * are more share one until they are young no more.
 */
static __always_inline struct limit *find_limit(struct limit_key *key,
						const struct report *report)
{
	const struct found *found = &report->found;
	struct limit *limit;

	key->netns = report->ends.netns;
	key->egress = report->attempt.egress;
	key->pid = found->proc.pid;
	key->family = false;
	if (!found->family || !is_young(found->started, report->now))
		return get_limit(key);
	limit = bpf_map_lookup_elem(&limits, key);
	if (limit)
		return limit;

	key->pid = found->family;
	key->family = true;
	limit = get_limit(key);
	if (!limit || !take_token(&limit->newcomers, NEWCOMERS, report->now))
		return limit;
	key->pid = found->proc.pid;
	key->family = false;
	return get_limit(key);
}

/*
 * How many attempts were withheld that no event has told; one does now. Each is
 * told once: Linux 5.10 has no operation that reads and writes at once, but only
 * one program can add an entry.
 */
static __always_inline __u32 tell_withheld(struct limit *limit,
					   const struct limit_key *key)
{
	__u32 locked = 1, count;

	if (limit->withheld == limit->told ||
	    bpf_map_update_elem(&telling, key, &locked, BPF_NOEXIST))
		return 0;
	count = limit->withheld - limit->told;
	__sync_fetch_and_add(&limit->told, count);
	bpf_map_delete_elem(&telling, key);
	return count;
}

/* The event that would have told was lost: another one will. */
static __always_inline void untell_withheld(struct limit *limit, __u32 count)
{
	__sync_fetch_and_add(&limit->told, -count);
}

#endif
