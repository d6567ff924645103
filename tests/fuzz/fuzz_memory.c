/* Shared memory as hostile input: an input is a program that stores anything anywhere in a cluster's objects (a word of its choice, a cell, a frame, a
 * directory word, a header with a right checksum), and in between attaches, reads, appends, lends, seals, recycles, fences, cleans rows and asks for offsets.
 *
 * No byte another process wrote may lead a process outside its memory or into an endless loop. All deadlines are 0, so nothing may wait.
 *
 * shm_open() is ours: the objects are memfds, so that nothing is left in /dev/shm and a name that is not there costs no system call. The cluster stays
 * attached over inputs (an operation attaches anew), its bytes are put back before each. */
#define _GNU_SOURCE
#include "fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"

#define BLOCKS 3                     /* 0: spilled, and read from its file too; 1: memory only; 2: not opened yet */
#define ROWS 8
#define SEGMENTS 5
#define MAX_OPERATIONS 64
#define PREFIX "/shmlog.0.fuzz"

static const uint8_t cluster_id[16] = {1, 2, 3}, topic_id[16] = {7, 7, 7};

/* ---- the objects ----------------------------------------------------------------------------------------------------------------------- */

/* bytes: those that hold anything; a table is longer, all zeros. */
static struct object { const char *suffix; uint64_t bytes; uint32_t kind; uint64_t length; int fd; uint8_t *at, *right; } objects[] = {
    {.suffix = "control", .bytes = sizeof(sl_control), .kind = SL_KIND_CONTROL},
    {.suffix = "partitions", .bytes = SL_TABLE_HEADER_BYTES + BLOCKS * sizeof(sl_partition), .kind = SL_KIND_PARTITIONS,
     .length = SL_TABLE_HEADER_BYTES + SL_MAX_PARTITIONS * sizeof(sl_partition)},
    {.suffix = "waits", .bytes = SL_TABLE_HEADER_BYTES + BLOCKS * sizeof(sl_waits), .kind = SL_KIND_WAITS,
     .length = SL_TABLE_HEADER_BYTES + SL_MAX_PARTITIONS * sizeof(sl_waits)},
    {.suffix = "rows", .bytes = SL_TABLE_HEADER_BYTES + ROWS * sizeof(sl_row), .kind = SL_KIND_ROWS,
     .length = SL_TABLE_HEADER_BYTES + SL_MAX_ROWS * sizeof(sl_row)},
    {.suffix = "s1", .bytes = SL_SEGMENT_MIN_BYTES, .kind = SL_KIND_SEGMENT},
    {.suffix = "s2", .bytes = SL_SEGMENT_MIN_BYTES, .kind = SL_KIND_SEGMENT},
    {.suffix = "s3", .bytes = SL_SEGMENT_MIN_BYTES, .kind = SL_KIND_SEGMENT},
    {.suffix = "s4", .bytes = SL_SEGMENT_MIN_BYTES, .kind = SL_KIND_SEGMENT},
    {.suffix = "s5", .bytes = SL_SEGMENT_MIN_BYTES, .kind = SL_KIND_SEGMENT},
};
#define OBJECTS (sizeof objects / sizeof *objects)
#define FIRST_SEGMENT 4

int shm_open(const char *name, int flags, mode_t mode) {
    (void)mode;
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < OBJECTS; i++)
        if (strcmp(dot + 1, objects[i].suffix) == 0) {
            char path[40]; /* opened anew, so that a reader's mapping is read-only */
            snprintf(path, sizeof path, "/proc/self/fd/%d", objects[i].fd);
            return open(path, flags & (O_ACCMODE | O_CLOEXEC));
        }
    errno = ENOENT;
    return -1;
}
int shm_unlink(const char *name) { (void)name; errno = ENOENT; return -1; }

static sl_cluster *cluster;
static sl_partition *partition(uint32_t b) { return (sl_partition *)(objects[1].at + SL_TABLE_HEADER_BYTES) + b; }
static sl_waits *waits(uint32_t b) { return (sl_waits *)(objects[2].at + SL_TABLE_HEADER_BYTES) + b; }
static sl_row *row(uint32_t r) { return (sl_row *)(objects[3].at + SL_TABLE_HEADER_BYTES) + r; }
static sl_segment *segment(uint32_t s) { return (sl_segment *)objects[FIRST_SEGMENT + s % SEGMENTS].at; }

static char dir[200];
static void goodbye(void) {
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.') unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    rmdir(dir);
}

static void append_some(uint32_t block, int n) {
    sl_appender *a;
    sl_append_result result;
    static uint8_t value[6000];
    MUST(sl_appender_open(cluster, 1, block, topic_id, &a) == SL_OK);
    for (int i = 0; i < n; i++) {
        sl_record r = {.value = value, .value_bytes = (uint32_t)(i * 31 % 300), .producer_id = i % 5 == 4 ? 9 : -1, .sequence = i, .timestamp_ns = 1000 + i};
        if (i % 3 == 1) r.key = (const uint8_t *)"key", r.key_bytes = 3;
        if (i % 7 == 3) r.headers = (const uint8_t *)"\1\0\1\0h\2\0\0\0hi", r.headers_bytes = 11;
        if (i % 6 == 5) r.key = NULL, r.headers = NULL, r.headers_bytes = 0, r.rows = 5, r.row_bytes = 8, r.value_bytes = 40;
        if (i % 11 == 7) r.value_bytes = sizeof value;
        static uint8_t batch[600];
        if (i % 13 == 9) {
            sl_record inner[3] = {{.value = value, .value_bytes = 5, .producer_id = -1}, {.key = value, .key_bytes = 2, .producer_id = -1}, {.producer_id = -1}};
            r = (sl_record){.value = batch, .value_bytes = (uint32_t)sl_batch_build(batch, sizeof batch, inner, 3), .rows = 3, .kind = SL_FF_BATCH, .producer_id = -1};
        }
        MUST(sl_append(a, &r, -1, 0, &result) == SL_OK);
    }
    sl_appender_close(a);
}

static void hello(void) {
    snprintf(dir, sizeof dir, "%s/fuzz-memory-XXXXXX", getenv("FUZZ_DIR") ? getenv("FUZZ_DIR") : "/dev/shm");
    if (!mkdtemp(dir)) { perror(dir); exit(2); }
    atexit(goodbye);
    for (size_t i = 0; i < OBJECTS; i++) {
        struct object *o = &objects[i];
        o->fd = memfd_create(o->suffix, MFD_CLOEXEC);
        if (!o->length) o->length = o->bytes;
        MUST(o->fd >= 0 && ftruncate(o->fd, (off_t)o->length) == 0);
        o->at = mmap(NULL, o->length, PROT_READ | PROT_WRITE, MAP_SHARED, o->fd, 0);
        MUST(o->at != MAP_FAILED);
        sl_object_format(o->at, o->bytes, o->kind, i >= FIRST_SEGMENT ? i - FIRST_SEGMENT + 1 : 0, cluster_id, "lock");
        sl_object_ready(o->at);
        if (o->kind == SL_KIND_PARTITIONS || o->kind == SL_KIND_WAITS) ((sl_table *)o->at)->allocated = ((sl_table *)o->at)->used = BLOCKS;
        if (o->kind == SL_KIND_ROWS) ((sl_table *)o->at)->allocated = ((sl_table *)o->at)->used = ROWS;
        if (o->kind == SL_KIND_SEGMENT) ((sl_segment *)o->at)->claim = sl_claim_make(SL_SEGMENT_FREE, 0, UINT32_MAX, 0);
    }
    ((sl_control *)objects[0].at)->cluster_state = SL_CLUSTER_UP;
    for (uint32_t b = 0; b < BLOCKS; b++) {
        sl_partition *p = partition(b);
        memcpy(p->topic_id, topic_id, 16);
        p->partition = b;
        p->state = SL_PARTITION_LIVE;
        p->max_message_bytes = p->memory_bytes = 1 << 20;
        p->flags = b == 0 ? SL_PF_SPILL : 0;
    }
    for (uint32_t r = 0; r < ROWS; r++) row(r)->state = SL_ROW_LIVE, row(r)->generation = 1;
    MUST(sl_cluster_open(PREFIX, &cluster) == SL_OK);

    /* Block 0: offsets 0..59 are in a file, 30.. in memory, in two segments. */
    sl_file *file;
    MUST(sl_file_create(dir, 0, 1, 0, topic_id, cluster_id, &file) == SL_OK);
    for (uint64_t i = 0; i < 60; i++) {
        uint8_t frame[64] __attribute__((aligned(64))) = {0};
        sl_record r = {.value = (uint8_t *)&i, .value_bytes = 8, .producer_id = -1};
        int64_t bytes = sl_frame_build(frame, &r, 1000 + (int64_t)i, 1, 0);
        sl_file_piece piece = {.frame = frame, .frame_bytes = (uint32_t)bytes, .rel = (uint32_t)i, .crc32c = sl_crc32c(0, frame, (size_t)bytes), .count = 1,
                               .type = SL_CELL_DATA};
        MUST(sl_file_append(file, &piece, 1, i + 1) == SL_OK);
    }
    MUST(sl_file_sync(file) == SL_OK);
    sl_file_close(file);
    MUST(sl_log_open_epoch(cluster, 0, 0, 1, 1, 30) == 1);
    MUST(sl_log_publish(cluster, 0, 0, 1, 2) == SL_OK);
    append_some(0, 20);
    MUST(sl_log_seal(cluster, 0, 0, 0) == SL_OK);
    append_some(0, 5);
    MUST(sl_log_advance(cluster, 0, SL_WORD_SPILLED, 1, 60) == SL_OK);
    MUST(sl_log_open_epoch(cluster, 0, 1, 1, 3, 0) == 1);
    MUST(sl_log_publish(cluster, 0, 1, 1, 4) == SL_OK);
    append_some(1, 20);
    MUST(sl_log_seal(cluster, 0, 1, 0) == SL_OK);
    append_some(1, 5);
    for (size_t i = 0; i < OBJECTS; i++) {
        objects[i].right = malloc(objects[i].bytes);
        memcpy(objects[i].right, objects[i].at, objects[i].bytes);
    }
}

/* ---- hostile stores -------------------------------------------------------------------------------------------------------------------- */

static void right_header(struct object *o) {
    sl_object_header *h = (sl_object_header *)o->at;
    h->header_crc = sl_crc32c(0, h, offsetof(sl_object_header, header_crc));
}

static void store_anywhere(input *in) {
    uint8_t how = take8(in);
    struct object *o = &objects[how % OBJECTS];
    uint64_t at = take_any(in) % o->bytes, v = take_any(in);
    unsigned bytes = 1u << ((how >> 4) & 3);
    at &= ~(uint64_t)(bytes - 1); /* words are stored whole: anybody may read at the same time */
    if (how & 64) { uint64_t old = 0; memcpy(&old, o->at + at, bytes); v ^= old; }
    if (how & 128) { uint64_t old = 0; memcpy(&old, o->at + at, bytes); v += old; }
    memcpy(o->at + at, &v, bytes);
}

static void store_cell(input *in) {
    sl_segment *s = segment(take8(in));
    uint32_t count, position, units;
    sl_segment_geometry(SL_SEGMENT_MIN_BYTES, &count, &position, &units);
    uint32_t i = take16(in) % count;
    uint64_t *cell = sl_segment_cells(s) + i, before = i ? cell[-1] : 0;
    uint8_t how = take8(in);
    uint32_t rel = how & 4 ? (uint32_t)take_any(in) & SL_CELL_REL_MAX : i ? sl_cell_end(before) : 0;
    uint32_t unit = how & 8 ? (uint32_t)take_any(in) & SL_CELL_UNIT_MAX : *cell ? sl_cell_unit(*cell) : 0;
    uint32_t n = how & 16 ? (uint32_t)take_any(in) & SL_CELL_MAX_COUNT : 1;
    *cell = how == 255 ? 0 : sl_cell_make(how & 3, n, rel, unit, how & 32 ? take8(in) : s->number);
}

static void store_frame(input *in) {
    sl_segment *s = segment(take8(in));
    uint8_t how = take8(in);
    uint32_t count, position, units;
    sl_segment_geometry(SL_SEGMENT_MIN_BYTES, &count, &position, &units);
    uint64_t cell = sl_segment_cells(s)[take8(in) % 40];
    uint32_t unit = cell && sl_cell_unit(cell) < units ? sl_cell_unit(cell) : units - 1, room = (units - unit) * SL_UNIT_BYTES;
    uint8_t *frame = (uint8_t *)s + position + unit * SL_UNIT_BYTES;
    sl_frame h;
    memcpy(&h, frame, sizeof h);
    if (how & 1) h.frame_bytes = (uint32_t)take_any(in);
    if (how & 2) h.key_bytes = (uint32_t)take_any(in);
    if (how & 4) h.value_bytes = (uint32_t)take_any(in);
    if (how & 8) h.flags = take16(in);
    if (how & 16) h.extension_bytes = take16(in);
    if (how & 32) for (uint32_t k = SL_FRAME_HEADER_BYTES; k < 64; k++) frame[k] = take8(in);
    memcpy(frame, &h, sizeof h);
    uint64_t end = h.flags & SL_FF_CRC_ALL ? h.frame_bytes : SL_FRAME_HEADER_BYTES + (uint64_t)h.extension_bytes;
    if (how & 64 && end >= sizeof h && end <= room) {
        h.crc32c = sl_crc32c(0, frame + 8, end - 8);
        memcpy(frame, &h, sizeof h);
    }
}

static void store_word(input *in) {
    uint8_t what = take8(in), x = take8(in);
    sl_partition *p = partition((what >> 4) % BLOCKS);
    uint64_t v = take_any(in);
    switch (what & 15) {
    case 0: p->cur = sl_cur_make(x & 3, x & 4, v); break;
    case 1: p->dir[v % SL_DIR_SLOTS] = sl_dir_make(1, v, x % 8); break;       /* some buffers are not there */
    case 2: segment(x)->base = sl_word_make((uint32_t)segment(x)->number, v); break;
    case 3: segment(x)->claim = sl_claim_make(x >> 5, 1, x & 7, v); break;
    case 4: segment(x)->hint = v; break;
    case 5: segment(x)->number = v; break;
    case 6: segment(x)->alloc_units = v; break;
    case 7: p->spilled = sl_word_make(1, v); break;
    case 8: p->log_start = sl_word_make(1, v); break;
    case 9: p->flags = x; break;
    case 10: p->state = x & 3; break;
    case 11: waits(x % BLOCKS)->tethers[v % SL_TETHERS] = sl_pin_make((uint32_t)(x & 7) + 1, v >> 4); break;
    case 12: ((uint64_t *)row(x % ROWS))[v % 11] = sl_pin_make(x >> 4, v >> 4); break;
    case 13: row(x % ROWS)->state = (uint32_t)v & 3; row(x % ROWS)->sleeping = x >> 6; break;
    case 14: ((sl_table *)objects[1 + x % 3].at)->allocated = (uint32_t)v; ((sl_table *)objects[1 + x % 3].at)->used = (uint32_t)(v >> 8); break;
    default: waits(x % BLOCKS)->data[v & 3] = waits(x % BLOCKS)->commit[v & 3] = v; p->wanted_bytes = (uint32_t)v;
    }
}

/* ---- what a process does --------------------------------------------------------------------------------------------------------------- */

static sl_reader *readers[BLOCKS];
static sl_appender *appenders[BLOCKS];
static sl_loan loan;
static uint32_t loan_block;
static int64_t leases[4];

static sl_reader *reader(uint32_t b) {
    if (!readers[b] && sl_reader_open(cluster, 2 + b, b, topic_id, b == 0 ? dir : NULL, &readers[b]) < 0) readers[b] = NULL;
    return readers[b];
}
static sl_appender *appender(uint32_t b) {
    if (!appenders[b] && sl_appender_open(cluster, 1, b, topic_id, &appenders[b]) < 0) appenders[b] = NULL;
    return appenders[b];
}

static void let_go(void) {
    if (loan.value && appenders[loan_block]) sl_loan_drop(appenders[loan_block], &loan);
    loan.value = NULL;
    for (int i = 0; i < 4; i++) { if (leases[i] > 0) sl_lease_release(cluster, 2, leases[i] - 1); leases[i] = 0; }
    for (uint32_t b = 0; b < BLOCKS; b++) {
        if (readers[b]) sl_reader_close(readers[b]);
        if (appenders[b]) sl_appender_close(appenders[b]);
        readers[b] = NULL;
        appenders[b] = NULL;
    }
}

/* What a view names lies in one segment, or in memory of this process's own (which the sanitizer knows). */
static void look(const uint8_t *p, uint64_t bytes) {
    if (!p) return;
    for (uint32_t s = 1; s <= SEGMENTS; s++) {
        sl_map *m;
        if (sl_map_get(cluster, s, 0, &m) < 0) continue;
        const uint8_t *from = (const uint8_t *)m->segment;
        if (p >= from && p < from + m->bytes) INSIDE(p, bytes, from, m->bytes);
        sl_map_put(cluster, m);
    }
    touch(p, bytes);
}

static void poll(input *in, uint32_t b) {
    sl_view v[40];
    uint8_t how = take8(in);
    sl_reader *r = reader(b);
    if (!r) return;
    for (int turn = 0; turn < 4; turn++) {
        uint64_t before = sl_reader_position(r);
        int64_t n = sl_reader_poll(r, v, 1 + how % 40, how & 64 ? 64 : 1 << 20, how & 128);
        MUST(n <= 40);
        if (n <= 0) break;
        for (int64_t i = 0; i < n; i++) {
            MUST((uint64_t)v[i].offset >= before && (i == 0 || v[i].offset > v[i - 1].offset));
            look(v[i].key, v[i].key_bytes);
            look(v[i].value, v[i].value_bytes);
            look(v[i].headers, v[i].headers_bytes);
            look(v[i].dtype, v[i].dtype_bytes);
        }
        MUST(sl_reader_position(r) > (uint64_t)v[n - 1].offset);
    }
    if (how & 32 && leases[how & 3] == 0) { int64_t lease = sl_reader_lease(r); if (lease >= 0) leases[how & 3] = lease + 1; }
    else if (how & 16) sl_reader_done(r);
}

static void append(input *in, uint32_t b) {
    static uint8_t value[65536];
    uint8_t how = take8(in);
    sl_append_result result = {0};
    sl_appender *a = appender(b);
    if (!a) return;
    sl_record r = {.value = value, .value_bytes = how & 1 ? take16(in) : take8(in), .producer_id = -1, .timestamp_ns = how};
    if (how & 2) r.rows = 1 + take16(in) % 17000, r.row_bytes = 2, r.value_bytes = 2 * r.rows;
    int64_t expected = how & 4 ? (int64_t)take_any(in) & INT64_MAX : -1;
    if (partition(b)->displaced > 2) partition(b)->displaced = 2; /* each doubles a wait, up to half a second: bounded, but not for a fuzzer */
    if (how & 8 && !loan.value) {
        if (sl_loan_take(a, &r, 0, &loan, &result) == SL_OK) {
            loan_block = b;
            memset(loan.value, how, r.value_bytes);
            r.value = NULL;
            if (how & 16) r.value_bytes /= 2;
            if (how & 32) sl_loan_publish(a, &loan, &r, expected, 0, &result);
        }
        return;
    }
    for (uint32_t n = how & 64 ? 1 + take8(in) : 1; n; n--)
        if (sl_append(a, &r, expected, 0, &result) < 0) break;
}

static void attach_again(input *in) {
    sl_cluster *c;
    let_go();
    if (take8(in) & 1) for (size_t i = 0; i < OBJECTS; i++) right_header(&objects[i]);
    sl_cluster_close(cluster);
    if (sl_cluster_open(PREFIX, &c) < 0) { /* refused; then with right headers */
        for (size_t i = 0; i < 4; i++) memcpy(objects[i].at, objects[i].right, sizeof(sl_object_header));
        MUST(sl_cluster_open(PREFIX, &c) == SL_OK);
    }
    cluster = c;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size};
    if (!cluster) hello();
    for (size_t i = 0; i < OBJECTS; i++) {
        struct object *o = &objects[i];
        if (o->length > o->bytes && ((sl_table *)o->at)->allocated != ((sl_table *)o->right)->allocated) /* what lies behind may have been written */
            MUST(fallocate(o->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)((o->bytes + 4095) & ~UINT64_C(4095)), (off_t)o->length) == 0);
        memcpy(o->at, o->right, o->bytes);
        if (o->bytes % 4096 && o->length > o->bytes) memset(o->at + o->bytes, 0, 4096 - o->bytes % 4096);
    }
    for (int op = 0; op < MAX_OPERATIONS && in.left; op++) {
        uint8_t what = take8(&in);
        uint32_t b = (what >> 5) % BLOCKS;
        sl_offsets offsets;
        int64_t found;
        switch (what & 31) {
        case 0: case 1: case 2: poll(&in, b); break;
        case 3: if (reader(b)) sl_reader_seek(readers[b], take_any(&in)); break;
        case 4: case 5: append(&in, b); break;
        case 6: case 7: store_anywhere(&in); break;
        case 8: case 9: store_cell(&in); break;
        case 10: case 11: store_frame(&in); break;
        case 12: case 13: case 14: store_word(&in); break;
        case 15: sl_log_offsets(cluster, what & 128 ? UINT32_MAX : 0, b, &offsets); break;
        case 16: sl_log_seal(cluster, 0, b, take8(&in)); break;
        case 17: sl_log_recycle(cluster, 0, b); break;
        case 18: sl_log_takeout(cluster, 0, b); break;
        case 19: { uint8_t x = take8(&in); sl_log_publish(cluster, 0, b, x >> 4, x & 7); break; }
        case 20: sl_log_fence(cluster, 0, b, take8(&in)); break;
        case 21: { uint8_t x = take8(&in); sl_log_open_epoch(cluster, 0, b, x >> 4, x & 7, take_any(&in)); break; }
        case 22: { uint8_t x = take8(&in); sl_log_advance(cluster, b, x % 7, x >> 4, take_any(&in)); break; }
        case 23: { uint8_t x = take8(&in); row(x % ROWS)->state = SL_ROW_DEAD; sl_row_clean(cluster, x); break; }
        case 24: if (loan.value && appenders[loan_block]) sl_loan_drop(appenders[loan_block], &loan); break;
        case 25: { uint8_t x = take8(&in); if (leases[x & 3]) sl_lease_release(cluster, 2, leases[x & 3] - 1); leases[x & 3] = 0; break; }
        case 26: if (reader(b)) sl_reader_tether(readers[b], what >> 7); break;
        case 27:
            if (!reader(b)) break;
            sl_readers_wait(cluster, 2 + b, &readers[b], 1, 0, 0);
            if (sl_readers_arm(cluster, 2 + b, &readers[b], 1) == 0) sl_readers_disarm(cluster, 2 + b, &readers[b], 1);
            break;
        case 28: if (reader(b)) sl_reader_offset_for_time(readers[b], (int64_t)take_any(&in), &found); break;
        case 29: sl_wait_durable(cluster, 7, b, topic_id, take_any(&in), 0); sl_wait_committed(cluster, 7, b, topic_id, take_any(&in), 0); break;
        case 30: {
            sl_map *m;
            uint8_t x = take8(&in);
            if (sl_map_get(cluster, x % 8, 1, &m) < 0) break;
            if (x & 8) sl_limbo_retry(cluster, 0, m); else sl_segment_audit(cluster, 0, b, m);
            sl_map_put(cluster, m);
            break;
        }
        default:
            if (what & 128) attach_again(&in);
            else { sl_wake_all(cluster, what & 64 ? UINT32_MAX : b); sl_bits_sweep(cluster, waits(b)->data); sl_row_wakeup(cluster, take8(&in)); }
        }
    }
    let_go();
    return 0;
}
