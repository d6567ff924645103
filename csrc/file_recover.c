/* Making a file right after a kill or a power cut, and saying what is wrong with one.
 *
 * Recovery believes what lies below the mark of the last sync, and above it only frames that prove themselves; it cuts behind the last of these and makes
 * the cell table say the same. Every step may be killed: the next recovery does it again. Verification changes nothing. */
#define _GNU_SOURCE
#include "file.h"

#include "atomic.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

/* ---- recovery -------------------------------------------------------------------------------------------------------------------------- */

typedef struct recovery {
    sl_scan log;
    sl_cell_window cells;
    sl_file_header header;
    sl_file_mark mark;                /* cells 0: none */
    uint64_t cut_rel;                 /* frames that end beyond it go */
    uint64_t durable_rel;             /* frames that end below it were synced, whatever became of the table */
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
    int64_t n = sl_read_at(r->cells.fd, old, bytes, position);
    if (n < 0) return (int)n;
    if ((uint64_t)n == bytes && memcmp(old, r->page, bytes) == 0) return SL_OK;
    return sl_write_at(r->cells.fd, r->page, bytes, position);
}

static int recovery_put(recovery *r, const sl_file_cell *cell, int64_t timestamp_ns) {
    uint64_t slot = r->index % SL_CELLS_PER_PAGE;
    memcpy(r->page + slot * sizeof *cell, cell, sizeof *cell);
    if (timestamp_ns > r->max_timestamp_ns) r->max_timestamp_ns = timestamp_ns;
    r->index++;
    if (slot + 1 < SL_CELLS_PER_PAGE) return SL_OK;
    sl_file_cell_footer footer;
    sl_footer_make(&footer, sl_crc32c(0, r->page, SL_FOOTER_POSITION), r->max_timestamp_ns);
    memcpy(r->page + SL_FOOTER_POSITION, &footer, sizeof footer);
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
        int code = sl_window_footer(&r->cells, page - 1, &footer);
        if (code < 0) return code;
        if (!code) continue;
        code = sl_window_cell(&r->cells, page * SL_CELLS_PER_PAGE - 1, &cell);
        if (code < 0) return code;
        if (!code || cell.rel >= r->cut_rel) continue;
        uint64_t position = (uint64_t)cell.unit * SL_UNIT_BYTES;
        code = sl_scan_frame(&r->log, position, &frame, &frame_bytes);
        if (code == SL_E_CORRUPT) continue;
        if (code != SL_OK) return code;
        uint64_t end = (uint64_t)cell.rel + sl_frame_rows(frame);
        if (sl_crc32c(0, frame, frame_bytes) != cell.crc32c || end > r->cut_rel) continue;
        r->index = page * SL_CELLS_PER_PAGE;
        r->position = sl_align64(position + frame_bytes);
        r->rel = end;
        r->max_timestamp_ns = footer.max_timestamp_ns;
        return SL_OK;
    }
    r->index = 0;
    r->position = SL_FIRST_FRAME;
    r->rel = 0;
    r->max_timestamp_ns = SL_NO_TIMESTAMP;
    return SL_OK;
}

/* Whether the offset in cell j is to be believed: its page has a right footer, or what follows says the same. The frame cannot tell. */
static int recovery_offset_proved(recovery *r, uint64_t j, uint64_t end) {
    sl_file_cell_footer footer;
    sl_file_cell next;
    int code = sl_window_footer(&r->cells, j / SL_CELLS_PER_PAGE, &footer);
    if (code != 0) return code;
    if (j + 1 == r->mark.cells) return r->mark.end_offset - r->header.base_offset == end;
    code = sl_window_cell(&r->cells, j + 1, &next);
    return code > 0 ? next.rel == end : code;
}

/* The frame here is damaged, and below the mark: keeps the cells up to the next frame that is right. 1 went on, 0 cannot, or a code. */
static int recovery_skip(recovery *r) {
    sl_file_cell cell, next;
    int code = sl_window_cell(&r->cells, r->index, &cell);
    if (code <= 0) return code;
    if (cell.rel != r->rel || (uint64_t)cell.unit * SL_UNIT_BYTES != r->position) return 0;
    uint64_t last_rel = cell.rel, last_unit = cell.unit;
    for (uint64_t j = r->index + 1; j <= r->mark.cells; j++) {
        uint64_t position = r->mark.log_bytes, rel = r->mark.end_offset - r->header.base_offset;
        if (j < r->mark.cells) {
            if ((code = sl_window_cell(&r->cells, j, &next)) <= 0) return code;
            position = (uint64_t)next.unit * SL_UNIT_BYTES;
            rel = next.rel;
        }
        if (rel <= last_rel || position <= last_unit * SL_UNIT_BYTES || rel > r->cut_rel) return 0;
        last_rel = rel;
        last_unit = position / SL_UNIT_BYTES;
        if (j < r->mark.cells) {
            const uint8_t *frame;
            uint32_t frame_bytes;
            code = sl_scan_frame(&r->log, position, &frame, &frame_bytes);
            if (code == SL_E_CORRUPT || (code == SL_OK && sl_crc32c(0, frame, frame_bytes) != next.crc32c)) continue;
            if (code != SL_OK) return code;
            if ((code = recovery_offset_proved(r, j, rel + sl_frame_rows(frame))) < 0) return code;
            if (!code) continue;
        }
        while (r->index < j) {
            if ((code = sl_window_cell(&r->cells, r->index, &cell)) <= 0) return code;
            if ((code = recovery_put(r, &cell, SL_NO_TIMESTAMP)) != SL_OK) return code;
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
        int code = sl_scan_frame(&r->log, r->position, &frame, &frame_bytes);
        if (code != SL_OK && code != SL_E_CORRUPT) return code; /* a disk that cannot be read is no reason to cut */
        int right = code == SL_OK;
        if (right) {
            cell = sl_cell_of_frame(frame, frame_bytes, r->rel, r->position);
            if ((code = sl_window_cell(&r->cells, r->index, &old)) < 0) return code;
            int agrees = code && old.rel == cell.rel && old.unit == cell.unit;
            if (agrees && old.crc32c == cell.crc32c) cell.flags = old.flags;
            else if (!sl_covers_itself(frame)) {
                /* A large payload whose only witness is the cell. If that is gone, the header's CRC must do where all was synced. */
                if (agrees) right = 0;
                else if (!below_mark && r->rel + sl_frame_rows(frame) > r->durable_rel) right = 0;
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
        uint64_t next = sl_align64(r->position + frame_bytes);
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
    if (r->log.size != r->position && (code = sl_cut_at(r->log.fd, r->position)) != SL_OK) return code;
    SL_FAILPOINT(file_recover_cut);
    if (fdatasync(r->log.fd) != 0) return sl_io_code();
    uint64_t partial = r->index % SL_CELLS_PER_PAGE * sizeof(sl_file_cell);
    if (partial && (code = recovery_write_page(r, r->index / SL_CELLS_PER_PAGE, partial)) != SL_OK) return code;
    SL_FAILPOINT(file_recover_cells);
    if (cells_bytes != sl_cell_position(r->index) && (code = sl_cut_at(r->cells.fd, sl_cell_position(r->index))) != SL_OK) return code;
    if (!r->table_there) {
        /* A header says that what the table does not prove is to be cut: it comes last, when all cells are on disk. */
        if (fdatasync(r->cells.fd) != 0) return sl_io_code();
        SL_FAILPOINT(file_recover_table);
        if ((code = sl_cells_header_write(r->cells.fd, &r->header)) != SL_OK) return code;
    }
    sl_mark_make(&mark, r->position, r->header.base_offset + r->rel, r->index);
    int64_t n = sl_read_at(r->cells.fd, &old, sizeof old, SL_FILE_MARK_POSITION);
    if (n < 0) return (int)n;
    if (n != sizeof old || memcmp(&old, &mark, sizeof mark) != 0) {
        if ((code = sl_write_at(r->cells.fd, &mark, sizeof mark, SL_FILE_MARK_POSITION)) != SL_OK) return code;
    }
    SL_FAILPOINT(file_recover_marked);
    return fdatasync(r->cells.fd) == 0 ? SL_OK : sl_io_code();
}

/* Compacted files are made whole and synced before they get their name, and only their cells know their offsets: nothing to cut or rebuild,
 * only to check that the last cell and its frame are there. */
static int recovery_compacted(recovery *r) {
    sl_file_cell cell;
    const uint8_t *frame;
    uint32_t frame_bytes;
    if (!r->table_there) return SL_E_DAMAGED;
    if (r->cells.count == 0) return r->log.size == SL_FIRST_FRAME ? SL_OK : SL_E_DAMAGED;
    int code = sl_window_cell(&r->cells, r->cells.count - 1, &cell);
    if (code < 0) return code;
    if (code == 0) return SL_E_DAMAGED;
    r->position = (uint64_t)cell.unit * SL_UNIT_BYTES;
    code = sl_scan_frame(&r->log, r->position, &frame, &frame_bytes);
    if (code != SL_OK) return code == SL_E_CORRUPT ? SL_E_DAMAGED : code;
    r->rel = (uint64_t)cell.rel + sl_frame_rows(frame);
    return sl_align64(r->position + frame_bytes) == r->log.size ? SL_OK : SL_E_DAMAGED;
}

/* The header of the .log is wrong. Zeros, and no mark beside it: a power cut came before the first sync, and its first page did not reach the disk. */
static int never_synced(recovery *r, int dir_fd, const char *cells_name) {
    static const sl_file_header zeros;
    sl_file_header h;
    sl_file_mark mark;
    if (sl_read_at(r->log.fd, &h, sizeof h, 0) != sizeof h || memcmp(&h, &zeros, sizeof h) != 0) return 0;
    int fd = sl_open_below(dir_fd, cells_name, O_RDONLY);
    if (fd < 0) return fd == SL_E_NOENT;
    int64_t n = sl_read_at(fd, &mark, sizeof mark, SL_FILE_MARK_POSITION);
    close(fd);
    return n >= 0 && !(n == sizeof mark && mark.crc32c == sl_crc32c(0, &mark, offsetof(sl_file_mark, crc32c)) && mark.cells);
}

static int64_t recover(recovery *r, int dir_fd, const char *log_name, uint64_t cut_offset, uint64_t durable_offset,
                       uint64_t *cut_bytes) {
    uint64_t base_offset, cells_bytes;
    uint32_t leader_epoch;
    char cells_name[SL_NAME_BYTES];
    if (!sl_file_parse_name(log_name, &base_offset, &leader_epoch)) return SL_E_INVALID;
    sl_file_make_name(cells_name, base_offset, leader_epoch, "cells");
    int code = r->log.fd = sl_open_below(dir_fd, log_name, O_RDWR);
    if (code < 0) return code;
    if ((code = sl_size_of(r->log.fd, &r->log.size)) != SL_OK) return code;
    code = sl_file_read_header(r->log.fd, SL_FILE_MAGIC, base_offset, leader_epoch, &r->header);
    if (code == SL_E_DAMAGED && never_synced(r, dir_fd, cells_name)) code = SL_E_HALFMADE;
    if (code == SL_E_HALFMADE) {
        /* Nothing in it was ever synced. The .log goes last, for it is what names both. */
        if ((code = sl_remove_below(dir_fd, cells_name)) != SL_OK && code != SL_E_NOENT) return code;
        SL_FAILPOINT(file_recover_remove);
        if ((code = sl_remove_below(dir_fd, log_name)) != SL_OK) return code;
        if (fsync(dir_fd) != 0) return sl_io_code();
        *cut_bytes = r->log.size;
        return (int64_t)base_offset;
    }
    if (code != SL_OK) return code;
    r->cut_rel = cut_offset < base_offset ? 0 : cut_offset - base_offset;
    r->durable_rel = durable_offset < base_offset ? 0 : durable_offset - base_offset;

    code = r->cells.fd = sl_open_below(dir_fd, cells_name, O_RDWR);
    if (code == SL_E_NOENT && !(r->header.flags & SL_FILE_COMPACTED)) {
        code = r->cells.fd = sl_open_below(dir_fd, cells_name, O_RDWR | O_CREAT | O_EXCL);
        if (code >= 0 && fsync(dir_fd) != 0) return sl_io_code();
    }
    if (code < 0) return code == SL_E_NOENT ? SL_E_DAMAGED : code;
    if ((code = sl_size_of(r->cells.fd, &cells_bytes)) != SL_OK) return code;
    sl_file_header h;
    code = sl_file_read_header(r->cells.fd, SL_CELLS_MAGIC, base_offset, leader_epoch, &h);
    if (code == SL_E_IO || code == SL_E_VERSION) return code;
    r->table_there = code == SL_OK && cells_bytes >= SL_CELL_PAGE_BYTES && sl_cells_belong(&h, &r->header);
    r->cells.page = UINT64_MAX;
    if (r->table_there) {
        r->cells.count = sl_cells_in(cells_bytes);
        int64_t n = sl_read_at(r->cells.fd, &r->mark, sizeof r->mark, SL_FILE_MARK_POSITION);
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

int64_t sl_file_recover(const char *dir, const char *log_name, uint64_t cut_offset, uint64_t durable_offset, uint64_t *cut_bytes) {
    uint64_t ignored;
    if (!cut_bytes) cut_bytes = &ignored;
    *cut_bytes = 0;
    recovery *r = calloc(1, sizeof *r);
    if (!r) return SL_E_NOMEM;
    r->log.fd = r->cells.fd = -1;
    int dir_fd = sl_open_directory(dir);
    int64_t result = dir_fd;
    if (dir_fd >= 0) {
        result = recover(r, dir_fd, log_name, cut_offset, durable_offset, cut_bytes);
        close(dir_fd);
    }
    sl_scan_close(&r->log);
    sl_close_fd(&r->log.fd);
    sl_close_fd(&r->cells.fd);
    free(r);
    return result;
}

/* ---- verification ---------------------------------------------------------------------------------------------------------------------- */

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
    uint64_t base = r->header.base_offset, position = SL_FIRST_FRAME, rel = 0, index = 0, frames = 0;
    int64_t max_ns = SL_NO_TIMESTAMP, result = SL_OK;
    int unsure = 0; /* a damaged frame may have held the latest time */
    if ((code = sl_size_of(r->log.fd, &r->log.size)) != SL_OK) result = code;
    if (r->walking) complain(&p, 0, base, SL_E_DAMAGED, "the cell table is missing or its header is damaged");
    else if ((code = sl_file_reader_count(r)) != SL_OK) result = code;
    sl_cell_window *w = &r->cells;
    if (r->walking) w->count = 0;
    while (result == SL_OK && position < r->log.size) {
        const uint8_t *frame;
        uint32_t frame_bytes;
        sl_file_cell cell = {0}, made;
        int there = sl_window_cell(w, index, &cell);
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
        code = sl_scan_frame(&r->log, position, &frame, &frame_bytes);
        if (code == SL_E_NOMEM) result = code;
        if (code == SL_OK) {
            made = sl_cell_of_frame(frame, frame_bytes, rel, position);
            if (there && made.crc32c != cell.crc32c && cell.unit == made.unit && !sl_covers_itself(frame)) {
                complain(&p, position, base + rel, SL_E_CORRUPT, "payload does not match the checksum in its cell");
            } else if (there && (made.rel != cell.rel || made.unit != cell.unit
                                 || (cell.count && cell.count != sl_frame_rows(frame)) || made.type != cell.type
                                 || made.crc32c != cell.crc32c)) {
                complain(&p, position, base + rel, SL_E_DAMAGED, "cell %llu does not match its frame", (unsigned long long)index);
            }
            uint16_t flags;
            memcpy(&flags, frame + offsetof(sl_frame, flags), 2);
            if ((flags & SL_FF_KIND_MASK) == SL_FF_CONTROL && flags & SL_FF_LOST) /* the file is right, the log is not whole */
                complain(&p, position, base + rel, SL_E_LOST, "%u records from here on were found damaged or missing before", sl_frame_rows(frame));
            int64_t ns = sl_frame_max_timestamp_ns(frame);
            if (ns > max_ns) max_ns = ns;
            rel += sl_frame_rows(frame);
            position = sl_align64(position + frame_bytes);
            frames++;
        } else if (result == SL_OK) {
            complain(&p, position, base + rel, code == SL_E_CORRUPT ? SL_E_CORRUPT : SL_E_IO,
                     code == SL_E_CORRUPT ? "damaged or torn frame" : "frame cannot be read: I/O error");
            unsure = 1;
            /* on with the next cell that names a right frame */
            uint64_t next = index + 1;
            for (; there > 0; next++) {
                there = sl_window_cell(w, next, &cell);
                uint64_t at = (uint64_t)cell.unit * SL_UNIT_BYTES;
                if (there > 0 && at > position && cell.rel > rel && sl_scan_frame(&r->log, at, &frame, &frame_bytes) == SL_OK
                    && sl_crc32c(0, frame, frame_bytes) == cell.crc32c) break;
            }
            if (there <= 0) break;
            for (uint64_t lost = index + 1; lost < next; lost++)
                if (sl_window_cell(w, lost, &made) > 0)
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
            int right = sl_window_footer(w, page, &footer);
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
