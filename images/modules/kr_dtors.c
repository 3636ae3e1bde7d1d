// SPDX-License-Identifier: GPL-2.0-only
/*
 * A module that registers a destructor for its struct kr_owned, right or wrong, as its parameter "shape" says.
 *
 * Its load fails with what the registration answers.
 */
#include <linux/init.h>
#include <linux/module.h>
#include <linux/string.h>

#include "kr_kfunc.h"

static char *shape = "good";
module_param(shape, charp, 0444);
MODULE_PARM_DESC(shape, "what to register");

struct kr_owned { int a; };
struct kr_owned_too { int a; };

/* Nothing acquires a struct kr_owned, so none of these is ever called. */
__bpf_kfunc void kr_dtor_good(void *object);
__bpf_kfunc void kr_dtor_good(void *object)
{
}

__bpf_kfunc int kr_dtor_returns(void *object);
__bpf_kfunc int kr_dtor_returns(void *object)
{
	return 0;
}

__bpf_kfunc void kr_dtor_none(void);
__bpf_kfunc void kr_dtor_none(void)
{
}

__bpf_kfunc void kr_dtor_two(void *object, void *more);
__bpf_kfunc void kr_dtor_two(void *object, void *more)
{
}

__bpf_kfunc void kr_dtor_number(unsigned long object);
__bpf_kfunc void kr_dtor_number(unsigned long object)
{
}

/* Once the module is loaded, no symbol has its name. */
__bpf_kfunc void __init kr_dtor_gone(void *object);
__bpf_kfunc void __init kr_dtor_gone(void *object)
{
}

BTF_ID_LIST(kr_ids)
BTF_ID(struct, kr_owned)
BTF_ID(struct, kr_owned_too)
BTF_ID(func, kr_dtor_good)
BTF_ID(func, kr_dtor_returns)
BTF_ID(func, kr_dtor_none)
BTF_ID(func, kr_dtor_two)
BTF_ID(func, kr_dtor_number)
BTF_ID(func, kr_dtor_gone)

enum { KR_OWNED, KR_OWNED_TOO, KR_GOOD, KR_RETURNS, KR_NONE, KR_TWO, KR_NUMBER, KR_GONE };

#define KR_LIMIT 256

static int __init kr_register(int function)
{
	const struct btf_id_dtor_kfunc dtor = { .btf_id = kr_ids[KR_OWNED], .kfunc_btf_id = kr_ids[function] };

	return register_btf_id_dtor_kfuncs(&dtor, 1, THIS_MODULE);
}

static int __init kr_register_many(unsigned int count)
{
	static struct btf_id_dtor_kfunc dtors[KR_LIMIT] __initdata;
	unsigned int i;

	for (i = 0; i < count; i++) {
		dtors[i].btf_id = kr_ids[KR_OWNED];
		dtors[i].kfunc_btf_id = kr_ids[KR_GOOD];
	}
	return register_btf_id_dtor_kfuncs(dtors, count, THIS_MODULE);
}

static int __init kr_register_second(void)
{
	const struct btf_id_dtor_kfunc second = { .btf_id = kr_ids[KR_OWNED_TOO], .kfunc_btf_id = kr_ids[KR_GOOD] };

	return kr_register(KR_GOOD) ?: register_btf_id_dtor_kfuncs(&second, 1, THIS_MODULE);
}

static const struct {
	const char *name;
	int function;
} kr_functions[] __initconst = {
	{ "good", KR_GOOD }, { "returns", KR_RETURNS }, { "none", KR_NONE }, { "two", KR_TWO }, { "number", KR_NUMBER },
	{ "gone", KR_GONE }, { "structure", KR_OWNED },
};

static int __init kr_dtors_init(void)
{
	int i;

	BTF_TYPE_EMIT(struct kr_owned);
	BTF_TYPE_EMIT(struct kr_owned_too);
	for (i = 0; i < ARRAY_SIZE(kr_functions); i++)
		if (!strcmp(kr_functions[i].name, shape))
			return kr_register(kr_functions[i].function);
	if (!strcmp(shape, "255"))
		return kr_register_many(KR_LIMIT - 1);
	if (!strcmp(shape, "256"))
		return kr_register_many(KR_LIMIT);
	if (!strcmp(shape, "twice"))
		return kr_register_second();
	pr_err("kr_dtors: there is no shape %s\n", shape);
	return -ENOTTY;
}

static void __exit kr_dtors_exit(void)
{
}

module_init(kr_dtors_init);
module_exit(kr_dtors_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("kernrig: destructors of every wrong shape");
