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
#include "read.h"
#include "report.h"
#include "socket.h"

/*
 * The copies of a packet follow each other at once, but for a queue between
 * the devices; a SYN is sent again after a second, see TCP_TIMEOUT_INIT.
 */
#define COPIES_WITHIN_NS (500 * 1000 * 1000ULL)
#define MAX_STACKED 8 /* devices that one packet passes */

/*
 * Between two low ports (NTP, IKE, DNS): an answer comes as soon as conntrack
 * expects it (nf_conntrack_udp_timeout), and has several datagrams at once.
 */
#define ANSWERED_WITHIN_NS (30 * NSEC_PER_SEC)
#define ANSWERS_WITHIN_NS NSEC_PER_SEC

const volatile __u32 attempts_max_entries = 4096;
GADGET_PARAM(attempts_max_entries);

const volatile __u32 flows_max_entries = 4096;
GADGET_PARAM(flows_max_entries);

/* Whether so much time has gone by; since may be another CPU's, and later. */
static __always_inline bool is_past(__u64 since, __u64 time, __u64 now)
{
	return now > since + time;
}

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
	__u64 listener; /* the number of the socket that got it, or 0 */
	struct tuple socket; /* the ends that it had then */
	__u64 is_refused; /* by it, which was told */
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
	id->buffer = (__u64)READ(skb, head);
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

	if (was_seen_on(s, device) ||
	    is_past(s->since, COPIES_WITHIN_NS, now) || count >= MAX_STACKED)
		return false;
	s->devices[count] = device;
	s->count = count + 1;
	return true;
}

/*
 * Whether the packet was reported as it passed another device; if not, the
 * report gets how often its SYN was sent before. Not static: verified once.
 */
__noinline int is_copy(struct __sk_buff *skb)
{
	struct workspace *space = get_workspace(IN_PACKET);
	struct sightings first = {}, *known;
	struct packet_id id = {};
	struct report *report;

	if (!space)
		return true;
	report = &space->report;
	identify(skb, report, &id);
	known = bpf_map_lookup_elem(&attempts, &id);
	if (known && is_copy_on(known, report->device, report->now)) {
		report->retries = known->retries;
		return !copies;
	}

	first.since = report->now;
	first.count = 1;
	first.devices[0] = report->device;
	if (known && report->attempt.proto == IPPROTO_TCP) {
		first.retries = known->retries + 1;
		first.listener = known->listener;
		first.socket = known->socket;
		first.is_refused = known->is_refused;
	}
	report->retries = first.retries;
	bpf_map_update_elem(&attempts, &id, &first, BPF_ANY);
	return false;
}

/* A UDP flow, or what is asked and answered between two low ports. */
struct flow {
	__u64 last; /* ns since the boot: of the initiator's, or of either's */
	__u64 answered; /* when its last datagram was, or 0 */
	__u64 egress; /* whether this side is the initiator */
};

/* By the ends of this side. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tuple);
	__type(value, struct flow);
} flows SEC(".maps");

static __always_inline void begin_flow(const struct tuple *key, bool egress,
				       __u64 now)
{
	struct flow flow = { .last = now, .egress = egress };

	bpf_map_update_elem(&flows, key, &flow, BPF_ANY);
}

/*
 * Whether the datagram goes on with a flow, be it as a reply or a copy. What is
 * over can begin again by its initiator alone.
 */
static __always_inline bool is_of_known_flow(const struct tuple *key,
					     bool egress, __u64 now)
{
	struct flow *flow = bpf_map_lookup_elem(&flows, key);
	bool known;

	if (!flow) {
		begin_flow(key, egress, now);
		return false;
	}
	known = flow->egress != egress ||
		!is_past(flow->last, udp_idle * NSEC_PER_SEC, now);
	flow->last = now;
	return known;
}

/*
 * Whether the datagram answers one that was just seen, from the low port that
 * it asked to the low port that it came from. What the same side sends later is
 * its own.
 */
static __always_inline bool is_answer(const struct tuple *key, bool egress,
				      __u64 now)
{
	struct flow *flow = bpf_map_lookup_elem(&flows, key);

	if (flow && flow->egress == egress) {
		flow->last = now;
		flow->answered = 0;
		return false;
	}
	if (!flow || is_past(flow->last, ANSWERED_WITHIN_NS, now) ||
	    (flow->answered &&
	     is_past(flow->answered, ANSWERS_WITHIN_NS, now))) {
		begin_flow(key, egress, now);
		return false;
	}
	if (!flow->answered)
		flow->answered = now;
	return true;
}

/*
 * What a socket sends to itself has no other side: what is sent is one flow,
 * and what is received another.
 */
static __always_inline void set_flow_key(struct tuple *key,
					 const struct tuple *ends,
					 const struct report *report)
{
	*key = *ends;
	if (key->local_port == key->remote_port &&
	    is_same(&key->local, &key->remote))
		key->pad[0] = report->attempt.egress;
}

static __always_inline bool is_of_flow(const struct tuple *ends,
				       const struct report *report)
{
	bool egress = report->attempt.egress;
	struct tuple key;

	set_flow_key(&key, ends, report);
	return udp_flows ? is_of_known_flow(&key, egress, report->now) :
			   is_answer(&key, egress, report->now);
}

/* The ends of a datagram that can go on with what was an attempt. */
static __always_inline bool can_go_on(const struct report *report)
{
	const struct attempt *a = &report->attempt;

	return a->proto == IPPROTO_UDP &&
	       (udp_flows || (is_low(a->sport) && is_low(a->dport)));
}

/*
 * Whether it does, and so is no attempt. Of one whose ends are translated, those on
 * the wire come back from the network, and those of the socket over loopback. Not
 * static: verified once.
 */
__noinline int goes_on(struct __sk_buff *skb)
{
	struct workspace *space = get_workspace(IN_PACKET);
	struct report *report;
	bool known;

	if (!skb || !space)
		return false;
	report = &space->report;
	known = is_of_flow(&report->ends, report);
	if (report->translated)
		known |= is_of_flow(&report->socket, report);
	return known;
}

#endif
