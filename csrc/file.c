/* The log of a partition on disk: segment files of frames in log order, each with a table of cells beside it.
 *
 *   <base offset, 20 digits>-<leader epoch>.log     sl_file_header, then frames, each at a multiple of 64
 *   <base offset, 20 digits>-<leader epoch>.cells   a header page with the mark of the last sync, then pages of 255 cells and a footer
 *
 * The .log is the truth; the .cells can be made again from it (but for compacted files, whose offsets have gaps) and serves look-ups, recovery
 * without a scan, and the CRC of what the broker wrote where a producer wrote none. One process writes a directory at a time (its lock is
 * the caller's business); readers may follow a file that is being written, up to an end offset that the writer published after
 * sl_file_append() returned. A leader change starts a new file with a higher epoch in its name: the higher epoch wins from its base on.
 *
 * Order of writes: frames, then their cells; on failure both are cut back, so a cell never names what is not in the .log unless the machine
 * died. A sync writes the mark between the fdatasync of the .log and that of the .cells: below the mark recovery believes, above it
 * every frame must prove itself. Damage below the mark is kept in place, a hole that readers report, because what follows it was
 * promised. Nothing is mapped: a bad sector is a code, not a SIGBUS. */
#define _GNU_SOURCE
#include "atomic.h"
#include "core.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define NAME_BYTES 44
#define WRITE_PIECES 1024            /* IOV_MAX on Linux */
#define CELLS_OUT_BYTES 16384
#define SCAN_BYTES (UINT64_C(1) << 20)
#define FIRST_FRAME SL_FILE_HEADER_BYTES
#define NO_TIMESTAMP INT64_MIN

static inline uint64_t align64(uint64_t n) { return (n + 63) & ~UINT64_C(63); }

/* ---- system calls as codes ------------------------------------------------------------------------------------------------------------- */

static int code_of_errno(void) {
    int e = errno;
    sl_set_errno(e);
    switch (e) {
    case ENOENT: case ENOTDIR: return SL_E_NOENT;
    case ENOSPC: case EDQUOT: case EFBIG: return SL_E_DISK_FULL;
    case ENOMEM: return SL_E_NOMEM;
    case EIO: case EROFS: case ESTALE: return SL_E_IO;
    default: return SL_E_SYS;
    }
}
/* For reads and writes of open files, where every failure but a full disk is the disk's. */
static int io_code(void) {
    int code = code_of_errno();
    return code == SL_E_DISK_FULL ? code : SL_E_IO;
}

/* Bytes read, fewer only at the end of the file; or SL_E_IO. */
static int64_t read_at(int fd, void *to, uint64_t bytes, uint64_t position) {
    uint64_t done = 0;
    while (done < bytes) {
        ssize_t n = pread(fd, (uint8_t *)to + done, bytes - done, (off_t)(position + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return io_code();
        if (n == 0) break;
        done += (uint64_t)n;
    }
    return (int64_t)done;
}

static int write_at(int fd, const void *from, uint64_t bytes, uint64_t position) {
    uint64_t done = 0;
    while (done < bytes) {
        ssize_t n = pwrite(fd, (const uint8_t *)from + done, bytes - done, (off_t)(position + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n ? io_code() : SL_E_IO;
        done += (uint64_t)n;
    }
    return SL_OK;
}

/* Writes the pieces one behind the other; consumes iov. */
static int write_pieces(int fd, struct iovec *iov, size_t n, uint64_t position) {
    while (n) {
        ssize_t done = pwritev(fd, iov, n > WRITE_PIECES ? WRITE_PIECES : (int)n, (off_t)position);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return done ? io_code() : SL_E_IO;
        position += (uint64_t)done;
        size_t left = (size_t)done;
        while (n && left >= iov->iov_len) {
            left -= iov->iov_len;
            iov++;
            n--;
        }
        if (n) {
            iov->iov_base = (uint8_t *)iov->iov_base + left;
            iov->iov_len -= left;
        }
    }
    return SL_OK;
}

static int size_of(int fd, uint64_t *bytes) {
    struct stat s;
    if (fstat(fd, &s) != 0) return io_code();
    *bytes = s.st_size < 0 ? 0 : (uint64_t)s.st_size;
    return SL_OK;
}

static void close_fd(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static int open_directory(const char *dir) {
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd >= 0 ? fd : code_of_errno();
}

static int open_below(int dir_fd, const char *name, int flags) {
    int fd = openat(dir_fd, name, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd >= 0 ? fd : code_of_errno();
}

/* ---- names and headers ----------------------------------------------------------------------------------------------------------------- */

static void make_name(char out[NAME_BYTES], uint64_t base_offset, uint32_t leader_epoch, const char *suffix) {
    snprintf(out, NAME_BYTES, "%020llu-%u.%s", (unsigned long long)(base_offset & SL_OFFSET_MASK), leader_epoch, suffix);
}

/* Only names that make_name() makes: 1 and what they say, else 0. */
static int parse_name(const char *name, uint64_t *base_offset, uint32_t *leader_epoch) {
    uint64_t base = 0, epoch = 0;
    char again[NAME_BYTES];
    if (strlen(name) >= NAME_BYTES) return 0;
    const char *p = name;
    for (int i = 0; i < 20; i++, p++) {
        if (*p < '0' || *p > '9') return 0;
        if (base > SL_OFFSET_MASK) return 0;
        base = base * 10 + (uint64_t)(*p - '0');
    }
    if (*p++ != '-') return 0;
    for (; *p >= '0' && *p <= '9'; p++) {
        epoch = epoch * 10 + (uint64_t)(*p - '0');
        if (epoch > UINT32_MAX) return 0;
    }
    if (base > SL_OFFSET_MASK) return 0;
    make_name(again, base, (uint32_t)epoch, "log");
    if (strcmp(again, name) != 0) return 0;
    *base_offset = base;
    *leader_epoch = (uint32_t)epoch;
    return 1;
}

/* The CRC of a file header stands in its last four bytes. */
#define HEADER_CRC_POSITION (SL_FILE_HEADER_BYTES - 4)
static void seal_header(sl_file_header *h) {
    uint32_t crc = sl_crc32c(0, h, HEADER_CRC_POSITION);
    memcpy((uint8_t *)h + HEADER_CRC_POSITION, &crc, 4);
}

/* SL_OK, SL_E_HALFMADE (the file is shorter than a header, or no longer and wrong: its maker died), SL_E_VERSION, SL_E_DAMAGED, SL_E_IO. */
static int read_header(int fd, uint64_t magic, uint64_t base_offset, uint32_t leader_epoch, sl_file_header *h) {
    uint64_t bytes;
    int code = size_of(fd, &bytes);
    if (code != SL_OK) return code;
    int64_t n = read_at(fd, h, sizeof *h, 0);
    if (n < 0) return (int)n;
    int wrong = bytes <= SL_FILE_HEADER_BYTES ? SL_E_HALFMADE : SL_E_DAMAGED;
    if (n < (int64_t)sizeof *h || h->magic != magic) return wrong;
    /* before the CRC: another version may keep it elsewhere */
    if (h->disk_version != SL_DISK_VERSION) return h->disk_version > SL_DISK_VERSION ? SL_E_VERSION : wrong;
    uint32_t crc;
    memcpy(&crc, (uint8_t *)h + HEADER_CRC_POSITION, 4);
    if (crc != sl_crc32c(0, h, HEADER_CRC_POSITION)) return wrong;
    if (h->base_offset != base_offset || h->leader_epoch != leader_epoch) return SL_E_DAMAGED;
    return SL_OK;
}

/* ---- cells ----------------------------------------------------------------------------------------------------------------------------- */

static inline uint64_t cell_position(uint64_t index) {
    return SL_CELL_PAGE_BYTES + index / SL_CELLS_PER_PAGE * SL_CELL_PAGE_BYTES + index % SL_CELLS_PER_PAGE * sizeof(sl_file_cell);
}

static uint64_t cells_in(uint64_t file_bytes) {
    if (file_bytes < SL_CELL_PAGE_BYTES) return 0;
    file_bytes -= SL_CELL_PAGE_BYTES;
    uint64_t rest = file_bytes % SL_CELL_PAGE_BYTES / sizeof(sl_file_cell);
    return file_bytes / SL_CELL_PAGE_BYTES * SL_CELLS_PER_PAGE + (rest > SL_CELLS_PER_PAGE ? SL_CELLS_PER_PAGE : rest);
}

#define FOOTER_POSITION (SL_CELLS_PER_PAGE * sizeof(sl_file_cell))
static void make_footer(sl_file_cell_footer *f, uint32_t crc_of_cells, int64_t max_timestamp_ns) {
    f->max_timestamp_ns = max_timestamp_ns;
    f->crc32c = sl_crc32c(crc_of_cells, &f->max_timestamp_ns, 8);
    f->cells = SL_CELLS_PER_PAGE;
}
static int footer_ok(const uint8_t *page, sl_file_cell_footer *f) {
    memcpy(f, page + FOOTER_POSITION, sizeof *f);
    return f->cells == SL_CELLS_PER_PAGE && f->crc32c == sl_crc32c(sl_crc32c(0, page, FOOTER_POSITION), &f->max_timestamp_ns, 8);
}

static void make_mark(sl_file_mark *m, uint64_t log_bytes, uint64_t end_offset, uint64_t cells) {
    *m = (sl_file_mark){.log_bytes = log_bytes, .end_offset = end_offset, .cells = (uint32_t)cells};
    m->crc32c = sl_crc32c(0, m, offsetof(sl_file_mark, crc32c));
}

static sl_file_cell cell_of_frame(const uint8_t *frame, uint32_t frame_bytes, uint64_t rel, uint64_t position) {
    uint32_t rows = sl_frame_rows(frame);
    uint16_t flags;
    memcpy(&flags, frame + offsetof(sl_frame, flags), 2);
    return (sl_file_cell){
        .rel = (uint32_t)rel,
        .unit = (uint32_t)(position / SL_UNIT_BYTES),
        .crc32c = sl_crc32c(0, frame, frame_bytes),
        .count = rows <= SL_CELL_MAX_COUNT ? (uint16_t)rows : 0, /* as in memory */
        .type = (flags & SL_FF_KIND_MASK) == SL_FF_CONTROL ? SL_CELL_CONTROL : SL_CELL_DATA,
    };
}

/* ---- writing --------------------------------------------------------------------------------------------------------------------------- */

struct sl_file {
    int log_fd, cells_fd;
    uint64_t base_offset;
    uint32_t leader_epoch;
    int failed;                       /* a sync or a cut failed: nobody knows what is on disk any more */
    uint64_t log_bytes, end_offset, cells;   /* what appends have completed: the writer changes them together under `state`, for the syncing thread */
    /* the writer's alone */
    uint64_t cells_written;
    int64_t max_timestamp_ns;
    uint32_t page_crc;                /* of the cells of the last page so far */
    pthread_mutex_t state;
    pthread_mutex_t sync;             /* one sync at a time: the mark never goes back */
    struct iovec iov[WRITE_PIECES];
    uint8_t cells_out[CELLS_OUT_BYTES];
};

static void free_file(sl_file *file) {
    close_fd(&file->log_fd);
    close_fd(&file->cells_fd);
    pthread_mutex_destroy(&file->state);
    pthread_mutex_destroy(&file->sync);
    free(file);
}

static int write_cells_header(int fd, const sl_file_header *log_header) {
    uint8_t page[SL_CELL_PAGE_BYTES] = {0};
    sl_file_header h = *log_header;
    h.magic = SL_CELLS_MAGIC;
    seal_header(&h);
    memcpy(page, &h, sizeof h);
    return write_at(fd, page, sizeof page, 0);
}

int sl_file_create(const char *dir, uint64_t base_offset, uint32_t leader_epoch, uint32_t partition, const uint8_t topic_id[16],
                   const uint8_t cluster_id[16], sl_file **out) {
    *out = NULL;
    if (base_offset > SL_OFFSET_MASK) return SL_E_INVALID;
    char log_name[NAME_BYTES], cells_name[NAME_BYTES];
    make_name(log_name, base_offset, leader_epoch, "log");
    make_name(cells_name, base_offset, leader_epoch, "cells");
    sl_file *file = calloc(1, sizeof *file);
    if (!file) return SL_E_NOMEM;
    file->log_fd = file->cells_fd = -1;
    file->base_offset = file->end_offset = base_offset;
    file->leader_epoch = leader_epoch;
    file->log_bytes = FIRST_FRAME;
    file->max_timestamp_ns = NO_TIMESTAMP;
    pthread_mutex_init(&file->state, NULL);
    pthread_mutex_init(&file->sync, NULL);

    sl_file_header h = {.magic = SL_FILE_MAGIC, .disk_version = SL_DISK_VERSION, .partition = partition, .leader_epoch = leader_epoch,
                        .base_offset = base_offset, .made_ns = sl_wall_ns()};
    memcpy(h.topic_id, topic_id, 16);
    memcpy(h.cluster_id, cluster_id, 16);
    seal_header(&h);

    int made_log = 0, made_cells = 0;
    int dir_fd = open_directory(dir), code;
    if (dir_fd < 0) {
        free_file(file);
        return dir_fd;
    }
    /* The .log's name is the claim; whatever .cells somebody left under it is ours to overwrite. */
    code = file->log_fd = open_below(dir_fd, log_name, O_RDWR | O_CREAT | O_EXCL);
    if (code < 0) goto failed;
    made_log = 1;
    SL_FAILPOINT(file_create_log);
    code = file->cells_fd = open_below(dir_fd, cells_name, O_RDWR | O_CREAT | O_TRUNC);
    if (code < 0) goto failed;
    made_cells = 1;
    SL_FAILPOINT(file_create_cells);
    if ((code = write_cells_header(file->cells_fd, &h)) != SL_OK) goto failed;
    if ((code = write_at(file->log_fd, &h, sizeof h, 0)) != SL_OK) goto failed;
    SL_FAILPOINT(file_create_headers);
    if (fdatasync(file->cells_fd) != 0 || fdatasync(file->log_fd) != 0 || fsync(dir_fd) != 0) {
        code = io_code();
        goto failed;
    }
    SL_FAILPOINT(file_create_synced);
    close(dir_fd);
    *out = file;
    return SL_OK;

failed:
    if (made_log) unlinkat(dir_fd, log_name, 0);
    if (made_cells) unlinkat(dir_fd, cells_name, 0);
    close(dir_fd);
    free_file(file);
    return code;
}

/* Pieces must follow each other and the file as this process counts: a caller's mistake is refused before a byte is written. */
static int check_pieces(const sl_file *file, const sl_file_piece *pieces, size_t n, uint64_t end_offset) {
    uint64_t rel = file->end_offset - file->base_offset, position = file->log_bytes;
    for (size_t i = 0; i < n; i++) {
        const sl_file_piece *p = &pieces[i];
        if (!p->frame || p->frame_bytes < SL_FRAME_HEADER_BYTES || p->frame_bytes > SL_SEGMENT_MAX_BYTES || p->rel != rel) return SL_E_INVALID;
        if (p->type != SL_CELL_DATA && p->type != SL_CELL_CONTROL) return SL_E_INVALID;
        rel += p->count ? p->count : sl_frame_rows(p->frame);
        position += align64(p->frame_bytes);
        if (rel > UINT32_MAX || position / SL_UNIT_BYTES > UINT32_MAX) return SL_E_TOO_BIG;
    }
    return file->base_offset + rel == end_offset ? SL_OK : SL_E_INVALID;
}

static int write_frames(sl_file *file, const sl_file_piece *pieces, size_t n, uint64_t *position) {
    static const uint8_t zeros[SL_UNIT_BYTES];
    size_t used = 0;
    uint64_t bytes = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t padding = align64(pieces[i].frame_bytes) - pieces[i].frame_bytes;
        struct iovec *last = used ? &file->iov[used - 1] : NULL;
        if (last && (const uint8_t *)last->iov_base + last->iov_len == pieces[i].frame) last->iov_len += pieces[i].frame_bytes;
        else file->iov[used++] = (struct iovec){(void *)(uintptr_t)pieces[i].frame, pieces[i].frame_bytes};
        bytes += pieces[i].frame_bytes + padding;
        /* An aligned frame with the next at its place behind it is a run of the caller's, padding included. */
        if (padding && i + 1 < n && ((uintptr_t)pieces[i].frame & 63) == 0 && pieces[i + 1].frame == pieces[i].frame + pieces[i].frame_bytes + padding)
            file->iov[used - 1].iov_len += padding;
        else if (padding) file->iov[used++] = (struct iovec){(void *)(uintptr_t)zeros, padding};
        if (used + 2 > WRITE_PIECES || i + 1 == n) {
            int code = write_pieces(file->log_fd, file->iov, used, *position);
            if (code != SL_OK) return code;
            *position += bytes;
            used = 0;
            bytes = 0;
            SL_FAILPOINT(file_append_frames);
        }
    }
    return SL_OK;
}

/* Cells and footers are one contiguous stream of 16-byte entries. */
static int write_cells(sl_file *file, const sl_file_piece *pieces, size_t n) {
    uint64_t position = cell_position(file->cells), unit = file->log_bytes / SL_UNIT_BYTES;
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        sl_file_cell cell = {.rel = pieces[i].rel, .unit = (uint32_t)unit, .crc32c = pieces[i].crc32c, .count = pieces[i].count,
                             .type = pieces[i].type, .flags = pieces[i].flags};
        int64_t ns = sl_frame_max_timestamp_ns(pieces[i].frame);
        if (ns > file->max_timestamp_ns) file->max_timestamp_ns = ns;
        file->page_crc = sl_crc32c_copy(file->page_crc, file->cells_out + used, &cell, sizeof cell);
        used += sizeof cell;
        unit += align64(pieces[i].frame_bytes) / SL_UNIT_BYTES;
        if (++file->cells_written % SL_CELLS_PER_PAGE == 0) {
            sl_file_cell_footer footer;
            make_footer(&footer, file->page_crc, file->max_timestamp_ns);
            memcpy(file->cells_out + used, &footer, sizeof footer);
            used += sizeof footer;
            file->page_crc = 0;
        }
        if (used + 2 * sizeof cell > CELLS_OUT_BYTES || i + 1 == n) {
            int code = write_at(file->cells_fd, file->cells_out, used, position);
            if (code != SL_OK) return code;
            position += used;
            used = 0;
            SL_FAILPOINT(file_append_cells);
        }
    }
    return SL_OK;
}

int sl_file_append(sl_file *file, const sl_file_piece *pieces, size_t n, uint64_t end_offset) {
    if (sl_load_relaxed(&file->failed)) return SL_E_IO;
    int code = check_pieces(file, pieces, n, end_offset);
    if (code != SL_OK || n == 0) return code;
    uint64_t position = file->log_bytes;
    int64_t max_timestamp_ns = file->max_timestamp_ns;
    uint32_t page_crc = file->page_crc;
    code = write_frames(file, pieces, n, &position);
    if (code == SL_OK) code = write_cells(file, pieces, n);
    if (code != SL_OK) {
        int saved = sl_last_errno();
        file->cells_written = file->cells;
        file->max_timestamp_ns = max_timestamp_ns;
        file->page_crc = page_crc;
        /* Cells first, so that none names a frame that is gone. */
        if (ftruncate(file->cells_fd, (off_t)cell_position(file->cells)) != 0 || ftruncate(file->log_fd, (off_t)file->log_bytes) != 0) {
            sl_store_relaxed(&file->failed, 1);
            code = SL_E_IO;
        }
        sl_set_errno(saved);
        return code;
    }
    pthread_mutex_lock(&file->state);
    sl_store_relaxed(&file->log_bytes, position);
    sl_store_relaxed(&file->end_offset, end_offset);
    file->cells = file->cells_written;
    pthread_mutex_unlock(&file->state);
    return SL_OK;
}

int sl_file_sync(sl_file *file) {
    sl_file_mark mark;
    int code = SL_OK;
    pthread_mutex_lock(&file->sync);
    if (sl_load_relaxed(&file->failed)) {
        pthread_mutex_unlock(&file->sync);
        return SL_E_IO;
    }
    pthread_mutex_lock(&file->state);
    make_mark(&mark, file->log_bytes, file->end_offset, file->cells);
    pthread_mutex_unlock(&file->state);
    if (fdatasync(file->log_fd) != 0) code = io_code();
    SL_FAILPOINT(file_sync_log);
    if (code == SL_OK) code = write_at(file->cells_fd, &mark, sizeof mark, SL_FILE_MARK_POSITION);
    SL_FAILPOINT(file_sync_mark);
    if (code == SL_OK && fdatasync(file->cells_fd) != 0) code = io_code();
    if (code != SL_OK) {
        /* The kernel has dropped or marked clean the pages it could not write: a second fdatasync would say 0 and mean nothing. */
        sl_store_relaxed(&file->failed, 1);
        code = SL_E_IO;
    }
    pthread_mutex_unlock(&file->sync);
    return code;
}

uint64_t sl_file_bytes(sl_file *file) { return sl_load_relaxed(&file->log_bytes); }
uint64_t sl_file_end_offset(sl_file *file) { return sl_load_relaxed(&file->end_offset); }
uint64_t sl_file_base_offset(sl_file *file) { return file->base_offset; }

int sl_file_close(sl_file *file) {
    if (!file) return SL_OK;
    free_file(file);
    return SL_OK;
}

/* ---- walking a .log --------------------------------------------------------------------------------------------------------------------- */

/* A window over a file that is read forward in large pieces. */
typedef struct scan {
    int fd;
    uint64_t size;                    /* of the file, as of now */
    uint8_t *buffer;
    uint64_t capacity, begin, have;   /* the window: `have` bytes from `begin` */
} scan;

static void scan_close(scan *s) {
    free(s->buffer);
    s->buffer = NULL;
    s->capacity = s->have = 0;
}

/* Makes `bytes` bytes at `position` (a multiple of 64, so frames are aligned in the window too) readable. Returns how many there are. */
static int64_t scan_read(scan *s, uint64_t position, uint64_t bytes, const uint8_t **out) {
    if (position >= s->begin && position - s->begin <= s->have && s->have - (position - s->begin) >= bytes) {
        *out = s->buffer + (position - s->begin);
        return (int64_t)bytes;
    }
    if (!s->buffer || bytes > s->capacity) {
        uint64_t capacity = align64(bytes > SCAN_BYTES ? bytes : SCAN_BYTES);
        scan_close(s);
        s->buffer = aligned_alloc(SL_UNIT_BYTES, capacity);
        if (!s->buffer) return SL_E_NOMEM;
        s->capacity = capacity;
    }
    s->begin = position;
    s->have = 0;
    int64_t n = read_at(s->fd, s->buffer, s->capacity, position);
    if (n < 0) return n;
    s->have = (uint64_t)n;
    *out = s->buffer;
    return s->have < bytes ? n : (int64_t)bytes;
}

/* A whole checked frame. SL_OK, SL_E_CORRUPT (also: does not fit in the file), SL_E_IO, SL_E_NOMEM. */
static int scan_frame(scan *s, uint64_t position, const uint8_t **frame, uint32_t *frame_bytes) {
    if (position > s->size || s->size - position < SL_FRAME_HEADER_BYTES) return SL_E_CORRUPT;
    int64_t n = scan_read(s, position, SL_FRAME_HEADER_BYTES, frame);
    if (n < 0) return (int)n;
    if (n < SL_FRAME_HEADER_BYTES) return SL_E_CORRUPT;
    memcpy(frame_bytes, *frame, 4);
    if (*frame_bytes < SL_FRAME_HEADER_BYTES || *frame_bytes > SL_SEGMENT_MAX_BYTES || *frame_bytes > s->size - position) return SL_E_CORRUPT;
    n = scan_read(s, position, *frame_bytes, frame);
    if (n < 0) return (int)n;
    if (n < (int64_t)*frame_bytes) return SL_E_CORRUPT;
    return sl_frame_check(*frame, *frame_bytes, 1);
}

/* Whether the frame's own CRCs cover all of it, so that it needs no cell as a witness. */
static int covers_itself(const uint8_t *frame) {
    uint16_t flags;
    memcpy(&flags, frame + offsetof(sl_frame, flags), 2);
    return (flags & SL_FF_CRC_ALL) || (flags & SL_FF_KIND_MASK) == SL_FF_BATCH;
}

/* Cells as they stand in the file, a page at a time, nothing believed. */
typedef struct cell_window {
    int fd;
    uint64_t count;                   /* that the file's size allows */
    uint64_t page;                    /* of the buffer; UINT64_MAX: none */
    uint64_t have;                    /* bytes of it */
    uint8_t bytes[SL_CELL_PAGE_BYTES];
} cell_window;

static int window_page(cell_window *w, uint64_t page) {
    if (w->page == page) return SL_OK;
    w->page = UINT64_MAX;
    int64_t n = read_at(w->fd, w->bytes, SL_CELL_PAGE_BYTES, (page + 1) * SL_CELL_PAGE_BYTES);
    if (n < 0) return (int)n;
    w->have = (uint64_t)n;
    w->page = page;
    return SL_OK;
}
/* 1 and the cell, 0 there is none, or a code. An empty one (zeros that a power cut left) is none. */
static int window_cell(cell_window *w, uint64_t index, sl_file_cell *out) {
    if (index >= w->count) return 0;
    int code = window_page(w, index / SL_CELLS_PER_PAGE);
    if (code != SL_OK) return code;
    uint64_t at = index % SL_CELLS_PER_PAGE * sizeof *out;
    if (w->have < at + sizeof *out) return 0;
    memcpy(out, w->bytes + at, sizeof *out);
    return out->type != 0;
}
static int window_footer(cell_window *w, uint64_t page, sl_file_cell_footer *out) {
    int code = window_page(w, page);
    if (code != SL_OK) return code;
    return w->have == SL_CELL_PAGE_BYTES && footer_ok(w->bytes, out);
}

/* ---- recovery -------------------------------------------------------------------------------------------------------------------------- */

typedef struct recovery {
    scan log;
    cell_window cells;
    sl_file_header header;
    sl_file_mark mark;                /* cells 0: none */
    uint64_t cut_rel;                 /* frames that end beyond it go */
    int table_there;                  /* the .cells had a right header */
    /* where we are */
    uint64_t index, position, rel;
    int64_t max_timestamp_ns;
    /* the page being made again */
    uint8_t page[SL_CELL_PAGE_BYTES];
} recovery;

/* Writes the page being made unless it stands there already: a recovered file is not worn by the next recovery. */
static int recovery_write_page(recovery *r, uint64_t page, uint64_t bytes) {
    uint8_t old[SL_CELL_PAGE_BYTES];
    uint64_t position = (page + 1) * SL_CELL_PAGE_BYTES;
    int64_t n = read_at(r->cells.fd, old, bytes, position);
    if (n < 0) return (int)n;
    if ((uint64_t)n == bytes && memcmp(old, r->page, bytes) == 0) return SL_OK;
    return write_at(r->cells.fd, r->page, bytes, position);
}

static int recovery_put(recovery *r, const sl_file_cell *cell, int64_t timestamp_ns) {
    uint64_t slot = r->index % SL_CELLS_PER_PAGE;
    memcpy(r->page + slot * sizeof *cell, cell, sizeof *cell);
    if (timestamp_ns > r->max_timestamp_ns) r->max_timestamp_ns = timestamp_ns;
    r->index++;
    if (slot + 1 < SL_CELLS_PER_PAGE) return SL_OK;
    sl_file_cell_footer footer;
    make_footer(&footer, sl_crc32c(0, r->page, FOOTER_POSITION), r->max_timestamp_ns);
    memcpy(r->page + FOOTER_POSITION, &footer, sizeof footer);
    SL_FAILPOINT(file_recover_page);
    return recovery_write_page(r, (r->index - 1) / SL_CELLS_PER_PAGE, SL_CELL_PAGE_BYTES);
}

/* Sets the start: behind the last whole page below the mark and the cut whose footer and last frame are right, else the beginning. */
static int recovery_start(recovery *r) {
    uint64_t marked = r->mark.cells < r->cells.count ? r->mark.cells : r->cells.count;
    for (uint64_t page = marked / SL_CELLS_PER_PAGE; page > 0; page--) {
        sl_file_cell_footer footer;
        sl_file_cell cell;
        const uint8_t *frame;
        uint32_t frame_bytes;
        int code = window_footer(&r->cells, page - 1, &footer);
        if (code < 0) return code;
        if (!code) continue;
        code = window_cell(&r->cells, page * SL_CELLS_PER_PAGE - 1, &cell);
        if (code < 0) return code;
        if (!code || cell.rel >= r->cut_rel) continue;
        uint64_t position = (uint64_t)cell.unit * SL_UNIT_BYTES;
        code = scan_frame(&r->log, position, &frame, &frame_bytes);
        if (code == SL_E_CORRUPT) continue;
        if (code != SL_OK) return code;
        uint64_t end = (uint64_t)cell.rel + sl_frame_rows(frame);
        if (sl_crc32c(0, frame, frame_bytes) != cell.crc32c || end > r->cut_rel) continue;
        r->index = page * SL_CELLS_PER_PAGE;
        r->position = align64(position + frame_bytes);
        r->rel = end;
        r->max_timestamp_ns = footer.max_timestamp_ns;
        return SL_OK;
    }
    r->index = 0;
    r->position = FIRST_FRAME;
    r->rel = 0;
    r->max_timestamp_ns = NO_TIMESTAMP;
    return SL_OK;
}

/* Whether the offset in cell j is to be believed: its page has a right footer, or what follows says the same. The frame cannot tell. */
static int recovery_offset_proved(recovery *r, uint64_t j, uint64_t end) {
    sl_file_cell_footer footer;
    sl_file_cell next;
    int code = window_footer(&r->cells, j / SL_CELLS_PER_PAGE, &footer);
    if (code != 0) return code;
    if (j + 1 == r->mark.cells) return r->mark.end_offset - r->header.base_offset == end;
    code = window_cell(&r->cells, j + 1, &next);
    return code > 0 ? next.rel == end : code;
}

/* The frame here is damaged, and below the mark: keeps the cells up to the next frame that is right. 1 went on, 0 cannot, or a code. */
static int recovery_skip(recovery *r) {
    sl_file_cell cell, next;
    int code = window_cell(&r->cells, r->index, &cell);
    if (code <= 0) return code;
    if (cell.rel != r->rel || (uint64_t)cell.unit * SL_UNIT_BYTES != r->position) return 0;
    uint64_t last_rel = cell.rel, last_unit = cell.unit;
    for (uint64_t j = r->index + 1; j <= r->mark.cells; j++) {
        uint64_t position = r->mark.log_bytes, rel = r->mark.end_offset - r->header.base_offset;
        if (j < r->mark.cells) {
            if ((code = window_cell(&r->cells, j, &next)) <= 0) return code;
            position = (uint64_t)next.unit * SL_UNIT_BYTES;
            rel = next.rel;
        }
        if (rel <= last_rel || position <= last_unit * SL_UNIT_BYTES || rel > r->cut_rel) return 0;
        last_rel = rel;
        last_unit = position / SL_UNIT_BYTES;
        if (j < r->mark.cells) {
            const uint8_t *frame;
            uint32_t frame_bytes;
            code = scan_frame(&r->log, position, &frame, &frame_bytes);
            if (code == SL_E_CORRUPT || (code == SL_OK && sl_crc32c(0, frame, frame_bytes) != next.crc32c)) continue;
            if (code != SL_OK) return code;
            if ((code = recovery_offset_proved(r, j, rel + sl_frame_rows(frame))) < 0) return code;
            if (!code) continue;
        }
        while (r->index < j) {
            if ((code = window_cell(&r->cells, r->index, &cell)) <= 0) return code;
            if ((code = recovery_put(r, &cell, NO_TIMESTAMP)) != SL_OK) return code;
        }
        r->position = position;
        r->rel = rel;
        return 1;
    }
    return 0;
}

/* Walks on while frames prove themselves. */
static int recovery_walk(recovery *r) {
    while (r->rel < r->cut_rel) {
        const uint8_t *frame;
        uint32_t frame_bytes = 0;
        sl_file_cell old, cell = {0};
        int below_mark = r->position < r->mark.log_bytes;
        int code = scan_frame(&r->log, r->position, &frame, &frame_bytes);
        if (code != SL_OK && code != SL_E_CORRUPT) return code; /* a disk that cannot be read is no reason to cut */
        int right = code == SL_OK;
        if (right) {
            cell = cell_of_frame(frame, frame_bytes, r->rel, r->position);
            if ((code = window_cell(&r->cells, r->index, &old)) < 0) return code;
            int agrees = code && old.rel == cell.rel && old.unit == cell.unit;
            if (agrees && old.crc32c == cell.crc32c) cell.flags = old.flags;
            else if (!covers_itself(frame)) {
                /* A large payload whose only witness is the cell. No table at all: somebody removed it, and the header's CRC must do. */
                if (agrees) right = 0;
                else if (r->table_there && !below_mark) right = 0;
            }
        }
        if (!right) {
            if (!below_mark) return SL_OK;
            code = recovery_skip(r);
            if (code < 0) return code;
            if (code == 0) return SL_OK;
            continue;
        }
        uint64_t end = r->rel + sl_frame_rows(frame);
        uint64_t next = align64(r->position + frame_bytes);
        if (end > r->cut_rel || end > UINT32_MAX || next / SL_UNIT_BYTES > UINT32_MAX) return SL_OK;
        int64_t ns = sl_frame_max_timestamp_ns(frame);
        if ((code = recovery_put(r, &cell, ns)) != SL_OK) return code;
        r->position = next;
        r->rel = end;
    }
    return SL_OK;
}

/* Brings both files to where the walk ended, in an order that a kill between any two steps only makes the next recovery repeat. */
static int recovery_finish(recovery *r, uint64_t cells_bytes) {
    sl_file_mark mark, old;
    int code;
    SL_FAILPOINT(file_recover_walked);
    if (r->log.size != r->position && ftruncate(r->log.fd, (off_t)r->position) != 0) return io_code();
    SL_FAILPOINT(file_recover_cut);
    if (fdatasync(r->log.fd) != 0) return io_code();
    uint64_t partial = r->index % SL_CELLS_PER_PAGE * sizeof(sl_file_cell);
    if (partial && (code = recovery_write_page(r, r->index / SL_CELLS_PER_PAGE, partial)) != SL_OK) return code;
    SL_FAILPOINT(file_recover_cells);
    if (cells_bytes != cell_position(r->index) && ftruncate(r->cells.fd, (off_t)cell_position(r->index)) != 0) return io_code();
    if (!r->table_there) {
        /* A header says that what the table does not prove is to be cut: it comes last, when all cells are on disk. */
        if (fdatasync(r->cells.fd) != 0) return io_code();
        SL_FAILPOINT(file_recover_table);
        if ((code = write_cells_header(r->cells.fd, &r->header)) != SL_OK) return code;
    }
    make_mark(&mark, r->position, r->header.base_offset + r->rel, r->index);
    int64_t n = read_at(r->cells.fd, &old, sizeof old, SL_FILE_MARK_POSITION);
    if (n < 0) return (int)n;
    if (n != sizeof old || memcmp(&old, &mark, sizeof mark) != 0) {
        if ((code = write_at(r->cells.fd, &mark, sizeof mark, SL_FILE_MARK_POSITION)) != SL_OK) return code;
    }
    SL_FAILPOINT(file_recover_marked);
    return fdatasync(r->cells.fd) == 0 ? SL_OK : io_code();
}

/* Compacted files are made whole and synced before they get their name, and only their cells know their offsets: nothing to cut or rebuild,
 * only to check that the last cell and its frame are there. */
static int recovery_compacted(recovery *r) {
    sl_file_cell cell;
    const uint8_t *frame;
    uint32_t frame_bytes;
    if (!r->table_there) return SL_E_DAMAGED;
    if (r->cells.count == 0) return r->log.size == FIRST_FRAME ? SL_OK : SL_E_DAMAGED;
    int code = window_cell(&r->cells, r->cells.count - 1, &cell);
    if (code < 0) return code;
    if (code == 0) return SL_E_DAMAGED;
    r->position = (uint64_t)cell.unit * SL_UNIT_BYTES;
    code = scan_frame(&r->log, r->position, &frame, &frame_bytes);
    if (code != SL_OK) return code == SL_E_CORRUPT ? SL_E_DAMAGED : code;
    r->rel = (uint64_t)cell.rel + sl_frame_rows(frame);
    return align64(r->position + frame_bytes) == r->log.size ? SL_OK : SL_E_DAMAGED;
}

static int64_t recover(recovery *r, int dir_fd, const char *log_name, uint64_t cut_offset, uint64_t *cut_bytes) {
    uint64_t base_offset, cells_bytes;
    uint32_t leader_epoch;
    char cells_name[NAME_BYTES];
    if (!parse_name(log_name, &base_offset, &leader_epoch)) return SL_E_INVALID;
    make_name(cells_name, base_offset, leader_epoch, "cells");
    int code = r->log.fd = open_below(dir_fd, log_name, O_RDWR);
    if (code < 0) return code;
    if ((code = size_of(r->log.fd, &r->log.size)) != SL_OK) return code;
    code = read_header(r->log.fd, SL_FILE_MAGIC, base_offset, leader_epoch, &r->header);
    if (code == SL_E_HALFMADE) {
        /* Frames come only after a synced header: nothing was ever in it. The .log goes last, for it is what names both. */
        if (unlinkat(dir_fd, cells_name, 0) != 0 && errno != ENOENT) return code_of_errno();
        SL_FAILPOINT(file_recover_remove);
        if (unlinkat(dir_fd, log_name, 0) != 0) return code_of_errno();
        if (fsync(dir_fd) != 0) return io_code();
        *cut_bytes = r->log.size;
        return (int64_t)base_offset;
    }
    if (code != SL_OK) return code;
    r->cut_rel = cut_offset < base_offset ? 0 : cut_offset - base_offset;

    code = r->cells.fd = open_below(dir_fd, cells_name, O_RDWR);
    if (code == SL_E_NOENT && !(r->header.flags & SL_FILE_COMPACTED)) {
        code = r->cells.fd = open_below(dir_fd, cells_name, O_RDWR | O_CREAT | O_EXCL);
        if (code >= 0 && fsync(dir_fd) != 0) return io_code();
    }
    if (code < 0) return code == SL_E_NOENT ? SL_E_DAMAGED : code;
    if ((code = size_of(r->cells.fd, &cells_bytes)) != SL_OK) return code;
    sl_file_header h;
    code = read_header(r->cells.fd, SL_CELLS_MAGIC, base_offset, leader_epoch, &h);
    if (code == SL_E_IO || code == SL_E_VERSION) return code;
    r->table_there = code == SL_OK && cells_bytes >= SL_CELL_PAGE_BYTES && memcmp(h.topic_id, r->header.topic_id, 16) == 0;
    r->cells.page = UINT64_MAX;
    if (r->table_there) {
        r->cells.count = cells_in(cells_bytes);
        int64_t n = read_at(r->cells.fd, &r->mark, sizeof r->mark, SL_FILE_MARK_POSITION);
        if (n < 0) return n;
        if (n != sizeof r->mark || r->mark.crc32c != sl_crc32c(0, &r->mark, offsetof(sl_file_mark, crc32c))
            || r->mark.log_bytes > r->log.size || r->mark.end_offset < base_offset || r->mark.end_offset - base_offset > UINT32_MAX)
            r->mark = (sl_file_mark){0};
    }
    if (r->header.flags & SL_FILE_COMPACTED) {
        code = recovery_compacted(r);
        return code == SL_OK ? (int64_t)(base_offset + r->rel) : code;
    }
    if ((code = recovery_start(r)) != SL_OK) return code;
    if ((code = recovery_walk(r)) != SL_OK) return code;
    *cut_bytes = r->log.size > r->position ? r->log.size - r->position : 0;
    if ((code = recovery_finish(r, cells_bytes)) != SL_OK) return code;
    return (int64_t)(base_offset + r->rel);
}

int64_t sl_file_recover(const char *dir, const char *log_name, uint64_t cut_offset, uint64_t *cut_bytes) {
    uint64_t ignored;
    if (!cut_bytes) cut_bytes = &ignored;
    *cut_bytes = 0;
    recovery *r = calloc(1, sizeof *r);
    if (!r) return SL_E_NOMEM;
    r->log.fd = r->cells.fd = -1;
    int dir_fd = open_directory(dir);
    int64_t result = dir_fd;
    if (dir_fd >= 0) {
        result = recover(r, dir_fd, log_name, cut_offset, cut_bytes);
        close(dir_fd);
    }
    scan_close(&r->log);
    close_fd(&r->log.fd);
    close_fd(&r->cells.fd);
    free(r);
    return result;
}

/* ---- directories ----------------------------------------------------------------------------------------------------------------------- */

static int compare_entries(const void *a, const void *b) {
    const sl_file_entry *x = a, *y = b;
    if (x->base_offset != y->base_offset) return x->base_offset < y->base_offset ? -1 : 1;
    return x->leader_epoch < y->leader_epoch ? -1 : x->leader_epoch > y->leader_epoch;
}

/* All that count, in an array of the caller's to free. */
static int64_t list_files(const char *dir, sl_file_entry **out) {
    size_t n = 0, capacity = 0, kept = 0;
    sl_file_entry *entries = NULL;
    *out = NULL;
    DIR *d = opendir(dir);
    if (!d) return code_of_errno();
    for (;;) {
        errno = 0;
        struct dirent *e = readdir(d);
        if (!e) {
            if (errno == 0) break;
            int code = io_code();
            closedir(d);
            free(entries);
            return code;
        }
        sl_file_entry entry = {.until = UINT64_MAX};
        if (!parse_name(e->d_name, &entry.base_offset, &entry.leader_epoch)) continue;
        memcpy(entry.name, e->d_name, strlen(e->d_name) + 1);
        if (n == capacity) {
            capacity = capacity ? 2 * capacity : 16;
            sl_file_entry *more = realloc(entries, capacity * sizeof *entries);
            if (!more) {
                closedir(d);
                free(entries);
                return SL_E_NOMEM;
            }
            entries = more;
        }
        entries[n++] = entry;
    }
    closedir(d);
    if (n) qsort(entries, n, sizeof *entries, compare_entries);
    /* In order of base: a file with a lower epoch than one before it lies wholly in what that one's epoch took over. */
    for (size_t i = 0; i < n; i++) {
        if (kept && entries[i].leader_epoch < entries[kept - 1].leader_epoch) continue;
        if (kept && entries[i].base_offset == entries[kept - 1].base_offset) kept--;
        if (kept) entries[kept - 1].until = entries[i].base_offset;
        entries[kept++] = entries[i];
    }
    *out = entries;
    return (int64_t)kept;
}

int64_t sl_file_list(const char *dir, sl_file_entry *out, size_t max) {
    sl_file_entry *entries;
    int64_t n = list_files(dir, &entries);
    if (n > 0 && max) memcpy(out, entries, (max < (size_t)n ? max : (size_t)n) * sizeof *out);
    free(entries);
    return n;
}

int sl_file_find(const char *dir, uint64_t offset, sl_file_entry *out) {
    sl_file_entry *entries;
    int64_t n = list_files(dir, &entries), low = 0, high = n;
    if (n <= 0) {
        free(entries);
        return n < 0 ? (int)n : SL_E_NOENT;
    }
    while (low < high) { /* the first with a base beyond `offset` */
        int64_t middle = low + (high - low) / 2;
        if (entries[middle].base_offset <= offset) low = middle + 1;
        else high = middle;
    }
    *out = entries[low ? low - 1 : 0];
    free(entries);
    return low ? SL_OK : SL_E_RANGE;
}

/* ---- reading --------------------------------------------------------------------------------------------------------------------------- */

struct sl_file_reader {
    scan log;
    cell_window cells;
    sl_file_header header;
    int page_proved;                  /* the window's page is whole and its footer right */
    uint64_t page_limit_rel;          /* what was readable when it was loaded: beyond, the writer may have cut back and written anew */
    /* Where the .cells is missing or damaged: the same table made from the .log, as far as it was needed. */
    int walking;
    sl_file_cell *walked;
    uint64_t walked_count, walked_capacity, walked_position, walked_rel;
};

int sl_file_reader_open(const char *dir, const char *log_name, sl_file_reader **out) {
    uint64_t base_offset, cells_bytes = 0;
    uint32_t leader_epoch;
    char cells_name[NAME_BYTES];
    *out = NULL;
    if (!parse_name(log_name, &base_offset, &leader_epoch)) return SL_E_INVALID;
    make_name(cells_name, base_offset, leader_epoch, "cells");
    sl_file_reader *r = calloc(1, sizeof *r);
    if (!r) return SL_E_NOMEM;
    r->log.fd = r->cells.fd = -1;
    r->cells.page = UINT64_MAX;
    r->walked_position = FIRST_FRAME;
    int dir_fd = open_directory(dir), code = dir_fd;
    if (dir_fd < 0) goto failed;
    code = r->log.fd = open_below(dir_fd, log_name, O_RDONLY);
    if (code >= 0) r->cells.fd = open_below(dir_fd, cells_name, O_RDONLY);
    close(dir_fd);
    if (code < 0) goto failed;
    if ((code = read_header(r->log.fd, SL_FILE_MAGIC, base_offset, leader_epoch, &r->header)) != SL_OK) goto failed;
    sl_file_header h;
    r->walking = r->cells.fd < 0 || read_header(r->cells.fd, SL_CELLS_MAGIC, base_offset, leader_epoch, &h) != SL_OK
        || size_of(r->cells.fd, &cells_bytes) != SL_OK || cells_bytes < SL_CELL_PAGE_BYTES
        || memcmp(h.topic_id, r->header.topic_id, 16) != 0;
    if (r->walking && r->header.flags & SL_FILE_COMPACTED) {
        code = SL_E_DAMAGED;
        goto failed;
    }
    *out = r;
    return SL_OK;
failed:
    sl_file_reader_close(r);
    return code;
}

int sl_file_reader_open_at(const char *dir, uint64_t offset, sl_file_entry *entry, sl_file_reader **out) {
    int code = SL_E_NOENT;
    *out = NULL;
    for (int i = 0; i < 8 && code == SL_E_NOENT; i++) { /* retention may remove a file between the two */
        if ((code = sl_file_find(dir, offset, entry)) != SL_OK) return code;
        code = sl_file_reader_open(dir, entry->name, out);
    }
    return code;
}

void sl_file_reader_close(sl_file_reader *r) {
    if (!r) return;
    scan_close(&r->log);
    close_fd(&r->log.fd);
    close_fd(&r->cells.fd);
    free(r->walked);
    free(r);
}

const sl_file_header *sl_file_reader_header(sl_file_reader *r) { return &r->header; }

static int compacted(const sl_file_reader *r) { return (r->header.flags & SL_FILE_COMPACTED) != 0; }

/* Offsets relative to the base that may be read. */
static uint64_t end_rel(const sl_file_reader *r, uint64_t end_offset) {
    if (end_offset <= r->header.base_offset) return 0;
    uint64_t rel = end_offset - r->header.base_offset;
    return rel > (uint64_t)UINT32_MAX + 1 ? (uint64_t)UINT32_MAX + 1 : rel;
}

/* The table is not to be trusted: make our own. */
static int walk_instead(sl_file_reader *r) {
    if (compacted(r)) return SL_E_CORRUPT;
    r->walking = 1;
    return SL_OK;
}

/* Extends the walked table so that it holds `index`: SL_OK, SL_E_AGAIN at the end, SL_E_CORRUPT, SL_E_IO. */
static int walk_to(sl_file_reader *r, uint64_t index, uint64_t limit_rel) {
    int code;
    while (r->walked_count <= index) {
        const uint8_t *frame;
        uint32_t frame_bytes;
        if (r->walked_rel >= limit_rel) return SL_E_AGAIN;
        if ((code = size_of(r->log.fd, &r->log.size)) != SL_OK) return code;
        if (r->walked_position >= r->log.size) return SL_E_AGAIN;
        r->log.have = 0; /* the file may have grown since the window was read; one frame of it may have been torn then */
        code = scan_frame(&r->log, r->walked_position, &frame, &frame_bytes);
        while (code == SL_OK) {
            if (r->walked_count == r->walked_capacity) {
                uint64_t capacity = r->walked_capacity ? 2 * r->walked_capacity : 1024;
                sl_file_cell *more = realloc(r->walked, capacity * sizeof *more);
                if (!more) return SL_E_NOMEM;
                r->walked = more;
                r->walked_capacity = capacity;
            }
            uint64_t rel = r->walked_rel + sl_frame_rows(frame), next = align64(r->walked_position + frame_bytes);
            if (rel > UINT32_MAX || next / SL_UNIT_BYTES > UINT32_MAX) return SL_E_CORRUPT;
            r->walked[r->walked_count++] = cell_of_frame(frame, frame_bytes, r->walked_rel, r->walked_position);
            r->walked_rel = rel;
            r->walked_position = next;
            if (rel >= limit_rel || next >= r->log.size || r->walked_count > index) break;
            code = scan_frame(&r->log, next, &frame, &frame_bytes);
        }
        if (code != SL_OK) return code;
    }
    return SL_OK;
}

static int64_t frame_header_at(sl_file_reader *r, const sl_file_cell *cell, uint8_t out[SL_FRAME_HEADER_BYTES + 24]) {
    memset(out, 0, SL_FRAME_HEADER_BYTES + 24);
    return read_at(r->log.fd, out, SL_FRAME_HEADER_BYTES + 24, (uint64_t)cell->unit * SL_UNIT_BYTES);
}

/* Where the frame of a cell ends, in offsets relative to the base; or a code. */
static int64_t cell_end_rel(sl_file_reader *r, const sl_file_cell *cell) {
    if (cell->count) return (int64_t)cell->rel + cell->count;
    uint8_t h[SL_FRAME_HEADER_BYTES + 24]; /* with the two extensions that come before or are `rows` */
    int64_t n = frame_header_at(r, cell, h);
    if (n < 0) return n;
    if (n < SL_FRAME_HEADER_BYTES) return SL_E_CORRUPT;
    return (int64_t)cell->rel + sl_frame_rows(h);
}

/* How many cells the file has now. */
static int count_cells(sl_file_reader *r) {
    uint64_t bytes;
    int code = size_of(r->cells.fd, &bytes);
    if (code == SL_OK) r->cells.count = cells_in(bytes);
    return code;
}

/* Loads and proves a page; may switch to walking. */
static int load_page(sl_file_reader *r, uint64_t page, uint64_t limit_rel) {
    sl_file_cell_footer footer;
    int code = SL_OK;
    for (int attempt = 0; attempt < 3; attempt++) { /* a page caught while it was being finished is right the next time */
        r->cells.page = UINT64_MAX;
        if ((code = window_page(&r->cells, page)) != SL_OK) return code;
        r->page_limit_rel = limit_rel;
        r->page_proved = r->cells.have == SL_CELL_PAGE_BYTES && footer_ok(r->cells.bytes, &footer);
        if (r->page_proved || r->cells.have <= FOOTER_POSITION) return SL_OK;
    }
    return walk_instead(r);
}

int sl_file_reader_cell(sl_file_reader *r, uint64_t index, uint64_t end_offset, sl_file_cell *out) {
    uint64_t limit_rel = end_rel(r, end_offset), page = index / SL_CELLS_PER_PAGE;
    int code;
    if (!r->walking) {
        uint64_t at = index % SL_CELLS_PER_PAGE * sizeof *out;
        int cached = r->cells.page == page && r->cells.have >= at + sizeof *out;
        if (cached) {
            memcpy(out, r->cells.bytes + at, sizeof *out);
            cached = out->rel < r->page_limit_rel || limit_rel <= r->page_limit_rel;
        }
        if (!cached) {
            if (index >= r->cells.count && (code = count_cells(r)) != SL_OK) return code;
            if (index < r->cells.count && (code = load_page(r, page, limit_rel)) != SL_OK) return code;
        }
        if (!r->walking && r->cells.page == page && r->cells.have >= at + sizeof *out) {
            memcpy(out, r->cells.bytes + at, sizeof *out);
            if (out->type == SL_CELL_DATA || out->type == SL_CELL_CONTROL) return out->rel < limit_rel ? SL_OK : SL_E_AGAIN;
            /* an empty or impossible cell */
            if (end_offset == UINT64_MAX && out->type == 0) return SL_E_AGAIN;
            if ((code = walk_instead(r)) != SL_OK) return code;
        } else if (!r->walking) {
            /* No such cell. Right, unless the caller knows that there are more records and the .log has more bytes. */
            sl_file_cell last;
            if (end_offset == UINT64_MAX || compacted(r) || index != r->cells.count) return SL_E_AGAIN;
            uint64_t known = 0, position = FIRST_FRAME;
            if (index) {
                if ((code = sl_file_reader_cell(r, index - 1, UINT64_MAX, &last)) != SL_OK) return code;
                int64_t end = cell_end_rel(r, &last);
                if (end < 0) return (int)end;
                known = (uint64_t)end;
                position = (uint64_t)last.unit * SL_UNIT_BYTES + SL_UNIT_BYTES;
                uint32_t frame_bytes;
                int64_t n = read_at(r->log.fd, &frame_bytes, 4, (uint64_t)last.unit * SL_UNIT_BYTES);
                if (n < 0) return (int)n;
                if (n == 4) position = align64((uint64_t)last.unit * SL_UNIT_BYTES + frame_bytes);
            }
            if (known >= limit_rel) return SL_E_AGAIN;
            if ((code = size_of(r->log.fd, &r->log.size)) != SL_OK) return code;
            if (position >= r->log.size) return SL_E_AGAIN;
            if (!r->walking && (code = walk_instead(r)) != SL_OK) return code;
        }
    }
    if (index >= r->walked_count && (code = walk_to(r, index, limit_rel)) != SL_OK) return code;
    *out = r->walked[index];
    return out->rel < limit_rel ? SL_OK : SL_E_AGAIN;
}

/* The last cell with rel <= target by bisection over pages, then cells; -1 none. The first cells of pages are read singly and unproved:
 * the caller checks the result against proved neighbours. */
static int64_t bisect(sl_file_reader *r, uint64_t target_rel, uint64_t end_offset) {
    uint64_t low = 0, high, count = 0;
    sl_file_cell cell;
    int code;
    if (r->walking) {
        code = walk_to(r, UINT64_MAX - 1, target_rel + 1);
        if (code != SL_E_AGAIN && code != SL_E_CORRUPT) return code == SL_OK ? SL_E_CORRUPT : code;
        count = r->walked_count;
    } else {
        if ((code = count_cells(r)) != SL_OK) return code;
        count = r->cells.count;
        uint64_t pages = (count + SL_CELLS_PER_PAGE - 1) / SL_CELLS_PER_PAGE;
        uint64_t page_low = 0, page_high = pages; /* the first page that begins beyond the target */
        while (page_low < page_high) {
            uint64_t middle = page_low + (page_high - page_low) / 2;
            int64_t n = read_at(r->cells.fd, &cell, sizeof cell, cell_position(middle * SL_CELLS_PER_PAGE));
            if (n < 0) return n;
            if (n == sizeof cell && cell.rel <= target_rel) page_low = middle + 1;
            else page_high = middle;
        }
        if (page_low == 0) return -1;
        low = (page_low - 1) * SL_CELLS_PER_PAGE;
        if (count > low + SL_CELLS_PER_PAGE) count = low + SL_CELLS_PER_PAGE;
    }
    for (high = count; low < high;) {
        uint64_t middle = low + (high - low) / 2;
        code = sl_file_reader_cell(r, middle, end_offset, &cell);
        if (code != SL_OK && code != SL_E_AGAIN) return code;
        if (code == SL_OK && cell.rel <= target_rel) low = middle + 1;
        else high = middle;
    }
    return (int64_t)low - 1;
}

int64_t sl_file_reader_find_offset(sl_file_reader *r, uint64_t offset, uint64_t end_offset) {
    sl_file_cell cell, next;
    if (offset < r->header.base_offset) return SL_E_RANGE;
    if (offset >= end_offset) return SL_E_AGAIN;
    uint64_t target = offset - r->header.base_offset;
    if (target > UINT32_MAX) return SL_E_AGAIN;
    for (int attempt = 0; attempt < 2; attempt++) {
        int was_walking = r->walking;
        int64_t index = bisect(r, target, end_offset);
        if (index < -1) return index;
        if (index == -1) { /* nothing at or below it: an empty file, or a compacted one whose first records are gone */
            int code = sl_file_reader_cell(r, 0, end_offset, &cell);
            if (code != SL_OK) return code;
            if (compacted(r)) return 0;
            if (cell.rel <= target && r->walking != was_walking) continue;
            if (r->walking) return SL_E_CORRUPT;
            if (walk_instead(r) != SL_OK) return SL_E_CORRUPT;
            continue;
        }
        int code = sl_file_reader_cell(r, (uint64_t)index, end_offset, &cell);
        if (code != SL_OK) return code;
        code = sl_file_reader_cell(r, (uint64_t)index + 1, end_offset, &next);
        if (code != SL_OK && code != SL_E_AGAIN && code != SL_E_CORRUPT) return code;
        int has_next = code == SL_OK;
        if (r->walking != was_walking) continue; /* the table turned out to be damaged: once more, with ours */
        if (cell.rel > target || (has_next && next.rel <= target)) {
            if (r->walking || walk_instead(r) != SL_OK) return SL_E_CORRUPT;
            continue;
        }
        int64_t end = cell_end_rel(r, &cell);
        if (end < 0) return end;
        if (target < (uint64_t)end) return index;
        if (!has_next) return code;
        if (compacted(r)) return index + 1;
        return index; /* dense: the frame's own count is wrong, or the cell's; fill() will say */
    }
    return SL_E_CORRUPT;
}

/* The latest timestamp in the frame of a cell; or a code in *code. */
static int64_t cell_timestamp_ns(sl_file_reader *r, const sl_file_cell *cell, int *code) {
    sl_frame h;
    uint8_t bytes[SL_FRAME_HEADER_BYTES + 24];
    int64_t n = frame_header_at(r, cell, bytes);
    *code = n < 0 ? (int)n : n < SL_FRAME_HEADER_BYTES ? SL_E_CORRUPT : SL_OK;
    if (*code != SL_OK) return 0;
    memcpy(&h, bytes, sizeof h);
    int64_t ns = sl_frame_timestamp_ns(bytes);
    if ((h.flags & SL_FF_KIND_MASK) != SL_FF_BATCH || h.flags & SL_FF_LOG_APPEND_TIME || h.value_bytes > h.frame_bytes) return ns;
    /* A batch's latest time stands in its header: a small frame around that header answers as the whole would. */
    uint8_t small[SL_FRAME_HEADER_BYTES + 64] = {0};
    h.frame_bytes -= h.value_bytes;
    n = read_at(r->log.fd, small + SL_FRAME_HEADER_BYTES, 61, (uint64_t)cell->unit * SL_UNIT_BYTES + h.frame_bytes);
    *code = n < 0 ? (int)n : n < 61 ? SL_E_CORRUPT : SL_OK;
    if (*code != SL_OK) return 0;
    h.frame_bytes = SL_FRAME_HEADER_BYTES + 61;
    h.value_bytes = 61;
    memcpy(small, &h, sizeof h);
    return sl_frame_max_timestamp_ns(small);
}

int64_t sl_file_reader_find_time(sl_file_reader *r, int64_t timestamp_ns, uint64_t end_offset) {
    uint64_t index = 0;
    sl_file_cell cell;
    int code;
    if (!r->walking) {
        if ((code = count_cells(r)) != SL_OK) return code;
        uint64_t low = 0, high = r->cells.count / SL_CELLS_PER_PAGE;
        while (low < high) { /* the first whole page whose running maximum reaches the time */
            uint64_t middle = low + (high - low) / 2;
            sl_file_cell_footer footer;
            int64_t n = read_at(r->cells.fd, &footer, sizeof footer, (middle + 1) * SL_CELL_PAGE_BYTES + FOOTER_POSITION);
            if (n < 0) return n;
            if (n == sizeof footer && footer.max_timestamp_ns < timestamp_ns) low = middle + 1;
            else high = middle;
        }
        index = low * SL_CELLS_PER_PAGE;
        if (low) { /* the page before proves that nothing earlier will do; if its footer does not, walk all */
            sl_file_cell_footer footer;
            code = window_footer(&r->cells, low - 1, &footer);
            if (code < 0) return code;
            r->cells.page = UINT64_MAX; /* loaded without proving */
            if (!code || footer.max_timestamp_ns >= timestamp_ns) index = 0;
        }
    }
    for (;; index++) {
        code = sl_file_reader_cell(r, index, end_offset, &cell);
        if (code != SL_OK) return code;
        if (cell.type != SL_CELL_DATA) continue;
        int64_t ns = cell_timestamp_ns(r, &cell, &code);
        if (code == SL_E_IO) return code;
        if (code == SL_OK && ns >= timestamp_ns) return (int64_t)index;
    }
}

int64_t sl_file_reader_fill(sl_file_reader *r, uint64_t index, uint64_t end_offset, int verify_crc, uint8_t *buffer, uint64_t capacity,
                            sl_file_cell *cells, size_t max_cells, uint64_t *needed_bytes) {
    uint64_t ignored;
    if (!needed_bytes) needed_bytes = &ignored;
    *needed_bytes = 0;
    if (max_cells == 0 || capacity < SL_FRAME_HEADER_BYTES) return SL_E_INVALID;
    int code = sl_file_reader_cell(r, index, end_offset, &cells[0]);
    if (code == SL_OK && !r->walking && !r->page_proved && !compacted(r)) {
        /* No checksum stands over the cells of an unfinished page: a wrong one would give records wrong offsets. */
        sl_file_cell before;
        int64_t end = 0;
        if (index && (code = sl_file_reader_cell(r, index - 1, end_offset, &before)) == SL_OK) end = cell_end_rel(r, &before);
        if (end < 0) return end;
        if (code == SL_OK && (uint64_t)end != cells[0].rel) code = walk_instead(r);
        if (code == SL_OK) code = sl_file_reader_cell(r, index, end_offset, &cells[0]);
    }
    if (code != SL_OK) return code == SL_E_AGAIN ? 0 : code;
    uint64_t start = (uint64_t)cells[0].unit * SL_UNIT_BYTES, wanted = capacity;
    size_t n = 1;
    for (;; n++) { /* the cells whose frames begin in the buffer */
        sl_file_cell next;
        if (sl_file_reader_cell(r, index + n, end_offset, &next) != SL_OK) break; /* told when it is the first */
        if (next.unit <= cells[n - 1].unit || next.rel <= cells[n - 1].rel) break;
        uint64_t at = (uint64_t)next.unit * SL_UNIT_BYTES - start;
        if (n == max_cells) wanted = at < capacity ? at : capacity;
        if (n == max_cells || at >= capacity) break;
        cells[n] = next;
    }
    int64_t have = read_at(r->log.fd, buffer, wanted, start);
    if (have < 0) return have;
    for (size_t i = 0; i < n; i++) {
        uint64_t at = (uint64_t)cells[i].unit * SL_UNIT_BYTES - start, left = at < (uint64_t)have ? (uint64_t)have - at : 0;
        uint8_t *frame = buffer + at;
        uint32_t frame_bytes = 0;
        if (left >= 4) memcpy(&frame_bytes, frame, 4);
        if (frame_bytes > left || left < SL_FRAME_HEADER_BYTES) {
            if (i) return (int64_t)i;
            if ((code = size_of(r->log.fd, &r->log.size)) != SL_OK) return code;
            if (left < 4 || frame_bytes > SL_SEGMENT_MAX_BYTES || start > r->log.size || frame_bytes > r->log.size - start) return SL_E_CORRUPT;
            *needed_bytes = align64(frame_bytes);
            return (uint64_t)have == capacity ? SL_E_TOO_BIG : SL_E_CORRUPT;
        }
        int right = sl_frame_check(frame, left, verify_crc) == SL_OK;
        uint32_t rows = right ? sl_frame_rows(frame) : 0;
        right = right && (cells[i].count == 0 || cells[i].count == rows);
        right = right && (!verify_crc || sl_crc32c(0, frame, frame_bytes) == cells[i].crc32c);
        if (right && i + 1 < n && !compacted(r)) { /* a next cell that does not follow is damaged, or this one is: end the run before it */
            uint64_t next = align64((uint64_t)cells[i].unit * SL_UNIT_BYTES + frame_bytes) / SL_UNIT_BYTES;
            if (next != cells[i + 1].unit || (uint64_t)cells[i].rel + rows != cells[i + 1].rel) n = i + 1;
        }
        if (!right) return i ? (int64_t)i : SL_E_CORRUPT;
    }
    return (int64_t)n;
}

/* ---- facts and verification ------------------------------------------------------------------------------------------------------------ */

int sl_file_inspect(const char *dir, const char *log_name, sl_file_facts *out) {
    sl_file_reader *r;
    sl_file_cell cell;
    memset(out, 0, sizeof *out);
    int code = sl_file_reader_open(dir, log_name, &r);
    if (code != SL_OK) return code;
    const sl_file_header *h = &r->header;
    *out = (sl_file_facts){.base_offset = h->base_offset, .end_offset = h->base_offset, .max_timestamp_ns = -1, .made_ns = h->made_ns,
                           .leader_epoch = h->leader_epoch, .flags = h->flags, .disk_version = h->disk_version, .partition = h->partition};
    memcpy(out->topic_id, h->topic_id, 16);
    code = size_of(r->log.fd, &out->log_bytes);
    uint64_t count = 0;
    if (code == SL_OK && !r->walking && (code = count_cells(r)) == SL_OK) count = r->cells.count;
    /* The table may be longer than the .log, or damaged at its end, after a power cut; step back over what is not there. */
    for (; code == SL_OK && !r->walking && count; count--) {
        code = sl_file_reader_cell(r, count - 1, UINT64_MAX, &cell);
        if (code == SL_E_AGAIN) {
            code = SL_OK;
            continue;
        }
        if (code != SL_OK || r->walking) break;
        uint32_t frame_bytes = 0;
        int64_t n = read_at(r->log.fd, &frame_bytes, 4, (uint64_t)cell.unit * SL_UNIT_BYTES);
        if (n < 0) code = (int)n;
        if (n == 4 && frame_bytes >= SL_FRAME_HEADER_BYTES && (uint64_t)cell.unit * SL_UNIT_BYTES + frame_bytes <= out->log_bytes) break;
    }
    if (code == SL_OK && r->walking) {
        code = walk_to(r, UINT64_MAX - 1, UINT64_MAX);
        if (code == SL_E_AGAIN || code == SL_E_CORRUPT) code = SL_OK;
        count = r->walked_count;
        if (count) cell = r->walked[count - 1];
    }
    if (code == SL_OK && count) {
        int64_t end = cell_end_rel(r, &cell);
        if (end < 0) code = (int)end;
        else out->end_offset = h->base_offset + (uint64_t)end;
        out->cells = count;
        /* the running maximum of the last whole page, then the frames behind it */
        uint64_t index = 0;
        int64_t max_ns = NO_TIMESTAMP;
        sl_file_cell_footer footer;
        if (!r->walking && count / SL_CELLS_PER_PAGE && window_footer(&r->cells, count / SL_CELLS_PER_PAGE - 1, &footer) == 1) {
            index = count / SL_CELLS_PER_PAGE * SL_CELLS_PER_PAGE;
            max_ns = footer.max_timestamp_ns;
        }
        r->cells.page = UINT64_MAX;
        for (; code == SL_OK && index < count; index++) {
            if ((code = sl_file_reader_cell(r, index, UINT64_MAX, &cell)) != SL_OK) break;
            int64_t ns = cell_timestamp_ns(r, &cell, &code);
            if (code == SL_E_CORRUPT) code = SL_OK;
            else if (ns > max_ns) max_ns = ns;
        }
        out->max_timestamp_ns = max_ns;
    }
    sl_file_reader_close(r);
    return code;
}

typedef struct report {
    sl_file_problem *out;
    size_t max, count;
} report;

__attribute__((format(printf, 5, 6))) static void complain(report *p, uint64_t position, uint64_t offset, int code, const char *format, ...) {
    if (p->count++ >= p->max) return;
    sl_file_problem *problem = &p->out[p->count - 1];
    *problem = (sl_file_problem){.position = position, .offset = (int64_t)offset, .code = code};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(problem->what, sizeof problem->what, format, arguments);
    va_end(arguments);
}

int64_t sl_file_verify(const char *dir, const char *log_name, sl_file_problem *problems_out, size_t max_problems, size_t *problems) {
    report p = {problems_out, max_problems, 0};
    sl_file_reader *r;
    size_t ignored;
    if (!problems) problems = &ignored;
    *problems = 0;
    int code = sl_file_reader_open(dir, log_name, &r);
    if (code != SL_OK) return code;
    uint64_t base = r->header.base_offset, position = FIRST_FRAME, rel = 0, index = 0, frames = 0;
    int64_t max_ns = NO_TIMESTAMP, result = SL_OK;
    int unsure = 0; /* a damaged frame may have held the latest time */
    if ((code = size_of(r->log.fd, &r->log.size)) != SL_OK) result = code;
    if (r->walking) complain(&p, 0, base, SL_E_DAMAGED, "the cell table is missing or its header is damaged");
    else if ((code = count_cells(r)) != SL_OK) result = code;
    cell_window *w = &r->cells;
    if (r->walking) w->count = 0;
    while (result == SL_OK && position < r->log.size) {
        const uint8_t *frame;
        uint32_t frame_bytes;
        sl_file_cell cell = {0}, made;
        int there = window_cell(w, index, &cell);
        if (there < 0) {
            complain(&p, position, base + rel, SL_E_IO, "cell %llu cannot be read", (unsigned long long)index);
            there = 0;
            w->count = index;
        }
        if (there && compacted(r)) {
            if (cell.rel < rel || (uint64_t)cell.unit * SL_UNIT_BYTES != position)
                complain(&p, position, base + rel, SL_E_DAMAGED, "cell %llu names offset %llu at %llu", (unsigned long long)index,
                         (unsigned long long)(base + cell.rel), (unsigned long long)cell.unit * SL_UNIT_BYTES);
            else rel = cell.rel;
        }
        code = scan_frame(&r->log, position, &frame, &frame_bytes);
        if (code == SL_E_NOMEM) result = code;
        if (code == SL_OK) {
            made = cell_of_frame(frame, frame_bytes, rel, position);
            if (there && made.crc32c != cell.crc32c && cell.unit == made.unit && !covers_itself(frame)) {
                complain(&p, position, base + rel, SL_E_CORRUPT, "payload does not match the checksum in its cell");
            } else if (there && (made.rel != cell.rel || made.unit != cell.unit
                                 || (cell.count && cell.count != sl_frame_rows(frame)) || made.type != cell.type
                                 || made.crc32c != cell.crc32c)) {
                complain(&p, position, base + rel, SL_E_DAMAGED, "cell %llu does not match its frame", (unsigned long long)index);
            }
            int64_t ns = sl_frame_max_timestamp_ns(frame);
            if (ns > max_ns) max_ns = ns;
            rel += sl_frame_rows(frame);
            position = align64(position + frame_bytes);
            frames++;
        } else if (result == SL_OK) {
            complain(&p, position, base + rel, code == SL_E_CORRUPT ? SL_E_CORRUPT : SL_E_IO,
                     code == SL_E_CORRUPT ? "damaged or torn frame" : "frame cannot be read: I/O error");
            unsure = 1;
            /* on with the next cell that names a right frame */
            uint64_t next = index + 1;
            for (; there > 0; next++) {
                there = window_cell(w, next, &cell);
                uint64_t at = (uint64_t)cell.unit * SL_UNIT_BYTES;
                if (there > 0 && at > position && cell.rel > rel && scan_frame(&r->log, at, &frame, &frame_bytes) == SL_OK
                    && sl_crc32c(0, frame, frame_bytes) == cell.crc32c) break;
            }
            if (there <= 0) break;
            for (uint64_t lost = index + 1; lost < next; lost++)
                if (window_cell(w, lost, &made) > 0)
                    complain(&p, (uint64_t)made.unit * SL_UNIT_BYTES, base + made.rel, SL_E_CORRUPT, "damaged frame");
            position = (uint64_t)cell.unit * SL_UNIT_BYTES;
            rel = cell.rel;
            index = next;
            continue;
        }
        index++;
        if (index % SL_CELLS_PER_PAGE == 0 && index <= w->count && result == SL_OK) {
            sl_file_cell_footer footer;
            uint64_t page = index / SL_CELLS_PER_PAGE - 1;
            int right = window_footer(w, page, &footer);
            if (right != 1) complain(&p, (page + 1) * SL_CELL_PAGE_BYTES, base + rel, SL_E_DAMAGED, "cell page %llu: wrong checksum", (unsigned long long)page);
            else if (!unsure && footer.max_timestamp_ns != max_ns)
                complain(&p, (page + 1) * SL_CELL_PAGE_BYTES, base + rel, SL_E_DAMAGED, "cell page %llu: wrong latest time", (unsigned long long)page);
        }
    }
    if (result == SL_OK && !r->walking && w->count != index && position >= r->log.size)
        complain(&p, position, base + rel, SL_E_DAMAGED, "%llu cells for %llu frames", (unsigned long long)w->count, (unsigned long long)index);
    sl_file_reader_close(r);
    *problems = p.count;
    return result == SL_OK ? (int64_t)frames : result;
}
