/* SPDX-License-Identifier: GPL-2.0-only */
/* Kernel functions for programs, in the words of current kernels, on those that lack some of the words. */
#ifndef KR_KFUNC_H
#define KR_KFUNC_H

#include <linux/btf.h>
#include <linux/btf_ids.h>
#include <linux/cfi.h>
#include <linux/compiler.h>

#ifndef __bpf_kfunc
#define __bpf_kfunc __used noinline
#endif
#ifndef __bpf_kfunc_start_defs
#define __bpf_kfunc_start_defs()              \
	__diag_push();                        \
	__diag_ignore_all("-Wmissing-prototypes", "kfuncs are called by programs only")
#define __bpf_kfunc_end_defs() __diag_pop()
#endif
#ifndef CFI_NOSEAL
#define CFI_NOSEAL(x)
#endif
#ifndef BTF_KFUNCS_START
#define BTF_KFUNCS_START(name) BTF_SET8_START(name)
#define BTF_KFUNCS_END(name) BTF_SET8_END(name)
#endif

/* KF_RCU came in 6.3 and takes trusted pointers too; before, KF_TRUSTED_ARGS is the nearest. */
#ifdef KF_RCU
#define KR_KF_LIVE_ARG KF_RCU
#else
#define KR_KF_LIVE_ARG KF_TRUSTED_ARGS
#endif
/* Trusted arguments became the default, and the flag went, in 7.0. */
#ifdef KF_TRUSTED_ARGS
#define KR_KF_TRUSTED KF_TRUSTED_ARGS
#else
#define KR_KF_TRUSTED 0
#endif

#endif
