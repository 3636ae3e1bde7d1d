// SPDX-License-Identifier: GPL-2.0-only
/* Notes each update and delete of one map, with its result, behind the functions that carry them out. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "map.h"

#define CAPACITY 64

struct event {
	__u64 operation;
	__u64 key;
	__u64 value;
	__s64 result;
};

__u32 traced_id;
__u32 count;
struct event events[CAPACITY];

static __always_inline void note(__u64 operation, const void *key, const void *value, int result)
{
	__u32 slot = __sync_fetch_and_add(&count, 1);
	struct event *event;

	if (slot >= CAPACITY)
		return;
	event = &events[slot];
	event->operation = operation;
	bpf_probe_read_kernel(&event->key, sizeof(__u32), key);
	if (value)
		bpf_probe_read_kernel(&event->value, sizeof(event->value), value);
	event->result = result;
}

/* The result is an int up to 6.2 and a long since: its lower half is right in both. */
SEC("fexit/htab_map_update_elem")
int BPF_PROG(on_update, struct bpf_map *map, void *key, void *value, __u64 flags, long result)
{
	if (map->id == traced_id)
		note(1, key, value, (int)result);
	return 0;
}

SEC("fexit/htab_map_delete_elem")
int BPF_PROG(on_delete, struct bpf_map *map, void *key, long result)
{
	if (map->id == traced_id)
		note(2, key, 0, (int)result);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
