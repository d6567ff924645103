/* Reading a partition: in order, from memory while the segment is there, else from its file; one cursor, no merge.
 *
 * A reader maps segments read-only. While it looks at one, the row's poll pin names it: pin, then look at the directory again (steps 23-25). What a poll
 * returned stays valid until the next one; a lease hands the pin to a view pin first and lives on after the reader. Nothing is pinned while asleep.
 *
 * Frames in memory were written by other processes: the header is copied once, checked, and only the copy is used to compute addresses; a batch is copied
 * whole before it is decoded. Values are shown where they lie: a view is what memory holds (bytes are immutable once appended, unless a producer
 * scribbles; then the CRC finds it). Files are read with pread into a buffer that is private, so EIO is a code and never SIGBUS. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "meter.h"

#define FILE_BUFFER_BYTES (1u << 20)
#define FILE_CELLS 2048

/* Bytes read from a file, or a private copy of a batch; counted, because leases outlive polls. */
typedef struct buffer { int32_t users; uint64_t capacity; uint8_t *bytes; } buffer;

struct sl_reader {
    sl_cluster *cluster;        /* NULL: files only */
    sl_row *row;
    sl_partition *p;
    sl_waits *waits;
    uint32_t row_index, block;
    uint8_t topic_id[16];
    char *dir;
    uint64_t position;          /* the offset read next */
    /* in memory: cell `index` of segment `number` is the next; it must begin at base + rel */
    uint64_t number;            /* 0: not located in memory */
    sl_map *map;
    uint64_t base;
    uint32_t index, rel;
    int pinned;
    int nowhere;                /* the last poll found the position neither in memory nor in a file, `cur` being nowhere_cur: not opened yet */
    uint64_t nowhere_cur;
    /* how close behind the writer (collect()) */
    uint32_t shown;             /* records since the end was last seen */
    uint32_t ends;              /* looks in a row that found it */
    uint32_t in_step;           /* times in a row that one record came as soon as it was looked for */
    int64_t collect_ns;         /* how long it lets records come together; 0 it does not */
    int tether;                 /* slot in waits->tethers, -1 none */
    /* in a file */
    sl_file_reader *file;
    sl_file_entry entry;
    uint64_t file_index;        /* of cells[0] */
    size_t cells_used, cell_at; /* frames in `buffer` still to be shown: cells[cell_at .. cells_used) */
    sl_file_cell *cells;
    buffer *buffer;
    uint64_t damage_end;        /* behind the damage at `position` that the last poll found; <= position: unknown */
    int from_memory;            /* where the last views point */
    sl_meter *meter;            /* NULL: none yet, or none is free */
    uint32_t unmeasured;        /* polls until the next look at the clock, or for a meter */
    int searching;              /* for a time: not a reader's reading */
};

static buffer *buffer_new(uint64_t capacity) {
    buffer *b = malloc(sizeof *b);
    if (!b) return NULL;
    capacity = (capacity + 63) & ~UINT64_C(63);
    b->bytes = aligned_alloc(64, capacity);
    if (!b->bytes) { free(b); return NULL; }
    b->users = 1;
    b->capacity = capacity;
    return b;
}
static void buffer_put(buffer *b) {
    if (b && __atomic_sub_fetch(&b->users, 1, __ATOMIC_ACQ_REL) == 0) { free(b->bytes); free(b); }
}
/* A buffer of the reader's own with at least `capacity`: a leased one is left to its lease. */
static int buffer_own(sl_reader *r, uint64_t capacity) {
    if (r->buffer && sl_load_acquire(&r->buffer->users) == 1 && r->buffer->capacity >= capacity) return SL_OK;
    buffer *b = buffer_new(capacity > FILE_BUFFER_BYTES ? capacity : FILE_BUFFER_BYTES);
    if (!b) return SL_E_NOMEM;
    buffer_put(r->buffer);
    r->buffer = b;
    return SL_OK;
}

/* ---- open, close, seek ---- */

static sl_reader *reader_new(const char *dir) {
    sl_reader *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->tether = -1;
    r->cells = malloc(FILE_CELLS * sizeof *r->cells);
    r->dir = dir ? strdup(dir) : NULL;
    if (!r->cells || (dir && !r->dir)) { free(r->cells); free(r->dir); free(r); return NULL; }
    return r;
}

int sl_reader_open(sl_cluster *cluster, uint32_t row, uint32_t block, const uint8_t topic_id[16], const char *dir, sl_reader **out) {
    int rc = sl_cluster_check(cluster);
    if (rc < 0) return rc;
    sl_reader *r = reader_new(dir);
    if (!r) return SL_E_NOMEM;
    r->cluster = cluster;
    r->row_index = row;
    r->block = block;
    r->row = sl_cluster_row(cluster, row);
    r->p = sl_cluster_partition(cluster, block);
    r->waits = sl_cluster_waits(cluster, block);
    memcpy(r->topic_id, topic_id, 16);
    if (!r->row || !r->p || !r->waits) { sl_reader_close(r); return SL_E_INVALID; }
    *out = r;
    return SL_OK;
}

int sl_reader_open_files(const char *dir, sl_reader **out) {
    sl_reader *r = reader_new(dir);
    if (!r) return SL_E_NOMEM;
    *out = r;
    return SL_OK;
}

static void unpin(sl_reader *r) {
    if (!r->pinned) return;
    sl_store_release(&r->row->poll_pin, 0); /* SYNC pin_clear: after the last read; pairs with the recycler's scan (acquire) */
    r->pinned = 0;
}
static void leave_memory(sl_reader *r) {
    unpin(r);
    if (r->map) sl_map_put(r->cluster, r->map);
    r->map = NULL;
    r->number = 0;
}
static void leave_file(sl_reader *r) {
    if (r->file) sl_file_reader_close(r->file);
    r->file = NULL;
    r->cells_used = r->cell_at = 0;
}

void sl_reader_close(sl_reader *r) {
    if (!r->cluster || sl_cluster_check(r->cluster) == SL_OK) {
        if (r->tether >= 0) sl_reader_tether(r, 0);
        if (r->meter) sl_meter_give(r->meter, r->row_index, r->block);
        if (r->cluster) leave_memory(r);
    }
    leave_file(r);
    buffer_put(r->buffer);
    free(r->cells);
    free(r->dir);
    free(r);
}

int sl_reader_seek(sl_reader *r, uint64_t offset) {
    if (r->cluster) leave_memory(r);
    leave_file(r);
    r->position = offset;
    r->damage_end = 0;
    return SL_OK;
}
int sl_reader_directory(sl_reader *r, const char *dir) {
    char *copy = strdup(dir);
    if (!copy) return SL_E_NOMEM;
    leave_file(r);
    free(r->dir);
    r->dir = copy;
    return SL_OK;
}
uint64_t sl_reader_position(sl_reader *r) { return r->position; }
uint64_t sl_reader_damage_end(sl_reader *r) { return r->damage_end > r->position ? r->damage_end : r->position + 1; }
void sl_reader_done(sl_reader *r) { if (r->cluster && sl_cluster_check(r->cluster) == SL_OK) unpin(r); }

/* ---- memory ---- */

/* Steps 23-24: pins segment `number` if the directory still names it. 1 pinned (map set), 0 it is gone. */
static int pin_segment(sl_reader *r, uint64_t number, sl_map *known, sl_map **out) {
    uint64_t *slot = &r->p->dir[number % SL_DIR_SLOTS];
    uint64_t d = sl_load_acquire(slot); /* SYNC recycle_publish */
    if (sl_dir_number(d) != (number & 0xffff) || sl_dir_buffer(d) == 0) return 0;
    sl_map *m = known;
    if (!m || m->buffer != sl_dir_buffer(d)) {
        int rc = sl_map_get(r->cluster, sl_dir_buffer(d), 0, &m);
        if (rc < 0) return rc == SL_E_NOENT ? 0 : rc;
    }
    SL_FAILPOINT(pin_store);
    sl_store_sc(&r->row->poll_pin, sl_pin_make(r->block, number)); /* SYNC pin_store: then look again; pairs with recycle_takeout, then scan */
    SL_FAILPOINT(pin_recheck);
    uint64_t again = sl_load_sc(slot);
    /* A claim takes nothing away: whoever holds it scans after the take-out. The epoch may change under a new leader. */
    int same = sl_dir_number(again) == sl_dir_number(d) && sl_dir_buffer(again) == sl_dir_buffer(d);
    if (same && m->segment->number == number) { r->pinned = 1; *out = m; return 1; }
    sl_store_release(&r->row->poll_pin, 0);
    r->pinned = 0;
    if (m != known) sl_map_put(r->cluster, m);
    return 0;
}

/* Takes up segment `number` at its first cell; the pin is held. 1, 0 gone or not open yet (no base), or a code. */
static int enter_segment(sl_reader *r, uint64_t number) {
    sl_map *m, *old = r->map;
    int rc = pin_segment(r, number, NULL, &m);
    if (rc <= 0) return rc;
    uint64_t base = sl_load_acquire(&m->segment->base); /* SYNC base_cas */
    if (sl_word_tag(base) != (number & 0xffff) || sl_word_offset(base) == SL_BASE_UNSET) {
        unpin(r);
        sl_map_put(r->cluster, m);
        return 0;
    }
    if (old) sl_map_put(r->cluster, old);
    r->map = m;
    r->number = number;
    r->base = sl_word_offset(base);
    r->index = r->rel = 0;
    return 1;
}

/* All before the current segment is passed: producers that wait for room may recycle it. Only upwards: a search downwards must not let go. */
static void move_tether(sl_reader *r) {
    if (r->tether < 0) return;
    uint64_t *word = &r->waits->tethers[r->tether];
    if ((sl_load_relaxed(word) & SL_NUMBER_MASK) >= r->number) return;
    sl_store_sc(word, ((uint64_t)(r->row_index + 1) << 40) | r->number); /* SYNC tether */
    sl_wake_bits(r->cluster, r->waits->commit);
}

/* Finds r->position in memory. 1 located and pinned, 0 not in memory (older, or nothing there), SL_E_RANGE beyond the end, or a code. */
static int locate(sl_reader *r) {
    leave_memory(r);
    for (int turn = 0; turn < 100; turn++) {
        uint64_t active = sl_cur_number(sl_load_acquire(&r->p->cur)); /* SYNC cur_cas */
        if (active == 0) return 0;
        uint64_t lowest = active >= SL_DIR_SLOTS ? active - SL_DIR_SLOTS + 1 : 1;
        int older = 1; /* the position lies before all that is in memory */
        for (uint64_t n = active; n >= lowest; n--) {
            int rc = enter_segment(r, n);
            if (rc < 0) { leave_memory(r); return rc; }
            if (rc == 0) { older = n != active; break; } /* the active one cannot go: `cur` moved on */
            if (r->base > r->position) { unpin(r); continue; }
            uint32_t end_rel;
            int sealed;
            int64_t end = sl_segment_end(r->map, n, &end_rel, &sealed);
            if (end < 0) { leave_memory(r); return (int)end; }
            if (r->position > r->base + end_rel) {
                leave_memory(r);
                if (n == active && sl_cur_number(sl_load_sc(&r->p->cur)) == active) return SL_E_RANGE;
                older = 0;
                break; /* moved on meanwhile: look again */
            }
            int64_t low = 0, high = end; /* the last cell with rel <= wanted; cells[0 .. end) are filled */
            uint32_t wanted = (uint32_t)(r->position - r->base);
            while (low < high) {
                int64_t middle = (low + high) / 2;
                if (sl_cell_rel(sl_load_acquire(&r->map->cells[middle])) <= wanted) low = middle + 1; else high = middle;
            }
            if (wanted == end_rel) { r->index = (uint32_t)end; r->rel = end_rel; }
            else {
                if (low == 0) { leave_memory(r); return SL_E_DAMAGED; }
                r->index = (uint32_t)(low - 1);
                r->rel = sl_cell_rel(sl_load_acquire(&r->map->cells[low - 1]));
            }
            move_tether(r);
            return 1;
        }
        leave_memory(r);
        if (older) return 0;
        sl_pause();
    }
    return 0;
}

/* What one poll may still return. */
typedef struct budget { sl_view *views; size_t used, max; uint64_t bytes, max_bytes; uint64_t limit; int verify_crc; } budget;

/* Shows rows of the frame at `frame` (in shared memory, at most `room` bytes) from `from_row` on. Returns rows shown (0: it is a batch: copy it), SL_E_CORRUPT.
 * Header and extensions are read once, into `copy`: nothing else decides an address, and they are what the checksum is computed of. */
static int64_t show_memory_frame(sl_reader *r, const uint8_t *frame, uint64_t room, uint64_t offset, uint32_t count, uint32_t from_row, budget *b) {
    uint8_t copy[SL_FRAME_HEADER_BYTES + 28] __attribute__((aligned(8))); /* header and the extensions of fixed size; a dtype is only pointed at */
    sl_frame h;
    if (room < sizeof copy) return SL_E_CORRUPT; /* cannot be: a unit is larger */
    memcpy(copy, frame, sizeof copy);
    __asm__ __volatile__("" : : : "memory"); /* the compiler may not read again where we read the copy */
    memcpy(&h, copy, sizeof h);
    uint64_t head = SL_FRAME_HEADER_BYTES + (uint64_t)h.extension_bytes;
    uint64_t key = h.key_bytes == SL_NULL_BYTES ? 0 : h.key_bytes, value = h.value_bytes == SL_NULL_BYTES ? 0 : h.value_bytes;
    if (h.frame_bytes > room || head + key + value > h.frame_bytes) return SL_E_CORRUPT;
    uint32_t kind = h.flags & SL_FF_KIND_MASK;
    if (kind == SL_FF_BATCH) return 0;
    if (kind == SL_FF_CONTROL) return SL_E_CORRUPT; /* a control frame in a DATA cell */
    if (((h.flags & SL_FF_HAS_ROWS) != 0) != (kind == SL_FF_ARRAY)) return SL_E_CORRUPT; /* else nothing bounds rows and row_bytes */
    uint64_t timestamp = ((uint64_t)h.timestamp_ns_high << 32) | h.timestamp_ns_low;
    sl_view v = {.offset = (int64_t)offset, .timestamp_ns = (int64_t)timestamp, .flags = h.flags, .leader_epoch = r->map->segment->leader_epoch,
                 .frame_rows = 1, .producer_id = -1, .sequence = -1, .producer_epoch = -1};
    uint64_t at = SL_FRAME_HEADER_BYTES;
    uint32_t rows = 1, row_bytes = (uint32_t)value, headers = 0;
    if (h.extension_bytes) {
        if (h.flags & SL_FF_HAS_PRODUCER) {
            if (at + 16 > head) return SL_E_CORRUPT;
            memcpy(&v.producer_id, copy + at, 8);
            memcpy(&v.sequence, copy + at + 8, 4);
            memcpy(&v.producer_epoch, copy + at + 12, 4);
            at += 16;
        }
        if (h.flags & SL_FF_HAS_ROWS) {
            if (at + 8 > head) return SL_E_CORRUPT;
            memcpy(&rows, copy + at, 4);
            memcpy(&row_bytes, copy + at + 4, 4);
            at += 8;
        }
        if (h.flags & SL_FF_HAS_HEADERS) {
            if (at + 4 > head) return SL_E_CORRUPT;
            memcpy(&headers, copy + at, 4);
            at += 4;
        }
        if (h.flags & SL_FF_HAS_DTYPE) { v.dtype = frame + at; v.dtype_bytes = (uint32_t)(head - at); }
        if (head + key + headers + value > h.frame_bytes) return SL_E_CORRUPT;
    }
    if (kind == SL_FF_ARRAY ? (rows == 0 || (uint64_t)rows * row_bytes != value || rows != count) : count != 1) return SL_E_CORRUPT;
    if (b->verify_crc) {
        uint64_t end = (h.flags & SL_FF_CRC_ALL) ? h.frame_bytes : head;
        uint64_t copied = end < sizeof copy ? end : sizeof copy;
        if (sl_crc32c(sl_crc32c(0, copy + 8, copied - 8), frame + copied, end - copied) != h.crc32c) return SL_E_CORRUPT;
    }
    if (h.key_bytes != SL_NULL_BYTES) { v.key = frame + head; v.key_bytes = (uint32_t)key; }
    if (h.flags & SL_FF_HAS_HEADERS) { v.headers = frame + head + key; v.headers_bytes = headers; }
    const uint8_t *values = h.value_bytes == SL_NULL_BYTES ? NULL : frame + h.frame_bytes - value;
    v.frame_rows = rows;
    int64_t shown = 0;
    for (uint32_t row = from_row; row < rows && b->used < b->max; row++) {
        if (b->used && b->bytes + row_bytes + key > b->max_bytes) break;
        v.offset = (int64_t)(offset + row);
        v.frame_row = row;
        v.value = values ? values + (uint64_t)row * row_bytes : NULL;
        v.value_bytes = row_bytes;
        b->views[b->used++] = v;
        b->bytes += row_bytes + key;
        shown++;
    }
    return shown;
}

/* Shows records of a checked frame in private memory, from *position on, and moves *position: behind the last one shown, or behind the frame when it has no
 * more (a batch of a compacted Kafka log has gaps). Returns how many; 0 with *position unmoved: the budget is used up. */
static int64_t show_private_frame(const uint8_t *frame, uint64_t frame_bytes, uint64_t offset, uint32_t count, uint32_t leader_epoch, uint64_t *position, budget *b) {
    if (b->used == b->max) return 0;
    int64_t n = sl_frame_views(frame, frame_bytes, (int64_t)offset, (uint32_t)(*position - offset), b->views + b->used, b->max - b->used);
    if (n < 0) return n;
    if (n == 0) *position = offset + count;
    int64_t kept = 0;
    for (; kept < n; kept++) {
        sl_view *v = &b->views[b->used];
        uint64_t bytes = (uint64_t)v->value_bytes + v->key_bytes;
        if (b->used && b->bytes + bytes > b->max_bytes) break;
        v->leader_epoch = leader_epoch;
        b->bytes += bytes;
        b->used++;
        *position = (uint64_t)v->offset + 1;
    }
    return kept;
}

/* A reader that polls and is a little faster than the writer takes the line of cells away from him once a record, and he takes it back: each transfer costs
 * both more than the record does. So one that found record after record as soon as it looked lets a few come together, as long as some do: microseconds,
 * spent where it would look in vain anyway, and not at all between records that are farther apart (ping-pong). 1 look again. */
#define IN_STEP 16u             /* single records in a row before */
#define LOOKS_IN_STEP 3u        /* empty looks between two records that follow closely */
#define COLLECT_MIN_NS 1000
#define COLLECT_MAX_NS 4000
#define COLLECTED 8u            /* a line of cells */
static int collect(sl_reader *r) {
    if (r->ends++ == 0) {
        if (r->collect_ns == 0) r->collect_ns = r->in_step >= IN_STEP ? COLLECT_MIN_NS : 0;
        else if (r->shown < 2) r->collect_ns = 0;
        else if (r->shown < COLLECTED) r->collect_ns += r->collect_ns < COLLECT_MAX_NS ? COLLECT_MIN_NS : 0;
        if (r->collect_ns || r->shown > 2) r->in_step = 0;
        r->shown = 0;
        if (r->collect_ns) {
            for (int64_t until = sl_monotonic_ns() + r->collect_ns; sl_monotonic_ns() < until;) sl_pause();
            return 1;
        }
    }
    return 0;
}
static inline void shown_after(sl_reader *r, uint32_t n) {
    if (r->ends) {
        r->in_step = r->ends <= LOOKS_IN_STEP ? r->in_step + 1 : 0;
        r->ends = 0;
    }
    r->shown += n;
}

/* From memory, at the located cell. Returns views shown, 0 at the end, 1 << 40 if the segment is gone (locate again), or a code. */
#define GONE (INT64_C(1) << 40)
static int64_t poll_memory(sl_reader *r, budget *b) {
    if (!r->pinned) {
        sl_map *m;
        int rc = pin_segment(r, r->number, r->map, &m);
        if (rc < 0) return rc;
        if (rc == 0 || m != r->map) { if (rc && m != r->map) { unpin(r); sl_map_put(r->cluster, m); } return GONE; }
    }
    r->from_memory = 1;
    for (;;) {
        if (r->index >= r->map->cell_count) return b->used ? (int64_t)b->used : SL_E_DAMAGED;
        uint64_t w = sl_load_acquire(&r->map->cells[r->index]); /* SYNC cell_cas */
        if (w == 0) {
            if (b->used || !collect(r)) return (int64_t)b->used;
            continue;
        }
        if (!sl_cell_plausible(w, r->number, r->rel)) return b->used ? (int64_t)b->used : SL_E_DAMAGED;
        if (sl_cell_type(w) == SL_CELL_SEAL) {
            if (b->used) return (int64_t)b->used; /* views of two segments would need two pins */
            uint64_t end = r->base + r->rel;
            int rc = enter_segment(r, r->number + 1);
            if (rc < 0) return rc;
            if (rc == 0) {
                /* Not open yet: this is the end, for now; the pin of this segment is gone with the attempt. Or recycled already. */
                return sl_cur_number(sl_load_acquire(&r->p->cur)) > r->number && sl_log_buffer(r->p, r->number + 1) == 0 ? GONE : 0;
            }
            if (r->base != end) { leave_memory(r); return SL_E_DAMAGED; } /* and again the next time: nothing is read on from there */
            move_tether(r);
            continue;
        }
        uint64_t offset = r->base + r->rel;
        uint32_t count = sl_cell_count(w);
        if (offset > r->position) { if (!b->used) leave_memory(r); return b->used ? (int64_t)b->used : SL_E_DAMAGED; } /* the cells changed while we looked for the position */
        if (offset + count > b->limit) return (int64_t)b->used;
        if (offset + count <= r->position) { r->index++; r->rel += count; continue; }
        if (sl_cell_type(w) == SL_CELL_CONTROL) { /* takes offsets, shows nothing */
            r->position = offset + count;
            r->index++;
            r->rel += count;
            continue;
        }
        r->damage_end = offset + count; /* if it is damaged; the cell is trusted to say so much */
        uint32_t unit = sl_cell_unit(w), from_row = (uint32_t)(r->position - offset);
        if (unit >= r->map->arena_units) return b->used ? (int64_t)b->used : SL_E_CORRUPT;
        const uint8_t *frame = r->map->arena + (uint64_t)unit * SL_UNIT_BYTES;
        uint64_t room = (uint64_t)(r->map->arena_units - unit) * SL_UNIT_BYTES;
        int64_t shown = show_memory_frame(r, frame, room, offset, count, from_row, b);
        if (shown < 0) return b->used ? (int64_t)b->used : shown;
        if (shown == 0) {
            if (b->used) return (int64_t)b->used; /* no budget left, or a batch: it comes alone */
            uint32_t bytes;
            memcpy(&bytes, frame, 4);
            if (bytes > room) return SL_E_CORRUPT;
            int rc = buffer_own(r, bytes);
            if (rc < 0) return rc;
            memcpy(r->buffer->bytes, frame, bytes);
            uint32_t copied;
            memcpy(&copied, r->buffer->bytes, 4);
            if (copied != bytes || sl_frame_check(r->buffer->bytes, bytes, b->verify_crc) < 0 || sl_frame_rows(r->buffer->bytes) != count) return SL_E_CORRUPT;
            shown = show_private_frame(r->buffer->bytes, bytes, offset, count, r->map->segment->leader_epoch, &r->position, b);
            if (shown < 0) return shown;
            if (r->position >= offset + count) { r->index++; r->rel += count; }
            if (shown == 0) continue; /* only gaps were left of it */
            r->from_memory = 0;
            unpin(r);
            return (int64_t)b->used;
        }
        shown_after(r, 1);
        r->position += (uint64_t)shown;
        if (r->position == offset + count) { r->index++; r->rel += count; }
        if (b->used == b->max || b->bytes >= b->max_bytes || r->position != offset + count) return (int64_t)b->used;
    }
}

/* ---- files ---- */

static uint64_t log_start_of(const sl_reader *r) { return r->cluster ? sl_word_offset(sl_load_acquire(&r->p->log_start)) : 0; } /* SYNC advance */

/* A log is dense but for what was compacted: a file that is not there, or ends too early, is damage up to where the next one begins, and is named as such.
 * What is below the log start is another matter: it may have gone a moment ago. */
static int gap_to(sl_reader *r, uint64_t next) {
    if (r->position < log_start_of(r)) return SL_E_RANGE;
    r->damage_end = next;
    return SL_E_CORRUPT;
}

/* No file begins at or before r->position: is that where the log begins? Files alone do not say. */
static int no_file(sl_reader *r, uint64_t end) {
    sl_file_entry oldest;
    if (r->cluster && sl_file_find(r->dir, r->position, &oldest) == SL_E_RANGE && oldest.base_offset < end) return gap_to(r, oldest.base_offset);
    return SL_E_RANGE;
}

static int64_t poll_file(sl_reader *r, uint64_t end, budget *b) {
    r->from_memory = 0;
    int again = 0;
    for (int files = 0; files < 1000;) {
        while (r->cell_at < r->cells_used) {
            sl_file_cell *c = &r->cells[r->cell_at];
            const sl_file_header *h = sl_file_reader_header(r->file);
            const uint8_t *frame = r->buffer->bytes + (uint64_t)(c->unit - r->cells[0].unit) * SL_UNIT_BYTES;
            uint64_t offset = h->base_offset + c->rel;
            uint32_t bytes, count = sl_frame_rows(frame);
            memcpy(&bytes, frame, 4);
            if (offset + count > b->limit) { r->cell_at = r->cells_used; return (int64_t)b->used; } /* the end, for now */
            if (offset >= r->entry.until) { /* another file has what follows; up to there nothing is left (compacted away) */
                r->cell_at = r->cells_used;
                if (!b->used && r->position < r->entry.until) r->position = r->entry.until;
                break;
            }
            if (offset + count <= r->position) { r->cell_at++; continue; }
            if (offset > r->position && !(h->flags & SL_FILE_COMPACTED)) { /* the table turned out to be damaged, and its index meant another frame */
                if (b->used) return (int64_t)b->used;
                if (again++) return SL_E_CORRUPT;
                r->cell_at = r->cells_used;
                break;
            }
            if (offset > r->position) r->position = offset; /* compacted away */
            if (c->type == SL_CELL_CONTROL) {
                uint16_t flags;
                memcpy(&flags, frame + offsetof(sl_frame, flags), 2);
                if (flags & SL_FF_LOST) {
                    r->damage_end = offset + count;
                    return b->used ? (int64_t)b->used : SL_E_CORRUPT;
                }
                r->position = offset + count;
                r->cell_at++;
                continue;
            }
            uint64_t before = r->position;
            int64_t shown = show_private_frame(frame, bytes, offset, count, h->leader_epoch, &r->position, b);
            if (shown < 0) {
                r->damage_end = offset + count;
                return b->used ? (int64_t)b->used : shown;
            }
            if (r->position < offset + count || r->position == before) return (int64_t)b->used;
            r->cell_at++;
        }
        if (b->used) return (int64_t)b->used; /* the buffer is shown; the next fill would overwrite it */
        if (r->file && r->position >= r->entry.until) leave_file(r);
        if (!r->file) {
            int rc = sl_file_reader_open_at(r->dir, r->position, &r->entry, &r->file);
            if (rc < 0) { /* an empty or cut file in the middle of a log is damage, whatever it is called elsewhere */
                r->file = NULL;
                return rc == SL_E_NOENT || rc == SL_E_RANGE ? no_file(r, end) : rc == SL_E_HALFMADE ? SL_E_DAMAGED : rc;
            }
            files++;
        }
        int64_t index = sl_file_reader_find_offset(r->file, r->position, end);
        if (index == SL_E_AGAIN) {
            sl_file_entry entry; /* the end of this file: rolled meanwhile? */
            if (sl_file_find(r->dir, r->position, &entry) == SL_OK && strcmp(entry.name, r->entry.name) != 0) { leave_file(r); continue; }
            if (entry.until == UINT64_MAX || r->position >= entry.until || entry.until > end) return 0;
            int compacted = (sl_file_reader_header(r->file)->flags & SL_FILE_COMPACTED) != 0;
            leave_file(r);
            if (compacted) r->position = entry.until; /* its tail */
            else if (again++) return gap_to(r, entry.until); /* looked at once more: it may have been the old one of two */
            continue;
        }
        if (index < 0) return index;
        uint64_t capacity = FILE_BUFFER_BYTES, needed = 0;
        int64_t n;
        for (;;) {
            int rc = buffer_own(r, capacity);
            if (rc < 0) return rc;
            n = sl_file_reader_fill(r->file, (uint64_t)index, end, b->verify_crc, r->buffer->bytes, r->buffer->capacity, r->cells, FILE_CELLS, &needed);
            if (n != SL_E_TOO_BIG || needed <= r->buffer->capacity) break;
            capacity = needed;
        }
        if (n == SL_E_CORRUPT) {
            sl_file_cell next;
            r->damage_end = 0;
            if (sl_file_reader_cell(r->file, (uint64_t)index + 1, end, &next) == SL_OK) r->damage_end = sl_file_reader_header(r->file)->base_offset + next.rel;
        }
        if (n <= 0) return n;
        r->file_index = (uint64_t)index;
        r->cells_used = (size_t)n;
        r->cell_at = 0;
    }
    return 0;
}

/* ---- poll ---- */

static uint64_t visible_limit(sl_reader *r) {
    uint32_t flags = sl_load_relaxed(&r->p->flags);
    if ((flags & SL_PF_REPLICATED) && !(flags & SL_PF_APPENDED)) return sl_word_offset(sl_load_acquire(&r->p->high_watermark)); /* SYNC advance */
    return UINT64_MAX;
}

static int deleted(sl_reader *r) {
    return sl_load_acquire(&r->p->state) != SL_PARTITION_LIVE || memcmp(r->p->topic_id, r->topic_id, 16) != 0;
}

static int64_t poll_once(sl_reader *r, sl_view *views, size_t max_views, uint64_t max_bytes, int verify_crc) {
    budget b = {.views = views, .max = max_views, .max_bytes = max_bytes, .limit = UINT64_MAX, .verify_crc = verify_crc};
    if (max_views == 0) return SL_E_INVALID;
    if (!r->cluster) return poll_file(r, UINT64_MAX, &b);
    int rc = sl_cluster_check(r->cluster);
    if (rc < 0) return rc;
    if (deleted(r)) { leave_memory(r); return SL_E_DELETED; }
    b.limit = visible_limit(r);
    if (r->position < sl_word_offset(sl_load_acquire(&r->p->log_start))) { leave_memory(r); return SL_E_RANGE; }
    if (r->cell_at < r->cells_used && !r->number) { /* what the last fill brought and nobody has seen yet */
        int64_t n = poll_file(r, sl_word_offset(sl_load_acquire(&r->p->spilled)), &b);
        if (n != 0) return n;
    }
    r->nowhere = 0;
    uint64_t cur = 0;
    for (int turn = 0; turn < 16; turn++) {
        if (!r->number) {
            cur = sl_load_sc(&r->p->cur);
            rc = locate(r);
            if (rc < 0) return rc;
            if (rc == 0) { /* not in memory: a segment leaves the directory only when wholly spilled, so the file has it */
                uint64_t spilled = sl_word_offset(sl_load_acquire(&r->p->spilled)); /* SYNC advance */
                if (!r->dir) {
                    if (r->position < sl_word_offset(sl_load_acquire(&r->p->log_start))) return SL_E_RANGE;
                    continue;
                }
                if (r->position >= spilled) {
                    if (sl_cur_number(cur) == 0 && r->position > spilled) return SL_E_RANGE;
                    continue;
                }
                int64_t n = poll_file(r, spilled, &b);
                if (n == 0 && r->position < spilled && turn < 8) continue; /* the file moved on or was replaced: look again */
                return n;
            }
            leave_file(r);
        }
        int64_t n = poll_memory(r, &b);
        if (n != GONE) return n;
        leave_memory(r);
    }
    r->nowhere = 1;
    r->nowhere_cur = cur;
    return 0;
}

/* What the poll leaves for `shmlog top`: where the reader is, and now and then how old the newest record was. */
static inline void measure(sl_reader *r, const sl_view *views, int64_t n) {
    int due = r->unmeasured == 0 || n >= SL_METER_MANY;
    if (sl_unlikely(!r->meter)) {
        if (r->unmeasured) { r->unmeasured--; return; }
        r->meter = sl_meter_take(r->cluster, r->row_index, r->block);
        if (!r->meter) { r->unmeasured = SL_METER_RETRY; return; }
    }
    sl_meter_note(r->meter, r->position, (uint64_t)n);
    if (!due) { r->unmeasured--; return; }
    r->unmeasured = SL_METER_EVERY - 1;
    /* Not what comes from a file: that is history. A record's time is whatever its producer says: the difference may not fit. */
    if (r->number) sl_meter_age(r->meter, (int64_t)((uint64_t)sl_wall_ns() - (uint64_t)views[n - 1].timestamp_ns));
}

int64_t sl_reader_poll(sl_reader *r, sl_view *views, size_t max_views, uint64_t max_bytes, int verify_crc) {
    int64_t n = poll_once(r, views, max_views, max_bytes, verify_crc);
    if (n > 0 && r->cluster && !r->searching) measure(r, views, n);
    return n;
}

/* ---- leases ---- */

#define LEASES 1024
static struct lease { sl_cluster *cluster; sl_row *row; uint64_t pin; sl_map *map; buffer *buffer; uint32_t slot, users, generation; } leases[LEASES];
static pthread_mutex_t leases_lock = PTHREAD_MUTEX_INITIALIZER;

int64_t sl_reader_lease(sl_reader *r) {
    if (!r->from_memory && !r->buffer) return SL_E_INVALID;
    int64_t id = SL_E_NO_SLOT;
    pthread_mutex_lock(&leases_lock);
    uint64_t pin = r->from_memory ? sl_pin_make(r->block, r->number) : 0;
    struct lease *found = NULL;
    for (uint32_t i = 0; i < LEASES; i++) {
        struct lease *l = &leases[i];
        if (l->users ? r->from_memory && l->row == r->row && l->pin == pin && l->map : !found) {
            found = l;
            if (l->users) break;
        }
    }
    if (found && found->users) { found->users++; id = (int64_t)(found - leases) | ((int64_t)found->generation << 16); }
    else if (found && r->from_memory && r->pinned) {
        uint32_t slot = 0;
        while (slot < SL_VIEW_PINS && sl_load_relaxed(&r->row->view_pins[slot])) slot++;
        sl_map *map;
        if (slot < SL_VIEW_PINS && sl_map_get(r->cluster, r->map->buffer, 0, &map) == SL_OK) {
            sl_store_release(&r->row->view_pins[slot], pin); /* SYNC pin_handover: before the poll pin is cleared */
            found->cluster = r->cluster; found->row = r->row; found->pin = pin; found->map = map; found->buffer = NULL; found->slot = slot;
            found->users = 1;
            found->generation = (found->generation + 1) & 0xffffff;
            id = (int64_t)(found - leases) | ((int64_t)found->generation << 16);
        }
    } else if (found && !r->from_memory) {
        __atomic_add_fetch(&r->buffer->users, 1, __ATOMIC_ACQ_REL);
        found->cluster = r->cluster; found->row = NULL; found->pin = 0; found->map = NULL; found->buffer = r->buffer;
        found->users = 1;
        found->generation = (found->generation + 1) & 0xffffff;
        id = (int64_t)(found - leases) | ((int64_t)found->generation << 16);
    }
    pthread_mutex_unlock(&leases_lock);
    return id;
}

void sl_lease_release(sl_cluster *cluster, uint32_t row, int64_t lease) {
    (void)row;
    if (lease < 0 || (cluster && sl_cluster_check(cluster) < 0)) return; /* a forked child's view is covered by its parent's pin */
    pthread_mutex_lock(&leases_lock);
    struct lease *l = &leases[lease % LEASES];
    if (l->users && l->generation == (uint32_t)(lease >> 16) && --l->users == 0) {
        if (l->map) {
            sl_store_release(&l->row->view_pins[l->slot], 0); /* SYNC pin_clear */
            sl_map_put(l->cluster, l->map);
        }
        buffer_put(l->buffer);
        l->map = NULL;
        l->buffer = NULL;
    }
    pthread_mutex_unlock(&leases_lock);
}

/* ---- tether ---- */

int sl_reader_tether(sl_reader *r, int on) {
    if (!r->cluster) return SL_E_INVALID;
    int rc = sl_cluster_check(r->cluster);
    if (rc < 0) return rc;
    if (!on) {
        if (r->tether >= 0) sl_store_sc(&r->waits->tethers[r->tether], 0);
        r->tether = -1;
        sl_wake_bits(r->cluster, r->waits->commit);
        return SL_OK;
    }
    if (r->tether >= 0) return SL_OK;
    if (!r->number && (rc = locate(r)) < 0) return rc;
    uint64_t number = r->number ? r->number : 1, cur = sl_cur_number(sl_load_sc(&r->p->cur));
    if (cur >= SL_DIR_SLOTS && number <= cur - SL_DIR_SLOTS) number = cur - SL_DIR_SLOTS + 1; /* older ones have no place in the directory any more */
    unpin(r);
    for (int i = 0; i < SL_TETHERS; i++) {
        uint64_t none = 0, word = ((uint64_t)(r->row_index + 1) << 40) | number;
        if (!sl_cas_sc(&r->waits->tethers[i], &none, word)) continue; /* SYNC tether: store, then look at the directory word; pairs with claim, then tethers */
        r->tether = i;
        for (;; number++) {
            sl_store_sc(&r->waits->tethers[i], ((uint64_t)(r->row_index + 1) << 40) | number);
            uint32_t buffer = sl_log_buffer(r->p, number);
            sl_map *m;
            if (buffer && sl_map_get(r->cluster, buffer, 0, &m) == SL_OK) {
                uint64_t w = sl_load_sc(&m->segment->claim); /* SYNC tether: only LIVE protects; a TRY has not looked at the tethers, or has already */
                sl_map_put(r->cluster, m);
                if (sl_claim_number(w) == number && sl_claim_phase(w) == SL_SEGMENT_LIVE) return SL_OK; /* any later claimer sees us */
            }
            if (number >= sl_cur_number(sl_load_sc(&r->p->cur))) return SL_OK; /* the active one cannot be claimed */
        }
    }
    return SL_E_NO_SLOT;
}

/* ---- waiting ---- */

/* Is there something at the cursor? Only a look without a pin: poll decides. */
static int has_data(sl_reader *r) {
    if (!r->cluster || deleted(r)) return 1;
    if (r->position >= visible_limit(r)) return 0;
    if (!r->number) { /* not at the end of memory: poll finds out, but not twice while nothing has changed; sl_log_open_epoch() wakes */
        return !r->nowhere || sl_load_sc(&r->p->cur) != r->nowhere_cur || sl_word_offset(sl_load_sc(&r->p->spilled)) > r->position;
    }
    uint64_t w = sl_load_sc(&r->map->cells[r->index < r->map->cell_count ? r->index : 0]); /* SYNC announce: after the bits; pairs with cell_cas */
    if (w != 0 && sl_cell_type(w) != SL_CELL_SEAL) return 1;
    r->ends += r->ends != 0; /* a look that was in vain, as in collect() */
    return sl_cur_number(sl_load_sc(&r->p->cur)) > r->number; /* SYNC cur_cas: past this segment (which may live another life already) */
}

int sl_reader_ready(sl_reader *r) { return has_data(r); }

static int any_data(sl_reader **readers, size_t n) {
    for (size_t i = 0; i < n; i++) if (has_data(readers[i])) return 1;
    return 0;
}

static void set_bits(uint32_t row, sl_reader **readers, size_t n, int on) {
    for (size_t i = 0; i < n; i++) {
        sl_waits *w = readers[i]->waits;
        if (!w) continue;
        if (on) { sl_bits_set(w->data, row); if (sl_load_relaxed(&readers[i]->p->flags) & SL_PF_REPLICATED) sl_bits_set(w->commit, row); }
        else { sl_bits_clear(w->data, row); if (sl_load_relaxed(&readers[i]->p->flags) & SL_PF_REPLICATED) sl_bits_clear(w->commit, row); }
    }
}

int sl_readers_wait(sl_cluster *cluster, uint32_t row_index, sl_reader **readers, size_t n, int64_t spin_ns, int64_t deadline_ns) {
    int rc = sl_cluster_check(cluster);
    if (rc < 0) return rc;
    sl_row *row = sl_cluster_row(cluster, row_index);
    if (!row) return SL_E_INVALID;
    for (size_t i = 0; i < n; i++) unpin(readers[i]); /* no pin while waiting */
    if (any_data(readers, n)) return 1;
    int64_t now = sl_monotonic_ns(), spin_until = now + spin_ns;
    if (spin_until > deadline_ns) spin_until = deadline_ns;
    uint32_t before = sl_load_sc(&row->wake);
    while (now < spin_until) {
        for (int i = 0; i < 64; i++) {
            if (any_data(readers, n)) return 1;
            sl_pause();
        }
        if (sl_load_relaxed(&row->wake) != before) return 0;
        now = sl_monotonic_ns();
    }
    if (deadline_ns <= now) return SL_E_TIMEOUT;
    if (sl_load_acquire(&sl_cluster_control(cluster)->cluster_state) == SL_CLUSTER_DOWN) return SL_E_GONE;
    uint32_t seen = sl_sleep_begin(row, SL_SLEEPS_FUTEX);
    set_bits(row_index, readers, n, 1);
    SL_FAILPOINT(announce_recheck);
    rc = 1;
    if (sl_load_sc(&sl_cluster_control(cluster)->cluster_state) == SL_CLUSTER_DOWN) rc = SL_E_GONE; /* whoever said so did not see us asleep */
    else if (!any_data(readers, n)) {
        rc = sl_futex_wait(&row->wake, seen, deadline_ns);
        if (rc == SL_OK) rc = any_data(readers, n);
    }
    set_bits(row_index, readers, n, 0);
    sl_sleep_end(row);
    return rc;
}

int sl_readers_arm(sl_cluster *cluster, uint32_t row_index, sl_reader **readers, size_t n) {
    int rc = sl_cluster_check(cluster);
    if (rc < 0) return rc;
    sl_row *row = sl_cluster_row(cluster, row_index);
    if (!row) return SL_E_INVALID;
    for (size_t i = 0; i < n; i++) unpin(readers[i]);
    sl_sleep_begin(row, SL_SLEEPS_POLLER);
    set_bits(row_index, readers, n, 1);
    if (!any_data(readers, n)) return 0;
    sl_readers_disarm(cluster, row_index, readers, n);
    return 1;
}

void sl_readers_disarm(sl_cluster *cluster, uint32_t row_index, sl_reader **readers, size_t n) {
    sl_row *row = sl_cluster_row(cluster, row_index);
    if (!row || sl_cluster_check(cluster) < 0) return;
    set_bits(row_index, readers, n, 0);
    sl_sleep_end(row);
}

/* ---- time ---- */

int64_t sl_reader_offset_for_time(sl_reader *r, int64_t timestamp_ns, int64_t *found_ns) {
    uint64_t saved = r->position, end = UINT64_MAX, start = 0;
    if (r->cluster) {
        start = sl_word_offset(sl_load_acquire(&r->p->log_start));
        end = sl_word_offset(sl_load_acquire(&r->p->spilled));
    }
    uint64_t from = start;
    if (r->dir && end > start) { /* the files' footers carry the running maximum: the first frame that can hold it */
        sl_file_entry files[256];
        int64_t n = sl_file_list(r->dir, files, 256), total = n;
        if (n > 256) n = 256;
        int found = 0;
        for (int64_t i = 0; i < n && !found; i++) {
            if (files[i].until <= start) continue;
            sl_file_reader *f;
            if (sl_file_reader_open(r->dir, files[i].name, &f) < 0) continue;
            int64_t index = sl_file_reader_find_time(f, timestamp_ns, end < files[i].until ? end : files[i].until);
            sl_file_cell cell;
            if (index >= 0 && sl_file_reader_cell(f, (uint64_t)index, end, &cell) == SL_OK) {
                from = files[i].base_offset + cell.rel;
                found = 1;
            }
            sl_file_reader_close(f);
        }
        if (!found) from = total > 256 ? files[255].until : end;
        if (from < start) from = start;
    }
    sl_reader_seek(r, from);
    r->searching = 1;
    int64_t result = -1;
    sl_view views[64];
    for (;;) {
        int64_t n = sl_reader_poll(r, views, 64, UINT64_MAX, 0);
        if (n == SL_E_CORRUPT) { sl_reader_seek(r, sl_reader_damage_end(r)); continue; }
        if (n == 0 || n == SL_E_RANGE) break;
        if (n < 0) { result = n; break; }
        for (int64_t i = 0; i < n && result < 0; i++)
            if (views[i].timestamp_ns >= timestamp_ns) { result = views[i].offset; if (found_ns) *found_ns = views[i].timestamp_ns; }
        if (result >= 0) break;
    }
    r->searching = 0;
    sl_reader_seek(r, saved);
    return result;
}
