/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_CONNECTIONS_PROGRAM_H
#define NETWORK_CONNECTIONS_PROGRAM_H

#include <gadget/types.h>

#include "../program.h"

/*
 * Attempts that are counted together: the schema of the data source "connections",
 * with what follows. gadget.yaml describes each field to the user; addresses are in
 * network byte order, ports in host byte order. A key of a map, no byte is unset.
 */
struct connection {
	gadget_comm comm
		[TASK_COMM_LEN]; /* of the process; empty: nobody is known */
	struct gadget_l4endpoint_t endpoint; /* peer's address, called port */
	gadget_mntns_id mntns_id;
	gadget_netns_id netns_id;
	gadget_uid uid;
	gadget_errno error_raw; /* of those that have failed */
	bool egress;
	enum network_protocol protocol_raw;
	char cause[CAUSE_LEN]; /* of those that have failed */
	/*
	 * 0, but for what another program was counting at the same time. It is to be
	 * added.
	 */
	__u16 part;
};

/* Since the row was read last. */
struct connection_counts {
	gadget_counter__u64 attempts;
	gadget_counter__u64 established;
	gadget_counter__u64 failed;
	gadget_counter__u64 closed; /* of those that were established */
	gadget_counter__u64 tx_bytes; /* payload of those that were closed */
	gadget_counter__u64 rx_bytes;
	/* What has happened meanwhile, and had no row: there are too many. */
	gadget_counter__u64 uncounted;
};

#endif
