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
#include "packet.h"
#include "socket.h"

#define TCP_LISTEN_STATE 10 /* TCP_LISTEN in include/net/tcp_states.h */

/* Whose socket a packet is of. */
struct found {
	struct gadget_process proc; /* all zero: nobody is known */
	__u64 sk; /* of a socket in the books, as in struct owner */
	__u64 since;
	struct gadget_socket_key older; /* IG's, of a socket that it knows */
	bool known;
	bool is_older;
};

static __always_inline void set_found(struct found *found,
				      const struct owner *owner)
{
	found->proc = owner->proc;
	found->sk = owner->sk;
	found->since = owner->since;
	found->known = true;
}

/* The packet as the socket of this side would see it. */
static __always_inline void to_tuple(__u32 netns, const struct attempt *a,
				     struct tuple *t)
{
	t->local = a->egress ? a->saddr : a->daddr;
	t->remote = a->egress ? a->daddr : a->saddr;
	t->netns = netns;
	t->local_port = a->egress ? a->sport : a->dport;
	t->remote_port = a->egress ? a->dport : a->sport;
	t->version = a->version;
	t->proto = a->proto;
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
	if (a->egress && owner->isn != a->seq)
		return NULL;
	return owner;
}

/* What is asked about the sockets on a port. */
struct question {
	__u32 device; /* the packet's interface */
	__u8 version; /* the packet's */
};

/*
 * Whether a socket on the right port takes part, as compute_score() in
 * net/ipv4/udp.c and net/ipv4/inet_hashtables.c have it: what is bound to
 * another interface, or connected to another peer, receives nothing.
 */
static __always_inline bool takes_part(const struct owner *owner,
				       const struct question *q)
{
	if (owner->closed || owner->connected ||
	    (owner->ipv6only && q->version == 4) ||
	    (owner->device && owner->device != q->device))
		return false;
	return has_page(owner);
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
						 const struct question *q)
{
	struct owner *owner, *found = NULL;

	for (int i = 0; i < MAX_SHARED; i++) {
		key->slot = i;
		owner = bpf_map_lookup_elem(&ports, key);
		if (owner && takes_part(owner, q) &&
		    (!found || goes_before(owner, found)))
			found = owner;
	}
	return found;
}

/* The exact address, then the wildcard, then that of a dual-stack socket. */
static __always_inline struct owner *find_port(const struct tuple *t,
					       const struct question *q)
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
	bool sending; /* it has something on its way: who has not, did not */
	bool several; /* processes */
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
				     __u8 version)
{
	bool sending;

	if (!owner || (owner->ipv6only && version == 4))
		return;
	sending = is_sending(owner);
	if (!has_page(owner))
		return;
	if (!sending && (owner->closed || found->sending))
		return;

	if (sending && !found->sending)
		found->several = false;
	else if (found->sk && (found->pid != owner->proc.pid ||
			       found->tid != owner->proc.tid))
		found->several = true;
	found->sk = owner->sk;
	found->pid = owner->proc.pid;
	found->tid = owner->proc.tid;
	found->sending = sending;
}

static __always_inline void consider_port(struct senders *found,
					  struct port_key *key, __u8 version)
{
	for (int i = 0; i < MAX_SHARED; i++) {
		key->slot = i;
		consider(found, bpf_map_lookup_elem(&ports, key), version);
	}
}

/*
 * Several sockets can have one port, each for datagrams that arrive for it;
 * but which of them sends, their addresses do not tell. What does is that the
 * datagram is still charged to its socket, see skb_set_owner_w(): also when it
 * has waited, for a neighbour's address for example, until its socket was
 * closed and another process had the port.
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
	found->sending = found->several = false;

	consider(found, bpf_map_lookup_elem(&connections, t), t->version);
	__builtin_memset(&key.local.remote, 0, sizeof(key.local.remote));
	key.local.remote_port = 0;
	consider_port(found, &key, t->version);
	__builtin_memset(&key.local.local, 0, sizeof(key.local.local));
	consider_port(found, &key, t->version);
	if (t->version == 4) {
		key.local.version = 6; /* a dual-stack socket */
		consider_port(found, &key, t->version);
	}
	if (!found->sk || found->several)
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
	    s.local_port != t->local_port)
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

/* What IG says of a key, when the socket behind it fits the packet. */
static __always_inline struct gadget_socket_value *ask_ig(
	const struct gadget_socket_key *key, const struct tuple *t, bool egress)
{
	struct gadget_socket_value *socket;
	__u64 sk;

	socket = bpf_map_lookup_elem(&gadget_sockets, key);
	if (!socket || socket->deletion_timestamp)
		return NULL;
	sk = socket->sock;
	/* About a socket that is in our books, they have spoken. */
	if (bpf_map_lookup_elem(&sockets, &sk) || !fits((void *)sk, t, egress))
		return NULL;
	return socket;
}

/*
 * IG's socket enricher knows sockets older than the gadget, but by their local
 * port alone: its answer counts when the socket behind it fits the packet.
 */
static __always_inline void find_older(const struct tuple *t, bool egress,
				       struct found *found)
{
	struct gadget_socket_key *key = &found->older;
	struct gadget_socket_value *socket;

	key->netns = t->netns;
	key->family = t->version == 4 ? AF_INET : AF_INET6;
	key->proto = t->proto;
	key->port = t->local_port;
	socket = ask_ig(key, t, egress);
	if (!socket && t->version == 4) {
		key->family = AF_INET6; /* a dual-stack socket */
		socket = ask_ig(key, t, egress);
	}
	found->known = found->is_older = socket;
	gadget_process_populate_from_socket(socket, &found->proc);
}

/* What the books say of an attempt. */
enum verdict {
	UNBOOKED,
	BOOKED,
	DOUBTFUL, /* somebody who is not in the books may be meant */
};

static __always_inline enum verdict find_booked(const struct tuple *t,
						const struct attempt *a,
						__u32 device,
						struct found *found)
{
	struct question q = { .device = device, .version = t->version };
	struct owner *owner;

	if (t->proto == IPPROTO_UDP && a->egress) {
		owner = find_sender(t);
	} else {
		owner = find_connection(t, a);
		if (!owner && !a->egress)
			owner = find_port(t, &q);
	}
	if (!owner)
		return UNBOOKED;
	if (owner->doubtful)
		return DOUBTFUL;
	set_found(found, owner);
	return BOOKED;
}

/*
 * Fills in the owner of the attempt's socket, in what is all zero. A function
 * with a stack of its own.
 */
static __noinline int find_owner(struct __sk_buff *skb, const struct attempt *a,
				 struct found *found)
{
	struct tuple t = {};

	to_tuple(netns_of(skb), a, &t);
	if (find_booked(&t, a, skb->ifindex, found) != UNBOOKED)
		return 0;
	find_older(&t, a->egress, found);
	return 0;
}

#endif
