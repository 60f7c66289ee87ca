/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_PACKET_H
#define NETWORK_PACKET_H

/*
 * Reads a packet: is it an attempt, and who talks to whom.
 *
 * Bytes are counted from the network or the link header, never from
 * skb->data: a socket filter finds the link header there on devices that have
 * one, and the network header on those that do not (tun, WireGuard, ipip).
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "params.h"
#include "read.h"

/* include/uapi/linux/if_packet.h, if_arp.h, if_ether.h */
#define PACKET_HOST 0
#define PACKET_OUTGOING 4
#define ARPHRD_ETHER 1
#define ARPHRD_LOOPBACK 772 /* has an Ethernet header as well */
#define ETH_HLEN 14
#define ETH_P_IP 0x0800
#define ETH_P_8021Q 0x8100
#define ETH_P_IPV6 0x86DD
#define ETH_P_8021AD 0x88A8

/* include/uapi/linux/in6.h, icmp.h, icmpv6.h */
#define IPPROTO_ICMPV6 58
#define ICMP_UNREACHABLE 3
#define ICMPV6_UNREACHABLE 1
#define ICMP_HLEN 8

/* include/linux/if_vlan.h */
#define VLAN_HLEN 4
#define VLAN_MAX_DEPTH 8

/* include/net/ip.h, include/net/ipv6.h, include/net/tcp.h */
#define IP_OFFSET 0x1FFF
#define IP_MF 0x2000
#define IP6_OFFSET 0xFFF8
#define IP6_MF 0x0001
#define NEXTHDR_HOP 0
#define NEXTHDR_ROUTING 43
#define NEXTHDR_FRAGMENT 44
#define NEXTHDR_AUTH 51
#define NEXTHDR_DEST 60
#define TCPHDR_SYN 0x02
#define TCPHDR_RST 0x04
#define TCPHDR_ACK 0x10

#define MAX_EXTENSION_HEADERS 6

/*
 * The headers as they are on the wire, up to the last field that is read.
 * vmlinux.h has them too, but as types of the kernel, whose layout would be
 * relocated.
 */
struct ipv4_start {
	__u8 version_ihl;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
};
#define IPV4_HLEN 20
#define IPV4_SADDR 12

struct ipv6_start {
	__be32 version_class_flow;
	__be16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
};
#define IPV6_HLEN 40
#define IPV6_SADDR 8

struct extension_start {
	__u8 nexthdr;
	__u8 hdrlen; /* in units of the header's own, see extension_len() */
	__be16 frag_off; /* of a fragment header */
};

struct tcp_header {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack_seq;
	__u8 doff_reserved;
	__u8 flags;
	__be16 window;
	__sum16 check;
	__be16 urg_ptr;
};

struct udp_header {
	__be16 source;
	__be16 dest;
	__be16 len;
	__sum16 check;
};

/* Where the IP header is. */
struct cursor {
	struct __sk_buff *skb;
	__u32 base; /* BPF_HDR_START_MAC or BPF_HDR_START_NET */
	__u32 l3; /* bytes from there to the IP header */
};

/* What the IP header and its extensions say; lengths in bytes. */
struct ip_info {
	__u32 l4; /* from the IP header to the transport header */
	__u32 len; /* from the IP header to the end of the packet */
	__u8 version;
	__u8 proto;
	bool fragmented;
};

/* Addresses are in network byte order, ports in host byte order. */
struct attempt {
	union gadget_ip_addr_t saddr;
	union gadget_ip_addr_t daddr;
	__u16 sport;
	__u16 dport;
	__u32 seq; /* of a SYN, host byte order: the initiator's first */
	__u32 start; /* of a datagram: its first bytes, as they are, or 0 */
	__u8 version; /* 4 or 6 */
	__u8 proto; /* IPPROTO_TCP or IPPROTO_UDP */
	bool egress;
	bool refuses; /* no attempt: it may refuse one, see refusal.h */
};

/*
 * Functions that are not static are verified once, for any arguments: called
 * in loops and on many paths, they keep the verifier's work small.
 */

/* Bytes from skb->data to the link or the network header; may be negative. */
__noinline int header_offset(struct __sk_buff *ctx, __u32 base)
{
	struct sk_buff *skb = (void *)ctx;
	__u16 header = base == BPF_HDR_START_MAC ? READ(skb, mac_header) :
						   READ(skb, network_header);

	return header - (BPF_CORE_READ(skb, data) - BPF_CORE_READ(skb, head));
}

/*
 * Reads len bytes, off bytes behind base; false when they are not there.
 * bpf_skb_load_bytes_relative() sees the linear part of a packet only; the
 * other sees all of it, but counts from skb->data.
 */
static __always_inline bool load_from(struct __sk_buff *skb, __u32 base,
				      __u32 off, void *to, __u32 len)
{
	return !bpf_skb_load_bytes_relative(skb, off, to, len, base) ||
	       !bpf_skb_load_bytes(skb, header_offset(skb, base) + off, to,
				   len);
}

/* The same, off bytes behind the start of the IP header. */
static __always_inline bool load(const struct cursor *c, __u32 off, void *to,
				 __u32 len)
{
	return load_from(c->skb, c->base, c->l3 + off, to, len);
}

static __always_inline bool is_vlan(__be16 protocol)
{
	return protocol == bpf_htons(ETH_P_8021Q) ||
	       protocol == bpf_htons(ETH_P_8021AD);
}

/*
 * Walks the VLAN tags in the frame. Returns the Ethernet protocol number
 * behind them (network byte order) in the low 16 bits, and above those the
 * bytes from the link header to what it names; 0 when the frame is too short.
 */
__noinline int skip_vlan_tags(struct __sk_buff *skb)
{
	__be16 protocol;
	int l3 = ETH_HLEN;

	for (int i = 0; i < VLAN_MAX_DEPTH; i++) {
		l3 += VLAN_HLEN;
		if (!load_from(skb, BPF_HDR_START_MAC, l3 - sizeof(protocol),
			       &protocol, sizeof(protocol)))
			return 0;
		if (!is_vlan(protocol))
			return l3 << 16 | protocol;
	}
	return 0;
}

/*
 * Finds the IP header and returns its Ethernet protocol number, or 0. With
 * VLAN tags in the frame, the network header stands at the first tag when the
 * packet was received and behind the last when it is sent, so the tags are
 * walked from the link header.
 */
static __always_inline __be16 find_ip_header(struct cursor *c)
{
	int found;

	if (!is_vlan(c->skb->protocol)) {
		c->base = BPF_HDR_START_NET;
		c->l3 = 0;
		return c->skb->protocol;
	}
	found = skip_vlan_tags(c->skb);
	c->base = BPF_HDR_START_MAC;
	c->l3 = found >> 16;
	return found;
}

static __always_inline bool read_ipv4(const struct cursor *c,
				      struct ip_info *ip)
{
	struct ipv4_start h;

	if (!load(c, 0, &h, sizeof(h)))
		return false;

	ip->version = h.version_ihl >> 4;
	ip->l4 = (h.version_ihl & 0xF) * 4;
	ip->len = bpf_ntohs(h.tot_len);
	ip->proto = h.protocol;
	ip->fragmented = h.frag_off & bpf_htons(IP_MF);
	return ip->version == 4 && ip->l4 >= IPV4_HLEN &&
	       !(h.frag_off & bpf_htons(IP_OFFSET));
}

/* see ipv6_skip_exthdr(); 0 for what is no extension header */
static __always_inline __u32 extension_len(__u8 proto, __u8 hdrlen)
{
	switch (proto) {
	case NEXTHDR_HOP:
	case NEXTHDR_ROUTING:
	case NEXTHDR_DEST:
		return (hdrlen + 1) * 8; /* see ipv6_optlen() */
	case NEXTHDR_AUTH:
		return (hdrlen + 2) * 4; /* see ipv6_authlen() */
	case NEXTHDR_FRAGMENT:
		return 8;
	default:
		return 0;
	}
}

/* What read_extension() tells of an extension header. */
#define EXTENSION_NEXTHDR 0xFF
#define EXTENSION_FRAGMENTED 0x100 /* more fragments follow */
#define EXTENSION_LEN_SHIFT 16 /* bytes */

/*
 * Reads the IPv6 extension header of the given kind. Returns 0 when the kind
 * is none, negative when the header is not there or the packet is a fragment
 * but the first, which has no ports.
 */
__noinline int read_extension(struct __sk_buff *skb, __u32 base, __u32 off,
			      __u32 kind)
{
	struct extension_start ext;
	int result;

	if (!extension_len(kind, 0))
		return 0;
	if (!load_from(skb, base, off, &ext, sizeof(ext)))
		return -1;

	result = extension_len(kind, ext.hdrlen) << EXTENSION_LEN_SHIFT |
		 ext.nexthdr;
	if (kind != NEXTHDR_FRAGMENT)
		return result;
	if (ext.frag_off & bpf_htons(IP6_OFFSET))
		return -1;
	if (ext.frag_off & bpf_htons(IP6_MF))
		result |= EXTENSION_FRAGMENTED;
	return result;
}

static __always_inline bool read_ipv6(const struct cursor *c,
				      struct ip_info *ip)
{
	struct ipv6_start h;
	int ext;

	if (!load(c, 0, &h, sizeof(h)))
		return false;

	ip->version = bpf_ntohl(h.version_class_flow) >> 28;
	ip->l4 = IPV6_HLEN;
	ip->len = IPV6_HLEN + bpf_ntohs(h.payload_len);
	ip->proto = h.nexthdr;
	ip->fragmented = false;

	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		ext = read_extension(c->skb, c->base, c->l3 + ip->l4,
				     ip->proto);
		if (ext < 0)
			return false;
		if (!ext)
			break;
		ip->l4 += ext >> EXTENSION_LEN_SHIFT;
		ip->proto = ext & EXTENSION_NEXTHDR;
		ip->fragmented |= !!(ext & EXTENSION_FRAGMENTED);
	}
	return ip->version == 6;
}

/* A segment with SYN and without ACK, see tcp_v4_rcv() for its lengths. */
static __always_inline bool read_tcp(const struct cursor *c,
				     const struct ip_info *ip,
				     struct attempt *a)
{
	struct tcp_header h;
	__u32 doff;

	if (!wants_tcp() ||
	    !(wants_outcome() || is_of_use(c->skb, a->egress)) ||
	    !load(c, ip->l4, &h, sizeof(h)))
		return false;
	if ((h.flags & (TCPHDR_SYN | TCPHDR_ACK)) != TCPHDR_SYN) {
		a->refuses = wants_outcome() && (h.flags & TCPHDR_RST);
		return false;
	}
	if (!is_of_use(c->skb, a->egress))
		return false;

	doff = (h.doff_reserved >> 4) * 4;
	a->sport = bpf_ntohs(h.source);
	a->dport = bpf_ntohs(h.dest);
	a->seq = bpf_ntohl(h.seq);
	return doff >= sizeof(h) && ip->l4 + sizeof(h) <= ip->len &&
	       (ip->fragmented || ip->l4 + doff <= ip->len);
}

/* A datagram that may begin something, see __udp4_lib_rcv() for its lengths. */
static __always_inline bool read_udp(const struct cursor *c,
				     const struct ip_info *ip,
				     struct attempt *a)
{
	struct udp_header h;
	__u32 len;

	if (!wants_udp() || !load(c, ip->l4, &h, sizeof(h)) ||
	    !reads_datagram(bpf_ntohs(h.dest)))
		return false;

	load(c, ip->l4 + sizeof(h), &a->start, sizeof(a->start));
	len = bpf_ntohs(h.len);
	if (!len && ip->version == 6)
		len = ip->len - ip->l4; /* a jumbogram, RFC 2675 section 4 */
	a->sport = bpf_ntohs(h.source);
	a->dport = bpf_ntohs(h.dest);
	return len >= sizeof(h) && ip->l4 + sizeof(h) <= ip->len &&
	       (ip->fragmented || ip->l4 + len <= ip->len);
}

static __always_inline bool read_addresses(const struct cursor *c,
					   struct attempt *a)
{
	__be32 v4[2];
	struct {
		union gadget_ip_addr_t saddr, daddr;
	} v6;

	if (a->version == 4) {
		if (!load(c, IPV4_SADDR, v4, sizeof(v4)))
			return false;
		a->saddr.v4 = v4[0];
		a->daddr.v4 = v4[1];
		return true;
	}
	if (!load(c, IPV6_SADDR, &v6, sizeof(v6)))
		return false;
	a->saddr = v6.saddr;
	a->daddr = v6.daddr;
	return true;
}

/* The packet is as long as its IP header says: nobody takes a shorter one. */
static __always_inline bool is_whole(const struct cursor *c, __u32 len)
{
	__u8 last;

	return load(c, len - 1, &last, sizeof(last));
}

static __always_inline bool is_group_address(const struct attempt *a)
{
	if (a->version == 6)
		return a->daddr.v6[0] == 0xFF;
	/* see ipv4_is_multicast(), ipv4_is_lbcast() */
	return (a->daddr.v4 & bpf_htonl(0xF0000000)) == bpf_htonl(0xE0000000) ||
	       a->daddr.v4 == 0xFFFFFFFF;
}

/*
 * The pkt_type of a sent packet does not tell to whom it goes; the link
 * address does, also for a subnet's own broadcast address.
 */
static __always_inline bool is_group_frame(struct __sk_buff *ctx)
{
	struct sk_buff *skb = (void *)ctx;
	__u16 type = READ(skb, dev, type);
	__u8 mac;

	return (type == ARPHRD_ETHER || type == ARPHRD_LOOPBACK) &&
	       load_from(ctx, BPF_HDR_START_MAC, 0, &mac, sizeof(mac)) &&
	       (mac & 1); /* see is_multicast_ether_addr() */
}

/*
 * The network namespace: IG's dispatcher leaves it there. netgadget attaches the
 * program without one.
 */
static __always_inline __u32 netns_of(const struct __sk_buff *ctx)
{
	struct sk_buff *skb = (void *)ctx;

	return ctx->cb[0] ?: READ(skb, dev, nd_net.net, ns.inum);
}

/* Sent or received by this namespace; not everyone's, nor another host's. */
static __always_inline bool is_own_traffic(const struct __sk_buff *skb)
{
	return skb->pkt_type == PACKET_HOST || skb->pkt_type == PACKET_OUTGOING;
}

static __always_inline bool read_ip(const struct cursor *c, __be16 protocol,
				    struct ip_info *ip)
{
	switch (protocol) {
	case bpf_htons(ETH_P_IP):
		return read_ipv4(c, ip);
	case bpf_htons(ETH_P_IPV6):
		return read_ipv6(c, ip);
	default:
		return false;
	}
}

static __always_inline bool read_transport(const struct cursor *c,
					   const struct ip_info *ip,
					   struct attempt *a)
{
	switch (ip->proto) {
	case IPPROTO_TCP:
		return read_tcp(c, ip, a);
	case IPPROTO_UDP:
		return read_udp(c, ip, a);
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		a->refuses = wants_outcome();
		return false;
	default:
		return false;
	}
}

/*
 * Reads the attempt that the packet is; false when it is none, or one that
 * the parameters leave out. What decides most and costs least comes first.
 */
static __always_inline bool read_attempt(struct __sk_buff *skb,
					 struct attempt *a)
{
	struct cursor c = { .skb = skb };
	struct ip_info ip;

	a->egress = skb->pkt_type == PACKET_OUTGOING;
	if (!is_own_traffic(skb) ||
	    !(wants_udp() || wants_outcome() || is_of_use(skb, a->egress)))
		return false;

	if (!read_ip(&c, find_ip_header(&c), &ip) ||
	    !read_transport(&c, &ip, a))
		return false;

	a->version = ip.version;
	a->proto = ip.proto;
	return read_addresses(&c, a) && is_whole(&c, ip.len) &&
	       !is_group_address(a) && !(a->egress && is_group_frame(skb));
}

#endif
