// SPDX-License-Identifier: GPL-2.0-only
/* A tracer of evictions that keeps a note of each in a hash. */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "map.h"

struct bpf_htab {
	struct bpf_map map;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} notes SEC(".maps");

__u32 traced_id;
__u64 evicted;
__u64 noted;
__u64 refused; /* for want of memory */
__u64 troubles;

SEC("fexit/htab_lru_map_delete_node")
int BPF_PROG(note_eviction, struct bpf_htab *htab, void *node, bool gone)
{
	__u64 key, value = 1;
	__u32 id = 0;
	int error;

	bpf_probe_read_kernel(&id, sizeof(id), &htab->map.id);
	if (id != traced_id || !gone)
		return 0;
	key = ++evicted;
	error = bpf_map_update_elem(&notes, &key, &value, BPF_NOEXIST);
	if (!error)
		noted++;
	else if (error == -ENOMEM)
		refused++;
	else
		troubles++;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
