// SPDX-License-Identifier: GPL-2.0-only
/*
 * A program's state moves to a map with another key layout while the program goes on writing: tracers mirror each change of the
 * old map, an iterator copies what was there before they were attached.
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
	__uint(max_entries, 4096);
	__type(key, struct old_key);
	__type(value, __u64);
} old_state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct new_key);
	__type(value, __u64);
} new_state SEC(".maps");

__u32 old_id;
__u64 mirrored_updates;
__u64 mirrored_deletes;
__u64 failures;

/* How the iterator copies, and what it did. */
__u64 copy_flags;
bool look_again;
__u64 walked;
__u64 copied;
__u64 ends;

/* A copier that comes to this pid, if any, waits between reading the element and writing it until it is let go. */
__u32 pause_pid;
volatile __u32 paused;
volatile __u32 let_go;
__u32 gave_up;

#define LONGEST_PAUSE_NS 10000000000ULL
#define ROUNDS (1 << 23) /* the most that bpf_loop does */

static __always_inline struct new_key transform(struct old_key old)
{
	return (struct new_key){ .fd = old.fd, .pid = old.pid };
}

SEC("fexit/htab_map_update_elem")
int BPF_PROG(mirror_update, struct bpf_map *map, void *key, void *value, __u64 flags, long result)
{
	struct old_key old = {};
	struct new_key new;
	__u64 state = 0;

	if (map->id != old_id || (int)result)
		return 0;
	bpf_probe_read_kernel(&old, sizeof(old), key);
	bpf_probe_read_kernel(&state, sizeof(state), value);
	new = transform(old);
	__sync_fetch_and_add(&mirrored_updates, 1);
	if (bpf_map_update_elem(&new_state, &new, &state, BPF_ANY))
		__sync_fetch_and_add(&failures, 1);
	return 0;
}

SEC("fexit/htab_map_delete_elem")
int BPF_PROG(mirror_delete, struct bpf_map *map, void *key, long result)
{
	struct old_key old = {};
	struct new_key new;

	if (map->id != old_id || (int)result)
		return 0;
	bpf_probe_read_kernel(&old, sizeof(old), key);
	new = transform(old);
	__sync_fetch_and_add(&mirrored_deletes, 1);
	/* Before the copy has come to it, the key is not there yet. */
	bpf_map_delete_elem(&new_state, &new);
	return 0;
}

static long wait_a_little(__u32 round, __u64 *deadline)
{
	if (bpf_ktime_get_ns() > *deadline)
		gave_up = 1;
	return let_go || gave_up;
}

static __always_inline void pause(void)
{
	__u64 deadline = bpf_ktime_get_ns() + LONGEST_PAUSE_NS;

	paused = 1;
	for (int i = 0; i < 64 && !let_go && !gave_up; i++)
		bpf_loop(ROUNDS, wait_a_little, &deadline, 0);
}

SEC("iter/bpf_map_elem")
int copy(struct bpf_iter__bpf_map_elem *ctx)
{
	struct old_key *key = ctx->key, old;
	__u64 *value = ctx->value, state;
	struct new_key new;
	int error;

	if (!key || !value) {
		ends++;
		return 0;
	}
	walked++;
	old = *key;
	state = *value;
	new = transform(old);
	if (pause_pid && old.pid == pause_pid && !paused)
		pause();
	error = bpf_map_update_elem(&new_state, &new, &state, copy_flags);
	if (!error)
		copied++;
	else if (error != -EEXIST)
		__sync_fetch_and_add(&failures, 1);
	if (!error && look_again && !bpf_map_lookup_elem(&old_state, &old))
		bpf_map_delete_elem(&new_state, &new);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
