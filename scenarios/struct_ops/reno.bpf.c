// SPDX-License-Identifier: GPL-2.0-only
/* A Reno that counts its calls, and keeps in the socket what it later checks and adds up. */
#include "tcp.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define MARK 0x6b65726eU

/* In the order of MEMBERS in algorithms.py, as the first thing in .bss. */
struct {
	__u64 init, release, ssthresh, cong_avoid, undo_cwnd;
	/* Segments acknowledged on sockets that were released, by those sockets' own count. */
	__u64 acked;
	/* Calls that did not find in the socket what init had left there. */
	__u64 strangers;
} calls;

struct reno {
	__u32 mark;
	__u32 acked;
	__u32 prior_cwnd;
};

static __always_inline struct reno *state_of(struct sock *sk)
{
	return (struct reno *)((struct inet_connection_sock *)sk)->icsk_ca_priv;
}

static __always_inline void count(__u64 *calls_of_member, struct reno *ca)
{
	__sync_fetch_and_add(calls_of_member, 1);
	if (ca->mark != MARK)
		__sync_fetch_and_add(&calls.strangers, 1);
}

SEC("struct_ops/init")
void BPF_PROG(init, struct sock *sk)
{
	struct reno *ca = state_of(sk);

	ca->mark = MARK;
	ca->acked = 0;
	count(&calls.init, ca);
}

SEC("struct_ops/release")
void BPF_PROG(release, struct sock *sk)
{
	/* A disconnect releases, too, and clears the state before the socket's end releases again. */
	__sync_fetch_and_add(&calls.release, 1);
	__sync_fetch_and_add(&calls.acked, state_of(sk)->acked);
}

SEC("struct_ops/ssthresh")
__u32 BPF_PROG(ssthresh, struct sock *sk)
{
	__u32 cwnd = ((struct tcp_sock *)sk)->snd_cwnd;
	struct reno *ca = state_of(sk);

	count(&calls.ssthresh, ca);
	ca->prior_cwnd = cwnd;
	return cwnd > 4 ? cwnd / 2 : 2;
}

SEC("struct_ops/cong_avoid")
void BPF_PROG(cong_avoid, struct sock *sk, __u32 ack, __u32 acked)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct reno *ca = state_of(sk);

	count(&calls.cong_avoid, ca);
	ca->acked += acked;
	grow(tp, acked, tp->snd_cwnd);
}

SEC("struct_ops/undo_cwnd")
__u32 BPF_PROG(undo_cwnd, struct sock *sk)
{
	__u32 cwnd = ((struct tcp_sock *)sk)->snd_cwnd;
	struct reno *ca = state_of(sk);

	count(&calls.undo_cwnd, ca);
	return cwnd > ca->prior_cwnd ? cwnd : ca->prior_cwnd;
}

/* Tells libbpf which member each program is for; the scenarios fill maps of their own. */
SEC(".struct_ops")
struct tcp_congestion_ops members = {
	.ssthresh = (void *)ssthresh,
	.cong_avoid = (void *)cong_avoid,
	.undo_cwnd = (void *)undo_cwnd,
	.init = (void *)init,
	.release = (void *)release,
	.name = "kr_unused",
};

char LICENSE[] SEC("license") = "GPL";
