/* Segment files: an input is a program that writes files as the spiller does, damages them as disks, kills and strangers do (and makes checksums right
 * again, so that damage gets past them), lets the n-th system call fail, and reads, verifies and recovers in between.
 *
 * Beyond "no crash, no hang": a reader's offsets grow and stay inside the log; a recovery that succeeded, repeated, changes nothing and finds the same end; and
 * what is read after it, damage passed over, ends exactly there.
 *
 * The files lie in a new directory below $FUZZ_DIR (/dev/shm, for its fdatasync costs nothing) that is removed at the end. */
#define _GNU_SOURCE
#include "core.h"
#include "fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_FILES 4
#define MAX_OPERATIONS 48
#define MAX_FILE_BYTES (96 << 10)
#define PATCHED_MAX_BYTES (1 << 20) /* a patch may lie behind the end */

/* ---- system calls that fail: the linker sends the core's calls here (-Wl,--wrap) ------------------------------------------------------------ */

static int fault_in, fault_errno, fault_short; /* in: the n-th call from now on, 0 none; it goes on failing if errno is EIO */

static int faulty(void) {
    if (fault_in == 0 || --fault_in > 0) return 0;
    if (fault_errno == EIO) fault_in = 1;
    errno = fault_errno;
    return 1;
}

ssize_t __real_pread(int fd, void *to, size_t n, off_t at);
ssize_t __real_pwrite(int fd, const void *from, size_t n, off_t at);
ssize_t __real_pwritev(int fd, const struct iovec *iov, int n, off_t at);
int __real_ftruncate(int fd, off_t bytes);
int __real_fdatasync(int fd);
int __real_fsync(int fd);
int __real_openat(int dir, const char *name, int flags, ...);
ssize_t __wrap_pread(int fd, void *to, size_t n, off_t at) {
    if (faulty()) return -1;
    return __real_pread(fd, to, fault_short && n > 1 ? n / 2 : n, at);
}
ssize_t __wrap_pwrite(int fd, const void *from, size_t n, off_t at) {
    if (faulty()) return -1;
    return __real_pwrite(fd, from, fault_short && n > 1 ? n / 2 : n, at);
}
ssize_t __wrap_pwritev(int fd, const struct iovec *iov, int n, off_t at) {
    if (faulty()) return -1;
    return __real_pwritev(fd, iov, fault_short && n > 1 ? n / 2 : n, at);
}
int __wrap_ftruncate(int fd, off_t bytes) { return faulty() ? -1 : __real_ftruncate(fd, bytes); }
int __wrap_fdatasync(int fd) { return faulty() ? -1 : __real_fdatasync(fd); }
int __wrap_fsync(int fd) { return faulty() ? -1 : __real_fsync(fd); }
int __wrap_openat(int dir, const char *name, int flags, int mode) { return faulty() ? -1 : __real_openat(dir, name, flags, mode); }

/* ---- the directory -------------------------------------------------------------------------------------------------------------------- */

static char dir[200];
static const uint8_t topic[16] = "topic id 16 byte", cluster[16] = "cluster id 16 by";

static void clear(void) {
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.') unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
}
static void goodbye(void) {
    clear();
    rmdir(dir);
}
static void hello(void) {
    if (dir[0]) return;
    snprintf(dir, sizeof dir, "%s/fuzz-file-XXXXXX", getenv("FUZZ_DIR") ? getenv("FUZZ_DIR") : "/dev/shm");
    if (!mkdtemp(dir)) { perror(dir); exit(2); }
    atexit(goodbye);
}

typedef struct made { uint64_t base; uint32_t epoch; } made; /* a file of this input */
static const char *path_of(const made *m, int cells) {
    static char path[300];
    snprintf(path, sizeof path, "%s/%020llu-%u.%s", dir, (unsigned long long)m->base, m->epoch, cells ? "cells" : "log");
    return path;
}
static const char *name_of(const made *m) {
    static char name[64];
    snprintf(name, sizeof name, "%020llu-%u.log", (unsigned long long)m->base, m->epoch);
    return name;
}

/* ---- damage, and checksums that hide it --------------------------------------------------------------------------------------------------- */

static uint8_t *slurp(const char *path, size_t *n) {
    struct stat s;
    int fd = open(path, O_RDONLY);
    *n = 0;
    if (fd < 0) return NULL;
    uint8_t *b = fstat(fd, &s) == 0 ? malloc((size_t)s.st_size + 1) : NULL;
    ssize_t got = b ? __real_pread(fd, b, (size_t)s.st_size, 0) : 0;
    *n = got > 0 ? (size_t)got : 0;
    close(fd);
    return b;
}
static void spit(const char *path, const void *b, size_t n) {
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || __real_pwrite(fd, b, n, 0) != (ssize_t)n) abort();
    close(fd);
}

static void patch(input *in, const char *path) {
    struct stat s;
    uint8_t how = take8(in);
    uint64_t at = take_any(in), value = take64(in);
    unsigned bytes = 1u << (how & 3);
    int fd = open(path, O_RDWR);
    if (fd < 0) return;
    if (fstat(fd, &s) == 0 && s.st_size > 0) {
        if (how & 4) at = (uint64_t)s.st_size - 1 - at % (uint64_t)s.st_size; /* from the end */
        else if (how & 8) at %= (uint64_t)s.st_size;
        if (how & 16) at &= ~UINT64_C(7);
        if (how & 32) at = at / 64 * 64 + value % 32; /* some frame's header */
        if (how & 64) { uint64_t old = 0; if (__real_pread(fd, &old, bytes, (off_t)at) >= 0) value ^= old; }
        if (at < PATCHED_MAX_BYTES && __real_pwrite(fd, &value, bytes, (off_t)at) < 0) { /* such a place there is not */ }
    }
    close(fd);
}

static void right_header(uint8_t *b, uint64_t magic, const made *m) {
    sl_file_header h;
    memcpy(&h, b, sizeof h);
    h.magic = magic;
    h.disk_version = SL_DISK_VERSION;
    h.base_offset = m->base;
    h.leader_epoch = m->epoch;
    memcpy(b, &h, sizeof h);
    uint32_t crc = sl_crc32c(0, b, SL_FILE_HEADER_BYTES - 4);
    memcpy(b + SL_FILE_HEADER_BYTES - 4, &crc, 4);
}

static void repair(const made *m, uint8_t what) {
    size_t log_n, cells_n;
    uint8_t *log = slurp(path_of(m, 0), &log_n), *cells = slurp(path_of(m, 1), &cells_n);
    if (log && log_n >= SL_FILE_HEADER_BYTES && what & 1) right_header(log, 0x0a46474f4c4d4853, m);
    if (log && what & 2)
        for (size_t at = SL_FILE_HEADER_BYTES; at + SL_FRAME_HEADER_BYTES <= log_n;) {
            sl_frame h;
            memcpy(&h, log + at, sizeof h);
            uint64_t end = h.flags & SL_FF_CRC_ALL ? h.frame_bytes : SL_FRAME_HEADER_BYTES + (uint64_t)h.extension_bytes;
            if (end >= sizeof h && end <= log_n - at) {
                h.crc32c = sl_crc32c(0, log + at + 8, end - 8);
                memcpy(log + at, &h, sizeof h);
            }
            at += h.frame_bytes >= sizeof h && h.frame_bytes <= log_n - at ? ((uint64_t)h.frame_bytes + 63) / 64 * 64 : 64;
        }
    if (cells && cells_n >= SL_CELL_PAGE_BYTES) {
        if (what & 4) right_header(cells, 0x0a43474f4c4d4853, m);
        if (what & 8) {
            sl_file_mark *mark = (sl_file_mark *)(cells + SL_FILE_MARK_POSITION);
            mark->crc32c = sl_crc32c(0, mark, offsetof(sl_file_mark, crc32c));
        }
        for (size_t page = SL_CELL_PAGE_BYTES; page < cells_n; page += SL_CELL_PAGE_BYTES) {
            if (what & 16)
                for (size_t i = 0; i < SL_CELLS_PER_PAGE && page + (i + 1) * sizeof(sl_file_cell) <= cells_n; i++) {
                    sl_file_cell cell;
                    uint32_t bytes = 0;
                    memcpy(&cell, cells + page + i * sizeof cell, sizeof cell);
                    uint64_t at = (uint64_t)cell.unit * SL_UNIT_BYTES;
                    if (log && at + 4 <= log_n) memcpy(&bytes, log + at, 4);
                    if (!log || at + bytes > log_n) continue;
                    cell.crc32c = sl_crc32c(0, log + at, bytes);
                    memcpy(cells + page + i * sizeof cell, &cell, sizeof cell);
                }
            if (what & 32 && page + SL_CELL_PAGE_BYTES <= cells_n) {
                sl_file_cell_footer *f = (sl_file_cell_footer *)(cells + page + SL_CELLS_PER_PAGE * sizeof(sl_file_cell));
                f->cells = SL_CELLS_PER_PAGE;
                f->crc32c = sl_crc32c(sl_crc32c(0, cells + page, SL_CELLS_PER_PAGE * sizeof(sl_file_cell)), &f->max_timestamp_ns, 8);
            }
        }
    }
    if (log) spit(path_of(m, 0), log, log_n);
    if (cells) spit(path_of(m, 1), cells, cells_n);
    free(log);
    free(cells);
}

/* ---- writing ------------------------------------------------------------------------------------------------------------------------- */

static int64_t append(input *in, sl_file *file, uint64_t base, int special) {
    enum { MAX = 300 };
    static uint8_t frames[MAX * 128] __attribute__((aligned(64)));
    static sl_file_piece pieces[MAX];
    static uint8_t zeros[6000];
    if (sl_file_bytes(file) > MAX_FILE_BYTES) return SL_E_TOO_BIG;
    uint64_t end = sl_file_end_offset(file);
    memset(frames, 0, sizeof frames);
    if (special) {
        uint8_t what = take8(in), *to = frames;
        uint32_t rows = what & 4 ? (uint32_t)take_any(in) : take8(in);
        sl_record r = {.producer_id = -1, .timestamp_ns = (int64_t)take_any(in), .value = zeros, .kind = what & 3};
        if (r.kind == SL_FF_ARRAY) r.rows = rows % 2000, r.row_bytes = 2, r.value_bytes = 2 * r.rows;
        else if (r.kind == SL_FF_CONTROL) r.rows = rows, r.value = NULL, r.flags = what & 8 ? SL_FF_LOST : 0;
        else if (r.kind == SL_FF_BATCH) {
            sl_record inner[8];
            for (int i = 0; i < 8; i++) inner[i] = (sl_record){.producer_id = -1, .timestamp_ns = (int64_t)take_any(in), .value = zeros, .value_bytes = take8(in)};
            static uint8_t batch[4096];
            int64_t bytes = sl_batch_build(batch, sizeof batch, inner, 1 + (what >> 5));
            if (bytes < 0) return bytes;
            if (what & 8) batch[22] = take8(in) & 63; /* compressed, control and whatnot */
            r.value = batch, r.value_bytes = (uint32_t)bytes, r.rows = 1 + (what >> 5);
        } else r.value_bytes = what & 16 ? 5000 : take8(in) * 8u;
        int64_t bytes = sl_frame_build(to, &r, r.timestamp_ns, 1, what & 8);
        if (bytes < 0) return bytes;
        uint32_t count = sl_frame_rows(to);
        pieces[0] = (sl_file_piece){.frame = to, .frame_bytes = (uint32_t)bytes, .rel = (uint32_t)(end - base), .crc32c = sl_crc32c(0, to, (size_t)bytes),
                                    .count = count <= SL_CELL_MAX_COUNT ? (uint16_t)count : 0, .type = r.kind == SL_FF_CONTROL ? SL_CELL_CONTROL : SL_CELL_DATA};
        return sl_file_append(file, pieces, 1, end + count);
    }
    size_t n = take8(in), apart = take8(in) & 1; /* apart: each in pieces of its own, not a run */
    if (n > 200) n += 2 * (n - 206);
    if (n > MAX) n = MAX;
    int64_t ns = (int64_t)take_any(in);
    for (size_t i = 0; i < n; i++) {
        uint64_t value = end + i;
        uint8_t *to = frames + 128 * i;
        sl_record r = {.producer_id = -1, .value = (uint8_t *)&value, .value_bytes = 8};
        int64_t bytes = sl_frame_build(to, &r, (int64_t)((uint64_t)ns + i % 7), 1, 0);
        if (!apart) { memmove(frames + 64 * i, to, 64); to = frames + 64 * i; }
        pieces[i] = (sl_file_piece){.frame = to, .frame_bytes = (uint32_t)bytes, .rel = (uint32_t)(value - base), .crc32c = sl_crc32c(0, to, (size_t)bytes),
                                    .count = 1, .type = SL_CELL_DATA};
    }
    return sl_file_append(file, pieces, n, end + n);
}

/* ---- reading -------------------------------------------------------------------------------------------------------------------------- */

static int gaps; /* this input may have made files with gaps: a compacted one, another's bytes, right checksums over wrong cells, frames without records */

/* Reads on from `from`, passing over what is damaged; where it ended, or UINT64_MAX where it could not get that far. */
static uint64_t read_from(uint64_t from, int verify, size_t at_once) {
    static sl_view v[64];
    sl_reader *r;
    MUST(sl_reader_open_files(dir, &r) == SL_OK);
    sl_reader_seek(r, from);
    uint64_t last = 0;
    int any = 0, skipped = 0, shown = 0;
    for (;;) {
        uint64_t before = sl_reader_position(r);
        int64_t n = sl_reader_poll(r, v, at_once, at_once * 100, verify);
        MUST(n <= (int64_t)at_once);
        if (n == SL_E_CORRUPT) {
            if (skipped++ == 40) break;
            sl_reader_seek(r, sl_reader_position(r) + 1);
            continue;
        }
        if (n < 0) skipped = 41; /* compressed records, a table that cannot be made again: told, and the end for this reader */
        if (n <= 0) break;
        for (int64_t i = 0; i < n; i++) {
            MUST((uint64_t)v[i].offset >= before && (!any || (uint64_t)v[i].offset > last));
            MUST(gaps || (uint64_t)v[i].offset == before + (uint64_t)i); /* nothing is left out without a word */
            last = (uint64_t)v[i].offset;
            any = 1;
            if (v[i].key) touch(v[i].key, v[i].key_bytes);
            if (v[i].value) touch(v[i].value, v[i].value_bytes);
            if (v[i].headers) touch(v[i].headers, v[i].headers_bytes);
            if (v[i].dtype) touch(v[i].dtype, v[i].dtype_bytes);
        }
        MUST(sl_reader_position(r) > last); /* or more: a control frame behind it is passed */
        if ((shown += (int)n) > 20000) { skipped = 41; break; } /* arrays repeated by overlapping cells */
    }
    uint64_t end = sl_reader_position(r);
    sl_reader_close(r);
    return skipped > 40 ? UINT64_MAX : end;
}

static void look_at(input *in, const made *m) {
    sl_file_reader *r;
    uint8_t how = take8(in);
    int64_t ns = (int64_t)take_any(in);
    uint64_t offset = m->base + take_any(in), end = how & 1 ? UINT64_MAX : m->base + take_any(in);
    if (sl_file_reader_open(dir, name_of(m), &r) != SL_OK) return;
    int64_t index = sl_file_reader_find_offset(r, offset, end);
    if (how & 2) index = sl_file_reader_find_time(r, ns, end);
    if (how & 4) index = (int64_t)(take_any(in) & 0xffff);
    static sl_file_cell cells[64];
    static uint8_t small[4096] __attribute__((aligned(64)));
    uint64_t needed = 0;
    size_t max_cells = how & 8 ? 3 : 64, capacity = how & 16 ? 128 : sizeof small;
    for (int turn = 0; index >= 0 && turn < 20; turn++) {
        int64_t n = sl_file_reader_fill(r, (uint64_t)index, end, how & 32, small, capacity, cells, max_cells, &needed);
        MUST(n <= (int64_t)max_cells);
        if (n == SL_E_TOO_BIG) MUST(needed > capacity && needed <= SL_SEGMENT_MAX_BYTES + 63);
        if (n <= 0) break;
        for (int64_t i = 0; i < n; i++) {
            uint64_t at = (uint64_t)(cells[i].unit - cells[0].unit) * SL_UNIT_BYTES;
            MUST(at + SL_FRAME_HEADER_BYTES <= capacity && sl_frame_check(small + at, capacity - at, how & 32) == SL_OK);
        }
        index += n;
    }
    sl_file_reader_close(r);
}

static void survey(input *in, const made *m) {
    sl_file_facts facts;
    sl_file_problem problems[3];
    sl_file_entry entries[2];
    size_t n = 0;
    sl_file_inspect(dir, name_of(m), &facts);
    int64_t frames = sl_file_verify(dir, name_of(m), problems, 3, &n);
    for (size_t i = 0; i < n && i < 3; i++) MUST(frames < 0 || (problems[i].code < 0 && memchr(problems[i].what, 0, sizeof problems[i].what)));
    sl_file_list(dir, entries, 2);
    sl_file_find(dir, take_any(in), entries);
}

static void recover(input *in, const made *m) {
    uint8_t how = take8(in); /* 1: cut; 2: there is a witness of what was durable, so many records above the base */
    uint64_t cut_to = how & 1 ? m->base + take_any(in) : UINT64_MAX, durable = how & 2 ? m->base + (how >> 2) : 0, cut, again;
    int quiet = fault_in == 0;
    int64_t end = sl_file_recover(dir, name_of(m), cut_to, durable, &cut);
    if (end < 0 || !quiet) return;
    MUST((uint64_t)end >= m->base);
    MUST(cut_to == UINT64_MAX || cut_to < m->base || (uint64_t)end <= cut_to || cut == 0);
    sl_file_facts facts;
    int code = sl_file_inspect(dir, name_of(m), &facts);
    if (code == SL_E_NOENT) return; /* it had died while it was made */
    MUST(code == SL_OK);
    if (facts.flags & SL_FILE_COMPACTED) return;
    MUST(sl_file_recover(dir, name_of(m), UINT64_MAX, durable, &again) == end && again == 0);
    sl_file_entry entry;
    int64_t n = sl_file_list(dir, &entry, 1);
    if (n == 1 && strcmp(entry.name, name_of(m)) == 0 && m->base + UINT32_MAX > (uint64_t)end) {
        uint64_t ended = read_from(m->base, 1, 64);
        MUST(ended == UINT64_MAX || ended >= (uint64_t)end || end == (int64_t)m->base);
    }
}

/* ---- a program ------------------------------------------------------------------------------------------------------------------------- */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size};
    made files[MAX_FILES];
    int n = 0;
    sl_file *file = NULL;
    hello();
    fault_in = fault_short = gaps = 0;
    uint8_t first = take8(&in);
    for (int op = 0; op < MAX_OPERATIONS && (op == 0 || in.left); op++) {
        uint8_t what = take8(&in);
        made *m = n ? &files[what / 16 % n] : NULL;
        if (!file && n < MAX_FILES && (op == 0 || (what & 15) == 3)) {
            files[n].base = n ? files[n - 1].base + take_any(&in) % 5000 : first & 1 ? take_any(&in) & SL_OFFSET_MASK : 0;
            files[n].epoch = n ? files[n - 1].epoch + (what >> 4) % 3 - (first >> 7) : 7;
            if (n) gaps = 1;
            if (sl_file_create(dir, files[n].base, files[n].epoch, 3, topic, cluster, &file) == SL_OK) n++;
            continue;
        }
        switch (what & 15) {
        case 0: case 1: if (file) append(&in, file, files[n - 1].base, 0); break;
        case 2: gaps = 1; if (file) append(&in, file, files[n - 1].base, 1); break;
        case 3:
            if (file) { sl_file_sync(file); break; }
            break;
        case 4:
            if (file) sl_file_close(file);
            file = NULL;
            break;
        case 5: case 6: if (m) patch(&in, path_of(m, what & 1)); break;
        case 7: { /* shorter, or longer by zeros */
            uint64_t bytes = take_any(&in) % PATCHED_MAX_BYTES;
            if (m && truncate(path_of(m, what >= 128), (off_t)bytes) != 0) { /* it is not there */ }
            break;
        }
        case 8: { /* bytes of anybody's, or no file at all */
            size_t bytes = take16(&in);
            gaps = 1;
            if (bytes > in.left) bytes = in.left;
            if (m && bytes == 0) unlink(path_of(m, what >= 128));
            else if (m) spit(path_of(m, what >= 128), in.p, bytes);
            in.p += bytes;
            in.left -= bytes;
            break;
        }
        case 9: { uint8_t which = take8(&in); if (which & 50) gaps = 1; if (m) repair(m, which); break; }
        case 10: {
            uint8_t how = take8(&in);
            read_from(m ? m->base + take_any(&in) : 0, how & 1, 1 + how / 4);
            break;
        }
        case 11: if (m) look_at(&in, m); break;
        case 12: if (m) survey(&in, m); break;
        case 13:
            if (file && m == &files[n - 1]) sl_file_close(file), file = NULL; /* recovery is for files that nobody writes */
            if (m) recover(&in, m);
            break;
        case 14: { /* the n-th call from here fails; or all transfers are short */
            static const int errors[] = {EIO, ENOSPC, EINTR, EDQUOT, EFBIG, ENOMEM, EROFS, ENOENT, EACCES};
            uint8_t how = take8(&in);
            fault_in = take8(&in) % 40;
            fault_errno = errors[how % (sizeof errors / sizeof *errors)];
            fault_short = how >= 128;
            break;
        }
        default: { /* compacted: the cells alone know the offsets */
            size_t bytes;
            gaps = 1;
            uint8_t *log = m ? slurp(path_of(m, 0), &bytes) : NULL;
            if (log && bytes >= SL_FILE_HEADER_BYTES) {
                ((sl_file_header *)log)->flags ^= SL_FILE_COMPACTED;
                right_header(log, 0x0a46474f4c4d4853, m);
                spit(path_of(m, 0), log, bytes);
            }
            free(log);
        }
        }
    }
    fault_in = fault_short = 0;
    if (file) sl_file_close(file);
    if (n) {
        read_from(files[0].base, first & 2, 64);
        recover(&(input){NULL, 0}, &files[n - 1]);
        survey(&in, &files[n - 1]);
        for (int i = 0; i < n; i++)
            for (int cells = 0; cells < 2; cells++) unlink(path_of(&files[i], cells));
    }
    return 0;
}
