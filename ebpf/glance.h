/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_GLANCE_H
#define NETWORK_GLANCE_H

/*
 * Most packets are no attempts, and a glance at the usual headers shows it: without
 * options, extension headers and VLAN tags. All else is left to read_attempt().
 *
 * Since Linux 6.2 a program may read the packet's memory as what it says that it is,
 * by the CPU's own loads. Before, a call copies what the usual headers have, at once:
 * it costs as much as all the rest, see docs/performance.md.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "packet.h"
#include "params.h"
#include "read.h"
#include "version.h"

extern void *bpf_cast_to_kern_ctx(void *obj) __weak __ksym;

#define USUAL_IPV4 0x45 /* its first byte: the version, no options */

/* The start of a TCP header or, as far as it goes, of a datagram's. */
struct transport_start {
	__be16 source;
	__be16 dest;
	__u8 rest[9];
	__u8 flags; /* of TCP */
} __attribute__((packed));

struct usual_ipv4 {
	struct ipv4_start ip;
	__u8 rest[IPV4_HLEN - sizeof(struct ipv4_start)];
	struct transport_start l4;
} __attribute__((packed));

struct usual_ipv6 {
	struct ipv6_start ip;
	__u8 rest[IPV6_HLEN - sizeof(struct ipv6_start)];
	struct transport_start l4;
} __attribute__((packed));

/* What the usual headers say, as they are on the wire. */
struct glance {
	__u8 version_ihl; /* of IPv4 */
	__u8 proto;
	__be16 frag_off; /* of IPv4 */
	__be16 dport;
	__u8 flags; /* of TCP */
};

/* A packet's memory: bytes from its start. */
struct memory {
	unsigned char *start;
	__u32 l3;
	__u32 end; /* of what is not in pages */
};

static __always_inline void find_memory(struct __sk_buff *ctx, struct memory *m)
{
	struct sk_buff *skb = bpf_cast_to_kern_ctx(ctx);

	m->start = skb->head;
	m->l3 = skb->network_header;
	m->end = skb->tail;
}

/* The verifier wants a type of the kernel's that has the fields that are read. */
#define header_at(memory, off, type)                                    \
	((const void *)bpf_rdonly_cast((void *)((memory)->start + off), \
				       bpf_core_type_id_kernel(type)))

static __always_inline bool read_transport_start(const struct memory *m,
						 __u32 l4, struct glance *g)
{
	const struct transport_start *h;

	if (g->proto == IPPROTO_TCP) {
		if (l4 + sizeof(*h) > m->end)
			return false;
		h = header_at(m, l4, struct tcphdr);
		g->flags = h->flags;
	} else if (g->proto == IPPROTO_UDP) {
		if (l4 + sizeof(struct udp_header) > m->end)
			return false;
		h = header_at(m, l4, struct udphdr);
		g->dport = h->dest;
	}
	return true;
}

static __always_inline bool glance_at_ipv4(struct __sk_buff *skb,
					   struct glance *g)
{
	const struct ipv4_start *ip;
	struct memory m;

	find_memory(skb, &m);
	if (m.l3 + IPV4_HLEN > m.end)
		return false;
	ip = header_at(&m, m.l3, struct iphdr);
	g->version_ihl = ip->version_ihl;
	g->frag_off = ip->frag_off;
	g->proto = ip->protocol;
	return read_transport_start(&m, m.l3 + IPV4_HLEN, g);
}

static __always_inline bool glance_at_ipv6(struct __sk_buff *skb,
					   struct glance *g)
{
	const struct ipv6_start *ip;
	struct memory m;

	find_memory(skb, &m);
	if (m.l3 + IPV6_HLEN > m.end)
		return false;
	ip = header_at(&m, m.l3, struct ipv6hdr);
	g->proto = ip->nexthdr;
	return read_transport_start(&m, m.l3 + IPV6_HLEN, g);
}

/* Whether what a datagram or a segment says may make it one that counts. */
static __always_inline bool may_count(const struct glance *g)
{
	switch (g->proto) {
	case IPPROTO_TCP:
		return wants_tcp() &&
		       ((g->flags & (TCPHDR_SYN | TCPHDR_ACK)) == TCPHDR_SYN ||
			(wants_outcome() && (g->flags & TCPHDR_RST)));
	case IPPROTO_UDP:
		return wants_udp() && reads_datagram(bpf_ntohs(g->dport));
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return wants_outcome();
	case NEXTHDR_HOP:
	case NEXTHDR_ROUTING:
	case NEXTHDR_FRAGMENT:
	case NEXTHDR_AUTH:
	case NEXTHDR_DEST:
		return true;
	default:
		return false;
	}
}

static __always_inline bool copy_ipv4(struct __sk_buff *skb, struct glance *g)
{
	struct usual_ipv4 h;

	if (bpf_skb_load_bytes_relative(skb, 0, &h, sizeof(h),
					BPF_HDR_START_NET))
		return false;
	g->version_ihl = h.ip.version_ihl;
	g->frag_off = h.ip.frag_off;
	g->proto = h.ip.protocol;
	g->dport = h.l4.dest;
	g->flags = h.l4.flags;
	return true;
}

static __always_inline bool copy_ipv6(struct __sk_buff *skb, struct glance *g)
{
	struct usual_ipv6 h;

	if (bpf_skb_load_bytes_relative(skb, 0, &h, sizeof(h),
					BPF_HDR_START_NET))
		return false;
	g->proto = h.ip.nexthdr;
	g->dport = h.l4.dest;
	g->flags = h.l4.flags;
	return true;
}

static __always_inline bool is_ipv4_worth(const struct glance *g)
{
	return g->version_ihl != USUAL_IPV4 ||
	       (!(g->frag_off & bpf_htons(IP_OFFSET)) && may_count(g));
}

/* Not static: what is copied would be on the stack of all that is called later. */
__noinline int is_copy_worth_a_look(struct __sk_buff *skb)
{
	struct glance g = {};

	if (skb->protocol == bpf_htons(ETH_P_IP))
		return !copy_ipv4(skb, &g) || is_ipv4_worth(&g);
	return !copy_ipv6(skb, &g) || may_count(&g);
}

/* False: it is no attempt for sure, and refuses none. */
static __always_inline bool is_worth_a_look(struct __sk_buff *skb)
{
	struct glance g = {};

	if (!is_own_traffic(skb))
		return false;
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		if (!can_cast())
			return is_copy_worth_a_look(skb);
		return !glance_at_ipv4(skb, &g) || is_ipv4_worth(&g);
	case bpf_htons(ETH_P_IPV6):
		if (!can_cast())
			return is_copy_worth_a_look(skb);
		return !glance_at_ipv6(skb, &g) || may_count(&g);
	default:
		return is_vlan(skb->protocol);
	}
}

#endif
