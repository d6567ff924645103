/* The C core against the floor: ping-pong and throughput between two processes, one pinned to each core. Started by perf/core.py, which gives it topics of a
 * running cluster (its broker and coordinator run, as they will for users) and rows to use.
 *
 *   c_bench ring|shmlog pingpong BYTES COUNT [prefix block_a block_b row row row row topic_id]
 *   c_bench ring|shmlog stream   BYTES COUNT [prefix block_a block_b row row row row topic_id]
 *
 * Prints one JSON object: round trips' halves (ns: p50 p90 p99 min) or records per second. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "atomic.h"
#include "core.h"
#include "minimal_ring.h"

#define FAIL(...) do { fprintf(stderr, __VA_ARGS__); fputc('\n', stderr); exit(1); } while (0)

static void pin(int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static const char *prefix;
static uint32_t block[2], row[4];
static uint8_t topic_id[2][16];
static uint32_t bytes;
static uint64_t count;
static ring *rings;

typedef struct end { /* one process's end: sends on one channel, receives from the other */
    int shmlog, tx, rx;
    sl_cluster *cluster;
    sl_appender *appender;
    sl_reader *reader;
    uint64_t position;
    sl_view views[512];
} end;

static void open_end(end *e, int shmlog, int side) {
    e->shmlog = shmlog;
    e->tx = side;
    e->rx = 1 - side;
    if (!shmlog) return;
    int rc = sl_cluster_open(prefix, &e->cluster);
    if (rc < 0) FAIL("cluster: %s", sl_strerror(rc));
    if ((rc = sl_appender_open(e->cluster, row[side * 2], block[e->tx], topic_id[e->tx], &e->appender)) < 0) FAIL("appender: %s", sl_strerror(rc));
    if ((rc = sl_reader_open(e->cluster, row[side * 2 + 1], block[e->rx], topic_id[e->rx], NULL, &e->reader)) < 0) FAIL("reader: %s", sl_strerror(rc));
    sl_offsets o;
    sl_log_offsets(e->cluster, row[side * 2 + 1], block[e->rx], &o);
    sl_reader_seek(e->reader, o.end);
    sl_reader_tether(e->reader, 1);
}

static inline void put(end *e, const void *data) {
    if (!e->shmlog) { while (!ring_put(&rings[e->tx], data, bytes)) sl_pause(); return; }
    sl_record r = {.value = data, .value_bytes = bytes, .producer_id = -1, .sequence = -1, .timestamp_ns = 1};
    sl_append_result result;
    int64_t deadline_ns = sl_monotonic_ns() + INT64_C(10000000000);
    int rc;
    do rc = sl_append(e->appender, &r, -1, deadline_ns, &result); /* a topic made a moment ago may have no leader yet */
    while (sl_unlikely(rc == SL_E_FENCED) && sl_monotonic_ns() < deadline_ns);
    if (rc < 0) FAIL("append: %s", sl_strerror(rc));
}

/* Waits for at least one record; returns how many, and a byte of each so that they are really read. */
static inline uint64_t get(end *e, uint64_t max, uint64_t *sum) {
    const uint8_t *data;
    if (!e->shmlog) {
        uint64_t n = 0;
        while (n < max) {
            if (ring_get(&rings[e->rx], &e->position, &data) < 0) { if (n) break; sl_pause(); continue; }
            *sum += data[0];
            n++;
            if (n % 64 == 0) ring_release(&rings[e->rx], e->position);
        }
        ring_release(&rings[e->rx], e->position);
        return n;
    }
    for (;;) {
        int64_t n = sl_reader_poll(e->reader, e->views, max > 512 ? 512 : max, 1 << 30, 0);
        if (n < 0) FAIL("poll: %s at %llu", sl_strerror((int)n), (unsigned long long)sl_reader_position(e->reader));
        if (n == 0) { sl_pause(); continue; }
        for (int64_t i = 0; i < n; i++) *sum += e->views[i].value[0];
        return (uint64_t)n;
    }
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc < 5) FAIL("see the head of %s", __FILE__);
    int shmlog = argv[1][0] == 's', pingpong = argv[2][0] == 'p';
    bytes = (uint32_t)atoi(argv[3]);
    count = strtoull(argv[4], NULL, 10);
    if (shmlog) {
        if (argc != 14) FAIL("see the head of %s", __FILE__);
        prefix = argv[5];
        for (int i = 0; i < 2; i++) block[i] = (uint32_t)atoi(argv[6 + i]);
        for (int i = 0; i < 4; i++) row[i] = (uint32_t)atoi(argv[8 + i]);
        for (int t = 0; t < 2; t++) for (int i = 0; i < 16; i++) { unsigned x; sscanf(argv[12 + t] + 2 * i, "%2x", &x); topic_id[t][i] = (uint8_t)x; }
    }
    rings = mmap(NULL, 2 * sizeof(ring), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    uint32_t *ready = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint8_t *payload = calloc(1, bytes + 64);
    uint64_t warm = count / 10 + 1, sum = 0;
    static end e;
    pid_t child = fork();
    if (child == 0) prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin(child == 0 ? 1 : 0);
    open_end(&e, shmlog, child == 0 ? 1 : 0);
    sl_fetch_add_sc(ready, 1);
    while (sl_load_sc(ready) < 2) sl_pause();
    if (child == 0) {
        if (pingpong) for (uint64_t i = 0; i < warm + count; i++) { get(&e, 1, &sum); put(&e, payload); }
        else for (uint64_t n = 0; n < warm + count;) n += get(&e, warm + count - n, &sum);
        sl_store_sc(ready, 3);
        if (shmlog) { sl_reader_close(e.reader); sl_appender_close(e.appender); }
        _exit(sum == 1 ? 2 : 0);
    }
    if (pingpong) {
        uint64_t *took = malloc(count * 8);
        for (uint64_t i = 0; i < warm + count; i++) {
            int64_t at = sl_monotonic_ns();
            put(&e, payload);
            get(&e, 1, &sum);
            if (i >= warm) took[i - warm] = (uint64_t)(sl_monotonic_ns() - at);
        }
        qsort(took, count, 8, by_value);
        printf("{\"p50_ns\": %.1f, \"p90_ns\": %.1f, \"p99_ns\": %.1f, \"min_ns\": %.1f}\n", (double)took[count / 2] / 2, (double)took[count * 9 / 10] / 2,
               (double)took[count * 99 / 100] / 2, (double)took[0] / 2);
    } else {
        for (uint64_t i = 0; i < warm; i++) put(&e, payload);
        int64_t at = sl_monotonic_ns();
        for (uint64_t i = 0; i < count; i++) put(&e, payload);
        while (sl_load_sc(ready) != 3) sl_pause();
        double s = (double)(sl_monotonic_ns() - at) / 1e9;
        printf("{\"records_per_s\": %.0f, \"ns_per_record\": %.2f}\n", (double)count / s, s * 1e9 / (double)count);
    }
    int status;
    waitpid(child, &status, 0);
    if (shmlog) { sl_reader_close(e.reader); sl_appender_close(e.appender); }
    return status ? 1 : 0;
}
