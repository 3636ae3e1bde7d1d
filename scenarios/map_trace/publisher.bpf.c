// SPDX-License-Identifier: GPL-2.0-only
/* A program that changes its map through a pointer, and calls a function of its own that does nothing, for others to hook. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} state SEC(".maps");

__u32 key;
__u64 value;
__u32 answer;
__u32 hidden_answer;

__attribute__((noinline)) int changed(__u32 key, __u64 value)
{
	int answer = 1;

	/* The caller must not know it. */
	asm volatile("" : "+r"(answer) : "r"(key), "r"(value));
	return answer;
}

static __attribute__((noinline)) int hidden(__u32 key)
{
	int answer = 2;

	asm volatile("" : "+r"(answer) : "r"(key));
	return answer;
}

SEC("tc")
int publisher(struct __sk_buff *skb)
{
	__u64 *found = bpf_map_lookup_elem(&state, &key);

	if (!found)
		return 7;
	*found = value;
	answer = changed(key, value);
	hidden_answer = hidden(key);
	return 5;
}

/* The same function in programs of other types. */
SEC("kprobe")
int probe(void *ctx)
{
	return changed(key, value);
}

SEC("sk_lookup")
int choose(struct bpf_sk_lookup *ctx)
{
	changed(key, value);
	return SK_PASS;
}

/* Kernels before 7.1 take no global function without a result. */
__attribute__((noinline)) void told(__u32 key, __u64 value)
{
	asm volatile("" :: "r"(key), "r"(value));
}

SEC("tc")
int teller(struct __sk_buff *skb)
{
	told(key, value);
	return 5;
}

SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("cgroup/connect4")
int permit(struct bpf_sock_addr *ctx)
{
	return 1;
}

char LICENSE[] SEC("license") = "GPL";
