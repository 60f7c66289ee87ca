/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_UNSEEN_H
#define NETWORK_UNSEEN_H

/*
 * Connections that were tried, and no device has seen: dropped or refused on the
 * way out, without a route or a neighbour. They are reported when they fail, or
 * when their first SYN is sent again, after a second.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "books.h"
#include "deliver.h"
#include "owner.h"
#include "params.h"
#include "report.h"
#include "socket.h"
#include "watched.h"

static __always_inline void begin_unseen(struct report *report,
					 const struct tuple *ends,
					 const struct owner *owner)
{
	struct attempt *a = &report->attempt;

	__builtin_memset(report, 0, sizeof(*report));
	report->time = owner->called;
	report->now = bpf_ktime_get_boot_ns();
	report->ends = report->socket = *ends;
	a->saddr = ends->local;
	a->daddr = ends->remote;
	a->sport = ends->local_port;
	a->dport = ends->remote_port;
	a->version = ends->version;
	a->proto = IPPROTO_TCP;
	a->seq = owner->isn;
	a->egress = true;
	set_found(&report->found, owner);
	report->found.has_ends = true;
}

/* see ipv4_is_loopback(), ipv6_addr_loopback() */
static __always_inline bool is_loopback(const struct tuple *ends)
{
	const __u64 *half = (const void *)&ends->remote;

	if (is_same(&ends->local, &ends->remote))
		return true;
	if (ends->version == 4)
		return (ends->remote.v4 & bpf_htonl(0xFF000000)) ==
		       bpf_htonl(0x7F000000);
	return !half[0] && half[1] == bpf_cpu_to_be64(1);
}

/* Reports an attempt of a namespace that is watched. */
static __noinline int report_unseen(void *ctx, struct sock *sk,
				    const struct tuple *ends,
				    const struct owner *owner, __u32 runs_in)
{
	struct workspace *space = get_workspace(runs_in);
	struct report *report;

	if (!space)
		return 0;
	space->report.is_told = false;
	if (!wants_tcp() || !wants_direction(true) ||
	    !wants_port(ends->remote_port) ||
	    (skip_loopback && is_loopback(ends)) ||
	    !is_watched((__u64)BPF_CORE_READ(sk, __sk_common.skc_net.net)))
		return 0;
	report = &space->report;
	begin_unseen(report, ends, owner);
	report->runs_in = runs_in;
	report->is_refused = !owner->isn; /* there was no SYN */
	if (!is_group_address(&report->attempt) && wants_found(report))
		deliver(ctx, space);
	return 0;
}

/*
 * The connection has waited for a second, or its wait is over: if its SYN was not
 * seen yet, it is not waited for any longer.
 */
static __always_inline void end_wait(void *ctx, struct sock *sk, __u32 runs_in)
{
	__u64 address = (__u64)sk;
	struct entries *entries = bpf_map_lookup_elem(&sockets, &address);
	struct owner *owner;

	if (!entries)
		return;
	owner = own_entry(&connections, &entries->connection, address);
	if (!owner || !owner->isn || owner->progress != ON_ITS_WAY)
		return;
	end_progress(owner, REPORTED);
	report_unseen(ctx, sk, &entries->connection, owner, runs_in);
}

/*
 * Whether no device has seen any SYN of a connection: this host has dropped them all,
 * also where the kernel has skipped the kprobe that tells why (see struct entries).
 */
static __always_inline bool is_kept(struct sock *sk)
{
	struct owner *owner = booked_connection((__u64)sk);

	return owner && owner->progress == REPORTED;
}

/* What a thread has asked a socket to connect to, and when. */
struct asked {
	struct sock *sk;
	__u64 time; /* ns since the boot */
	struct tuple ends;
};

/* By thread: from its call until it has failed, or a SYN is on its way. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 256);
	__type(key, __u64);
	__type(value, struct asked);
} asked SEC(".maps");

struct sockaddr_start {
	__u16 family;
	__be16 port;
	union {
		__be32 v4;
		struct {
			__be32 flowinfo;
			__u8 addr[16];
		} v6;
	};
};

/* The address that a call has, which the kernel has copied. */
static __always_inline bool read_asked(struct tuple *ends,
				       const struct sockaddr_start *from,
				       int len)
{
	struct sockaddr_start a = {};
	const int ipv4_len = 16, ipv6_len = 24; /* SIN6_LEN_RFC2133 */

	if (len < ipv4_len || bpf_probe_read_kernel(&a, ipv4_len, from))
		return false;
	ends->remote_port = bpf_ntohs(a.port);
	ends->version = 4;
	if (a.family == AF_INET) {
		ends->remote.v4 = a.v4;
		return true;
	}
	if (a.family != AF_INET6 || len < ipv6_len ||
	    bpf_probe_read_kernel(&a, ipv6_len, from))
		return false;
	__builtin_memcpy(&ends->remote, a.v6.addr, sizeof(a.v6.addr));
	if (!is_v4mapped(&ends->remote)) {
		ends->version = 6;
		return true;
	}
	__builtin_memset(&ends->remote, 0, sizeof(ends->remote));
	__builtin_memcpy(&ends->remote, &a.v6.addr[12], 4);
	return true;
}

/* The socket sends its SYN: from now on the books have it. */
static __always_inline void forget_asked(void)
{
	__u64 thread = bpf_get_current_pid_tgid();

	bpf_map_delete_elem(&asked, &thread);
}

/* What a call before has left is not this one's: see tcp_fastopen_defer_connect(). */
static __always_inline void enter_connect(struct sock *sk, void *address,
					  int len)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct asked call = { .sk = sk, .time = bpf_ktime_get_boot_ns() };

	if (read_asked(&call.ends, address, len))
		bpf_map_update_elem(&asked, &thread, &call, BPF_ANY);
	else
		forget_asked();
}

/* The own end as far as the kernel has chosen it when it gave up. */
static __always_inline void set_own_end(struct tuple *ends, struct sock *sk)
{
	struct tuple own = {};

	if (!read_socket(sk, IPPROTO_TCP, &own))
		return;
	ends->netns = own.netns;
	ends->proto = IPPROTO_TCP;
	ends->local_port = own.local_port;
	if (own.version == ends->version)
		ends->local = own.local;
}

/*
 * A connect() that has failed before there was a packet, and was reported a moment ago.
 * It has no life: others can have the same ends, as a socket may have none yet.
 */
static __always_inline void fail_connect(void *ctx, __u32 error,
					 enum reason asked)
{
	struct workspace *space = get_workspace(IN_HOOK);
	struct report *report;
	struct outcome *o;

	if (!wants_outcome() || !space || !space->report.is_told)
		return;
	report = &space->report;
	report->now = bpf_ktime_get_boot_ns();
	o = &report->outcome;
	o->event = failed;
	o->latency = report->now - report->time;
	o->error = error;
	if (asked != REASON_NONE || error == EPERM) {
		o->cause = CAUSE_DENIED;
		o->reason = asked != REASON_NONE ? asked : REASON_CONNECT;
	} else if (error == ENETUNREACH) {
		o->cause = CAUSE_NO_ROUTE;
		o->reason = REASON_NO_ROUTE;
	} else if (error == EHOSTUNREACH) {
		o->cause = CAUSE_NO_ROUTE;
		o->reason = REASON_UNREACHABLE_ROUTE;
	} else if (error == EACCES) {
		o->cause = CAUSE_NO_ROUTE;
		o->reason = REASON_PROHIBIT_ROUTE;
	} else if (error == EINVAL) {
		o->cause = CAUSE_NO_ROUTE;
		o->reason = REASON_BLACKHOLE_ROUTE;
	} else if (error == EADDRNOTAVAIL) {
		o->cause = CAUSE_NO_PORT;
	}
	tell_outcome(ctx, space);
}

/*
 * A connect that has failed before there was a packet; by whom the kernel asks first,
 * or by the kernel.
 */
static __always_inline void leave_connect(void *ctx, int result,
					  enum reason asked_first)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct asked *call = bpf_map_lookup_elem(&asked, &thread);
	struct owner *owner = new_owner(OF_HOOK);
	struct tuple ends;
	struct sock *sk;

	if (!call || !owner)
		return;
	ends = call->ends;
	sk = call->sk;
	owner->called = call->time;
	bpf_map_delete_elem(&asked, &thread);
	if (!result || result == -EAFNOSUPPORT ||
	    !set_owner(owner, sk, (void *)bpf_get_current_task()))
		return;
	set_own_end(&ends, sk);
	book_paths(owner->sk, owner->since);
	report_unseen(ctx, sk, &ends, owner, IN_HOOK);
	fail_connect(ctx, -result, asked_first);
}

#endif
