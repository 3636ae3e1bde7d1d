// SPDX-License-Identifier: GPL-2.0-only
/* Replacements of other programs' functions that use what only some types of programs may. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct guarded {
	struct bpf_spin_lock lock;
	__u32 value;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct guarded);
} guarded SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CPUMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bpf_cpumap_val);
} cpus SEC(".maps");

__u32 last_key;

SEC("freplace")
int replace_locking(__u32 key, __u64 value)
{
	struct guarded *found = bpf_map_lookup_elem(&guarded, &key);

	if (!found)
		return 0;
	bpf_spin_lock(&found->lock);
	found->value = value;
	bpf_spin_unlock(&found->lock);
	return 41;
}

/* Puts the socket to where 0 is, too: 0 for success, else 1, as programs that look sockets up may return no other. */
static __always_inline int copy_socket(__u32 key)
{
	struct bpf_sock *sk = bpf_map_lookup_elem(&sockets, &key);
	__u32 other = 0;
	int error;

	if (!sk)
		return 1;
	error = bpf_map_update_elem(&sockets, &other, sk, BPF_ANY);
	bpf_sk_release(sk);
	return error ? 1 : 0;
}

SEC("freplace")
int replace_in_sockets(__u32 key, __u64 value)
{
	return copy_socket(key);
}

SEC("tc")
int classify(struct __sk_buff *skb)
{
	return copy_socket(3);
}

/* The context goes on to a global function of its own. */
__attribute__((noinline)) int length(struct __sk_buff *skb)
{
	return skb->len;
}

SEC("freplace")
int replace_main(struct __sk_buff *skb)
{
	return length(skb);
}

SEC("freplace")
int redirect(struct xdp_md *ctx)
{
	return bpf_redirect_map(&cpus, 0, XDP_PASS);
}

SEC("xdp/cpumap")
int drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

SEC("freplace")
void replace_silently(__u32 key, __u64 value)
{
	last_key = key;
}

SEC("freplace")
int replace_with_answer(__u32 key, __u64 value)
{
	return 43;
}

char LICENSE[] SEC("license") = "GPL";
