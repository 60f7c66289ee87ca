/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_OUTCOME_H
#define NETWORK_OUTCOME_H

/*
 * How an attempt ended, with --lifecycle: when the state of its socket changes, the
 * kernel says how the application learns of it (sk_err), and what was seen of the
 * connection before says why.
 *
 * State changes come by a raw tracepoint, which a softirq runs also where it
 * interrupts a kprobe's handler. So it has workspaces of its own, by how deep one
 * interrupts another.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "arrivals.h"
#include "deliver.h"
#include "lives.h"
#include "report.h"
#include "socket.h"
#include "tracepoint.h"
#include "unseen.h"

/* How deep raw tracepoints interrupt each other: a softirq does a process. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} nesting SEC(".maps");

/* The workspace of a raw tracepoint that begins: enum runs_in, or CONTEXTS. */
static __always_inline __u32 enter_tracepoint(void)
{
	__u32 zero = 0;
	__u32 *depth = bpf_map_lookup_elem(&nesting, &zero);
	__u32 runs_in;

	if (!depth)
		return CONTEXTS;
	hold_cpu();
	runs_in = IN_TRACEPOINT + *depth;
	if (runs_in < CONTEXTS) {
		*depth += 1;
		return runs_in;
	}
	release_cpu();
	return CONTEXTS;
}

static __always_inline void leave_tracepoint(void)
{
	__u32 zero = 0;
	__u32 *depth = bpf_map_lookup_elem(&nesting, &zero);

	if (depth)
		*depth -= 1;
	release_cpu();
}

/* A message of ICMP about it, which the attempt's failure is due to. */
static __always_inline void set_icmp(struct outcome *o, __u8 type, __u8 code,
				     const union gadget_ip_addr_t *from)
{
	o->cause = CAUSE_ICMP;
	o->icmp_type = type;
	o->icmp_code = code;
	o->by = *from;
}

static __always_inline void set_reset(struct report *report)
{
	const struct attempt *a = &report->attempt;

	report->outcome.cause = CAUSE_RST;
	report->outcome.by = a->egress ? a->daddr : a->saddr;
}

/*
 * What ended a call that the kernel gave up, or the application; nothing, where it
 * was a packet that was missed.
 */
static __always_inline void set_cause(struct report *report,
				      const struct life *life, struct sock *sk,
				      __u32 error)
{
	struct outcome *o = &report->outcome;
	__s32 not_sent = life->not_sent;

	if (!error || error == ECONNABORTED) {
		o->cause = CAUSE_GAVE_UP;
	} else if (error == ETIMEDOUT) {
		if (not_sent == EPERM || not_sent == EACCES) {
			o->cause = CAUSE_DENIED;
			o->reason = REASON_OUTPUT;
		} else if (not_sent == EHOSTUNREACH ||
			   not_sent == ENETUNREACH) {
			o->cause = CAUSE_NO_ROUTE;
		} else if (not_sent || life->drop ||
			   (report->attempt.egress && is_kept(sk))) {
			o->cause = CAUSE_LOCAL_DROP;
		} else {
			o->cause = CAUSE_SILENCE;
		}
	} else if (error == EPERM || error == EACCES) {
		o->cause = CAUSE_DENIED;
	}
	o->drop = life->drop;
}

/* net/ipv4/icmp.c, icmp_err_convert; net/ipv6/icmp.c, tab_unreach */
static const __u8 icmp_errors[ICMP_CODES] = {
	ENETUNREACH,  EHOSTUNREACH, ENOPROTOOPT,  ECONNREFUSED,
	EMSGSIZE,     EOPNOTSUPP,   ENETUNREACH,  EHOSTDOWN,
	ENONET,	      ENETUNREACH,  EHOSTUNREACH, ENETUNREACH,
	EHOSTUNREACH, EHOSTUNREACH, EHOSTUNREACH, EHOSTUNREACH,
};
static const __u8 icmpv6_errors[ICMPV6_CODES] = {
	ENETUNREACH,  EACCES, EHOSTUNREACH, EHOSTUNREACH,
	ECONNREFUSED, EACCES, EACCES,	    EACCES,
};

static __always_inline __u32 icmp_error(const struct life *life)
{
	__u32 code = life->icmp_code, type = life->icmp_type;

	if (life->report.attempt.version == 4)
		return type == ICMP_UNREACHABLE && code < ICMP_CODES ?
			       icmp_errors[code] :
			       EHOSTUNREACH;
	return type == ICMPV6_UNREACHABLE && code < ICMPV6_CODES ?
		       icmpv6_errors[code] :
		       EHOSTUNREACH;
}

/* What the application has taken before anybody looked, and nothing else tells. */
#define UNKNOWN_ERROR 0xFFFF
/* How long the kernel takes at most from finding a SYN unanswered to giving up. */
#define GIVES_UP_WITHIN_NS (NSEC_PER_SEC / 2)

/*
 * The socket's error as the kernel has set it. The application can have read it
 * before the state changes (until Linux 6.10 it is woken first): then it is 0, but
 * neither has the application closed the socket, nor is it in a call of its own. A
 * message of ICMP that comes in the middle of the connect() only leaves a mark
 * (sk_err_soft), which the application takes by asking for its error (SO_ERROR).
 */
static __always_inline __u32 socket_error(const struct life *life,
					  struct sock *sk, __u64 now)
{
	__u32 error = BPF_CORE_READ(sk, sk_err);

	if (error)
		return error;
	if (life->is_reset)
		return ECONNREFUSED;
	if (life->has_icmp && !BPF_CORE_READ(sk, sk_err_soft))
		return icmp_error(life);
	if (BPF_CORE_READ_BITFIELD_PROBED(sk, sk_shutdown) ||
	    BPF_CORE_READ(sk, sk_lock.owned))
		return 0;
	if (life->has_icmp) /* the mark is of an earlier SYN's */
		return icmp_error(life);
	/* Nobody on this side takes the error of what arrives. */
	if (!life->report.attempt.egress ||
	    now - life->unanswered < GIVES_UP_WITHIN_NS)
		return ETIMEDOUT;
	return UNKNOWN_ERROR;
}

/*
 * The application of a call gets the socket's error; who closes its socket, or is
 * killed, is told as if it had got one. Nobody on this side waits for what arrives.
 */
static __always_inline void set_failure(struct report *report,
					const struct life *life,
					struct sock *sk, __u32 error)
{
	struct outcome *o = &report->outcome;

	o->latency = report->now - life->begun;
	if (error == UNKNOWN_ERROR)
		return;
	if (life->is_reset && error && error != ETIMEDOUT)
		set_reset(report);
	else if (life->has_icmp && error && error != ETIMEDOUT)
		set_icmp(o, life->icmp_type, life->icmp_code, &life->icmp_from);
	else
		set_cause(report, life, sk, error);
	if (report->attempt.egress)
		o->error = error ?: ECONNABORTED;
}

/*
 * The connection of MPTCP that a socket of TCP has begun, or NULL; it counts bytes since
 * Linux 6.5.
 */
static __always_inline struct mptcp_sock *mptcp_of(struct sock *sk)
{
	struct mptcp_subflow_context *flow;
	struct mptcp_sock *msk = NULL;

	if (!bpf_core_field_exists(msk->bytes_sent) ||
	    !BPF_CORE_READ((struct tcp_sock *)sk, is_mptcp))
		return NULL;
	flow = BPF_CORE_READ((struct inet_connection_sock *)sk, icsk_ulp_data);
	if (BPF_CORE_READ_BITFIELD_PROBED(flow, mp_join))
		return NULL;
	return (void *)BPF_CORE_READ(flow, conn);
}

/*
 * A FIN that was received counts as a byte in the kernel: see tcp_queue_rcv(). MPTCP
 * sends data again by itself, which for its sockets of TCP is other data.
 */
static __always_inline void set_bytes(struct outcome *o, struct sock *sk)
{
	struct mptcp_sock *msk = mptcp_of(sk);
	struct tcp_sock *tp = (void *)sk;
	__u64 done = BPF_CORE_READ(sk, __sk_common.skc_flags) >>
		     bpf_core_enum_value(enum sock_flags, SOCK_DONE);

	if (msk) {
		o->tx = BPF_CORE_READ(msk, bytes_sent);
		o->rx = BPF_CORE_READ(msk, bytes_received);
		return;
	}
	o->tx = BPF_CORE_READ(tp, bytes_sent) -
		BPF_CORE_READ(tp, bytes_retrans);
	o->rx = BPF_CORE_READ(tp, bytes_received);
	if ((done & 1) && o->rx)
		o->rx--;
}

static __always_inline void tell_established(void *ctx, struct life *life,
					     struct sock *sk, __u32 runs_in)
{
	struct workspace *space = get_workspace(runs_in);
	struct report *report;

	if (!space)
		return;
	report = &space->report;
	begin_outcome(report, life, established, runs_in);
	life->established = report->now;
	report->outcome.latency = report->now - life->begun;
	if (report->attempt.egress)
		report->retries =
			BPF_CORE_READ((struct tcp_sock *)sk, total_retrans);
	life->report.retries = report->retries;
	tell_outcome(ctx, space);
}

/* Whether a socket in this state has been connected, whatever was heard of it. */
static __always_inline bool was_connected(int state)
{
	return state != TCP_SYN_SENT_STATE && state != TCP_SYN_RECV_STATE &&
	       state != TCP_FIN_WAIT1_STATE && state != TCP_CLOSE_STATE;
}

/* The life is over, and has been taken; the state is that before. */
static __always_inline void tell_end(void *ctx, struct life *life,
				     struct sock *sk, int from, __u32 runs_in)
{
	struct workspace *space = get_workspace(runs_in);
	struct report *report;

	if (!space)
		return;
	report = &space->report;
	if (life->established || was_connected(from)) {
		begin_outcome(report, life, closed, runs_in);
		if (life->established)
			report->outcome.duration =
				report->now - life->established;
		set_bytes(&report->outcome, sk);
	} else {
		begin_outcome(report, life, failed, runs_in);
		if (report->attempt.egress)
			report->retries = BPF_CORE_READ((struct tcp_sock *)sk,
							total_retrans);
		set_failure(report, life, sk,
			    socket_error(life, sk, report->now));
	}
	tell_outcome(ctx, space);
}

/*
 * A connection that a listener took, and whose call by the kernel was missed: it
 * waits for the answer still.
 */
static __always_inline void find_arrived(void *ctx, struct sock *sk,
					 const struct life_key *key,
					 __u32 runs_in)
{
	struct workspace *space = get_workspace(runs_in);
	struct arrival *arrival;
	struct report *report;

	if (!space || !awaits_answers())
		return;
	arrival = &space->arrival;
	arrival->ends = key->ends;
	arrival->number = BPF_CORE_READ((struct tcp_sock *)sk, copied_seq) - 1;
	report = &space->report;
	if (!take_arrival(arrival, report))
		return;
	report->runs_in = runs_in;
	report->now = bpf_ktime_get_boot_ns();
	report->forwarded = false;
	report->is_taken = true;
	report_attempt(ctx, space, true);
}

static __always_inline void change_life(void *ctx, struct sock *sk,
					const struct life_key *key, int from,
					int to, __u32 runs_in)
{
	bool ends = to == TCP_CLOSE_STATE;
	struct life *life;

	if (ends || failed_only) { /* what is established has not failed */
		life = get_new_life(runs_in);
		if (life && take_life(key, life) && ends)
			tell_end(ctx, life, sk, from, runs_in);
		return;
	}
	life = find_life(key);
	if (life && !life->established)
		tell_established(ctx, life, sk, runs_in);
}

/*
 * Whether a connection is established by the change, or is over. One that was fast
 * to open may be closed before its handshake is over: that it is when the other side
 * has acknowledged what was sent, the SYN before all.
 */
static __always_inline bool is_turn(int from, int to)
{
	if (to == TCP_CLOSE_STATE || from == TCP_FIN_WAIT1_STATE)
		return true;
	return to == TCP_ESTABLISHED_STATE &&
	       (from == TCP_SYN_SENT_STATE || from == TCP_SYN_RECV_STATE);
}

#define SOCK_BINDPORT_LOCK 8 /* include/net/sock.h */

/*
 * Two segments can end one handshake at once, and the kernel makes a socket for each:
 * the later one is closed where it still has its port, see inet_ehash_nolisten(), which
 * others give back first, but for those that have bound it.
 */
static __always_inline bool is_twin(struct sock *sk, int from, int to)
{
	return from == TCP_SYN_RECV_STATE && to == TCP_CLOSE_STATE &&
	       BPF_CORE_READ((struct inet_connection_sock *)sk,
			     icsk_bind_hash) &&
	       !(BPF_CORE_READ_BITFIELD_PROBED(sk, sk_userlocks) &
		 SOCK_BINDPORT_LOCK);
}

/*
 * A TCP socket's state changes. That which a program has of MPTCP does so as well:
 * what counts is the one behind it.
 */
static __always_inline void change_state(void *ctx, struct sock *sk, int from,
					 int to, __u32 runs_in)
{
	struct life_key key = {};

	if (from == TCP_SYN_SENT_STATE)
		end_wait(ctx, sk, runs_in);
	if (!wants_outcome() || !is_turn(from, to) ||
	    !(has_lives() || awaits_answers()) || is_twin(sk, from, to) ||
	    BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP ||
	    !read_socket(sk, IPPROTO_TCP, &key.ends))
		return;
	key.egress = true;
	change_life(ctx, sk, &key, from, to, runs_in);
	key.egress = false;
	if (from == TCP_SYN_RECV_STATE && to == TCP_ESTABLISHED_STATE)
		find_arrived(ctx, sk, &key, runs_in);
	change_life(ctx, sk, &key, from, to, runs_in);
}

/* A RST has come, or a segment that is as good as one. */
static __always_inline void note_reset(void *ctx, struct sock *sk,
				       __u32 runs_in)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);
	struct life_key key = {};
	struct life *life;

	if (state == TCP_SYN_SENT_STATE) /* no device may have seen the SYN */
		end_wait(ctx, sk, runs_in);
	if ((state != TCP_SYN_SENT_STATE && state != TCP_SYN_RECV_STATE) ||
	    !read_socket(sk, IPPROTO_TCP, &key.ends))
		return;
	for (int egress = 0; egress < 2; egress++) {
		key.egress = egress;
		life = find_life(&key);
		if (life)
			life->is_reset = true;
	}
}

/*
 * Who has sent a message of ICMP, and about which SYN, as the device of this CPU saw
 * it last: what the kernel gets later in the same softirq bears, where NAT has
 * translated the SYN, the address that was called.
 */
struct icmp_sender {
	union gadget_ip_addr_t addr;
	__u32 seq;
	__u32 known;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct icmp_sender);
} icmp_senders SEC(".maps");

static __always_inline void note_icmp_sender(__u32 seq,
					     const union gadget_ip_addr_t *addr)
{
	__u32 zero = 0;
	struct icmp_sender *last = bpf_map_lookup_elem(&icmp_senders, &zero);

	if (!last)
		return;
	last->addr = *addr;
	last->seq = seq;
	last->known = true;
}

static __always_inline void take_icmp_sender(__u32 seq,
					     union gadget_ip_addr_t *addr)
{
	__u32 zero = 0;
	struct icmp_sender *last = bpf_map_lookup_elem(&icmp_senders, &zero);

	if (!last || !last->known || last->seq != seq)
		return;
	*addr = last->addr;
	last->known = false;
}

/* The connection whose SYN a message of ICMP has brought back. */
static __always_inline void note_icmp(void *ctx, struct sk_buff *skb,
				      __u8 version, __u8 type, __u8 code)
{
	unsigned char *head = BPF_CORE_READ(skb, head);
	void *outer = head + BPF_CORE_READ(skb, network_header);
	void *inner = BPF_CORE_READ(skb, data);
	struct life_key key = { .egress = true };
	union gadget_ip_addr_t from = {};
	struct tuple *t = &key.ends;
	struct tcp_header tcp = {};
	struct owner *owner;
	struct life *life;
	__u32 len;
	__u8 ihl;

	if (version == 4) {
		if (bpf_probe_read_kernel(&ihl, sizeof(ihl), inner))
			return;
		len = (ihl & 0xF) * 4;
		BPF_CORE_READ_INTO(&t->local.v4, (struct iphdr *)inner, saddr);
		BPF_CORE_READ_INTO(&t->remote.v4, (struct iphdr *)inner, daddr);
		BPF_CORE_READ_INTO(&from.v4, (struct iphdr *)outer, saddr);
	} else {
		len = IPV6_HLEN; /* with extension headers it is not known */
		BPF_CORE_READ_INTO(&t->local, (struct ipv6hdr *)inner, saddr);
		BPF_CORE_READ_INTO(&t->remote, (struct ipv6hdr *)inner, daddr);
		BPF_CORE_READ_INTO(&from, (struct ipv6hdr *)outer, saddr);
	}
	if (bpf_probe_read_kernel(&tcp, 8, inner + len))
		return;
	t->version = version;
	t->proto = IPPROTO_TCP;
	t->netns = BPF_CORE_READ(skb, dev, nd_net.net, ns.inum);
	t->local_port = bpf_ntohs(tcp.source);
	t->remote_port = bpf_ntohs(tcp.dest);
	owner = bpf_map_lookup_elem(&connections, t);
	if (owner && owner->isn == bpf_ntohl(tcp.seq))
		end_wait(ctx, (void *)owner->sk, IN_HOOK);
	life = find_life(&key);
	if (!life || life->established ||
	    life->report.attempt.seq != bpf_ntohl(tcp.seq))
		return;
	take_icmp_sender(bpf_ntohl(tcp.seq), &from);
	life->icmp_from = from;
	life->icmp_type = type;
	life->icmp_code = code;
	life->has_icmp = true;
}

static __always_inline void note_icmpv4(void *ctx, struct sk_buff *skb)
{
	struct icmphdr *icmp = (void *)BPF_CORE_READ(skb, head) +
			       BPF_CORE_READ(skb, transport_header);

	note_icmp(ctx, skb, 4, BPF_CORE_READ(icmp, type),
		  BPF_CORE_READ(icmp, code));
}

/* No answer has come in time: the kernel sends the SYN again, or gives up. */
static __always_inline void note_unanswered(struct sock *sk)
{
	struct life_key key = { .egress = true };
	struct life *life;

	if (!read_socket(sk, IPPROTO_TCP, &key.ends))
		return;
	life = find_life(&key);
	if (life)
		life->unanswered = bpf_ktime_get_boot_ns();
}

/* A SYN is sent again: by which socket, until it is known whether it has left. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} resending SEC(".maps");

static __always_inline void enter_resend(struct sock *sk)
{
	__u32 zero = 0;
	__u64 *now = bpf_map_lookup_elem(&resending, &zero);

	if (now &&
	    BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_SYN_SENT_STATE)
		*now = (__u64)sk;
}

static __always_inline void leave_resend(int result)
{
	__u32 zero = 0;
	__u64 *now = bpf_map_lookup_elem(&resending, &zero);
	struct life_key key = { .egress = true };
	struct life *life;
	struct sock *sk;

	if (!now || !*now)
		return;
	sk = (void *)*now;
	*now = 0;
	if (!read_socket(sk, IPPROTO_TCP, &key.ends))
		return;
	life = find_life(&key);
	if (!life)
		return;
	/* above 0: a queue was full, see net_xmit_errno() */
	life->not_sent = result > 0 ? result : -result;
	life->unanswered = 0; /* the kernel has not given up */
}

/*
 * A request for a connection is looked at again, after a second and longer each
 * time, until the kernel drops it; then it is in no list any more.
 */
static __always_inline void enter_request(struct timer_list *timer)
{
	__u64 req = (__u64)timer -
		    bpf_core_field_offset(struct request_sock, rsk_timer);
	struct call_key key = { bpf_get_smp_processor_id(), CALL_REQUEST };

	bpf_map_update_elem(&calls, &key, &req, BPF_ANY);
}

static __always_inline void leave_request(void *ctx)
{
	struct call_key key = { bpf_get_smp_processor_id(), CALL_REQUEST };
	struct sock **known = bpf_map_lookup_elem(&calls, &key), *req;
	struct workspace *space = get_workspace(IN_HOOK);
	struct life *life = get_new_life(IN_HOOK);
	struct life_key ends = {};
	struct report *report;

	if (!known || !space || !life)
		return;
	req = *known;
	bpf_map_delete_elem(&calls, &key);
	if (BPF_CORE_READ(req, __sk_common.skc_nulls_node.pprev) ||
	    BPF_CORE_READ((struct request_sock *)req, rsk_timer.entry.pprev))
		return; /* it is still awaited, or established at this moment */
	if (!read_ends(req, IPPROTO_TCP, &ends.ends) || !take_life(&ends, life))
		return;
	begin_outcome(&space->report, life, failed, IN_HOOK);
	report = &space->report;
	report->outcome.latency = report->now - life->begun;
	report->outcome.cause = CAUSE_SILENCE;
	tell_outcome(ctx, space);
}

/*
 * The kernel drops a packet, and says why: netgadget attaches this when it is asked
 * to, as the kernel comes here once for about each connection that is fine.
 */
static __always_inline void note_drop(struct sk_buff *skb, __u32 reason)
{
	void *head = BPF_CORE_READ(skb, head);
	void *network = head + BPF_CORE_READ(skb, network_header);
	void *transport = head + BPF_CORE_READ(skb, transport_header);
	struct arrival arrived = {};
	struct life_key sent = { .egress = true };
	struct report *report;
	struct tcp_header tcp;
	struct life *life;
	__u8 version;

	if (bpf_probe_read_kernel(&version, sizeof(version), network) ||
	    bpf_probe_read_kernel(&tcp, sizeof(tcp), transport) ||
	    (tcp.flags & (TCPHDR_SYN | TCPHDR_ACK)) != TCPHDR_SYN)
		return;
	if (!read_headers(network, version >> 4, &tcp, &arrived))
		return;
	arrived.ends.netns = BPF_CORE_READ(skb, dev, nd_net.net, ns.inum);
	report = bpf_map_lookup_elem(&arrivals, &arrived);
	if (report)
		report->drop = reason;
	set_arrived_as(&sent.ends, &arrived.ends);
	if (!sent.ends.netns)
		sent.ends.netns = BPF_CORE_READ(
			skb, sk, __sk_common.skc_net.net, ns.inum);
	life = find_life(&sent);
	if (life && life->report.attempt.seq == arrived.number)
		life->drop = reason;
}

#endif
