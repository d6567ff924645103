/* Runs: what leaves a leader's files, byte for byte, and what a follower's files take in; nothing that was altered on the way, and nothing out of order. */
#include <dirent.h>
#include <sys/stat.h>

#include "harness.h"

#include "atomic.h"
#include "core.h"

static char leader[256], follower[256];
static const uint8_t cluster_id[16] = {1, 2, 3}, topic_id[16] = {7, 7, 7};

static void begin(void) {
    const char *tmp = getenv("TMPDIR");
    snprintf(leader, sizeof leader, "%s/shmlog-leader-XXXXXX", tmp ? tmp : "/tmp");
    snprintf(follower, sizeof follower, "%s/shmlog-follower-XXXXXX", tmp ? tmp : "/tmp");
    SL_ASSERT(mkdtemp(leader) && mkdtemp(follower));
}

static void end(void) {
    char command[600];
    snprintf(command, sizeof command, "rm -rf '%s' '%s'", leader, follower);
    if (system(command) != 0) fprintf(stderr, "  %s stays\n", leader);
}

/* n records whose bytes follow from their offsets, in a file of its own. Returns the end offset. */
static uint64_t write_file(uint64_t base, uint32_t epoch, uint32_t n, uint32_t value_bytes) {
    sl_file *f;
    SL_ASSERT(sl_file_create(leader, base, epoch, 3, topic_id, cluster_id, &f) == SL_OK);
    uint8_t *value = malloc(value_bytes), *frame = aligned_alloc(64, (value_bytes + 191) & ~63u);
    for (uint32_t i = 0; i < n; i++) {
        memset(value, (int)(base + i), value_bytes);
        sl_record r = {.value = value, .value_bytes = value_bytes, .producer_id = -1, .sequence = -1};
        int64_t bytes = sl_frame_build(frame, &r, 1000 + (int64_t)(base + i), 1, 0);
        sl_file_piece p = {.frame = frame, .frame_bytes = (uint32_t)bytes, .rel = i, .crc32c = sl_crc32c(0, frame, (size_t)bytes), .count = 1, .type = SL_CELL_DATA};
        SL_ASSERT(sl_file_append(f, &p, 1, base + i + 1) == SL_OK);
    }
    free(value);
    free(frame);
    SL_ASSERT(sl_file_sync(f) == SL_OK);
    sl_file_close(f);
    return base + n;
}

static int same_files(uint64_t end_offset) {
    sl_reader *a, *b;
    SL_ASSERT(sl_reader_open_files(leader, &a) == SL_OK && sl_reader_open_files(follower, &b) == SL_OK);
    uint64_t at = 0;
    int same = 1;
    while (at < end_offset && same) {
        sl_view x, y;
        int64_t n = sl_reader_poll(a, &x, 1, 1 << 20, 1), k = sl_reader_poll(b, &y, 1, 1 << 20, 1);
        same = n == 1 && k == 1 && x.offset == (int64_t)at && y.offset == x.offset && x.timestamp_ns == y.timestamp_ns && x.value_bytes == y.value_bytes &&
               x.leader_epoch == y.leader_epoch && memcmp(x.value, y.value, x.value_bytes) == 0;
        at++;
    }
    sl_reader_close(a);
    sl_reader_close(b);
    return same;
}

TEST("runs carry all files to a follower whatever the size of a message") {
    begin();
    uint64_t end_offset = write_file(0, 1, 500, 100);
    end_offset = write_file(end_offset, 1, 1, 300000);
    end_offset = write_file(end_offset, 4, 300, 700);
    for (uint64_t capacity = 3000; capacity < 2000000; capacity *= 7) {
        sl_fetch *f;
        sl_replica *r;
        char clear[300];
        snprintf(clear, sizeof clear, "rm -f '%s'/*", follower);
        CHECK(system(clear) == 0);
        CHECK_EQ(sl_fetch_open(leader, 3, topic_id, &f), SL_OK);
        CHECK_EQ(sl_replica_open(follower, 3, topic_id, cluster_id, 0, 0, 40000, &r), SL_OK);
        uint64_t at = 0, needed, room = capacity;
        uint8_t *run = aligned_alloc(64, (room + 63) & ~UINT64_C(63));
        while (at < end_offset) {
            int64_t n = sl_fetch_run(f, at, end_offset, 5, run, room, &needed);
            if (n == SL_E_TOO_BIG) {
                CHECK(needed > room);
                room = needed;
                free(run);
                run = aligned_alloc(64, (room + 63) & ~UINT64_C(63));
                continue;
            }
            CHECK(n > 0);
            uint64_t after;
            CHECK_EQ(sl_replica_append(r, run, (uint64_t)n, 5, &after), SL_OK);
            CHECK(after > at);
            CHECK_EQ(sl_replica_append(r, run, (uint64_t)n, 5, &after), SL_E_RANGE); /* the same once more */
            at = after;
        }
        CHECK_EQ(sl_fetch_run(f, at, end_offset, 5, run, room, &needed), 0);
        CHECK_EQ(sl_replica_end(r), end_offset);
        CHECK_EQ(sl_replica_sync(r), end_offset);
        sl_replica_close(r);
        sl_fetch_close(f);
        free(run);
        CHECK(same_files(end_offset));
    }
    end();
}

TEST("a follower takes nothing that was altered") {
    begin();
    uint64_t end_offset = write_file(0, 2, 20, 200), needed, after;
    sl_fetch *f;
    sl_replica *r;
    CHECK_EQ(sl_fetch_open(leader, 3, topic_id, &f), SL_OK);
    CHECK_EQ(sl_replica_open(follower, 3, topic_id, cluster_id, 0, 0, 1 << 20, &r), SL_OK);
    static _Alignas(64) uint8_t run[65536], altered[65536];
    int64_t n = sl_fetch_run(f, 0, end_offset, 2, run, sizeof run, &needed);
    CHECK(n > 0);
    sl_run h;
    memcpy(&h, run, sizeof h);
    for (int64_t i = 0; i < n; i++) {
        memcpy(altered, run, (size_t)n);
        altered[i] ^= 0x40;
        int rc = sl_replica_append(r, altered, (uint64_t)n, 2, &after);
        if (rc == SL_OK) { /* only padding, which is written as zeros */
            CHECK(same_files(end_offset));
            break;
        }
        CHECK(rc == SL_E_CORRUPT || rc == SL_E_FENCED || rc == SL_E_RANGE);
        CHECK_EQ(after, 0);
    }
    for (int64_t cut = 0; cut < n; cut += 7) {
        memcpy(altered, run, (size_t)n);
        CHECK(sl_replica_append(r, altered, (uint64_t)cut, 2, &after) < 0);
    }
    CHECK_EQ(sl_replica_append(r, run, (uint64_t)n, 3, &after), SL_E_FENCED); /* another leader epoch than the one it follows */
    sl_replica_close(r);
    sl_fetch_close(f);
    end();
}

TEST("what does not begin at the end is refused and epochs only grow") {
    begin();
    uint64_t first = write_file(0, 1, 10, 100), second = write_file(first, 3, 10, 100), needed, after;
    sl_fetch *f;
    sl_replica *r;
    CHECK_EQ(sl_fetch_open(leader, 3, topic_id, &f), SL_OK);
    CHECK_EQ(sl_replica_open(follower, 3, topic_id, cluster_id, 0, 0, 1 << 20, &r), SL_OK);
    static _Alignas(64) uint8_t run[65536];
    int64_t n = sl_fetch_run(f, first, second, 3, run, sizeof run, &needed);
    CHECK(n > 0);
    CHECK_EQ(sl_replica_append(r, run, (uint64_t)n, 3, &after), SL_E_RANGE);
    sl_replica_close(r);
    CHECK_EQ(sl_replica_open(follower, 3, topic_id, cluster_id, first, 4, 1 << 20, &r), SL_OK); /* its last file is of epoch 4 */
    n = sl_fetch_run(f, first, second, 5, run, sizeof run, &needed);
    CHECK_EQ(sl_replica_append(r, run, (uint64_t)n, 5, &after), SL_E_CORRUPT);
    sl_replica_close(r);
    sl_fetch_close(f);
    end();
}

TEST("a run says where frames begin and reads nothing above what was published") {
    begin();
    uint64_t end_offset = write_file(100, 1, 10, 100), needed;
    sl_fetch *f;
    CHECK_EQ(sl_fetch_open(leader, 3, topic_id, &f), SL_OK);
    static _Alignas(64) uint8_t run[65536];
    CHECK_EQ(sl_fetch_run(f, 5, end_offset, 1, run, sizeof run, &needed), SL_E_RANGE);
    CHECK_EQ(needed, 100);
    CHECK_EQ(sl_fetch_run(f, 100, 100, 1, run, sizeof run, &needed), 0);
    CHECK(sl_fetch_run(f, 100, 104, 1, run, sizeof run, &needed) > 0);
    sl_run h;
    memcpy(&h, run, sizeof h);
    CHECK_EQ(h.end_offset, 104);
    CHECK_EQ(h.cells, 4);
    sl_fetch_close(f);
    end();
}

HARNESS_MAIN
