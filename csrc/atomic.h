/* Atomic access to words that other processes read and write, our own assert, and failpoints.
 *
 * Every shared word is 64 or 32 bits, naturally aligned and always accessed at that one size. C11 says nothing of memory shared between
 * processes; we rely on lock-free, address-free atomics, asserted below. Wherever an order stronger than relaxed is used, the call site names
 * the partner: "SYNC name: ... pairs with function()". The same names are labels in tests/models/. */
#ifndef SHMLOG_ATOMIC_H
#define SHMLOG_ATOMIC_H
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

_Static_assert(__atomic_always_lock_free(8, 0), "64-bit atomics must be lock-free to work between processes");
_Static_assert(__atomic_always_lock_free(4, 0), "32-bit atomics must be lock-free to work between processes");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "layout 1 is little-endian");

#define sl_load_relaxed(p)        __atomic_load_n((p), __ATOMIC_RELAXED)
#define sl_load_acquire(p)        __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define sl_load_sc(p)             __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define sl_store_relaxed(p, v)    __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define sl_store_release(p, v)    __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define sl_store_sc(p, v)         __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
#define sl_fetch_add_sc(p, v)     __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST)
#define sl_fetch_add_relaxed(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define sl_fetch_or_sc(p, v)      __atomic_fetch_or((p), (v), __ATOMIC_SEQ_CST)
#define sl_fetch_and_sc(p, v)     __atomic_fetch_and((p), (v), __ATOMIC_SEQ_CST)
/* On failure *expected holds what was found (acquire). A failing CAS is no fence on ARM: nothing may rely on one. */
#define sl_cas_sc(p, expected, desired) \
    __atomic_compare_exchange_n((p), (expected), (desired), 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE)
#define sl_fence_sc()             __atomic_thread_fence(__ATOMIC_SEQ_CST)

#if defined(__x86_64__)
#define sl_pause() __builtin_ia32_pause()
#define sl_prefetch_write(p) __asm__ __volatile__("prefetchw %0" : : "m"(*(const char *)(p)))
#else
#define sl_pause() __asm__ __volatile__("yield" ::: "memory")
#define sl_prefetch_write(p) __builtin_prefetch((p), 1)
#endif

#define sl_likely(x)   __builtin_expect(!!(x), 1)
#define sl_unlikely(x) __builtin_expect(!!(x), 0)

/* For what this process itself computed; never for bytes another process wrote (those are validated and reported). Not tied to NDEBUG, which
 * setuptools sets. */
#define SL_ASSERT(cond) do { if (sl_unlikely(!(cond))) { \
    fprintf(stderr, "shmlog: assertion failed: %s (%s:%d)\n", #cond, __FILE__, __LINE__); abort(); } } while (0)

/* A named place where a test may kill or stop this process. Nothing at all in a release build. */
#ifdef SL_FAILPOINTS
void sl_failpoint_hit(const char *name);
#define SL_FAILPOINT(name) sl_failpoint_hit(#name)
#else
#define SL_FAILPOINT(name) ((void)0)
#endif
#endif
