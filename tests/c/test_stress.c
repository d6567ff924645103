/* Many appends by several threads of several processes, every record looked at by every reader: dense offsets, each writer's own order, each word of each value.
 *
 *   APPENDS=100000000 PROCESSES=2 ./test_stress      a million by default; PROCESSES=0: threads of this one alone, for TSan
 *
 * Memory only, with tethers: nothing may be dropped, so producers wait for the slowest reader and recycle what all have passed. A buffer that somebody still
 * named then stays in LIMBO for the broker to look at again: a thread here does that part of its work. */
#include <pthread.h>
#include <sys/wait.h>

#include "fixture.h"
#include "harness.h"

#define WRITERS 4        /* threads, over all processes */
#define READERS 2
#define SEGMENT_BYTES (1u << 20)
#define SEGMENTS 12

static uint64_t appends;
static const int64_t limit_ns = INT64_C(900000000000);

static uint64_t number_of(const char *name, uint64_t otherwise) {
    const char *given = getenv(name);
    return given ? strtoull(given, NULL, 0) : otherwise;
}
static inline uint64_t word_of(uint64_t writer, uint64_t sequence, uint64_t k) {
    uint64_t x = (writer << 48 | sequence) + k * UINT64_C(0x9e3779b97f4a7c15);
    x ^= x >> 31;
    x *= UINT64_C(0xbf58476d1ce4e5b9);
    return x ^ x >> 29;
}
static inline uint32_t words_of(uint64_t sequence) { return sequence % 4096 == 4095 ? 700 : 2 + (uint32_t)(sequence & 7); }
static inline uint64_t share(uint64_t writer) { return appends / WRITERS + (writer < appends % WRITERS); }

typedef struct task { sl_cluster *c; uint64_t index; int failed; } task;
#define NEED(cond) do { if (!(cond)) { fprintf(stderr, "  %s:%d: not so: %s (%s %llu)\n", __FILE__, __LINE__, #cond, __func__, (unsigned long long)t->index); \
    t->failed = 1; return NULL; } } while (0)

static void *writer(void *p) {
    task *t = p;
    sl_appender *a;
    sl_append_result result;
    uint64_t value[700];
    int64_t last = -1, deadline = sl_monotonic_ns() + limit_ns;
    NEED(sl_appender_open(t->c, (uint32_t)t->index, 0, fixture_topic_id, &a) == SL_OK);
    for (uint64_t i = 0; i < share(t->index); i++) {
        uint32_t n = words_of(i);
        value[0] = t->index << 48 | i;
        for (uint32_t k = 1; k < n; k++) value[k] = word_of(t->index, i, k);
        sl_record r = {.value = (uint8_t *)value, .value_bytes = n * 8, .producer_id = -1, .sequence = -1, .timestamp_ns = 1};
        int rc = sl_append(a, &r, -1, deadline, &result);
        NEED(rc == SL_OK && result.offset > last);
        last = result.offset;
    }
    sl_appender_close(a);
    return NULL;
}

static void *reader(void *p) {
    task *t = p;
    sl_reader *r;
    static __thread sl_view v[256];
    uint64_t next[WRITERS] = {0}, read = 0;
    int64_t deadline = sl_monotonic_ns() + limit_ns;
    NEED(sl_reader_open(t->c, (uint32_t)t->index, 0, fixture_topic_id, NULL, &r) == SL_OK);
    NEED(sl_reader_tether(r, 1) == SL_OK);
    sl_store_release(&sl_cluster_row(t->c, (uint32_t)t->index)->progress, 1); /* the writers may begin */
    while (read < appends) {
        int64_t n = sl_reader_poll(r, v, 256, 1 << 20, 1);
        NEED(n >= 0);
        if (n == 0) {
            int rc = sl_readers_wait(t->c, (uint32_t)t->index, &r, 1, 0, deadline);
            NEED(rc >= 0 || rc == SL_E_INTR);
            continue;
        }
        for (int64_t i = 0; i < n; i++, read++) {
            uint64_t first, word;
            NEED(v[i].offset == (int64_t)read && v[i].value_bytes >= 16);
            memcpy(&first, v[i].value, 8);
            uint64_t from = first >> 48, sequence = first & ((UINT64_C(1) << 48) - 1);
            NEED(from < WRITERS && sequence == next[from] && v[i].value_bytes == 8 * words_of(sequence));
            next[from]++;
            for (uint32_t k = 1; k < v[i].value_bytes / 8; k++) {
                memcpy(&word, v[i].value + 8 * k, 8);
                NEED(word == word_of(from, sequence, k));
            }
        }
    }
    for (uint64_t w = 0; w < WRITERS; w++) NEED(next[w] == share(w));
    sl_reader_close(r);
    return NULL;
}

/* The tasks that are this process's own share, as threads. */
static int run_tasks(sl_cluster *c, int process, int processes) {
    pthread_t threads[WRITERS + READERS];
    task tasks[WRITERS + READERS];
    int n = 0, failed = 0;
    for (int k = 0; k < READERS + WRITERS; k++) {
        if (k % processes != process) continue;
        if (k == READERS || (n && k > READERS && tasks[n - 1].index >= WRITERS)) { /* readers hold what comes from the beginning on */
            int64_t until = sl_monotonic_ns() + INT64_C(60000000000);
            for (uint32_t r = WRITERS; r < WRITERS + READERS; r++)
                while (!sl_load_acquire(&sl_cluster_row(c, r)->progress) && sl_monotonic_ns() < until) sched_yield();
        }
        tasks[n] = (task){c, (uint64_t)(k < READERS ? WRITERS + k : k - READERS), 0};
        if (pthread_create(&threads[n], NULL, k < READERS ? reader : writer, &tasks[n]) != 0) abort();
        n++;
    }
    for (int i = 0; i < n; i++) { pthread_join(threads[i], NULL); failed |= tasks[i].failed; }
    return failed;
}

static sl_cluster *c;
static uint32_t buffers[SEGMENTS];
static uint64_t halt;
static void *look_at_limbo(void *unused) {
    (void)unused;
    uint32_t never = 0;
    while (!sl_load_acquire(&halt)) {
        for (int i = 0; i < SEGMENTS; i++) {
            sl_map *m;
            if (sl_map_get(c, buffers[i], 1, &m) < 0) continue;
            if (sl_segment_phase(m->segment) == SL_SEGMENT_LIMBO) sl_limbo_retry(c, 31, m);
            if (sl_segment_phase(m->segment) == SL_SEGMENT_FREE) sl_log_publish(c, 31, 0, 1, buffers[i]);
            sl_map_put(c, m);
        }
        sl_futex_wait(&never, 0, sl_monotonic_ns() + 1000000); /* a broker's tick */
    }
    return NULL;
}

TEST("every record of many writers reaches every reader whole, once and in its writer's order, over many lives of each segment") {
    appends = number_of("APPENDS", 1000000);
    int processes = (int)number_of("PROCESSES", 2), failed = 0;
    fixture_make();
    harness_cleanup = fixture_unlink;
    c = fixture_open();
    pthread_t broker;
    sl_store_release(&halt, 0);
    for (int i = 0; i < SEGMENTS; i++) {
        int64_t buffer = sl_segment_make(c, SEGMENT_BYTES);
        CHECK_OP(buffer, >, 0);
        buffers[i] = (uint32_t)buffer;
        if (i == 0) CHECK_EQ(sl_log_open_epoch(c, 31, 0, 1, (uint32_t)buffer, 0), 1);
        else CHECK_EQ(sl_log_publish(c, 31, 0, 1, (uint32_t)buffer), SL_OK);
    }
    int64_t begin = sl_monotonic_ns();
    if (processes == 0) {
        pthread_create(&broker, NULL, look_at_limbo, NULL);
        failed = run_tasks(c, 0, 1);
    } else {
        pid_t children[8];
        CHECK(processes <= 8);
        for (int i = 0; i < processes; i++)
            if ((children[i] = fork()) == 0) _exit(run_tasks(fixture_open(), i, processes));
        pthread_create(&broker, NULL, look_at_limbo, NULL); /* after the forks: a child has no threads of ours */
        for (int i = 0; i < processes; i++) {
            int status;
            CHECK(waitpid(children[i], &status, 0) == children[i]);
            failed |= status != 0;
        }
    }
    sl_store_release(&halt, 1);
    pthread_join(broker, NULL);
    sl_partition *p = sl_cluster_partition(c, 0);
    sl_offsets o;
    CHECK_EQ(sl_log_offsets(c, 30, 0, &o), SL_OK);
    double seconds = (double)(sl_monotonic_ns() - begin) / 1e9;
    printf("  %llu appends in %.1f s, %llu segments recycled\n", (unsigned long long)appends, seconds, (unsigned long long)p->recycled_segments);
    uint64_t recycled = p->recycled_segments;
    sl_cluster_close(c);
    fixture_unlink();
    CHECK(!failed);
    CHECK_EQ(o.end, appends);
    CHECK(recycled > 20 || appends < 1000000);
}

HARNESS_MAIN
