// SPDX-License-Identifier: GPL-2.0-only
/* A module that cannot be unloaded: it has an init function and none for its exit. */
#include <linux/init.h>
#include <linux/module.h>

static int __init kr_permanent_init(void)
{
	return 0;
}

module_init(kr_permanent_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("kernrig: a module without an exit function");
