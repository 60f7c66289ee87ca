/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_FORWARDED_H
#define NETWORK_FORWARDED_H

/*
 * What this namespace is no end of.
 */

#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

#include "owner.h"
#include "params.h"
#include "report.h"
#include "route.h"

/*
 * A sent packet that has come in from a device is forwarded, or a socket of this
 * namespace has sent it and tc has led it through another device. The latter is
 * what such a socket is known to send, from an address of this namespace: others'
 * can have its port.
 */
static __always_inline bool is_passed_on(struct __sk_buff *skb,
					 struct report *report)
{
	if (!skb->ingress_ifindex)
		return false;
	find_owner(skb);
	if (report->found.known && is_from_here(skb))
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
