/* One file, its three users at once: the spill thread appends, a sync thread syncs, a reader follows up to the published word. For TSan. */
#define _GNU_SOURCE
#include "atomic.h"
#include "core.h"
#include "harness.h"

#include <pthread.h>
#include <unistd.h>

#define FRAMES 20000
static char dir[64];
static sl_file *file;
static uint64_t spilled, done;

static void *syncer(void *unused) {
    (void)unused;
    while (!sl_load_acquire(&done)) {
        uint64_t promised = sl_load_acquire(&spilled);
        SL_ASSERT(sl_file_sync(file) == SL_OK);
        SL_ASSERT(sl_file_end_offset(file) >= promised);
    }
    return NULL;
}

static void *follower(void *unused) {
    (void)unused;
    sl_file_reader *r;
    sl_file_cell cells[128];
    uint64_t read = 0, needed;
    uint8_t *buffer = aligned_alloc(64, 65536);
    SL_ASSERT(sl_file_reader_open(dir, "00000000000000000000-1.log", &r) == SL_OK);
    while (read < FRAMES) {
        int64_t n = sl_file_reader_fill(r, read, sl_load_acquire(&spilled), 1, buffer, 65536, cells, 128, &needed);
        SL_ASSERT(n >= 0);
        for (int64_t i = 0; i < n; i++) {
            sl_view v;
            const uint8_t *frame = buffer + (uint64_t)(cells[i].unit - cells[0].unit) * 64;
            SL_ASSERT(sl_frame_views(frame, 128, 0, 0, &v, 1) == 1 && v.value_bytes == 8);
            SL_ASSERT(memcmp(v.value, &read, 8) == 0 && cells[i].rel == read);
            read++;
        }
    }
    sl_file_reader_close(r);
    free(buffer);
    return NULL;
}

TEST("a writer, a syncer and a reader share a file without a race") {
    static const uint8_t id[16] = {1};
    pthread_t a, b;
    uint8_t *frames = aligned_alloc(64, 64 * 64);
    sl_file_piece pieces[64];
    strcpy(dir, "/tmp/shmlog-test-file-XXXXXX");
    if (!mkdtemp(dir)) abort();
    CHECK_EQ(sl_file_create(dir, 0, 1, 0, id, id, &file), SL_OK);
    pthread_create(&a, NULL, syncer, NULL);
    pthread_create(&b, NULL, follower, NULL);
    seed_random(20240520);
    memset(frames, 0, 64 * 64);
    for (uint64_t i = 0; i < FRAMES;) {
        size_t n = 1 + random_below(64);
        if (n > FRAMES - i) n = FRAMES - i;
        for (size_t k = 0; k < n; k++) {
            uint64_t value = i + k;
            sl_record r = {.value = (uint8_t *)&value, .value_bytes = 8, .producer_id = -1};
            int64_t bytes = sl_frame_build(frames + 64 * k, &r, 1, 1, 0);
            pieces[k] = (sl_file_piece){.frame = frames + 64 * k, .frame_bytes = (uint32_t)bytes, .rel = (uint32_t)value,
                                        .crc32c = sl_crc32c(0, frames + 64 * k, (size_t)bytes), .count = 1, .type = SL_CELL_DATA};
        }
        i += n;
        SL_ASSERT(sl_file_append(file, pieces, n, i) == SL_OK);
        sl_store_release(&spilled, i);
    }
    pthread_join(b, NULL);
    sl_store_release(&done, 1);
    pthread_join(a, NULL);
    sl_file_close(file);
    size_t problems;
    int64_t n = sl_file_verify(dir, "00000000000000000000-1.log", NULL, 0, &problems);
    char name[200];
    snprintf(name, sizeof name, "%s/00000000000000000000-1.log", dir);
    unlink(name);
    snprintf(name, sizeof name, "%s/00000000000000000000-1.cells", dir);
    unlink(name);
    rmdir(dir);
    free(frames);
    CHECK_EQ(n, FRAMES);
    CHECK_EQ(problems, 0);
}

HARNESS_MAIN
