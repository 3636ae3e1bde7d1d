// SPDX-License-Identifier: GPL-2.0-only
/*
 * A program that lets threads write into each descriptor a limited number of times, and its successor, which keeps its state by
 * another key. Descriptors of which a program knows nothing can't be written. Tail calls lead to one of the two programs.
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
	__uint(max_entries, 256);
	__type(key, struct old_key);
	__type(value, __u64);
} old_state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct new_key);
	__type(value, __u64);
} new_state SEC(".maps");

#define TURN(name)                                     \
	struct {                                       \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY); \
		__uint(max_entries, 1);                \
		__uint(key_size, 4);                   \
		__uint(value_size, 4);                 \
	} name SEC(".maps")

TURN(on_open);
TURN(on_write);
TURN(on_close);

static __always_inline struct new_key transform(struct old_key old)
{
	return (struct new_key){ .fd = old.fd, .pid = old.pid };
}

#include "settle.h"

struct pt_regs {
	unsigned long di;
} __attribute__((preserve_access_index));

__u32 old_id;
__u64 limit = 3;
__u32 threads[2]; /* whose descriptors these are */
long verdicts[2];
__u64 nobody;

static __always_inline __u32 thread(void)
{
	__u32 id = bpf_get_current_pid_tgid();

	return id == threads[0] || id == threads[1] ? id : 0;
}

static __always_inline long opened(void *map, void *key)
{
	__u64 writes = 0;

	if (bpf_map_update_elem(map, key, &writes, BPF_ANY))
		count(&failures);
	return 0;
}

static __always_inline long written(void *map, void *key)
{
	__u64 *found = bpf_map_lookup_elem(map, key), writes;

	if (!found || *found >= limit)
		return -EPERM;
	writes = *found + 1;
	if (bpf_map_update_elem(map, key, &writes, BPF_EXIST))
		count(&failures);
	return 0;
}

#define OLD_KEY(number) { .pid = thread(), .fd = (number) }
#define PROGRAMS(which, make_key, map)                                             \
	SEC("fexit/__x64_sys_openat")                                              \
	long BPF_PROG(which##_open, struct pt_regs *regs, long result)             \
	{                                                                          \
		struct old_key old = OLD_KEY(result);                              \
		struct which##_key key = make_key(old);                            \
                                                                                   \
		return result < 0 ? 0 : opened(&map, &key);                        \
	}                                                                          \
                                                                                   \
	SEC("fentry/__x64_sys_write")                                              \
	long BPF_PROG(which##_write, struct pt_regs *regs)                         \
	{                                                                          \
		struct old_key old = OLD_KEY(regs->di);                            \
		struct which##_key key = make_key(old);                            \
                                                                                   \
		verdicts[old.pid != threads[0]] = written(&map, &key);             \
		return 0;                                                          \
	}                                                                          \
                                                                                   \
	SEC("fexit/__x64_sys_close")                                               \
	long BPF_PROG(which##_close, struct pt_regs *regs, long result)            \
	{                                                                          \
		struct old_key old = OLD_KEY(regs->di);                            \
		struct which##_key key = make_key(old);                            \
                                                                                   \
		bpf_map_delete_elem(&map, &key);                                   \
		return 0;                                                          \
	}

#define same(key) (key)
PROGRAMS(old, same, old_state)
PROGRAMS(new, transform, new_state)

SEC("fexit/__x64_sys_openat")
long BPF_PROG(dispatch_open, struct pt_regs *regs, long result)
{
	if (thread()) {
		bpf_tail_call(ctx, &on_open, 0);
		count(&nobody);
	}
	return 0;
}

SEC("fentry/__x64_sys_write")
long BPF_PROG(dispatch_write, struct pt_regs *regs)
{
	if (thread()) {
		bpf_tail_call(ctx, &on_write, 0);
		count(&nobody);
	}
	return 0;
}

SEC("fexit/__x64_sys_close")
long BPF_PROG(dispatch_close, struct pt_regs *regs, long result)
{
	if (thread()) {
		bpf_tail_call(ctx, &on_close, 0);
		count(&nobody);
	}
	return 0;
}

/* The system call itself can't be made to fail on all kernels; what it asks for permission can. */
SEC("fmod_ret/security_file_permission")
long BPF_PROG(decide)
{
	__u32 id = thread();
	long verdict;

	if (!id)
		return 0;
	verdict = verdicts[id != threads[0]];
	verdicts[id != threads[0]] = 0;
	return verdict;
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

SEC("fexit/htab_map_delete_elem")
int BPF_PROG(mirror_delete, struct bpf_map *map, void *key, long result)
{
	struct old_key old = {};

	if (map->id != old_id || (int)result)
		return 0;
	bpf_probe_read_kernel(&old, sizeof(old), key);
	settle(old, 0, &own_deletes);
	return 0;
}

SEC("iter/bpf_map_elem")
int copy(struct bpf_iter__bpf_map_elem *ctx)
{
	struct old_key *key = ctx->key;

	if (key)
		settle(*key, 0, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
