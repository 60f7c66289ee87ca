/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_DEVICE_H
#define NETWORK_DEVICE_H

/*
 * Devices that are stacked: a packet that comes in at a port of a bond is seen
 * there first, and goes to a socket that is bound to the bond or its VLAN.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define MAX_LEVELS 4 /* of devices above each other */
#define MAX_UPPER 16 /* devices right above one, such as VLANs */

enum leads {
	LEADS_NOWHERE, /* not to that device */
	LEADS_THERE,
	LEADS_PERHAPS, /* there are more ways than are followed */
};

/* What is right above a device. */
struct upper {
	struct net_device
		*next; /* the one that it is a port of, or the only one */
	__u32 count;
	bool found; /* the device that is looked for */
};

static __always_inline void look_above(struct net_device *dev, __u32 ifindex,
				       struct upper *upper)
{
	struct list_head *head =
		(void *)dev +
		bpf_core_field_offset(struct net_device, adj_list.upper);
	struct list_head *node = BPF_CORE_READ(head, next);
	struct netdev_adjacent *adjacent;
	struct net_device *above;
	bool port = false;

	for (int i = 0; i < MAX_UPPER && node && node != head; i++) {
		adjacent = (void *)node -
			   bpf_core_field_offset(struct netdev_adjacent, list);
		above = BPF_CORE_READ(adjacent, dev);
		if (BPF_CORE_READ(above, ifindex) == ifindex)
			upper->found = true;
		if (!port) {
			upper->next = above;
			port = BPF_CORE_READ(adjacent, master);
		}
		upper->count++;
		node = BPF_CORE_READ(node, next);
	}
	if (port && upper->count < MAX_UPPER)
		upper->count = 1; /* it takes all that comes in */
}

/*
 * Whether what a device receives can come to another one. Not static: verified
 * once, and not for each socket.
 */
__noinline int leads_to(struct __sk_buff *ctx, __u32 ifindex)
{
	struct sk_buff *skb = (void *)ctx;
	struct net_device *dev = BPF_CORE_READ(skb, dev);

	if (BPF_CORE_READ(dev, ifindex) == ifindex)
		return LEADS_THERE;
	for (int i = 0; i < MAX_LEVELS; i++) {
		struct upper upper = {};

		look_above(dev, ifindex, &upper);
		if (upper.found)
			return LEADS_THERE;
		if (!upper.count)
			return LEADS_NOWHERE;
		if (upper.count > 1)
			return LEADS_PERHAPS;
		dev = upper.next;
	}
	return LEADS_PERHAPS;
}

#endif
