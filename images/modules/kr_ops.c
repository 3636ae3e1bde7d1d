// SPDX-License-Identifier: GPL-2.0-only
/*
 * A module that defines a struct_ops type, for scenarios about the lives of modules and struct_ops tables.
 *
 * A table is registered in the slot that its data member names. A write to debugfs kr_ops/call calls one member of a table,
 * "stats" and "tables" show what happened, and the module parameters delay or fail each step of a table's life.
 *
 * Objects use a table beyond their making, like the inodes of a file system: a bound one is refused with ENOTCONN once the
 * registration it was bound to has ended, an owning one holds a reference to the table and so goes on using it.
 *
 * kr_ops2.c builds this once more, as a module of another name with another layout of struct kr_ops_arg.
 */
#include <linux/atomic.h>
#include <linux/bpf.h>
#include <linux/bpf_verifier.h>
#include <linux/btf.h>
#include <linux/btf_ids.h>
#include <linux/completion.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/init.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/srcu.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "kr_delay.h"
#include "kr_ops.h"
#include "kr_param.h"

#define CREATE_TRACE_POINTS
#include "kr_trace.h"

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
#define KR_TRACE_CALLED trace_kr_ops_called_tp
#else
#define KR_TRACE_CALLED trace_kr_ops_called
#endif

#define KR_OBJECTS 8

/* Delays and forced errors, which are positive errno values: all can be changed at run time; a sleep that was made 0 ends. */
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
KR_PARAM(table_offset, "where a table lies in its map, in bytes, for kernels that do not export bpf_struct_ops_get");

#define KR_COUNTERS(X) \
	X(reg) X(unreg) X(update) X(validate) X(init_member) X(check_member) X(calls) X(calls_in_flight) \
	X(tables) X(bound) X(owned) X(objects_refused) X(detached) X(reg_failed) X(update_failed) X(last_result) X(last_error)

#define KR_DECLARE(name) atomic_t name;
static struct { KR_COUNTERS(KR_DECLARE) } kr_count;

/*
 * A slot and the table that is registered in it. Readers are in kr_table_users while they use one; writers hold kr_slots_lock.
 * Each registration has a number of its own, which outlives updates of its link.
 */
static struct kr_slot {
	struct kr_ops __rcu *table;
	u64 registration;
	struct bpf_link *link;
} kr_slots[KR_OPS_SLOTS];
static u64 kr_registrations;
static DEFINE_MUTEX(kr_slots_lock);
DEFINE_STATIC_SRCU(kr_table_users);

/* What an object was bound to; one that owns its table has @table. */
static struct kr_object {
	bool used;
	unsigned int slot;
	u64 registration;
	struct kr_ops *table;
} kr_objects[KR_OBJECTS];
static DEFINE_MUTEX(kr_objects_lock);

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
	KR_TRACE_CALLED(slot, result);
	return result;
}

/* The module may take references by itself only since 6.18 or so; what that does is the same on all kernels. */
static struct bpf_map *kr_map_of(const struct kr_ops *table)
{
	struct bpf_map *map = (void *)table - table_offset;

	return table_offset && map->map_type == BPF_MAP_TYPE_STRUCT_OPS ? map : NULL;
}

#ifdef KR_CAN_HOLD_TABLES
static int kr_table_get(struct kr_ops *table)
{
	return bpf_struct_ops_get(table) ? 0 : -ENOTCONN;
}

static void kr_table_put(struct kr_ops *table)
{
	bpf_struct_ops_put(table);
}
#else
static int kr_table_get(struct kr_ops *table)
{
	struct bpf_map *map = kr_map_of(table);

	if (!map)
		return -EOPNOTSUPP;
	return IS_ERR(bpf_map_inc_not_zero(map)) ? -ENOTCONN : 0;
}

static void kr_table_put(struct kr_ops *table)
{
	bpf_map_put(kr_map_of(table));
}
#endif

static u32 kr_table_id(const struct kr_ops *table)
{
#ifdef KR_CAN_NAME_TABLES
	return bpf_struct_ops_id(table);
#else
	struct bpf_map *map = kr_map_of(table);

	return map ? map->id : 0;
#endif
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

static int kr_ops_publish(struct kr_ops *table, struct bpf_link *link)
{
	struct kr_slot *slot = &kr_slots[table->slot];
	int err = 0;

	kr_delay(&reg_delay_ms);
	if (reg_error)
		return kr_fail(reg_error);
	mutex_lock(&kr_slots_lock);
	if (rcu_access_pointer(slot->table)) {
		err = -EEXIST;
	} else {
		slot->link = link;
		WRITE_ONCE(slot->registration, ++kr_registrations);
		rcu_assign_pointer(slot->table, table);
		atomic_inc(&kr_count.tables);
	}
	mutex_unlock(&kr_slots_lock);
	return err;
}

static int kr_ops_reg(void *kdata, struct bpf_link *link)
{
	int err = kr_ops_publish(kdata, link);

	atomic_inc(err ? &kr_count.reg_failed : &kr_count.reg);
	if (err)
		atomic_set(&kr_count.last_error, err);
	return err;
}

static void kr_ops_unreg(void *kdata, struct bpf_link *link)
{
	struct kr_ops *table = kdata;
	struct kr_slot *slot = &kr_slots[table->slot];
	bool published;

	mutex_lock(&kr_slots_lock);
	published = rcu_access_pointer(slot->table) == table;
	if (published) {
		RCU_INIT_POINTER(slot->table, NULL);
		slot->link = NULL;
	}
	mutex_unlock(&kr_slots_lock);
	WARN(!published, "kr_ops: unreg of a table that is not registered\n");

	/* The map may be freed once this returns, and its trampolines do not wait for our readers. */
	synchronize_srcu(&kr_table_users);
	if (published)
		atomic_dec(&kr_count.tables);
	atomic_inc(&kr_count.unreg);
	kr_delay(&unreg_delay_ms);
}

static int kr_ops_replace(struct kr_ops *table, struct kr_ops *old)
{
	int err = 0;

	kr_delay(&update_delay_ms);
	if (update_error)
		return kr_fail(update_error);
	if (table->slot != old->slot)
		return -EINVAL;
	mutex_lock(&kr_slots_lock);
	if (rcu_access_pointer(kr_slots[old->slot].table) == old)
		rcu_assign_pointer(kr_slots[old->slot].table, table);
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

enum kr_context { KR_PROCESS, KR_KTHREAD, KR_TIMER };

/* What one write to "call" asks for; on the heap, since a timer is in it. */
struct kr_call {
	char member[16];
	char target[16];
	enum kr_context context;
	unsigned int times;
	int values[2];
	int nr_values;
	u64 seen;
	int slot;
	int result;
	struct kr_ops *table;
	struct completion done;
	struct timer_list timer;
};

static int kr_call_member(struct kr_call *call)
{
	struct kr_ops *table = call->table;
	struct kr_ops_arg arg = {
		.value = call->values[0],
		.slot = table->slot,
		.sequence = atomic_read(&kr_count.calls),
	};
	int result;

	atomic_inc(&kr_count.calls);
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

static void kr_call_repeatedly(struct kr_call *call)
{
	unsigned int i;

	for (i = 0; i < call->times; i++)
		call->result = kr_ops_called(call->slot, kr_call_member(call));
}

static int kr_call_thread(void *data)
{
	struct kr_call *call = data;

	kr_call_repeatedly(call);
	complete(&call->done);
	return 0;
}

static void kr_call_timer(struct timer_list *timer)
{
	struct kr_call *call = container_of(timer, struct kr_call, timer);

	kr_call_repeatedly(call);
	complete(&call->done);
}

static int kr_call_in_thread(struct kr_call *call)
{
	struct task_struct *task = kthread_create(kr_call_thread, call, "kr_ops_call");

	if (IS_ERR(task))
		return PTR_ERR(task);
	get_task_struct(task);
	wake_up_process(task);
	wait_for_completion(&call->done);
	/* Its last instructions are this module's: wait for its end, not only for its result. */
	kthread_stop(task);
	put_task_struct(task);
	return 0;
}

static int kr_call_in_timer(struct kr_call *call)
{
	timer_setup(&call->timer, kr_call_timer, 0);
	mod_timer(&call->timer, jiffies);
	wait_for_completion(&call->done);
	timer_delete_sync(&call->timer);
	return 0;
}

/* The caller sees to it that call->table stays. */
static int kr_call_table(struct kr_call *call)
{
	int err = 0;

	msleep_interruptible(call_delay_ms);
	switch (call->context) {
	case KR_PROCESS:
		kr_call_repeatedly(call);
		break;
	case KR_KTHREAD:
		err = kr_call_in_thread(call);
		break;
	case KR_TIMER:
		err = kr_call_in_timer(call);
		break;
	}
	msleep_interruptible(return_delay_ms);
	return err;
}

/* The table that is registered in a slot, if it is of this registration (0: of any). For readers in kr_table_users. */
static struct kr_ops *kr_registered(unsigned int slot, u64 registration)
{
	struct kr_ops *table = srcu_dereference(kr_slots[slot].table, &kr_table_users);

	/* Pairs with the publishing of the table: its number is not older than it is. */
	smp_rmb();
	if (registration && READ_ONCE(kr_slots[slot].registration) != registration)
		return NULL;
	return table;
}

/* The slot of the table whose map has this id. For readers in kr_table_users. */
static int kr_slot_of_map(u32 id)
{
	struct kr_ops *table;
	unsigned int slot;

	for (slot = 0; id && slot < KR_OPS_SLOTS; slot++) {
		table = kr_registered(slot, 0);
		if (table && kr_table_id(table) == id)
			return slot;
	}
	return -ENOTCONN;
}

/* "SLOT" or "#MAP_ID". For readers in kr_table_users. */
static int kr_slot_named(const char *name)
{
	unsigned int number;

	if (kstrtouint(name + (*name == '#'), 10, &number))
		return -EINVAL;
	if (*name == '#')
		return kr_slot_of_map(number);
	return number < KR_OPS_SLOTS ? number : -EINVAL;
}

static int kr_call_registered(struct kr_call *call, int slot, u64 registration)
{
	call->slot = slot;
	call->table = kr_registered(slot, registration);
	return call->table ? kr_call_table(call) : -ENOTCONN;
}

static int kr_call_slot(struct kr_call *call)
{
	int reader = srcu_read_lock(&kr_table_users);
	int err = kr_slot_named(call->target);

	if (err >= 0)
		err = kr_call_registered(call, err, 0);
	srcu_read_unlock(&kr_table_users, reader);
	return err;
}

static int kr_call_object(struct kr_call *call)
{
	struct kr_object object;
	unsigned int number;
	int reader, err;

	if (kstrtouint(call->target + 1, 10, &number) || number >= KR_OBJECTS)
		return -EINVAL;
	mutex_lock(&kr_objects_lock);
	object = kr_objects[number];
	/* The call has a reference of its own: the object may go meanwhile. */
	err = object.table ? kr_table_get(object.table) : 0;
	mutex_unlock(&kr_objects_lock);
	if (err)
		return err;
	if (!object.used)
		return -ENOENT;
	if (object.table) {
		call->slot = object.slot;
		call->table = object.table;
		err = kr_call_table(call);
		/* The writer's open file holds the module, so this may be the map's last reference. */
		kr_table_put(object.table);
		return err;
	}
	reader = srcu_read_lock(&kr_table_users);
	err = kr_call_registered(call, object.slot, object.registration);
	srcu_read_unlock(&kr_table_users, reader);
	if (err == -ENOTCONN)
		atomic_inc(&kr_count.objects_refused);
	return err;
}

static int kr_call_target(struct kr_call *call)
{
	int err;

	atomic_inc(&kr_count.calls_in_flight);
	err = *call->target == '@' ? kr_call_object(call) : kr_call_slot(call);
	atomic_dec(&kr_count.calls_in_flight);
	if (err)
		atomic_set(&kr_count.last_error, err);
	return err;
}

/* "[kthread|timer] [xTIMES] MEMBER TARGET [VALUE [VALUE]]", where TARGET is SLOT, #MAP_ID or @OBJECT. */
static int kr_call_parse(struct kr_call *call, char *line)
{
	static const char *const contexts[] = { [KR_PROCESS] = "process", [KR_KTHREAD] = "kthread", [KR_TIMER] = "timer" };
	char *word = strim(line), *rest;
	int fields, context;

	for (call->times = 1; (rest = strchr(word, ' ')); word = rest) {
		*rest++ = '\0';
		context = match_string(contexts, ARRAY_SIZE(contexts), word);
		if (context >= 0)
			call->context = context;
		else if (*word != 'x' || kstrtouint(word + 1, 10, &call->times))
			break;
	}
	if (!rest || strscpy(call->member, word, sizeof(call->member)) < 0)
		return -EINVAL;
	fields = sscanf(rest, "%15s %d %d", call->target, &call->values[0], &call->values[1]);
	if (fields < 1)
		return -EINVAL;
	call->nr_values = fields - 1;
	/* It may sleep. */
	return call->context == KR_TIMER && !strcmp(call->member, "inspect") ? -EINVAL : 0;
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
	struct kr_call *call;
	char line[64];
	int err;

	err = kr_read_line(line, sizeof(line), buf, len);
	if (err < 0)
		return err;
	call = kzalloc(sizeof(*call), GFP_KERNEL);
	if (!call)
		return -ENOMEM;
	init_completion(&call->done);
	err = kr_call_parse(call, line);
	if (!err)
		err = kr_call_target(call);
	if (!err) {
		mutex_lock(&session->lock);
		snprintf(session->answer, sizeof(session->answer), "%d %llu\n", call->result, call->seen);
		mutex_unlock(&session->lock);
	}
	kfree(call);
	return err ? err : len;
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

static int kr_bind(struct kr_object *object, const char *to, bool own)
{
	int reader, slot, err = 0;
	struct kr_ops *table;

	if (object->used)
		return -EBUSY;
	reader = srcu_read_lock(&kr_table_users);
	slot = kr_slot_named(to);
	if (slot < 0) {
		err = slot;
		goto out;
	}
	/* Read before the table: if it has changed meanwhile, the object is bound to what is gone already. */
	object->registration = READ_ONCE(kr_slots[slot].registration);
	smp_rmb();
	table = kr_registered(slot, 0);
	if (!table) {
		err = -ENOTCONN;
		goto out;
	}
	if (own)
		err = kr_table_get(table);
	if (err)
		goto out;
	object->used = true;
	object->slot = slot;
	object->table = own ? table : NULL;
	atomic_inc(own ? &kr_count.owned : &kr_count.bound);
out:
	srcu_read_unlock(&kr_table_users, reader);
	return err;
}

static int kr_drop(struct kr_object *object)
{
	if (!object->used)
		return -ENOENT;
	if (object->table)
		kr_table_put(object->table);
	atomic_dec(object->table ? &kr_count.owned : &kr_count.bound);
	memset(object, 0, sizeof(*object));
	return 0;
}

/* Detach a registration's link from the subsystem's side, as if its user had done so. */
static int kr_detach(unsigned int number)
{
	struct bpf_link *link;
	int err;

	if (number >= KR_OPS_SLOTS)
		return -EINVAL;
	mutex_lock(&kr_slots_lock);
	link = kr_slots[number].link;
	/* Its last reference may be gone already, but unreg has yet to take our lock. */
	link = link ? bpf_link_inc_not_zero(link) : ERR_PTR(-ENOENT);
	mutex_unlock(&kr_slots_lock);
	if (IS_ERR(link))
		return PTR_ERR(link);
	err = link->ops->detach ? link->ops->detach(link) : -EOPNOTSUPP;
	if (!err)
		atomic_inc(&kr_count.detached);
	bpf_link_put(link);
	return err;
}

/* "bind OBJECT TARGET", "own OBJECT TARGET", "drop OBJECT", "detach SLOT", where TARGET is SLOT or #MAP_ID. */
static ssize_t kr_control_write(struct file *file, const char __user *buf, size_t len, loff_t *pos)
{
	char line[48], verb[8], to[16];
	unsigned int number;
	int err, fields;

	err = kr_read_line(line, sizeof(line), buf, len);
	if (err < 0)
		return err;
	fields = sscanf(line, "%7s %u %15s", verb, &number, to);
	if (fields == 2 && !strcmp(verb, "detach")) {
		err = kr_detach(number);
		return err ? err : len;
	}
	if (fields < 2 || number >= KR_OBJECTS)
		return -EINVAL;
	mutex_lock(&kr_objects_lock);
	if (fields == 3 && (!strcmp(verb, "bind") || !strcmp(verb, "own")))
		err = kr_bind(&kr_objects[number], to, *verb == 'o');
	else if (fields == 2 && !strcmp(verb, "drop"))
		err = kr_drop(&kr_objects[number]);
	else
		err = -EINVAL;
	mutex_unlock(&kr_objects_lock);
	return err ? err : len;
}

static const struct file_operations kr_control_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = kr_control_write,
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
		table = rcu_dereference_protected(kr_slots[slot].table, lockdep_is_held(&kr_slots_lock));
		if (table)
			seq_printf(seq, "slot=%u scale=%d compute=%d inspect=%d observe=%d map=%u link=%d\n", table->slot,
				   table->scale, !!table->compute, !!table->inspect, !!table->observe, kr_table_id(table),
				   !!kr_slots[slot].link);
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
	kr_delay(&init_delay_ms);
	if (init_error)
		return kr_fail(init_error);
	/* The name that this was loaded by: a test may have changed it in the file. */
	kr_dir = debugfs_create_dir(THIS_MODULE->name, NULL);
	debugfs_create_file("call", 0600, kr_dir, NULL, &kr_call_fops);
	debugfs_create_file("control", 0200, kr_dir, NULL, &kr_control_fops);
	debugfs_create_file("stats", 0400, kr_dir, NULL, &stats_fops);
	debugfs_create_file("tables", 0400, kr_dir, NULL, &tables_fops);
	return 0;
}

static void __exit kr_ops_module_exit(void)
{
	kr_delay(&exit_delay_ms);
	debugfs_remove(kr_dir);
	WARN(atomic_read(&kr_count.tables) || atomic_read(&kr_count.owned) || atomic_read(&kr_count.calls_in_flight),
	     "kr_ops: exit with %d tables, %d owned by objects, %d calls in flight\n", atomic_read(&kr_count.tables),
	     atomic_read(&kr_count.owned), atomic_read(&kr_count.calls_in_flight));
}

module_init(kr_ops_module_init);
module_exit(kr_ops_module_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("kernrig: a struct_ops type defined by a module");
