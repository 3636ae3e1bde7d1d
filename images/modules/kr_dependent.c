// SPDX-License-Identifier: GPL-2.0-only
/* A module that uses a symbol of another, and so keeps it loaded. */
#include <linux/compiler.h>
#include <linux/init.h>
#include <linux/module.h>

int kr_traced_double(int value);
int kr_dependent_ask(int value);

noinline int kr_dependent_ask(int value)
{
	return kr_traced_double(value);
}

static int __init kr_dependent_init(void)
{
	return kr_dependent_ask(21) == 42 ? 0 : -EINVAL;
}

static void __exit kr_dependent_exit(void)
{
}

module_init(kr_dependent_init);
module_exit(kr_dependent_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("kernrig: a module that depends on kr_traced");
