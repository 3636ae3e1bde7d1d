// SPDX-License-Identifier: GPL-2.0-only
/* Programs that take IPv4 packets past the routing of the namespace in the middle. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2
#define NEXT -1
#define DROP 2

/* What comes to one of these devices goes on at the other. */
int near;
int far;

/* The addresses for a packet that has no link-layer header. */
__u8 to_mac[ETH_ALEN];
__u8 from_mac[ETH_ALEN];

/* How many packets a program redirected. */
int redirected;

/* What the hooks saw of a packet's delivery time: its value, and its type (0: none is told). */
struct sight {
	__u64 tstamp;
	__u64 type;
};
struct sight at_first, at_second, at_third;
__u64 untyped;

static int other_side(struct __sk_buff *skb)
{
	return skb->ifindex == near ? far : near;
}

static int is_ip(struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IP);
}

SEC("tc")
int to_peer(struct __sk_buff *skb)
{
	if (!is_ip(skb))
		return NEXT;
	redirected++;
	return bpf_redirect_peer(other_side(skb), 0);
}

SEC("tc")
int to_neighbour(struct __sk_buff *skb)
{
	if (!is_ip(skb))
		return NEXT;
	redirected++;
	return bpf_redirect_neigh(other_side(skb), NULL, 0, 0);
}

SEC("tc")
int by_fib(struct __sk_buff *skb)
{
	struct bpf_redir_neigh next = {.nh_family = AF_INET};
	struct bpf_fib_lookup route = {.family = AF_INET, .ifindex = skb->ingress_ifindex};
	long found;

	if (!is_ip(skb))
		return NEXT;
	if (bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, saddr), &route.ipv4_src, 4) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, daddr), &route.ipv4_dst, 4))
		return DROP;
	found = bpf_fib_lookup(skb, &route, sizeof(route), 0);
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return DROP;
	next.ipv4_nh = route.ipv4_dst;
	redirected++;
	return bpf_redirect_neigh(route.ifindex, &next, sizeof(next), 0);
}

/* A packet of a device without link layer gets a header for the peer. */
SEC("tc")
int with_header_to_peer(struct __sk_buff *skb)
{
	struct ethhdr header;

	if (!is_ip(skb))
		return NEXT;
	__builtin_memcpy(header.h_dest, to_mac, ETH_ALEN);
	__builtin_memcpy(header.h_source, from_mac, ETH_ALEN);
	header.h_proto = bpf_htons(ETH_P_IP);
	if (bpf_skb_change_head(skb, ETH_HLEN, 0) || bpf_skb_store_bytes(skb, 0, &header, ETH_HLEN, 0))
		return DROP;
	redirected++;
	return bpf_redirect_peer(other_side(skb), 0);
}

/* The kernel takes the header off again for a device that has none. */
SEC("tc")
int out_of(struct __sk_buff *skb)
{
	if (!is_ip(skb))
		return NEXT;
	redirected++;
	return bpf_redirect(other_side(skb), 0);
}

static int look(struct __sk_buff *skb, struct sight *sight)
{
	if (is_ip(skb)) {
		sight->tstamp = skb->tstamp;
		sight->type = skb->tstamp_type;
	}
	return NEXT;
}

SEC("tc")
int see_first(struct __sk_buff *skb)
{
	return look(skb, &at_first);
}

SEC("tc")
int see_second(struct __sk_buff *skb)
{
	return look(skb, &at_second);
}

SEC("tc")
int see_third(struct __sk_buff *skb)
{
	return look(skb, &at_third);
}

/* A program that does not ask for the type is not told a delivery time on the way in. */
SEC("tc")
int see_untyped(struct __sk_buff *skb)
{
	if (is_ip(skb))
		untyped = skb->tstamp;
	return NEXT;
}

char _license[] SEC("license") = "GPL";
