// SPDX-License-Identifier: GPL-2.0-only
/* A tracing program makes an element of a storage map for the current task, its cgroup or a listening socket, or deletes it. */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

struct cgroup;
struct sock;

struct css_set {
	struct cgroup *dfl_cgrp;
} __attribute__((preserve_access_index));

struct task_struct {
	struct css_set *cgroups;
} __attribute__((preserve_access_index));

struct socket {
	struct sock *sk;
} __attribute__((preserve_access_index));

#define STORAGE(name, map_type)                    \
	struct {                                   \
		__uint(type, map_type);            \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__type(key, int);                  \
		__type(value, __u64);              \
	} name SEC(".maps")

STORAGE(of_task, BPF_MAP_TYPE_TASK_STORAGE);
STORAGE(of_sk, BPF_MAP_TYPE_SK_STORAGE);
STORAGE(of_cgroup, 32 /* BPF_MAP_TYPE_CGRP_STORAGE */);

static void *(*cgrp_storage_get)(void *map, struct cgroup *cgroup, void *value, __u64 flags) = (void *)210;
static long (*cgrp_storage_delete)(void *map, struct cgroup *cgroup) = (void *)211;

bool deleting;
__u64 first = 7;
long result;

/* The helper's result is an errno, or whether there is an element now. */
SEC("fentry/bpf_fentry_test1")
int BPF_PROG(on_task)
{
	struct task_struct *task = bpf_get_current_task_btf();

	if (deleting)
		result = bpf_task_storage_delete(&of_task, task);
	else
		result = !bpf_task_storage_get(&of_task, task, &first, BPF_LOCAL_STORAGE_GET_F_CREATE);
	return 0;
}

SEC("fentry/bpf_fentry_test1")
int BPF_PROG(on_cgroup)
{
	struct task_struct *task = bpf_get_current_task_btf();

	if (deleting)
		result = cgrp_storage_delete(&of_cgroup, task->cgroups->dfl_cgrp);
	else
		result = !cgrp_storage_get(&of_cgroup, task->cgroups->dfl_cgrp, &first, BPF_LOCAL_STORAGE_GET_F_CREATE);
	return 0;
}

SEC("fentry/inet_listen")
int BPF_PROG(on_sk, struct socket *socket)
{
	struct sock *sk = socket->sk;

	if (!sk)
		return 0;
	if (deleting)
		result = bpf_sk_storage_delete(&of_sk, sk);
	else
		result = !bpf_sk_storage_get(&of_sk, sk, &first, BPF_SK_STORAGE_GET_F_CREATE);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
