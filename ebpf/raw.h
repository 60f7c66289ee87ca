/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_RAW_H
#define NETWORK_RAW_H

/*
 * Raw and packet sockets: their processes write the headers, and so can borrow
 * anybody's address and port. What they hand to the kernel is read in their own
 * call, and recognised by it when the packet leaves.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "books.h"
#include "once.h"
#include "packet.h"
#include "report.h"

#define RAW_HEAD 128 /* bytes that are read of a packet */
#define MAX_PIECES 16 /* that these can be in */
/* How long a packet can wait: until a neighbour is given up, and some more. */
#define RAW_WAITS_NS (10 * NSEC_PER_SEC)

/* What is left of a packet when its addresses are translated. */
struct raw_key {
	__u32 netns;
	__u32 number; /* as in struct packet_id */
	__u16 sport;
	__u16 dport;
	__u8 version;
	__u8 proto;
	__u8 pad[2];
};

/*
 * Who has just sent what; many more than can be on their way, as a map of this
 * kind makes room for 128 at once: see __bpf_lru_list_shrink(). Crowded: several
 * have sent the same. Closed: its packet was seen.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct raw_key);
	__type(value, struct owner);
} raw_senders SEC(".maps");

/* A packet as it is handed over. Two of RAW_HEAD, so that a mask bounds both. */
struct raw_buffer {
	__u8 bytes[2 * RAW_HEAD];
	__u32 len; /* that are known */
	struct owner owner;
};

/* This CPU's: hooks do not interrupt each other, see trace_call_bpf(). */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct raw_buffer);
} raw_buffers SEC(".maps");

/* Other versions of include/linux/uio.h. */
struct iov_iter___typed { /* until Linux 5.13, with the direction */
	unsigned int type;
} __attribute__((preserve_access_index));

struct iov_iter___plain { /* until Linux 6.3 */
	const struct iovec *iov;
} __attribute__((preserve_access_index));

static __always_inline __u32 iter_type_of(struct iov_iter *iter)
{
	struct iov_iter___typed *typed = (void *)iter;

	if (bpf_core_field_exists(typed->type))
		return BPF_CORE_READ(typed, type) & ~1U;
	return BPF_CORE_READ(iter, iter_type);
}

static __always_inline const struct iovec *pieces_of(struct iov_iter *iter)
{
	struct iov_iter___plain *plain = (void *)iter;

	if (bpf_core_field_exists(plain->iov))
		return BPF_CORE_READ(plain, iov);
	return BPF_CORE_READ(iter, __iov);
}

/* Reads a piece of the sender's memory behind what is there. */
static __always_inline void append(struct raw_buffer *b, const void *from,
				   __u64 len)
{
	__u32 at = b->len & (RAW_HEAD - 1);

	if (b->len >= RAW_HEAD || !len)
		return;
	if (len > RAW_HEAD - at)
		len = RAW_HEAD - at;
	/* One less, and one more: the verifier bounds it by the mask. */
	len = ((len - 1) & (RAW_HEAD - 1)) + 1;
	if (!bpf_probe_read_user(&b->bytes[at], len, from))
		b->len = at + len;
}

/* Reads how the message begins. What is not in its memory is not known. */
static __always_inline void read_head(struct raw_buffer *b, struct msghdr *msg)
{
	struct iov_iter *iter =
		(void *)msg + bpf_core_field_offset(struct msghdr, msg_iter);
	const struct iovec *pieces;
	struct iovec piece;
	__u32 type = iter_type_of(iter);

	b->len = 0;
	if (bpf_core_enum_value_exists(enum iter_type, ITER_UBUF) &&
	    type == bpf_core_enum_value(enum iter_type, ITER_UBUF)) {
		append(b, BPF_CORE_READ(iter, ubuf),
		       BPF_CORE_READ(iter, count));
		return;
	}
	if (type != bpf_core_enum_value(enum iter_type, ITER_IOVEC))
		return;
	pieces = pieces_of(iter);
	for (int i = 0; i < MAX_PIECES && i < BPF_CORE_READ(iter, nr_segs);
	     i++) {
		if (bpf_probe_read_kernel(&piece, sizeof(piece), &pieces[i]))
			return;
		append(b, piece.iov_base, piece.iov_len);
	}
}

/* Bytes of the packet, where there are as many; the offset is below RAW_HEAD. */
static __always_inline bool peek(const struct raw_buffer *b, __u32 off,
				 void *to, __u32 len)
{
	if (off + len > b->len)
		return false;
	__builtin_memcpy(to, &b->bytes[off & (RAW_HEAD - 1)], len);
	return true;
}

/* Whether the same packet is another one's, who sends it still. */
static __always_inline bool is_anothers(const struct owner *earlier,
					const struct owner *owner)
{
	return earlier && !earlier->closed &&
	       earlier->proc.pid != owner->proc.pid &&
	       !is_past(earlier->called, RAW_WAITS_NS, owner->called) &&
	       has_unsent((void *)earlier->sk);
}

/* Books the sender of what has this transport header. */
static __always_inline void book_raw_sender(struct raw_buffer *b, __u32 netns,
					    __u8 version, __u8 proto, __u32 off)
{
	struct raw_key key = { .netns = netns,
			       .version = version,
			       .proto = proto };
	struct udp_header udp;
	struct tcp_header tcp;

	if (proto == IPPROTO_TCP) {
		if (!peek(b, off, &tcp, sizeof(tcp)))
			return;
		key.sport = bpf_ntohs(tcp.source);
		key.dport = bpf_ntohs(tcp.dest);
		key.number = bpf_ntohl(tcp.seq);
	} else {
		if (!peek(b, off, &udp, sizeof(udp)))
			return;
		key.sport = bpf_ntohs(udp.source);
		key.dport = bpf_ntohs(udp.dest);
		peek(b, off + sizeof(udp), &key.number, sizeof(key.number));
	}
	b->owner.crowded =
		is_anothers(bpf_map_lookup_elem(&raw_senders, &key), &b->owner);
	bpf_map_update_elem(&raw_senders, &key, &b->owner, BPF_ANY);
}

static __always_inline bool is_transport(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP;
}

/* Books the sender of what has an IP header there, if it has. */
static __always_inline void book_ip_sender(struct raw_buffer *b, __u32 netns,
					   __u32 off)
{
	struct ipv4_start v4;
	struct ipv6_start v6;

	if (!peek(b, off, &v4, sizeof(v4)))
		return;
	if (v4.version_ihl >> 4 == 4 && (v4.version_ihl & 0xF) >= 5) {
		if (is_transport(v4.protocol))
			book_raw_sender(b, netns, 4, v4.protocol,
					off + (v4.version_ihl & 0xF) * 4);
		return;
	}
	if (v4.version_ihl >> 4 != 6 || !peek(b, off, &v6, sizeof(v6)))
		return;
	if (is_transport(v6.nexthdr))
		book_raw_sender(b, netns, 6, v6.nexthdr, off + IPV6_HLEN);
}

/* The current process sends a message from the socket. */
static __always_inline struct raw_buffer *begin_raw(struct sock *sk,
						    struct msghdr *msg)
{
	struct raw_buffer *b;
	__u32 zero = 0;

	b = bpf_map_lookup_elem(&raw_buffers, &zero);
	if (!b)
		return NULL;
	__builtin_memset(&b->owner, 0, sizeof(b->owner));
	if (!set_owner(&b->owner, sk, (void *)bpf_get_current_task()))
		return NULL;
	b->owner.called = bpf_ktime_get_boot_ns();
	book_paths(b->owner.sk, b->owner.since);
	read_head(b, msg);
	return b->len ? b : NULL;
}

/*
 * A raw socket's message begins with the transport header, or by an option with
 * the IP header: what it is not, no packet will be.
 */
static __always_inline void book_raw_message(struct sock *sk,
					     struct msghdr *msg, __u8 version)
{
	__u16 proto = BPF_CORE_READ(sk, __sk_common.skc_num);
	struct raw_buffer *b;
	__u32 netns;

	if (!is_transport(proto) && proto != IPPROTO_RAW)
		return;
	b = begin_raw(sk, msg);
	if (!b)
		return;
	netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	if (is_transport(proto))
		book_raw_sender(b, netns, version, proto, 0);
	book_ip_sender(b, netns, 0);
}

/* A packet socket's begins with the IP header, or with that of the link. */
static __always_inline void book_packet(struct sock *sk, struct msghdr *msg)
{
	struct raw_buffer *b = begin_raw(sk, msg);
	__u32 netns;

	if (!b)
		return;
	netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	book_ip_sender(b, netns, 0);
	book_ip_sender(b, netns, ETH_HLEN);
	book_ip_sender(b, netns, ETH_HLEN + VLAN_HLEN);
}

/* Who has sent a packet from a raw or a packet socket. */
static __always_inline struct owner *find_raw_sender(struct report *report)
{
	const struct attempt *a = &report->attempt;
	const struct tuple *t = &report->socket;
	struct raw_key key = {
		.netns = t->netns,
		.number = a->proto == IPPROTO_TCP ? a->seq : a->start,
		.sport = t->local_port,
		.dport = t->remote_port,
		.version = t->version,
		.proto = t->proto,
	};
	struct owner *owner = bpf_map_lookup_elem(&raw_senders, &key);

	if (!owner || owner->closed ||
	    is_past(owner->called, RAW_WAITS_NS, report->now))
		return NULL;
	return owner;
}

#endif
