/* SPDX-License-Identifier: GPL-2.0-only */
/* How a key's state comes to the new map whoever else is about it; for objects with `old_state`, `new_state` and `transform`. */
#pragma once

#define TRIES 64
#define ABSENT (~0ULL)

__u64 failures;
__u64 repeats;
__u64 give_ups;
__u64 own_updates; /* of the tracer of updates in the new map: it is skipped for each */
__u64 own_deletes; /* of the tracer of deletes */

static __always_inline void count(__u64 *counter)
{
	if (counter)
		__sync_fetch_and_add(counter, 1);
}

static __always_inline __u64 state_of(struct old_key *old)
{
	__u64 *found = bpf_map_lookup_elem(&old_state, old);

	return found ? *found : ABSENT;
}

/* Let the new map have what the old one has, until that did not change meanwhile: whoever writes last is right. */
static __always_inline void settle(struct old_key old, __u64 *updates, __u64 *deletes)
{
	struct new_key new = transform(old);
	__u64 state;
	int error; /* as the functions up to 6.2 return it */

	for (int i = 0; i < TRIES; i++) {
		state = state_of(&old);
		if (state == ABSENT) {
			count(deletes);
			error = bpf_map_delete_elem(&new_state, &new);
		} else {
			count(updates);
			error = bpf_map_update_elem(&new_state, &new, &state, BPF_ANY);
		}
		if (error && error != -ENOENT)
			count(&failures);
		if (state_of(&old) == state)
			return;
		count(&repeats);
	}
	count(&give_ups);
}
