// SPDX-License-Identifier: GPL-2.0-only
/* One function of the kernel by several prototypes, of which it has one (test_flavours.py). */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct task_struct {
	int pid;
} __attribute__((preserve_access_index));

/* libbpf leaves off what follows the three underscores, looks the name up and compares the prototypes. */
struct task_struct *bpf_task_acquire___longer(struct task_struct *task, void *more) __ksym __weak;
struct task_struct *bpf_task_acquire___untyped(void *task) __ksym __weak;
struct task_struct *bpf_task_acquire___right(struct task_struct *task) __ksym __weak;
struct task_struct *bpf_task_acquire_nowhere___right(struct task_struct *task) __ksym __weak;
void bpf_task_release(struct task_struct *task) __ksym __weak;

/* The wrong ones stand first: were one taken for the kernel's, its call would be there for the verifier. */
SEC("tc")
int pid_by_the_right_one(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf(), *acquired;
	int pid;

	if (bpf_task_acquire___longer)
		acquired = bpf_task_acquire___longer(task, ctx);
	else if (bpf_task_acquire___untyped)
		acquired = bpf_task_acquire___untyped(ctx);
	else if (bpf_task_acquire_nowhere___right)
		acquired = bpf_task_acquire_nowhere___right(task);
	else if (bpf_task_acquire___right)
		acquired = bpf_task_acquire___right(task);
	else
		return -1;
	if (!acquired)
		return -2;
	pid = acquired->pid;
	bpf_task_release(acquired);
	return pid;
}

SEC("tc")
int how_many_wrong_ones(void *ctx)
{
	int number = 0;

	if (bpf_task_acquire___longer)
		number++;
	if (bpf_task_acquire___untyped)
		number++;
	if (bpf_task_acquire_nowhere___right)
		number++;
	return number;
}

char LICENSE[] SEC("license") = "GPL";
