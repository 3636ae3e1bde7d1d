/* SPDX-License-Identifier: GPL-2.0-only */
/* The few fields of the kernel's TCP structures that programs here use; CO-RE finds them in each kernel. */
#ifndef KERNRIG_SCENARIOS_TCP_H
#define KERNRIG_SCENARIOS_TCP_H

#include <linux/types.h>

/* include/net/tcp.h, include/net/inet_connection_sock.h, include/uapi/asm-generic/socket.h */
#define TCP_ECN_OK 1
#define TCP_ECN_DEMAND_CWR 4
#define ICSK_ACK_TIMER 2
#define ICSK_ACK_NOW 16
#define IPPROTO_TCP 6
#define TCP_CONGESTION 13

struct sock;

enum tcp_ca_event {
	CA_EVENT_ECN_NO_CE = 4,
	CA_EVENT_ECN_IS_CE = 5,
};

struct inet_connection_sock {
	struct {
		__u8 pending;
	} icsk_ack;
	__u64 icsk_ca_priv[13];
} __attribute__((preserve_access_index));

struct tcp_sock {
	__u32 snd_cwnd;
	__u32 snd_cwnd_cnt;
	__u32 snd_cwnd_clamp;
	__u32 snd_ssthresh;
	__u32 snd_una;
	__u32 snd_nxt;
	__u32 rcv_nxt;
	__u32 delivered;
	__u32 delivered_ce;
	__u8 ecn_flags;
} __attribute__((preserve_access_index));

struct ack_sample {
	__s32 rtt_us;
} __attribute__((preserve_access_index));

struct tcp_congestion_ops {
	__u32 (*ssthresh)(struct sock *sk);
	void (*cong_avoid)(struct sock *sk, __u32 ack, __u32 acked);
	void (*set_state)(struct sock *sk, __u8 new_state);
	void (*cwnd_event)(struct sock *sk, enum tcp_ca_event event);
	void (*in_ack_event)(struct sock *sk, __u32 flags);
	__u32 (*undo_cwnd)(struct sock *sk);
	void (*pkts_acked)(struct sock *sk, const struct ack_sample *sample);
	void (*init)(struct sock *sk);
	void (*release)(struct sock *sk);
	char name[16];
};

/* Slow start up to the threshold, then `w` acknowledged segments for each further one. */
static __always_inline void grow(struct tcp_sock *tp, __u32 acked, __u32 w)
{
	__u32 cwnd = tp->snd_cwnd, gathered = tp->snd_cwnd_cnt + acked;

	if (cwnd < tp->snd_ssthresh) {
		cwnd += acked;
		gathered = 0;
	} else if (gathered >= w) {
		gathered = 0;
		cwnd++;
	}
	tp->snd_cwnd_cnt = gathered;
	tp->snd_cwnd = cwnd < tp->snd_cwnd_clamp ? cwnd : tp->snd_cwnd_clamp;
}

#endif
