// SPDX-License-Identifier: GPL-2.0-only
/*
 * A module that registers one struct_ops type of a wrong shape, or a good one, as its parameter "shape" says.
 *
 * Its load fails with what the registration answers. A shape is a structure, stubs for its members, and a row at the end.
 */
#include <linux/bpf.h>
#include <linux/bpf_verifier.h>
#include <linux/btf.h>
#include <linux/btf_ids.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/string.h>

static char *shape = "good";
module_param(shape, charp, 0444);
MODULE_PARM_DESC(shape, "what to register");

struct kr_a { int a; };
struct kr_b { int b; };
struct kr_two_words { u64 words[2]; };
struct kr_three_words { u64 words[3]; };

static int kr_init(struct btf *btf)
{
	return 0;
}

static int kr_init_busy(struct btf *btf)
{
	return -EBUSY;
}

static int kr_init_member(const struct btf_type *t, const struct btf_member *member, void *kdata, const void *udata)
{
	return 0;
}

/* Nothing comes so far. Their second argument, and so their type, differs between kernels. */
static int kr_no_argument(void)
{
	return 0;
}

static const struct bpf_verifier_ops kr_verifier_ops = {
	.get_func_proto = bpf_base_func_proto,
	.is_valid_access = bpf_tracing_btf_ctx_access,
};

#define KR_OPS(object, type_name, type_stubs, type_init)                                                         \
	static struct bpf_struct_ops object = {                                                                  \
		.verifier_ops = &kr_verifier_ops, .init = type_init, .init_member = kr_init_member,              \
		.reg = (void *)kr_no_argument, .unreg = (void *)kr_no_argument, .cfi_stubs = type_stubs,         \
		.owner = THIS_MODULE, .name = type_name,                                                         \
	}

/* A structure with one function member, which "stub" stands for, and "others" after it. */
#define KR_SHAPE(type, prototype, stub, others)                                        \
	struct type { prototype; others };                                             \
	static struct type type##_stubs = { .run = (void *)stub };                     \
	KR_OPS(bpf_##type, #type, &type##_stubs, kr_init);                             \
	static int type##_register(void)                                               \
	{                                                                              \
		return register_bpf_struct_ops(&bpf_##type, type);                     \
	}

#define KR_TENS(X, tens) X(tens##0) X(tens##1) X(tens##2) X(tens##3) X(tens##4) X(tens##5) X(tens##6) X(tens##7) X(tens##8) X(tens##9)
#define KR_INT(number) int m##number;
#define KR_63_INTS \
	KR_TENS(KR_INT, 1) KR_TENS(KR_INT, 2) KR_TENS(KR_INT, 3) KR_TENS(KR_INT, 4) KR_TENS(KR_INT, 5) KR_TENS(KR_INT, 6) \
	KR_INT(70) KR_INT(71) KR_INT(72)

static int kr_stub(int value)
{
	return 0;
}

/* BTF has the functions whose name is that of their symbol. */
static int kr_stub_unlike_its_symbol(int value) asm("kr_stub_otherwise");
static int kr_stub_unlike_its_symbol(int value)
{
	return 0;
}

static int kr_stub_nullable_int(int value__nullable)
{
	return 0;
}

static int kr_stub_nullable_pointer(int *pointer__nullable)
{
	return 0;
}

static int kr_no_arguments_stub(void)
{
	return 0;
}

static int kr_many_words_stub(struct kr_two_words a, struct kr_two_words b, struct kr_two_words c, struct kr_two_words d,
			      struct kr_two_words e, struct kr_two_words f, struct kr_two_words g)
{
	return 0;
}

static int kr_stub_nullable_b(struct kr_b *pointer__nullable)
{
	return 0;
}

static struct kr_a kr_returns_struct_stub(int value)
{
	return (struct kr_a){};
}

static __int128 kr_returns_wide_stub(int value)
{
	return 0;
}

static int *kr_returns_pointer_stub(int value)
{
	return NULL;
}

static int kr_varargs_stub(int value, ...)
{
	return 0;
}

static int kr_big_argument_stub(struct kr_three_words words)
{
	return 0;
}

static int kr_thirteen_stub(u8 a, u8 b, u8 c, u8 d, u8 e, u8 f, u8 g, u8 h, u8 i, u8 j, u8 k, u8 l, u8 m)
{
	return 0;
}

KR_SHAPE(kr_good, int (*run)(int), kr_stub, int data;)
KR_SHAPE(kr_64_members, int (*run)(int), kr_stub, KR_63_INTS)
KR_SHAPE(kr_65_members, int (*run)(int), kr_stub, KR_63_INTS int more;)
KR_SHAPE(kr_anonymous, int (*run)(int), kr_stub, union { int a; u8 b; };)
KR_SHAPE(kr_bit_field, int (*run)(int), kr_stub, int bits : 3;)
KR_SHAPE(kr_returns_struct, struct kr_a (*run)(int), kr_returns_struct_stub, )
KR_SHAPE(kr_returns_wide, __int128 (*run)(int), kr_returns_wide_stub, )
KR_SHAPE(kr_returns_pointer, int *(*run)(int), kr_returns_pointer_stub, )
KR_SHAPE(kr_varargs, int (*run)(int, ...), kr_varargs_stub, )
KR_SHAPE(kr_big_argument, int (*run)(struct kr_three_words), kr_big_argument_stub, )
KR_SHAPE(kr_thirteen, int (*run)(u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8), kr_thirteen_stub, )
KR_SHAPE(kr_stub_nameless, int (*run)(int), 1, )
KR_SHAPE(kr_stub_unknown, int (*run)(int), kr_stub_unlike_its_symbol, )
KR_SHAPE(kr_stub_arguments, int (*run)(int, int), kr_stub, )
KR_SHAPE(kr_suffix_on_int, int (*run)(int), kr_stub_nullable_int, )
KR_SHAPE(kr_suffix_on_int_pointer, int (*run)(int *), kr_stub_nullable_pointer, )
KR_SHAPE(kr_no_arguments, int (*run)(void), kr_no_arguments_stub, )
KR_SHAPE(kr_many_words,
	 int (*run)(struct kr_two_words, struct kr_two_words, struct kr_two_words, struct kr_two_words, struct kr_two_words,
		    struct kr_two_words, struct kr_two_words),
	 kr_many_words_stub, )
KR_SHAPE(kr_data_pointer, int (*run)(int), kr_stub, struct kr_a *pointer;)
KR_SHAPE(kr_suffix_elsewhere, int (*run)(struct kr_a *), kr_stub_nullable_b, )

KR_OPS(kr_long_name_ops, "kr_0123456789_0123456789_0123456789_0123456789_0123456789_0123456789_0123456789_0123456789_0123456789_0123456789_0",
       &kr_good_stubs, kr_init);
static int kr_long_name_register(void)
{
	return __register_bpf_struct_ops(&kr_long_name_ops);
}

KR_OPS(kr_no_stubs_ops, "kr_good", NULL, kr_init);
static int kr_no_stubs_register(void)
{
	return __register_bpf_struct_ops(&kr_no_stubs_ops);
}

KR_OPS(kr_nowhere_ops, "kr_nowhere", &kr_good_stubs, kr_init);
static int kr_nowhere_register(void)
{
	return __register_bpf_struct_ops(&kr_nowhere_ops);
}

/* There is no struct bpf_struct_ops_kr_a. */
KR_OPS(kr_no_value_ops, "kr_a", &kr_good_stubs, kr_init);
static int kr_no_value_register(void)
{
	return __register_bpf_struct_ops(&kr_no_value_ops);
}

KR_OPS(kr_init_fails_ops, "kr_good", &kr_good_stubs, kr_init_busy);
static int kr_init_fails_register(void)
{
	return __register_bpf_struct_ops(&kr_init_fails_ops);
}

/* Since 7.0 the kernel replaces EEXIST from an init function. */
static int kr_twice_register(void)
{
	int err = kr_good_register() ?: __register_bpf_struct_ops(&bpf_kr_good);

	return err == -EEXIST ? -ENOTUNIQ : err;
}

KR_OPS(kr_namesake_ops, "kr_good", &kr_good_stubs, kr_init);
static int kr_namesake_register(void)
{
	return kr_good_register() ?: __register_bpf_struct_ops(&kr_namesake_ops);
}

/* Larger than the memory of any machine that this is for; the stubs are as long as the member that is looked at. */
struct kr_huge { int (*run)(int); char room[0xf0000000]; };
KR_OPS(bpf_kr_huge, "kr_huge", &kr_good_stubs, kr_init);
static int kr_huge_register(void)
{
	return register_bpf_struct_ops(&bpf_kr_huge, kr_huge);
}

/* Structures whose bpf_struct_ops_ one is no value of theirs. */
#define KR_VALUE(type, members)                                                   \
	struct type { int (*run)(int); };                                         \
	static struct type type##_stubs = { .run = kr_stub };                     \
	struct bpf_struct_ops_##type { members };                                 \
	KR_OPS(type##_ops, #type, &type##_stubs, kr_init);                        \
	static int type##_register(void)                                          \
	{                                                                         \
		BTF_TYPE_EMIT(struct bpf_struct_ops_##type);                      \
		return __register_bpf_struct_ops(&type##_ops);                    \
	}

KR_VALUE(kr_value_of_one, struct kr_value_of_one data;)
KR_VALUE(kr_value_of_three, struct bpf_struct_ops_common_value common; struct kr_value_of_three data; int more;)
KR_VALUE(kr_value_headless, struct kr_a common; struct kr_value_headless data;)
KR_VALUE(kr_value_of_other, struct bpf_struct_ops_common_value common; struct kr_a data;)

#define KR_ROW(name) { #name, kr_##name##_register }

static const struct {
	const char *name;
	int (*attempt)(void);
} kr_shapes[] = {
	KR_ROW(good), KR_ROW(64_members), KR_ROW(65_members), KR_ROW(anonymous), KR_ROW(bit_field), KR_ROW(returns_struct),
	KR_ROW(returns_wide), KR_ROW(returns_pointer), KR_ROW(varargs), KR_ROW(big_argument), KR_ROW(thirteen),
	KR_ROW(stub_nameless), KR_ROW(stub_unknown), KR_ROW(stub_arguments), KR_ROW(suffix_on_int),
	KR_ROW(suffix_on_int_pointer), KR_ROW(no_arguments), KR_ROW(many_words), KR_ROW(data_pointer), KR_ROW(huge),
	KR_ROW(suffix_elsewhere), KR_ROW(long_name), KR_ROW(no_stubs), KR_ROW(nowhere), KR_ROW(no_value),
	KR_ROW(init_fails), KR_ROW(twice), KR_ROW(namesake), KR_ROW(value_of_one), KR_ROW(value_of_three),
	KR_ROW(value_headless), KR_ROW(value_of_other),
};

static int __init kr_shapes_init(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(kr_shapes); i++)
		if (!strcmp(kr_shapes[i].name, shape))
			return kr_shapes[i].attempt();
	pr_err("kr_shapes: there is no shape %s\n", shape);
	return -ENOTTY;
}

static void __exit kr_shapes_exit(void)
{
}

module_init(kr_shapes_init);
module_exit(kr_shapes_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("kernrig: struct_ops types of every wrong shape");
