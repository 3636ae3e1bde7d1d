// SPDX-License-Identifier: GPL-2.0-only
/* Stops one thread at the beginning of a kernel function, which is chosen when this is loaded, until it is let go. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define LONGEST_PAUSE_NS 10000000000ULL
#define ROUNDS (1 << 23) /* the most that bpf_loop does */

volatile __u32 thread; /* 0: nobody */
volatile __u32 paused;
volatile __u32 let_go;

static long wait_a_little(__u32 round, __u64 *deadline)
{
	if (bpf_ktime_get_ns() > *deadline)
		let_go = 1;
	return let_go != 0;
}

SEC("fentry/bpf_struct_ops_get")
int pause(void *ctx)
{
	__u64 deadline;

	if (!thread || (__u32)bpf_get_current_pid_tgid() != thread || paused)
		return 0;
	paused = 1;
	deadline = bpf_ktime_get_ns() + LONGEST_PAUSE_NS;
	for (int i = 0; i < 64 && !let_go; i++)
		bpf_loop(ROUNDS, wait_a_little, &deadline, 0);
	return 0;
}

char _license[] SEC("license") = "GPL";
