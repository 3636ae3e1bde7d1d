// SPDX-License-Identifier: GPL-2.0-only
/* Programs that change maps in all the ways that pass by the maps' update functions, and a clock that changes them from softirq. */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "map.h"

struct locked {
	struct bpf_spin_lock lock;
	__u32 number;
};

struct ticking {
	struct bpf_timer timer;
	__u64 number;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u64);
} plain SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct locked);
} locked SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ticking);
} clock SEC(".maps");

__u32 zero;
__u32 key = 5;
volatile __u64 global;

SEC("tc")
int store(void *ctx)
{
	__u64 *value = bpf_map_lookup_elem(&plain, &key);

	if (value)
		*value = 2;
	return 0;
}

SEC("tc")
int add(void *ctx)
{
	__u64 *value = bpf_map_lookup_elem(&plain, &key);

	if (value)
		__sync_fetch_and_add(value, 1);
	return 0;
}

SEC("tc")
int store_global(void *ctx)
{
	global = 2;
	return 0;
}

static long store_each(struct bpf_map *map, __u32 *key, __u64 *value, void *ctx)
{
	*value = 2;
	return 0;
}

SEC("tc")
int for_each(void *ctx)
{
	bpf_for_each_map_elem(&plain, store_each, 0, 0);
	return 0;
}

SEC("iter/bpf_map_elem")
int iterate(struct bpf_iter__bpf_map_elem *ctx)
{
	__u64 *value = ctx->value;

	if (value)
		*value = 2;
	return 0;
}

static int store_own(void *map, __u32 *key, struct ticking *value)
{
	value->number = 2;
	return 0;
}

SEC("tc")
int store_later(void *ctx)
{
	struct ticking *value = bpf_map_lookup_elem(&clock, &zero);

	if (!value)
		return 1;
	if (bpf_timer_init(&value->timer, &clock, 1 /* CLOCK_MONOTONIC */))
		return 2;
	bpf_timer_set_callback(&value->timer, store_own);
	return bpf_timer_start(&value->timer, 0, 0) != 0;
}

SEC("tc")
int update_locked(void *ctx)
{
	struct locked value = { .number = 2 };

	return bpf_map_update_elem(&locked, &key, &value, BPF_F_LOCK) != 0;
}

/* Each tick is an update, of key TICKS plus a number. */
#define TICKS 0x80000000
bool ticking;
__u64 period_ns = 200000;
volatile __u64 ticks;

static int tick(void *map, __u32 *key, struct ticking *value)
{
	__u32 number = TICKS + (ticks & 15);
	__u64 count = ticks;

	bpf_map_update_elem(&plain, &number, &count, BPF_ANY);
	ticks++;
	if (ticking)
		bpf_timer_start(&value->timer, period_ns, 0);
	return 0;
}

SEC("tc")
int start(void *ctx)
{
	struct ticking *value = bpf_map_lookup_elem(&clock, &zero);

	if (!value)
		return 1;
	bpf_timer_init(&value->timer, &clock, 1 /* CLOCK_MONOTONIC */);
	bpf_timer_set_callback(&value->timer, tick);
	ticking = 1;
	return bpf_timer_start(&value->timer, 0, 0) != 0;
}

SEC("tc")
int stop(void *ctx)
{
	struct ticking *value = bpf_map_lookup_elem(&clock, &zero);

	ticking = 0;
	if (value)
		bpf_timer_cancel(&value->timer);
	return 0;
}

/* A tracer that takes its time. */
__u32 plain_id;
__u32 patience;
__u64 seen;

static long nothing(__u32 round, void *ctx)
{
	return 0;
}

SEC("fexit/htab_map_update_elem")
int BPF_PROG(slow, struct bpf_map *map)
{
	if (map->id != plain_id)
		return 0;
	__sync_fetch_and_add(&seen, 1);
	bpf_loop(patience, nothing, 0, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
