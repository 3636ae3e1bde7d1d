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

struct ticking {
	struct bpf_timer timer;
	__u64 number;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ticking);
} clock SEC(".maps");

static __always_inline struct new_key transform(struct old_key old)
{
	return (struct new_key){ .fd = old.fd, .pid = old.pid };
}

#include "settle.h"

__u32 old_id;
__u64 mirrored_updates;
__u64 mirrored_deletes;
bool settling; /* tracers don't write what they are told, but what the old map has */

/* How the iterator copies, and what it did. */
__u64 copy_flags;
bool look_again;
bool repairing;
__u8 chatty; /* if not 0, written for each element, so that reads can be short */
__u32 last; /* pid of the element that it came to last */
__u64 walked;
__u64 copied;
__u64 ends;

/* Who comes to a key of this pid, if any, waits once in each of these places, until it is let go as often as it has paused. */
__u32 pause_pid;
__u32 pause_where;
enum { COPYING = 1, UPDATED = 2, DELETED = 4, DROPPING = 8 };
volatile __u32 paused;
volatile __u32 let_go;
__u32 gave_up;

#define LONGEST_PAUSE_NS 10000000000ULL
#define TICKS_PID 7
#define ROUNDS (1 << 23) /* the most that bpf_loop does */

static long wait_a_little(__u32 round, __u64 *deadline)
{
	if (bpf_ktime_get_ns() > *deadline)
		gave_up = 1;
	return let_go >= paused || gave_up;
}

static __always_inline void pause_at(__u32 where, __u32 pid)
{
	__u64 deadline;

	if (!pause_pid || pid != pause_pid || !(pause_where & where))
		return;
	deadline = bpf_ktime_get_ns() + LONGEST_PAUSE_NS;
	pause_where &= ~where;
	paused++;
	for (int i = 0; i < 64 && let_go < paused && !gave_up; i++)
		bpf_loop(ROUNDS, wait_a_little, &deadline, 0);
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
	count(&mirrored_updates);
	pause_at(UPDATED, old.pid);
	if (settling) {
		settle(old, &own_updates, 0);
		return 0;
	}
	count(&own_updates);
	if (bpf_map_update_elem(&new_state, &new, &state, BPF_ANY))
		count(&failures);
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
	count(&mirrored_deletes);
	pause_at(DELETED, old.pid);
	if (settling) {
		settle(old, 0, &own_deletes);
		return 0;
	}
	count(&own_deletes);
	/* Before the copy has come to it, the key is not there yet. */
	bpf_map_delete_elem(&new_state, &new);
	return 0;
}

SEC("iter/bpf_map_elem")
int copy(struct bpf_iter__bpf_map_elem *ctx)
{
	struct old_key *key = ctx->key, old;
	__u64 *value = ctx->value, state, now;
	struct new_key new;
	int error;

	if (!key || !value) {
		ends++;
		return 0;
	}
	walked++;
	old = *key;
	state = *value;
	last = old.pid;
	new = transform(old);
	pause_at(COPYING, old.pid);
	error = bpf_map_update_elem(&new_state, &new, &state, copy_flags);
	if (!error)
		copied++;
	else if (error != -EEXIST)
		count(&failures);
	if (chatty)
		bpf_seq_write(ctx->meta->seq, &chatty, sizeof(chatty));
	if (repairing) {
		settle(old, 0, 0);
		return 0;
	}
	if (error || !look_again)
		return 0;
	now = state_of(&old);
	if (now == state)
		return 0;
	pause_at(DROPPING, old.pid);
	if (settling)
		settle(old, 0, 0);
	else if (now == ABSENT)
		bpf_map_delete_elem(&new_state, &new);
	return 0;
}

/* Over the new map: what the old one does not have goes. */
SEC("iter/bpf_map_elem")
int sweep(struct bpf_iter__bpf_map_elem *ctx)
{
	struct new_key *key = ctx->key;
	struct old_key old;

	if (!key)
		return 0;
	old = (struct old_key){ .pid = key->pid, .fd = key->fd };
	if (!bpf_map_lookup_elem(&old_state, &old))
		settle(old, 0, 0);
	return 0;
}

/* A program that interrupts the one that is paused, on the same CPU: it changes the old map, and lets the other go. */
__u32 zero;

static int tick(void *map, __u32 *key, struct ticking *value)
{
	struct old_key old = { .pid = TICKS_PID, .fd = 1 };
	__u64 state = 1;

	if (!paused) {
		bpf_timer_start(&value->timer, 100000, 0);
		return 0;
	}
	if (bpf_map_update_elem(&old_state, &old, &state, BPF_ANY))
		count(&failures);
	let_go = 1;
	return 0;
}

SEC("tc")
int interrupt(void *ctx)
{
	struct ticking *value = bpf_map_lookup_elem(&clock, &zero);

	if (!value)
		return 1;
	bpf_timer_init(&value->timer, &clock, 1 /* CLOCK_MONOTONIC */);
	bpf_timer_set_callback(&value->timer, tick);
	return bpf_timer_start(&value->timer, 0, 0) != 0;
}

char LICENSE[] SEC("license") = "GPL";
