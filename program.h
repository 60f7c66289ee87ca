/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_PROGRAM_H
#define NETWORK_PROGRAM_H

#include <gadget/types.h>

/* Bytes, with the zero at the end. */
#define PATH_LEN 512
#define THREAD_LEN 16 /* TASK_COMM_LEN in include/linux/sched.h */
#define CAUSE_LEN 12
#define REASON_LEN 24

/* IANA's protocol numbers; IG prints the names. */
enum network_protocol : __u8 {
	TCP = 6,
	UDP = 17,
};

/* What an event tells of an attempt; IG prints the names. */
enum network_event : __u8 {
	attempt,
	established,
	failed,
	closed, /* what was established */
};

/*
 * One attempt of two endpoints to talk, as this network namespace saw it: the
 * schema of the data source "network". gadget.yaml describes each field to the
 * user; addresses are in network byte order, ports in host byte order.
 */
struct event {
	gadget_timestamp timestamp_raw;
	struct gadget_process proc; /* all zero: nobody known owns the socket */
	bool egress; /* sent by this namespace; false: received */
	enum network_event event_raw;
	gadget_errno error_raw; /* failed: what the application gets */
	struct gadget_l4endpoint_t endpoint; /* peer's address, called port */
	enum network_protocol protocol_raw;
	__u8 icmp_type; /* failed by an ICMP message: its own numbers */
	__u8 icmp_code;
	enum skb_drop_reason drop_raw; /* failed: why the kernel dropped it */
	gadget_duration latency_ns; /* until it was established, or failed */
	struct gadget_l4endpoint_t src; /* the initiator */
	struct gadget_l4endpoint_t dst; /* the one it called */
	/* As the socket of this side has them; addresses and ports zero: none known. */
	struct gadget_l4endpoint_t local;
	struct gadget_l4endpoint_t remote;
	struct gadget_l3endpoint_t by; /* failed: who ended it; zero: nobody */
	char thread[THREAD_LEN]; /* where proc.comm names the process */
	gadget_netns_id netns_id;
	__u32 retries; /* of this SYN, before this one */
	__u32 suppressed; /* attempts of the owner since its event before */
	/*
	 * Sent with --lifecycle alone. What IG gets is filled up to a multiple of 8
	 * bytes, behind a length of 4, and not with zeros: see perf_output_sample().
	 */
	gadget_duration duration_ns; /* closed: since it was established */
	gadget_bytes tx_bytes; /* closed: payload that was sent */
	gadget_bytes rx_bytes; /* closed: payload that was received */
	char cause[CAUSE_LEN]; /* failed: what ended it */
	char reason[REASON_LEN]; /* failed: the cause in detail */
	/* Sent with --paths alone. */
	char cwd[PATH_LEN];
	char exepath[PATH_LEN];
};

/* What is sent of an event, in bytes: without its outcome, and without paths. */
#define ATTEMPT_LEN \
	(__builtin_offsetof(struct event, suppressed) + sizeof(__u32))
#define EVENT_LEN __builtin_offsetof(struct event, cwd)

_Static_assert(ATTEMPT_LEN % 8 == 4 && EVENT_LEN % 8 == 4,
	       "an event that is cut has bytes of nobody behind it");

#endif
