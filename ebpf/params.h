/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_PARAMS_H
#define NETWORK_PARAMS_H

/*
 * The gadget's parameters and what they let through. A parameter that is off
 * is a constant when the program is loaded: the verifier removes its branch.
 */

#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/filter.h>
#include <gadget/macros.h>
#include <gadget/types.h>

/*
 * Whether attempts are counted, in place of an event for each: see connections/. What
 * is a parameter of events alone is none then.
 */
#ifdef COUNTS_CONNECTIONS
#define IS_COUNTING true
#define EVENT_PARAM(name)
#else
#define IS_COUNTING false
#define EVENT_PARAM(name) GADGET_PARAM(name)
#endif

#define FIRST_UNPRIVILEGED_PORT 1024 /* PROT_SOCK in include/net/sock.h */
#define NSEC_PER_SEC 1000000000ULL
#define LOOPBACK_IFINDEX 1 /* see include/net/flow.h: in every namespace */

const volatile bool egress_only = false;
GADGET_PARAM(egress_only);

const volatile bool ingress_only = false;
GADGET_PARAM(ingress_only);

const volatile bool tcp_only = false;
GADGET_PARAM(tcp_only);

const volatile bool udp_only = false;
GADGET_PARAM(udp_only);

const volatile __u16 port = 0; /* host byte order; 0: every port */
GADGET_PARAM(port);

const volatile bool skip_loopback = false;
GADGET_PARAM(skip_loopback);

const volatile bool udp_flows = false;
GADGET_PARAM(udp_flows);

const volatile __u32 udp_idle = 60; /* s */
GADGET_PARAM(udp_idle);

const volatile bool copies = false;
EVENT_PARAM(copies);

const volatile bool forwarded = false;
EVENT_PARAM(forwarded);

const volatile bool lifecycle = IS_COUNTING;
GADGET_PARAM(lifecycle);

const volatile bool failed_only = false;
EVENT_PARAM(failed_only);

const volatile __u32 rate_limit = 1000; /* events/s of one owner; 0: none */
EVENT_PARAM(rate_limit);

/* A process, which is reported with those that it starts; 0: every process. */
const volatile __u32 follow = 0;
EVENT_PARAM(follow);

static __always_inline bool wants_direction(bool egress)
{
	return !(egress ? ingress_only : egress_only);
}

/* Whether it is told, too, what became of an attempt. */
static __always_inline bool wants_outcome(void)
{
	return lifecycle || failed_only;
}

static __always_inline bool wants_device(__u32 ifindex)
{
	return !skip_loopback || ifindex != LOOPBACK_IFINDEX;
}

static __always_inline bool wants_tcp(void)
{
	return !udp_only;
}

static __always_inline bool wants_udp(void)
{
	return !tcp_only;
}

static __always_inline bool is_low(__u16 port)
{
	return port < FIRST_UNPRIVILEGED_PORT;
}

/* What goes out and has come in before tells that it was forwarded. */
static __always_inline bool is_of_use(const struct __sk_buff *skb, bool egress)
{
	return wants_direction(egress) || (egress && skb->ingress_ifindex);
}

/*
 * By its ports alone, in both directions: what it goes on with, or was handed on
 * as, others tell.
 */
static __always_inline bool reads_datagram(__u16 dport)
{
	return udp_flows || is_low(dport);
}

static __always_inline bool wants_port(__u16 dport)
{
	return !port || port == dport;
}

/* True when the user asked for some processes only. */
static __always_inline bool filters_by_process(void)
{
	return follow || targ_pid || targ_tid ||
	       targ_uid != GADGET_INVALID_ID || targ_gid != GADGET_INVALID_ID ||
	       targ_comm[0];
}

static __always_inline bool wants_process(struct gadget_process *proc)
{
	return !gadget_should_discard_data(proc->mntns_id, proc->pid, proc->tid,
					   proc->comm, proc->creds.uid,
					   proc->creds.gid);
}

#endif
