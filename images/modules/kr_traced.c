// SPDX-License-Identifier: GPL-2.0-only
/*
 * A module to attach programs to: tracepoints, functions, a function that can be made to fail, a variable, kfuncs; and a symbol
 * that another module (kr_dependent) uses.
 *
 * A number written to debugfs kr_traced/call goes through all of them, in the order of the source; a read from the same open file
 * gives "RETURNED WRITTEN": what the functions returned, and what a program wrote into the writable tracepoint's argument.
 */
#include <linux/bpf.h>
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kstrtox.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "kr_delay.h"
#include "kr_kfunc.h"
#include "kr_param.h"

#define CREATE_TRACE_POINTS
#include "kr_traced_events.h"

/* DECLARE_TRACE() appends this to the name since 6.16. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
#define trace_kr_traced_bare trace_kr_traced_bare_tp
#define trace_kr_traced_writable trace_kr_traced_writable_tp
#endif

KR_PARAM(init_delay_ms, "sleep in init after everything is registered; 0 ends it");
KR_PARAM(init_error, "errno that init fails with after everything is registered");
KR_PARAM(exit_delay_ms, "sleep in exit before anything is taken down; 0 ends it");

/* A variable for typed ksyms: only per-CPU ones are in BTF on every kernel. */
DEFINE_PER_CPU(int, kr_traced_answer) = 42;

static struct dentry *kr_dir;

__bpf_kfunc_start_defs();

__bpf_kfunc int kr_traced_number(void)
{
	return 7;
}

/* Said to be as harmful as one that ends the machine, and harmless. */
__bpf_kfunc int kr_traced_destroy(void)
{
	return 13;
}

/* Numbers of each width, all of which may be negative. */
__bpf_kfunc s64 kr_traced_add(s8 a, s16 b, s32 c, s64 d)
{
	return a + b + c + d;
}

/* A program passes its context as it knows it, and what comes is the kernel's. */
__bpf_kfunc u32 kr_traced_mark_of(struct __sk_buff *packet)
{
	return ((struct sk_buff *)packet)->mark;
}

/* The sum of some memory; the verifier learns from the second argument's name how much of it is read. */
__bpf_kfunc u32 kr_traced_sum(const void *bytes, u32 bytes__sz)
{
	const u8 *byte = bytes;
	u32 i, sum = 0;

	for (i = 0; i < bytes__sz; i++)
		sum += byte[i];
	return sum;
}

/* Returns 0, unless a program that modifies its return value says otherwise. */
__bpf_kfunc int kr_traced_permit(int value)
{
	int result = 0;

	/* What comes back must be asked for, and the value be told: the compiler is not to know better. */
	barrier_data(&result);
	barrier_data(&value);
	return result;
}

__bpf_kfunc_end_defs();

BTF_KFUNCS_START(kr_kfunc_ids)
BTF_ID_FLAGS(func, kr_traced_number)
BTF_ID_FLAGS(func, kr_traced_destroy, KF_DESTRUCTIVE)
BTF_ID_FLAGS(func, kr_traced_add)
BTF_ID_FLAGS(func, kr_traced_mark_of)
BTF_ID_FLAGS(func, kr_traced_sum)
BTF_KFUNCS_END(kr_kfunc_ids)

static const struct btf_kfunc_id_set kr_kfunc_set = {
	.owner = THIS_MODULE,
	.set = &kr_kfunc_ids,
};

#ifdef KR_CAN_MODIFY_RETURNS
BTF_KFUNCS_START(kr_fmodret_ids)
BTF_ID_FLAGS(func, kr_traced_permit)
BTF_KFUNCS_END(kr_fmodret_ids)

static const struct btf_kfunc_id_set kr_fmodret_set = {
	.owner = THIS_MODULE,
	.set = &kr_fmodret_ids,
};
#endif

noinline int kr_traced_double(int value)
{
	barrier_data(&value);
	return 2 * value;
}
EXPORT_SYMBOL_GPL(kr_traced_double);

/* Kernels since 6.3 have a function of this name themselves, for tests of the networking core's test runs. */
int bpf_fentry_shadow_test(int value);
noinline int bpf_fentry_shadow_test(int value)
{
	barrier_data(&value);
	return value + 1;
}

struct kr_session {
	int returned;
	int written;
};

static int kr_call_open(struct inode *inode, struct file *file)
{
	file->private_data = kzalloc(sizeof(struct kr_session), GFP_KERNEL);
	return file->private_data ? 0 : -ENOMEM;
}

static int kr_call_release(struct inode *inode, struct file *file)
{
	kfree(file->private_data);
	return 0;
}

static ssize_t kr_call_write(struct file *file, const char __user *buf, size_t len, loff_t *pos)
{
	struct kr_traced_value changeable = {};
	struct kr_session *session = file->private_data;
	int err, value;

	err = kstrtoint_from_user(buf, len, 0, &value);
	if (err)
		return err;
	trace_kr_traced_event(value);
	trace_kr_traced_bare(value);
	changeable.value = value;
	trace_kr_traced_writable(&changeable);
	session->written = changeable.changed;
	err = kr_traced_permit(value);
	session->returned = err ? err : kr_traced_double(value) + bpf_fentry_shadow_test(0) - 1;
	return len;
}

static ssize_t kr_call_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
	struct kr_session *session = file->private_data;
	loff_t start = 0;
	char line[32];
	int n = scnprintf(line, sizeof(line), "%d %d\n", session->returned, session->written);

	return simple_read_from_buffer(buf, len, &start, line, n);
}

static const struct file_operations kr_call_fops = {
	.owner = THIS_MODULE,
	.open = kr_call_open,
	.release = kr_call_release,
	.write = kr_call_write,
	.read = kr_call_read,
};

static const enum bpf_prog_type kr_prog_types[] = { BPF_PROG_TYPE_SCHED_CLS, BPF_PROG_TYPE_SYSCALL };

static int __init kr_traced_init(void)
{
	int i, err;

	for (i = 0; i < ARRAY_SIZE(kr_prog_types); i++) {
		err = register_btf_kfunc_id_set(kr_prog_types[i], &kr_kfunc_set);
		if (err)
			return err;
	}
#ifdef KR_CAN_MODIFY_RETURNS
	err = register_btf_fmodret_id_set(&kr_fmodret_set);
	if (err)
		return err;
#endif
	kr_delay(&init_delay_ms);
	if (init_error)
		return -(int)min_t(unsigned int, init_error, MAX_ERRNO);
	kr_dir = debugfs_create_dir("kr_traced", NULL);
	debugfs_create_file("call", 0600, kr_dir, NULL, &kr_call_fops);
	return 0;
}

static void __exit kr_traced_exit(void)
{
	kr_delay(&exit_delay_ms);
	debugfs_remove(kr_dir);
}

module_init(kr_traced_init);
module_exit(kr_traced_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("kernrig: things to attach programs to");
