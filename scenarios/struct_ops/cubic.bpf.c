// SPDX-License-Identifier: GPL-2.0-only
/* A small control in the manner of RFC 9438: the window is a cubic function of the time since the last loss. */
#include "tcp.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

/* In the order of CUBIC_WORDS in test_throughput.py, as the first thing in .bss. */
struct {
	__u64 init, ssthresh, undo_cwnd, set_state, pkts_acked;
	/* Windows right before and after the last loss. */
	__u64 before_loss, after_loss;
	/* Acknowledgements below and above the threshold. */
	__u64 slow_start, avoidance;
	/* Shortest round trip, in microseconds. */
	__u64 min_rtt_us;
} calls;

struct cubic {
	__u32 w_max;
	__u32 k_ms;
	__u32 prior_cwnd;
	__u64 epoch_ns;
};

static __always_inline struct cubic *state_of(struct sock *sk)
{
	return (struct cubic *)((struct inet_connection_sock *)sk)->icsk_ca_priv;
}

/* Newton's method, from above: no branches, which the verifier would have to follow. */
static __always_inline __u32 cube_root(__u64 x)
{
	__u64 root = 1 << 15;

	for (int i = 0; i < 20; i++)
		root = (2 * root + x / (root * root + 1)) / 3;
	return root;
}

SEC("struct_ops/init")
void BPF_PROG(init, struct sock *sk)
{
	struct cubic *ca = state_of(sk);

	__sync_fetch_and_add(&calls.init, 1);
	ca->w_max = 0;
	ca->epoch_ns = 0;
}

/* The window at this time: W_max + 0.4 (t - K)^3, t and K in seconds; K is when it is W_max again. */
static __always_inline __u32 window_now(struct cubic *ca, __u32 cwnd)
{
	__u64 now = bpf_ktime_get_ns(), t_ms, far;

	if (!ca->epoch_ns) {
		ca->epoch_ns = now;
		/* K^3 = (W_max - cwnd) / 0.4, in milliseconds */
		ca->k_ms = ca->w_max > cwnd ? cube_root((ca->w_max - cwnd) * 2500000000ull) : 0;
		if (!ca->k_ms)
			ca->w_max = cwnd;
	}
	t_ms = (now - ca->epoch_ns) / 1000000;
	if (t_ms < ca->k_ms) {
		far = ca->k_ms - t_ms;
		far = far * far * far / 2500000000ull;
		return far < ca->w_max ? ca->w_max - (__u32)far : 1;
	}
	far = t_ms - ca->k_ms;
	far = far < 60000 ? far : 60000;
	return ca->w_max + (__u32)(far * far * far / 2500000000ull);
}

SEC("struct_ops/cong_avoid")
void BPF_PROG(cong_avoid, struct sock *sk, __u32 ack, __u32 acked)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct cubic *ca = state_of(sk);
	__u32 cwnd = tp->snd_cwnd, target, w;

	if (cwnd < tp->snd_ssthresh) {
		__sync_fetch_and_add(&calls.slow_start, 1);
		grow(tp, acked, cwnd);
		return;
	}
	__sync_fetch_and_add(&calls.avoidance, 1);
	target = window_now(ca, cwnd);
	w = target > cwnd ? cwnd / (target - cwnd) : 100 * cwnd;
	grow(tp, acked, w > 2 ? w : 2);
}

SEC("struct_ops/ssthresh")
__u32 BPF_PROG(ssthresh, struct sock *sk)
{
	__u32 cwnd = ((struct tcp_sock *)sk)->snd_cwnd, after = cwnd * 7 / 10;
	struct cubic *ca = state_of(sk);

	__sync_fetch_and_add(&calls.ssthresh, 1);
	/* Who did not come back to the old maximum gives way to others. */
	ca->w_max = cwnd < ca->w_max ? cwnd * 17 / 20 : cwnd;
	ca->prior_cwnd = cwnd;
	ca->epoch_ns = 0;
	calls.before_loss = cwnd;
	calls.after_loss = after > 2 ? after : 2;
	return calls.after_loss;
}

SEC("struct_ops/undo_cwnd")
__u32 BPF_PROG(undo_cwnd, struct sock *sk)
{
	__u32 cwnd = ((struct tcp_sock *)sk)->snd_cwnd;
	struct cubic *ca = state_of(sk);

	__sync_fetch_and_add(&calls.undo_cwnd, 1);
	return cwnd > ca->prior_cwnd ? cwnd : ca->prior_cwnd;
}

SEC("struct_ops/set_state")
void BPF_PROG(set_state, struct sock *sk, __u8 new_state)
{
	__sync_fetch_and_add(&calls.set_state, 1);
}

SEC("struct_ops/pkts_acked")
void BPF_PROG(pkts_acked, struct sock *sk, const struct ack_sample *sample)
{
	__s32 rtt = sample->rtt_us;

	__sync_fetch_and_add(&calls.pkts_acked, 1);
	if (rtt > 0 && (!calls.min_rtt_us || rtt < calls.min_rtt_us))
		calls.min_rtt_us = rtt;
}

/* Tells libbpf which member each program is for; the scenarios fill maps of their own. */
SEC(".struct_ops")
struct tcp_congestion_ops members = {
	.ssthresh = (void *)ssthresh,
	.cong_avoid = (void *)cong_avoid,
	.set_state = (void *)set_state,
	.undo_cwnd = (void *)undo_cwnd,
	.pkts_acked = (void *)pkts_acked,
	.init = (void *)init,
	.name = "kr_unused",
};

char LICENSE[] SEC("license") = "GPL";
