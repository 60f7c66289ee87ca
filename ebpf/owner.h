/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_OWNER_H
#define NETWORK_OWNER_H

/*
 * Who: the process whose socket a packet is of, by the books. Who takes a TCP
 * connection in, the kernel tells: see arrivals.h.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/types.h>

#include "books.h"
#include "device.h"
#include "holders.h"
#include "packet.h"
#include "raw.h"
#include "read.h"
#include "report.h"
#include "socket.h"

static __always_inline void set_found(struct found *found,
				      const struct owner *owner)
{
	found->proc = owner->proc;
	__builtin_memcpy(found->thread, owner->thread, THREAD_LEN);
	found->sk = owner->sk;
	found->since = owner->since;
	found->started = owner->started;
	found->called = owner->called;
	found->family = owner->family;
	found->known = true;
	found->followed = owner->followed;
}

/*
 * Whether what was found is the owner's still. A map that forgets what is oldest
 * puts another entry in its place at once, also under somebody's eyes: then what
 * was found is that one's, or part of each.
 */
static __always_inline bool is_still(const struct owner *owner,
				     const struct found *found,
				     const struct tuple *t)
{
	__u64 sk = found->sk;
	struct entries *entries = bpf_map_lookup_elem(&sockets, &sk);
	const struct tuple *local;

	if (!entries || entries->since != found->since)
		return false;
	if (bpf_map_lookup_elem(&connections, &entries->connection) == owner)
		local = &entries->connection;
	else if (bpf_map_lookup_elem(&ports, &entries->port) == owner)
		local = &entries->port.local;
	else
		return false;
	return local->netns == t->netns && local->proto == t->proto &&
	       local->local_port == t->local_port;
}

/*
 * A SYN that has waited, for a neighbour's address for example, can be sent
 * when another socket has got the ends of the one that it belongs to: its
 * sequence number tells them apart.
 */
static __always_inline struct owner *find_connection(const struct tuple *t,
						     const struct attempt *a)
{
	struct owner *owner = bpf_map_lookup_elem(&connections, t);

	if (!owner || owner->closed || !has_page(owner))
		return NULL;
	if (a->egress ? owner->isn != a->seq : has_left(owner, t->local_port))
		return NULL;
	return owner;
}

/*
 * A SYN whose ends were translated without conntrack (a stateless rule, tc) has
 * its sequence number still, and one of its ends.
 */
static __always_inline struct owner *find_by_sequence(struct report *report)
{
	struct syn_key key = { report->ends.netns, report->attempt.seq };
	struct tuple *t = bpf_map_lookup_elem(&syns, &key);
	const struct tuple *ends = &report->ends;
	struct owner *owner;

	if (!t || t->version != ends->version)
		return NULL;
	if (!(is_same(&t->local, &ends->local) &&
	      t->local_port == ends->local_port) &&
	    !(is_same(&t->remote, &ends->remote) &&
	      t->remote_port == ends->remote_port))
		return NULL;
	owner = find_connection(t, &report->attempt);
	if (owner)
		report->socket = *t;
	return owner;
}

/*
 * Who sent a SYN: the connection is known by its ends and by its sequence
 * number.
 */
static __always_inline struct owner *find_caller(struct report *report)
{
	struct owner *owner =
		find_connection(&report->socket, &report->attempt);

	if (!owner)
		owner = find_by_sequence(report);
	if (!owner)
		return NULL;
	report->found.is_reported = owner->progress == REPORTED;
	end_progress(owner, SEEN);
	return owner;
}

/* What is asked about the sockets on a port. */
struct question {
	struct __sk_buff *skb;
	__u32 device; /* the packet's interface */
	__u8 version; /* the packet's */
	bool doubtful; /* it may go to a socket that is not known to take part */
};

/*
 * Whether a socket on the right port takes part, as compute_score() in
 * net/ipv4/udp.c and net/ipv4/inet_hashtables.c have it: what is bound to
 * another interface, or connected to another peer, receives nothing.
 */
static __always_inline bool takes_part(const struct owner *owner, __u16 port,
				       struct question *q)
{
	int leads;

	if (owner->closed || owner->connected ||
	    (owner->ipv6only && q->version == 4) || !has_page(owner) ||
	    has_left(owner, port))
		return false;
	if (!owner->device || owner->device == q->device)
		return true;
	leads = leads_to(q->skb, owner->device);
	if (leads == LEADS_PERHAPS)
		q->doubtful = true;
	return leads == LEADS_THERE;
}

/*
 * Of the sockets that share one address and port, the one that the kernel
 * takes: one that is bound to the interface, then the one bound last, which
 * is the first of its hash chain. In a group of SO_REUSEPORT the kernel takes
 * any of them.
 */
static __always_inline bool goes_before(const struct owner *owner,
					const struct owner *other)
{
	if (!owner->device != !other->device)
		return owner->device;
	return owner->since > other->since;
}

/* A look through the sockets of a port: who can have sent a datagram. */
struct senders {
	struct port_key key;
	__u64 sk; /* of the last one that counts, or 0 */
	__u32 pid;
	__u32 tid;
	bool several; /* processes */
	bool crowded; /* there are others, which are not in the books */
};

/*
 * In a map, where the verifier does not follow what is in it through every
 * order of sockets. It is this CPU's, and a packet's filter runs with softirqs
 * off: see dev_queue_xmit().
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct senders);
} senders SEC(".maps");

static __always_inline struct senders *get_senders(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&senders, &zero);
}

static __always_inline struct owner *find_shared(struct port_key *key,
						 struct question *q)
{
	__u64 slots = slots_in(bucket_of(&key->local));
	struct owner *owner, *found = NULL;

	for (int i = 0; i < MAX_SHARED; i++) {
		if (!is_used(slots, i))
			continue;
		key->slot = i;
		owner = bpf_map_lookup_elem(&ports, key);
		if (!owner)
			continue;
		if (owner->crowded)
			q->doubtful = true;
		if (takes_part(owner, key->local.local_port, q) &&
		    (!found || goes_before(owner, found)))
			found = owner;
	}
	return found;
}

static __always_inline void set_port_key(struct port_key *key,
					 const struct tuple *t)
{
	key->local = *t;
	__builtin_memset(&key->local.remote, 0, sizeof(key->local.remote));
	key->local.remote_port = 0;
}

/* The exact address, then the wildcard, then that of a dual-stack socket. */
static __always_inline struct owner *find_port(const struct tuple *t,
					       struct question *q)
{
	struct senders *senders = get_senders();
	struct port_key *key;
	struct owner *owner;

	if (!senders)
		return NULL;
	key = &senders->key;
	set_port_key(key, t);
	owner = find_shared(key, q);
	if (owner)
		return owner;

	__builtin_memset(&key->local.local, 0, sizeof(key->local.local));
	owner = find_shared(key, q);
	if (owner || t->version == 6)
		return owner;

	key->local.version = 6;
	return find_shared(key, q);
}

static __always_inline void consider(struct senders *found, struct owner *owner,
				     const struct tuple *t)
{
	if (!owner || (owner->ipv6only && t->version == 4) ||
	    !is_sending(owner, t->local_port) || !has_page(owner))
		return;
	if (owner->crowded)
		found->crowded = true;
	if (found->sk &&
	    (found->pid != owner->proc.pid || found->tid != owner->proc.tid))
		found->several = true;
	found->sk = owner->sk;
	found->pid = owner->proc.pid;
	found->tid = owner->proc.tid;
}

static __always_inline void consider_port(struct senders *found,
					  struct port_key *key,
					  const struct tuple *t)
{
	__u64 slots = slots_in(bucket_of(&key->local));

	for (int i = 0; i < MAX_SHARED; i++) {
		if (!is_used(slots, i))
			continue;
		key->slot = i;
		consider(found, bpf_map_lookup_elem(&ports, key), t);
	}
}

/*
 * Several sockets can have one port, and a raw socket can send from any; which of
 * them has sent, their addresses do not tell. What does is that the datagram is
 * still charged to its socket, see skb_set_owner_w(): also when it has waited,
 * for a neighbour's address for example, until its socket was closed and another
 * process had the port.
 */
static __always_inline struct owner *find_sender(const struct tuple *t)
{
	struct senders *found = get_senders();
	struct port_key *key;
	struct owner *owner;

	if (!found)
		return NULL;
	key = &found->key;
	found->sk = 0;
	found->several = found->crowded = false;

	consider(found, bpf_map_lookup_elem(&connections, t), t);
	set_port_key(key, t);
	consider_port(found, key, t);
	__builtin_memset(&key->local.local, 0, sizeof(key->local.local));
	consider_port(found, key, t);
	if (t->version == 4) {
		key->local.version = 6; /* a dual-stack socket */
		consider_port(found, key, t);
	}
	if (!found->sk || found->several || found->crowded)
		return NULL;
	owner = booked_port(found->sk);
	return owner ? owner : booked_connection(found->sk);
}

/* What the books say of an attempt. */
enum verdict {
	UNBOOKED,
	BOOKED,
	GONE, /* it has just been forgotten */
};

/*
 * Of the processes that hold a UDP socket, who serves it, or who sends from it now:
 * the current one, if the packet leaves in its call.
 */
static __always_inline void find_holder(struct workspace *space, bool egress)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct search *search = &space->search;
	struct found *found = &space->report.found;

	if (egress && READ(task, tgid) != search->opener.process.pid &&
	    descriptor_of(task, 0, search->number, 1) >= 0) {
		set_server(space, task, find_family(task));
		return;
	}
	find_server(IN_PACKET);
	if (!found->task && !egress)
		__builtin_memset(found, 0, sizeof(*found));
}

/* Names an owner, if it is still the one that was found. */
static __always_inline enum verdict name_owner(struct workspace *space,
					       struct owner *owner,
					       const struct tuple *ends)
{
	struct report *report = &space->report;
	bool is_port = owner->holder.process.pid;

	set_found(&report->found, owner);
	report->found.has_ends = true;
	space->search.number = owner->number;
	space->search.opener = owner->holder;
	__builtin_memset(&space->search.server, 0, sizeof(struct holder));
	if (!is_still(owner, &report->found, ends))
		return GONE;
	if (is_port) {
		find_holder(space, report->attempt.egress);
		/* The next one is found there at once. */
		owner->holder.descriptor = space->search.opener.descriptor;
	}
	return BOOKED;
}

/* A SYN may meet a socket that connects: to itself, or at the same time. */
static __always_inline enum verdict find_received(struct __sk_buff *skb,
						  struct workspace *space)
{
	struct report *report = &space->report;
	const struct tuple *t = &report->ends;
	struct question q = {
		.skb = skb,
		.device = report->device,
		.version = t->version,
	};
	struct owner *owner = find_connection(t, &report->attempt);

	if (!owner && t->proto == IPPROTO_UDP)
		owner = find_port(t, &q);
	if (!owner || q.doubtful)
		return UNBOOKED;
	return name_owner(space, owner, t);
}

/*
 * What a raw socket has sent can look as if it were a datagram of another one
 * that sends as well: then it is not known which of them did.
 */
static __always_inline enum verdict find_sent(struct workspace *space)
{
	struct report *report = &space->report;
	bool udp = report->attempt.proto == IPPROTO_UDP;
	struct owner *owner =
		udp ? find_sender(&report->socket) : find_caller(report);
	struct owner *raw = NULL;

	if (udp || !owner)
		raw = find_raw_sender(report);
	if (raw &&
	    (raw->crowded || (owner && owner->proc.pid != raw->proc.pid)))
		return UNBOOKED;
	if (raw) {
		set_found(&report->found, raw);
		raw->closed = true;
		return BOOKED;
	}
	return owner ? name_owner(space, owner, &report->socket) : UNBOOKED;
}

/*
 * Fills in the owner of the attempt's socket, in what is all zero. Not static:
 * verified once.
 */
__noinline int find_owner(struct __sk_buff *skb)
{
	struct workspace *space = get_workspace(IN_PACKET);
	enum verdict verdict;

	if (!space)
		return 0;
	verdict = space->report.attempt.egress ? find_sent(space) :
						 find_received(skb, space);
	if (verdict == GONE)
		__builtin_memset(&space->report.found, 0,
				 sizeof(space->report.found));
	return 0;
}

#endif
