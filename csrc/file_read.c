/* Reading segment files: which of a directory's count, the frame of an offset or a time, runs of frames, and cheap facts of a file.
 *
 * A file may be growing while it is read: every call is bounded by an end that its writer published. What a cell says is taken with its page's footer,
 * or with its neighbours and the frame; a table that is missing or wrong is made again here, in memory, from the .log. */
#define _GNU_SOURCE
#include "file.h"

#include "atomic.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

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
    if (!d) return sl_code_of_errno();
    for (;;) {
        errno = 0;
        struct dirent *e = readdir(d);
        if (!e) {
            if (errno == 0) break;
            int code = sl_io_code();
            closedir(d);
            free(entries);
            return code;
        }
        sl_file_entry entry = {.until = UINT64_MAX};
        if (!sl_file_parse_name(e->d_name, &entry.base_offset, &entry.leader_epoch)) continue;
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

int sl_file_reader_open(const char *dir, const char *log_name, sl_file_reader **out) {
    uint64_t base_offset, cells_bytes = 0;
    uint32_t leader_epoch;
    char cells_name[SL_NAME_BYTES];
    *out = NULL;
    if (!sl_file_parse_name(log_name, &base_offset, &leader_epoch)) return SL_E_INVALID;
    sl_file_make_name(cells_name, base_offset, leader_epoch, "cells");
    sl_file_reader *r = calloc(1, sizeof *r);
    if (!r) return SL_E_NOMEM;
    r->log.fd = r->cells.fd = -1;
    r->cells.page = UINT64_MAX;
    r->walked_position = SL_FIRST_FRAME;
    int dir_fd = sl_open_directory(dir), code = dir_fd;
    if (dir_fd < 0) goto failed;
    code = r->log.fd = sl_open_below(dir_fd, log_name, O_RDONLY);
    if (code >= 0) r->cells.fd = sl_open_below(dir_fd, cells_name, O_RDONLY);
    close(dir_fd);
    if (code < 0) goto failed;
    if ((code = sl_file_read_header(r->log.fd, SL_FILE_MAGIC, base_offset, leader_epoch, &r->header)) != SL_OK) goto failed;
    sl_file_header h;
    r->walking = r->cells.fd < 0 || sl_file_read_header(r->cells.fd, SL_CELLS_MAGIC, base_offset, leader_epoch, &h) != SL_OK
        || sl_size_of(r->cells.fd, &cells_bytes) != SL_OK || cells_bytes < SL_CELL_PAGE_BYTES
        || !sl_cells_belong(&h, &r->header);
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
    sl_scan_close(&r->log);
    sl_close_fd(&r->log.fd);
    sl_close_fd(&r->cells.fd);
    free(r->walked);
    free(r);
}

const sl_file_header *sl_file_reader_header(sl_file_reader *r) { return &r->header; }

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
        if ((code = sl_size_of(r->log.fd, &r->log.size)) != SL_OK) return code;
        if (r->walked_position >= r->log.size) return SL_E_AGAIN;
        r->log.have = 0; /* the file may have grown since the window was read; one frame of it may have been torn then */
        code = sl_scan_frame(&r->log, r->walked_position, &frame, &frame_bytes);
        while (code == SL_OK) {
            if (r->walked_count == r->walked_capacity) {
                uint64_t capacity = r->walked_capacity ? 2 * r->walked_capacity : 1024;
                sl_file_cell *more = realloc(r->walked, capacity * sizeof *more);
                if (!more) return SL_E_NOMEM;
                r->walked = more;
                r->walked_capacity = capacity;
            }
            uint64_t rel = r->walked_rel + sl_frame_rows(frame), next = sl_align64(r->walked_position + frame_bytes);
            if (rel > UINT32_MAX || next / SL_UNIT_BYTES > UINT32_MAX) return SL_E_CORRUPT;
            r->walked[r->walked_count++] = sl_cell_of_frame(frame, frame_bytes, r->walked_rel, r->walked_position);
            r->walked_rel = rel;
            r->walked_position = next;
            if (rel >= limit_rel || next >= r->log.size || r->walked_count > index) break;
            code = sl_scan_frame(&r->log, next, &frame, &frame_bytes);
        }
        if (code != SL_OK) return code;
    }
    return SL_OK;
}

static int64_t frame_header_at(sl_file_reader *r, const sl_file_cell *cell, uint8_t out[SL_FRAME_HEADER_BYTES + 24]) {
    memset(out, 0, SL_FRAME_HEADER_BYTES + 24);
    return sl_read_at(r->log.fd, out, SL_FRAME_HEADER_BYTES + 24, (uint64_t)cell->unit * SL_UNIT_BYTES);
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
int sl_file_reader_count(sl_file_reader *r) {
    uint64_t bytes;
    int code = sl_size_of(r->cells.fd, &bytes);
    if (code == SL_OK) r->cells.count = sl_cells_in(bytes);
    return code;
}

/* Loads and proves a page; may switch to walking. */
static int load_page(sl_file_reader *r, uint64_t page, uint64_t limit_rel) {
    sl_file_cell_footer footer;
    int code = SL_OK;
    for (int attempt = 0; attempt < 3; attempt++) { /* a page caught while it was being finished is right the next time */
        r->cells.page = UINT64_MAX;
        if ((code = sl_window_page(&r->cells, page)) != SL_OK) return code;
        r->page_limit_rel = limit_rel;
        r->page_proved = r->cells.have == SL_CELL_PAGE_BYTES && sl_footer_ok(r->cells.bytes, &footer);
        if (r->page_proved || r->cells.have <= SL_FOOTER_POSITION) return SL_OK;
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
            if (index >= r->cells.count && (code = sl_file_reader_count(r)) != SL_OK) return code;
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
            uint64_t known = 0, position = SL_FIRST_FRAME;
            if (index) {
                if ((code = sl_file_reader_cell(r, index - 1, UINT64_MAX, &last)) != SL_OK) return code;
                int64_t end = cell_end_rel(r, &last);
                if (end < 0) return (int)end;
                known = (uint64_t)end;
                position = (uint64_t)last.unit * SL_UNIT_BYTES + SL_UNIT_BYTES;
                uint32_t frame_bytes;
                int64_t n = sl_read_at(r->log.fd, &frame_bytes, 4, (uint64_t)last.unit * SL_UNIT_BYTES);
                if (n < 0) return (int)n;
                if (n == 4) position = sl_align64((uint64_t)last.unit * SL_UNIT_BYTES + frame_bytes);
            }
            if (known >= limit_rel) return SL_E_AGAIN;
            if ((code = sl_size_of(r->log.fd, &r->log.size)) != SL_OK) return code;
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
        if ((code = sl_file_reader_count(r)) != SL_OK) return code;
        count = r->cells.count;
        uint64_t pages = (count + SL_CELLS_PER_PAGE - 1) / SL_CELLS_PER_PAGE;
        uint64_t page_low = 0, page_high = pages; /* the first page that begins beyond the target */
        while (page_low < page_high) {
            uint64_t middle = page_low + (page_high - page_low) / 2;
            int64_t n = sl_read_at(r->cells.fd, &cell, sizeof cell, sl_cell_position(middle * SL_CELLS_PER_PAGE));
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
        /* No gap is right here: one of the two cells is damaged, or, under a right footer, the frame whose count the cell left to it. */
        if (r->page_proved || r->walking || walk_instead(r) != SL_OK) return SL_E_CORRUPT;
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
    n = sl_read_at(r->log.fd, small + SL_FRAME_HEADER_BYTES, 61, (uint64_t)cell->unit * SL_UNIT_BYTES + h.frame_bytes);
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
        if ((code = sl_file_reader_count(r)) != SL_OK) return code;
        uint64_t low = 0, high = r->cells.count / SL_CELLS_PER_PAGE;
        while (low < high) { /* the first whole page whose running maximum reaches the time */
            uint64_t middle = low + (high - low) / 2;
            sl_file_cell_footer footer;
            int64_t n = sl_read_at(r->cells.fd, &footer, sizeof footer, (middle + 1) * SL_CELL_PAGE_BYTES + SL_FOOTER_POSITION);
            if (n < 0) return n;
            if (n == sizeof footer && footer.max_timestamp_ns < timestamp_ns) low = middle + 1;
            else high = middle;
        }
        index = low * SL_CELLS_PER_PAGE;
        if (low) { /* the page before proves that nothing earlier will do; if its footer does not, walk all */
            sl_file_cell_footer footer;
            code = sl_window_footer(&r->cells, low - 1, &footer);
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
    int64_t have = sl_read_at(r->log.fd, buffer, wanted, start);
    if (have < 0) return have;
    for (size_t i = 0; i < n; i++) {
        uint64_t at = (uint64_t)cells[i].unit * SL_UNIT_BYTES - start, left = at < (uint64_t)have ? (uint64_t)have - at : 0;
        uint8_t *frame = buffer + at;
        uint32_t frame_bytes = 0;
        if (left >= 4) memcpy(&frame_bytes, frame, 4);
        if (frame_bytes > left || left < SL_FRAME_HEADER_BYTES) {
            if (i) return (int64_t)i;
            if ((code = sl_size_of(r->log.fd, &r->log.size)) != SL_OK) return code;
            if (left < 4 || frame_bytes > SL_SEGMENT_MAX_BYTES || start > r->log.size || frame_bytes > r->log.size - start) return SL_E_CORRUPT;
            *needed_bytes = sl_align64(frame_bytes);
            return (uint64_t)have == capacity ? SL_E_TOO_BIG : SL_E_CORRUPT;
        }
        int right = sl_frame_check(frame, left, verify_crc) == SL_OK;
        uint32_t rows = right ? sl_frame_rows(frame) : 0;
        right = right && (cells[i].count == 0 || cells[i].count == rows);
        right = right && (!verify_crc || sl_crc32c(0, frame, frame_bytes) == cells[i].crc32c);
        if (right && i + 1 < n && !compacted(r)) { /* a next cell that does not follow is damaged, or this one is: end the run before it */
            uint64_t next = sl_align64((uint64_t)cells[i].unit * SL_UNIT_BYTES + frame_bytes) / SL_UNIT_BYTES;
            if (next != cells[i + 1].unit || (uint64_t)cells[i].rel + rows != cells[i + 1].rel) n = i + 1;
        }
        if (!right) return i ? (int64_t)i : SL_E_CORRUPT;
    }
    return (int64_t)n;
}

/* ---- facts ------------------------------------------------------------------------------------------------------------------------- */

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
    code = sl_size_of(r->log.fd, &out->log_bytes);
    uint64_t count = 0;
    if (code == SL_OK && !r->walking && (code = sl_file_reader_count(r)) == SL_OK) count = r->cells.count;
    /* The table may be longer than the .log, or damaged at its end, after a power cut; step back over what is not there. */
    for (; code == SL_OK && !r->walking && count; count--) {
        code = sl_file_reader_cell(r, count - 1, UINT64_MAX, &cell);
        if (code == SL_E_AGAIN) {
            code = SL_OK;
            continue;
        }
        if (code != SL_OK || r->walking) break;
        uint32_t frame_bytes = 0;
        int64_t n = sl_read_at(r->log.fd, &frame_bytes, 4, (uint64_t)cell.unit * SL_UNIT_BYTES);
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
        int64_t max_ns = SL_NO_TIMESTAMP;
        sl_file_cell_footer footer;
        if (!r->walking && count / SL_CELLS_PER_PAGE && sl_window_footer(&r->cells, count / SL_CELLS_PER_PAGE - 1, &footer) == 1) {
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
