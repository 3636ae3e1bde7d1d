// SPDX-License-Identifier: GPL-2.0-only
/* A map that owns a task, and a tracer that sees when the task is freed. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

typedef struct {
	int counter;
} atomic_t;

typedef struct refcount_struct {
	atomic_t refs;
} __attribute__((preserve_access_index)) refcount_t;

struct task_struct {
	int pid;
	refcount_t rcu_users;
} __attribute__((preserve_access_index));

struct task_struct *bpf_task_from_pid(int pid) __ksym;
void bpf_task_release(struct task_struct *task) __ksym;

/* Replaced by a map whose BTF says that the pointer owns its task, see pocket.bpf.c. */
struct value {
	__u64 before;
	struct task_struct *seen;
	__u64 between;
	struct task_struct *task;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct value);
} owner SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} frees SEC(".maps");

int pid;

SEC("tc")
int stash(void *ctx)
{
	struct task_struct *task, *old;
	struct value *value;
	__u32 key = 0;

	value = bpf_map_lookup_elem(&owner, &key);
	if (!value)
		return -1;
	task = bpf_task_from_pid(pid);
	if (!task)
		return -2;
	old = bpf_kptr_xchg(&value->task, task);
	if (old)
		bpf_task_release(old);
	return 0;
}

/* Of the stashed task: its pid, and its references in the upper half. */
SEC("tc")
int look(void *ctx)
{
	struct task_struct *task;
	struct value *value;
	__u32 key = 0;

	value = bpf_map_lookup_elem(&owner, &key);
	if (!value)
		return -1;
	task = value->task;
	return task ? task->rcu_users.refs.counter << 24 | task->pid : 0;
}

SEC("tp_btf/sched_process_free")
int BPF_PROG(freed, struct task_struct *task)
{
	__u32 key = 0;
	__u64 *count = bpf_map_lookup_elem(&frees, &key);

	if (count && task->pid == pid)
		__sync_fetch_and_add(count, 1);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
