/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_COUNT_H
#define NETWORK_COUNT_H

/*
 * Attempts and what became of them, counted. User space takes rows away as it reads
 * them, so what is added to one in place could be lost, or become another's: a row is
 * replaced as a whole, by one program at a time.
 */

#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/macros.h>
#include <gadget/types.h>

#include "../connections/program.h"
#include "event.h"
#include "report.h"

const volatile __u32 counted_max_entries = 2048;
GADGET_PARAM(counted_max_entries);

/* IG reads hash maps alone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2048);
	__type(key, struct connection);
	__type(value, struct connection_counts);
} counted SEC(".maps");

GADGET_MAPITER(connections, counted);

/* Rows that a program is replacing now: an entry is a lock. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512);
	__type(key, struct connection);
	__type(value, __u8);
} counting SEC(".maps");

/* What had no row and was not told, of this CPU's programs: see enum runs_in. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CONTEXTS);
	__type(key, __u32);
	__type(value, __u64);
} uncounted SEC(".maps");

/* This CPU's, as the workspace is. */
struct count {
	struct connection key;
	struct connection_counts more; /* to be added */
	struct connection_counts sum;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CONTEXTS);
	__type(key, __u32);
	__type(value, struct count);
} counts_made SEC(".maps");

static __always_inline void add_counts(struct connection_counts *to,
				       const struct connection_counts *more)
{
	to->attempts += more->attempts;
	to->established += more->established;
	to->failed += more->failed;
	to->closed += more->closed;
	to->tx_bytes += more->tx_bytes;
	to->rx_bytes += more->rx_bytes;
	to->uncounted += more->uncounted;
}

/* False: there is no room. */
static __always_inline bool replace_row(struct count *count)
{
	struct connection_counts *row =
		bpf_map_lookup_elem(&counted, &count->key);

	if (row) {
		count->sum = *row;
		add_counts(&count->sum, &count->more);
		if (!bpf_map_update_elem(&counted, &count->key, &count->sum,
					 BPF_EXIST))
			return true;
	}
	/* It was taken away, before or meanwhile. */
	return !bpf_map_update_elem(&counted, &count->key, &count->more,
				    BPF_NOEXIST);
}

static __always_inline void count_row(struct count *count, __u32 runs_in)
{
	__u64 *untold = bpf_map_lookup_elem(&uncounted, &runs_in);
	bool has_room, locked;
	__u8 lock = 1;

	if (!untold)
		return;
	count->more.uncounted = *untold;
	locked = !bpf_map_update_elem(&counting, &count->key, &lock,
				      BPF_NOEXIST);
	if (!locked) /* this CPU's own, then */
		count->key.part =
			1 + bpf_get_smp_processor_id() * CONTEXTS + runs_in;
	has_room = replace_row(count);
	if (locked)
		bpf_map_delete_elem(&counting, &count->key);
	*untold = has_room ? 0 : *untold + 1;
}

static __always_inline void set_connection(struct connection *key,
					   const struct report *report)
{
	const struct gadget_process *proc = &report->found.proc;
	const struct attempt *a = &report->attempt;

	__builtin_memset(key, 0, sizeof(*key));
	set_l4endpoint(&key->endpoint, a->egress ? &a->daddr : &a->saddr,
		       a->dport, a);
	key->mntns_id = proc->mntns_id;
	key->netns_id = report->ends.netns;
	key->uid = proc->creds.uid;
	__builtin_memcpy(key->comm, proc->comm, sizeof(key->comm));
	key->egress = a->egress;
	key->protocol_raw = a->proto;
}

static __always_inline struct count *begin_count(const struct report *report)
{
	__u32 runs_in = report->runs_in;
	struct count *count = bpf_map_lookup_elem(&counts_made, &runs_in);

	if (!count)
		return NULL;
	set_connection(&count->key, report);
	__builtin_memset(&count->more, 0, sizeof(count->more));
	return count;
}

/* A SYN that is sent again is the same attempt. */
static __always_inline void count_attempt(const struct report *report)
{
	struct count *count = begin_count(report);

	if (!count || report->retries)
		return;
	count->more.attempts = 1;
	count_row(count, report->runs_in);
}

static __always_inline void count_outcome(const struct report *report)
{
	const struct outcome *o = &report->outcome;
	struct count *count = begin_count(report);
	__u32 cause = o->cause;

	if (!count)
		return;
	count->more.established = o->event == established;
	count->more.failed = o->event == failed;
	count->more.closed = o->event == closed;
	if (o->event == closed) {
		count->more.tx_bytes = o->tx;
		count->more.rx_bytes = o->rx;
	}
	if (o->event == failed) {
		count->key.error_raw = o->error;
		if (cause < CAUSES)
			__builtin_memcpy(count->key.cause, causes[cause],
					 CAUSE_LEN);
	}
	count_row(count, report->runs_in);
}

#endif
