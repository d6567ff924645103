/* Segment files: what was appended is read back, what the disk or a kill cut off is cut cleanly, what is damaged is told and never delivered.
 *
 * tests/golden/ holds files of disk version 1 that every later version must read: ./test_file --write-golden <dir> made them. */
#define _GNU_SOURCE
#include "atomic.h"
#include "core.h"
#include "harness.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define TS INT64_C(1700000000000000000)
#define BASE 1000

static const uint8_t topic[16] = "topic id 16 byte", cluster[16] = "cluster id 16 by";
static char dir[64];
static const char *const log_name = "00000000000000001000-7.log", *const cells_name = "00000000000000001000-7.cells";

/* ---- directories and bytes ---- */

static const char *path(const char *name) {
    static char p[2][400];
    static int turn;
    turn = !turn;
    snprintf(p[turn], sizeof p[turn], "%s/%s", dir, name);
    return p[turn];
}
static void remove_dir(void) {
    DIR *d = dir[0] ? opendir(dir) : NULL;
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) if (e->d_name[0] != '.') unlink(path(e->d_name));
    closedir(d);
    rmdir(dir);
    dir[0] = 0;
}
static void fresh_dir(void) {
    static int registered;
    if (!registered++) atexit(remove_dir);
    remove_dir();
    strcpy(dir, "/tmp/shmlog-test-file-XXXXXX");
    if (!mkdtemp(dir)) abort();
}
static uint8_t *slurp(const char *file, size_t *n) {
    int fd = open(file, O_RDONLY);
    struct stat s;
    *n = 0;
    if (fd < 0 || fstat(fd, &s) != 0) return NULL;
    uint8_t *b = malloc((size_t)s.st_size + 1);
    *n = (size_t)s.st_size;
    if (pread(fd, b, *n, 0) != (ssize_t)*n) abort();
    close(fd);
    return b;
}
static void spit(const char *file, const void *b, size_t n) {
    int fd = open(file, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || pwrite(fd, b, n, 0) != (ssize_t)n) abort();
    close(fd);
}
static void scribble(const char *file, uint64_t at, uint8_t mask) {
    int fd = open(file, O_RDWR);
    uint8_t b;
    if (fd < 0 || pread(fd, &b, 1, (off_t)at) != 1) abort();
    b ^= mask;
    if (pwrite(fd, &b, 1, (off_t)at) != 1) abort();
    close(fd);
}
static uint64_t file_size(const char *file) {
    struct stat s;
    return stat(file, &s) == 0 ? (uint64_t)s.st_size : UINT64_MAX;
}

/* ---- frames ---- */

/* The log of these tests: record i of the log is determined by i alone. Every 17th frame is an array of 5 rows, every 23rd is large with an
 * uncovered payload. */
typedef struct run { uint8_t *bytes; sl_file_piece *pieces; size_t n; uint64_t end_offset; uint8_t **alone; } run;

static uint8_t payload_byte(uint64_t frame, uint64_t at) { return (uint8_t)(frame * 31 + at * 7 + 3); }

static uint32_t frame_value_bytes(uint64_t frame) { return frame % 23 == 22 ? 5000 : frame % 17 == 16 ? 100 : (uint32_t)(frame * 13 % 190); }

/* Frames [first, first + n), offsets from `offset` on; together in one buffer, or each in memory of its own. */
static run make_run(uint64_t first, size_t n, uint64_t offset, int together) {
    run r = {.n = n, .pieces = calloc(n ? n : 1, sizeof(sl_file_piece)), .alone = calloc(n ? n : 1, sizeof(uint8_t *))};
    uint8_t *b = aligned_alloc(64, n * 5248 + 64), *at = b;
    memset(b, 0, n * 5248 + 64);
    uint8_t value[5000];
    for (size_t i = 0; i < n; i++) {
        uint64_t f = first + i;
        uint32_t bytes = frame_value_bytes(f), rows = f % 17 == 16 && f % 23 != 22 ? 5 : 1;
        for (uint32_t k = 0; k < bytes; k++) value[k] = payload_byte(f, k);
        sl_record rec = {.value = value, .value_bytes = bytes, .producer_id = -1};
        if (rows > 1) rec.rows = rows, rec.row_bytes = bytes / rows;
        int64_t size = sl_frame_build(at, &rec, TS + (int64_t)f * 1000, 1, 0);
        if (size < 0) abort();
        if (!together) {
            r.alone[i] = malloc((size_t)size + 8);
            memcpy(r.alone[i] + 8, at, (size_t)size);
        }
        const uint8_t *frame = together ? at : r.alone[i] + 8;
        r.pieces[i] = (sl_file_piece){.frame = frame, .frame_bytes = (uint32_t)size, .rel = (uint32_t)(offset - BASE), .crc32c = sl_crc32c(0, frame, (size_t)size),
                                      .count = (uint16_t)rows, .type = SL_CELL_DATA};
        offset += rows;
        if (together) at += (size + 63) / 64 * 64;
    }
    r.bytes = b;
    r.end_offset = offset;
    return r;
}
static void free_run(run *r) {
    for (size_t i = 0; i < r->n; i++) free(r->alone[i]);
    free(r->alone);
    free(r->pieces);
    free(r->bytes);
}
static uint64_t offset_of_frame(uint64_t frame) {
    uint64_t offset = BASE;
    for (uint64_t f = 0; f < frame; f++) offset += f % 17 == 16 && f % 23 != 22 ? 5 : 1;
    return offset;
}
static uint64_t position_of_frame(uint64_t frame) {
    uint64_t position = 256;
    for (uint64_t f = 0; f < frame; f++) {
        uint32_t v = frame_value_bytes(f);
        uint64_t bytes = f % 23 == 22 ? 64 + v : f % 17 == 16 ? 64 + v : 28 + v;
        position += (bytes + 63) / 64 * 64;
    }
    return position;
}

static sl_file *create(void) {
    sl_file *f;
    fresh_dir();
    CHECK_EQ(sl_file_create(dir, BASE, 7, 3, topic, cluster, &f), SL_OK);
    return f;
}
static int append(sl_file *f, uint64_t first, size_t n, int together) {
    run r = make_run(first, n, sl_file_end_offset(f), together);
    int code = sl_file_append(f, r.pieces, n, r.end_offset);
    free_run(&r);
    return code;
}
/* A closed file of n frames of which the first `synced` were synced. */
static void make_file(size_t synced, size_t n) {
    sl_file *f = create();
    if (synced) CHECK_EQ(append(f, 0, synced, 1), SL_OK);
    CHECK_EQ(sl_file_sync(f), SL_OK);
    if (n > synced) CHECK_EQ(append(f, synced, n - synced, 1), SL_OK);
    sl_file_close(f);
}

/* Frame `f` of the log, byte for byte. */
static int is_frame(const uint8_t *frame, uint64_t f) {
    sl_view v[8];
    uint32_t rows = f % 17 == 16 && f % 23 != 22 ? 5 : 1, bytes = frame_value_bytes(f), at = 0, frame_bytes;
    memcpy(&frame_bytes, frame, 4);
    if (sl_frame_rows(frame) != rows || sl_frame_views(frame, frame_bytes, 0, 0, v, 8) != rows) return 0;
    if (v[0].timestamp_ns != TS + (int64_t)f * 1000) return 0;
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t k = 0; k < v[i].value_bytes; k++) if (v[i].value[k] != payload_byte(f, at++)) return 0;
    return at == bytes;
}

/* Reads frames [from, ...) until the end or an error; checks every byte; returns how many, *code why it stopped. */
static uint64_t read_frames(sl_file_reader *r, uint64_t from, uint64_t end_offset, uint64_t capacity, int *code) {
    uint8_t *buffer = aligned_alloc(64, (capacity + 63) / 64 * 64);
    sl_file_cell cells[100];
    uint64_t n = 0, needed;
    for (;;) {
        int64_t got = sl_file_reader_fill(r, from + n, end_offset, 1, buffer, capacity, cells, 100, &needed);
        if (got == SL_E_TOO_BIG) {
            CHECK_OP(needed, >, capacity);
            capacity = needed;
            free(buffer);
            buffer = aligned_alloc(64, needed);
            continue;
        }
        if (got <= 0) {
            *code = (int)got;
            free(buffer);
            return n;
        }
        for (int64_t i = 0; i < got; i++) {
            CHECK(is_frame(buffer + (uint64_t)(cells[i].unit - cells[0].unit) * 64, from + n + (uint64_t)i));
            CHECK_EQ(BASE + cells[i].rel, offset_of_frame(from + n + (uint64_t)i));
        }
        n += (uint64_t)got;
    }
}
static void check_reads(uint64_t frames) {
    sl_file_reader *r;
    int code;
    CHECK_EQ(sl_file_reader_open(dir, log_name, &r), SL_OK);
    CHECK_EQ(read_frames(r, 0, UINT64_MAX, 65536, &code), frames);
    CHECK_EQ(code, 0);
    sl_file_reader_close(r);
}
static void check_clean(uint64_t frames) {
    sl_file_problem p[4];
    size_t problems;
    int64_t n = sl_file_verify(dir, log_name, p, 4, &problems);
    if (problems) FAIL("verify: %zu problems, first at %llu: %s", problems, (unsigned long long)p[0].position, p[0].what);
    CHECK_EQ(n, frames);
    sl_file_facts facts;
    CHECK_EQ(sl_file_inspect(dir, log_name, &facts), SL_OK);
    CHECK_EQ(facts.end_offset, offset_of_frame(frames));
    CHECK_EQ(facts.cells, frames);
    CHECK_EQ(facts.log_bytes, position_of_frame(frames));
    CHECK_EQ(facts.max_timestamp_ns, frames ? TS + (int64_t)(frames - 1) * 1000 : -1);
}
/* Recovers; then all must be clean and a second recovery change nothing. */
static void check_recovers(uint64_t frames) {
    uint64_t cut;
    size_t n1, n2, m1, m2;
    CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, &cut), offset_of_frame(frames));
    check_clean(frames);
    check_reads(frames);
    uint8_t *a = slurp(path(log_name), &n1), *b = slurp(path(cells_name), &m1);
    CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, &cut), offset_of_frame(frames));
    CHECK_EQ(cut, 0);
    uint8_t *c = slurp(path(log_name), &n2), *d = slurp(path(cells_name), &m2);
    CHECK_EQ(n1, n2);
    CHECK_EQ(m1, m2);
    CHECK_BYTES(a, c, n1);
    CHECK_BYTES(b, d, m1);
    free(a), free(b), free(c), free(d);
}

/* ---- writing ---- */

TEST("a new file is named for its offset and epoch, private, and made once") {
    sl_file *f = create(), *again;
    struct stat s;
    CHECK_EQ(stat(path(log_name), &s), 0);
    CHECK_EQ(s.st_mode & 0777, 0600);
    CHECK_EQ(s.st_size, 256);
    CHECK_EQ(file_size(path(cells_name)), 4096);
    CHECK_EQ(sl_file_create(dir, BASE, 7, 3, topic, cluster, &again), SL_E_SYS);
    CHECK_EQ(sl_last_errno(), EEXIST);
    CHECK_EQ(sl_file_create("/nowhere/at/all", BASE, 7, 3, topic, cluster, &again), SL_E_NOENT);
    CHECK_EQ(sl_file_base_offset(f), BASE);
    CHECK_EQ(sl_file_end_offset(f), BASE);
    CHECK_EQ(sl_file_bytes(f), 256);
    sl_file_close(f);
    sl_file_facts facts;
    CHECK_EQ(sl_file_inspect(dir, log_name, &facts), SL_OK);
    CHECK_EQ(facts.partition, 3);
    CHECK_EQ(facts.leader_epoch, 7);
    CHECK_EQ(facts.disk_version, 1);
    CHECK_BYTES(facts.topic_id, topic, 16);
    check_clean(0);
    check_recovers(0);
}

TEST("frames come back whether they lay together or apart, in calls of any size") {
    uint8_t *logs[2], *cells[2];
    size_t n[2], m[2];
    for (int together = 0; together < 2; together++) {
        sl_file *f = create();
        uint64_t done = 0;
        for (size_t size = 1; done < 1800; size = size * 3 + 1) {
            if (size > 1800 - done) size = 1800 - done;
            CHECK_EQ(append(f, done, size, together), SL_OK);
            done += size;
        }
        CHECK_EQ(sl_file_append(f, NULL, 0, sl_file_end_offset(f)), SL_OK);
        CHECK_EQ(sl_file_end_offset(f), offset_of_frame(1800));
        CHECK_EQ(sl_file_bytes(f), position_of_frame(1800));
        CHECK_EQ(sl_file_sync(f), SL_OK);
        sl_file_close(f);
        check_clean(1800);
        check_reads(1800);
        logs[together] = slurp(path(log_name), &n[together]);
        cells[together] = slurp(path(cells_name), &m[together]);
    }
    CHECK_EQ(n[0], n[1]);
    CHECK_EQ(m[0], m[1]);
    CHECK_BYTES(logs[0] + 256, logs[1] + 256, n[0] - 256);
    CHECK_BYTES(cells[0] + 4096, cells[1] + 4096, m[0] - 4096);
    for (int i = 0; i < 2; i++) free(logs[i]), free(cells[i]);
}

TEST("pieces that do not follow are refused before a byte is written") {
    sl_file *f = create();
    run r = make_run(0, 20, BASE, 1);
    CHECK_EQ(sl_file_append(f, r.pieces, 20, r.end_offset + 1), SL_E_INVALID);
    CHECK_EQ(sl_file_append(f, r.pieces + 1, 19, r.end_offset), SL_E_INVALID);
    r.pieces[3].rel++;
    CHECK_EQ(sl_file_append(f, r.pieces, 20, r.end_offset), SL_E_INVALID);
    r.pieces[3].rel--;
    r.pieces[5].frame_bytes = 20;
    CHECK_EQ(sl_file_append(f, r.pieces, 20, r.end_offset), SL_E_INVALID);
    CHECK_EQ(file_size(path(log_name)), 256);
    CHECK_EQ(file_size(path(cells_name)), 4096);
    free_run(&r);
    sl_file_close(f);
}

TEST("a full disk takes nothing of the call back into the log, and goes on when there is room") {
    struct rlimit old, small;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    for (int which = 0; which < 2; which++) {
        sl_file *f = create();
        CHECK_EQ(append(f, 0, 300, 1), SL_OK);
        /* the .log stops in the middle of the call; or, with tiny frames, the .cells does */
        uint64_t log_before = file_size(path(log_name)), cells_before = file_size(path(cells_name));
        small = old;
        small.rlim_cur = log_before + 20000;
        setrlimit(RLIMIT_FSIZE, &small);
        int code = append(f, 300, which ? 1800 : 200, which);
        setrlimit(RLIMIT_FSIZE, &old);
        CHECK_EQ(code, SL_E_DISK_FULL);
        CHECK_EQ(file_size(path(log_name)), log_before);
        CHECK_EQ(file_size(path(cells_name)), cells_before);
        CHECK_EQ(sl_file_end_offset(f), offset_of_frame(300));
        CHECK_EQ(append(f, 300, 1000, 1), SL_OK);
        CHECK_EQ(sl_file_sync(f), SL_OK);
        sl_file_close(f);
        check_clean(1300);
    }
}

static int fd_of(const char *name) {
    char link[64], target[400];
    for (int fd = 3; fd < 256; fd++) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, target, sizeof target - 1);
        if (n <= 0) continue;
        target[n] = 0;
        if (strcmp(target, path(name)) == 0) return fd;
    }
    return -1;
}
/* The file's descriptor becomes one on which pread() fails. */
static void break_reads(const char *name) {
    int fd = fd_of(name), ends[2];
    CHECK_OP(fd, >=, 0);
    if (pipe(ends) != 0 || dup2(ends[0], fd) < 0) abort();
    close(ends[0]);
    close(ends[1]);
}

TEST("a failed sync is never forgotten") {
    for (int which = 0; which < 2; which++) {
        sl_file *f = create();
        CHECK_EQ(append(f, 0, 10, 1), SL_OK);
        CHECK_EQ(sl_file_sync(f), SL_OK);
        CHECK_EQ(append(f, 10, 10, 1), SL_OK);
        int fd = fd_of(which ? cells_name : log_name), kept = dup(fd);
        close(fd); /* fdatasync() fails */
        CHECK_EQ(sl_file_sync(f), SL_E_IO);
        dup2(kept, fd); /* the disk is well again */
        close(kept);
        CHECK_EQ(sl_file_sync(f), SL_E_IO);
        CHECK_EQ(append(f, 20, 10, 1), SL_E_IO);
        sl_file_close(f);
        check_recovers(20);
    }
}

TEST("an I/O error while reading is a code, and no reason to cut") {
    make_file(300, 300);
    sl_file_reader *r;
    int code;
    CHECK_EQ(sl_file_reader_open(dir, log_name, &r), SL_OK);
    break_reads(log_name);
    CHECK_EQ(read_frames(r, 0, UINT64_MAX, 65536, &code), 0);
    CHECK_EQ(code, SL_E_IO);
    sl_file_reader_close(r);
    check_clean(300);
}

/* ---- recovery ---- */

TEST("recovery of a clean file changes nothing") {
    make_file(600, 700);
    check_clean(700);
    check_recovers(700);
}

TEST("a torn tail is cut behind the last whole frame, wherever it tore") {
    make_file(0, 300);
    size_t n, m;
    uint8_t *log = slurp(path(log_name), &n), *cells = slurp(path(cells_name), &m);
    seed_random(20240511);
    for (int i = 0; i < 150; i++) {
        uint64_t keep = i < 40 ? n - (uint64_t)i : 256 + random_below(n - 256), whole = 0, cut;
        while (whole < 300) {
            uint32_t frame_bytes;
            uint64_t at = position_of_frame(whole);
            memcpy(&frame_bytes, log + at, 4);
            if (at + frame_bytes > keep) break;
            whole++;
        }
        spit(path(log_name), log, keep);
        spit(path(cells_name), cells, m);
        CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, &cut), offset_of_frame(whole));
        check_clean(whole);
        if (i % 10 == 0) check_recovers(whole);
    }
    free(log), free(cells);
}

TEST("the cell table is made again when missing, damaged, short or too long") {
    make_file(700, 800);
    size_t n, m;
    uint8_t *cells = slurp(path(cells_name), &m), *longer = calloc(1, m + 9000);
    unlink(path(cells_name));
    check_recovers(800);
    uint8_t *again = slurp(path(cells_name), &n);
    CHECK_EQ(n, m);
    CHECK_BYTES(again + 4096, cells + 4096, m - 4096);
    free(again);

    spit(path(cells_name), cells, m);
    scribble(path(cells_name), 8, 0xff); /* version: its CRC is wrong too */
    scribble(path(cells_name), 9, 0);
    CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, NULL), SL_E_VERSION); /* a later version's table is not ours to touch */
    spit(path(cells_name), cells, m);
    scribble(path(cells_name), 20, 1);
    check_recovers(800);

    memcpy(longer, cells, m);
    memset(longer + m, 0x11, 9000);
    spit(path(cells_name), longer, m + 9000);
    check_recovers(800);

    for (size_t keep = 0; keep < m; keep += 1111) { /* below the mark of the last recovery everything is believed */
        spit(path(cells_name), again = slurp(path(cells_name), &n), keep);
        free(again);
        check_recovers(800);
    }
    for (int i = 0; i < 40; i++) { /* any damage in the table */
        scribble(path(cells_name), 4096 + random_below(m - 4096), 0x40);
        CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, NULL), offset_of_frame(800));
        check_reads(800);
        spit(path(cells_name), cells, m);
    }
    free(cells), free(longer);
}

TEST("damage above the mark of the last sync is cut, below it is kept and told") {
    uint64_t cut;
    make_file(400, 700);
    uint64_t at = position_of_frame(520);
    scribble(path(log_name), at + 40, 4);
    CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, &cut), offset_of_frame(520));
    CHECK_EQ(cut, position_of_frame(700) - at);
    check_clean(520);

    for (uint64_t f = 0; f < 390; f += 57) {
        make_file(400, 700);
        scribble(path(log_name), position_of_frame(f) + 2, 0x10); /* its very length */
        scribble(path(log_name), position_of_frame(f + 1) + 30, 0x10);
        CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, &cut), offset_of_frame(700));
        CHECK_EQ(cut, 0);
        sl_file_problem p[8];
        size_t problems;
        CHECK_EQ(sl_file_verify(dir, log_name, p, 8, &problems), 698);
        CHECK_EQ(problems, 2);
        CHECK_EQ(p[0].offset, offset_of_frame(f));
        CHECK_EQ(p[0].code, SL_E_CORRUPT);
        CHECK_EQ(p[1].offset, offset_of_frame(f + 1));
        sl_file_reader *r;
        int code;
        CHECK_EQ(sl_file_reader_open(dir, log_name, &r), SL_OK);
        CHECK_EQ(read_frames(r, 0, UINT64_MAX, 65536, &code), f);
        CHECK_EQ(code, SL_E_CORRUPT);
        CHECK_EQ(read_frames(r, f + 1, UINT64_MAX, 65536, &code), 0);
        CHECK_EQ(code, SL_E_CORRUPT);
        CHECK_EQ(read_frames(r, f + 2, UINT64_MAX, 65536, &code), 700 - f - 2);
        CHECK_EQ(code, 0);
        sl_file_reader_close(r);
    }
}

TEST("a large payload that only its cell vouches for is cut when the power cut kept it from the disk") {
    uint64_t cut;
    for (int which = 0; which < 4; which++) { /* frame 22 is large */
        make_file(which < 2 ? 20 : 0, 40);
        if (which == 0) scribble(path(log_name), position_of_frame(22) + 3000, 1); /* payload lost, header there */
        if (which == 1 && truncate(path(cells_name), 4096 + 16 * 21) != 0) abort(); /* the cells did not reach the disk */
        if (which == 2) unlink(path(cells_name)); /* nor did their name */
        if (which == 3 && (truncate(path(cells_name), 0) != 0 || truncate(path(cells_name), 8192) != 0)) abort(); /* nor did anything but its size */
        CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, offset_of_frame(22), &cut), offset_of_frame(22));
        check_clean(22);
        make_file(0, 40);
        if (which == 2) unlink(path(cells_name)); /* by hand: the same, but somebody knows that it was synced */
        if (which == 2) CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, offset_of_frame(23), &cut), offset_of_frame(40));
    }
}

TEST("a file whose first page a power cut kept from the disk is removed unless it was synced") {
    for (int synced = 0; synced < 2; synced++) {
        make_file(synced ? 10 : 0, 10);
        uint8_t zeros[256] = {0};
        size_t n;
        uint8_t *log = slurp(path(log_name), &n);
        memcpy(log, zeros, 256);
        spit(path(log_name), log, n);
        free(log);
        CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, NULL), synced ? SL_E_DAMAGED : BASE);
        CHECK_EQ(file_size(path(log_name)), synced ? n : UINT64_MAX);
    }
}

TEST("a file rests without descriptors once it is synced, and goes on with the next append") {
    fresh_dir();
    sl_file *f = create();
    CHECK_EQ(append(f, 0, 300, 1), SL_OK);
    CHECK_EQ(sl_file_rest(f), SL_E_AGAIN);
    CHECK(fd_of(log_name) >= 0);
    CHECK_EQ(sl_file_sync(f), SL_OK);
    CHECK_EQ(sl_file_rest(f), SL_OK);
    CHECK_EQ(fd_of(log_name), -1);
    CHECK_EQ(fd_of(cells_name), -1);
    CHECK_EQ(sl_file_sync(f), SL_OK); /* nothing to do, and nothing to do it with */
    CHECK_EQ(append(f, 300, 300, 1), SL_OK);
    CHECK_EQ(sl_file_sync(f), SL_OK);
    CHECK_EQ(sl_file_rest(f), SL_OK);
    sl_file_close(f);
    check_clean(600);
    for (int which = 0; which < 3; which++) { /* it is not what it was */
        fresh_dir();
        f = create();
        CHECK_EQ(append(f, 0, 300, 1), SL_OK);
        CHECK_EQ(sl_file_sync(f), SL_OK);
        CHECK_EQ(sl_file_rest(f), SL_OK);
        if (which == 0) unlink(path(log_name));
        if (which == 1 && truncate(path(log_name), 1000) != 0) abort();
        if (which == 2) scribble(path(log_name), 65, 1);
        CHECK_EQ(append(f, 300, 300, 1), SL_E_IO);
        CHECK_EQ(append(f, 300, 300, 1), SL_E_IO);
        CHECK_EQ(sl_file_sync(f), which < 3 ? SL_E_IO : SL_OK);
        sl_file_close(f);
    }
}

/* A power cut that kept every byte of the table from the disk that no fdatasync had asked for. */
static void lose_table(const uint8_t *cells, size_t n) { spit(path(cells_name), cells, n); }

TEST("what was synced without its table outlives a power cut that takes the table") {
    for (uint64_t before = 0; before <= 250; before += 250) {
        sl_file *f = create();
        size_t n;
        if (before) CHECK_EQ(append(f, 0, before, 1), SL_OK);
        CHECK_EQ(sl_file_sync_log(f), SL_OK); /* the first one syncs all: names, headers, table */
        CHECK_EQ(sl_file_table_behind(f), 0);
        uint64_t end = before;
        while (end % 23 != 22) CHECK_EQ(append(f, end++, 1, 1), SL_OK);
        CHECK_EQ(append(f, end++, 1, 1), SL_OK); /* a large one, whose only witness is its cell */
        CHECK_EQ(sl_file_sync_log(f), SL_OK);
        CHECK_EQ(sl_file_table_behind(f), 0);
        uint8_t *cells = slurp(path(cells_name), &n);
        CHECK_EQ(append(f, end, 22, 1), SL_OK); /* these prove themselves */
        end += 22;
        CHECK_EQ(sl_file_sync_log(f), SL_OK);
        CHECK_EQ(sl_file_table_behind(f), 1);
        CHECK_EQ(sl_file_rest(f), SL_E_AGAIN); /* a new descriptor would not be told of a write that failed */
        lose_table(cells, n);
        check_recovers(end);
        check_clean(end);
        free(cells);
        CHECK_EQ(sl_file_sync(f), SL_OK);
        CHECK_EQ(sl_file_table_behind(f), 0);
        sl_file_close(f);
    }
}

TEST("recovery cuts at an offset, and a frame across it goes") {
    uint64_t cut;
    for (uint64_t frames = 0; frames <= 700; frames += 50) {
        make_file(600, 700);
        CHECK_EQ(sl_file_recover(dir, log_name, offset_of_frame(frames), UINT64_MAX, &cut), offset_of_frame(frames));
        check_clean(frames);
        check_recovers(frames);
    }
    make_file(600, 700);
    CHECK_EQ(sl_file_recover(dir, log_name, offset_of_frame(16) + 2, UINT64_MAX, &cut), offset_of_frame(16)); /* an array of 5 rows */
    check_clean(16);
    CHECK_EQ(sl_file_recover(dir, log_name, 3, UINT64_MAX, &cut), BASE);
    check_clean(0);
}

TEST("a file that died while it was made is removed") {
    for (int keep = 0; keep < 2; keep++) {
        make_file(0, 0);
        if (keep) scribble(path(log_name), 30, 1);
        else if (truncate(path(log_name), 100) != 0) abort();
        sl_file_reader *r;
        CHECK_EQ(sl_file_reader_open(dir, log_name, &r), SL_E_HALFMADE);
        CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, NULL), BASE);
        CHECK_EQ(file_size(path(log_name)), UINT64_MAX);
        CHECK_EQ(file_size(path(cells_name)), UINT64_MAX);
        CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, NULL), SL_E_NOENT);
    }
}

TEST("a damaged header or another version is refused and not touched") {
    sl_file_reader *r;
    make_file(10, 10);
    scribble(path(log_name), 60, 1);
    CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, NULL), SL_E_DAMAGED);
    CHECK_EQ(sl_file_reader_open(dir, log_name, &r), SL_E_DAMAGED);
    make_file(10, 10);
    scribble(path(log_name), 8, 3);
    CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, NULL), SL_E_VERSION);
    CHECK_EQ(sl_file_reader_open(dir, log_name, &r), SL_E_VERSION);
    CHECK_EQ(file_size(path(log_name)), position_of_frame(10));
    CHECK_EQ(sl_file_recover(dir, "../etc/passwd", UINT64_MAX, UINT64_MAX, NULL), SL_E_INVALID);
    CHECK_EQ(sl_file_recover(dir, "1000-7.log", UINT64_MAX, UINT64_MAX, NULL), SL_E_INVALID);
    CHECK_EQ(sl_file_recover(dir, "00000000000000001000-07.log", UINT64_MAX, UINT64_MAX, NULL), SL_E_INVALID);
    CHECK_EQ(sl_file_reader_open(dir, "99999999999999999999-7.log", &r), SL_E_INVALID);
}

#ifdef SL_FAILPOINTS
/* Runs `body` in a child that is killed at the hit-th passing of a failpoint; 1 if it was, 0 if it got through. */
static int killed_at(const char *point, int hit, void (*body)(void)) {
    char wanted[100];
    snprintf(wanted, sizeof wanted, "%s:%d:kill", point, hit);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        setenv("SHMLOG_FAILPOINT", wanted, 1);
        body();
        _exit(0);
    }
    int status;
    if (waitpid(child, &status, 0) != child) abort();
    if (WIFSIGNALED(status)) {
        CHECK_EQ(WTERMSIG(status), SIGKILL);
        return 1;
    }
    CHECK_EQ(WEXITSTATUS(status), 0);
    return 0;
}
static void write_some(void) {
    sl_file *f;
    if (sl_file_create(dir, BASE, 7, 3, topic, cluster, &f) != SL_OK) _exit(1);
    for (uint64_t done = 0; done < 1200; done += 200) {
        if (append(f, done, 200, done % 400 == 0) != SL_OK) _exit(2);
        if (sl_file_sync(f) != SL_OK) _exit(3);
    }
    _exit(0);
}
static void recover_some(void) {
    if (sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, NULL) < 0) _exit(4);
}

TEST("a writer killed at any step leaves a file that recovers to a whole call or less") {
    static const char *const points[] = {"file_create_log", "file_create_cells", "file_create_headers", "file_sync_names", "file_append_frames",
                                         "file_append_cells", "file_sync_log", "file_sync_mark"};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        int hit = 1;
        for (; hit < 30; hit++) {
            fresh_dir();
            if (!killed_at(points[i], hit, write_some)) break;
            int64_t end = sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, NULL);
            CHECK_OP(end, >=, BASE);
            if (file_size(path(log_name)) == UINT64_MAX) {
                CHECK_EQ(end, BASE);
                continue;
            }
            uint64_t frames = 0;
            while (frames < 1200 && offset_of_frame(frames) < (uint64_t)end) frames++;
            check_recovers(frames);
            /* what a finished sync promised is there */
            uint64_t promised = strncmp(points[i], "file_sync", 9) == 0 ? 200 * ((uint64_t)hit - 1) : 0;
            CHECK_OP(frames, >=, promised);
        }
        CHECK_OP(hit, >, 1); /* the point was met */
    }
}

/* Frames [from, ...) of a file that begins with frame `from`; which one comes behind the last. */
static uint64_t read_run(sl_file_reader *r, uint64_t from, int *code) {
    static _Alignas(64) uint8_t buffer[65536];
    sl_file_cell cells[100];
    uint64_t index = 0, needed, base = sl_file_reader_header(r)->base_offset;
    int64_t got;
    while ((got = sl_file_reader_fill(r, index, UINT64_MAX, 1, buffer, sizeof buffer, cells, 100, &needed)) > 0)
        for (int64_t i = 0; i < got; i++, index++) {
            CHECK(is_frame(buffer + (uint64_t)(cells[i].unit - cells[0].unit) * 64, from + index));
            CHECK_EQ(base + cells[i].rel, offset_of_frame(from + index));
        }
    *code = (int)got;
    return from + index;
}

/* A directory's life: two files, a third that replaces the tail of the second from a directory of its own (a failed sync), the first one trimmed away.
 * lived[0]: below it all was called durable; lived[1]: where the log begins. */
static uint64_t *lived;
static void live(void) {
    sl_file *f;
    char rewrite[100];
    snprintf(rewrite, sizeof rewrite, "%s/rewrite", dir);
    uint64_t first = BASE;
    for (uint64_t n = 0; n < 3; n++) { /* frames 0..300, 300..600, 500..900 */
        uint64_t from = n == 2 ? 500 : 300 * n, to = n == 2 ? 900 : from + 300;
        first = offset_of_frame(from);
        if (n == 2 && mkdir(rewrite, 0700) != 0) _exit(1);
        if (sl_file_create(n == 2 ? rewrite : dir, first, 7, 3, topic, cluster, &f) != SL_OK) _exit(1);
        for (uint64_t at = from; at < to; at += 100) {
            run r = make_run(at, 100, offset_of_frame(at), at % 200 == 0);
            for (size_t i = 0; i < 100; i++) r.pieces[i].rel = (uint32_t)(offset_of_frame(at + i) - first);
            if (sl_file_append(f, r.pieces, 100, offset_of_frame(at + 100)) != SL_OK) _exit(2);
            free_run(&r);
            if (at == 500 && n == 1) continue; /* this one is not synced: what comes of it is written anew */
            if (sl_file_sync(f) != SL_OK) _exit(3);
            if (n < 2) sl_store_release(&lived[0], offset_of_frame(at + 100));
        }
        if (n == 2 && sl_file_install(f, rewrite, dir) != SL_OK) _exit(4);
        if (n == 2) sl_store_release(&lived[0], offset_of_frame(900));
        sl_file_close(f);
    }
    char name[64];
    sl_store_release(&lived[1], offset_of_frame(300));
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%020llu-7.%s", (unsigned long long)BASE, i ? "log" : "cells");
        unlink(path(name));
        SL_FAILPOINT(file_step);
    }
}
/* What recovery.py does with the files, in short. Where the log goes on. */
static int64_t recover_all(void) {
    sl_file_entry files[8];
    int64_t end = BASE; /* as the checkpoint of a directory without files says */
    char name[64], made[400], there[400];
    uint8_t of_cells[252] = {0}, of_log[252] = {[8] = 1};
    for (int i = 0; i < 2; i++) { /* an install that was cut between its two renames is finished */
        snprintf(name, sizeof name, "%020llu-7.%s", (unsigned long long)offset_of_frame(500), i ? "log" : "cells");
        snprintf(made, sizeof made, "%s/%s%s", dir, i ? "" : "rewrite/", name);
        FILE *in = fopen(made, "rb");
        if (in && fread(i ? of_log : of_cells, 252, 1, in) != 1) (i ? of_log : of_cells)[8] ^= 2; /* not even a header */
        if (in) fclose(in);
    }
    snprintf(name, sizeof name, "%020llu-7.cells", (unsigned long long)offset_of_frame(500));
    snprintf(made, sizeof made, "%s/rewrite/%s", dir, name);
    snprintf(there, sizeof there, "%s/%s", dir, name);
    if (memcmp(of_cells + 8, of_log + 8, 244) == 0 && rename(made, there) != 0) abort();
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "rewrite/%020llu-7.%s", (unsigned long long)offset_of_frame(500), i ? "log" : "cells");
        unlink(path(name));
    }
    rmdir(path("rewrite"));
    int64_t n = sl_file_list(dir, files, 8);
    for (; n > 0; n--) {
        if ((end = sl_file_recover(dir, files[n - 1].name, UINT64_MAX, sl_load_acquire(&lived[0]), NULL)) < 0) return end;
        if (end > (int64_t)files[n - 1].base_offset) break;
        unlink(path(files[n - 1].name));
        snprintf(name, sizeof name, "%.*s.cells", (int)(strlen(files[n - 1].name) - 4), files[n - 1].name);
        unlink(path(name));
        if (n > 1) files[n - 2].until = UINT64_MAX;
    }
    for (int64_t i = 0; i + 1 < n; i++)
        if (sl_file_recover(dir, files[i].name, files[i].until, UINT64_MAX, NULL) < 0) return SL_E_DAMAGED;
    return end;
}
static void recover_all_in_child(void) { if (recover_all() < 0) _exit(5); }

TEST("killed behind any change to a directory, and once more in the recovery, the log has all that was durable") {
    lived = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int steps = 1, again_steps = 0;
    for (int died = 1; died; steps++) {
        died = 0;
        for (int again = 0, died_again = 1; died_again; again++) {
            fresh_dir();
            lived[0] = lived[1] = BASE;
            died = killed_at("file_step", steps, live);
            died_again = again && killed_at("file_step", again, recover_all_in_child);
            if (again == 0) died_again = 1;
            else again_steps += died_again;
            int64_t end = recover_all();
            CHECK_OP(end, >=, (int64_t)lived[0]);
            CHECK_EQ(recover_all(), end); /* and nothing changes any more */
            sl_file_entry files[8];
            int64_t n = sl_file_list(dir, files, 8);
            uint64_t next = 0, frame = 0;
            for (int64_t i = 0; i < n; i++) {
                size_t problems;
                CHECK_OP(sl_file_verify(dir, files[i].name, NULL, 0, &problems), >=, 0);
                CHECK_EQ(problems, 0);
                if (i == 0) {
                    CHECK_OP(files[0].base_offset, <=, lived[1]);
                    next = files[0].base_offset;
                    while (offset_of_frame(frame) < next) frame++;
                }
                CHECK_EQ(files[i].base_offset, next);
                sl_file_reader *r;
                int code;
                CHECK_EQ(sl_file_reader_open(dir, files[i].name, &r), SL_OK);
                uint64_t to = read_run(r, frame, &code);
                sl_file_reader_close(r);
                CHECK_EQ(code, SL_OK);
                frame = to;
                next = offset_of_frame(frame);
            }
            if (n) CHECK_EQ(next, end);
            if (steps % 7) break; /* the recovery is cut at each of its steps too, but not for each of these */
        }
    }
    CHECK_OP(steps, >, 30);
    CHECK_OP(again_steps, >, 5);
    munmap(lived, 4096);
    fresh_dir();
}

TEST("a recovery killed at any step is completed by the next") {
    static const char *const points[] = {"file_recover_page", "file_recover_walked", "file_recover_cut", "file_recover_cells", "file_recover_table",
                                         "file_recover_marked", "file_recover_remove"};
    int met[sizeof points / sizeof *points] = {0};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++)
        for (int state = 0; state < 4; state++)
            for (int hit = 1; hit < 12; hit++) {
                make_file(100, 800); /* 30 and more frames are large: their cells matter */
                uint64_t frames = 800;
                if (state == 0) unlink(path(cells_name));
                if (state == 1) scribble(path(cells_name), 30, 1);
                if (state == 2) {
                    if (truncate(path(log_name), (off_t)(position_of_frame(500) + 20)) != 0) abort();
                    frames = 500;
                }
                if (state == 3) {
                    make_file(0, 0);
                    if (truncate(path(log_name), 100) != 0) abort();
                }
                if (!killed_at(points[i], hit, recover_some)) break;
                met[i] = 1;
                if (state == 3) {
                    CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, NULL), BASE);
                    CHECK_EQ(file_size(path(log_name)), UINT64_MAX);
                } else check_recovers(frames);
            }
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) if (!met[i]) FAIL("%s was never met", points[i]);
}
#endif

/* ---- reading ---- */

TEST("every offset is found, with small buffers and large, with a table and without") {
    make_file(900, 900);
    for (int without = 0; without < 2; without++) {
        if (without) unlink(path(cells_name));
        sl_file_reader *r;
        int code;
        CHECK_EQ(sl_file_reader_open(dir, log_name, &r), SL_OK);
        uint64_t end = offset_of_frame(900), frame = 0, next = offset_of_frame(1);
        for (uint64_t offset = BASE; offset < end; offset++) {
            if (offset == next) next = offset_of_frame(++frame + 1);
            CHECK_EQ(sl_file_reader_find_offset(r, offset, UINT64_MAX), frame);
            if (offset % 50 == 0) CHECK_EQ(sl_file_reader_find_offset(r, offset, offset + 1), frame);
        }
        CHECK_EQ(sl_file_reader_find_offset(r, end, UINT64_MAX), SL_E_AGAIN);
        CHECK_EQ(sl_file_reader_find_offset(r, UINT64_MAX, UINT64_MAX), SL_E_AGAIN);
        CHECK_EQ(sl_file_reader_find_offset(r, BASE - 1, UINT64_MAX), SL_E_RANGE);
        CHECK_EQ(sl_file_reader_find_offset(r, BASE + 10, BASE + 10), SL_E_AGAIN);
        for (uint64_t capacity = 64; capacity < 200000; capacity = capacity * 5 / 64 * 64 + 64) CHECK_EQ(read_frames(r, 0, UINT64_MAX, capacity, &code), 900);
        CHECK_EQ(read_frames(r, 0, offset_of_frame(333), 4096, &code), 333);
        CHECK_EQ(code, 0);
        sl_file_reader_close(r);
    }
}

TEST("a reader follows a file that is being written") {
    sl_file *f = create();
    sl_file_reader *r;
    int code;
    CHECK_EQ(sl_file_reader_open(dir, log_name, &r), SL_OK);
    uint64_t read = 0;
    CHECK_EQ(sl_file_reader_find_offset(r, BASE, BASE), SL_E_AGAIN);
    for (uint64_t done = 0; done < 1000; done += 37) {
        CHECK_EQ(append(f, done, 37, 1), SL_OK);
        uint64_t spilled = done > 50 ? offset_of_frame(done - 10) : BASE; /* the published word may lag */
        read += read_frames(r, read, spilled, 8192, &code);
        CHECK_EQ(code, 0);
        CHECK_EQ(read, done > 50 ? done - 10 : 0);
    }
    read += read_frames(r, read, sl_file_end_offset(f), 8192, &code);
    CHECK_EQ(offset_of_frame(read), sl_file_end_offset(f));
    sl_file_reader_close(r);
    sl_file_close(f);
}

TEST("what was cut back and written anew is not served from a reader's memory") {
    sl_file *f = create();
    sl_file_reader *r;
    sl_file_cell cell;
    CHECK_EQ(append(f, 0, 10, 1), SL_OK);
    CHECK_EQ(append(f, 10, 10, 1), SL_OK);
    CHECK_EQ(sl_file_reader_open(dir, log_name, &r), SL_OK);
    CHECK_EQ(sl_file_reader_cell(r, 9, offset_of_frame(10), &cell), SL_OK);
    CHECK_EQ(sl_file_reader_cell(r, 12, offset_of_frame(10), &cell), SL_E_AGAIN);
    scribble(path(cells_name), 4096 + 12 * 16 + 8, 0xff);
    CHECK_EQ(sl_file_reader_cell(r, 12, offset_of_frame(20), &cell), SL_OK);
    uint32_t crc;
    size_t n;
    uint8_t *cells = slurp(path(cells_name), &n);
    memcpy(&crc, cells + 4096 + 12 * 16 + 8, 4);
    CHECK_EQ(cell.crc32c, crc);
    free(cells);
    sl_file_reader_close(r);
    sl_file_close(f);
}

TEST("a wrong cell in an unfinished page never gives a record another's offset") {
    make_file(30, 30);
    for (uint64_t bit = 0; bit < 30 * 16 * 8; bit += 3) {
        scribble(path(cells_name), 4096 + bit / 8, (uint8_t)(1 << bit % 8));
        sl_file_reader *r;
        int code;
        CHECK_EQ(sl_file_reader_open(dir, log_name, &r), SL_OK);
        uint64_t n = 0;
        for (uint64_t from = 0; from < 30; from = n + 1) { /* read_frames() compares each offset and byte */
            n = from + read_frames(r, from, offset_of_frame(30), 4096, &code);
            if (code == 0) break;
        }
        for (uint64_t f = 0; f < 30; f += 7) {
            int64_t index = sl_file_reader_find_offset(r, offset_of_frame(f), offset_of_frame(30));
            if (index >= 0) read_frames(r, (uint64_t)index, offset_of_frame(30), 4096, &code);
        }
        sl_file_reader_close(r);
        scribble(path(cells_name), 4096 + bit / 8, (uint8_t)(1 << bit % 8));
    }
}

TEST("a time is found by footers and then frame by frame") {
    make_file(900, 900);
    for (int without = 0; without < 2; without++) {
        if (without) unlink(path(cells_name));
        sl_file_reader *r;
        CHECK_EQ(sl_file_reader_open(dir, log_name, &r), SL_OK);
        for (int64_t f = 0; f < 900; f += 13) {
            CHECK_EQ(sl_file_reader_find_time(r, TS + f * 1000, UINT64_MAX), f);
            CHECK_EQ(sl_file_reader_find_time(r, TS + f * 1000 - 999, UINT64_MAX), f);
        }
        CHECK_EQ(sl_file_reader_find_time(r, INT64_MIN, UINT64_MAX), 0);
        CHECK_EQ(sl_file_reader_find_time(r, TS + 899001, UINT64_MAX), SL_E_AGAIN);
        CHECK_EQ(sl_file_reader_find_time(r, TS + 500000, offset_of_frame(500)), SL_E_AGAIN);
        sl_file_reader_close(r);
    }
}

/* Keeps every third frame of a file, as compaction does: offsets stay, positions close up. */
static void compact_by_hand(size_t frames) {
    size_t n, m, kept = 0;
    make_file(frames, frames);
    uint8_t *log = slurp(path(log_name), &n), *cells = slurp(path(cells_name), &m);
    uint64_t position = 256;
    for (size_t f = 1; f < frames; f += 3, kept++) {
        uint64_t at = position_of_frame(f), bytes = position_of_frame(f + 1) - at;
        sl_file_cell cell;
        memcpy(&cell, cells + 4096 + f * 16, 16);
        memmove(log + position, log + at, bytes);
        cell.unit = (uint32_t)(position / 64);
        memcpy(cells + 4096 + kept * 16, &cell, 16);
        position += bytes;
    }
    for (int which = 0; which < 2; which++) {
        uint8_t *b = which ? cells : log;
        b[offsetof(sl_file_header, flags)] = SL_FILE_COMPACTED;
        uint32_t crc = sl_crc32c(0, b, 252);
        memcpy(b + 252, &crc, 4);
    }
    spit(path(log_name), log, position);
    spit(path(cells_name), cells, 4096 + kept * 16);
    free(log), free(cells);
}

TEST("a compacted file keeps its offsets, and the next record answers for a missing one") {
    compact_by_hand(240);
    size_t problems;
    CHECK_EQ(sl_file_verify(dir, log_name, NULL, 0, &problems), 80);
    CHECK_EQ(problems, 0);
    CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, NULL), offset_of_frame(239)); /* 238 is the last that was kept */
    sl_file_reader *r;
    sl_file_cell cells[100];
    uint64_t needed;
    uint8_t *buffer = aligned_alloc(64, 1 << 20);
    CHECK_EQ(sl_file_reader_open(dir, log_name, &r), SL_OK);
    CHECK_EQ(sl_file_reader_fill(r, 0, UINT64_MAX, 1, buffer, 1 << 20, cells, 100, &needed), 80);
    for (uint64_t i = 0; i < 80; i++) {
        CHECK(is_frame(buffer + (uint64_t)(cells[i].unit - cells[0].unit) * 64, 3 * i + 1));
        CHECK_EQ(BASE + cells[i].rel, offset_of_frame(3 * i + 1));
        CHECK_EQ(sl_file_reader_find_offset(r, offset_of_frame(3 * i), UINT64_MAX), i);
        CHECK_EQ(sl_file_reader_find_offset(r, offset_of_frame(3 * i + 1), UINT64_MAX), i);
        CHECK_EQ(sl_file_reader_find_time(r, TS + (int64_t)(3 * i) * 1000, UINT64_MAX), i);
    }
    CHECK_EQ(sl_file_reader_find_offset(r, offset_of_frame(239), UINT64_MAX), SL_E_AGAIN);
    sl_file_reader_close(r);
    free(buffer);
    unlink(path(cells_name)); /* nothing else knows the offsets */
    CHECK_EQ(sl_file_reader_open(dir, log_name, &r), SL_E_DAMAGED);
    CHECK_EQ(sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, NULL), SL_E_DAMAGED);
}

TEST("of overlapping files the higher epoch wins from its base on") {
    static const struct { uint64_t base; uint32_t epoch; } made[] = {{0, 1}, {100, 1}, {200, 1}, {150, 2}, {300, 1}, {260, 2}, {260, 3}, {9000000000, 12}};
    static const struct { uint64_t offset; const char *name; } found[] = {
        {0, "00000000000000000000-1.log"}, {99, "00000000000000000000-1.log"}, {100, "00000000000000000100-1.log"}, {149, "00000000000000000100-1.log"},
        {150, "00000000000000000150-2.log"}, {250, "00000000000000000150-2.log"}, {260, "00000000000000000260-3.log"}, {5000, "00000000000000000260-3.log"},
        {9000000000, "00000000009000000000-12.log"}, {UINT64_MAX, "00000000009000000000-12.log"}};
    sl_file_entry e, all[8];
    fresh_dir();
    CHECK_EQ(sl_file_find(dir, 0, &e), SL_E_NOENT);
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) {
        sl_file *f;
        CHECK_EQ(sl_file_create(dir, made[i].base, made[i].epoch, 0, topic, cluster, &f), SL_OK);
        sl_file_close(f);
    }
    spit(path("notes.log"), "x", 1);
    for (size_t i = 0; i < sizeof found / sizeof *found; i++) {
        CHECK_EQ(sl_file_find(dir, found[i].offset, &e), SL_OK);
        if (strcmp(e.name, found[i].name) != 0) FAIL("offset %llu: %s", (unsigned long long)found[i].offset, e.name);
    }
    CHECK_EQ(sl_file_list(dir, all, 8), 5);
    CHECK_EQ(all[1].until, 150);
    CHECK_EQ(all[2].until, 260);
    CHECK_EQ(all[4].until, UINT64_MAX);
    unlink(path("00000000000000000000-1.log"));
    CHECK_EQ(sl_file_find(dir, 5, &e), SL_E_RANGE);
    CHECK_EQ(e.base_offset, 100);
    sl_file_reader *r;
    CHECK_EQ(sl_file_reader_open_at(dir, 155, &e, &r), SL_OK);
    CHECK_EQ(sl_file_reader_header(r)->leader_epoch, 2);
    sl_file_reader_close(r);
    CHECK_EQ(sl_file_list("/nowhere/at/all", all, 8), SL_E_NOENT);
}

/* ---- hostile files ---- */

TEST("damaged files (2,000, or ROUNDS) are recovered, verified and read without a wrong byte delivered") {
    make_file(300, 320);
    size_t n, m, problems;
    uint8_t *log = slurp(path(log_name), &n), *cells = slurp(path(cells_name), &m), *l = malloc(n + 64), *c = malloc(m + 64);
    uint8_t *buffer = aligned_alloc(64, 65536);
    uint64_t delivered = 0;
    seed_random(20240513);
    int rounds = getenv("ROUNDS") ? atoi(getenv("ROUNDS")) : 2000;
    for (int i = 0; i < rounds; i++) {
        memcpy(l, log, n);
        memcpy(c, cells, m);
        uint64_t ln = n, cn = m;
        for (uint64_t k = 1 + random_below(4); k; k--) {
            uint8_t *b = random_below(2) ? l : c;
            uint64_t size = b == l ? n : m, at = random_below(8) ? random_below(size) : random_below(1024);
            uint64_t run_bytes = random_below(10) ? 1 : random_below(size - at);
            int zero = random_below(2) == 0;
            for (uint64_t x = at; x < at + run_bytes; x++) b[x] = zero ? 0 : (uint8_t)random_u64();
        }
        if (random_below(10) == 0) ln = random_below(n);
        if (random_below(10) == 0) cn = random_below(m);
        spit(path(log_name), l, ln);
        spit(path(cells_name), c, cn);
        sl_file_problem p[3];
        sl_file_facts facts;
        sl_file_verify(dir, log_name, p, 3, &problems);
        sl_file_inspect(dir, log_name, &facts);
        for (int recovered = 0; recovered < 2; recovered++) {
            if (recovered && sl_file_recover(dir, log_name, UINT64_MAX, UINT64_MAX, NULL) < 0) break;
            sl_file_reader *r;
            if (sl_file_reader_open(dir, log_name, &r) != SL_OK) break;
            uint64_t index = random_below(2) ? 0 : random_below(330);
            for (int turn = 0; turn < 6; turn++) {
                sl_file_cell got[64];
                uint64_t needed;
                int64_t count = sl_file_reader_fill(r, index, turn & 1 ? UINT64_MAX : offset_of_frame(320), 1, buffer, 65536, got, 64, &needed);
                for (int64_t k = 0; k < count; k++) {
                    uint64_t frame = index + (uint64_t)k;
                    const uint8_t *at = buffer + (uint64_t)(got[k].unit - got[0].unit) * 64;
                    uint16_t flags;
                    memcpy(&flags, at + 24, 2);
                    /* a payload over 4 KiB whose table is gone has no witness: only its place is sure */
                    if (flags & SL_FF_CRC_ALL) CHECK(is_frame(at, frame));
                    CHECK_EQ(BASE + got[k].rel, offset_of_frame(frame));
                    delivered++;
                }
                index += count > 0 ? (uint64_t)count : 1;
            }
            sl_file_reader_find_offset(r, BASE + random_below(600), random_below(2) ? UINT64_MAX : BASE + 500);
            sl_file_reader_find_time(r, TS + (int64_t)random_below(400000), UINT64_MAX);
            sl_file_reader_close(r);
        }
    }
    CHECK_OP(delivered, >, 50 * (uint64_t)rounds);
    free(log), free(cells), free(l), free(c), free(buffer);
}

/* ---- golden files ---- */

static const uint8_t golden_headers[] = {1, 0, 1, 0, 'h', 2, 0, 0, 0, 'v', 'v'};
#define GOLDEN_FRAMES 262 /* one whole page of cells and 7 more */
#define GOLDEN_MADE_NS INT64_C(1699999999000000000)

/* Frame i of the golden file at `to`; returns its bytes. */
static int64_t golden_frame(size_t i, uint8_t *to) {
    static uint8_t value[5000], batch[512];
    for (size_t k = 0; k < sizeof value; k++) value[k] = (uint8_t)(k + i);
    sl_record r = {.value = value, .value_bytes = (uint32_t)(i % 60), .producer_id = -1};
    switch (i) {
    case 1: r.key = (const uint8_t *)"key", r.key_bytes = 3, r.headers = golden_headers, r.headers_bytes = sizeof golden_headers; break;
    case 2: r.value = NULL, r.value_bytes = 0, r.key = (const uint8_t *)"tombstone", r.key_bytes = 9; break;
    case 3: r.value_bytes = 5000; break;
    case 4: r.value_bytes = 24, r.rows = 6, r.row_bytes = 4, r.dtype = (const uint8_t *)"<i4\0", r.dtype_bytes = 4; break;
    case 5: r.producer_id = 77, r.sequence = 3, r.producer_epoch = 2, r.flags = SL_FF_TRANSACTIONAL; break;
    case 6: {
        sl_record in[3] = {{.value = value, .value_bytes = 5, .timestamp_ns = TS, .producer_id = -1},
                           {.key = (const uint8_t *)"k", .key_bytes = 1, .headers = golden_headers, .headers_bytes = sizeof golden_headers, .timestamp_ns = TS + 7000000, .producer_id = -1},
                           {.value = value, .value_bytes = 200, .timestamp_ns = TS - 9000000, .producer_id = -1}};
        int64_t n = sl_batch_build(batch, sizeof batch, in, 3);
        if (n < 0) abort();
        r.value = batch, r.value_bytes = (uint32_t)n, r.rows = 3, r.kind = SL_FF_BATCH;
        break;
    }
    case 7: r.value = NULL, r.value_bytes = 0, r.rows = 9, r.kind = SL_FF_CONTROL, r.flags = SL_FF_LOST; break;
    default: break;
    }
    return sl_frame_build(to, &r, TS + (int64_t)i * 1000000, 1, i == 8);
}

static void write_golden(const char *into) {
    sl_file *f;
    uint64_t offset = BASE;
    if (sl_file_create(into, BASE, 7, 3, topic, cluster, &f) != SL_OK) abort();
    uint8_t *frame = aligned_alloc(64, 8192);
    for (size_t i = 0; i < GOLDEN_FRAMES; i++) {
        int64_t n = golden_frame(i, frame);
        if (n < 0) abort();
        uint32_t rows = sl_frame_rows(frame);
        sl_file_piece p = {.frame = frame, .frame_bytes = (uint32_t)n, .rel = (uint32_t)(offset - BASE), .crc32c = sl_crc32c(0, frame, (size_t)n), .count = (uint16_t)rows,
                           .type = i == 7 ? SL_CELL_CONTROL : SL_CELL_DATA};
        offset += rows;
        if (sl_file_append(f, &p, 1, offset) != SL_OK) abort();
    }
    if (sl_file_sync(f) != SL_OK) abort();
    sl_file_close(f);
    free(frame);
    /* the one thing that depends on when it was made */
    for (int which = 0; which < 2; which++) {
        char name[400];
        snprintf(name, sizeof name, "%s/%s", into, which ? cells_name : log_name);
        size_t n;
        uint8_t *b = slurp(name, &n);
        int64_t made = GOLDEN_MADE_NS;
        memcpy(b + offsetof(sl_file_header, made_ns), &made, 8);
        uint32_t crc = sl_crc32c(0, b, 252);
        memcpy(b + 252, &crc, 4);
        spit(name, b, n);
        free(b);
    }
}

static const char *golden_dir(void) {
    static char at[400];
    const char *given = getenv("GOLDEN_DIR"), *slash = strrchr(__FILE__, '/');
    if (given) snprintf(at, sizeof at, "%s", given);
    else snprintf(at, sizeof at, "%.*s../golden", (int)(slash ? slash - __FILE__ + 1 : 0), __FILE__);
    return at;
}

TEST("golden: the files of disk version 1 are read, and written again byte for byte") {
    char name[500];
    fresh_dir();
    write_golden(dir);
    for (int which = 0; which < 2; which++) {
        size_t n, m;
        const char *file = which ? cells_name : log_name;
        snprintf(name, sizeof name, "%s/%s", golden_dir(), file);
        uint8_t *kept = slurp(name, &n), *now = slurp(path(file), &m);
        if (!kept) FAIL("%s is missing", name);
        CHECK_EQ(m, n);
        CHECK_BYTES(now, kept, n);
        free(kept), free(now);
    }
    sl_file_reader *r;
    uint8_t *buffer = aligned_alloc(64, 65536), *frame = aligned_alloc(64, 8192);
    sl_file_cell cells[300];
    uint64_t needed, offset = BASE;
    CHECK_EQ(sl_file_reader_open(golden_dir(), log_name, &r), SL_OK);
    CHECK_EQ(sl_file_reader_fill(r, 0, UINT64_MAX, 1, buffer, 65536, cells, 300, &needed), GOLDEN_FRAMES);
    for (size_t i = 0; i < GOLDEN_FRAMES; i++) {
        int64_t n = golden_frame(i, frame);
        const uint8_t *at = buffer + (uint64_t)(cells[i].unit - cells[0].unit) * 64;
        CHECK_BYTES(at, frame, (size_t)n);
        CHECK_EQ(BASE + cells[i].rel, offset);
        offset += sl_frame_rows(at);
    }
    sl_file_reader_close(r);
    free(buffer), free(frame);
    size_t problems;
    sl_file_problem lost;
    CHECK_EQ(sl_file_verify(golden_dir(), log_name, &lost, 1, &problems), GOLDEN_FRAMES);
    CHECK_EQ(problems, 1); /* the one frame that says so */
    CHECK_EQ(lost.code, SL_E_LOST);
    sl_file_facts facts;
    CHECK_EQ(sl_file_inspect(golden_dir(), log_name, &facts), SL_OK);
    CHECK_EQ(facts.end_offset, offset);
    CHECK_EQ(facts.made_ns, GOLDEN_MADE_NS);
    CHECK_EQ(facts.max_timestamp_ns, TS + (GOLDEN_FRAMES - 1) * INT64_C(1000000));
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "--write-golden") == 0) {
        write_golden(argv[2]);
        return 0;
    }
    harness_cleanup = remove_dir;
    return harness_main(argc > 1 ? argv[1] : NULL);
}
