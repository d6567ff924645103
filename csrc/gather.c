/* From memory into a batch: the spiller's place in a partition's segments, and private, validated copies of the frames behind it.
 *
 * A segment is read under the spill row's hazard word, each cell loaded once, the arena by one pread for a span of cells; everything is decided on the copy.
 * What fails its check, or is gone, becomes a LOST frame of as many offsets. The caller holds sl_broker.lock throughout. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "broker.h"

#define LOST_FRAME_BYTES (SL_FRAME_HEADER_BYTES + 8)

/* ---- the spiller's place in memory ---- */

void sl_spill_leave(sl_broker *b, sl_bp *p) {
    if (p->map) sl_map_put(b->cluster, p->map);
    p->map = NULL;
    if (p->fd >= 0) close(p->fd);
    p->fd = -1;
    p->fd_buffer = 0;
}

int sl_spill_hold(sl_broker *b, sl_bp *p, uint64_t number) {
    uint32_t id = sl_log_buffer(p->words, number);
    if (!id) return 0;
    sl_store_sc(&b->row->hazard[0], sl_pin_make(p->block, number)); /* SYNC pin_store: then the directory again; pairs with the take-out, then the scan */
    if (sl_log_buffer(p->words, number) != id) { sl_store_release(&b->row->hazard[0], 0); return 0; }
    if (p->map && p->map->buffer == id) return 1;
    sl_spill_leave(b, p);
    int rc = sl_map_get(b->cluster, id, 1, &p->map);
    if (rc < 0) { p->map = NULL; sl_store_release(&b->row->hazard[0], 0); return rc; }
    return 1;
}

void sl_spill_release(sl_broker *b) { sl_store_release(&b->row->hazard[0], 0); /* SYNC hazard_clear: after the last byte was copied */ }

/* For pread. Without a name (somebody removed it) or without a free descriptor the mapping does: p->fd stays -1. */
static void open_segment(sl_broker *b, sl_bp *p) {
    if (p->fd >= 0 && p->fd_buffer == p->map->buffer) return;
    if (p->fd >= 0) close(p->fd);
    char name[128];
    snprintf(name, sizeof name, "%s.s%u", sl_cluster_prefix(b->cluster), p->map->buffer);
    p->fd = shm_open(name, O_RDONLY | O_CLOEXEC, 0);
    p->fd_buffer = p->map->buffer;
}

uint64_t sl_spill_base(const sl_map *map, uint64_t number) {
    uint64_t w = sl_load_acquire(&map->segment->base);
    if (sl_word_tag(w) != (number & 0xffff) || sl_word_offset(w) == SL_BASE_UNSET) return UINT64_MAX;
    return sl_word_offset(w);
}

void sl_spill_seek(sl_broker *b, sl_bp *p, uint64_t offset) {
    uint64_t cur = sl_cur_number(sl_load_acquire(&p->words->cur)), best = 0, oldest = 0;
    for (uint64_t n = cur >= SL_DIR_SLOTS ? cur - SL_DIR_SLOTS + 1 : 1; n <= cur; n++) {
        if (sl_spill_hold(b, p, n) != 1) continue;
        uint64_t base = sl_spill_base(p->map, n);
        sl_spill_release(b);
        if (base == UINT64_MAX) continue;
        if (!oldest) oldest = n;
        if (base <= offset) best = n;
    }
    sl_spill_leave(b, p);
    p->number = best ? best : oldest ? oldest : cur;
    p->cell = 0;
    p->seeking = 1;
    p->next_offset = offset;
}

void sl_segment_file_name(char *to, size_t room, uint64_t base, uint32_t leader_epoch, const char *kind) {
    snprintf(to, room, "%020llu-%u.%s", (unsigned long long)base, leader_epoch, kind);
}

/* ---- a batch ---- */

/* A frame that says: `rows` offsets, no records, because they were damaged or are gone. */
static void build_lost(uint8_t *to, uint32_t rows) {
    memset(to, 0, 64);
    int64_t now = sl_wall_ns();
    sl_frame f = {
        .frame_bytes = LOST_FRAME_BYTES, .timestamp_ns_low = (uint32_t)now, .timestamp_ns_high = (uint32_t)((uint64_t)now >> 32),
        .key_bytes = SL_NULL_BYTES, .value_bytes = SL_NULL_BYTES,
        .flags = SL_FF_CONTROL | SL_FF_LOST | SL_FF_HAS_ROWS | SL_FF_CRC_ALL, .extension_bytes = 8,
    };
    uint32_t extension[2] = {rows, 0};
    memcpy(to, &f, sizeof f);
    memcpy(to + sizeof f, extension, sizeof extension);
    uint32_t crc = sl_crc32c(0, to + 8, LOST_FRAME_BYTES - 8);
    memcpy(to + 4, &crc, sizeof crc);
}

static int add_piece(sl_batch *t, const uint8_t *frame, uint32_t frame_bytes, uint64_t offset, uint32_t count, uint8_t type) {
    if (t->n == SL_BATCH_PIECES) return 0;
    t->pieces[t->n] = (sl_file_piece){.frame = frame, .frame_bytes = frame_bytes, .crc32c = sl_crc32c(0, frame, frame_bytes),
                                      .count = (uint16_t)(count <= SL_CELL_MAX_COUNT ? count : 0), .type = type};
    t->offsets[t->n++] = offset;
    t->end_offset = offset + count;
    t->bytes += (frame_bytes + 63u) & ~63u;
    t->records += count;
    return 1;
}

/* Offsets [t->end_offset, to) as LOST frames. 0: no room in this batch any more. */
static int add_lost(sl_broker *b, sl_bp *p, sl_batch *t, uint64_t to, const char *why) {
    while (t->end_offset < to) {
        if (t->n_lost == SL_BATCH_LOST || t->n == SL_BATCH_PIECES) return 0;
        uint64_t from = t->end_offset, rows = to - from;
        if (rows > INT32_MAX) rows = INT32_MAX;
        build_lost(t->lost[t->n_lost], (uint32_t)rows);
        add_piece(t, t->lost[t->n_lost++], LOST_FRAME_BYTES, from, (uint32_t)rows, SL_CELL_CONTROL);
        sl_broker_say(b, SL_EVENT_LOST, p->block, SL_E_CORRUPT, 0, from, rows, "%llu records lost: %s", (unsigned long long)rows, why);
    }
    return 1;
}

static int cell_believable(uint64_t w, uint64_t number, const sl_map *map) {
    uint32_t type = sl_cell_type(w);
    if (sl_cell_tag(w) != (number & 15)) return 0;
    if (type == SL_CELL_SEAL) return 1;
    return (type == SL_CELL_DATA || type == SL_CELL_CONTROL) && sl_cell_count(w) != 0 && sl_cell_unit(w) < map->arena_units;
}

static int read_arena(sl_bp *p, uint32_t unit, uint8_t *to, uint64_t bytes) {
    off_t at = (off_t)((uint64_t)(p->map->arena - (uint8_t *)p->map->segment) + (uint64_t)unit * SL_UNIT_BYTES);
    if (p->fd < 0) {
        memcpy(to, p->map->arena + (uint64_t)unit * SL_UNIT_BYTES, bytes);
        return SL_OK;
    }
    while (bytes) {
        ssize_t got = pread(p->fd, to, bytes, at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return SL_E_DAMAGED; /* somebody cut the object: what is missing is lost */
        to += got;
        at += got;
        bytes -= (uint64_t)got;
    }
    return SL_OK;
}

/* One frame, whose private copy of `have` bytes lies at `frame`: a piece, or LOST. 1 done, 0 it does not lie in the copy as a whole. */
static int take_frame(sl_broker *b, sl_bp *p, sl_batch *t, uint64_t w, uint64_t offset, uint8_t *frame, uint64_t have, uint64_t arena_left) {
    uint32_t count = sl_cell_count(w), frame_bytes = 0;
    if (have < SL_FRAME_HEADER_BYTES && have < arena_left) return 0;
    if (have >= SL_FRAME_HEADER_BYTES) memcpy(&frame_bytes, frame, sizeof frame_bytes);
    const char *why = NULL;
    if (frame_bytes < SL_FRAME_HEADER_BYTES || frame_bytes > arena_left) why = "a frame has an impossible length";
    else if (frame_bytes > have) return 0;
    else if (sl_frame_check(frame, frame_bytes, 1) < 0) why = "a frame's checksum is wrong";
    else if (sl_frame_rows(frame) != count) why = "a frame does not hold as many records as its cell says";
    if (why) return add_lost(b, p, t, offset + count, why);
    /* The padding goes to disk too: what an earlier life of the arena left there must not. */
    uint32_t padding = (uint32_t)(-frame_bytes & 63u);
    if (padding && frame_bytes + padding <= have) memset(frame + frame_bytes, 0, padding);
    return add_piece(t, frame, frame_bytes, offset, count, (uint8_t)sl_cell_type(w));
}

static int big_room(sl_broker *b, uint64_t bytes) {
    b->big_ns = sl_monotonic_ns();
    if (b->big_bytes >= bytes) return 1;
    free(b->big);
    bytes = (bytes + 4095) & ~UINT64_C(4095);
    b->big = aligned_alloc(4096, bytes);
    b->big_bytes = b->big ? bytes : 0;
    return b->big != NULL;
}

/* After a failed sync, for what is no longer in memory: the failed file may still have it, in the kernel's pages or on the disk. Every frame must prove
 * itself by its own CRC and its cell's; what does not is lost. Adds pieces from t->end_offset on, at most to `to`. 1 some, 0 none: the rest is lost. */
static int salvage(sl_broker *b, sl_bp *p, sl_batch *t, uint64_t to) {
    char name[64];
    if (!p->rewrite_to) return 0;
    sl_segment_file_name(name, sizeof name, p->failed_base, p->leader_epoch, "log");
    if (!p->failed_reader && sl_file_reader_open(p->dir, name, &p->failed_reader) < 0) { p->failed_reader = NULL; return 0; }
    int64_t index = sl_file_reader_find_offset(p->failed_reader, t->end_offset, to);
    if (index < 0) return 0;
    sl_file_cell cells[512];
    uint64_t needed = 0;
    uint8_t *from = b->raw;
    int64_t n = sl_file_reader_fill(p->failed_reader, (uint64_t)index, to, 1, from, SL_RAW_BYTES, cells, 512, &needed);
    if (n == SL_E_TOO_BIG && big_room(b, needed))
        n = sl_file_reader_fill(p->failed_reader, (uint64_t)index, to, 1, from = b->big, b->big_bytes, cells, 1, &needed);
    if (n == SL_E_CORRUPT) { /* this one is lost; the next may be right */
        sl_file_cell next;
        uint64_t end = to;
        if (sl_file_reader_cell(p->failed_reader, (uint64_t)index + 1, to, &next) == SL_OK) end = p->failed_base + next.rel;
        if (end <= t->end_offset || end > to) return 0;
        return add_lost(b, p, t, end, "their bytes in a file whose sync failed are damaged");
    }
    for (int64_t i = 0; i < n; i++) {
        uint8_t *frame = from + (uint64_t)(cells[i].unit - cells[0].unit) * SL_UNIT_BYTES;
        uint32_t frame_bytes, rows = sl_frame_rows(frame);
        memcpy(&frame_bytes, frame, sizeof frame_bytes);
        uint64_t offset = p->failed_base + cells[i].rel;
        if (offset != t->end_offset || offset + rows > to) return i > 0;
        add_piece(t, frame, frame_bytes, offset, rows, cells[i].type);
    }
    return n > 0;
}

int sl_gather(sl_broker *b, sl_bp *p, sl_batch *t, uint64_t base) {
    const sl_map *map = p->map;
    uint32_t first = p->cell, n = 0, lo = UINT32_MAX, hi = 0;
    t->n = t->n_lost = 0;
    t->bytes = t->records = 0;
    t->end_offset = p->next_offset;
    t->seeking = p->seeking;
    t->sealed = t->more = 0;
    t->cell = first;
    if (t->end_offset < base) {
        t->more = 1;
        if (!salvage(b, p, t, base)) add_lost(b, p, t, base, "they were in memory that is gone");
        return SL_OK;
    }

    /* 1. Cells, each loaded once, as far as one span of the arena holds their frames. */
    for (uint32_t i = first; i < map->cell_count && n < SL_BATCH_PIECES; i++) {
        uint64_t w = sl_load_acquire(&map->cells[i]); /* SYNC cell_cas: its frame was written before */
        if (!w) break;
        if (cell_believable(w, p->number, map) && sl_cell_type(w) != SL_CELL_SEAL && base + sl_cell_rel(w) >= p->next_offset) {
            uint32_t unit = sl_cell_unit(w), l = unit < lo ? unit : lo, h = unit > hi ? unit : hi;
            if ((uint64_t)(h - l) * SL_UNIT_BYTES > SL_RAW_BYTES) { t->more = 1; break; }
            lo = l;
            hi = h;
        }
        t->words[n++] = w;
        if (sl_cell_type(w) == SL_CELL_SEAL && cell_believable(w, p->number, map)) break;
    }
    if (n == SL_BATCH_PIECES) t->more = 1;
    if (n == 0) return SL_OK;

    /* 2. One read of the span. How long its last frame is nobody has said yet: as long as the last ones, or it begins the next batch. */
    uint64_t have = 0;
    if (lo != UINT32_MAX) {
        open_segment(b, p);
        have = (uint64_t)(hi - lo) * SL_UNIT_BYTES + p->tail_hint;
        uint64_t left = (uint64_t)(map->arena_units - lo) * SL_UNIT_BYTES;
        if (have > left) have = left;
        if (have > SL_RAW_ROOM) have = SL_RAW_ROOM;
        if (read_arena(p, lo, b->raw, have) < 0) memset(b->raw, 0, have); /* not there: every frame fails its check */
    }

    /* 3. Frame by frame. */
    for (uint32_t k = 0; k < n; k++, t->cell++) {
        uint64_t w = t->words[k];
        uint32_t type = sl_cell_type(w);
        if (!cell_believable(w, p->number, map)) {
            /* Whatever it was is lost; its successor's place says how many records. Until there is one, wait. */
            if (k + 1 == n && (first + n >= map->cell_count || !sl_load_acquire(&map->cells[first + n]))) break;
            sl_broker_say(b, SL_EVENT_DAMAGED, p->block, SL_E_DAMAGED, 0, t->end_offset, 0, "cell %u of segment %llu is damaged: %016llx", (unsigned)(first + k),
                          (unsigned long long)p->number, (unsigned long long)w);
            continue;
        }
        uint64_t offset = base + sl_cell_rel(w);
        if (offset > t->end_offset && !add_lost(b, p, t, offset, "cells were damaged, or memory is gone")) { t->more = 1; return SL_OK; }
        if (type == SL_CELL_SEAL) {
            t->sealed = 1;
            return SL_OK;
        }
        if (offset < t->end_offset) { /* written before; or a cell below a damaged one that counts anew: its offsets are taken */
            if (!t->seeking)
                sl_broker_say(b, SL_EVENT_DAMAGED, p->block, SL_E_DAMAGED, 0, offset, sl_cell_count(w), "cell %u of segment %llu repeats an offset",
                              (unsigned)(first + k), (unsigned long long)p->number);
            continue;
        }
        t->seeking = 0;
        uint32_t unit = sl_cell_unit(w);
        uint64_t arena_left = (uint64_t)(map->arena_units - unit) * SL_UNIT_BYTES, at = (uint64_t)(unit - lo) * SL_UNIT_BYTES;
        int taken = take_frame(b, p, t, w, offset, b->raw + at, at < have ? have - at : 0, arena_left);
        if (taken == 0 && t->n == 0) {
            /* The first frame of the batch, and it reaches beyond what was read: it gets a buffer of its own and is the batch. */
            uint32_t bytes = 0; /* a hint only: the copy is checked on its own */
            if (have >= at + sizeof bytes) memcpy(&bytes, b->raw + at, sizeof bytes);
            if (bytes > arena_left || bytes < SL_FRAME_HEADER_BYTES) bytes = SL_FRAME_HEADER_BYTES;
            uint64_t room = ((uint64_t)bytes + 63) & ~UINT64_C(63);
            if (room > arena_left) room = arena_left;
            if (!big_room(b, room)) return SL_E_NOMEM;
            if (read_arena(p, unit, b->big, room) < 0) memset(b->big, 0, room);
            if (!take_frame(b, p, t, w, offset, b->big, room, arena_left))
                add_lost(b, p, t, offset + sl_cell_count(w), "a frame changed while it was copied");
            if (p->tail_hint < bytes) p->tail_hint = bytes < (64u << 10) ? (bytes + 127) & ~63u : 64u << 10;
            t->cell++;
            t->more = 1;
            return SL_OK;
        }
        if (taken == 0) { t->more = 1; return SL_OK; }
    }
    return SL_OK;
}

void sl_salvage_close(sl_bp *p) {
    if (p->failed_reader) sl_file_reader_close(p->failed_reader);
    p->failed_reader = NULL;
}
