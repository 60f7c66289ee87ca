/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_LIVES_H
#define NETWORK_LIVES_H

/*
 * Attempts of TCP whose end is awaited, with --lifecycle: those that were
 * reported, so that what is told of them passes every filter as well.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/macros.h>

#include "params.h"
#include "report.h"
#include "socket.h"

/* include/uapi/asm-generic/errno-base.h, errno.h */
#define EPERM 1
#define EACCES 13
#define EINVAL 22
#define EAFNOSUPPORT 97
#define ENONET 64
#define EMSGSIZE 90
#define ENOPROTOOPT 92
#define EOPNOTSUPP 95
#define EADDRNOTAVAIL 99
#define ENETUNREACH 101
#define ECONNABORTED 103
#define ETIMEDOUT 110
#define ECONNREFUSED 111
#define EHOSTDOWN 112
#define EHOSTUNREACH 113

const volatile __u32 lives_max_entries = 4096;
GADGET_PARAM(lives_max_entries);

/* One attempt, and what is known of its end so far. */
struct life {
	struct report report;
	__u64 begun; /* ns since the boot; of a call, when it was made */
	__u64 established; /* likewise; 0: it is not */
	union gadget_ip_addr_t icmp_from;
	__u64 unanswered; /* when its SYN was found to be, and not sent again */
	__s32 not_sent; /* errno of the last SYN, which did not leave; or 0 */
	__u32 drop; /* enum skb_drop_reason of this kernel, or 0 */
	__u8 icmp_type; /* of a message about it, if any has come */
	__u8 icmp_code;
	bool has_icmp;
	bool is_reset;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct life_key);
	__type(value, struct life);
} lives SEC(".maps");

struct living {
	__u64 begun;
	__u64 ended; /* what became of it was told */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct living);
} living SEC(".maps");

static __always_inline struct living *get_living(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&living, &zero);
}

/* Where a life is made; this CPU's: packets and hooks each have one. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CONTEXTS);
	__type(key, __u32);
	__type(value, struct life);
} new_lives SEC(".maps");

/*
 * An attempt has been reported. What is sent again is no other one. Of what a raw
 * socket has sent, or nobody has taken, no socket can tell the end.
 */
static __always_inline void begin_life(struct workspace *space)
{
	struct report *report = &space->report;
	struct life_key *key = &space->life;
	struct living *l = get_living();
	__u32 index = report->runs_in;
	struct life *life;

	if (report->outcome.event) /* what became of it */
		return;
	report->is_told = true;
	if (!wants_outcome() || report->is_refused ||
	    report->attempt.proto != IPPROTO_TCP || !l ||
	    !(report->found.has_ends || report->is_taken))
		return;
	key->ends = report->socket;
	key->egress = report->attempt.egress;
	life = bpf_map_lookup_elem(&lives, key);
	if (life && life->report.attempt.seq == report->attempt.seq) {
		life->report.retries = report->retries;
		return;
	}
	/* It has ended unheard. */
	if (life && !bpf_map_delete_elem(&lives, key))
		__sync_fetch_and_add(&l->ended, 1);
	life = bpf_map_lookup_elem(&new_lives, &index);
	if (!life)
		return;
	__builtin_memset(life, 0, sizeof(*life));
	life->report = *report;
	life->report.found.task = 0; /* it may have ended when this is told */
	/* A socket that has called may get what arrives. */
	life->begun = report->attempt.egress && report->found.called ?
			      report->found.called :
			      report->time;
	__sync_fetch_and_add(&l->begun, 1); /* before it can be asked for */
	if (bpf_map_update_elem(&lives, key, life, BPF_ANY))
		__sync_fetch_and_add(&l->ended, 1);
}

static __always_inline bool has_lives(void)
{
	struct living *l = get_living();

	return l && is_any_left(&l->begun, &l->ended);
}

static __always_inline struct life *find_life(const struct life_key *key)
{
	struct life *life = bpf_map_lookup_elem(&lives, key);

	/* A map that forgets can have put another one there meanwhile. */
	if (!life || life->report.socket.local_port != key->ends.local_port ||
	    life->report.socket.remote_port != key->ends.remote_port)
		return NULL;
	return life;
}

/* Takes a copy, for one program alone: the life is over. */
static __always_inline bool take_life(const struct life_key *key,
				      struct life *to)
{
	struct life *life = find_life(key);
	struct living *l = get_living();

	if (!life || !l)
		return false;
	*to = *life;
	if (!is_same(&to->report.socket.remote, &key->ends.remote) ||
	    !is_same(&to->report.socket.local, &key->ends.local) ||
	    to->report.socket.local_port != key->ends.local_port ||
	    bpf_map_delete_elem(&lives, key))
		return false;
	__sync_fetch_and_add(&l->ended, 1);
	return true;
}

static __always_inline struct life *get_new_life(__u32 runs_in)
{
	return bpf_map_lookup_elem(&new_lives, &runs_in);
}

/* A report of what became of an attempt. */
static __always_inline void begin_outcome(struct report *report,
					  const struct life *life, __u8 event,
					  __u32 runs_in)
{
	*report = life->report;
	report->runs_in = runs_in;
	report->now = bpf_ktime_get_boot_ns();
	report->outcome.event = event;
}

#endif
