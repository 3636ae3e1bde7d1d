// SPDX-License-Identifier: GPL-2.0-only
/*
 * A module that misbehaves on request, for tests of what the harness makes of a kernel that does.
 *
 * A write of one of the names below to debugfs kr_splat/provoke does it in the writer's context; what is left to return, returns.
 */
#include <linux/bug.h>
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/irqflags.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/panic.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/uaccess.h>

static struct dentry *kr_dir;

static noinline void kr_warn(void)
{
	WARN(1, "kr_splat: this warning was asked for\n");
}

static noinline void kr_bug(void)
{
	BUG();
}

static noinline void kr_oops(void)
{
	*(volatile int *)8 = 1;
}

static noinline void kr_refcount(void)
{
	refcount_t refs = REFCOUNT_INIT(0);

	refcount_dec(&refs);
}

/* With CONFIG_LIST_HARDENED the kernel notices; without it nothing happens. */
static noinline void kr_list(void)
{
	LIST_HEAD(head);
	LIST_HEAD(stranger);
	struct list_head entry;

	list_add(&entry, &head);
	head.next = &stranger;
	list_del(&entry);
}

static noinline void kr_panic(void)
{
	panic("kr_splat: this panic was asked for");
}

/* Neither interrupts nor the console: the processor is gone. */
static noinline void kr_hang(void)
{
	local_irq_disable();
	for (;;)
		cpu_relax();
}

/* The task can't be killed. The rest of the machine goes on. */
static noinline void kr_stuck(void)
{
	for (;;) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		schedule();
	}
}

/*
 * What follows is noticed by a kernel that was built to (kconfig/debug.config); on others nothing happens.
 */

static noinline void kr_freed(void)
{
	char *memory = kmalloc(64, GFP_KERNEL);

	if (!memory)
		return;
	OPTIMIZER_HIDE_VAR(memory);
	kfree(memory);
	READ_ONCE(memory[8]);
}

/* Several: what is left of one address on some stack keeps that object alive. */
static noinline void kr_lost(void)
{
	int i;

	for (i = 0; i < 16; i++) {
		void *memory = kmalloc(333, GFP_KERNEL);

		OPTIMIZER_HIDE_VAR(memory);
	}
}

static noinline void kr_sleep(void)
{
	static DEFINE_SPINLOCK(kr_lock);

	spin_lock(&kr_lock);
	might_sleep();
	spin_unlock(&kr_lock);
}

static noinline void kr_order(void)
{
	static DEFINE_MUTEX(kr_first);
	static DEFINE_MUTEX(kr_second);

	mutex_lock(&kr_first);
	mutex_lock(&kr_second);
	mutex_unlock(&kr_second);
	mutex_unlock(&kr_first);
	mutex_lock(&kr_second);
	mutex_lock(&kr_first);
	mutex_unlock(&kr_first);
	mutex_unlock(&kr_second);
}

static noinline void kr_rcu(void)
{
	static void __rcu *kr_pointer;

	(void)rcu_dereference(kr_pointer);
}

static noinline void kr_shift(void)
{
	static volatile int kr_bits = 70, kr_sink;

	kr_sink = 1 << kr_bits;
}

static void kr_expired(struct timer_list *timer)
{
}

static noinline void kr_timer(void)
{
	struct timer_list *timer = kmalloc(sizeof(*timer), GFP_KERNEL);

	if (!timer)
		return;
	timer_setup(timer, kr_expired, 0);
	mod_timer(timer, jiffies + 1000 * HZ);
	kfree(timer);
}

#define KR_DEED(name) { #name, kr_##name }
static const struct {
	const char *name;
	void (*deed)(void);
} kr_deeds[] = {
	KR_DEED(warn), KR_DEED(bug), KR_DEED(oops), KR_DEED(refcount), KR_DEED(list), KR_DEED(panic), KR_DEED(hang), KR_DEED(stuck),
	KR_DEED(freed), KR_DEED(lost), KR_DEED(sleep), KR_DEED(order), KR_DEED(rcu), KR_DEED(shift), KR_DEED(timer),
};

static ssize_t provoke_write(struct file *file, const char __user *from, size_t size, loff_t *pos)
{
	char word[16] = "";
	int i;

	if (size >= sizeof(word))
		return -EINVAL;
	if (copy_from_user(word, from, size))
		return -EFAULT;
	for (i = 0; i < ARRAY_SIZE(kr_deeds); i++) {
		if (!sysfs_streq(word, kr_deeds[i].name))
			continue;
		kr_deeds[i].deed();
		return size;
	}
	return -EINVAL;
}

static const struct file_operations provoke_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = provoke_write,
};

static int __init kr_splat_init(void)
{
	kr_dir = debugfs_create_dir("kr_splat", NULL);
	debugfs_create_file("provoke", 0200, kr_dir, NULL, &provoke_fops);
	return 0;
}

static void __exit kr_splat_exit(void)
{
	debugfs_remove(kr_dir);
}

module_init(kr_splat_init);
module_exit(kr_splat_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("kernrig: warnings, oopses, hangs and panics on request");
