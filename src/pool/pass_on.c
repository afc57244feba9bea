/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pass_on.c - a process leaves its memory to a child and ends.
 *
 * The warden is forked twice so that it is nobody's child.  The second fork would copy the page
 * tables of the owner's whole memory once more, and the one in between would take its copy apart
 * again while the warden waits for the CPU: for a program that has imported numpy 0.6 ms together,
 * before the first worker.  But the one in between has no use for its memory.  So its child shares
 * it (CLONE_VM) instead of having a copy, and stack pointer and all goes on where the parent was;
 * the parent does nothing but exit, which takes no memory, not even the stack.
 *
 * What belongs to a thread and not to its memory has to be put right in the child:
 *
 *   its number, which the C library keeps     the kernel says where (PR_GET_TID_ADDRESS); it would
 *                                             also write a zero there when the parent ends
 *   restartable sequences (rseq)              registered again, or marked as not registered: forks
 *                                             of the child inherit either
 *   robust mutexes                            none is held; forks register their own list
 *
 * Where the kernel, the processor, a sanitizer or valgrind does not go along, or where a library's
 * handler has started a thread after the first fork, nothing happens and the caller forks.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pool/pool.h"

#ifndef PR_GET_TID_ADDRESS
#define PR_GET_TID_ADDRESS 40
#endif

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif

#if !defined(SANITIZED) && defined(__x86_64__) && defined(__LP64__)

#define RSEQ_SIGNATURE 0x53053053

static inline char *thread_pointer(void)
{
    char *p;

    __asm__("mov %%fs:0, %0" : "=r"(p));
    return p;
}

/* The child would have a new one, without the addresses to which it returns. */
static bool has_shadow_stack(void)
{
    unsigned long on = 0;

    return syscall(SYS_arch_prctl, 0x5005 /* ARCH_SHSTK_STATUS */, &on) == 0 && on;
}

/* clone(); in the parent exit_group(0), without a look at the memory that is the child's now. */
static inline long clone_and_leave(unsigned long flags)
{
    register long tls __asm__("r8") = 0;
    register long tid __asm__("r10") = 0;
    long ret = SYS_clone;

    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jle 1f\n\t"
                     "xor %%edi, %%edi\n\t"
                     "mov %[leave], %%eax\n\t"
                     "syscall\n\t"
                     "hlt\n"
                     "1:"
                     : "+a"(ret)
                     : "D"(flags), "S"(0l), "d"(0l), "r"(tid), "r"(tls), [leave] "i"(SYS_exit_group)
                     : "rcx", "r11", "cc", "memory");
    return ret;
}
#define CAN_PASS_ON 1

#elif !defined(SANITIZED) && defined(__aarch64__) && defined(__LP64__)

#define RSEQ_SIGNATURE 0xd428bc00

static inline char *thread_pointer(void)
{
    char *p;

    __asm__("mrs %0, tpidr_el0" : "=r"(p));
    return p;
}

static bool has_shadow_stack(void)
{
    unsigned long on = 0;

    return prctl(74 /* PR_GET_SHADOW_STACK_STATUS */, &on, 0, 0, 0) == 0 && on;
}

static inline long clone_and_leave(unsigned long flags)
{
    register long x0 __asm__("x0") = (long)flags;
    register long x1 __asm__("x1") = 0;
    register long x2 __asm__("x2") = 0;
    register long x3 __asm__("x3") = 0;
    register long x4 __asm__("x4") = 0;
    register long x8 __asm__("x8") = SYS_clone;

    __asm__ volatile("svc #0\n\t"
                     "cmp x0, #0\n\t"
                     "b.le 1f\n\t"
                     "mov x0, #0\n\t"
                     "mov x8, %[leave]\n\t"
                     "svc #0\n\t"
                     "brk #1\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x8), [leave] "i"(SYS_exit_group)
                     : "cc", "memory");
    return x0;
}
#define CAN_PASS_ON 1

#endif

#ifdef CAN_PASS_ON

/* The beginning of the kernel's struct rseq. */
struct rseq_area {
    uint32_t cpu_id_start;
    int32_t cpu_id; /* negative: not registered, as its users know */
};

/* Where the C library has it, from the thread pointer; looked up before the fork. */
static const ptrdiff_t *rseq_offset;
static bool valgrind; /* knows no such clone(), and ends the process that calls it */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void look(void)
{
    const unsigned *size = dlsym(RTLD_DEFAULT, "__rseq_size");

    valgrind = dlsym(RTLD_DEFAULT, "_vgnU_freeres") != NULL; /* of its preloaded library */
    if (size && *size)
        rseq_offset = dlsym(RTLD_DEFAULT, "__rseq_offset");
}

static void register_rseq(void)
{
    struct rseq_area *area;

    if (!rseq_offset)
        return;
    area = (struct rseq_area *)(void *)(thread_pointer() + *rseq_offset);
    if (area->cpu_id < 0)
        return;
#ifdef SYS_rseq
    if (syscall(SYS_rseq, area, 32, 0, RSEQ_SIGNATURE) == 0)
        return;
#endif
    area->cpu_id_start = 0;
    area->cpu_id = -1;
}

/* Of the links to the folder of threads, two are not from one of them. */
static bool alone(void)
{
    struct stat st;

    return stat("/proc/self/task", &st) == 0 && st.st_nlink == 3;
}

void tri_pass_on_prepare(void)
{
    pthread_once(&once, look);
}

int tri_pass_on(void)
{
    int *tid = NULL;
    long err;

    if (valgrind || !alone() || has_shadow_stack() || prctl(PR_GET_TID_ADDRESS, &tid) < 0 || !tid)
        return -ENOSYS;
    syscall(SYS_set_tid_address, NULL);
    err = clone_and_leave(CLONE_VM | SIGCHLD);
    *tid = (int)syscall(SYS_set_tid_address, tid);
    if (err < 0)
        return (int)err;
    register_rseq();
    return 0;
}

#else

void tri_pass_on_prepare(void)
{
}

int tri_pass_on(void)
{
    return -ENOSYS;
}

#endif
