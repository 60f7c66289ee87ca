/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_SOCKET_H
#define NETWORK_SOCKET_H

/*
 * Reads a socket: which namespace, addresses and ports it has.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <gadget/types.h>

#include "read.h"

/* include/linux/socket.h */
#define AF_INET 2
#define AF_INET6 10

/* include/net/tcp_states.h, under names that vmlinux.h has not */
#define TCP_ESTABLISHED_STATE 1
#define TCP_SYN_SENT_STATE 2
#define TCP_SYN_RECV_STATE 3
#define TCP_FIN_WAIT1_STATE 4
#define TCP_CLOSE_STATE 7
#define TCP_LISTEN_STATE 10

/*
 * A socket, or a packet as the socket of this side would see it. A key of
 * maps: no byte is left unset. Addresses are in network byte order, IPv4 in
 * the first four bytes; ports in host byte order; 0 is none.
 */
struct tuple {
	union gadget_ip_addr_t local;
	union gadget_ip_addr_t remote;
	__u32 netns;
	__u16 local_port;
	__u16 remote_port;
	__u8 version; /* 4 or 6; IPv4 over an IPv6 socket is 4 */
	__u8 proto;
	__u8 pad[6];
};

static __always_inline bool is_any(const union gadget_ip_addr_t *addr)
{
	const __u64 *half = (const void *)addr;

	return !half[0] && !half[1];
}

static __always_inline bool is_same(const union gadget_ip_addr_t *a,
				    const union gadget_ip_addr_t *b)
{
	const __u64 *x = (const void *)a, *y = (const void *)b;

	return x[0] == y[0] && x[1] == y[1];
}

/* see ipv6_addr_v4mapped() */
static __always_inline bool is_v4mapped(const union gadget_ip_addr_t *addr)
{
	const __u64 *half = (const void *)addr;
	const __u32 *word = (const void *)addr;

	return !half[0] && word[2] == bpf_htonl(0x0000FFFF);
}

/* The last port that a typed() socket had, also when it has just given it back. */
static __always_inline __u16 local_port(struct sock *sk)
{
	__u16 num = FIELD(sk, __sk_common.skc_num);

	if (num)
		return num;
	return bpf_ntohs(READ((struct inet_sock *)sk, inet_sport));
}

static __always_inline void read_ipv6_socket(struct sock *sk, struct tuple *t)
{
	BPF_CORE_READ_INTO(&t->local, sk, __sk_common.skc_v6_rcv_saddr);
	BPF_CORE_READ_INTO(&t->remote, sk, __sk_common.skc_v6_daddr);
	t->version = 6;
}

/* Of a typed() one. */
static __always_inline void read_ipv4_socket(struct sock *sk, struct tuple *t)
{
	__builtin_memset(&t->local, 0, sizeof(t->local));
	__builtin_memset(&t->remote, 0, sizeof(t->remote));
	t->local.v4 = FIELD(sk, __sk_common.skc_rcv_saddr);
	t->remote.v4 = FIELD(sk, __sk_common.skc_daddr);
	t->version = 4;
}

/*
 * UDP shares functions with UDP-Lite, raw and ping sockets. The socket that a
 * program has of MPTCP is one of TCP here: it has the addresses of the TCP
 * socket behind it, see mptcp_copy_inaddrs().
 */
static __always_inline bool is_socket_of(struct sock *sk, __u8 proto)
{
	struct sock *self = typed(sk);
	__u16 protocol = FIELD(self, sk_protocol);

	if (proto == IPPROTO_TCP)
		return (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP) &&
		       FIELD(self, sk_type) == SOCK_STREAM;
	return protocol == proto && FIELD(self, sk_type) == SOCK_DGRAM;
}

/* Of the SYN, in tcp_connect(): see tcp_connect_init(). */
static __always_inline __u32 initial_sequence(struct sock *sk)
{
	return READ((struct tcp_sock *)sk, write_seq);
}

/* Fills in a tuple that is all zero, also of a request for a connection. */
static __always_inline bool read_ends(struct sock *sk, __u8 proto,
				      struct tuple *t)
{
	struct sock *self = typed(sk);
	__u16 family = FIELD(self, __sk_common.skc_family);

	if (family == AF_INET6) {
		read_ipv6_socket(sk, t);
		if (is_v4mapped(&t->local) || is_v4mapped(&t->remote))
			read_ipv4_socket(self, t);
	} else if (family == AF_INET) {
		read_ipv4_socket(self, t);
	} else {
		return false;
	}

	t->netns = FIELD(self, __sk_common.skc_net.net, ns.inum);
	t->local_port = local_port(self);
	t->remote_port = bpf_ntohs(FIELD(self, __sk_common.skc_dport));
	t->proto = proto;
	return true;
}

/* The same; false for what is no socket of the protocol. */
static __always_inline bool read_socket(struct sock *sk, __u8 proto,
					struct tuple *t)
{
	return is_socket_of(sk, proto) && read_ends(sk, proto, t);
}

static __always_inline bool is_ipv6only(struct sock *sk)
{
	return BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_ipv6only);
}

/*
 * Whether something that the socket has sent has not left the stack. A socket
 * that is closed stays until it has: see sk_free(). What netem delays only holds
 * a reference, besides that of the file and that of the port: see
 * skb_orphan_partial().
 */
static __always_inline bool has_unsent(struct sock *sk)
{
	struct sock *self = typed(sk);

	return FIELD(self, sk_wmem_alloc.refs.counter) > 1 ||
	       FIELD(self, __sk_common.skc_refcnt.refs.counter) > 2;
}

/* Of those that take what comes to one port by turns (SO_REUSEPORT). */
static __always_inline bool is_of_group(struct sock *sk)
{
	return BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_reuseport);
}

/*
 * Whether others can have its port as well, of the same address or another
 * that overlaps: see udp_lib_lport_inuse() and inet_csk_bind_conflict(). A
 * listener shares by SO_REUSEPORT alone.
 */
static __always_inline bool shares_port(struct sock *sk, __u8 proto)
{
	return is_of_group(sk) ||
	       (proto == IPPROTO_UDP &&
		BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_reuse));
}

#endif
