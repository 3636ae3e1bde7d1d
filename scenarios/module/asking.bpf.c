// SPDX-License-Identifier: GPL-2.0-only
/* A program that asks the table it is associated with, at once and from a timer. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

int kr_ask(int value) __ksym;

struct value {
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct value);
} timers SEC(".maps");

int answer;
__u32 fired;

static int ask(void *map, __u32 *key, struct value *value)
{
	answer = kr_ask(5);
	fired++;
	return 0;
}

/* Returns what the table answers now; the timer's turn comes a moment later. */
SEC("syscall")
int start(void *ctx)
{
	struct value *value;
	__u32 key = 0;

	value = bpf_map_lookup_elem(&timers, &key);
	if (!value)
		return -1;
	bpf_timer_init(&value->timer, &timers, 1 /* CLOCK_MONOTONIC */);
	if (bpf_timer_set_callback(&value->timer, ask) || bpf_timer_start(&value->timer, 1000000, 0))
		return -2;
	return kr_ask(5);
}

char _license[] SEC("license") = "GPL";
