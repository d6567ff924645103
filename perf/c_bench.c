/* The C core, and what the machine allows: two processes, one pinned to each core. Started by perf/core.py.
 *
 *   c_bench floor  bounce|futex|claim|pingpong|stream BYTES COUNT BATCH
 *   c_bench shmlog appends|pingpong|stream            BYTES COUNT BATCH prefix block_a block_b row row row row topic_id_a topic_id_b
 *
 * pingpong  one record there and back; half of it is one latency. The floor's is the minimal ring's; `bounce` is two cache lines and nothing else
 * stream    BYTES each, BATCH a call, until the other has read COUNT of them
 * claim     BATCH processes (1 or 2) claim 128 bytes by CAS on one line and copy BYTES into them, nobody reads: what any log pays
 * appends   BATCH 1: one producer; 2: two on one partition; 3: two on two partitions. Nobody reads
 * futex     10,000 a second, the other sleeps: from the time a wake was due until he runs
 *
 * Prints one JSON object: ns (p50 p90 p99 min) or records per second. Built without SHMLOG_CORE it has the floors alone. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef SHMLOG_CORE
#include "core.h"
#endif
#include "minimal_ring.h"

#define FAIL(...) do { fprintf(stderr, __VA_ARGS__); fputc('\n', stderr); exit(1); } while (0)
#if defined(__x86_64__)
#define pause_cpu() __builtin_ia32_pause()
#else
#define pause_cpu() __asm__ __volatile__("yield" ::: "memory")
#endif
#define load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void pin(int n) {
    cpu_set_t have, one;
    sched_getaffinity(0, sizeof have, &have);
    if (CPU_COUNT(&have) < 2) return;
    CPU_ZERO(&one);
    for (int c = 0, k = 0; c < CPU_SETSIZE; c++) if (CPU_ISSET(c, &have) && k++ == n) CPU_SET(c, &one);
    sched_setaffinity(0, sizeof one, &one);
}

typedef struct shared { /* each line has one writer, the process named, but for `claimed` */
    uint32_t ready; uint8_t pad0[124];    /* both, at the start */
    uint64_t there; uint8_t pad1[120];    /* parent */
    uint64_t back; uint8_t pad2[120];     /* child */
    uint64_t claimed; uint8_t pad3[120];  /* both, by CAS */
    uint32_t word; uint8_t pad4[124];     /* parent: the futex */
    int64_t due_ns; uint8_t pad5[120];    /* parent */
    uint64_t done; uint8_t pad6[120];     /* child */
} shared;

static const char *prefix;
static uint32_t block[2], row[4], bytes, batch;
static uint8_t topic_id[2][16];
static uint64_t count, warm;
static ring *rings;
static shared *common;
static uint8_t *payload;
static int is_shmlog;

typedef struct end { /* one process's end: sends on one channel, receives from the other */
    int tx, rx;
    uint64_t position;
#ifdef SHMLOG_CORE
    sl_cluster *cluster;
    sl_appender *appender;
    sl_reader *reader;
    sl_view views[512];
#endif
} end;

static end e;

#ifdef SHMLOG_CORE
static void open_end(int side, int tx, int rx) {
    e.tx = tx, e.rx = rx;
    if (!is_shmlog) return;
    int rc = sl_cluster_open(prefix, &e.cluster);
    if (rc < 0) FAIL("cluster: %s", sl_strerror(rc));
    if ((rc = sl_appender_open(e.cluster, row[side * 2], block[tx], topic_id[tx], &e.appender)) < 0) FAIL("appender: %s", sl_strerror(rc));
    if (rx < 0) return;
    if ((rc = sl_reader_open(e.cluster, row[side * 2 + 1], block[rx], topic_id[rx], NULL, &e.reader)) < 0) FAIL("reader: %s", sl_strerror(rc));
    sl_offsets o;
    sl_log_offsets(e.cluster, row[side * 2 + 1], block[rx], &o);
    sl_reader_seek(e.reader, o.end);
    sl_reader_tether(e.reader, 1);
}
static void close_end(void) {
    if (e.reader) sl_reader_close(e.reader);
    if (e.appender) sl_appender_close(e.appender);
}
#else
static void open_end(int side, int tx, int rx) { (void)side; e.tx = tx, e.rx = rx; }
static void close_end(void) {}
#endif

/* A batch of the ring: everything is written before the first word, which the reader waits for. */
static int ring_put_batch(ring *r, const uint8_t *data, uint32_t n) {
    uint64_t slot = ring_slot(bytes), whole = slot * n, at = r->written % RING_BYTES;
    uint64_t pad = at + whole > RING_BYTES ? RING_BYTES - at : 0;
    if (r->written + pad + whole + 64 - r->head_seen > RING_BYTES) {
        r->head_seen = load(&r->head);
        if (r->written + pad + whole + 64 - r->head_seen > RING_BYTES) return 0;
    }
    if (pad) { store((uint64_t *)(r->bytes + at), UINT64_MAX); r->written += pad; at = 0; }
    __atomic_store_n((uint64_t *)(r->bytes + (at + whole) % RING_BYTES), 0, __ATOMIC_RELAXED);
    for (uint32_t i = n; i-- > 0;) {
        uint8_t *to = r->bytes + at + i * slot;
        memcpy(to + 8, data, bytes);
        if (i) __atomic_store_n((uint64_t *)to, (uint64_t)bytes + 1, __ATOMIC_RELAXED);
        else store((uint64_t *)to, (uint64_t)bytes + 1);
    }
    r->written += whole;
    return 1;
}

static inline void put(uint32_t n) {
#ifdef SHMLOG_CORE
    if (is_shmlog) {
        sl_record r = {.value = payload, .value_bytes = bytes, .producer_id = -1, .sequence = -1, .timestamp_ns = 1};
        if (n > 1) r.kind = SL_FF_ARRAY, r.rows = n, r.row_bytes = bytes, r.value_bytes = n * bytes;
        sl_append_result result;
        int rc = sl_append(e.appender, &r, -1, 0, &result);
        if (__builtin_expect(rc < 0, 0)) { /* there is no room, or the topic, made a moment ago, has no leader yet: only now is the clock worth its cost */
            int64_t deadline_ns = now_ns() + INT64_C(10000000000);
            do rc = sl_append(e.appender, &r, -1, deadline_ns, &result);
            while (rc == SL_E_FENCED && now_ns() < deadline_ns);
        }
        if (rc < 0) FAIL("append: %s", sl_strerror(rc));
        return;
    }
#endif
    if (n > 1) while (!ring_put_batch(&rings[e.tx], payload, n)) pause_cpu();
    else while (!ring_put(&rings[e.tx], payload, bytes)) pause_cpu();
}

/* Waits for at least one record; returns how many, and a byte of each so that they are really read. */
static inline uint64_t get(uint64_t max, uint64_t *sum) {
#ifdef SHMLOG_CORE
    if (is_shmlog) for (;;) {
        int64_t n = sl_reader_poll(e.reader, e.views, max > 512 ? 512 : max, 1 << 30, 0);
        if (n < 0) FAIL("poll: %s at %llu", sl_strerror((int)n), (unsigned long long)sl_reader_position(e.reader));
        if (n == 0) { pause_cpu(); continue; }
        for (int64_t i = 0; i < n; i++) *sum += e.views[i].value[0];
        return (uint64_t)n;
    }
#endif
    const uint8_t *data;
    uint64_t n = 0;
    while (n < max) {
        if (ring_get(&rings[e.rx], &e.position, &data) < 0) { if (n) break; pause_cpu(); continue; }
        *sum += data[0];
        n++;
        if (n % 64 == 0) ring_release(&rings[e.rx], e.position);
    }
    ring_release(&rings[e.rx], e.position);
    return n;
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void print_ns(int64_t *took, double divisor) {
    qsort(took, count, 8, by_value);
    printf("{\"p50_ns\": %.1f, \"p90_ns\": %.1f, \"p99_ns\": %.1f, \"min_ns\": %.1f}\n", (double)took[count / 2] / divisor, (double)took[count * 9 / 10] / divisor,
           (double)took[count * 99 / 100] / divisor, (double)took[0] / divisor);
}

static void print_rate(uint64_t n, int64_t begin) {
    double s = (double)(now_ns() - begin) / 1e9;
    printf("{\"records_per_s\": %.0f, \"ns_per_record\": %.2f, \"gb_per_s\": %.3f}\n", (double)n / s, s * 1e9 / (double)n, (double)n * bytes / s / 1e9);
}

static void meet(uint32_t n) {
    __atomic_fetch_add(&common->ready, 1, __ATOMIC_SEQ_CST);
    while (load(&common->ready) < n) pause_cpu();
}

static int finish(pid_t child) {
    int status;
    fflush(stdout);
    waitpid(child, &status, 0);
    close_end();
    return status ? 1 : 0;
}

static pid_t fork_pinned(void) {
    pid_t child = fork();
    if (child == 0) prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin(child == 0 ? 1 : 0);
    return child;
}

static int bounce_lines(void) {
    int64_t *took = malloc(count * 8);
    pid_t child = fork_pinned();
    meet(2);
    for (uint64_t i = 1; i <= warm + count; i++) {
        if (child == 0) {
            while (load(&common->there) != i) pause_cpu();
            store(&common->back, i);
            continue;
        }
        int64_t at = now_ns();
        store(&common->there, i);
        while (load(&common->back) != i) pause_cpu();
        if (i > warm) took[i - warm - 1] = now_ns() - at;
    }
    if (child == 0) _exit(0);
    print_ns(took, 2);
    return finish(child);
}

static int futex_wakes(void) {
    int64_t *took = mmap(NULL, count * 8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    pid_t child = fork_pinned();
    meet(2);
    if (child == 0) {
        for (uint32_t i = 0; i < count; i++) {
            while (load(&common->word) == i) syscall(SYS_futex, &common->word, FUTEX_WAIT, i, NULL, NULL, 0);
            took[i] = now_ns() - common->due_ns;
            store(&common->done, (uint64_t)i + 1);
        }
        _exit(0);
    }
    int64_t due = now_ns() + 2000000;
    for (uint32_t i = 0; i < count; i++, due += 100000) {
        while (load(&common->done) < i) pause_cpu(); /* one word: the next wake may not overtake */
        while (now_ns() < due) pause_cpu();
        common->due_ns = due;
        store(&common->word, i + 1);
        syscall(SYS_futex, &common->word, FUTEX_WAKE, 1, NULL, NULL, 0);
    }
    int failed = finish(child);
    print_ns(took, 1);
    return failed;
}

static int claims(void) {
    uint64_t room = UINT64_C(16) << 20;
    uint8_t *arena = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    uint64_t slot = (28 + (uint64_t)bytes + 63) & ~UINT64_C(63);
    pid_t child = batch > 1 ? fork_pinned() : (pin(0), -1);
    meet(batch);
    int64_t begin = now_ns();
    for (uint64_t i = 0; i < count; i++) {
        uint64_t at = __atomic_load_n(&common->claimed, __ATOMIC_RELAXED);
        while (!__atomic_compare_exchange_n(&common->claimed, &at, at + slot, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) pause_cpu();
        memcpy(arena + at % (room - slot) / 64 * 64, payload, bytes);
    }
    if (child == 0) { store(&common->done, 1); _exit(0); }
    while (child > 0 && !load(&common->done)) pause_cpu();
    print_rate(count * batch, begin);
    return child > 0 ? finish(child) : 0;
}

static int appends(void) {
    uint32_t producers = batch > 1 ? 2 : 1;
    pid_t child = producers > 1 ? fork_pinned() : (pin(0), -1);
    int side = child == 0 ? 1 : 0;
    open_end(side, batch == 3 ? side : 0, -1);
    for (uint64_t i = 0; i < warm; i++) put(1);
    meet(producers);
    int64_t begin = now_ns();
    for (uint64_t i = 0; i < count; i++) put(1);
    if (child == 0) { store(&common->done, 1); close_end(); _exit(0); }
    while (child > 0 && !load(&common->done)) pause_cpu();
    print_rate(count * producers, begin);
    if (child > 0) return finish(child);
    close_end();
    return 0;
}

static int pingpong(void) {
    uint64_t sum = 0;
    int64_t *took = malloc(count * 8);
    pid_t child = fork_pinned();
    int side = child == 0 ? 1 : 0;
    open_end(side, side, 1 - side);
    meet(2);
    if (child == 0) {
        for (uint64_t i = 0; i < warm + count; i++) { get(1, &sum); put(1); }
        close_end();
        _exit(sum == 1 ? 2 : 0);
    }
    for (uint64_t i = 0; i < warm + count; i++) {
        int64_t at = now_ns();
        put(1);
        get(1, &sum);
        if (i >= warm) took[i - warm] = now_ns() - at;
    }
    print_ns(took, 2);
    return finish(child);
}

static int stream(void) {
    uint64_t sum = 0;
    pid_t child = fork_pinned();
    int side = child == 0 ? 1 : 0;
    open_end(side, side, 1 - side);
    meet(2);
    warm = (warm + batch - 1) / batch * batch;
    count = (count + batch - 1) / batch * batch;
    if (child == 0) {
        for (uint64_t n = 0; n < warm + count;) n += get(warm + count - n, &sum);
        store(&common->done, 1);
        close_end();
        _exit(sum == 1 ? 2 : 0);
    }
    for (uint64_t i = 0; i < warm; i += batch) put(batch);
    int64_t begin = now_ns();
    for (uint64_t i = 0; i < count; i += batch) put(batch);
    while (!load(&common->done)) pause_cpu();
    print_rate(count, begin);
    return finish(child);
}

int main(int argc, char **argv) {
    if (argc < 6) FAIL("see the head of %s", __FILE__);
    is_shmlog = argv[1][0] == 's';
    bytes = (uint32_t)atoi(argv[3]);
    count = strtoull(argv[4], NULL, 10);
    batch = (uint32_t)atoi(argv[5]);
    warm = count / 10 + 1;
#ifndef SHMLOG_CORE
    if (is_shmlog) FAIL("built without the core");
#endif
    if (is_shmlog) {
        if (argc != 15) FAIL("see the head of %s", __FILE__);
        prefix = argv[6];
        for (int i = 0; i < 2; i++) block[i] = (uint32_t)atoi(argv[7 + i]);
        for (int i = 0; i < 4; i++) row[i] = (uint32_t)atoi(argv[9 + i]);
        for (int t = 0; t < 2; t++) for (int i = 0; i < 16; i++) { unsigned x; sscanf(argv[13 + t] + 2 * i, "%2x", &x); topic_id[t][i] = (uint8_t)x; }
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    rings = mmap(NULL, 2 * sizeof(ring), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    common = mmap(NULL, sizeof(shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    payload = calloc(batch > 3 ? batch : 3, bytes + 64);
    static const struct { const char *name; int (*run)(void); } modes[] = {
        {"bounce", bounce_lines}, {"futex", futex_wakes}, {"claim", claims}, {"appends", appends}, {"pingpong", pingpong}, {"stream", stream}};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) if (!strcmp(argv[2], modes[i].name)) return modes[i].run();
    FAIL("see the head of %s", __FILE__);
}
