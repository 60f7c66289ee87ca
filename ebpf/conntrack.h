/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_CONNTRACK_H
#define NETWORK_CONNTRACK_H

/*
 * NAT: the ends of a sent packet as its socket has them. The packet's entry in
 * the connection tracking tells: it keeps both directions as they were before
 * anything was translated.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "read.h"
#include "report.h"
#include "socket.h"

/* include/linux/skbuff.h, enum ip_conntrack_info */
#define NFCT_INFOMASK 7UL
#define IP_CT_IS_REPLY 3

/* One direction of an entry: addresses in network byte order, ports in host's. */
struct tracked {
	union gadget_ip_addr_t saddr;
	union gadget_ip_addr_t daddr;
	__u16 sport;
	__u16 dport;
	__u8 proto;
};

static __always_inline void read_tracked(struct nf_conn *ct, int direction,
					 struct tracked *t)
{
	struct nf_conntrack_tuple_hash *hash =
		(void *)ct + bpf_core_field_offset(struct nf_conn, tuplehash) +
		direction * bpf_core_type_size(struct nf_conntrack_tuple_hash);

	BPF_CORE_READ_INTO(&t->saddr, hash, tuple.src.u3);
	BPF_CORE_READ_INTO(&t->daddr, hash, tuple.dst.u3);
	t->sport = bpf_ntohs(READ(hash, tuple.src.u.all));
	t->dport = bpf_ntohs(READ(hash, tuple.dst.u.all));
	t->proto = READ(hash, tuple.dst.protonum);
}

/* Whether what goes the other way is an answer to what has the given ends. */
static __always_inline bool answers(const struct tracked *reply,
				    const struct tuple *ends)
{
	return reply->proto == ends->proto &&
	       reply->sport == ends->remote_port &&
	       reply->dport == ends->local_port &&
	       is_same(&reply->saddr, &ends->remote) &&
	       is_same(&reply->daddr, &ends->local);
}

static __always_inline bool is_sent_as(const struct tracked *sent,
				       const struct tuple *ends)
{
	return sent->sport == ends->local_port &&
	       sent->dport == ends->remote_port &&
	       is_same(&sent->saddr, &ends->local) &&
	       is_same(&sent->daddr, &ends->remote);
}

/* How a packet came in, if conntrack knows it. */
static __always_inline bool read_original(struct sk_buff *skb,
					  struct tracked *came)
{
	unsigned long nfct;

	if (!bpf_core_field_exists(skb->_nfct) ||
	    !bpf_core_type_exists(struct nf_conn))
		return false;
	nfct = READ(skb, _nfct) & ~NFCT_INFOMASK;
	if (nfct)
		read_tracked((void *)nfct, 0, came);
	return nfct;
}

/*
 * Finds out whether a sent packet is on the wire as its socket has sent it, and
 * if not, how the socket has its ends. An entry that is another packet's (what a
 * tunnel carries) counts for nothing. Not static: verified once.
 */
__noinline int untranslate(struct __sk_buff *ctx)
{
	struct workspace *space = get_workspace(IN_PACKET);
	struct sk_buff *skb = (void *)ctx;
	struct tracked sent, reply;
	struct report *report;
	unsigned long nfct;
	struct nf_conn *ct;
	int direction;

	if (!space || !bpf_core_field_exists(skb->_nfct) ||
	    !bpf_core_type_exists(struct nf_conn))
		return 0;
	report = &space->report;
	nfct = READ(skb, _nfct);
	ct = (void *)(nfct & ~NFCT_INFOMASK);
	if (!ct)
		return 0;

	direction = (nfct & NFCT_INFOMASK) >= IP_CT_IS_REPLY;
	read_tracked(ct, !direction, &reply);
	read_tracked(ct, direction, &sent);
	if (!answers(&reply, &report->ends) || is_sent_as(&sent, &report->ends))
		return 0;
	report->translated = true;
	report->socket.local = sent.saddr;
	report->socket.remote = sent.daddr;
	report->socket.local_port = sent.sport;
	report->socket.remote_port = sent.dport;
	return 0;
}

#endif
