/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_OWNER_H
#define NETWORK_OWNER_H

/*
 * Who: the process that owns the socket of this namespace's side, by our own
 * books, and for sockets older than the gadget by IG's.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/sockets-map.h>
#include <gadget/types.h>

#include "books.h"
#include "device.h"
#include "packet.h"
#include "raw.h"
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
	bool doubtful; /* it may go to a socket of another interface */
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

static __always_inline struct owner *find_shared(struct port_key *key,
						 struct question *q)
{
	struct owner *owner, *found = NULL;

	for (int i = 0; i < MAX_SHARED; i++) {
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

/* The exact address, then the wildcard, then that of a dual-stack socket. */
static __always_inline struct owner *find_port(const struct tuple *t,
					       struct question *q)
{
	struct port_key key = { .local = *t };
	struct owner *owner;

	__builtin_memset(&key.local.remote, 0, sizeof(key.local.remote));
	key.local.remote_port = 0;
	owner = find_shared(&key, q);
	if (owner)
		return owner;

	__builtin_memset(&key.local.local, 0, sizeof(key.local.local));
	owner = find_shared(&key, q);
	if (owner || t->version == 6)
		return owner;

	key.local.version = 6;
	return find_shared(&key, q);
}

/* Who can have sent a datagram. */
struct senders {
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
	for (int i = 0; i < MAX_SHARED; i++) {
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
	struct port_key key = { .local = *t };
	struct senders *found;
	struct owner *owner;
	__u32 zero = 0;

	found = bpf_map_lookup_elem(&senders, &zero);
	if (!found)
		return NULL;
	found->sk = 0;
	found->several = found->crowded = false;

	consider(found, bpf_map_lookup_elem(&connections, t), t);
	__builtin_memset(&key.local.remote, 0, sizeof(key.local.remote));
	key.local.remote_port = 0;
	consider_port(found, &key, t);
	__builtin_memset(&key.local.local, 0, sizeof(key.local.local));
	consider_port(found, &key, t);
	if (t->version == 4) {
		key.local.version = 6; /* a dual-stack socket */
		consider_port(found, &key, t);
	}
	if (!found->sk || found->several || found->crowded)
		return NULL;
	owner = booked_port(found->sk);
	return owner ? owner : booked_connection(found->sk);
}

/*
 * True when the socket is the one that this packet was sent by or goes to.
 * IG knows one socket of a port: it is no answer when there may be others.
 */
static __always_inline bool fits(struct sock *sk, const struct tuple *t,
				 bool egress)
{
	bool listens =
		BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_LISTEN_STATE;
	struct tuple s = {};

	if (!read_socket(sk, t->proto, &s) || s.netns != t->netns ||
	    s.local_port != t->local_port ||
	    (t->proto == IPPROTO_UDP && egress && !has_unsent(sk)))
		return false;

	if (s.version == 6 && t->version == 4 &&
	    (!is_any(&s.local) || is_ipv6only(sk)))
		return false;
	if (s.version == 4 && t->version == 6)
		return false;
	if (!is_any(&s.local) && !is_same(&s.local, &t->local))
		return false;

	if (t->proto == IPPROTO_TCP && !egress)
		return listens && !shares_port(sk, t->proto);
	if (t->proto == IPPROTO_UDP && (egress || !s.remote_port))
		return !shares_port(sk, t->proto);
	return s.remote_port == t->remote_port &&
	       is_same(&s.remote, &t->remote);
}

/* A socket that is bound to an interface gets and sends there alone. */
static __always_inline bool fits_device(struct sock *sk, struct __sk_buff *skb,
					const struct report *report)
{
	__u32 bound = BPF_CORE_READ(sk, __sk_common.skc_bound_dev_if);

	return !bound || bound == report->device ||
	       (!report->attempt.egress && leads_to(skb, bound) == LEADS_THERE);
}

/* What IG says of a key, when the socket behind it fits the packet. */
static __always_inline struct gadget_socket_value *ask_ig(
	const struct gadget_socket_key *key, struct __sk_buff *skb,
	const struct report *report)
{
	struct gadget_socket_value *socket;
	__u64 sk;

	socket = bpf_map_lookup_elem(&gadget_sockets, key);
	if (!socket || socket->deletion_timestamp)
		return NULL;
	sk = socket->sock;
	/* About a socket that is in our books, they have spoken. */
	if (bpf_map_lookup_elem(&sockets, &sk) ||
	    !fits((void *)sk, &report->socket, report->attempt.egress) ||
	    !fits_device((void *)sk, skb, report))
		return NULL;
	return socket;
}

/*
 * IG's socket enricher knows sockets older than the gadget, but by their local
 * port alone: its answer counts when the socket behind it fits the packet.
 */
static __always_inline void find_older(struct __sk_buff *skb,
				       struct report *report)
{
	const struct tuple *t = &report->socket;
	struct found *found = &report->found;
	struct gadget_socket_key *key = &found->older;
	struct gadget_socket_value *socket;

	key->netns = t->netns;
	key->family = t->version == 4 ? AF_INET : AF_INET6;
	key->proto = t->proto;
	key->port = t->local_port;
	socket = ask_ig(key, skb, report);
	if (!socket && t->version == 4) {
		key->family = AF_INET6; /* a dual-stack socket */
		socket = ask_ig(key, skb, report);
	}
	found->known = found->is_older = found->has_ends = socket;
	gadget_process_populate_from_socket(socket, &found->proc);
	/* Of a thread that is not the first one, it has the name of that alone. */
	if (found->proc.pid == found->proc.tid)
		__builtin_memcpy(found->thread, found->proc.comm, THREAD_LEN);
	found->followed = is_followed_pid(found->proc.pid);
}

/* What the books say of an attempt. */
enum verdict {
	UNBOOKED,
	BOOKED,
	DOUBTFUL, /* somebody who is not in the books may be meant */
	GONE, /* it has just been forgotten */
};

static __always_inline enum verdict find_received(struct __sk_buff *skb,
						  struct report *report)
{
	const struct tuple *t = &report->ends;
	struct question q = {
		.skb = skb,
		.device = report->device,
		.version = t->version,
	};
	struct owner *owner = find_connection(t, &report->attempt);

	if (!owner)
		owner = find_port(t, &q);
	if (q.doubtful)
		return DOUBTFUL;
	if (!owner)
		return UNBOOKED;
	if (owner->doubtful)
		return DOUBTFUL;
	set_found(&report->found, owner);
	report->found.has_ends = true;
	return is_still(owner, &report->found, t) ? BOOKED : GONE;
}

/*
 * What a raw socket has sent can look as if it were a datagram of another one
 * that sends as well: then it is not known which of them did.
 */
static __always_inline enum verdict find_sent(struct report *report)
{
	bool udp = report->attempt.proto == IPPROTO_UDP;
	struct owner *owner =
		udp ? find_sender(&report->socket) : find_caller(report);
	struct owner *raw = NULL;

	if (udp || !owner)
		raw = find_raw_sender(report);
	if (raw &&
	    (raw->crowded || (owner && owner->proc.pid != raw->proc.pid)))
		return DOUBTFUL;
	if (!owner && !raw)
		return UNBOOKED;
	if (owner && owner->doubtful)
		return DOUBTFUL;
	set_found(&report->found, raw ?: owner);
	report->found.has_ends = !raw;
	if (!raw && !is_still(owner, &report->found, &report->socket))
		return GONE;
	if (raw)
		raw->closed = true;
	return BOOKED;
}

#ifdef WHO_BY_PORT
/*
 * For comparison alone (make who-by-port): IG's map as gadgets use it, by the
 * local port and nothing else.
 */
__noinline int find_owner(struct __sk_buff *skb)
{
	struct workspace *space = get_workspace(IN_PACKET);
	struct gadget_socket_value *socket;
	struct gadget_socket_key key;
	struct report *report;
	struct tuple *t;

	if (!space)
		return 0;
	report = &space->report;
	t = &report->ends;

	__builtin_memset(&key, 0, sizeof(key)); /* its padding too */
	key.netns = t->netns;
	key.family = t->version == 4 ? AF_INET : AF_INET6;
	key.proto = t->proto;
	key.port = t->local_port;
	socket = bpf_map_lookup_elem(&gadget_sockets, &key);
	if (!socket && t->version == 4) {
		key.family = AF_INET6;
		socket = bpf_map_lookup_elem(&gadget_sockets, &key);
		if (socket && socket->ipv6only)
			socket = NULL;
	}
	report->found.known = socket;
	gadget_process_populate_from_socket(socket, &report->found.proc);
	return 0;
}
#else
/*
 * Fills in the owner of the attempt's socket, in what is all zero. Not static:
 * verified once.
 */
__noinline int find_owner(struct __sk_buff *skb)
{
	struct workspace *space = get_workspace(IN_PACKET);
	struct report *report;
	enum verdict verdict;

	if (!space)
		return 0;
	report = &space->report;
	verdict = report->attempt.egress ? find_sent(report) :
					   find_received(skb, report);
	if (verdict == UNBOOKED)
		find_older(skb, report);
	else if (verdict == GONE)
		__builtin_memset(&report->found, 0, sizeof(report->found));
	return 0;
}
#endif

#endif
