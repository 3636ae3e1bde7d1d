// SPDX-License-Identifier: GPL-2.0-only
/* A small control in the manner of RFC 8257: the window shrinks by as much as packets are marked. */
#include "tcp.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#define ONE 1024 /* of alpha */
#define SHIFT 4	 /* a round counts a sixteenth */

/* In the order of DCTCP_WORDS in test_throughput.py, as the first thing in .bss. */
struct {
	__u64 init, ssthresh, undo_cwnd;
	/* Connections without ECN, which were given to another algorithm. */
	__u64 given_away;
	/* Windows that were acknowledged as a whole, and the share of marks after the last of them. */
	__u64 rounds, alpha;
	/* Packets with and without mark, and acknowledgements sent because this changed. */
	__u64 marked, unmarked, early_acks;
} calls;

struct dctcp {
	__u32 started;
	__u32 alpha;
	__u32 delivered, delivered_ce;
	__u32 round_end;
	__u32 prior_cwnd;
	__u32 prior_rcv_nxt;
	__u32 ce;
};

static __always_inline struct dctcp *state_of(struct sock *sk)
{
	return (struct dctcp *)((struct inet_connection_sock *)sk)->icsk_ca_priv;
}

static __always_inline void begin_round(struct tcp_sock *tp, struct dctcp *ca)
{
	ca->delivered = tp->delivered;
	ca->delivered_ce = tp->delivered_ce;
	ca->round_end = tp->snd_nxt;
}

SEC("struct_ops/init")
void BPF_PROG(init, struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct dctcp *ca = state_of(sk);

	__sync_fetch_and_add(&calls.init, 1);
	if (!(tp->ecn_flags & TCP_ECN_OK)) {
		char other[] = "reno";

		if (!bpf_setsockopt(sk, IPPROTO_TCP, TCP_CONGESTION, other, sizeof(other)))
			__sync_fetch_and_add(&calls.given_away, 1);
		return;
	}
	ca->started = 1;
	ca->alpha = ONE;
	ca->prior_rcv_nxt = tp->rcv_nxt;
	begin_round(tp, ca);
}

SEC("struct_ops/in_ack_event")
void BPF_PROG(in_ack_event, struct sock *sk, __u32 flags)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct dctcp *ca = state_of(sk);
	__u32 delivered = tp->delivered - ca->delivered;

	/* The answer to a SYN is acknowledged before init runs. */
	if (!ca->started || (__s32)(tp->snd_una - ca->round_end) < 0)
		return;
	if (delivered) {
		__u64 marked = tp->delivered_ce - ca->delivered_ce;
		__u32 alpha = ca->alpha;

		alpha += (__u32)(marked * (ONE >> SHIFT) / delivered) - (alpha >> SHIFT);
		ca->alpha = alpha < ONE ? alpha : ONE;
		calls.alpha = ca->alpha;
		__sync_fetch_and_add(&calls.rounds, 1);
	}
	begin_round(tp, ca);
}

SEC("struct_ops/cwnd_event")
void BPF_PROG(cwnd_event, struct sock *sk, enum tcp_ca_event event)
{
	struct inet_connection_sock *icsk = (struct inet_connection_sock *)sk;
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct dctcp *ca = state_of(sk);
	__u32 ce = event == bpf_core_enum_value(enum tcp_ca_event, CA_EVENT_ECN_IS_CE);
	__u8 pending = icsk->icsk_ack.pending, flags = tp->ecn_flags;

	if (!ce && event != bpf_core_enum_value(enum tcp_ca_event, CA_EVENT_ECN_NO_CE))
		return;
	__sync_fetch_and_add(ce ? &calls.marked : &calls.unmarked, 1);
	if (ce != ca->ce) {
		if (pending & ICSK_ACK_TIMER) {
			/* What waits to be acknowledged came before the change. */
			__sync_fetch_and_add(&calls.early_acks, 1);
			bpf_tcp_send_ack(tp, ca->prior_rcv_nxt);
		}
		icsk->icsk_ack.pending = pending | ICSK_ACK_NOW;
	}
	tp->ecn_flags = ce ? flags | TCP_ECN_DEMAND_CWR : flags & ~TCP_ECN_DEMAND_CWR;
	ca->prior_rcv_nxt = tp->rcv_nxt;
	ca->ce = ce;
}

SEC("struct_ops/ssthresh")
__u32 BPF_PROG(ssthresh, struct sock *sk)
{
	__u32 cwnd = ((struct tcp_sock *)sk)->snd_cwnd;
	struct dctcp *ca = state_of(sk);

	__sync_fetch_and_add(&calls.ssthresh, 1);
	ca->prior_cwnd = cwnd;
	cwnd -= cwnd * ca->alpha / (2 * ONE);
	return cwnd > 2 ? cwnd : 2;
}

SEC("struct_ops/cong_avoid")
void BPF_PROG(cong_avoid, struct sock *sk, __u32 ack, __u32 acked)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	grow(tp, acked, tp->snd_cwnd);
}

SEC("struct_ops/undo_cwnd")
__u32 BPF_PROG(undo_cwnd, struct sock *sk)
{
	__u32 cwnd = ((struct tcp_sock *)sk)->snd_cwnd;
	struct dctcp *ca = state_of(sk);

	__sync_fetch_and_add(&calls.undo_cwnd, 1);
	return cwnd > ca->prior_cwnd ? cwnd : ca->prior_cwnd;
}

/* Tells libbpf which member each program is for; the scenarios fill maps of their own. */
SEC(".struct_ops")
struct tcp_congestion_ops members = {
	.ssthresh = (void *)ssthresh,
	.cong_avoid = (void *)cong_avoid,
	.cwnd_event = (void *)cwnd_event,
	.in_ack_event = (void *)in_ack_event,
	.undo_cwnd = (void *)undo_cwnd,
	.init = (void *)init,
	.name = "kr_unused",
};

char LICENSE[] SEC("license") = "GPL";
