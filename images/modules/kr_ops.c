// SPDX-License-Identifier: GPL-2.0-only
/*
 * A module that defines a struct_ops type, for scenarios about the lives of modules and struct_ops tables.
 *
 * A table is registered in the slot that its data member names. A write to debugfs kr_ops/call calls one member of the table
 * in a slot, "stats" and "tables" show what happened, and the module parameters delay or fail each step of a table's life.
 */
#include <linux/atomic.h>
#include <linux/bpf.h>
#include <linux/bpf_verifier.h>
#include <linux/btf.h>
#include <linux/btf_ids.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/srcu.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "kr_ops.h"

#define KR_SLOT_HELD (-1)

/* How to find a delay or a forced error: all can be changed at run time, errors are positive errno values. */
#define KR_PARAM(name, text)                       \
	static unsigned int name;                  \
	module_param(name, uint, 0644);            \
	MODULE_PARM_DESC(name, text)

KR_PARAM(init_delay_ms, "sleep in init after the type is registered");
KR_PARAM(exit_delay_ms, "sleep in exit before anything is taken down");
KR_PARAM(reg_delay_ms, "sleep in reg before the table is published");
KR_PARAM(unreg_delay_ms, "sleep in unreg after the table is out of reach");
KR_PARAM(update_delay_ms, "sleep in update before the new table is published");
KR_PARAM(call_delay_ms, "sleep before a member is called, with its table already looked up");
KR_PARAM(return_delay_ms, "sleep after a member returned, with its table still in use");
KR_PARAM(init_error, "errno that init fails with after the type is registered");
KR_PARAM(reg_error, "errno that reg fails with");
KR_PARAM(update_error, "errno that update fails with");
KR_PARAM(validate_error, "errno that validate fails with");

#define KR_COUNTERS(X) \
	X(reg) X(unreg) X(update) X(validate) X(init_member) X(check_member) X(calls) X(calls_in_flight) \
	X(tables) X(held) X(reg_failed) X(update_failed) X(last_result) X(last_error)

#define KR_DECLARE(name) atomic_t name;
static struct { KR_COUNTERS(KR_DECLARE) } kr_count;

/* Published tables. Readers are in kr_table_users while they use one; writers hold kr_slots_lock. */
static struct kr_ops __rcu *kr_slots[KR_OPS_SLOTS];
static DEFINE_MUTEX(kr_slots_lock);
DEFINE_STATIC_SRCU(kr_table_users);

/* A table that an object of the module goes on using after it was unregistered, like a file system's inode would. */
static struct kr_ops *kr_held;
static DEFINE_MUTEX(kr_held_lock);

static const struct btf *kr_btf;
static struct dentry *kr_dir;

/* A variable for typed ksyms: only per-CPU ones are in BTF on every kernel. */
DEFINE_PER_CPU(u64, kr_ops_calls_here);

static int kr_fail(unsigned int errno_value)
{
	return -(int)min_t(unsigned int, errno_value, MAX_ERRNO);
}

/* The function that tracing programs attach to: runs after each call of a member. */
static noinline int kr_ops_called(int slot, int result)
{
	barrier_data(&slot);
	this_cpu_inc(kr_ops_calls_here);
	atomic_set(&kr_count.last_result, result);
	return result;
}

static int kr_ops_init(struct btf *btf)
{
	kr_btf = btf;
	return 0;
}

static int kr_ops_check_member(const struct btf_type *t, const struct btf_member *member, const struct bpf_prog *prog)
{
	u32 offset = __btf_member_bit_offset(t, member) / 8;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 10, 0)
	bool sleepable = prog->sleepable;
#else
	bool sleepable = prog->aux->sleepable;
#endif

	atomic_inc(&kr_count.check_member);
	return sleepable && offset != offsetof(struct kr_ops, inspect) ? -EINVAL : 0;
}

static int kr_ops_init_member(const struct btf_type *t, const struct btf_member *member, void *kdata, const void *udata)
{
	const struct kr_ops *from = udata;
	struct kr_ops *to = kdata;

	atomic_inc(&kr_count.init_member);
	switch (__btf_member_bit_offset(t, member) / 8) {
	case offsetof(struct kr_ops, slot):
		if (from->slot >= KR_OPS_SLOTS)
			return -EINVAL;
		to->slot = from->slot;
		return 1;
	case offsetof(struct kr_ops, scale):
		to->scale = from->scale;
		return 1;
	}
	return 0;
}

static int kr_ops_validate(void *kdata)
{
	const struct kr_ops *table = kdata;

	atomic_inc(&kr_count.validate);
	if (validate_error)
		return kr_fail(validate_error);
	return table->compute ? 0 : -EINVAL;
}

static int kr_ops_publish(struct kr_ops *table)
{
	int err = 0;

	msleep(reg_delay_ms);
	if (reg_error)
		return kr_fail(reg_error);
	mutex_lock(&kr_slots_lock);
	if (rcu_access_pointer(kr_slots[table->slot])) {
		err = -EEXIST;
	} else {
		rcu_assign_pointer(kr_slots[table->slot], table);
		atomic_inc(&kr_count.tables);
	}
	mutex_unlock(&kr_slots_lock);
	return err;
}

static int kr_ops_reg(void *kdata, struct bpf_link *link)
{
	int err = kr_ops_publish(kdata);

	atomic_inc(err ? &kr_count.reg_failed : &kr_count.reg);
	if (err)
		atomic_set(&kr_count.last_error, err);
	return err;
}

static void kr_ops_unreg(void *kdata, struct bpf_link *link)
{
	struct kr_ops *table = kdata;
	bool published;

	mutex_lock(&kr_slots_lock);
	published = rcu_access_pointer(kr_slots[table->slot]) == table;
	if (published)
		RCU_INIT_POINTER(kr_slots[table->slot], NULL);
	mutex_unlock(&kr_slots_lock);
	WARN(!published, "kr_ops: unreg of a table that is not registered\n");

	/* The map may be freed once this returns, and its trampolines do not wait for our readers. */
	synchronize_srcu(&kr_table_users);
	if (published)
		atomic_dec(&kr_count.tables);
	atomic_inc(&kr_count.unreg);
	msleep(unreg_delay_ms);
}

static int kr_ops_replace(struct kr_ops *table, struct kr_ops *old)
{
	int err = 0;

	msleep(update_delay_ms);
	if (update_error)
		return kr_fail(update_error);
	if (table->slot != old->slot)
		return -EINVAL;
	mutex_lock(&kr_slots_lock);
	if (rcu_access_pointer(kr_slots[old->slot]) == old)
		rcu_assign_pointer(kr_slots[old->slot], table);
	else
		err = -ENOENT;
	mutex_unlock(&kr_slots_lock);
	if (!err)
		synchronize_srcu(&kr_table_users);
	return err;
}

static int kr_ops_update(void *kdata, void *old_kdata, struct bpf_link *link)
{
	int err = kr_ops_replace(kdata, old_kdata);

	atomic_inc(err ? &kr_count.update_failed : &kr_count.update);
	if (err)
		atomic_set(&kr_count.last_error, err);
	return err;
}

/* The link became an argument in 6.11. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
#define KR_REG kr_ops_reg
#define KR_UNREG kr_ops_unreg
#define KR_UPDATE kr_ops_update
#else
static int kr_ops_reg_no_link(void *kdata)
{
	return kr_ops_reg(kdata, NULL);
}

static void kr_ops_unreg_no_link(void *kdata)
{
	kr_ops_unreg(kdata, NULL);
}

static int kr_ops_update_no_link(void *kdata, void *old_kdata)
{
	return kr_ops_update(kdata, old_kdata, NULL);
}
#define KR_REG kr_ops_reg_no_link
#define KR_UNREG kr_ops_unreg_no_link
#define KR_UPDATE kr_ops_update_no_link
#endif

static int kr_ops_struct_access(struct bpf_verifier_log *log, const struct bpf_reg_state *reg, int off, int size)
{
	const struct btf_type *t;

	if (reg->btf != kr_btf)
		return -EACCES;
	/* The module's only structure of this size that a program can reach. */
	t = btf_type_by_id(reg->btf, reg->btf_id);
	if (!t || t->size != sizeof(struct kr_ops_arg))
		return -EACCES;
	if (off < (int)offsetof(struct kr_ops_arg, seen) || off + size > (int)offsetofend(struct kr_ops_arg, seen)) {
		bpf_log(log, "only seen can be written in kr_ops_arg\n");
		return -EACCES;
	}
	return 0;
}

static const struct bpf_verifier_ops kr_ops_verifier_ops = {
	.get_func_proto = bpf_base_func_proto,
	.is_valid_access = bpf_tracing_btf_ctx_access,
	.btf_struct_access = kr_ops_struct_access,
};

/* The kernel finds a member's stub by the name TYPE__MEMBER and reads its arguments' suffixes from BTF. */
static int kr_ops__compute(int a, int b)
{
	return 0;
}

static int kr_ops__inspect(struct kr_ops_arg *arg)
{
	return 0;
}

static int kr_ops__observe(struct kr_ops_arg *arg__nullable)
{
	return 0;
}

static struct kr_ops kr_ops_stubs = {
	.compute = kr_ops__compute,
	.inspect = kr_ops__inspect,
	.observe = kr_ops__observe,
};

static struct bpf_struct_ops bpf_kr_ops = {
	.verifier_ops = &kr_ops_verifier_ops,
	.init = kr_ops_init,
	.check_member = kr_ops_check_member,
	.init_member = kr_ops_init_member,
	.validate = kr_ops_validate,
	.reg = KR_REG,
	.unreg = KR_UNREG,
	.update = KR_UPDATE,
	.cfi_stubs = &kr_ops_stubs,
	.owner = THIS_MODULE,
	.name = "kr_ops",
};

/* What one write to "call" asks for. */
struct kr_call {
	char member[16];
	int slot;
	int values[2];
	int nr_values;
	u64 seen;
};

static int kr_call_member(struct kr_ops *table, struct kr_call *call)
{
	struct kr_ops_arg arg = {
		.value = call->values[0],
		.slot = table->slot,
		.sequence = atomic_read(&kr_count.calls),
	};
	int result;

	if (!strcmp(call->member, "compute"))
		return table->compute(call->values[0], call->values[1]);
	if (!strcmp(call->member, "inspect")) {
		if (!table->inspect)
			return -EOPNOTSUPP;
		result = table->inspect(&arg);
	} else if (!strcmp(call->member, "observe")) {
		if (!table->observe)
			return -EOPNOTSUPP;
		result = table->observe(call->nr_values ? &arg : NULL);
	} else {
		return -EINVAL;
	}
	call->seen = arg.seen;
	return result;
}

static int kr_call_table(struct kr_ops *table, struct kr_call *call)
{
	int result;

	msleep_interruptible(call_delay_ms);
	atomic_inc(&kr_count.calls);
	result = kr_call_member(table, call);
	msleep_interruptible(return_delay_ms);
	return kr_ops_called(call->slot, result);
}

static int kr_call_slot(struct kr_call *call, int *result)
{
	struct kr_ops *table;
	int reader, err = -ENOTCONN;

	if (call->slot < KR_SLOT_HELD || call->slot >= KR_OPS_SLOTS)
		return -EINVAL;
	atomic_inc(&kr_count.calls_in_flight);
	if (call->slot == KR_SLOT_HELD) {
		mutex_lock(&kr_held_lock);
		if (kr_held) {
			*result = kr_call_table(kr_held, call);
			err = 0;
		}
		mutex_unlock(&kr_held_lock);
	} else {
		reader = srcu_read_lock(&kr_table_users);
		table = srcu_dereference(kr_slots[call->slot], &kr_table_users);
		if (table) {
			*result = kr_call_table(table, call);
			err = 0;
		}
		srcu_read_unlock(&kr_table_users, reader);
	}
	atomic_dec(&kr_count.calls_in_flight);
	return err;
}

/* Each open file keeps the answer to its own last write, so that concurrent callers do not read each other's. */
struct kr_session {
	struct mutex lock;
	char answer[48];
};

static int kr_call_open(struct inode *inode, struct file *file)
{
	struct kr_session *session = kzalloc(sizeof(*session), GFP_KERNEL);

	if (!session)
		return -ENOMEM;
	mutex_init(&session->lock);
	file->private_data = session;
	return 0;
}

static int kr_call_release(struct inode *inode, struct file *file)
{
	kfree(file->private_data);
	return 0;
}

static ssize_t kr_read_line(char *line, size_t size, const char __user *buf, size_t len)
{
	if (len >= size)
		return -E2BIG;
	if (copy_from_user(line, buf, len))
		return -EFAULT;
	line[len] = '\0';
	return len;
}

static ssize_t kr_call_write(struct file *file, const char __user *buf, size_t len, loff_t *pos)
{
	struct kr_session *session = file->private_data;
	struct kr_call call = {};
	int fields, err, result = 0;
	char line[64];

	err = kr_read_line(line, sizeof(line), buf, len);
	if (err < 0)
		return err;
	fields = sscanf(line, "%15s %d %d %d", call.member, &call.slot, &call.values[0], &call.values[1]);
	if (fields < 2)
		return -EINVAL;
	call.nr_values = fields - 2;
	err = kr_call_slot(&call, &result);
	if (err) {
		atomic_set(&kr_count.last_error, err);
		return err;
	}
	mutex_lock(&session->lock);
	snprintf(session->answer, sizeof(session->answer), "%d %llu\n", result, call.seen);
	mutex_unlock(&session->lock);
	return len;
}

/* "RESULT SEEN": from the start of the file whatever its position, as a writer has moved it. */
static ssize_t kr_call_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
	struct kr_session *session = file->private_data;
	loff_t start = 0;
	ssize_t got;

	mutex_lock(&session->lock);
	got = simple_read_from_buffer(buf, len, &start, session->answer, strlen(session->answer));
	mutex_unlock(&session->lock);
	return got;
}

static const struct file_operations kr_call_fops = {
	.owner = THIS_MODULE,
	.open = kr_call_open,
	.release = kr_call_release,
	.write = kr_call_write,
	.read = kr_call_read,
};

#ifdef KR_CAN_HOLD_TABLES
static int kr_take(unsigned int slot)
{
	struct kr_ops *table;
	int reader, err = -ENOTCONN;

	if (slot >= KR_OPS_SLOTS)
		return -EINVAL;
	if (kr_held)
		return -EBUSY;
	reader = srcu_read_lock(&kr_table_users);
	table = srcu_dereference(kr_slots[slot], &kr_table_users);
	if (table && bpf_struct_ops_get(table)) {
		kr_held = table;
		atomic_inc(&kr_count.held);
		err = 0;
	}
	srcu_read_unlock(&kr_table_users, reader);
	return err;
}

static int kr_drop(void)
{
	if (!kr_held)
		return -ENOENT;
	/* The writer's open file holds the module, so this may be the map's last reference. */
	bpf_struct_ops_put(kr_held);
	kr_held = NULL;
	atomic_dec(&kr_count.held);
	return 0;
}
#else
static int kr_take(unsigned int slot)
{
	return -EOPNOTSUPP;
}

static int kr_drop(void)
{
	return -EOPNOTSUPP;
}
#endif

static ssize_t kr_hold_write(struct file *file, const char __user *buf, size_t len, loff_t *pos)
{
	unsigned int slot;
	char line[32];
	int err;

	err = kr_read_line(line, sizeof(line), buf, len);
	if (err < 0)
		return err;
	mutex_lock(&kr_held_lock);
	if (sscanf(line, "take %u", &slot) == 1)
		err = kr_take(slot);
	else if (sysfs_streq(line, "drop"))
		err = kr_drop();
	else
		err = -EINVAL;
	mutex_unlock(&kr_held_lock);
	return err ? err : len;
}

static const struct file_operations kr_hold_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = kr_hold_write,
};

static int stats_show(struct seq_file *seq, void *unused)
{
#define KR_SHOW(name) seq_printf(seq, #name " %d\n", atomic_read(&kr_count.name));
	KR_COUNTERS(KR_SHOW)
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(stats);

static int tables_show(struct seq_file *seq, void *unused)
{
	const struct kr_ops *table;
	int slot;

	mutex_lock(&kr_slots_lock);
	for (slot = 0; slot < KR_OPS_SLOTS; slot++) {
		table = rcu_dereference_protected(kr_slots[slot], lockdep_is_held(&kr_slots_lock));
		if (table)
			seq_printf(seq, "slot=%u scale=%d compute=%d inspect=%d observe=%d\n", table->slot, table->scale,
				   !!table->compute, !!table->inspect, !!table->observe);
	}
	mutex_unlock(&kr_slots_lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(tables);

static int __init kr_ops_module_init(void)
{
	int err;

	err = register_bpf_struct_ops(&bpf_kr_ops, kr_ops);
	if (err)
		return err;
	msleep(init_delay_ms);
	if (init_error)
		return kr_fail(init_error);
	kr_dir = debugfs_create_dir("kr_ops", NULL);
	debugfs_create_file("call", 0600, kr_dir, NULL, &kr_call_fops);
	debugfs_create_file("hold", 0200, kr_dir, NULL, &kr_hold_fops);
	debugfs_create_file("stats", 0400, kr_dir, NULL, &stats_fops);
	debugfs_create_file("tables", 0400, kr_dir, NULL, &tables_fops);
	return 0;
}

static void __exit kr_ops_module_exit(void)
{
	msleep(exit_delay_ms);
	debugfs_remove(kr_dir);
	WARN(atomic_read(&kr_count.tables) || atomic_read(&kr_count.held) || atomic_read(&kr_count.calls_in_flight),
	     "kr_ops: exit with %d tables, %d held, %d calls in flight\n", atomic_read(&kr_count.tables),
	     atomic_read(&kr_count.held), atomic_read(&kr_count.calls_in_flight));
}

module_init(kr_ops_module_init);
module_exit(kr_ops_module_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("kernrig: a struct_ops type defined by a module");
