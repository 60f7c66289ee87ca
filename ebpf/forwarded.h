/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_FORWARDED_H
#define NETWORK_FORWARDED_H

/*
 * What this namespace is no end of.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "arrivals.h"
#include "owner.h"
#include "params.h"
#include "read.h"
#include "report.h"
#include "route.h"

/* What vmlinux.h may not have: it is of kernels with CONFIG_NET_REDIRECT. */
struct sk_buff___redirect {
	__u8 redirected : 1;
	__u8 from_ingress : 1;
} __attribute__((preserve_access_index));

#define SKB_DST_NOREF 1UL /* include/linux/skbuff.h */

/*
 * Whether a socket of this namespace has sent it, and not another one through
 * it: for IPv4 its route tells, if it has that still.
 */
static __always_inline bool is_sent_here(struct __sk_buff *ctx, __u8 version)
{
	struct sk_buff *skb = (void *)ctx;
	struct net_device *dev = READ(skb, dev);
	struct net *net = READ(dev, nd_net.net);
	struct rtable *route;

	if (version == 6)
		return !forwards_ipv6(net);
	route = (void *)(READ(skb, _skb_refdst) & ~SKB_DST_NOREF);
	return route ? !READ(route, rt_is_input) : !forwards_ipv4(dev, net);
}

/*
 * Whether tc has redirected it on its way out, see skb_set_redirected(). Then it
 * is a clone, with nothing from conntrack, that no socket is charged for: what it
 * was made of is gone, and the socket has nothing on its way, when another CPU
 * runs the other device's queue.
 */
static __always_inline bool is_redirected(struct __sk_buff *ctx)
{
	struct sk_buff___redirect *skb = (void *)ctx;

	return bpf_core_field_exists(skb->redirected) &&
	       BPF_CORE_READ_BITFIELD_PROBED(skb, redirected) &&
	       !BPF_CORE_READ_BITFIELD_PROBED(skb, from_ingress);
}

/*
 * Whether a datagram may be another one's that was translated on its way through,
 * and so has the source of a socket that sends at the same time: conntrack knows
 * both, but not what tc has made of them.
 */
static __always_inline bool is_doubtful(struct __sk_buff *ctx,
					const struct attempt *a)
{
	struct sk_buff *skb = (void *)ctx;

	return a->proto == IPPROTO_UDP && bpf_core_field_exists(skb->_nfct) &&
	       !(READ(skb, _nfct) & ~NFCT_INFOMASK) &&
	       !is_sent_here(ctx, a->version);
}

/*
 * A sent packet that has come in from a device is forwarded, or a socket of this
 * namespace has sent it and tc has led it through another device. The latter is
 * what such a socket is known to send, or what tc has redirected on its way out,
 * from an address of this namespace: others can have its port.
 */
static __always_inline bool is_passed_on(struct __sk_buff *skb,
					 struct report *report)
{
	if (!skb->ingress_ifindex)
		return false;
	find_owner(skb);
	if (((report->found.known && !is_doubtful(skb, &report->attempt)) ||
	     (is_redirected(skb) &&
	      is_sent_here(skb, report->attempt.version))) &&
	    is_from_here(skb))
		return false;
	__builtin_memset(&report->found, 0, sizeof(report->found));
	return true;
}

/*
 * Whether this namespace only forwards it, and that is not asked for. A connection
 * to others can be taken here all the same: by REDIRECT, TPROXY, or a program. Not
 * static: verified once.
 */
__noinline int is_forwarded(struct __sk_buff *skb)
{
	struct workspace *space = get_workspace(IN_PACKET);
	struct report *report;

	if (!space)
		return true;
	report = &space->report;
	if (!report->attempt.egress) {
		report->forwarded = is_for_others(skb);
		return report->forwarded && !forwarded &&
		       report->attempt.proto != IPPROTO_TCP;
	}
	report->forwarded = is_passed_on(skb, report);
	if (report->forwarded && !forwarded)
		hand_on(skb, space);
	return report->forwarded && !forwarded;
}

/* Whether a packet that came in may be handed on, or its taker is to be told. */
static __always_inline bool may_wait(struct __sk_buff *ctx,
				     const struct report *report)
{
	struct net_device *dev = READ((struct sk_buff *)ctx, dev);
	struct net *net = READ(dev, nd_net.net);

	if (report->attempt.proto == IPPROTO_TCP)
		return !report->found.known;
	if (report->forwarded || forwarded)
		return false;
	return report->attempt.version == 6 ? forwards_ipv6(net) :
					      forwards_ipv4(dev, net);
}

#endif
