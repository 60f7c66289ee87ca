/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_ROUTE_H
#define NETWORK_ROUTE_H

/*
 * Is a received packet for this namespace, or on its way through it? No route
 * is known yet where the socket filter sees it, so the kernel's table of local
 * routes is asked, as the kernel will.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "packet.h"
#include "params.h"
#include "read.h"
#include "report.h"
#include "socket.h"

/* include/uapi/linux/rtnetlink.h, include/net/ip_fib.h */
#define RT_TABLE_LOCAL 255
#define RTN_LOCAL 2
#define RTN_ANYCAST 4
#define RTN_RTINFO 4 /* include/net/ip6_fib.h: the node has routes */
#define MAX_SAME_KEY 8 /* tables of one hash, routes of one address */
#define MAX_TRIE_STEPS 128
#define MAX_TREE_DEPTH 128

#define IPV4_FORWARDING 0 /* IPV4_DEVCONF_FORWARDING, counted from 0 */

/* see IN_DEV_FORWARD(): it is the device's, or all devices' */
static __always_inline bool forwards_ipv4(struct net_device *dev,
					  struct net *net)
{
	struct in_device *in_dev = READ(dev, ip_ptr);

	return READ(in_dev, cnf.data[IPV4_FORWARDING]) ||
	       READ(net, ipv4.devconf_all, data[IPV4_FORWARDING]);
}

/* see ip6_forward() */
static __always_inline bool forwards_ipv6(struct net *net)
{
	return READ(net, ipv6.devconf_all, forwarding);
}

/* What kernels have with several routing tables, and vmlinux.h perhaps not. */
struct netns_ipv4___tables {
	struct fib_table *fib_main;
} __attribute__((preserve_access_index));

struct netns_ipv6___tables {
	struct fib6_table *fib6_local_tbl;
} __attribute__((preserve_access_index));

/* see fib_get_table() */
static __always_inline struct fib_table *local_table(struct net *net)
{
	struct netns_ipv4___tables *ipv4 = (void *)&net->ipv4;
	struct hlist_head *head = BPF_CORE_READ(net, ipv4.fib_table_hash);
	struct hlist_node *node;
	struct fib_table *table;

	/* With CONFIG_IP_MULTIPLE_TABLES there are 256 of them, else 2. */
	head += bpf_core_field_exists(ipv4->fib_main) ? RT_TABLE_LOCAL & 255 :
							RT_TABLE_LOCAL & 1;
	node = BPF_CORE_READ(head, first);
	for (int i = 0; i < MAX_SAME_KEY && node; i++) {
		table = (void *)node -
			bpf_core_field_offset(struct fib_table, tb_hlist);
		if (BPF_CORE_READ(table, tb_id) == RT_TABLE_LOCAL)
			return table;
		node = BPF_CORE_READ(node, next);
	}
	return NULL;
}

/* Where a walk through the routes stands. */
struct route_walk {
	struct key_vector *n; /* IPv4: the node to look at, or none */
	struct key_vector *pn; /* where to go on from, if not */
	__u64 cindex; /* the child of pn to go on before */
	__u32 key; /* the address, host byte order */
	bool backtracing;
	struct fib6_node *n6; /* IPv6: the node to look at */
	__be32 addr[4];
};

/* In a map, where the verifier does not follow the walk; this CPU's. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct route_walk);
} route_walk SEC(".maps");

static __always_inline struct route_walk *get_walk(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&route_walk, &zero);
}

enum route {
	ROUTE_UNKNOWN, /* go on */
	ROUTE_LOCAL,
	ROUTE_OTHER,
};

static __always_inline struct key_vector *child(struct key_vector *n,
						__u64 index)
{
	struct key_vector *next = NULL;

	bpf_probe_read_kernel(
		&next, sizeof(next),
		(void *)n + bpf_core_field_offset(struct key_vector, tnode) +
			index * sizeof(next));
	return next;
}

/* see node_parent() and tn_info() */
static __always_inline struct key_vector *parent(struct key_vector *n)
{
	struct tnode *tnode =
		(void *)n - bpf_core_field_offset(struct tnode, kv);

	return BPF_CORE_READ(tnode, parent);
}

/* The routes of a leaf, the longest prefix first; the first that fits counts. */
static __always_inline enum route read_leaf(struct key_vector *leaf,
					    __u32 differ)
{
	struct hlist_node *node = BPF_CORE_READ(leaf, leaf.first);
	struct fib_alias *alias;
	__u8 suffix;

	for (int i = 0; i < MAX_SAME_KEY && node; i++) {
		alias = (void *)node -
			bpf_core_field_offset(struct fib_alias, fa_list);
		suffix = BPF_CORE_READ(alias, fa_slen);
		if (suffix >= 32 || !(differ >> suffix))
			return BPF_CORE_READ(alias, fa_type) == RTN_LOCAL ?
				       ROUTE_LOCAL :
				       ROUTE_OTHER;
		node = BPF_CORE_READ(node, next);
	}
	return ROUTE_UNKNOWN;
}

/* To the next child that can have a shorter prefix of the address. */
static __always_inline enum route backtrace(struct route_walk *w)
{
	struct key_vector *pn = w->pn, *up;
	__u8 pos;

	w->backtracing = true;
	if (w->cindex) {
		w->cindex &= w->cindex - 1;
		w->n = child(pn, w->cindex);
		return ROUTE_UNKNOWN;
	}
	up = BPF_CORE_READ(pn, pos) < 32 ? parent(pn) : pn;
	pos = BPF_CORE_READ(up, pos);
	if (pos >= 32) /* the trie itself */
		return ROUTE_OTHER;
	w->cindex = (BPF_CORE_READ(pn, key) ^ BPF_CORE_READ(up, key)) >> pos;
	w->pn = up;
	return ROUTE_UNKNOWN;
}

/* A step of fib_table_lookup(). Steps are not static: verified once. */
__noinline int step_ipv4(void)
{
	struct route_walk *w = get_walk();
	struct key_vector *n;
	__u32 key, differ;
	__u8 pos, bits, slen;
	enum route route;

	if (!w)
		return ROUTE_LOCAL;
	n = w->n;
	if (!n)
		return backtrace(w);
	key = BPF_CORE_READ(n, key);
	pos = BPF_CORE_READ(n, pos) & 31;
	bits = BPF_CORE_READ(n, bits) & 31;
	slen = BPF_CORE_READ(n, slen);
	differ = w->key ^ key;

	if (!w->backtracing && differ >> pos >> bits) /* not below this one */
		w->backtracing = true;
	if (w->backtracing && (differ & (key | -key) || slen == pos)) {
		w->n = NULL;
		return ROUTE_UNKNOWN;
	}
	if (!bits) {
		route = read_leaf(n, differ);
		w->n = NULL;
		return route;
	}
	if (w->backtracing) {
		w->n = child(n, 0);
		return ROUTE_UNKNOWN;
	}
	if (slen > pos) {
		w->pn = n;
		w->cindex = differ >> pos;
	}
	w->n = child(n, differ >> pos);
	return ROUTE_UNKNOWN;
}

/* When in doubt, it is. */
static __always_inline bool is_local_ipv4(struct net *net, __be32 addr)
{
	struct fib_table *table = local_table(net);
	struct route_walk *w = get_walk();
	int route = ROUTE_UNKNOWN;

	if (!table || !w)
		return true;
	w->pn = (void *)BPF_CORE_READ(table, tb_data);
	w->n = child(w->pn, 0);
	w->cindex = 0;
	w->key = bpf_ntohl(addr);
	w->backtracing = false;
	for (int i = 0; i < MAX_TRIE_STEPS && route == ROUTE_UNKNOWN; i++)
		route = step_ipv4();
	return route != ROUTE_OTHER;
}

static __always_inline struct fib6_node *local_tree(struct net *net)
{
	struct netns_ipv6___tables *ipv6 = (void *)&net->ipv6;
	struct fib6_table *table;

	if (bpf_core_field_exists(ipv6->fib6_local_tbl))
		table = BPF_CORE_READ(ipv6, fib6_local_tbl);
	else
		table = BPF_CORE_READ(net, ipv6.fib6_main_tbl);
	return table ? (void *)table + bpf_core_field_offset(struct fib6_table,
							     tb6_root) :
		       NULL;
}

static __always_inline bool is_in_prefix(const __be32 *addr, const __be32 *dst,
					 __u32 len)
{
	__u32 mask;

	for (int i = 0; i < 4; i++) {
		mask = len >= 32 ? ~0U : len ? ~0U << (32 - len) : 0;
		if ((addr[i] ^ dst[i]) & bpf_htonl(mask))
			return false;
		len -= len >= 32 ? 32 : len;
	}
	return true;
}

static __always_inline enum route read_route(struct fib6_info *route,
					     const __be32 *addr)
{
	__u32 len = BPF_CORE_READ(route, fib6_dst.plen) & 255;
	__u8 type = BPF_CORE_READ(route, fib6_type);
	__be32 dst[4] = {};

	BPF_CORE_READ_INTO(&dst, route, fib6_dst.addr);
	if (!is_in_prefix(addr, dst, len))
		return ROUTE_UNKNOWN;
	return type == RTN_LOCAL || type == RTN_ANYCAST ? ROUTE_LOCAL :
							  ROUTE_OTHER;
}

/* A step down of fib6_node_lookup_1(), to the node that is the last on the way. */
__noinline int step_down_ipv6(void)
{
	struct route_walk *w = get_walk();
	struct fib6_node *n, *next;
	__u32 bit, word;

	if (!w)
		return false;
	n = w->n6;
	bit = BPF_CORE_READ(n, fn_bit);
	word = bpf_ntohl(w->addr[(bit >> 5) & 3]);
	next = word >> (~bit & 31) & 1 ? BPF_CORE_READ(n, right) :
					 BPF_CORE_READ(n, left);
	if (next)
		w->n6 = next;
	return next != NULL;
}

/* A step back up: the first prefix that fits is the longest. */
__noinline int step_up_ipv6(void)
{
	struct route_walk *w = get_walk();
	enum route route = ROUTE_UNKNOWN;
	struct fib6_info *leaf;
	struct fib6_node *n;

	if (!w)
		return ROUTE_LOCAL;
	n = w->n6;
	if (!n)
		return ROUTE_OTHER;
	leaf = BPF_CORE_READ(n, leaf);
	if (leaf && BPF_CORE_READ(n, fn_flags) & RTN_RTINFO)
		route = read_route(leaf, w->addr);
	w->n6 = BPF_CORE_READ(n, parent);
	return route;
}

static __always_inline bool is_local_ipv6(struct net *net,
					  const union gadget_ip_addr_t *addr)
{
	struct fib6_node *root = local_tree(net);
	struct route_walk *w = get_walk();
	int route = ROUTE_UNKNOWN;

	if (!root || !w)
		return true;
	w->n6 = root;
	__builtin_memcpy(w->addr, addr, sizeof(w->addr));
	for (int i = 0; i < MAX_TREE_DEPTH; i++) {
		if (!step_down_ipv6())
			break;
	}
	for (int i = 0; i <= MAX_TREE_DEPTH && route == ROUTE_UNKNOWN; i++)
		route = step_up_ipv6();
	return route != ROUTE_OTHER;
}

/* Verified once, as it is not static. */
__noinline int is_for_others(struct __sk_buff *ctx)
{
	struct workspace *space = get_workspace(IN_PACKET);
	struct sk_buff *skb = (void *)ctx;
	struct net_device *dev;
	struct report *report;
	struct net *net;

	if (!space)
		return false;
	report = &space->report;
	dev = READ(skb, dev);
	net = READ(dev, nd_net.net);
	if (report->attempt.version == 6)
		return forwards_ipv6(net) &&
		       !is_local_ipv6(net, (void *)&report->attempt.daddr);
	return forwards_ipv4(dev, net) &&
	       !is_local_ipv4(net, report->attempt.daddr.v4);
}

/* Verified once, as it is not static. */
__noinline int is_from_here(struct __sk_buff *ctx)
{
	struct workspace *space = get_workspace(IN_PACKET);
	struct sk_buff *skb = (void *)ctx;
	struct tuple *t;
	struct net *net;

	if (!space)
		return false;
	t = &space->report.socket;
	net = READ(skb, dev, nd_net.net);
	return t->version == 6 ? is_local_ipv6(net, (void *)&t->local) :
				 is_local_ipv4(net, t->local.v4);
}

#endif
