// SPDX-License-Identifier: GPL-2.0-only
/*
 * A program is replaced by one whose map has another key layout, while traffic runs through it on all CPUs: by a prog array, or at
 * a hook of the kernel. The traffic knows what state each key should have; programs look what they find before they change it.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "map.h"

#define CPUS 8
#define MOST_KEYS 8192
#define TCX_NEXT (-1)
#define TCX_DROP 2
#define LOOPBACK 1

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
	__uint(max_entries, MOST_KEYS);
	__type(key, struct old_key);
	__type(value, __u64);
} old_state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MOST_KEYS);
	__type(key, struct new_key);
	__type(value, __u64);
} new_state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__uint(value_size, 4);
} turn SEC(".maps");

static __always_inline struct new_key transform(struct old_key old)
{
	return (struct new_key){ .fd = old.fd, .pid = old.pid };
}

#include "settle.h"

__u32 old_id;
__u32 new_id;

/* The traffic. Keys below `busy` change, those up to `keys` stay as they were filled; each of `cpus` has keys of its own, unless
 * they are `shared`. */
__u32 keys = 1;
__u32 busy = 1;
__u32 cpus = 1;
bool shared;
bool beside; /* the new program is behind the old one, and gets the same packets */

enum { OLD = 1, NEW = 2 };

struct writer {
	__u64 random; /* what is to be done with this packet, */
	__u64 version; /* its number, */
	__u64 met; /* and whom it has met so far */
	__u64 packets[4]; /* those before by whom they met */
	__u64 changes;     /* successful ones of the old program */
	__u64 new_changes; /* and of the new one */
	__u64 inserts;
	__u64 updates;
	__u64 deletes;
	__u64 copying;
} writers[CPUS];

__u64 truth[MOST_KEYS]; /* the version that each key should have; 0: it should not be there */
__u64 newest[MOST_KEYS]; /* the newest that the new map has had, says the witness */
__u64 lost;
__u64 stale;
__u64 resurrected;
__u64 troubles; /* errors of the traffic that are none of absent keys */

static __always_inline struct old_key old_name(__u32 number)
{
	return (struct old_key){ .pid = number, .fd = ~number };
}

static __always_inline struct writer *this_writer(void)
{
	return &writers[bpf_get_smp_processor_id() & (CPUS - 1)];
}

static __always_inline __u32 number_of(struct writer *writer)
{
	__u32 number = (writer->random >> 16) % (busy ?: 1);

	if (!shared)
		number = number / (cpus ?: 1) * cpus + bpf_get_smp_processor_id();
	return number & (MOST_KEYS - 1);
}

static __always_inline void look(__u64 *found, __u32 number)
{
	__u64 expected = truth[number];

	if (!found && expected)
		count(&lost);
	else if (found && !expected)
		count(&resurrected);
	else if (found && *found != expected)
		count(&stale);
}

static __always_inline struct writer *next_packet(void)
{
	struct writer *writer = this_writer();
	__u64 random = writer->random;

	random ^= random << 13;
	random ^= random >> 7;
	random ^= random << 17;
	writer->random = random;
	if (writer->version++)
		writer->packets[writer->met & 3]++;
	writer->met = 0;
	return writer;
}

/* `changes` goes up before a change is made, so that a tracer behind it finds the change's number there. */
static __always_inline void change(void *map, void *key, __u32 number, struct writer *writer, __u64 *changes)
{
	bool new = map == (void *)&new_state;
	__u64 *found = bpf_map_lookup_elem(map, key);
	int error; /* as the functions up to 6.2 return it */

	if (!shared)
		look(found, number);
	++*changes;
	if (writer->random % 8 < 3) {
		error = new ? write_new(key, 0, 0, 0) : bpf_map_delete_elem(map, key);
		if (!error) {
			truth[number] = 0;
			writer->deletes++;
		}
	} else {
		__u64 version = writer->version * CPUS + bpf_get_smp_processor_id();

		error = new ? write_new(key, &version, BPF_ANY, 0) : bpf_map_update_elem(map, key, &version, BPF_ANY);
		if (!error) {
			truth[number] = version;
			if (found)
				writer->updates++;
			else
				writer->inserts++;
		}
	}
	if (error)
		--*changes;
	if (error && error != -ENOENT)
		count(&troubles);
}

static __always_inline void change_old(void)
{
	struct writer *writer = this_writer();
	__u32 number = number_of(writer);
	struct old_key key = old_name(number);

	writer->met |= OLD;
	change(&old_state, &key, number, writer, &writer->changes);
}

static __always_inline void change_new(void)
{
	struct writer *writer = this_writer();
	__u32 number = number_of(writer);
	struct new_key key = transform(old_name(number));

	writer->met |= NEW;
	change(&new_state, &key, number, writer, &writer->new_changes);
}

SEC("tc")
int old_program(void *ctx)
{
	change_old();
	return beside ? TCX_NEXT : TCX_DROP;
}

SEC("tc")
int new_program(void *ctx)
{
	change_new();
	return TCX_DROP;
}

SEC("cgroup_skb/egress")
int old_egress(void *ctx)
{
	change_old();
	return 1;
}

SEC("cgroup_skb/egress")
int new_egress(void *ctx)
{
	change_new();
	return 1;
}

/* The traffic: by tail call, through a device, or from sockets, whose packets come here first. */
SEC("tc")
int traffic(void *ctx)
{
	next_packet();
	bpf_tail_call(ctx, &turn, 0);
	return 0;
}

SEC("tc")
int traffic_of_device(struct __sk_buff *skb)
{
	next_packet();
	if (bpf_clone_redirect(skb, LOOPBACK, 0) < 0)
		count(&troubles);
	return 0;
}

SEC("cgroup_skb/egress")
int traffic_of_sockets(void *ctx)
{
	next_packet();
	return 1;
}

static long fill_one(__u32 number, void *ctx)
{
	struct old_key old = old_name(number);
	struct new_key new = transform(old);
	__u64 version = 1;

	bpf_map_delete_elem(&new_state, &new);
	if (bpf_map_update_elem(&old_state, &old, &version, BPF_ANY))
		count(&troubles);
	truth[number & (MOST_KEYS - 1)] = version;
	newest[number & (MOST_KEYS - 1)] = 0;
	return 0;
}

/* Each key is in the old map, and none in the new one. */
SEC("tc")
int fill(void *ctx)
{
	bpf_loop(keys, fill_one, 0, 0);
	return 0;
}

/* The mirror, and the copy. */
__u64 copied;
bool naive;
bool repairing;

/* Which changes somebody saw of each CPU, by their numbers. */
struct seen {
	__u64 first;
	__u64 last;
	__u64 count;
	__u64 gaps;
} by_mirror[CPUS], by_witness[CPUS];

static __always_inline void note(struct seen *all)
{
	struct seen *seen = &all[bpf_get_smp_processor_id() & (CPUS - 1)];
	__u64 number = this_writer()->changes;

	if (!noting)
		return;
	if (!seen->count)
		seen->first = number;
	else if (number != seen->last + 1)
		seen->gaps++;
	seen->last = number;
	seen->count++;
}

SEC("fexit/htab_map_update_elem")
int BPF_PROG(mirror_update, struct bpf_map *map, void *key, void *value, __u64 flags, long result)
{
	struct old_key old = {};

	if (map->id == new_id)
		count(traced_here());
	if (map->id != old_id || (int)result)
		return 0;
	bpf_probe_read_kernel(&old, sizeof(old), key);
	note(by_mirror);
	settle(old, &own_updates, 0);
	return 0;
}

SEC("fexit/htab_map_delete_elem")
int BPF_PROG(mirror_delete, struct bpf_map *map, void *key, long result)
{
	struct old_key old = {};

	if (map->id == new_id)
		count(traced_here());
	if (map->id != old_id || (int)result)
		return 0;
	bpf_probe_read_kernel(&old, sizeof(old), key);
	note(by_mirror);
	settle(old, 0, &own_deletes);
	return 0;
}

SEC("iter/bpf_map_elem")
int copy(struct bpf_iter__bpf_map_elem *ctx)
{
	struct old_key *key = ctx->key, old;
	__u64 *value = ctx->value, *found, state;
	struct writer *writer;
	struct new_key new;
	int error;

	if (!key || !value)
		return 0;
	old = *key;
	state = *value;
	new = transform(old);
	writer = this_writer();
	writer->copying = 1;
	if (repairing) {
		/* Each write runs the tracer of updates, and if that is preempted, the kernel skips it for others. */
		found = bpf_map_lookup_elem(&new_state, &new);
		if ((found ? *found : ABSENT) != state_of(&old))
			settle(old, 0, 0);
		writer->copying = 0;
		return 0;
	}
	error = write_new(&new, &state, naive ? BPF_ANY : BPF_NOEXIST, 0);
	if (!error)
		copied++;
	else if (error != -EEXIST)
		count(&failures);
	if (!naive && !error && state_of(&old) != state)
		settle(old, 0, 0);
	writer->copying = 0;
	return 0;
}

/* Over the new map: what the old one does not have goes. */
SEC("iter/bpf_map_elem")
int sweep(struct bpf_iter__bpf_map_elem *ctx)
{
	struct new_key *key = ctx->key;
	struct writer *writer = this_writer();
	struct old_key old;

	if (!key)
		return 0;
	old = (struct old_key){ .pid = key->pid, .fd = key->fd };
	writer->copying = 1;
	if (state_of(&old) == ABSENT)
		settle(old, 0, 0);
	writer->copying = 0;
	return 0;
}

/* The witness: not part of the migration. */
__u64 regressions;
__u64 transient; /* those that the copy makes, and puts right */

SEC("fexit/htab_map_update_elem")
int BPF_PROG(witness_update, struct bpf_map *map, void *key, void *value, __u64 flags, long result)
{
	struct new_key new = {};
	__u64 version = 0;
	__u32 number;

	if ((int)result)
		return 0;
	if (map->id == old_id)
		note(by_witness);
	if (map->id != new_id)
		return 0;
	bpf_probe_read_kernel(&new, sizeof(new), key);
	bpf_probe_read_kernel(&version, sizeof(version), value);
	number = new.pid & (MOST_KEYS - 1);
	if (version >= newest[number])
		newest[number] = version;
	else if (this_writer()->copying)
		count(&transient);
	else
		count(&regressions);
	return 0;
}

SEC("fexit/htab_map_delete_elem")
int BPF_PROG(witness_delete, struct bpf_map *map, void *key, long result)
{
	if (map->id == old_id && !(int)result)
		note(by_witness);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
