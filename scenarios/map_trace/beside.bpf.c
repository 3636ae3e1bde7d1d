// SPDX-License-Identifier: GPL-2.0-only
/*
 * An old and a new program that both get each packet. The state of a key is how many packets there were; what the old program
 * writes comes to the new one's map as well.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "map.h"

struct old_key {
	__u32 pid;
	__u32 fd;
};

struct new_key {
	__u32 fd;
	__u32 pid;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, struct old_key);
	__type(value, __u64);
} old_state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, struct new_key);
	__type(value, __u64);
} new_state SEC(".maps");

static __always_inline struct new_key transform(struct old_key old)
{
	return (struct new_key){ .fd = old.fd, .pid = old.pid };
}

#include "settle.h"

__u32 old_id;
__u64 number; /* of the packet */
bool tolerant; /* the new program writes what the packet says, whatever it finds */

static const struct old_key the_key = { .pid = 42, .fd = 3 };

static __always_inline int one_more(void *map, void *key)
{
	__u64 *found = bpf_map_lookup_elem(map, key);
	__u64 state = found ? *found + 1 : 1;

	if (bpf_map_update_elem(map, key, &state, BPF_ANY))
		count(&failures);
	return 1;
}

SEC("cgroup_skb/egress")
int old_program(void *ctx)
{
	struct old_key key = the_key;

	return one_more(&old_state, &key);
}

SEC("cgroup_skb/egress")
int new_program(void *ctx)
{
	struct new_key key = transform(the_key);
	__u64 state = number;

	if (!tolerant)
		return one_more(&new_state, &key);
	if (bpf_map_update_elem(&new_state, &key, &state, BPF_ANY))
		count(&failures);
	return 1;
}

SEC("fexit/htab_map_update_elem")
int BPF_PROG(mirror_update, struct bpf_map *map, void *key, void *value, __u64 flags, long result)
{
	struct old_key old = {};

	if (map->id != old_id || (int)result)
		return 0;
	bpf_probe_read_kernel(&old, sizeof(old), key);
	settle(old, &own_updates, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
