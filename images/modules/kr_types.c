// SPDX-License-Identifier: GPL-2.0-only
/*
 * A module with further struct_ops types, each for one thing that kr_ops' type has not:
 *
 * kr_first: the pointer to the owner comes first; no update and no validate; several tables are registered at a time.
 * kr_many:  as many members as there may be, so that their trampolines need more than one page.
 * kr_deep:  programs get a stack of their own (where kernels have that), and a kfunc calls the table again.
 * kr_refs:  programs own arguments, and return an object (where kernels have that).
 * kr_data:  much data, of any content.
 * kr_wrapped: the module's own code stands in front of each program and behind it (where kernels have that).
 *
 * A write "TYPE NUMBER [NUMBER]" to debugfs kr_types/call calls a member, whose result is then read from it.
 */
#include <linux/bpf.h>
#include <linux/bpf_verifier.h>
#include <linux/debugfs.h>
#include <linux/filter.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "kr_kfunc.h"

#define KR_TABLES 4

#define KR_COUNTERS(X) X(reg) X(unreg) X(recursions) X(things)
#define KR_DECLARE(name) atomic_t name;
static struct { KR_COUNTERS(KR_DECLARE) } kr_count;

/* The registered tables of one type. Callers hold kr_lock, but for kfuncs, which are in a read-side critical section of RCU. */
struct kr_tables {
	void *table[KR_TABLES];
	unsigned int limit;
};
static DEFINE_MUTEX(kr_lock);
static struct dentry *kr_dir;

static int kr_publish(struct kr_tables *tables, void *table)
{
	int i, err = -EEXIST;

	mutex_lock(&kr_lock);
	for (i = 0; i < tables->limit; i++)
		if (!tables->table[i]) {
			smp_store_release(&tables->table[i], table);
			atomic_inc(&kr_count.reg);
			err = 0;
			break;
		}
	mutex_unlock(&kr_lock);
	return err;
}

static void kr_withdraw(struct kr_tables *tables, void *table)
{
	int i;

	mutex_lock(&kr_lock);
	for (i = 0; i < tables->limit; i++)
		if (tables->table[i] == table)
			WRITE_ONCE(tables->table[i], NULL);
	mutex_unlock(&kr_lock);
	atomic_inc(&kr_count.unreg);
	synchronize_rcu();
}

static bool kr_is_published(const struct kr_tables *tables, const void *table)
{
	int i;

	for (i = 0; i < tables->limit; i++)
		if (smp_load_acquire(&tables->table[i]) == table)
			return true;
	return false;
}

static int kr_init(struct btf *btf)
{
	return 0;
}

static int kr_init_member(const struct btf_type *t, const struct btf_member *member, void *kdata, const void *udata)
{
	return 0;
}

static const struct bpf_verifier_ops kr_verifier_ops = {
	.get_func_proto = bpf_base_func_proto,
	.is_valid_access = bpf_tracing_btf_ctx_access,
};

/* The link became an argument in 6.11. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
#define KR_LINK , struct bpf_link *link
#else
#define KR_LINK
#endif

/* The registration of a type: its stubs, how many tables at a time, and more hooks. */
#define KR_TYPE(type, tables_at_a_time, ...) \
	KR_TYPE_WITH(kr_verifier_ops, kr_init_member, type, tables_at_a_time, __VA_ARGS__)
#define KR_TYPE_WITH(verifier_operations, member_init, type, tables_at_a_time, ...)             \
	static struct kr_tables type##_tables = { .limit = tables_at_a_time };                  \
	static int type##_reg(void *kdata KR_LINK)                                              \
	{                                                                                       \
		return kr_publish(&type##_tables, kdata);                                       \
	}                                                                                       \
	static void type##_unreg(void *kdata KR_LINK)                                           \
	{                                                                                       \
		kr_withdraw(&type##_tables, kdata);                                             \
	}                                                                                       \
	static struct bpf_struct_ops bpf_##type = {                                             \
		.verifier_ops = &verifier_operations, .init = kr_init, .init_member = member_init,    \
		.reg = type##_reg, .unreg = type##_unreg, .cfi_stubs = &type##_stubs,           \
		.owner = THIS_MODULE, .name = #type, __VA_ARGS__                                \
	}

struct kr_first {
	struct module *owner;
	int (*one)(int value);
	int (*two)(int value);
};

static int kr_first__one(int value)
{
	return 0;
}

static int kr_first__two(int value)
{
	return 0;
}

static struct kr_first kr_first_stubs = { .one = kr_first__one, .two = kr_first__two };
KR_TYPE(kr_first, KR_TABLES);

struct kr_data {
	int (*run)(int value);
	u64 words[80];
};

static int kr_data__run(int value)
{
	return 0;
}

/* The words are whatever user space says. */
static int kr_data_init_member(const struct btf_type *t, const struct btf_member *member, void *kdata, const void *udata)
{
	const struct kr_data *from = udata;
	struct kr_data *to = kdata;

	if (__btf_member_bit_offset(t, member) / 8 != offsetof(struct kr_data, words))
		return 0;
	memcpy(to->words, from->words, sizeof(to->words));
	return 1;
}

static struct kr_data kr_data_stubs = { .run = kr_data__run };
KR_TYPE_WITH(kr_verifier_ops, kr_data_init_member, kr_data, 1);

#define KR_TENS(X, tens) X(tens##0) X(tens##1) X(tens##2) X(tens##3) X(tens##4) X(tens##5) X(tens##6) X(tens##7) X(tens##8) X(tens##9)
#define KR_EACH(X) KR_TENS(X, 1) KR_TENS(X, 2) KR_TENS(X, 3) KR_TENS(X, 4) KR_TENS(X, 5) KR_TENS(X, 6) \
	X(70) X(71) X(72) X(73)
#define KR_MEMBER(number) int (*m##number)(int value);
#define KR_STUB(number) .m##number = kr_many__m,

struct kr_many { KR_EACH(KR_MEMBER) };

static int kr_many__m(int value)
{
	return 0;
}

static struct kr_many kr_many_stubs = { KR_EACH(KR_STUB) };
KR_TYPE(kr_many, 1);

struct kr_deep {
	int (*deep)(int depth);
};

static int kr_deep__deep(int depth)
{
	return 0;
}

static struct kr_deep kr_deep_stubs = { .deep = kr_deep__deep };

#ifdef KR_HAS_PRIVATE_STACK
static void kr_deep_recursed(struct bpf_prog *prog)
{
	atomic_inc(&kr_count.recursions);
}

static int kr_deep_check_member(const struct btf_type *t, const struct btf_member *member, const struct bpf_prog *prog)
{
	prog->aux->priv_stack_requested = true;
	prog->aux->recursion_detected = kr_deep_recursed;
	return 0;
}
KR_TYPE(kr_deep, 1, .check_member = kr_deep_check_member);
#else
KR_TYPE(kr_deep, 1);
#endif

#ifdef KR_HAS_EPILOGUE
struct kr_wrap {
	u64 before;
	u64 behind;
};

struct kr_wrapped {
	int (*wrapped)(struct kr_wrap *wrap);
};

static int kr_wrapped__wrapped(struct kr_wrap *wrap)
{
	return 0;
}

/* Both add 1 to what is behind the only argument. */
static int kr_wrapped_prologue(struct bpf_insn *insn, bool direct_write, const struct bpf_prog *prog)
{
	struct bpf_insn *first = insn;

	*insn++ = BPF_LDX_MEM(BPF_DW, BPF_REG_2, BPF_REG_1, 0);
	*insn++ = BPF_LDX_MEM(BPF_DW, BPF_REG_3, BPF_REG_2, offsetof(struct kr_wrap, before));
	*insn++ = BPF_ALU64_IMM(BPF_ADD, BPF_REG_3, 1);
	*insn++ = BPF_STX_MEM(BPF_DW, BPF_REG_2, BPF_REG_3, offsetof(struct kr_wrap, before));
	*insn++ = prog->insnsi[0];
	return insn - first;
}

static int kr_wrapped_epilogue(struct bpf_insn *insn, const struct bpf_prog *prog, s16 ctx_stack_off)
{
	struct bpf_insn *first = insn;

	*insn++ = BPF_LDX_MEM(BPF_DW, BPF_REG_1, BPF_REG_FP, ctx_stack_off);
	*insn++ = BPF_LDX_MEM(BPF_DW, BPF_REG_1, BPF_REG_1, 0);
	*insn++ = BPF_LDX_MEM(BPF_DW, BPF_REG_2, BPF_REG_1, offsetof(struct kr_wrap, behind));
	*insn++ = BPF_ALU64_IMM(BPF_ADD, BPF_REG_2, 1);
	*insn++ = BPF_STX_MEM(BPF_DW, BPF_REG_1, BPF_REG_2, offsetof(struct kr_wrap, behind));
	*insn++ = BPF_EXIT_INSN();
	return insn - first;
}

static const struct bpf_verifier_ops kr_wrapped_verifier_ops = {
	.get_func_proto = bpf_base_func_proto,
	.is_valid_access = bpf_tracing_btf_ctx_access,
	.gen_prologue = kr_wrapped_prologue,
	.gen_epilogue = kr_wrapped_epilogue,
};

static struct kr_wrapped kr_wrapped_stubs = { .wrapped = kr_wrapped__wrapped };
KR_TYPE_WITH(kr_wrapped_verifier_ops, kr_init_member, kr_wrapped, 1);

/* What the program returned, and in tens and hundreds how often the module's code ran before it and behind it. */
static int kr_call_wrapped(void)
{
	struct kr_wrapped *table = kr_wrapped_tables.table[0];
	struct kr_wrap wrap = {};
	int result;

	if (!table || !table->wrapped)
		return -ENOTCONN;
	result = table->wrapped(&wrap);
	return result + 10 * (int)wrap.before + 100 * (int)wrap.behind;
}
#else
static int kr_call_wrapped(void)
{
	return -EOPNOTSUPP;
}
#endif

#ifdef KR_HAS_REFS
struct kr_thing {
	refcount_t refs;
	u32 id;
};

struct kr_other {
	u32 id;
};

struct kr_refs {
	int (*take)(int number, struct kr_thing *thing);
	int (*both)(struct kr_thing *one, struct kr_thing *two);
	struct kr_thing *(*give)(int number, struct kr_thing *thing, struct kr_other *other);
};

static int kr_refs__take(int number, struct kr_thing *thing__ref)
{
	return 0;
}

static int kr_refs__both(struct kr_thing *one__ref, struct kr_thing *two__ref)
{
	return 0;
}

static struct kr_thing *kr_refs__give(int number, struct kr_thing *thing__ref, struct kr_other *other)
{
	return NULL;
}

static struct kr_refs kr_refs_stubs = { .take = kr_refs__take, .both = kr_refs__both, .give = kr_refs__give };
KR_TYPE(kr_refs, 1);

static struct kr_thing *kr_make(u32 id)
{
	struct kr_thing *thing = kzalloc(sizeof(*thing), GFP_ATOMIC | __GFP_NOWARN);

	if (!thing)
		return NULL;
	refcount_set(&thing->refs, 1);
	thing->id = id;
	atomic_inc(&kr_count.things);
	return thing;
}

static void kr_put(struct kr_thing *thing)
{
	if (!thing || !refcount_dec_and_test(&thing->refs))
		return;
	atomic_dec(&kr_count.things);
	kfree(thing);
}
#endif

__bpf_kfunc_start_defs();

/* Call the registered kr_deep table, in which the caller runs. */
__bpf_kfunc int kr_deep_again(int depth)
{
	struct kr_deep *table = READ_ONCE(kr_deep_tables.table[0]);

	return table && table->deep ? table->deep(depth) : -ENOTCONN;
}

#ifdef KR_HAS_REFS
__bpf_kfunc struct kr_thing *kr_thing_new(u32 id)
{
	return kr_make(id);
}

__bpf_kfunc void kr_thing_release(struct kr_thing *thing)
{
	kr_put(thing);
}
#endif

#ifdef KR_HAS_ASSOCIATION
/* Call member one of the kr_first table that the calling program is associated with; ENOENT: of none, ENOTCONN: not registered. */
__bpf_kfunc int kr_ask(int value, struct bpf_prog_aux *aux)
{
	struct kr_first *table;
	int result = -ENOENT;

	rcu_read_lock();
	table = bpf_prog_get_assoc_struct_ops(aux);
	if (table)
		result = kr_is_published(&kr_first_tables, table) && table->one ? table->one(value) : -ENOTCONN;
	rcu_read_unlock();
	return result;
}
#endif

__bpf_kfunc_end_defs();

BTF_KFUNCS_START(kr_types_kfuncs)
BTF_ID_FLAGS(func, kr_deep_again)
#ifdef KR_HAS_REFS
BTF_ID_FLAGS(func, kr_thing_new, KF_ACQUIRE | KF_RET_NULL)
BTF_ID_FLAGS(func, kr_thing_release, KF_RELEASE)
#endif
#ifdef KR_HAS_ASSOCIATION
BTF_ID_FLAGS(func, kr_ask, KF_IMPLICIT_ARGS)
#endif
BTF_KFUNCS_END(kr_types_kfuncs)

static const struct btf_kfunc_id_set kr_types_kfunc_set = {
	.owner = THIS_MODULE,
	.set = &kr_types_kfuncs,
};

static int kr_call_first(int number, int value)
{
	struct kr_first *table = number >= 0 && number < KR_TABLES ? kr_first_tables.table[number] : NULL;

	return table && table->two ? table->two(value) : -ENOTCONN;
}

static int kr_call_many(int number, int value)
{
	struct kr_many *table = kr_many_tables.table[0];
	typeof(table->m10) member;

	if (!table || number < 0 || number >= sizeof(*table) / sizeof(member))
		return -ENOTCONN;
	member = (&table->m10)[number];
	return member ? member(value) : -EOPNOTSUPP;
}

#ifdef KR_HAS_REFS
static int kr_call_refs(const char *member, int number)
{
	struct kr_refs *table = kr_refs_tables.table[0];
	struct kr_other other = {};
	struct kr_thing *thing;
	int result;

	if (!table)
		return -ENOTCONN;
	/* The programs own what they are given. */
	if (!strcmp(member, "take") && table->take)
		return table->take(number, kr_make(number));
	if (!strcmp(member, "both") && table->both)
		return table->both(kr_make(number), kr_make(number + 1));
	if (!strcmp(member, "give") && table->give) {
		thing = table->give(number, kr_make(number), &other);
		result = thing ? thing->id : 0;
		kr_put(thing);
		return result;
	}
	return -EOPNOTSUPP;
}
#else
static int kr_call_refs(const char *member, int number)
{
	return -EOPNOTSUPP;
}
#endif

static int kr_call(const char *what, int number, int value)
{
	if (!strcmp(what, "first"))
		return kr_call_first(number, value);
	if (!strcmp(what, "many"))
		return kr_call_many(number, value);
	if (!strcmp(what, "deep"))
		return kr_deep_again(number);
	if (!strcmp(what, "wrapped"))
		return kr_call_wrapped();
	return kr_call_refs(what, number);
}

static int kr_last_result;

static ssize_t call_write(struct file *file, const char __user *buf, size_t len, loff_t *pos)
{
	int number = 0, value = 0;
	char line[48], what[16];

	if (len >= sizeof(line))
		return -E2BIG;
	if (copy_from_user(line, buf, len))
		return -EFAULT;
	line[len] = '\0';
	if (sscanf(line, "%15s %d %d", what, &number, &value) < 1)
		return -EINVAL;
	mutex_lock(&kr_lock);
	kr_last_result = kr_call(what, number, value);
	mutex_unlock(&kr_lock);
	return len;
}

static ssize_t call_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
	loff_t start = 0;
	char answer[16];

	return simple_read_from_buffer(buf, len, &start, answer, scnprintf(answer, sizeof(answer), "%d\n", kr_last_result));
}

static const struct file_operations call_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = call_write,
	.read = call_read,
};

static int stats_show(struct seq_file *seq, void *unused)
{
#define KR_SHOW(name) seq_printf(seq, #name " %d\n", atomic_read(&kr_count.name));
	KR_COUNTERS(KR_SHOW)
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(stats);

static int __init kr_types_init(void)
{
	int err;

	err = register_bpf_struct_ops(&bpf_kr_first, kr_first) ?:
	      register_bpf_struct_ops(&bpf_kr_many, kr_many) ?:
	      register_bpf_struct_ops(&bpf_kr_data, kr_data) ?:
	      register_bpf_struct_ops(&bpf_kr_deep, kr_deep) ?:
#ifdef KR_HAS_EPILOGUE
	      register_bpf_struct_ops(&bpf_kr_wrapped, kr_wrapped) ?:
#endif
#ifdef KR_HAS_REFS
	      register_bpf_struct_ops(&bpf_kr_refs, kr_refs) ?:
#endif
	      register_btf_kfunc_id_set(BPF_PROG_TYPE_STRUCT_OPS, &kr_types_kfunc_set) ?:
	      register_btf_kfunc_id_set(BPF_PROG_TYPE_SYSCALL, &kr_types_kfunc_set);
	if (err)
		return err;
	kr_dir = debugfs_create_dir("kr_types", NULL);
	debugfs_create_file("call", 0600, kr_dir, NULL, &call_fops);
	debugfs_create_file("stats", 0400, kr_dir, NULL, &stats_fops);
	return 0;
}

static void __exit kr_types_exit(void)
{
	debugfs_remove(kr_dir);
	WARN(atomic_read(&kr_count.things), "kr_types: exit with %d things alive\n", atomic_read(&kr_count.things));
}

module_init(kr_types_init);
module_exit(kr_types_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("kernrig: further struct_ops types defined by a module");
