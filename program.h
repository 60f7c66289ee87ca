/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_PROGRAM_H
#define NETWORK_PROGRAM_H

#include <gadget/types.h>

/* Bytes, with the zero at the end. */
#define PATH_LEN 512
#define THREAD_LEN 16 /* TASK_COMM_LEN in include/linux/sched.h */

/* IANA's protocol numbers; IG prints the names. */
enum network_protocol : __u8 {
	TCP = 6,
	UDP = 17,
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
	struct gadget_l4endpoint_t endpoint; /* peer's address, called port */
	enum network_protocol protocol_raw;
	struct gadget_l4endpoint_t src; /* the initiator */
	struct gadget_l4endpoint_t dst; /* the one it called */
	/* As the socket of this side has them; addresses and ports zero: none known. */
	struct gadget_l4endpoint_t local;
	struct gadget_l4endpoint_t remote;
	char thread[THREAD_LEN]; /* where proc.comm names the process */
	gadget_netns_id netns_id;
	__u32 retries; /* of this SYN, before this one */
	__u32 suppressed; /* attempts of the owner since its event before */
	/*
	 * Sent with --paths alone. What IG gets is filled up to a multiple of 8
	 * bytes, behind a length of 4, and not with zeros: see perf_output_sample().
	 */
	char cwd[PATH_LEN];
	char exepath[PATH_LEN];
};

_Static_assert(__builtin_offsetof(struct event, cwd) % 8 == 4,
	       "an event without paths has bytes of nobody behind it");

#endif
