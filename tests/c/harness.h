/* A test is a sentence and a body; a program is a list of them and HARNESS_MAIN. A failed CHECK prints the values and ends that test only.
 *
 *   TEST("a reader stops at a seal") { CHECK_EQ(count(), 3); }
 *   HARNESS_MAIN
 *
 * ./test_x runs all, ./test_x <words> those whose sentence contains them. SEED=n repeats a random run. */
#ifndef HARNESS_H
#define HARNESS_H
#include <inttypes.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct harness_test {
    const char *sentence;
    void (*run)(void);
    struct harness_test *next;
} harness_test;

static harness_test *harness_first, **harness_last = &harness_first;
static jmp_buf harness_out;
static void (*harness_cleanup)(void); /* what must happen at the end, too, when a test failed */

#define HARNESS_JOIN2(a, b) a##b
#define HARNESS_JOIN(a, b) HARNESS_JOIN2(a, b)
#define TEST(words) HARNESS_TEST(words, HARNESS_JOIN(harness_line_, __LINE__))
#define HARNESS_TEST(words, name)                                                     \
    static void name(void);                                                           \
    __attribute__((constructor)) static void HARNESS_JOIN(name, _register)(void) {    \
        static harness_test t = {words, name, NULL};                                  \
        *harness_last = &t;                                                           \
        harness_last = &t.next;                                                       \
    }                                                                                 \
    static void name(void)

#define FAIL(...) do { fprintf(stderr, "  %s:%d: ", __FILE__, __LINE__); fprintf(stderr, __VA_ARGS__); fputc('\n', stderr); longjmp(harness_out, 1); } while (0)
#define CHECK(cond) do { if (!(cond)) FAIL("not so: %s", #cond); } while (0)
#define CHECK_OP(a, op, b) do { long long a_ = (long long)(a), b_ = (long long)(b); \
    if (!(a_ op b_)) FAIL("%s %s %s, but they are %lld (0x%llx) and %lld (0x%llx)", #a, #op, #b, a_, (unsigned long long)a_, b_, (unsigned long long)b_); } while (0)
#define CHECK_EQ(a, b) CHECK_OP(a, ==, b)
#define CHECK_BYTES(a, b, n) do { const uint8_t *a_ = (const void *)(a), *b_ = (const void *)(b); size_t n_ = (n); \
    for (size_t i_ = 0; i_ < n_; i_++) if (a_[i_] != b_[i_]) FAIL("%s and %s differ at byte %zu of %zu: %02x, %02x", #a, #b, i_, n_, a_[i_], b_[i_]); } while (0)

/* xorshift64*: the same numbers on every machine */
static uint64_t random_state = 1;
static inline uint64_t random_u64(void) {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * UINT64_C(2685821657736338717);
}
static inline uint64_t random_below(uint64_t n) { return random_u64() % n; }
static inline uint64_t seed_random(uint64_t fixed) {
    const char *given = getenv("SEED");
    random_state = given ? strtoull(given, NULL, 0) : fixed;
    if (!random_state) random_state = 1;
    printf("  SEED=%" PRIu64 "\n", random_state);
    return random_state;
}

static inline int harness_main(const char *words) {
    static int failed, run;
    static harness_test *t;
    for (t = harness_first; t; t = t->next) {
        if (words && !strstr(t->sentence, words)) continue;
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        run++;
        int out = setjmp(harness_out);
        if (out == 0) t->run();
        clock_gettime(CLOCK_MONOTONIC, &b);
        printf("%s %s (%.0f ms)\n", out ? "FAILED" : "ok    ", t->sentence, (double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) / 1e6);
        fflush(stdout);
        failed += out != 0;
    }
    printf("%d run, %d failed\n", run, failed);
    if (failed) { /* a test that was left in the middle leaks: no report about that on top */
        if (harness_cleanup) harness_cleanup();
        fflush(NULL);
        _exit(1);
    }
    return run == 0;
}
#define HARNESS_MAIN int main(int argc, char **argv) { return harness_main(argc > 1 ? argv[1] : NULL); }
#endif
