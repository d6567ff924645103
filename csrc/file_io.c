/* The parts a segment file is made of, one at a time: system calls as codes, names, headers, cells, and windows over what is read forward. Nothing here
 * knows an order between writes (file.c, file_recover.c), and nothing that was read is believed before it is checked. */
#define _GNU_SOURCE
#include "file.h"

#include "atomic.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SCAN_BYTES (UINT64_C(1) << 20)

/* ---- system calls as codes ------------------------------------------------------------------------------------------------------------- */

int sl_code_of_errno(void) {
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
int sl_io_code(void) {
    int code = sl_code_of_errno();
    return code == SL_E_DISK_FULL ? code : SL_E_IO;
}

int64_t sl_read_at(int fd, void *to, uint64_t bytes, uint64_t position) {
    uint64_t done = 0;
    while (done < bytes) {
        ssize_t n = pread(fd, (uint8_t *)to + done, bytes - done, (off_t)(position + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return sl_io_code();
        if (n == 0) break;
        done += (uint64_t)n;
    }
    return (int64_t)done;
}

int sl_write_at(int fd, const void *from, uint64_t bytes, uint64_t position) {
    uint64_t done = 0;
    while (done < bytes) {
        ssize_t n = pwrite(fd, (const uint8_t *)from + done, bytes - done, (off_t)(position + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n ? sl_io_code() : SL_E_IO;
        done += (uint64_t)n;
        SL_FAILPOINT(file_step);
    }
    return SL_OK;
}

int sl_size_of(int fd, uint64_t *bytes) {
    struct stat s;
    if (fstat(fd, &s) != 0) return sl_io_code();
    *bytes = s.st_size < 0 ? 0 : (uint64_t)s.st_size;
    return SL_OK;
}

int sl_cut_at(int fd, uint64_t bytes) {
    if (ftruncate(fd, (off_t)bytes) != 0) return sl_io_code();
    SL_FAILPOINT(file_step);
    return SL_OK;
}

int sl_remove_below(int dir_fd, const char *name) {
    if (unlinkat(dir_fd, name, 0) != 0) return sl_code_of_errno();
    SL_FAILPOINT(file_step);
    return SL_OK;
}

void sl_close_fd(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

int sl_open_directory(const char *dir) {
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd >= 0 ? fd : sl_code_of_errno();
}

int sl_open_below(int dir_fd, const char *name, int flags) {
    int fd = openat(dir_fd, name, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (flags & O_CREAT) SL_FAILPOINT(file_step);
    return fd >= 0 ? fd : sl_code_of_errno();
}

/* ---- names and headers ----------------------------------------------------------------------------------------------------------------- */

void sl_file_make_name(char out[SL_NAME_BYTES], uint64_t base_offset, uint32_t leader_epoch, const char *suffix) {
    snprintf(out, SL_NAME_BYTES, "%020llu-%u.%s", (unsigned long long)(base_offset & SL_OFFSET_MASK), leader_epoch, suffix);
}

/* Only names that sl_file_make_name() makes: 1 and what they say, else 0. */
int sl_file_parse_name(const char *name, uint64_t *base_offset, uint32_t *leader_epoch) {
    uint64_t base = 0, epoch = 0;
    char again[SL_NAME_BYTES];
    if (strlen(name) >= SL_NAME_BYTES) return 0;
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
    sl_file_make_name(again, base, (uint32_t)epoch, "log");
    if (strcmp(again, name) != 0) return 0;
    *base_offset = base;
    *leader_epoch = (uint32_t)epoch;
    return 1;
}

/* The CRC of a file header stands in its last four bytes. */
#define HEADER_CRC_POSITION (SL_FILE_HEADER_BYTES - 4)
void sl_file_seal_header(sl_file_header *h) {
    uint32_t crc = sl_crc32c(0, h, HEADER_CRC_POSITION);
    memcpy((uint8_t *)h + HEADER_CRC_POSITION, &crc, 4);
}

int sl_file_read_header(int fd, uint64_t magic, uint64_t base_offset, uint32_t leader_epoch, sl_file_header *h) {
    uint64_t bytes;
    int code = sl_size_of(fd, &bytes);
    if (code != SL_OK) return code;
    int64_t n = sl_read_at(fd, h, sizeof *h, 0);
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

uint64_t sl_cells_in(uint64_t file_bytes) {
    if (file_bytes < SL_CELL_PAGE_BYTES) return 0;
    file_bytes -= SL_CELL_PAGE_BYTES;
    uint64_t rest = file_bytes % SL_CELL_PAGE_BYTES / sizeof(sl_file_cell);
    return file_bytes / SL_CELL_PAGE_BYTES * SL_CELLS_PER_PAGE + (rest > SL_CELLS_PER_PAGE ? SL_CELLS_PER_PAGE : rest);
}

void sl_footer_make(sl_file_cell_footer *f, uint32_t crc_of_cells, int64_t max_timestamp_ns) {
    f->max_timestamp_ns = max_timestamp_ns;
    f->crc32c = sl_crc32c(crc_of_cells, &f->max_timestamp_ns, 8);
    f->cells = SL_CELLS_PER_PAGE;
}
int sl_footer_ok(const uint8_t *page, sl_file_cell_footer *f) {
    memcpy(f, page + SL_FOOTER_POSITION, sizeof *f);
    return f->cells == SL_CELLS_PER_PAGE && f->crc32c == sl_crc32c(sl_crc32c(0, page, SL_FOOTER_POSITION), &f->max_timestamp_ns, 8);
}

void sl_mark_make(sl_file_mark *m, uint64_t log_bytes, uint64_t end_offset, uint64_t cells) {
    *m = (sl_file_mark){.log_bytes = log_bytes, .end_offset = end_offset, .cells = (uint32_t)cells};
    m->crc32c = sl_crc32c(0, m, offsetof(sl_file_mark, crc32c));
}

/* A batch carries a CRC of its own, whatever its size. */
int sl_covers_itself(const uint8_t *frame) {
    uint16_t flags;
    memcpy(&flags, frame + offsetof(sl_frame, flags), 2);
    return (flags & SL_FF_CRC_ALL) || (flags & SL_FF_KIND_MASK) == SL_FF_BATCH;
}

sl_file_cell sl_cell_of_frame(const uint8_t *frame, uint32_t frame_bytes, uint64_t rel, uint64_t position) {
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

int sl_cells_belong(const sl_file_header *cells_header, const sl_file_header *log_header) {
    return memcmp((const uint8_t *)cells_header + 8, (const uint8_t *)log_header + 8, HEADER_CRC_POSITION - 8) == 0;
}

int sl_cells_header_write(int fd, const sl_file_header *log_header) {
    uint8_t page[SL_CELL_PAGE_BYTES] = {0};
    sl_file_header h = *log_header;
    h.magic = SL_CELLS_MAGIC;
    sl_file_seal_header(&h);
    memcpy(page, &h, sizeof h);
    return sl_write_at(fd, page, sizeof page, 0);
}

/* ---- walking a .log --------------------------------------------------------------------------------------------------------------------- */

void sl_scan_close(sl_scan *s) {
    free(s->buffer);
    s->buffer = NULL;
    s->capacity = s->have = 0;
}

int64_t sl_scan_read(sl_scan *s, uint64_t position, uint64_t bytes, const uint8_t **out) {
    if (position >= s->begin && position - s->begin <= s->have && s->have - (position - s->begin) >= bytes) {
        *out = s->buffer + (position - s->begin);
        return (int64_t)bytes;
    }
    if (!s->buffer || bytes > s->capacity) {
        uint64_t capacity = sl_align64(bytes > SCAN_BYTES ? bytes : SCAN_BYTES);
        sl_scan_close(s);
        s->buffer = aligned_alloc(SL_UNIT_BYTES, capacity);
        if (!s->buffer) return SL_E_NOMEM;
        s->capacity = capacity;
    }
    s->begin = position;
    s->have = 0;
    int64_t n = sl_read_at(s->fd, s->buffer, s->capacity, position);
    if (n < 0) return n;
    s->have = (uint64_t)n;
    *out = s->buffer;
    return s->have < bytes ? n : (int64_t)bytes;
}

int sl_scan_frame(sl_scan *s, uint64_t position, const uint8_t **frame, uint32_t *frame_bytes) {
    if (position > s->size || s->size - position < SL_FRAME_HEADER_BYTES) return SL_E_CORRUPT;
    int64_t n = sl_scan_read(s, position, SL_FRAME_HEADER_BYTES, frame);
    if (n < 0) return (int)n;
    if (n < SL_FRAME_HEADER_BYTES) return SL_E_CORRUPT;
    memcpy(frame_bytes, *frame, 4);
    if (*frame_bytes < SL_FRAME_HEADER_BYTES || *frame_bytes > SL_SEGMENT_MAX_BYTES || *frame_bytes > s->size - position) return SL_E_CORRUPT;
    n = sl_scan_read(s, position, *frame_bytes, frame);
    if (n < 0) return (int)n;
    if (n < (int64_t)*frame_bytes) return SL_E_CORRUPT;
    return sl_frame_check(*frame, *frame_bytes, 1);
}

int sl_window_page(sl_cell_window *w, uint64_t page) {
    if (w->page == page) return SL_OK;
    w->page = UINT64_MAX;
    int64_t n = sl_read_at(w->fd, w->bytes, SL_CELL_PAGE_BYTES, (page + 1) * SL_CELL_PAGE_BYTES);
    if (n < 0) return (int)n;
    w->have = (uint64_t)n;
    w->page = page;
    return SL_OK;
}
int sl_window_cell(sl_cell_window *w, uint64_t index, sl_file_cell *out) {
    if (index >= w->count) return 0;
    int code = sl_window_page(w, index / SL_CELLS_PER_PAGE);
    if (code != SL_OK) return code;
    uint64_t at = index % SL_CELLS_PER_PAGE * sizeof *out;
    if (w->have < at + sizeof *out) return 0;
    memcpy(out, w->bytes + at, sizeof *out);
    return out->type != 0;
}
int sl_window_footer(sl_cell_window *w, uint64_t page, sl_file_cell_footer *out) {
    int code = sl_window_page(w, page);
    if (code != SL_OK) return code;
    return w->have == SL_CELL_PAGE_BYTES && sl_footer_ok(w->bytes, out);
}
