/* SPDX-License-Identifier: GPL-2.0-only */
/* The struct_ops type that kr_ops.ko defines, as programs see it through the module's BTF. */
#ifndef KR_OPS_H
#define KR_OPS_H

#include <linux/types.h>

#define KR_OPS_SLOTS 4

/* Passed by pointer to members: programs read every field and may write only @seen. */
struct kr_ops_arg {
#ifdef KR_OTHER_LAYOUT
	u64 seen;
	u64 sequence;
	int value;
	u32 slot;
#else
	int value;
	u32 slot;
	u64 sequence;
	u64 seen;
#endif
};

struct module;

/*
 * @compute:  mandatory, @validate refuses a table without it.
 * @inspect:  optional; may be a sleepable program.
 * @observe:  optional; its argument may be NULL and a program must test it.
 * @unsupported: has no stub, so that no program can be loaded for it.
 * @slot:     data copied into the table: the place that the table is registered in.
 * @scale:    data copied into the table, shown in "tables".
 * @reserved: data that the module does not know: the kernel insists on zero. Seven bytes of padding follow.
 * @owner:    the kernel fills pointers to a module itself.
 */
struct kr_ops {
	int (*compute)(int a, int b);
	int (*inspect)(struct kr_ops_arg *arg);
	int (*observe)(struct kr_ops_arg *arg);
	void (*unsupported)(void);
	u32 slot;
	s32 scale;
	u8 reserved;
	struct module *owner;
};

#endif
