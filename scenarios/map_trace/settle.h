/* SPDX-License-Identifier: GPL-2.0-only */
/* How a key's state comes to the new map whoever else is about it; for objects with `old_state`, `new_state` and `transform`. */
#pragma once

#define TRIES 64
#define ABSENT (~0ULL)
#define TRACED_CPUS 8

__u64 failures;
__u64 repeats;
__u64 give_ups;
__u64 own_updates; /* of the tracer of updates in the new map: it is skipped for each */
__u64 own_deletes; /* of the tracer of deletes */
bool noting; /* both tracers are attached */
__u64 traced[TRACED_CPUS]; /* calls in the new map for which a tracer ran, by CPU */
__u64 untraced; /* those of others than the tracers for which none ran: one was preempted on that CPU */

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

static __always_inline __u64 *traced_here(void)
{
	return &traced[bpf_get_smp_processor_id() & (TRACED_CPUS - 1)];
}

/* Update the new map, or delete without a state; `own` counts what a tracer writes where it is skipped for it. */
static __always_inline int write_new(struct new_key *new, __u64 *state, __u64 flags, __u64 *own)
{
	__u64 *runs = traced_here(), before = *runs;
	bool expected = noting && !own;
	int error; /* as the functions up to 6.2 return it */

	count(own);
	error = state ? bpf_map_update_elem(&new_state, new, state, flags) : bpf_map_delete_elem(&new_state, new);
	if (expected && *runs == before)
		count(&untraced);
	return error;
}

/* Let the new map have what the old one has, until that did not change meanwhile: whoever writes last is right. */
static __always_inline void settle(struct old_key old, __u64 *updates, __u64 *deletes)
{
	struct new_key new = transform(old);
	__u64 state;
	int error;

	for (int i = 0; i < TRIES; i++) {
		state = state_of(&old);
		if (state == ABSENT)
			error = write_new(&new, 0, 0, deletes);
		else
			error = write_new(&new, &state, BPF_ANY, updates);
		if (error && error != -ENOENT)
			count(&failures);
		if (state_of(&old) == state)
			return;
		count(&repeats);
	}
	count(&give_ups);
}
