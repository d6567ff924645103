/* Meters: what readers leave behind for `shmlog top`. */
#include "fixture.h"
#include "harness.h"
#include "log.h"

#include <sys/wait.h>

static sl_cluster *cluster;
static sl_appender *appender;

static void begin(void) {
    harness_cleanup = fixture_unlink;
    fixture_make();
    cluster = fixture_open();
    int64_t buffer = sl_segment_make(cluster, 1 << 20);
    CHECK(buffer > 0);
    for (uint32_t b = 0; b < 2; b++) {
        sl_cluster_partition(cluster, b)->leader_epoch = 1;
        if (b) buffer = sl_segment_make(cluster, 1 << 20);
        CHECK_EQ(sl_log_open_epoch(cluster, 0, b, 1, (uint32_t)buffer, 0), 1);
    }
    CHECK_EQ(sl_appender_open(cluster, 1, 0, fixture_topic_id, &appender), SL_OK);
}
static void end(void) {
    sl_appender_close(appender);
    sl_cluster_close(cluster);
    fixture_unlink();
}
static void append(int64_t age_ns) {
    sl_record r = {.value = (const uint8_t *)"x", .value_bytes = 1, .producer_id = -1, .timestamp_ns = sl_wall_ns() - age_ns};
    sl_append_result result;
    CHECK_EQ(sl_append(appender, &r, -1, 0, &result), SL_OK);
}
static sl_reader *reader_of(uint32_t row, uint32_t block) {
    sl_reader *r;
    CHECK_EQ(sl_reader_open(cluster, row, block, fixture_topic_id, NULL, &r), SL_OK);
    return r;
}
static uint64_t total(const sl_meter *m) {
    uint64_t n = 0;
    for (int b = 0; b < SL_METER_BUCKETS; b++) n += m->counts[b];
    return n;
}

TEST("each age falls into the bucket whose bounds hold it, and buckets are at most a quarter wide") {
    for (uint32_t b = 1; b + 1 < SL_METER_BUCKETS; b++) {
        int64_t low = sl_meter_bound_ns(b), high = sl_meter_bound_ns(b + 1);
        CHECK(low < high && high - low <= low / 4);
        CHECK_EQ(sl_meter_bucket(low), b);
        CHECK_EQ(sl_meter_bucket(high - 1), b);
    }
    CHECK_EQ(sl_meter_bucket(-5), 0);
    CHECK_EQ(sl_meter_bucket(127), 0);
    CHECK_EQ(sl_meter_bucket(INT64_MAX), SL_METER_BUCKETS - 1);
}

TEST("a reader's meter says where it is, how many it read and how old they were, and is free after it") {
    begin();
    sl_view views[256];
    sl_reader *r = reader_of(2, 0);
    CHECK_EQ(sl_reader_poll(r, views, 256, 1 << 20, 0), 0);
    CHECK_EQ(sl_meters_taken(cluster), 0); /* it has read nothing */
    for (int i = 0; i < 100; i++) append(INT64_C(1000000000));
    CHECK_EQ(sl_reader_poll(r, views, 256, 1 << 20, 0), 100);
    sl_meter *m = sl_cluster_meter(cluster, 0);
    CHECK_EQ(m->owner, (UINT64_C(3) << 32) | 0);
    CHECK(m->position == 100 && m->records == 100 && total(m) == 1);
    uint64_t old = 0;
    for (uint32_t b = sl_meter_bucket(INT64_C(1000000000)); b < SL_METER_BUCKETS; b++) old += m->counts[b];
    CHECK_EQ(old, 1);
    for (int i = 0; i < 64; i++) { append(0); CHECK_EQ(sl_reader_poll(r, views, 256, 1 << 20, 0), 1); }
    CHECK(m->position == 164 && m->records == 164 && total(m) == 1 + 64 / 16); /* one at a time: a clock in 16 polls */
    sl_reader_close(r);
    CHECK_EQ(sl_meters_taken(cluster), 0);
    end();
}

TEST("a dead row's meters are free again, others stay, and a new owner begins with none of the old counts") {
    begin();
    sl_view views[256];
    for (int i = 0; i < 100; i++) append(0);
    pid_t child = fork();
    if (child == 0) { /* dies with its meter */
        cluster = fixture_open();
        _exit(sl_reader_poll(reader_of(2, 0), views, 256, 1 << 20, 0) == 100 ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    sl_reader *b = reader_of(3, 0);
    CHECK_EQ(sl_reader_poll(b, views, 256, 1 << 20, 0), 100);
    CHECK_EQ(sl_meters_taken(cluster), 2);
    sl_row_clean(cluster, 2);
    CHECK_EQ(sl_meters_taken(cluster), 1);
    uint32_t claims = sl_cluster_meter(cluster, 0)->claims;
    sl_reader *c = reader_of(4, 0);
    sl_reader_seek(c, 99);
    CHECK_EQ(sl_reader_poll(c, views, 256, 1 << 20, 0), 1);
    sl_meter *m = sl_cluster_meter(cluster, 0);
    CHECK(m->owner >> 32 == 5 && m->claims == claims + 1 && m->records == 1 && total(m) == 1);
    sl_reader_close(b);
    sl_reader_close(c);
    end();
}

TEST("where no meter is free, or there are none at all, reading goes on") {
    begin();
    sl_view views[256];
    for (int i = 0; i < 10; i++) append(0);
    sl_reader *r[6];
    for (int i = 0; i < 6; i++) { /* four are allocated */
        r[i] = reader_of((uint32_t)(10 + i), 0);
        CHECK_EQ(sl_reader_poll(r[i], views, 256, 1 << 20, 0), 10);
        CHECK_EQ(sl_meters_taken(cluster), i < 4 ? i + 1 : 4);
    }
    for (int i = 0; i < 6; i++) sl_reader_close(r[i]);
    char name[128];
    snprintf(name, sizeof name, "%s.meters", fixture_prefix);
    shm_unlink(name);
    sl_cluster *without = fixture_open();
    sl_reader *plain;
    CHECK_EQ(sl_cluster_meters(without), 0);
    CHECK_EQ(sl_reader_open(without, 2, 0, fixture_topic_id, NULL, &plain), SL_OK);
    CHECK_EQ(sl_reader_poll(plain, views, 256, 1 << 20, 0), 10);
    sl_reader_close(plain);
    sl_cluster_close(without);
    end();
}
HARNESS_MAIN
