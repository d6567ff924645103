/* A hostile writer at the same time: one thread writes over frames, cells and words while another reads. Data races on purpose, so no TSan.
 *
 * Nothing may lead the reader outside its memory, and what a header says of a record that was delivered with its checksum verified must be what the
 * checksum covered: read once, checked, then used, however often the bytes change in between. (The value itself lies in shared memory and is whatever it is.) */
#include <pthread.h>

#include "fixture.h"
#include "harness.h"

#define WRONG_ROUNDS 200000
static sl_cluster *c;
static uint64_t halt;

static void open_partition(void) {
    fixture_make();
    harness_cleanup = fixture_unlink;
    c = fixture_open();
    sl_cluster_partition(c, 0)->flags = 0;
    int64_t buffer = sl_segment_make(c, SL_SEGMENT_MIN_BYTES);
    if (sl_log_open_epoch(c, 31, 0, 1, (uint32_t)buffer, 0) != 1) abort();
}
static void close_partition(void) {
    sl_cluster_close(c);
    fixture_unlink();
}

/* Two frames of one length, both right, that differ in all that a header says. */
static uint8_t frames[2][256] __attribute__((aligned(64)));
static uint32_t frame_bytes;
static sl_record shape(int which, const uint8_t *bytes) {
    sl_record r = {.value = bytes, .key = bytes, .key_bytes = which ? 60 : 10, .value_bytes = which ? 50 : 100, .producer_id = which ? 7 : 1000,
                   .sequence = which ? 70 : 1001, .producer_epoch = which ? 71 : 1002};
    return r;
}
static uint8_t *arena_frame(uint64_t *number, sl_map **map) {
    sl_partition *p = sl_cluster_partition(c, 0);
    *number = sl_cur_number(p->cur);
    if (sl_map_get(c, sl_log_buffer(p, *number), 1, map) < 0) abort();
    return (*map)->arena + (uint64_t)sl_cell_unit((*map)->cells[0]) * SL_UNIT_BYTES;
}

/* One right frame, then the other's header below the first one's checksum for a moment: who reads the header at one time and checks it at another is fooled. */
static void *swap_frames(void *at) {
    uint8_t *to = at;
    for (uint64_t i = 0; !sl_load_relaxed(&halt); i++) {
        const uint8_t *mine = frames[i >> 6 & 1], *other = frames[~i >> 6 & 1];
        if ((i & 63) == 0) memcpy(to, mine, frame_bytes);
        for (uint64_t k = 0; k < i % 29; k++) sl_pause();
        memcpy(to + 8, other + 8, 36);
        __asm__ __volatile__("" ::: "memory");
        for (uint64_t k = 0; k < i % 7; k++) sl_pause();
        memcpy(to + 8, mine + 8, 36);
        __asm__ __volatile__("" ::: "memory");
    }
    return NULL;
}

TEST("a header is what its checksum covered, though another thread swaps two right frames under it") {
    static uint8_t bytes[128];
    open_partition();
    int64_t n0 = 0, n1 = 0;
    for (int i = 0; i < 2; i++) {
        sl_record r = shape(i, bytes);
        int64_t bytes_built = sl_frame_build(frames[i], &r, i ? 123456 : INT64_C(0x7777777700000001), 1, 1);
        CHECK(bytes_built > 0);
        if (i) CHECK_EQ(bytes_built, frame_bytes);
        frame_bytes = (uint32_t)bytes_built;
    }
    sl_appender *a;
    sl_reader *r;
    sl_append_result result;
    sl_record first = shape(0, bytes);
    first.timestamp_ns = INT64_C(0x7777777700000001);
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), 0);
    CHECK_EQ(sl_append(a, &first, -1, SOON, &result), 0);
    CHECK_EQ(sl_reader_open(c, 1, 0, fixture_topic_id, NULL, &r), 0);
    uint64_t number;
    sl_map *m;
    uint8_t *at = arena_frame(&number, &m);
    pthread_t t;
    halt = 0;
    pthread_create(&t, NULL, swap_frames, at);
    int wrong = 0, corrupt = 0;
    int64_t until = sl_monotonic_ns() + INT64_C(60000000000);
    for (int i = 0; (i < WRONG_ROUNDS || n0 < 100 || n1 < 100) && sl_monotonic_ns() < until; i++) {
        sl_view v;
        sl_reader_seek(r, 0);
        int64_t n = sl_reader_poll(r, &v, 1, 1 << 20, 1);
        if (n == SL_E_CORRUPT) { corrupt++; continue; }
        if (n != 1) { wrong = 1000; break; }
        int which = v.timestamp_ns == 123456;
        which ? n1++ : n0++;
        if (v.key_bytes != (which ? 60 : 10) || v.value_bytes != (which ? 50 : 100) || v.producer_id != (which ? 7 : 1000)
            || v.sequence != (which ? 70 : 1001) || v.producer_epoch != (which ? 71 : 1002)
            || (!which && v.timestamp_ns != INT64_C(0x7777777700000001)) || v.value + v.value_bytes - v.key != (ptrdiff_t)frame_bytes - 44) wrong++;
    }
    sl_store_relaxed(&halt, 1);
    pthread_join(t, NULL);
    printf("  %lld of the one, %lld of the other, %d neither\n", (long long)n0, (long long)n1, corrupt);
    sl_map_put(c, m);
    sl_reader_close(r);
    sl_appender_close(a);
    close_partition();
    CHECK_EQ(wrong, 0);
    CHECK(n0 > 0 && n1 > 0);
}

/* Anything into the first segment and the partition's words: what a producer that went wild could reach. */
static sl_map *wild_map;
static void *go_wild(void *unused) {
    (void)unused;
    uint64_t state = 88172645463325252;
    sl_partition *p = sl_cluster_partition(c, 0);
    uint64_t cur = p->cur, spilled = p->spilled, start = p->log_start, dir[SL_DIR_SLOTS];
    memcpy(dir, p->dir, sizeof dir);
    static uint8_t right[SL_SEGMENT_MIN_BYTES];
    memcpy(right, wild_map->segment, wild_map->bytes);
    while (!sl_load_relaxed(&halt)) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        uint64_t *word;
        switch (state % 8) {
        case 0: word = &wild_map->cells[state >> 8 & 31]; break;
        case 1: word = (uint64_t *)((uint8_t *)wild_map->segment + ((state >> 8) % 1024 & ~UINT64_C(7))); break;
        case 2: word = &p->dir[state >> 8 & 31]; break;
        case 3: word = (state & 256) ? &p->cur : (state & 512) ? &p->log_start : &p->spilled; break;
        default: word = (uint64_t *)(wild_map->arena + ((state >> 8) % 8192 & ~UINT64_C(7)));
        }
        sl_store_relaxed(word, state >> 40 & 1 ? state : *word ^ UINT64_C(1) << (state >> 58));
        if ((state >> 20) % 16 == 0) { /* right again, so that there is something to find */
            memcpy(wild_map->segment, right, 12128); /* with its frozen header, or who has not mapped it yet never can */
            p->cur = cur, p->spilled = spilled, p->log_start = start;
            memcpy(p->dir, dir, sizeof dir);
        }
    }
    return NULL;
}

TEST("whatever a thread stores into frames, cells and words, readers and appenders of the same memory get records or codes") {
    open_partition();
    sl_appender *a;
    sl_reader *r;
    sl_append_result result;
    static uint8_t bytes[300], batch[1000];
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), 0);
    for (int i = 0; i < 24; i++) {
        sl_record rec = {.value = bytes, .value_bytes = (uint32_t)(i * 12), .key = i % 2 ? bytes : NULL, .key_bytes = i % 2 ? 5 : 0, .producer_id = i % 3 ? -1 : 5};
        if (i % 4 == 3) rec = (sl_record){.value = bytes, .value_bytes = 40, .rows = 10, .row_bytes = 4, .producer_id = -1};
        if (i % 4 == 2) {
            sl_record inner[3] = {{.value = bytes, .value_bytes = 50, .producer_id = -1}, {.key = bytes, .key_bytes = 9, .producer_id = -1}, {.producer_id = -1}};
            rec = (sl_record){.value = batch, .value_bytes = (uint32_t)sl_batch_build(batch, sizeof batch, inner, 3), .rows = 3, .kind = SL_FF_BATCH, .producer_id = -1};
        }
        CHECK_EQ(sl_append(a, &rec, -1, SOON, &result), 0);
    }
    uint64_t number;
    arena_frame(&number, &wild_map);
    CHECK_EQ(sl_reader_open(c, 1, 0, fixture_topic_id, NULL, &r), 0);
    pthread_t t;
    halt = 0;
    pthread_create(&t, NULL, go_wild, NULL);
    int64_t until = sl_monotonic_ns() + INT64_C(60000000000), records = 0, codes = 0;
    for (int i = 0; (i < WRONG_ROUNDS || !records || !codes) && sl_monotonic_ns() < until; i++) { /* until it saw both, however threads are scheduled */
        sl_view v[16];
        sl_offsets o;
        if (i % 16 == 0) sl_reader_seek(r, 0);
        int64_t n = sl_reader_poll(r, v, 16, 1 << 20, i & 1);
        if (n < 0) { codes++; sl_reader_seek(r, sl_reader_position(r) + 1); }
        for (int64_t k = 0; k < n; k++) {
            volatile uint8_t sum = 0;
            for (uint32_t b = 0; b < v[k].value_bytes && v[k].value; b++) sum = (uint8_t)(sum + v[k].value[b]);
            for (uint32_t b = 0; b < v[k].key_bytes && v[k].key; b++) sum = (uint8_t)(sum + v[k].key[b]);
            for (uint32_t b = 0; b < v[k].dtype_bytes && v[k].dtype; b++) sum = (uint8_t)(sum + v[k].dtype[b]);
            for (uint32_t b = 0; b < v[k].headers_bytes && v[k].headers; b++) sum = (uint8_t)(sum + v[k].headers[b]);
            records++;
        }
        if (i % 8 == 3) sl_log_offsets(c, 2, 0, &o);
        if (i % 8 == 5) {
            sl_record rec = {.value = bytes, .value_bytes = 20, .producer_id = -1};
            sl_cluster_partition(c, 0)->displaced = 0;
            sl_append(a, &rec, -1, 0, &result);
        }
    }
    sl_store_relaxed(&halt, 1);
    pthread_join(t, NULL);
    printf("  %lld records, %lld codes\n", (long long)records, (long long)codes);
    sl_map_put(c, wild_map);
    sl_reader_close(r);
    sl_appender_close(a);
    close_partition();
    CHECK(records > 0 && codes > 0);
}

HARNESS_MAIN
