/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_REFUSAL_H
#define NETWORK_REFUSAL_H

/*
 * Packets that refuse an attempt which has arrived, with --lifecycle: a RST or a
 * message of ICMP that this host sends, or a RST by which the other side takes its
 * attempt back. Seen on the wire, whoever has made them: the kernel, for a port that
 * nobody listens on, or a firewall.
 */

#include <vmlinux.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "arrivals.h"
#include "lives.h"
#include "once.h"
#include "outcome.h"
#include "packet.h"
#include "report.h"

static __always_inline bool is_icmp(__u8 proto)
{
	return proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6;
}

/* A message of ICMP that this host sends or, of more kinds, has got. */
static __always_inline bool ends_attempt(__u8 version, __u8 type, bool sent)
{
	if (type == (version == 4 ? ICMP_UNREACHABLE : ICMPV6_UNREACHABLE))
		return true;
	return !sent && type == (version == 4 ? ICMP_TIME_EXCEEDED_TYPE :
						ICMPV6_TIME_EXCEEDED_TYPE);
}

/* Reads who is refused what, as it came in; false for what refuses nothing. */
static __always_inline bool read_refused(const struct cursor *c,
					 struct ip_info *ip, struct attempt *a,
					 struct refusal *refusal)
{
	struct {
		__u8 type, code;
	} icmp;
	struct tcp_header tcp;
	struct cursor inner = *c;
	bool sent = a->egress;

	a->version = ip->version;
	a->proto = IPPROTO_TCP;
	if (!read_addresses(c, a))
		return false;
	if (ip->proto == IPPROTO_TCP) {
		if (!load(c, ip->l4, &tcp, sizeof(tcp)))
			return false;
		a->sport = bpf_ntohs(tcp.source);
		a->dport = bpf_ntohs(tcp.dest);
		/*
		 * What answers a SYN has no sequence number of its own, see
		 * tcp_v4_send_reset(): others end a connection.
		 */
		if (sent && tcp.seq)
			return false;
		a->seq = sent ? bpf_ntohl(tcp.ack_seq) - 1 :
				bpf_ntohl(tcp.seq) - 1;
		refusal->cause = CAUSE_RST;
		refusal->by = a->saddr;
		return true;
	}
	if (!is_icmp(ip->proto) || !load(c, ip->l4, &icmp, sizeof(icmp)))
		return false;
	refusal->cause = CAUSE_ICMP;
	refusal->icmp_type = icmp.type;
	refusal->icmp_code = icmp.code;
	refusal->by = a->saddr;
	if (!ends_attempt(ip->version, icmp.type, sent))
		return false;
	inner.l3 += ip->l4 + ICMP_HLEN;
	if (!read_addresses(&inner, a) ||
	    !load(&inner, ip->version == 4 ? IPV4_HLEN : IPV6_HLEN, &tcp, 8))
		return false;
	a->sport = bpf_ntohs(tcp.source);
	a->dport = bpf_ntohs(tcp.dest);
	a->seq = bpf_ntohl(tcp.seq);
	a->egress = false;
	return true;
}

static __always_inline bool is_of_same_ends(const struct tuple *a,
					    const struct tuple *b)
{
	return a->netns == b->netns && a->local_port == b->local_port &&
	       a->remote_port == b->remote_port &&
	       is_same(&a->local, &b->local) && is_same(&a->remote, &b->remote);
}

/*
 * What waits for the kernel's answer has got one, in the same softirq. A RST that
 * answers a SYN with data (fast open) acknowledges that as well.
 */
static __always_inline void refuse_arrival(struct arrival *key,
					   const struct refusal *refusal)
{
	struct report *report = bpf_map_lookup_elem(&arrivals, key);
	struct arrival *latest = get_latest_arrival();

	if (!report && latest && refusal->cause == CAUSE_RST &&
	    is_of_same_ends(&latest->ends, &key->ends))
		report = bpf_map_lookup_elem(&arrivals, latest);
	if (!report || report->refusal.cause)
		return;
	report->refusal = *refusal;
	report->refusal.time = bpf_ktime_get_boot_ns();
}

/* Who has called takes that back, before its connection is established. */
static __always_inline void take_back(struct __sk_buff *skb,
				      struct workspace *space,
				      const struct arrival *key)
{
	struct packet_id id = { .ends = key->ends, .number = key->number };
	struct sightings *known = bpf_map_lookup_elem(&attempts, &id);
	struct life *life = get_new_life(IN_PACKET), *now;
	struct life_key *ends = &space->life;

	if (!known || !life)
		return;
	ends->ends = known->socket;
	ends->egress = false;
	now = find_life(ends);
	if (!now || now->established ||
	    now->report.attempt.seq != key->number || !take_life(ends, life))
		return;
	begin_outcome(&space->report, life, failed, IN_PACKET);
	space->report.outcome.latency = space->report.now - life->begun;
	set_reset(&space->report);
	tell_outcome(skb, space);
}

/* Not static: verified once. */
__noinline int note_refusal(struct __sk_buff *skb)
{
	struct workspace *space = get_workspace(IN_PACKET);
	struct cursor c = { .skb = skb };
	struct refusal *refusal;
	struct attempt *a;
	struct ip_info ip;
	bool sent;

	if (!space)
		return 0;
	sent = skb->pkt_type == PACKET_OUTGOING;
	a = &space->report.attempt;
	refusal = &space->report.refusal;
	__builtin_memset(&space->report, 0, sizeof(space->report));
	a->egress = sent;
	if (!read_ip(&c, find_ip_header(&c), &ip) ||
	    !read_refused(&c, &ip, a, refusal))
		return 0;
	__builtin_memset(&space->arrival, 0, sizeof(space->arrival));
	set_ends(&space->arrival.ends, netns_of(skb), a);
	space->arrival.number = a->seq;
	if (sent)
		refuse_arrival(&space->arrival, refusal);
	else if (refusal->cause == CAUSE_ICMP)
		note_icmp_sender(a->seq, &refusal->by);
	else
		take_back(skb, space, &space->arrival);
	return 0;
}

#endif
