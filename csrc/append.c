/* Append: publish by compare-and-swap into the first empty cell.
 *
 * The payload is written first, into arena bytes that only this producer can reference (a chunk); then one 64-bit CAS of the complete descriptor into
 * the first empty cell gives the record its place, its dense offset and its visibility at once. Stopped or killed at any instruction, a producer leaves a
 * complete record or nothing: no hole to repair, nobody blocked. The steps are those of tests/models/PROTOCOL.md, their names those of the models there.
 *
 *   who writes what            who reads it              ordered by                            if the writer dies
 *   chunk bytes: its taker     readers of the cell       plain, before cell_cas                nobody references them
 *   cell: any producer         everybody                 cell_cas sc / acquire loads           the record is there, or not
 *   hint: any producer         producers                 release / acquire; any value whose    a few more cells to walk
 *                                                        lower cells are filled is right
 *   alloc: any producer        producers                 CAS, relaxed: it hands out bytes      at most a chunk is wasted
 */
#include <string.h>

#include "log.h"

#define CHUNK_MIN_UNITS 16u     /* 1 KiB */
#define CHUNK_MAX_UNITS 4096u   /* 256 KiB */
/* The lines that the next records will take are asked for while this one is written: the CAS would wait for them, for it drains all stores before it. Not
 * farther ahead, where a reader's own prefetching takes them away again (measured: ARCHITECTURE.md, decisions). */
#define AHEAD_UNITS 4u
#define AHEAD_FRAME_UNITS_MAX 4u /* longer frames have the processor's own prefetching */
#define RAISE_AFTER_NS INT64_C(50000000)
#define WAIT_SLICE_NS INT64_C(20000000) /* a waiter for room looks again this often even if nobody wakes it (a waker may be stopped) */

struct sl_appender {
    sl_hold hold;
    uint64_t chunk_number;              /* the segment the chunk belongs to */
    uint32_t chunk_unit, chunk_end;     /* arena units left: [chunk_unit, chunk_end) */
    sl_stamp stamp;
    int64_t no_room_ns;                 /* shmlog.full=raise: since when there was none; 0 there was */
};

int sl_appender_open(sl_cluster *cluster, uint32_t row, uint32_t block, const uint8_t topic_id[16], sl_appender **out) {
    sl_appender *a = calloc(1, sizeof *a);
    if (!a) return SL_E_NOMEM;
    int rc = sl_hold_init(&a->hold, cluster, row, block, topic_id);
    if (rc < 0) { free(a); return rc; }
    *out = a;
    return SL_OK;
}

void sl_appender_close(sl_appender *a) {
    if (sl_cluster_check(a->hold.cluster) == SL_OK) sl_hold_forget(&a->hold);
    free(a);
}

/* Room for `units` in the held segment: from the private chunk, or a new chunk. 1 yes, 0 the arena has no room. */
static int take_room(sl_appender *a, uint32_t units, uint32_t *unit) {
    sl_hold *s = &a->hold;
    if (a->chunk_number == s->number && a->chunk_end - a->chunk_unit >= units) {
        *unit = a->chunk_unit;
        a->chunk_unit += units;
        if (units <= AHEAD_FRAME_UNITS_MAX) {
            const uint8_t *ahead = s->map->arena + (uint64_t)(a->chunk_unit + AHEAD_UNITS) * SL_UNIT_BYTES;
            for (uint32_t i = 0; i < units; i++) sl_prefetch_write(ahead + i * SL_UNIT_BYTES);
        }
        return 1;
    }
    uint32_t arena = s->map->arena_units;
    uint32_t chunk = arena / 16;
    if (chunk < CHUNK_MIN_UNITS) chunk = CHUNK_MIN_UNITS;
    if (chunk > CHUNK_MAX_UNITS) chunk = CHUNK_MAX_UNITS;
    uint64_t *alloc = &s->map->segment->alloc_units;
    uint64_t used = sl_load_relaxed(alloc);
    uint32_t take;
    do {
        if (used > arena || arena - used < units) return 0; /* used > arena: scribbled on; a SEAL ends it */
        take = units > chunk ? units : chunk;
        if (take > arena - used) take = (uint32_t)(arena - used);
        SL_FAILPOINT(chunk_take);
    } while (!__atomic_compare_exchange_n(alloc, &used, used + take, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    a->chunk_number = s->number;
    a->chunk_unit = (uint32_t)used + units;
    a->chunk_end = (uint32_t)used + take;
    *unit = (uint32_t)used;
    /* Half a segment gone and no successor: tell the broker, once a segment. It is never woken per append. */
    if (used < arena / 2 && used + take >= arena / 2 && sl_log_ready(s->cluster, s->block) == 0) sl_bell_ring(s->cluster, sl_load_relaxed(&s->p->bell_process));
    return 1;
}

/* A big frame found no room in a segment it alone could have fitted. Two producers of huge frames could seal each other's segments for ever (F9), so
 * before such a SEAL a producer waits for copies in progress, longer with each displacement anybody suffered since the last big append; a stopped copier
 * delays others by at most this bound. The count is a hint: it needs no order. */
static void let_copies_finish(sl_appender *a, int64_t deadline_ns) {
    uint32_t displaced = sl_load_relaxed(&a->hold.p->displaced);
    if (displaced == 0) return;
    int64_t wait_ns = INT64_C(1000000) << (displaced > 9 ? 9 : displaced - 1); /* 1 ms .. 512 ms; a copy of 64 MiB takes 15 */
    int64_t now = sl_monotonic_ns(), until = now + wait_ns;
    if (deadline_ns > now && until > deadline_ns) until = deadline_ns;
    while (sl_hold_walk(&a->hold) == 1 && sl_monotonic_ns() < until && sl_load_relaxed(&a->hold.p->displaced) != 0) {
        uint32_t never = 0;
        sl_futex_wait(&never, 0, sl_monotonic_ns() + 200000); /* a private word: only a short, interruptible pause */
    }
}

static int storage_error(sl_hold *s, sl_append_result *result) {
    result->needed_bytes = sl_load_relaxed(&s->p->storage_needed_bytes);
    result->free_bytes = sl_load_relaxed(&s->p->storage_free_bytes);
    switch (sl_load_acquire(&s->p->storage_state)) {
    case SL_STORAGE_SHM_FULL: return SL_E_SHM_FULL;
    case SL_STORAGE_DISK_FULL: return SL_E_DISK_FULL;
    case SL_STORAGE_DISK_ERROR: return SL_E_IO;
    case SL_STORAGE_BEHIND: return SL_E_BEHIND;
    default: return SL_E_TIMEOUT;
    }
}

/* The held segment is sealed and has no successor. Drops the hold, recycles if it may, else sleeps until the broker made room. */
static int wait_for_room(sl_appender *a, int64_t deadline_ns, sl_append_result *result) {
    sl_hold *s = &a->hold;
    uint64_t number = s->number;
    sl_hold_drop(s);
    if (sl_log_recycle(s->cluster, s->row_index, s->block) > 0) return SL_OK;
    sl_bell_ring(s->cluster, sl_load_relaxed(&s->p->bell_process));
    uint32_t flags = sl_load_relaxed(&s->p->flags);
    int64_t now = sl_monotonic_ns();
    if (flags & SL_PF_FULL_RAISE) { /* an elastic ring needs a moment to grow: full is what the broker says is full, or what stays so */
        if (a->no_room_ns == 0) a->no_room_ns = now;
        if (sl_load_acquire(&s->p->storage_state) != SL_STORAGE_OK || now - a->no_room_ns > RAISE_AFTER_NS) {
            a->no_room_ns = 0;
            storage_error(s, result);
            return SL_E_RING_FULL;
        }
    }
    if (deadline_ns <= now) return storage_error(s, result);
    sl_fetch_add_relaxed(&s->p->room_waits, 1);
    uint32_t seen = sl_sleep_begin(s->row, SL_SLEEPS_FUTEX);
    sl_bits_set(s->waits->commit, s->row_index);
    int rc = SL_OK;
    /* SYNC room: announced, look again: at what wakes after recycle_publish, and at what wakes because a segment may be reused now (a tether that moved) */
    if (sl_log_recycle(s->cluster, s->row_index, s->block) <= 0 && sl_cur_number(sl_load_sc(&s->p->cur)) == number && sl_log_buffer(s->p, number + 1) == 0 &&
        sl_load_acquire(&sl_cluster_control(s->cluster)->cluster_state) != SL_CLUSTER_DOWN) {
        int64_t until = deadline_ns < now + WAIT_SLICE_NS ? deadline_ns : now + WAIT_SLICE_NS;
        rc = sl_futex_wait(&s->row->wake, seen, until);
        if (rc == SL_E_TIMEOUT) rc = SL_OK; /* the loop above decides */
    }
    sl_bits_clear(s->waits->commit, s->row_index);
    sl_sleep_end(s->row);
    if (sl_load_acquire(&sl_cluster_control(s->cluster)->cluster_state) == SL_CLUSTER_DOWN) return SL_E_GONE;
    return rc;
}

/* The held segment has no room for this frame (or no cells): seal it, move on. Returns SL_OK to try again. */
static int move_on(sl_appender *a, uint32_t units, int64_t deadline_ns, sl_append_result *result) {
    sl_hold *s = &a->hold;
    uint32_t bytes = units * SL_UNIT_BYTES;
    if (units > s->map->arena_units / 4) { /* tell the broker to make larger ones; it takes four times the largest frame it is asked for */
        uint32_t wanted = sl_load_relaxed(&s->p->wanted_bytes);
        while (wanted < bytes && !sl_cas_sc(&s->p->wanted_bytes, &wanted, bytes)) {}
        if (units <= s->map->arena_units) let_copies_finish(a, deadline_ns);
    }
    int rc = sl_hold_seal(s);
    if (rc == SL_OK) {
        rc = sl_hold_rotate(s);
        if (rc == SL_E_AGAIN) return wait_for_room(a, deadline_ns, result);
    }
    sl_hold_drop(s);
    if (rc == SL_OK && bytes > (uint64_t)s->map->arena_units * SL_UNIT_BYTES && deadline_ns <= sl_monotonic_ns()) return storage_error(s, result);
    return rc;
}

/* After the cell is ours: hint, first-append stamp, sleepers; all still under the hazard word (step 7). */
static inline void after_cas(sl_hold *s) {
    sl_segment *seg = s->map->segment;
    uint32_t next = s->index;
    if (next % 8 == 0) sl_prefetch_write(&s->map->cells[next + 8]); /* the line after the next; behind the last cell it asks for the arena's first */
    if (next % 16 == 0 && sl_load_relaxed(&seg->hint) < next) {
        SL_FAILPOINT(hint_store);
        sl_store_release(&seg->hint, next); /* SYNC hint_store: pairs with sl_hold_take() */
    }
    if (sl_unlikely(next == 1)) sl_store_relaxed(&seg->first_append_ns, sl_wall_ns());
    if (sl_unlikely(next == s->map->cell_count / 2) && sl_log_ready(s->cluster, s->block) == 0)
        sl_bell_ring(s->cluster, sl_load_relaxed(&s->p->bell_process));
    SL_FAILPOINT(wake_check);
    uint64_t *bits = s->waits->data; /* SYNC announce: sc loads after the sc CAS; one quiet line when nobody sleeps */
    if (sl_unlikely(sl_load_sc(&bits[0]) | sl_load_sc(&bits[1]) | sl_load_sc(&bits[2]) | sl_load_sc(&bits[3]))) sl_wake_bits(s->cluster, bits);
}

/* Publishes arena unit `unit` of the held segment. 1 done (*offset), 0 the segment cannot take it (sealed, full of cells or offsets), or a code. */
static inline int publish(sl_hold *s, uint32_t type, uint32_t count, uint32_t unit, int64_t expected_offset, int64_t *offset) {
    uint64_t *cells = s->map->cells;
    uint32_t last = s->map->cell_count - 1, i = s->index, failed = 0;
    uint64_t prev = s->prev;
    for (;;) {
        uint32_t rel = i == 0 ? 0 : sl_cell_end(prev);
        uint64_t w = 0;
        int want = i < last && rel + count <= SL_CELL_REL_MAX;
        if (sl_unlikely(expected_offset >= 0) && want && (int64_t)(s->base + rel) != expected_offset) {
            /* Conflict only if this is the end: an empty cell here, after its predecessor, at one moment. */
            w = sl_load_acquire(&cells[i]);
            if (w == 0) { s->index = i; s->prev = prev; *offset = (int64_t)(s->base + rel); return SL_E_CONFLICT; }
        } else if (sl_likely(want)) {
            SL_FAILPOINT(cell_cas);
            /* SYNC cell_cas: the append. Releases the payload to readers (acquire on the cell), and is the store half of the announce pair. */
            if (sl_likely(sl_cas_sc(&cells[i], &w, sl_cell_make(type, count, rel, unit, s->number)))) {
                s->index = i + 1;
                s->prev = sl_cell_make(type, count, rel, unit, s->number);
                *offset = (int64_t)(s->base + rel);
                return 1;
            }
        } else {
            w = sl_load_acquire(&cells[i]);
            if (w == 0) { s->index = i; s->prev = prev; return 0; }
        }
        if (sl_unlikely(!sl_cell_plausible(w, s->number, rel))) return SL_E_DAMAGED;
        if (sl_cell_type(w) == SL_CELL_SEAL) { s->index = i; s->prev = prev; return 0; }
        prev = w;
        if (++i > last) return SL_E_DAMAGED; /* the last cell takes SEAL only */
        if (++failed == 8) { /* far behind: others have appended since our last call */
            uint64_t hint = sl_load_acquire(&s->map->segment->hint); /* SYNC hint_store */
            if (hint > i && hint <= last) {
                w = sl_load_acquire(&cells[hint - 1]);
                if (w == 0) return SL_E_DAMAGED;
                i = (uint32_t)hint;
                prev = w;
            }
            failed = 0;
        }
    }
}

int sl_append(sl_appender *a, const sl_record *record, int64_t expected_offset, int64_t deadline_ns, sl_append_result *result) {
    sl_hold *s = &a->hold;
    sl_layout laid_out;
    int bad = sl_frame_lay_out(record, 0, &laid_out);
    if (sl_unlikely(bad < 0)) return bad;
    uint32_t flags = sl_load_relaxed(&s->p->flags), max = sl_load_relaxed(&s->p->max_message_bytes);
    uint64_t payload = (uint64_t)laid_out.headers_bytes + laid_out.key_bytes + (record->value ? laid_out.value_bytes : 0);
    uint32_t units = (laid_out.frame_bytes + SL_UNIT_BYTES - 1) / SL_UNIT_BYTES;
    if (sl_unlikely(payload > max || units > SL_CELL_UNIT_MAX / 2)) { result->needed_bytes = payload; result->free_bytes = max; return SL_E_TOO_BIG; }
    uint32_t count = record->rows ? record->rows : 1;
    if (sl_unlikely(count > SL_CELL_MAX_COUNT)) return SL_E_INVALID;
    int64_t timestamp_ns = record->timestamp_ns;
    if (timestamp_ns == 0 || (flags & SL_PF_LOG_APPEND_TIME)) timestamp_ns = sl_stamp_ns(&a->stamp);
    result->timestamp_ns = timestamp_ns;
    for (;;) {
        int rc = sl_hold_take(s, 0);
        if (sl_unlikely(rc < 0)) return rc;
        uint32_t unit = 0;
        int64_t offset = -1;
        int big = units > s->map->arena_units / 8;
        int done = take_room(a, units, &unit);
        if (sl_likely(done)) {
            a->no_room_ns = 0;
            SL_FAILPOINT(payload_write);
            if (sl_unlikely((bad = (int)sl_frame_write(s->map->arena + (uint64_t)unit * SL_UNIT_BYTES, record, &laid_out, timestamp_ns, 1, (flags & SL_PF_CRC_ALWAYS) != 0)) < 0)) {
                if (a->chunk_unit == unit + units) a->chunk_unit = unit;
                sl_hold_drop(s);
                return bad;
            }
            done = publish(s, SL_CELL_DATA, count, unit, expected_offset, &offset);
            if (sl_likely(done == 1)) {
                result->offset = offset;
                after_cas(s);
                if (sl_unlikely(big) && sl_load_relaxed(&s->p->displaced)) sl_store_relaxed(&s->p->displaced, 0);
                sl_hold_drop(s);
                return SL_OK;
            }
            if (done < 0) { /* nothing refers to what we wrote: take the room back */
                if (a->chunk_unit == unit + units) a->chunk_unit = unit;
                result->offset = offset;
                sl_hold_drop(s);
                return done;
            }
            if (big) sl_fetch_add_relaxed(&s->p->displaced, 1);
        } else if (expected_offset >= 0) { /* no room here, but a stale expectation need not wait for a new segment to be told so */
            rc = sl_hold_walk(s);
            uint32_t rel = s->index == 0 ? 0 : sl_cell_end(s->prev);
            if (rc == 1 && (int64_t)(s->base + rel) != expected_offset) { sl_hold_drop(s); result->offset = (int64_t)(s->base + rel); return SL_E_CONFLICT; }
        }
        rc = move_on(a, units, deadline_ns, result);
        if (rc < 0) return rc;
    }
}

/* ---- loans: the caller writes the value into the log's own memory -------------------------------------------------------------------
 * A loan outlives the call, so a view pin of the row holds its segment (taken before the hazard word is cleared; scan order hazard, then pins). If the
 * segment has moved on by the time of publishing, the bytes are copied into the current one, under the loan's pin *and* a hazard word on the new segment
 * (flaw F5: one word is not enough). */

static int take_pin(sl_row *row, uint64_t pin, uint32_t *slot) {
    for (uint32_t i = 0; i < SL_VIEW_PINS; i++)
        if (sl_load_relaxed(&row->view_pins[i]) == 0) { /* only this row's thread sets them; sl_lease_release() may clear one at any time */
            SL_FAILPOINT(pin_handover);
            sl_store_sc(&row->view_pins[i], pin); /* SYNC pin_handover: before the word it is handed over from is cleared */
            *slot = i;
            return SL_OK;
        }
    return SL_E_NO_SLOT;
}

int sl_loan_take(sl_appender *a, const sl_record *wanted, int64_t deadline_ns, sl_loan *loan, sl_append_result *result) {
    sl_hold *s = &a->hold;
    sl_record lent = *wanted, *record = &lent;
    lent.flags |= SL_RECORD_LOAN;
    uint32_t value_position;
    int64_t frame_bytes = sl_frame_measure(record, &value_position);
    if (frame_bytes < 0) return (int)frame_bytes;
    uint32_t max = sl_load_relaxed(&s->p->max_message_bytes);
    uint64_t payload = (uint64_t)record->headers_bytes + (record->key ? record->key_bytes : 0) + record->value_bytes;
    uint32_t units = (uint32_t)((frame_bytes + SL_UNIT_BYTES - 1) / SL_UNIT_BYTES);
    if (payload > max || units > SL_CELL_UNIT_MAX / 2) { result->needed_bytes = payload; result->free_bytes = max; return SL_E_TOO_BIG; }
    for (;;) {
        int rc = sl_hold_take(s, 0);
        if (rc < 0) return rc;
        uint32_t unit;
        if (take_room(a, units, &unit)) {
            if ((rc = take_pin(s->row, sl_pin_make(s->block, s->number), &loan->pin)) < 0) { sl_hold_drop(s); return rc; }
            sl_map *again;
            rc = sl_map_get(s->cluster, s->map->buffer, 1, &again); /* a use of its own: the appender may move on meanwhile */
            if (rc < 0) { sl_store_release(&s->row->view_pins[loan->pin], 0); sl_hold_drop(s); return rc; }
            loan->value_position = value_position;
            loan->value = s->map->arena + (uint64_t)unit * SL_UNIT_BYTES + value_position;
            loan->value_bytes = record->value_bytes;
            loan->number = s->number;
            loan->unit = unit;
            loan->units = units;
            loan->frame_bytes = (uint32_t)frame_bytes;
            loan->buffer = s->map->buffer;
            sl_hold_drop(s);
            return SL_OK;
        }
        rc = move_on(a, units, deadline_ns, result);
        if (rc < 0) return rc;
    }
}

void sl_loan_drop(sl_appender *a, sl_loan *loan) {
    sl_hold *s = &a->hold;
    if (!loan->value || sl_cluster_check(s->cluster) < 0) return;
    sl_map *m;
    if (sl_map_get(s->cluster, loan->buffer, 1, &m) == SL_OK) { sl_map_put(s->cluster, m); sl_map_put(s->cluster, m); }
    sl_store_release(&s->row->view_pins[loan->pin], 0); /* SYNC hazard_clear */
    loan->value = NULL;
}

int sl_loan_publish(sl_appender *a, sl_loan *loan, const sl_record *record, int64_t expected_offset, int64_t deadline_ns, sl_append_result *result) {
    sl_hold *s = &a->hold;
    if (!loan->value) return SL_E_INVALID;
    sl_record r = *record;
    r.value = loan->value;
    r.flags |= SL_RECORD_LOAN;
    uint32_t value_position;
    int64_t frame_bytes = sl_frame_measure(&r, &value_position);
    if (frame_bytes < 0) return (int)frame_bytes;
    if (r.value_bytes > loan->value_bytes) return SL_E_INVALID;
    uint32_t flags = sl_load_relaxed(&s->p->flags), count = r.rows ? r.rows : 1;
    int64_t timestamp_ns = r.timestamp_ns;
    if (timestamp_ns == 0 || (flags & SL_PF_LOG_APPEND_TIME)) timestamp_ns = sl_stamp_ns(&a->stamp);
    result->timestamp_ns = timestamp_ns;
    int rc = sl_hold_take(s, 0);
    if (rc < 0) return rc;
    /* In place only in its own segment and if the header that is known now still ends where the value was lent. */
    if (s->number == loan->number && value_position == loan->value_position && count <= SL_CELL_MAX_COUNT) {
        int64_t offset = -1;
        int big = loan->units > s->map->arena_units / 8;
        int64_t built = sl_frame_build(s->map->arena + (uint64_t)loan->unit * SL_UNIT_BYTES, &r, timestamp_ns, 0, (flags & SL_PF_CRC_ALWAYS) != 0);
        if (built < 0) { sl_hold_drop(s); return (int)built; }
        int done = publish(s, SL_CELL_DATA, count, loan->unit, expected_offset, &offset);
        if (done == 1) {
            result->offset = offset;
            after_cas(s);
            if (big && sl_load_relaxed(&s->p->displaced)) sl_store_relaxed(&s->p->displaced, 0);
            sl_hold_drop(s);
            sl_loan_drop(a, loan);
            return SL_OK;
        }
        if (done < 0) { result->offset = offset; sl_hold_drop(s); return done; }
        if (big) sl_fetch_add_relaxed(&s->p->displaced, 1);
    }
    sl_hold_drop(s);
    r.timestamp_ns = timestamp_ns;
    SL_FAILPOINT(loan_copy);
    rc = sl_append(a, &r, expected_offset, deadline_ns, result); /* copies from loan->value, which the loan's pin keeps */
    if (rc == SL_OK) sl_loan_drop(a, loan);
    return rc;
}
