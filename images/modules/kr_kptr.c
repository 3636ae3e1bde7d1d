// SPDX-License-Identifier: GPL-2.0-only
/*
 * A module with a kptr type, for scenarios that follow an object's references through maps and programs.
 *
 * Objects come from kr_obj_new() or are one of a few static ones that kr_obj_find() hands out; debugfs kr_kptr/stats counts every
 * acquire, release, destructor call and free, kr_kptr/static shows the references of each static object.
 */
#include <linux/atomic.h>
#include <linux/bpf.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

#include "kr_delay.h"
#include "kr_kfunc.h"
#include "kr_param.h"

#define KR_STATIC_OBJECTS 4

KR_PARAM(dtor_delay_us, "busy-wait in the destructor, at most 1000");
KR_PARAM(init_error, "errno that init fails with after everything is registered");
KR_PARAM(init_delay_ms, "sleep in init after everything is registered; 0 ends it");
KR_PARAM(exit_delay_ms, "sleep in exit before anything is taken down; 0 ends it");
KR_PARAM(max_live, "kr_obj_new returns NULL when this many objects live; 0 is no limit");

struct kr_obj {
	refcount_t refs;
	u32 id;
	u64 cookie;
	struct rcu_head rcu;
};

#define KR_COUNTERS(X) X(created) X(acquired) X(released) X(dtor_calls) X(freed) X(live) X(new_failed) X(find_failed)

#define KR_DECLARE(name) atomic_t name;
static struct { KR_COUNTERS(KR_DECLARE) } kr_count;

/* These hold one reference of their own and are never freed: their count is the programs' references plus one. */
static struct kr_obj kr_static[KR_STATIC_OBJECTS];
static struct dentry *kr_dir;

static bool kr_is_static(const struct kr_obj *obj)
{
	return obj >= kr_static && obj < kr_static + KR_STATIC_OBJECTS;
}

static void kr_obj_free(struct rcu_head *rcu)
{
	struct kr_obj *obj = container_of(rcu, struct kr_obj, rcu);

	atomic_inc(&kr_count.freed);
	kfree(obj);
}

static void kr_obj_put(struct kr_obj *obj)
{
	if (!refcount_dec_and_test(&obj->refs))
		return;
	if (WARN(kr_is_static(obj), "kr_kptr: one release too many of static object %u\n", obj->id))
		return;
	atomic_dec(&kr_count.live);
	call_rcu(&obj->rcu, kr_obj_free);
}

__bpf_kfunc_start_defs();

/* A new object with one reference, the caller's; NULL without memory or beyond max_live. Not for programs that run in NMI. */
__bpf_kfunc struct kr_obj *kr_obj_new(u32 id)
{
	struct kr_obj *obj;

	if (max_live && atomic_read(&kr_count.live) >= max_live)
		obj = NULL;
	else
		obj = kmalloc(sizeof(*obj), GFP_ATOMIC | __GFP_NOWARN | __GFP_ZERO);
	if (!obj) {
		atomic_inc(&kr_count.new_failed);
		return NULL;
	}
	refcount_set(&obj->refs, 1);
	obj->id = id;
	atomic_inc(&kr_count.created);
	atomic_inc(&kr_count.live);
	return obj;
}

/* One more reference to a static object; NULL when there is none of that id. */
__bpf_kfunc struct kr_obj *kr_obj_find(u32 id)
{
	if (id >= KR_STATIC_OBJECTS) {
		atomic_inc(&kr_count.find_failed);
		return NULL;
	}
	refcount_inc(&kr_static[id].refs);
	atomic_inc(&kr_count.acquired);
	return &kr_static[id];
}

/* One more reference to an object the caller can see; NULL when its last one is already gone. */
__bpf_kfunc struct kr_obj *kr_obj_acquire(struct kr_obj *obj)
{
	if (!refcount_inc_not_zero(&obj->refs))
		return NULL;
	atomic_inc(&kr_count.acquired);
	return obj;
}

__bpf_kfunc void kr_obj_release(struct kr_obj *obj)
{
	atomic_inc(&kr_count.released);
	kr_obj_put(obj);
}

/* The kernel calls this, never a program, for an object that a map held when its value went away. */
__bpf_kfunc void kr_obj_dtor(void *obj)
{
	/* Before 6.4 the kernel calls it for empty pointers, too. */
	if (!obj)
		return;
	udelay(min(dtor_delay_us, 1000U));
	atomic_inc(&kr_count.dtor_calls);
	kr_obj_put(obj);
}
CFI_NOSEAL(kr_obj_dtor);

/* The references an object has: 1 for one that only the caller holds. */
__bpf_kfunc u32 kr_obj_refs(struct kr_obj *obj)
{
	return refcount_read(&obj->refs);
}

/* Write a number into the object, which programs can only read by themselves. */
__bpf_kfunc void kr_obj_mark(struct kr_obj *obj, u64 cookie)
{
	WRITE_ONCE(obj->cookie, cookie);
}

/* Part of the object as bytes that may be written; the verifier learns from the second argument's name how many. */
__bpf_kfunc int *kr_obj_bytes(struct kr_obj *obj, const int rdwr_buf_size)
{
	return rdwr_buf_size > 0 && rdwr_buf_size <= sizeof(obj->cookie) ? (int *)&obj->cookie : NULL;
}

/* The same, only to be read. */
__bpf_kfunc int *kr_obj_const_bytes(struct kr_obj *obj, const int rdonly_buf_size)
{
	return kr_obj_bytes(obj, rdonly_buf_size);
}

/* The same, said to be a reference, which bytes cannot be: no program that calls this loads. */
__bpf_kfunc int *kr_obj_owned_bytes(struct kr_obj *obj, const int rdonly_buf_size)
{
	return kr_obj_bytes(obj, rdonly_buf_size);
}

__bpf_kfunc_end_defs();

BTF_KFUNCS_START(kr_kfunc_ids)
BTF_ID_FLAGS(func, kr_obj_new, KF_ACQUIRE | KF_RET_NULL)
BTF_ID_FLAGS(func, kr_obj_find, KF_ACQUIRE | KF_RET_NULL)
BTF_ID_FLAGS(func, kr_obj_acquire, KF_ACQUIRE | KF_RET_NULL | KR_KF_LIVE_ARG)
BTF_ID_FLAGS(func, kr_obj_release, KF_RELEASE)
BTF_ID_FLAGS(func, kr_obj_refs, KR_KF_TRUSTED)
BTF_ID_FLAGS(func, kr_obj_mark, KR_KF_TRUSTED)
BTF_ID_FLAGS(func, kr_obj_bytes, KF_RET_NULL | KR_KF_TRUSTED)
BTF_ID_FLAGS(func, kr_obj_const_bytes, KF_RET_NULL | KR_KF_TRUSTED)
BTF_ID_FLAGS(func, kr_obj_owned_bytes, KF_ACQUIRE | KF_RET_NULL | KR_KF_TRUSTED)
BTF_KFUNCS_END(kr_kfunc_ids)

static const struct btf_kfunc_id_set kr_kfunc_set = {
	.owner = THIS_MODULE,
	.set = &kr_kfunc_ids,
};

BTF_ID_LIST(kr_dtor_ids)
BTF_ID(struct, kr_obj)
BTF_ID(func, kr_obj_dtor)

static const enum bpf_prog_type kr_prog_types[] = {
	BPF_PROG_TYPE_SYSCALL,
	BPF_PROG_TYPE_SCHED_CLS,
	BPF_PROG_TYPE_TRACING,
	BPF_PROG_TYPE_XDP,
	BPF_PROG_TYPE_STRUCT_OPS,
};

static int stats_show(struct seq_file *seq, void *unused)
{
#define KR_SHOW(name) seq_printf(seq, #name " %d\n", atomic_read(&kr_count.name));
	KR_COUNTERS(KR_SHOW)
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(stats);

static int static_show(struct seq_file *seq, void *unused)
{
	int i;

	for (i = 0; i < KR_STATIC_OBJECTS; i++)
		seq_printf(seq, "id=%u refs=%u cookie=%llu\n", kr_static[i].id, refcount_read(&kr_static[i].refs),
			   READ_ONCE(kr_static[i].cookie));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(static);

static int __init kr_kptr_init(void)
{
	const struct btf_id_dtor_kfunc dtors[] = {
		{ .btf_id = kr_dtor_ids[0], .kfunc_btf_id = kr_dtor_ids[1] },
	};
	int i, err;

	for (i = 0; i < KR_STATIC_OBJECTS; i++) {
		refcount_set(&kr_static[i].refs, 1);
		kr_static[i].id = i;
	}
	for (i = 0; i < ARRAY_SIZE(kr_prog_types); i++) {
		err = register_btf_kfunc_id_set(kr_prog_types[i], &kr_kfunc_set);
		if (err)
			return err;
	}
	err = register_btf_id_dtor_kfuncs(dtors, ARRAY_SIZE(dtors), THIS_MODULE);
	if (err)
		return err;
	kr_delay(&init_delay_ms);
	if (init_error)
		return -(int)min_t(unsigned int, init_error, MAX_ERRNO);
	kr_dir = debugfs_create_dir("kr_kptr", NULL);
	debugfs_create_file("stats", 0400, kr_dir, NULL, &stats_fops);
	debugfs_create_file("static", 0400, kr_dir, NULL, &static_fops);
	return 0;
}

static void __exit kr_kptr_exit(void)
{
	int i;

	kr_delay(&exit_delay_ms);
	debugfs_remove(kr_dir);
	WARN(atomic_read(&kr_count.live), "kr_kptr: exit with %d objects alive\n", atomic_read(&kr_count.live));
	for (i = 0; i < KR_STATIC_OBJECTS; i++)
		WARN(refcount_read(&kr_static[i].refs) != 1, "kr_kptr: exit with %u references to static object %d\n",
		     refcount_read(&kr_static[i].refs) - 1, i);
	/* The frees that call_rcu() put off run in this module's text. */
	rcu_barrier();
}

module_init(kr_kptr_init);
module_exit(kr_kptr_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("kernrig: a kptr type, its kfuncs and its destructor");
