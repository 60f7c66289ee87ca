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
#include "ebpf/packet.h"
#include "ebpf/report.h"
#include "ebpf/route.h"
#include "ebpf/once.h"
#include "ebpf/device.h"
#include "ebpf/books.h"
#include "ebpf/owner.h"
#include "ebpf/event.h"
#include "ebpf/limit.h"
#include "ebpf/deliver.h"

SEC("socket1")
int network(struct __sk_buff *skb)
{
	struct attempt attempt = {};
	struct workspace *space;
	struct report *report;

	if (!read_attempt(skb, &attempt))
		return 0;

	space = get_workspace(IN_PACKET);
	if (!space)
		return 0;
	report = &space->report;
	begin_report(report, skb, &attempt);
	if (goes_on(report) || !wants_direction(attempt.egress) ||
	    !wants_port(attempt.dport) || is_forwarded(skb, report) ||
	    is_copy(skb, report))
		return 0;

	find_owner(skb, report);
	if (wants_process(&report->found.proc, report->found.known))
		deliver(skb, space);
	else if (!report->found.known)
		count_left_out(attempt.egress);
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
	tick(ctx);
	return 0;
}

SEC("kprobe/vmstat_shepherd")
int BPF_KPROBE(network_shepherd)
{
	tick(ctx);
	return 0;
}

/* The tuple is final, and nothing has been sent. */
SEC("kprobe/tcp_connect")
int BPF_KPROBE(network_tcp_connect, struct sock *sk)
{
	book_connection(sk, IPPROTO_TCP);
	return 0;
}

/* A listener may get its port by the call: then it is booked at its return. */
SEC("kprobe/inet_csk_listen_start")
int BPF_KPROBE(network_listen, struct sock *sk)
{
	book_port(sk, IPPROTO_TCP);
	enter(CALL_LISTEN, sk);
	return 0;
}

SEC("kretprobe/inet_csk_listen_start")
int BPF_KRETPROBE(network_listen_return, int result)
{
	struct sock *sk = leave(CALL_LISTEN);

	if (sk && !result)
		book_port(sk, IPPROTO_TCP);
	else if (sk)
		close_port(sk); /* another one listens there */
	return 0;
}

SEC("kprobe/inet_csk_listen_stop")
int BPF_KPROBE(network_listen_stop, struct sock *sk)
{
	close_port(sk);
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
		book_port(sk, IPPROTO_UDP);
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
	forget_socket(sk);
	return 0;
}

char _license[] SEC("license") = "GPL";
