// SPDX-License-Identifier: GPL-2.0
/*
 * network: which process tried to talk to whom.
 *
 * A socket filter sees every packet of a network namespace and reports those
 * that begin something: TCP segments with SYN and without ACK, and UDP
 * datagrams to a port below 1024.
 */
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/macros.h>
#include <gadget/types.h>

#include "program.h"
#include "ebpf/params.h"
#include "ebpf/packet.h"
#include "ebpf/owner.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} events SEC(".maps");

GADGET_TRACER(network, events, event);

static __always_inline void set_meta(struct event *event, __u32 netns,
				     const struct attempt *a)
{
	event->timestamp_raw = bpf_ktime_get_boot_ns();
	event->netns_id = netns;
	event->egress = a->egress;
	event->protocol_raw = a->proto;
}

static __always_inline void set_l4endpoint(struct gadget_l4endpoint_t *endpoint,
					   const union gadget_ip_addr_t *addr,
					   __u16 port, const struct attempt *a)
{
	endpoint->addr_raw = *addr;
	endpoint->port = port;
	endpoint->proto_raw = a->proto;
	endpoint->version = a->version;
}

static __always_inline void set_endpoints(struct event *event,
					  const struct attempt *a)
{
	set_l4endpoint(&event->src, &a->saddr, a->sport, a);
	set_l4endpoint(&event->dst, &a->daddr, a->dport, a);
	set_l4endpoint(&event->endpoint, a->egress ? &a->daddr : &a->saddr,
		       a->dport, a);
}

SEC("socket1")
int network(struct __sk_buff *skb)
{
	__u32 netns = skb->cb[0]; /* set by IG's dispatcher */
	struct attempt attempt = {};
	/* On the stack, and so nobody else's: no field of another event. */
	struct event event = {};
	bool known;

	if (!read_attempt(skb, &attempt))
		return 0;

	known = find_owner(netns, &attempt, &event.proc);
	if (!wants_process(&event.proc, known))
		return 0;

	set_meta(&event, netns, &attempt);
	set_endpoints(&event, &attempt);
	bpf_perf_event_output(skb, &events, BPF_F_CURRENT_CPU, &event,
			      sizeof(event));
	return 0;
}

char _license[] SEC("license") = "GPL";
