/* A cluster's memory made by hand, without any of the product's processes: for tests of the core. One program, one fixture at a time. */
#ifndef FIXTURE_H
#define FIXTURE_H
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "atomic.h"
#include "core.h"

static char fixture_prefix[64];
static const uint8_t fixture_cluster_id[16] = {1, 2, 3};
static const uint8_t fixture_topic_id[16] = {7, 7, 7};

static void *fixture_object(const char *suffix, uint64_t bytes, uint32_t kind, int ready) {
    char name[128];
    snprintf(name, sizeof name, "%s.%s", fixture_prefix, suffix);
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    uint64_t table = 0; /* a table is as long as it may become, with memory for `bytes` */
    if (kind == SL_KIND_ROWS) table = SL_MAX_ROWS * sizeof(sl_row);
    if (kind == SL_KIND_WAITS) table = SL_MAX_PARTITIONS * sizeof(sl_waits);
    if (kind == SL_KIND_PARTITIONS) table = SL_MAX_PARTITIONS * sizeof(sl_partition);
    if (kind == SL_KIND_METERS) table = SL_MAX_METERS * sizeof(sl_meter);
    if (fd < 0 || posix_fallocate(fd, 0, (off_t)bytes) != 0 || (table && ftruncate(fd, (off_t)(SL_TABLE_HEADER_BYTES + table)) != 0)) { perror(name); exit(2); }
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    sl_object_format(p, bytes, kind, 0, fixture_cluster_id, "lock");
    if (kind == SL_KIND_PARTITIONS || kind == SL_KIND_WAITS || kind == SL_KIND_ROWS) {
        sl_table *t = p;
        t->allocated = 64;
        t->used = kind == SL_KIND_ROWS ? 32 : 4;
    }
    if (ready) sl_object_ready(p);
    return p;
}

/* Rows 0..31 are LIVE, partition blocks 0..3 belong to one topic. */
static void fixture_make(void) {
    snprintf(fixture_prefix, sizeof fixture_prefix, "/shmlog.%u.ctest-%d", (unsigned)geteuid(), (int)getpid());
    sl_control *control = fixture_object("control", sizeof(sl_control), SL_KIND_CONTROL, 1);
    control->cluster_state = SL_CLUSTER_UP;
    munmap(control, sizeof *control);
    uint64_t bytes = SL_TABLE_HEADER_BYTES + 64 * sizeof(sl_partition);
    sl_table *t = fixture_object("partitions", bytes, SL_KIND_PARTITIONS, 1);
    for (uint32_t b = 0; b < 4; b++) {
        sl_partition *p = (sl_partition *)((uint8_t *)t + SL_TABLE_HEADER_BYTES) + b;
        memcpy(p->topic_id, fixture_topic_id, 16);
        p->partition = b;
        p->state = SL_PARTITION_LIVE;
        p->max_message_bytes = 64 << 20;
        p->memory_bytes = 64 << 20;
        p->bell_process = 1;
    }
    munmap(t, bytes);
    bytes = SL_TABLE_HEADER_BYTES + 64 * sizeof(sl_waits);
    munmap(fixture_object("waits", bytes, SL_KIND_WAITS, 1), bytes);
    bytes = SL_TABLE_HEADER_BYTES + 64 * sizeof(sl_meter);
    t = fixture_object("meters", bytes, SL_KIND_METERS, 0);
    t->allocated = 4;
    sl_object_ready(t);
    munmap(t, bytes);
    bytes = SL_TABLE_HEADER_BYTES + 64 * sizeof(sl_row);
    t = fixture_object("rows", bytes, SL_KIND_ROWS, 1);
    for (uint32_t r = 0; r < 32; r++) {
        sl_row *row = (sl_row *)((uint8_t *)t + SL_TABLE_HEADER_BYTES) + r;
        row->state = SL_ROW_LIVE;
        row->generation = 1;
    }
    munmap(t, bytes);
}

static inline void fixture_unlink(void) {
    char name[128];
    const char *fixed[] = {"control", "partitions", "waits", "rows", "meters"};
    for (int i = 0; i < 5; i++) { snprintf(name, sizeof name, "%s.%s", fixture_prefix, fixed[i]); shm_unlink(name); }
    for (int i = 0; i < 20000; i++) { snprintf(name, sizeof name, "%s.s%d", fixture_prefix, i); shm_unlink(name); }
}

static sl_cluster *fixture_open(void) {
    sl_cluster *c;
    int rc = sl_cluster_open(fixture_prefix, &c);
    if (rc < 0) { fprintf(stderr, "sl_cluster_open: %s\n", sl_strerror(rc)); exit(2); }
    return c;
}

/* What a broker does for memory, in one turn: two segments ready, what is sealed counts as spilled. */
static inline void fixture_stock(sl_cluster *c, uint32_t row, uint32_t block, uint64_t segment_bytes, int ready) {
    sl_partition *p = sl_cluster_partition(c, block);
    sl_offsets o;
    if ((p->flags & SL_PF_SPILL) && sl_log_offsets(c, row, block, &o) == SL_OK) sl_log_advance(c, block, SL_WORD_SPILLED, p->leader_epoch, o.end);
    while (sl_log_ready(c, block) < ready) {
        if (sl_log_recycle(c, row, block) > 0) continue;
        int64_t buffer = sl_segment_make(c, segment_bytes);
        if (buffer < 0 || sl_log_publish(c, row, block, p->leader_epoch, (uint32_t)buffer) < 0) {
            if (buffer >= 0) sl_segment_unlink(c, (uint32_t)buffer);
            return;
        }
    }
}
#define NEVER INT64_C(0x7fffffffffffffff)
#define SOON (sl_monotonic_ns() + INT64_C(20000000000))
#endif
