/* The time of an append. clock_gettime() costs 20-25 ns, more than the append's CAS; the time stamp counter 7. So an appender reads the clock every 100 us and
 * counts on from there.
 *
 * Only where the kernel itself makes its clock of that counter (clocksource tsc): then it runs at one rate, also in sleep states, and alike on all cores. The
 * rate is measured once in a process, over 10 ms or more. What remains: the kernel may slew its clock by up to 0.05 %, so a stamp is off by up to 50 ns, and
 * by less than 100 us after somebody sets the clock. One appender's stamps do not go back, but where the clock is set back by more than that. */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "atomic.h"
#include "core.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>

#define WINDOW_NS UINT64_C(100000)
#define MEASURE_NS INT64_C(10000000)
#define BACK_NS INT64_C(1000)

/* Written by any thread that measures, read by all; each word alone is right at any time, so relaxed does. */
static uint64_t first_tsc, ns_per_tick; /* 0: not measured yet; in units of 2^-32 ns */
static int64_t first_ns;
static int counts;                      /* the counter is the kernel's clock; before there are threads */

__attribute__((constructor)) static void choose(void) {
    unsigned a, b, c, d;
    char source[8] = "";
    int fd = open("/sys/devices/system/clocksource/clocksource0/current_clocksource", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    ssize_t n = read(fd, source, sizeof source - 1);
    close(fd);
    if (n < 4 || memcmp(source, "tsc\n", 4) != 0) return;
    if (!__get_cpuid(0x80000007, &a, &b, &c, &d) || !(d & 0x100)) return; /* invariant TSC */
    first_ns = sl_monotonic_ns();
    first_tsc = __rdtsc();
    counts = 1;
}

/* The rate, 0 as long as it is not known. */
static uint64_t rate(void) {
    uint64_t r = sl_load_relaxed(&ns_per_tick);
    if (sl_likely(r != 0)) return r;
    uint64_t before = __rdtsc();
    int64_t ns = sl_monotonic_ns() - first_ns;
    uint64_t after = __rdtsc(), ticks = after - first_tsc;
    if (ns < MEASURE_NS || after < before || after - before > ticks / 100000) return 0; /* too early, or stopped in between: 10 ppm at most */
    r = (uint64_t)((((unsigned __int128)(uint64_t)ns) << 32) / ticks);
    sl_store_relaxed(&ns_per_tick, r);
    return r;
}

static __attribute__((noinline)) int64_t look(sl_stamp *s) {
    uint64_t r = rate(), before = __rdtsc();
    int64_t ns = sl_wall_ns();
    uint64_t after = __rdtsc();
    s->ticks = 0; /* what comes next looks too, unless this was undisturbed */
    if (r && after - before < ((UINT64_C(200) << 32) / r)) {
        s->at = after;
        s->ns = ns;
        s->rate = r;
        s->ticks = (WINDOW_NS << 32) / r;
    }
    return ns;
}

int64_t sl_stamp_ns(sl_stamp *s) {
    if (sl_unlikely(!counts)) return sl_wall_ns();
    uint64_t ticks = __rdtsc() - s->at;
    int64_t ns = sl_likely(ticks < s->ticks) ? s->ns + (int64_t)(ticks * s->rate >> 32) : look(s);
    if (ns < s->last && s->last - ns < BACK_NS) ns = s->last;
    s->last = ns;
    return ns;
}
#else
int64_t sl_stamp_ns(sl_stamp *s) { /* the generic timer's counter has 1-40 ns a tick and is what clock_gettime() reads: nothing to gain */
    (void)s;
    return sl_wall_ns();
}
#endif
