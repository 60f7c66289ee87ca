// SPDX-License-Identifier: GPL-2.0
/*
 * What one writes who wants to see TCP connections begin: each field where it is
 * needed, by a load of its own. It knows IPv4 and IPv6, and no more.
 */
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TCP_FLAGS 13 /* bytes from the TCP header's start */
#define SYN 0x02
#define ACK 0x10

SEC("socket")
int plain(struct __sk_buff *skb)
{
	__u8 proto, version_ihl, flags;
	__be16 protocol;
	int l4;

	if (bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_proto), &protocol,
			       sizeof(protocol)))
		return 0;
	if (protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(
			    skb, ETH_HLEN + offsetof(struct iphdr, protocol),
			    &proto, sizeof(proto)))
			return 0;
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &version_ihl,
				       sizeof(version_ihl)))
			return 0;
		l4 = ETH_HLEN + (version_ihl & 0xF) * 4;
	} else if (protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(
			    skb, ETH_HLEN + offsetof(struct ipv6hdr, nexthdr),
			    &proto, sizeof(proto)))
			return 0;
		l4 = ETH_HLEN + sizeof(struct ipv6hdr);
	} else {
		return 0;
	}
	if (proto != IPPROTO_TCP)
		return 0;
	if (bpf_skb_load_bytes(skb, l4 + TCP_FLAGS, &flags, sizeof(flags)))
		return 0;
	return (flags & (SYN | ACK)) == SYN;
}

char _license[] SEC("license") = "GPL";
