/* SPDX-License-Identifier: GPL-2.0-only */
/* The few fields of the kernel's TCP structures that programs here use; CO-RE finds them in each kernel. */
#ifndef KERNRIG_SCENARIOS_TCP_H
#define KERNRIG_SCENARIOS_TCP_H

#include <linux/types.h>

struct sock;

struct inet_connection_sock {
	__u64 icsk_ca_priv[13];
} __attribute__((preserve_access_index));

struct tcp_sock {
	__u32 snd_cwnd;
	__u32 snd_cwnd_cnt;
	__u32 snd_cwnd_clamp;
	__u32 snd_ssthresh;
} __attribute__((preserve_access_index));

struct tcp_congestion_ops {
	__u32 (*ssthresh)(struct sock *sk);
	void (*cong_avoid)(struct sock *sk, __u32 ack, __u32 acked);
	__u32 (*undo_cwnd)(struct sock *sk);
	void (*init)(struct sock *sk);
	void (*release)(struct sock *sk);
	char name[16];
};

#endif
