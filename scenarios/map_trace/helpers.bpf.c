// SPDX-License-Identifier: GPL-2.0-only
/* What programs are told by the map helpers, and what they can do to all elements of a map. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define MAP(name, map_type, count, value_type)        \
	struct {                                      \
		__uint(type, map_type);               \
		__uint(max_entries, count);           \
		__type(key, __u32);                   \
		__type(value, value_type);            \
	} name SEC(".maps")

#define WORDS 15

struct bpf_map;

struct block {
	struct bpf_spin_lock lock;
	__u32 words[WORDS];
};

MAP(numbers, BPF_MAP_TYPE_HASH, 8, __u64);
MAP(cells, BPF_MAP_TYPE_ARRAY, 4, __u64);
MAP(per_cpu, BPF_MAP_TYPE_PERCPU_HASH, 1, __u64);
MAP(lru_per_cpu, BPF_MAP_TYPE_LRU_PERCPU_HASH, 1, __u64);
MAP(per_cpu_cells, BPF_MAP_TYPE_PERCPU_ARRAY, 1, __u64);
MAP(blocks, BPF_MAP_TYPE_HASH, 4, struct block);

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 1);
	__type(value, __u64);
} queue SEC(".maps");

struct bpf_map___fields {
	enum bpf_map_type map_type;
	__u32 key_size;
	__u32 value_size;
	__u32 max_entries;
	__u32 id;
} __attribute__((preserve_access_index));

long results[8];
__u32 key;
__u32 cpu;
__u64 number;
__u64 sum;
__u64 visits;
__u32 fields[5];

static long add_up(struct bpf_map *map, __u32 *key, __u64 *value, void *ctx)
{
	sum += *value;
	visits++;
	return 0;
}

static long stop_at_once(struct bpf_map *map, __u32 *key, __u64 *value, void *ctx)
{
	visits++;
	return 1;
}

static long delete_odd(struct bpf_map *map, __u32 *key, __u64 *value, void *ctx)
{
	__u32 mine = *key;

	visits++;
	if (mine & 1)
		bpf_map_delete_elem(&numbers, &mine);
	return 0;
}

static long delete_and_put_back(struct bpf_map *map, __u32 *key, __u64 *value, void *ctx)
{
	__u32 mine = *key;
	__u64 number = *value + 100;

	visits++;
	bpf_map_delete_elem(&numbers, &mine);
	bpf_map_update_elem(&numbers, &mine, &number, BPF_ANY);
	return 0;
}

static long write_key(struct bpf_map *map, __u32 *key, __u64 *value, void *ctx)
{
	*key = 1;
	return 0;
}

/* Helpers that fail, into results: EEXIST, ENOENT, E2BIG of a queue, ENOENT of an empty one twice, EINVAL. */
SEC("tc")
int failing(void *ctx)
{
	__u32 there = 1, missing = 2;
	__u64 value = 1;

	bpf_map_update_elem(&numbers, &there, &value, BPF_ANY);
	results[0] = bpf_map_update_elem(&numbers, &there, &value, BPF_NOEXIST);
	results[1] = bpf_map_delete_elem(&numbers, &missing);
	bpf_map_push_elem(&queue, &value, BPF_ANY);
	results[2] = bpf_map_push_elem(&queue, &value, BPF_ANY);
	bpf_map_pop_elem(&queue, &value);
	results[3] = bpf_map_pop_elem(&queue, &value);
	results[4] = bpf_map_peek_elem(&queue, &value);
	results[5] = bpf_for_each_map_elem(&numbers, add_up, 0, 1);
	return 0;
}

#define FOR_EACH(name, map, callback)                                 \
	SEC("tc")                                                     \
	int name(void *ctx)                                           \
	{                                                             \
		results[0] = bpf_for_each_map_elem(&map, callback, 0, 0); \
		return 0;                                             \
	}

FOR_EACH(sum_of_numbers, numbers, add_up)
FOR_EACH(sum_of_cells, cells, add_up)
FOR_EACH(first_number, numbers, stop_at_once)
FOR_EACH(delete_odd_numbers, numbers, delete_odd)
FOR_EACH(renew_numbers, numbers, delete_and_put_back)

SEC("?tc")
int write_keys(void *ctx)
{
	bpf_for_each_map_elem(&numbers, write_key, 0, 0);
	return 0;
}

#define UPDATE(name, map)                                             \
	SEC("tc")                                                     \
	int name(void *ctx)                                           \
	{                                                             \
		results[0] = bpf_map_update_elem(&map, &key, &number, BPF_ANY); \
		return 0;                                             \
	}

UPDATE(update_per_cpu, per_cpu)
UPDATE(update_lru_per_cpu, lru_per_cpu)

#define LOOK(name, map)                                               \
	SEC("tc")                                                     \
	int name(void *ctx)                                           \
	{                                                             \
		__u64 *value = bpf_map_lookup_percpu_elem(&map, &key, cpu); \
                                                                      \
		results[0] = value ? (long)*value : -1;               \
		return 0;                                             \
	}

LOOK(look_per_cpu, per_cpu)
LOOK(look_lru_per_cpu, lru_per_cpu)
LOOK(look_per_cpu_cells, per_cpu_cells)

SEC("tc")
int read_fields(void *ctx)
{
	struct bpf_map___fields *map = (void *)&numbers;

	fields[0] = map->map_type;
	fields[1] = map->key_size;
	fields[2] = map->value_size;
	fields[3] = map->max_entries;
	fields[4] = map->id;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
