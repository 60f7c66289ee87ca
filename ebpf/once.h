/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_ONCE_H
#define NETWORK_ONCE_H

/*
 * Each attempt once. Where devices are stacked (VLAN, bond, bridge), a packet
 * is seen on each of them, and is one attempt. The same SYN again on a device
 * that had it is a retransmission.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/macros.h>
#include <gadget/types.h>

#include "packet.h"
#include "params.h"
#include "report.h"
#include "socket.h"

/*
 * The copies of a packet follow each other at once, but for a queue between
 * the devices; a SYN is sent again after a second, see TCP_TIMEOUT_INIT.
 */
#define COPIES_WITHIN_NS (500 * 1000 * 1000ULL)
#define MAX_STACKED 8 /* devices that one packet passes */

const volatile __u32 attempts_max_entries = 4096;
GADGET_PARAM(attempts_max_entries);

const volatile __u32 flows_max_entries = 4096;
GADGET_PARAM(flows_max_entries);

/* Which packet: a key of maps, no byte is left unset. */
struct packet_id {
	struct tuple ends;
	__u64 buffer; /* a datagram's: its copies share it */
	__u32 number; /* a SYN's sequence number, a datagram's first bytes */
	__u32 egress;
};

/* Where it was seen since it was reported last. */
struct sightings {
	__u64 since; /* ns since the boot */
	__u32 retries;
	__u32 count;
	__u32 devices[MAX_STACKED]; /* ifindex, or 0 */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct packet_id);
	__type(value, struct sightings);
} attempts SEC(".maps");

static __always_inline void identify(struct __sk_buff *ctx,
				     const struct report *report,
				     struct packet_id *id)
{
	const struct attempt *a = &report->attempt;
	struct sk_buff *skb = (void *)ctx;

	id->ends = report->ends;
	id->egress = a->egress;
	if (a->proto == IPPROTO_TCP) {
		id->number = a->seq;
		return;
	}
	id->number = a->start;
	id->buffer = (__u64)BPF_CORE_READ(skb, head);
}

static __always_inline bool was_seen_on(const struct sightings *s, __u32 device)
{
	bool seen = false;

	for (int i = 0; i < MAX_STACKED; i++)
		seen |= s->devices[i] == device;
	return seen;
}

/* Whether it is another device's, of a packet that was just reported. */
static __always_inline bool is_copy_on(struct sightings *s, __u32 device,
				       __u64 now)
{
	__u32 count = s->count;

	if (was_seen_on(s, device) || now - s->since > COPIES_WITHIN_NS ||
	    count >= MAX_STACKED)
		return false;
	s->devices[count] = device;
	s->count = count + 1;
	return true;
}

/*
 * Whether the packet was reported as it passed another device; if not, the
 * report gets how often its SYN was sent before.
 */
static __always_inline bool is_copy(struct __sk_buff *skb,
				    struct report *report)
{
	struct sightings first = {}, *known;
	__u64 now = bpf_ktime_get_ns();
	struct packet_id id = {};

	identify(skb, report, &id);
	known = bpf_map_lookup_elem(&attempts, &id);
	if (known && is_copy_on(known, report->device, now)) {
		report->retries = known->retries;
		return !copies;
	}

	first.since = now;
	first.count = 1;
	first.devices[0] = report->device;
	if (known && report->attempt.proto == IPPROTO_TCP)
		first.retries = known->retries + 1;
	report->retries = first.retries;
	bpf_map_update_elem(&attempts, &id, &first, BPF_ANY);
	return false;
}

/*
 * UDP flows by the ends of this side, and when the last datagram of either
 * direction was seen, ns since the boot.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tuple);
	__type(value, __u64);
} flows SEC(".maps");

/* Whether the datagram goes on with a flow, be it as a reply or a copy. */
static __always_inline bool is_of_known_flow(const struct report *report)
{
	__u64 now, *last;
	bool known;

	if (!udp_flows || report->attempt.proto != IPPROTO_UDP)
		return false;
	now = bpf_ktime_get_ns();
	last = bpf_map_lookup_elem(&flows, &report->ends);
	if (!last) {
		bpf_map_update_elem(&flows, &report->ends, &now, BPF_ANY);
		return false;
	}
	known = now - *last <= udp_idle * 1000000000ULL;
	*last = now;
	return known;
}

#endif
