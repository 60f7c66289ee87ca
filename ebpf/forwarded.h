/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_FORWARDED_H
#define NETWORK_FORWARDED_H

/*
 * What this namespace is no end of.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "owner.h"
#include "params.h"
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
	struct net_device *dev = BPF_CORE_READ(skb, dev);
	struct net *net = BPF_CORE_READ(dev, nd_net.net);
	struct rtable *route;

	if (version == 6)
		return !forwards_ipv6(net);
	route = (void *)(BPF_CORE_READ(skb, _skb_refdst) & ~SKB_DST_NOREF);
	return route ? !BPF_CORE_READ(route, rt_is_input) :
		       !forwards_ipv4(dev, net);
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
	if ((report->found.known ||
	     (is_redirected(skb) &&
	      is_sent_here(skb, report->attempt.version))) &&
	    is_from_here(skb))
		return false;
	__builtin_memset(&report->found, 0, sizeof(report->found));
	return true;
}

/* Whether this namespace only forwards it, and that is not asked for. */
static __always_inline bool is_forwarded(struct __sk_buff *skb,
					 struct report *report)
{
	report->forwarded = report->attempt.egress ? is_passed_on(skb, report) :
						     is_for_others(skb);
	return report->forwarded && !forwarded;
}

#endif
