// SPDX-License-Identifier: GPL-2.0-only
/* Programs that watch or replace functions of other programs, and one that is watched itself. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "map.h"

__u64 entered;
__u64 left;
__u32 last_key;
__u64 last_value;
__u64 last_answer;

SEC("fentry")
int BPF_PROG(enter, __u32 key, __u64 value)
{
	entered++;
	return 0;
}

SEC("fexit")
int BPF_PROG(leave, __u32 key, __u64 value, int answer)
{
	left++;
	last_key = key;
	last_value = value;
	last_answer = answer;
	return 0;
}

/* Of a main program, whose only argument is its context. */
SEC("fexit")
int BPF_PROG(leave_main, void *main_context, int answer)
{
	left++;
	last_answer = answer;
	return 0;
}

SEC("fmod_ret")
int BPF_PROG(modify, __u32 key, __u64 value, int answer)
{
	return 3;
}

SEC("freplace")
int replace(__u32 key, __u64 value)
{
	last_key = key;
	return 40;
}

SEC("freplace")
int replace_hidden(__u32 key)
{
	return 41;
}

SEC("freplace")
int refuse_loudly(struct bpf_sock_addr *ctx)
{
	return 5;
}

SEC("fexit/htab_map_update_elem")
int BPF_PROG(watched, struct bpf_map *map)
{
	return 0;
}

SEC("fentry")
int BPF_PROG(watch_watched, struct bpf_map *map)
{
	entered++;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
