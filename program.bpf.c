// SPDX-License-Identifier: GPL-2.0
/*
 * network: which process tried to talk to whom.
 *
 * A socket filter sees every packet of a network namespace and reports those
 * that begin something: TCP segments with SYN and without ACK, and UDP
 * datagrams to a port below 1024, or the first of each flow.
 */
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/macros.h>
#include <gadget/types.h>

#include "program.h"
#include "ebpf/params.h"
#include "ebpf/read.h"
#include "ebpf/packet.h"
#include "ebpf/glance.h"
#include "ebpf/report.h"
#include "ebpf/tracepoint.h"
#include "ebpf/conntrack.h"
#include "ebpf/once.h"
#include "ebpf/holders.h"
#include "ebpf/books.h"
#include "ebpf/raw.h"
#include "ebpf/owner.h"
#include "ebpf/deliver.h"
#include "ebpf/arrivals.h"
#include "ebpf/forwarded.h"
#include "ebpf/unseen.h"
#include "ebpf/outcome.h"
#include "ebpf/refusal.h"
#include "ebpf/enter.h"
#include "ebpf/talked.h"

/* Verified once, as they are not static. */
__noinline int report_packet(struct __sk_buff *skb)
{
	struct workspace *space = get_workspace(IN_PACKET);

	if (!space || (space->report.forwarded && !forwarded))
		return false;
	return report_attempt(skb, space, false);
}

__noinline int await(struct __sk_buff *skb)
{
	struct workspace *space = get_workspace(IN_PACKET);

	if (!space || !may_wait(skb, &space->report))
		return false;
	return await_answer(skb, space);
}

enum packet {
	PACKET_OF_NO_USE,
	PACKET_REFUSES,
	PACKET_BEGINS, /* an attempt, as the report says now */
};

/* What is read is not on the stack of all that is called later. */
__noinline int read_packet(struct __sk_buff *skb)
{
	struct workspace *space = get_workspace(IN_PACKET);
	struct report *report;

	if (!space)
		return PACKET_OF_NO_USE;
	report = &space->report;
	__builtin_memset(report, 0, sizeof(*report));
	if (!read_attempt(skb, &report->attempt))
		return report->attempt.refuses ? PACKET_REFUSES :
						 PACKET_OF_NO_USE;
	begin_report(report, skb);
	return PACKET_BEGINS;
}

/* Of what is left of the traffic after a glance. */
__noinline int look_at(struct __sk_buff *skb)
{
	struct workspace *space = get_workspace(IN_PACKET);
	int packet = read_packet(skb);
	struct attempt *attempt;
	struct report *report;
	bool wanted, sent;
	int settled;

	if (packet == PACKET_REFUSES)
		note_refusal(skb);
	if (packet != PACKET_BEGINS || !space)
		return 0;
	report = &space->report;
	attempt = &report->attempt;
	if (attempt->egress)
		untranslate(skb);
	if (!wants_device(skb->ifindex)) {
		if (attempt->egress)
			find_owner(skb); /* it was seen */
		return 0;
	}
	if (can_go_on(report) && goes_on(skb))
		return 0;
	wanted = wants_direction(attempt->egress) && wants_called_port(report);
	if (!wanted && !(attempt->egress && skb->ingress_ifindex))
		return 0;
	if (is_forwarded(skb) || !wanted || is_copy(skb))
		return 0;

	if (!report->found.known && !report->forwarded)
		find_owner(skb);
	if (report->found.is_reported)
		return 0;
	sent = (attempt->egress || !await(skb)) && report_packet(skb);
	for (int i = 0; i < SETTLED_BY_PACKET; i++) {
		settled = settle_from_packet(skb);
		if (settled == NOT_SETTLED)
			break;
		sent |= settled == SETTLED_BY_EVENT;
	}
	for (int i = 0; sent && i < SENT_BY_PACKET; i++)
		if (!send_unsent_from_packet(skb, space))
			break;
	return 0;
}

SEC("socket1")
int network(struct __sk_buff *skb)
{
	if (is_worth_a_look(skb))
		look_at(skb);
	return 0;
}

/*
 * The clock, by what happens on an idle machine as well: a timeout in the
 * kernel, some ten a second, and the kernel's own look at its statistics, once a
 * second or, where nothing else wakes the CPU, two.
 */
SEC("kprobe/process_timeout")
int BPF_KPROBE(network_timeout)
{
	settle_by_clock(ctx);
	send_by_clock(ctx);
	return 0;
}

SEC("kprobe/vmstat_shepherd")
int BPF_KPROBE(network_shepherd)
{
	settle_by_clock(ctx);
	send_by_clock(ctx);
	return 0;
}

/* The tuple is final, and nothing has been sent. */
SEC("kprobe/tcp_connect")
int BPF_KPROBE(network_tcp_connect, struct sock *sk)
{
	book_connection(sk, IPPROTO_TCP);
	forget_asked();
	return 0;
}

/* A connect() that finds no route, or no port of its own. */
SEC("kprobe/tcp_v4_connect")
int BPF_KPROBE(network_tcp_v4, struct sock *sk, void *address, int len)
{
	enter_connect(sk, address, len);
	return 0;
}

SEC("kretprobe/tcp_v4_connect")
int BPF_KRETPROBE(network_tcp_v4_return, int result)
{
	leave_connect(ctx, result, REASON_NONE);
	return 0;
}

SEC("kprobe/tcp_v6_connect")
int BPF_KPROBE(network_tcp_v6, struct sock *sk, void *address, int len)
{
	enter_connect(sk, address, len);
	return 0;
}

SEC("kretprobe/tcp_v6_connect")
int BPF_KRETPROBE(network_tcp_v6_return, int result)
{
	leave_connect(ctx, result, REASON_NONE);
	return 0;
}

/* One that a program of a cgroup forbids; called where there is such a program. */
SEC("kprobe/tcp_v4_pre_connect")
int BPF_KPROBE(network_pre_v4, struct sock *sk, void *address, int len)
{
	enter_connect(sk, address, len);
	return 0;
}

SEC("kretprobe/tcp_v4_pre_connect")
int BPF_KRETPROBE(network_pre_v4_return, int result)
{
	leave_connect(ctx, result, REASON_CONNECT);
	return 0;
}

SEC("kprobe/tcp_v6_pre_connect")
int BPF_KPROBE(network_pre_v6, struct sock *sk, void *address, int len)
{
	enter_connect(sk, address, len);
	return 0;
}

SEC("kretprobe/tcp_v6_pre_connect")
int BPF_KRETPROBE(network_pre_v6_return, int result)
{
	leave_connect(ctx, result, REASON_CONNECT);
	return 0;
}

/*
 * One that a security module forbids; by netgadget alone, and where outcomes are asked
 * for: it is a hook for each connect() of any family. IG does not attach what has this
 * name.
 */
SEC("kprobe/gadget_program_disabled")
int BPF_KPROBE(network_security, struct socket *socket, void *address, int len)
{
	struct sock *sk = READ(socket, sk);

	if (wants_outcome() && is_socket_of(sk, IPPROTO_TCP))
		enter_connect(sk, address, len);
	return 0;
}

SEC("kretprobe/gadget_program_disabled")
int BPF_KRETPROBE(network_security_return, int result)
{
	if (wants_outcome())
		leave_connect(ctx, result, REASON_SECURITY);
	return 0;
}

/* A softirq can bring this in the middle of another one. */
static __always_inline void change_state_nested(
	struct bpf_raw_tracepoint_args *ctx)
{
	__u32 runs_in = enter_tracepoint();

	if (runs_in == CONTEXTS)
		return;
	change_state(ctx, (void *)ctx->args[0], ctx->args[1], ctx->args[2],
		     runs_in);
	leave_tracepoint();
}

/* A connection succeeds, or fails; its socket is closed. */
SEC("raw_tracepoint/inet_sock_set_state")
int network_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	if (wants_outcome() || ctx->args[1] == TCP_SYN_SENT_STATE)
		change_state_nested(ctx);
	return 0;
}

/*
 * The same once more: since Linux 6.2 a program does not run while it runs on the
 * same CPU, and a softirq's change that comes then is this one's. What the other one
 * has told is not told again: see change_life().
 */
SEC("raw_tracepoint/inet_sock_set_state")
int network_set_state_nested(struct bpf_raw_tracepoint_args *ctx)
{
	if (wants_outcome() && is_turn(ctx->args[1], ctx->args[2]))
		change_state_nested(ctx);
	return 0;
}

/*
 * And again: a task can be preempted on its way into a program, or out of it, which is
 * skipped on that CPU until the task comes back; see hold_cpu().
 */
SEC("raw_tracepoint/inet_sock_set_state")
int network_set_state_preempted(struct bpf_raw_tracepoint_args *ctx)
{
	if (is_preemptible() && wants_outcome() &&
	    is_turn(ctx->args[1], ctx->args[2]))
		change_state_nested(ctx);
	return 0;
}

static __always_inline void note_reset_nested(
	struct bpf_raw_tracepoint_args *ctx)
{
	__u32 runs_in = enter_tracepoint();

	if (runs_in == CONTEXTS)
		return;
	note_reset(ctx, (void *)ctx->args[0], runs_in);
	leave_tracepoint();
}

/* What ends a connection, and why: all of it is rare. */
SEC("raw_tracepoint/tcp_receive_reset")
int network_reset(struct bpf_raw_tracepoint_args *ctx)
{
	if (wants_outcome())
		note_reset_nested(ctx);
	return 0;
}

/* Once more, as of states. */
SEC("raw_tracepoint/tcp_receive_reset")
int network_reset_nested(struct bpf_raw_tracepoint_args *ctx)
{
	if (wants_outcome())
		note_reset_nested(ctx);
	return 0;
}

SEC("kprobe/tcp_v4_err")
int BPF_KPROBE(network_icmp, struct sk_buff *skb)
{
	if (wants_outcome())
		note_icmpv4(ctx, skb);
	return 0;
}

SEC("kprobe/tcp_v6_err")
int BPF_KPROBE(network_icmpv6, struct sk_buff *skb, void *opt, u8 type, u8 code)
{
	if (wants_outcome())
		note_icmp(ctx, skb, 6, type, code);
	return 0;
}

/* By netgadget alone, as network_security(): see note_drop(). */
SEC("raw_tracepoint/gadget_program_disabled")
int network_drop(struct bpf_raw_tracepoint_args *ctx)
{
	if (!wants_outcome())
		return 0;
	hold_cpu();
	note_drop((void *)ctx->args[0], ctx->args[2]);
	release_cpu();
	return 0;
}

/* Nothing was heard for a second, or longer. */
SEC("kprobe/tcp_retransmit_timer")
int BPF_KPROBE(network_retransmit, struct sock *sk)
{
	if (READ(sk, __sk_common.skc_state) != TCP_SYN_SENT_STATE)
		return 0;
	end_wait(ctx, sk, IN_HOOK);
	if (wants_outcome())
		note_unanswered(sk);
	return 0;
}

/* What is sent again, and whether the kernel has let it out. */
SEC("kprobe/tcp_retransmit_skb")
int BPF_KPROBE(network_resend, struct sock *sk)
{
	if (wants_outcome())
		enter_resend(sk);
	return 0;
}

SEC("kretprobe/tcp_retransmit_skb")
int BPF_KRETPROBE(network_resend_return, int result)
{
	if (wants_outcome())
		leave_resend(result);
	return 0;
}

/* A handshake that somebody else has begun, and does not go on with. */
SEC("kprobe/reqsk_timer_handler")
int BPF_KPROBE(network_request, struct timer_list *timer)
{
	if (wants_outcome())
		enter_request(timer);
	return 0;
}

SEC("kretprobe/reqsk_timer_handler")
int BPF_KRETPROBE(network_request_return)
{
	if (wants_outcome())
		leave_request(ctx);
	return 0;
}

SEC("kprobe/raw_sendmsg")
int BPF_KPROBE(network_raw_ipv4, struct sock *sk, struct msghdr *msg)
{
	book_raw_message(sk, msg, 4);
	return 0;
}

SEC("kprobe/rawv6_sendmsg")
int BPF_KPROBE(network_raw_ipv6, struct sock *sk, struct msghdr *msg)
{
	book_raw_message(sk, msg, 6);
	return 0;
}

SEC("kprobe/packet_sendmsg")
int BPF_KPROBE(network_packet, struct socket *socket, struct msghdr *msg)
{
	book_packet(READ(socket, sk), msg);
	return 0;
}

/* Who listens, and who accepts. */
SEC("kprobe/inet_csk_listen_start")
int BPF_KPROBE(network_listen, struct sock *sk)
{
	book_listener(sk);
	return 0;
}

SEC("kprobe/inet_csk_accept")
int BPF_KPROBE(network_accept, struct sock *sk)
{
	book_server(sk);
	return 0;
}

/* The kernel's answer: which listener has got a SYN. */
SEC("kprobe/tcp_conn_request")
int BPF_KPROBE(network_conn_request, void *ops, void *af_ops, struct sock *sk,
	       struct sk_buff *skb)
{
	answer(ctx, sk, skb);
	return 0;
}

/* Nobody reads rows: there are none. */
struct older_socket {
	__u32 none;
};

GADGET_ITER(older_sockets, older_socket, network_older);

/* Once, when all hooks are attached: what is older than they are. */
SEC("iter/task_file")
int network_older(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;

	find_host();
	if (task && file)
		book_older(file, task, ctx->fd);
	return 0;
}

/* bind(), and the first use of a socket that is not bound. */
SEC("kprobe/udp_lib_get_port")
int BPF_KPROBE(network_get_port, struct sock *sk)
{
	enter(CALL_GET_PORT, sk);
	return 0;
}

SEC("kretprobe/udp_lib_get_port")
int BPF_KRETPROBE(network_get_port_return, int result)
{
	struct sock *sk = leave(CALL_GET_PORT);

	if (sk && !result)
		book_port(sk);
	return 0;
}

SEC("kprobe/udp_lib_unhash")
int BPF_KPROBE(network_unhash, struct sock *sk)
{
	close_port(sk);
	return 0;
}

SEC("kprobe/__ip4_datagram_connect")
int BPF_KPROBE(network_connect_ipv4, struct sock *sk)
{
	enter(CALL_CONNECT_IPV4, sk);
	return 0;
}

SEC("kretprobe/__ip4_datagram_connect")
int BPF_KRETPROBE(network_connect_ipv4_return, int result)
{
	struct sock *sk = leave(CALL_CONNECT_IPV4);

	if (sk && !result)
		book_peer(sk);
	return 0;
}

SEC("kprobe/__ip6_datagram_connect")
int BPF_KPROBE(network_connect_ipv6, struct sock *sk)
{
	enter(CALL_CONNECT_IPV6, sk);
	return 0;
}

SEC("kretprobe/__ip6_datagram_connect")
int BPF_KRETPROBE(network_connect_ipv6_return, int result)
{
	struct sock *sk = leave(CALL_CONNECT_IPV6);

	if (sk && !result)
		book_peer(sk);
	return 0;
}

SEC("kprobe/__udp_disconnect")
int BPF_KPROBE(network_disconnect, struct sock *sk)
{
	unbook_peer(sk);
	return 0;
}

SEC("kprobe/inet_sock_destruct")
int BPF_KPROBE(network_destruct, struct sock *sk)
{
	end_wait(ctx, sk, IN_HOOK);
	forget_socket(sk);
	return 0;
}

/* In the context of the parent: see kernel_clone(). */
SEC("raw_tracepoint/sched_process_fork")
int network_fork(struct bpf_raw_tracepoint_args *ctx)
{
	if (!follow)
		return 0;
	hold_cpu();
	follow_child((void *)ctx->args[0], (void *)ctx->args[1]);
	release_cpu();
	return 0;
}

SEC("raw_tracepoint/sched_process_exit")
int network_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (void *)ctx->args[0];

	hold_cpu();
	leave_heirs(task);
	if (follow)
		unfollow(task);
	release_cpu();
	return 0;
}

/*
 * In unshare() and setns(), when the task is where it goes. A compiler may have
 * put it into the latter.
 */
SEC("kretprobe/switch_task_namespaces")
int BPF_KRETPROBE(network_switch_return)
{
	tell_entry(ctx);
	return 0;
}

SEC("kretprobe/sys_setns")
int BPF_KRETPROBE(network_setns_return)
{
	tell_entry(ctx);
	return 0;
}

/* Should these have been missed: most who enter a namespace execute a program. */
SEC("raw_tracepoint/sched_process_exec")
int network_exec(struct bpf_raw_tracepoint_args *ctx)
{
	hold_cpu();
	tell_entry(ctx);
	release_cpu();
	return 0;
}

/* A task's first steps, of its own: see schedule_tail(). */
SEC("kprobe/calculate_sigpending")
int BPF_KPROBE(network_born)
{
	tell_entry(ctx);
	return 0;
}

SEC("kprobe/unix_listen")
int BPF_KPROBE(network_unix_listen)
{
	if (follow)
		note_listener();
	return 0;
}

/* Also of seqpacket sockets. */
SEC("kprobe/unix_stream_connect")
int BPF_KPROBE(network_unix_connect, struct socket *socket)
{
	if (follow)
		enter(CALL_CONNECT_UNIX, READ(socket, sk));
	return 0;
}

SEC("kretprobe/unix_stream_connect")
int BPF_KRETPROBE(network_unix_connect_return, int result)
{
	struct sock *sk = follow ? leave(CALL_CONNECT_UNIX) : NULL;

	if (sk && !result)
		note_connected(sk);
	return 0;
}

char _license[] SEC("license") = "GPL";
