// SPDX-License-Identifier: GPL-2.0-only
/* Iterator programs that tell what they are shown. */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "map.h"

struct bpf_link {
	__u32 id;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_link {
	struct bpf_iter_meta *meta;
	struct bpf_link *link;
} __attribute__((preserve_access_index));

struct kallsym_iter {
	unsigned long value;
} __attribute__((preserve_access_index));

struct bpf_iter__ksym {
	struct bpf_iter_meta *meta;
	struct kallsym_iter *ksym;
} __attribute__((preserve_access_index));

/* A record for each run of a program. */
struct shown {
	__u64 number; /* of the element, as the iterator counts */
	__u64 key;
	__u64 values[2];
	__u64 end;
};

static __always_inline int show(struct bpf_iter_meta *meta, struct shown *shown)
{
	shown->number = meta->seq_num;
	bpf_seq_write(meta->seq, shown, sizeof(*shown));
	return 0;
}

__u64 add; /* to the first value */

SEC("iter/bpf_map_elem")
int element(struct bpf_iter__bpf_map_elem *ctx)
{
	struct shown shown = { .end = !ctx->key };
	__u64 *value = ctx->value;
	__u32 *key = ctx->key;

	if (key)
		shown.key = *key;
	if (value) {
		shown.values[0] = *value;
		if (add)
			*value += add;
	}
	return show(ctx->meta, &shown);
}

SEC("iter/bpf_map_elem")
int element_of_two(struct bpf_iter__bpf_map_elem *ctx)
{
	struct shown shown = { .end = !ctx->key };
	__u64 *value = ctx->value;
	__u32 *key = ctx->key;

	if (key)
		shown.key = *key;
	if (value) {
		shown.values[0] = value[0];
		shown.values[1] = value[1];
		value[0] += add;
	}
	return show(ctx->meta, &shown);
}

SEC("iter/bpf_map_elem")
int element_of_long_key(struct bpf_iter__bpf_map_elem *ctx)
{
	struct shown shown = {};
	__u64 *key = ctx->key;

	if (key)
		shown.key = *key;
	return show(ctx->meta, &shown);
}

/* Writes into the map that it walks: each key 1000 higher, once. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u64);
} grown SEC(".maps");

__u64 refused;

SEC("iter/bpf_map_elem")
int grow(struct bpf_iter__bpf_map_elem *ctx)
{
	__u64 *value = ctx->value, copy;
	__u32 *key = ctx->key, next;

	if (!key || !value || *key >= 1000)
		return 0;
	next = *key + 1000;
	copy = *value;
	if (bpf_map_update_elem(&grown, &next, &copy, BPF_NOEXIST))
		refused++;
	return 0;
}

/* Writes much, in pieces, of which the first is the key. */
#define PIECE 4000
char piece[PIECE];
__u32 pieces;
__u32 stubborn; /* return 1 so many times */
__u64 runs;
__u64 overflows;

SEC("iter/bpf_map_elem")
int flood(struct bpf_iter__bpf_map_elem *ctx)
{
	__u32 *key = ctx->key;

	if (!key)
		return 0;
	runs++;
	if (stubborn) {
		stubborn--;
		return 1;
	}
	piece[0] = *key;
	for (__u32 i = 0; i < 16 && i < pieces; i++)
		if (bpf_seq_write(ctx->meta->seq, piece, PIECE) == -EOVERFLOW) {
			overflows++;
			break;
		}
	return 0;
}

SEC("iter/bpf_map")
int each_map(struct bpf_iter__bpf_map *ctx)
{
	struct bpf_map *map = ctx->map;
	struct shown shown = { .end = !map };

	if (map)
		shown.key = map->id;
	return show(ctx->meta, &shown);
}

SEC("iter/bpf_link")
int each_link(struct bpf_iter__bpf_link *ctx)
{
	struct bpf_link *link = ctx->link;
	struct shown shown = { .end = !link };

	if (link)
		shown.key = link->id;
	return show(ctx->meta, &shown);
}

SEC("iter/ksym")
int each_symbol(struct bpf_iter__ksym *ctx)
{
	struct kallsym_iter *ksym = ctx->ksym;
	struct shown shown = { .end = !ksym };

	if (ksym)
		shown.key = ksym->value;
	return show(ctx->meta, &shown);
}

/* Sockets: those with an element in a storage map, and those in a map of sockets. */
struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	void *sk;
	void *value;
} __attribute__((preserve_access_index));

struct bpf_iter__sockmap {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	void *key;
	void *sk;
} __attribute__((preserve_access_index));

SEC("iter/bpf_sk_storage_map")
int each_stored(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct shown shown = { .end = !ctx->sk };
	__u64 *value = ctx->value;

	if (value) {
		shown.values[0] = *value;
		if (add)
			*value += add;
	}
	return show(ctx->meta, &shown);
}

SEC("iter/sockmap")
int each_socket(struct bpf_iter__sockmap *ctx)
{
	struct shown shown = { .end = !ctx->key };
	__u32 *key = ctx->key;

	if (key)
		shown.key = *key;
	shown.values[0] = ctx->sk != 0;
	return show(ctx->meta, &shown);
}

char LICENSE[] SEC("license") = "GPL";
