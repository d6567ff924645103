/* The broker's C threads: one writes what was appended to files, in log order, and cares for the memory (ring.c); one syncs files.
 *
 * The spiller reads the cells of a segment under a hazard word, copies the frames' bytes out of the arena by pread (one for a span of cells), validates
 * the *copy*, and appends it to the partition's file; then, and only then, it moves `spilled`. What another process wrote is never trusted and never
 * read twice: a frame that fails its check becomes a CONTROL|LOST frame of as many offsets, so the log stays dense, readers get a typed error, and the
 * partition goes on. Nothing here stops for one partition: a full or failing disk is asked again each 200 ms, and back-pressure does the rest, because
 * memory is not reused before it is spilled.
 *
 * `durable` moves when fdatasync returned 0, for all that had been written when it was called (group commit). A failed fdatasync is never repeated on
 * the same file: the kernel may have dropped the pages and forgotten. What lies between durable and spilled is written anew, from memory, into
 * <dir>/rewrite/, synced there, and renamed into place in one step per name; its base is the durable offset, and of two files that hold an offset the
 * one with the higher base counts. What is no longer in memory is read back from the failed file where its CRCs still prove it, and becomes a LOST frame
 * where they do not: a gap with a name, never silence.
 *
 * Words this process writes, and what is left when it is killed after each store (`->`: what the next broker does):
 *   hazard[0] of the spill row   a segment is kept -> sl_row_clean() after the death certificate
 *   bytes in the file            beyond `spilled` -> recovery cuts the file at `spilled` and they are written again
 *   spilled                      the file has all below it -> goes on from there; durable may be behind: recovery syncs before it opens a new file
 *   durable                      true when stored, and for ever
 *   file_base_offset             a hint for readers and tools: names the newest file, which may not have a record yet
 *   sync_wanted = 0              a waiter sleeps, and nobody will sync for it -> sl_broker_add() declares what recovery synced, and wakes it
 *   storage_*                    stale -> overwritten at the first look
 *   rewrite/                     half written -> recovery deletes it; the failed file still stands, its tail is checked frame by frame
 *   rewrite/ renamed .cells only -> .cells without .log: recovery deletes it (a cell table is derivable)
 *
 * Threads: both block all signals and never touch Python. sl_broker.lock covers everything but file I/O; a partition whose `writing` or `syncing` is set
 * may not be freed and its file not closed by anybody else. The callers of sl_broker_*() use the spill row too, under the lock. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "broker.h"

#define RAW_BYTES (1u << 20)              /* a batch */
#define RAW_ROOM (RAW_BYTES + (64u << 10)) /* and the tail of its last frame */
#define BATCH_PIECES 4096u
#define BATCH_LOST 16u                    /* LOST frames in one batch */
#define LOST_FRAME_BYTES (SL_FRAME_HEADER_BYTES + 8)
#define BATCHES_PER_TURN 8                /* then the next partition has its turn */
#define SAID_NS INT64_C(10000000000)
#define DISK_CHECK_NS INT64_C(100000000)
#define DISK_CHECK_BYTES (64u << 20)

/* ---- events and storage state ---- */

void sl_broker_say(sl_broker *b, uint32_t kind, uint32_t block, int code, int saved_errno, uint64_t offset, uint64_t count, const char *what, ...) {
    if (b->event_head - b->event_tail == SL_EVENTS) b->event_tail++; /* nobody listens: the newest are worth more */
    sl_broker_event *e = &b->events[b->event_head++ % SL_EVENTS];
    *e = (sl_broker_event){.at_ns = sl_wall_ns(), .offset = offset, .count = count, .kind = kind, .block = block, .code = code, .saved_errno = saved_errno};
    va_list args;
    va_start(args, what);
    vsnprintf(e->what, sizeof e->what, what, args);
    va_end(args);
    if (eventfd_write(b->event_fd, 1) < 0) { /* it is readable already */ }
}

void sl_storage_update(sl_broker *b, sl_bp *p) {
    int disk = p->disk_state != SL_STORAGE_OK;
    uint32_t state = disk ? p->disk_state : p->ring_state;
    sl_partition *w = p->words;
    sl_store_relaxed(&w->storage_errno, (uint32_t)(disk ? p->disk_errno : 0));
    sl_store_relaxed(&w->storage_needed_bytes, disk ? p->disk_needed : p->ring_needed);
    sl_store_relaxed(&w->storage_free_bytes, disk ? p->disk_free : p->ring_free);
    uint32_t before = sl_load_relaxed(&w->storage_state);
    if (before == state) return;
    sl_store_release(&w->storage_state, state);
    /* BEHIND comes and goes with every burst, and a tight memory is full many times a second: states, but no news each time. */
    int news = state != SL_STORAGE_BEHIND && !(state == SL_STORAGE_OK && before == SL_STORAGE_BEHIND);
    if (news && (state == SL_STORAGE_SHM_FULL || before == SL_STORAGE_SHM_FULL)) {
        int64_t now = sl_monotonic_ns();
        news = state == SL_STORAGE_SHM_FULL ? !p->said_full_ns || now - p->said_full_ns > SAID_NS : p->said_full;
        p->said_full = state == SL_STORAGE_SHM_FULL && (news || p->said_full);
        if (p->said_full && news) p->said_full_ns = now;
    }
    if (news)
        sl_broker_say(b, SL_EVENT_STORAGE, p->block, (int)state, disk ? p->disk_errno : 0, p->next_offset, 0, "%s: needs %llu bytes, %llu are free",
                      state == SL_STORAGE_OK ? "storage works again" : state == SL_STORAGE_SHM_FULL ? "shared memory is full"
                      : state == SL_STORAGE_DISK_FULL ? "the disk is full" : "the disk failed",
                      (unsigned long long)(disk ? p->disk_needed : p->ring_needed), (unsigned long long)(disk ? p->disk_free : p->ring_free));
    sl_wake_bits(b->cluster, p->waits->commit); /* who waits for room may want to give up with this reason */
}

static void disk_state(sl_broker *b, sl_bp *p, uint32_t state, int saved_errno, uint64_t needed, uint64_t free_bytes) {
    p->disk_state = state;
    p->disk_errno = saved_errno;
    p->disk_needed = needed;
    p->disk_free = free_bytes;
    sl_storage_update(b, p);
}

static uint64_t disk_free(const sl_bp *p) {
    struct statvfs v;
    if (!p->dir || statvfs(p->dir, &v) < 0) return UINT64_MAX;
    return (uint64_t)v.f_bavail * v.f_frsize;
}

/* ---- the spiller's place in memory ---- */

static void leave_segment(sl_broker *b, sl_bp *p) {
    if (p->map) sl_map_put(b->cluster, p->map);
    p->map = NULL;
    if (p->fd >= 0) close(p->fd);
    p->fd = -1;
    p->fd_buffer = 0;
}

/* Steps 23-25: a hazard word on the segment, then a second look whether the directory still names it. 1 held (p->map), 0 it is not there, < 0 an error. */
static int hold_segment(sl_broker *b, sl_bp *p, uint64_t number) {
    uint32_t id = sl_log_buffer(p->words, number);
    if (!id) return 0;
    sl_store_sc(&b->row->hazard[0], sl_pin_make(p->block, number)); /* SYNC pin_store: then the directory again; pairs with the take-out, then the scan */
    if (sl_log_buffer(p->words, number) != id) { sl_store_release(&b->row->hazard[0], 0); return 0; }
    if (p->map && p->map->buffer == id) return 1;
    leave_segment(b, p);
    int rc = sl_map_get(b->cluster, id, 1, &p->map);
    if (rc < 0) { p->map = NULL; sl_store_release(&b->row->hazard[0], 0); return rc; }
    return 1;
}

static void release_segment(sl_broker *b) { sl_store_release(&b->row->hazard[0], 0); /* SYNC hazard_clear: after the last byte was copied */ }

/* For pread. Without a name (somebody removed it) or without a free descriptor the mapping does: p->fd stays -1. */
static void open_segment(sl_broker *b, sl_bp *p) {
    if (p->fd >= 0 && p->fd_buffer == p->map->buffer) return;
    if (p->fd >= 0) close(p->fd);
    char name[128];
    snprintf(name, sizeof name, "%s.s%u", sl_cluster_prefix(b->cluster), p->map->buffer);
    p->fd = shm_open(name, O_RDONLY | O_CLOEXEC, 0);
    p->fd_buffer = p->map->buffer;
}

/* The offset of a segment's first record, UINT64_MAX if its base word does not say. */
static uint64_t segment_base(const sl_map *map, uint64_t number) {
    uint64_t w = sl_load_acquire(&map->segment->base);
    if (sl_word_tag(w) != (number & 0xffff) || sl_word_offset(w) == SL_BASE_UNSET) return UINT64_MAX;
    return sl_word_offset(w);
}

/* Goes to the segment that holds `offset`, else to the oldest there is above it: what is missing between becomes a LOST frame. */
static void seek(sl_broker *b, sl_bp *p, uint64_t offset) {
    uint64_t cur = sl_cur_number(sl_load_acquire(&p->words->cur)), best = 0, oldest = 0;
    for (uint64_t n = cur >= SL_DIR_SLOTS ? cur - SL_DIR_SLOTS + 1 : 1; n <= cur; n++) {
        if (hold_segment(b, p, n) != 1) continue;
        uint64_t base = segment_base(p->map, n);
        release_segment(b);
        if (base == UINT64_MAX) continue;
        if (!oldest) oldest = n;
        if (base <= offset) best = n;
    }
    leave_segment(b, p);
    p->number = best ? best : oldest ? oldest : cur;
    p->cell = 0;
    p->seeking = 1;
    p->next_offset = offset;
}

static void file_name(char *to, size_t room, uint64_t base, uint32_t leader_epoch, const char *kind) {
    snprintf(to, room, "%020llu-%u.%s", (unsigned long long)base, leader_epoch, kind);
}

/* ---- a batch ---- */

typedef struct batch {
    sl_file_piece pieces[BATCH_PIECES];
    uint64_t offsets[BATCH_PIECES];
    uint64_t words[BATCH_PIECES];
    _Alignas(64) uint8_t lost[BATCH_LOST][128];
    size_t n, n_lost;
    uint64_t end_offset, bytes, records;
    uint32_t cell;            /* where the next batch begins */
    int seeking, sealed, more;
} batch;

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

static int add_piece(batch *t, const uint8_t *frame, uint32_t frame_bytes, uint64_t offset, uint32_t count, uint8_t type) {
    if (t->n == BATCH_PIECES) return 0;
    t->pieces[t->n] = (sl_file_piece){.frame = frame, .frame_bytes = frame_bytes, .crc32c = sl_crc32c(0, frame, frame_bytes),
                                      .count = (uint16_t)(count <= SL_CELL_MAX_COUNT ? count : 0), .type = type};
    t->offsets[t->n++] = offset;
    t->end_offset = offset + count;
    t->bytes += (frame_bytes + 63u) & ~63u;
    t->records += count;
    return 1;
}

/* Offsets [t->end_offset, to) as LOST frames. 0: no room in this batch any more. */
static int add_lost(sl_broker *b, sl_bp *p, batch *t, uint64_t to, const char *why) {
    while (t->end_offset < to) {
        if (t->n_lost == BATCH_LOST || t->n == BATCH_PIECES) return 0;
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
static int take_frame(sl_broker *b, sl_bp *p, batch *t, uint64_t w, uint64_t offset, uint8_t *frame, uint64_t have, uint64_t arena_left) {
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
static int salvage(sl_broker *b, sl_bp *p, batch *t, uint64_t to) {
    char name[64];
    if (!p->rewrite_to) return 0;
    file_name(name, sizeof name, p->failed_base, p->leader_epoch, "log");
    if (!p->failed_reader && sl_file_reader_open(p->dir, name, &p->failed_reader) < 0) { p->failed_reader = NULL; return 0; }
    int64_t index = sl_file_reader_find_offset(p->failed_reader, t->end_offset, to);
    if (index < 0) return 0;
    sl_file_cell cells[512];
    uint64_t needed = 0;
    uint8_t *from = b->raw;
    int64_t n = sl_file_reader_fill(p->failed_reader, (uint64_t)index, to, 1, from, RAW_BYTES, cells, 512, &needed);
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

/* Fills a batch from segment p->number, which is held. Returns < 0 only when memory is missing here. */
static int gather(sl_broker *b, sl_bp *p, batch *t, uint64_t base) {
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
    for (uint32_t i = first; i < map->cell_count && n < BATCH_PIECES; i++) {
        uint64_t w = sl_load_acquire(&map->cells[i]); /* SYNC cell_cas: its frame was written before */
        if (!w) break;
        if (cell_believable(w, p->number, map) && sl_cell_type(w) != SL_CELL_SEAL && base + sl_cell_rel(w) >= p->next_offset) {
            uint32_t unit = sl_cell_unit(w), l = unit < lo ? unit : lo, h = unit > hi ? unit : hi;
            if ((uint64_t)(h - l) * SL_UNIT_BYTES > RAW_BYTES) { t->more = 1; break; }
            lo = l;
            hi = h;
        }
        t->words[n++] = w;
        if (sl_cell_type(w) == SL_CELL_SEAL && cell_believable(w, p->number, map)) break;
    }
    if (n == BATCH_PIECES) t->more = 1;
    if (n == 0) return SL_OK;

    /* 2. One read of the span. How long its last frame is nobody has said yet: as long as the last ones, or it begins the next batch. */
    uint64_t have = 0;
    if (lo != UINT32_MAX) {
        open_segment(b, p);
        have = (uint64_t)(hi - lo) * SL_UNIT_BYTES + p->tail_hint;
        uint64_t left = (uint64_t)(map->arena_units - lo) * SL_UNIT_BYTES;
        if (have > left) have = left;
        if (have > RAW_ROOM) have = RAW_ROOM;
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

/* ---- files ---- */

static void roll_now(sl_broker *b, sl_bp *p) {
    p->rolling = 1;
    p->roll_asked = 0;
    pthread_cond_signal(&b->sync_work);
}

static int rewrite_dir(const sl_bp *p, char path[PATH_MAX]) { return snprintf(path, PATH_MAX, "%s/rewrite", p->dir) < PATH_MAX ? SL_OK : SL_E_INVALID; }

static void remove_rewrite(const sl_bp *p, uint64_t base) {
    char dir[PATH_MAX], path[PATH_MAX + 80], name[64];
    if (rewrite_dir(p, dir) < 0) return;
    for (int i = 0; i < 2; i++) {
        file_name(name, sizeof name, base, p->leader_epoch, i ? "cells" : "log");
        snprintf(path, sizeof path, "%s/%s", dir, name);
        unlink(path);
    }
    rmdir(dir);
}

static int sync_dir(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) { sl_set_errno(errno); return SL_E_IO; }
    int rc = fsync(fd) < 0 ? SL_E_IO : SL_OK;
    if (rc < 0) sl_set_errno(errno);
    close(fd);
    return rc;
}

/* The rewritten file is whole and synced: its names replace those of the failed one. Cells first: a .log is what makes a file a file. */
static int install_rewrite(const sl_bp *p) {
    char dir[PATH_MAX], from[PATH_MAX + 80], to[PATH_MAX + 80], name[64];
    int rc = rewrite_dir(p, dir);
    for (int i = 0; rc == SL_OK && i < 2; i++) {
        file_name(name, sizeof name, p->file_base, p->leader_epoch, i ? "log" : "cells");
        snprintf(from, sizeof from, "%s/%s", dir, name);
        snprintf(to, sizeof to, "%s/%s", p->dir, name);
        if (rename(from, to) < 0) { sl_set_errno(errno); rc = SL_E_IO; }
    }
    if (rc == SL_OK) rc = sync_dir(p->dir);
    if (rc == SL_OK) rmdir(dir);
    return rc;
}

/* Without the lock: p->file and p->file_base are set by the caller, with it. */
static int create_file(sl_broker *b, sl_bp *p, uint64_t base, sl_file **out) {
    char dir[PATH_MAX];
    const char *where = p->dir;
    if (p->rewrite_to) {
        int rc = rewrite_dir(p, dir);
        if (rc < 0) return rc;
        remove_rewrite(p, base);
        if (mkdir(dir, 0700) < 0 && errno != EEXIST) { sl_set_errno(errno); return errno == ENOSPC ? SL_E_DISK_FULL : SL_E_IO; }
        where = dir;
    }
    return sl_file_create(where, base, p->leader_epoch, p->partition, p->topic_id, b->control->header.cluster_id, out);
}

/* The disk refused: back to where the file is right, and again later. Nothing of the batch counts. */
static void disk_refused(sl_broker *b, sl_bp *p, int rc, uint64_t needed, int64_t now) {
    int saved = sl_last_errno();
    int full = rc == SL_E_DISK_FULL || saved == ENOSPC || saved == EDQUOT;
    p->retry_ns = now + SL_RETRY_NS;
    p->checked_disk_ns = 0;
    disk_state(b, p, full ? SL_STORAGE_DISK_FULL : SL_STORAGE_DISK_ERROR, saved, needed, disk_free(p));
}

static void close_salvage(sl_bp *p) {
    if (p->failed_reader) sl_file_reader_close(p->failed_reader);
    p->failed_reader = NULL;
}

static void begin_rewrite(sl_broker *b, sl_bp *p) {
    uint64_t to = p->rewrite_to > p->next_offset ? p->rewrite_to : p->next_offset;
    if (!p->rewrite_to) p->failed_base = p->file_base; /* else it is the rewrite that failed, and the file behind it is still the same */
    if (p->file) sl_file_close(p->file);
    p->file = NULL;
    p->sync_failed = 0;
    p->rolling = 0;
    p->unsynced_ns = 0;
    seek(b, p, p->durable);
    p->rewrite_to = to > p->durable ? to : 0;
}

/* Writes one batch. 1 something was done (more may be there), 0 nothing to do. Drops the lock around file I/O. */
static int spill_batch(sl_broker *b, sl_bp *p, batch *t, int64_t now) {
    if (p->fenced || p->removed || p->retry_ns > now) return 0;
    if (p->sync_failed) {
        if (p->syncing) return 0;
        begin_rewrite(b, p);
    }
    if (p->rolling) return 0;
    if (!p->sync_asked && sl_load_relaxed(&p->words->sync_wanted)) {
        sl_store_sc(&p->words->sync_wanted, 0); /* SYNC sync_wanted: before the cells are read; who sets it later is served by the next round */
        sl_fence_sc();                          /* and who still found it set has appended before: pairs with wait_word() */
        p->sync_asked = 1;
    }
    int rc = hold_segment(b, p, p->number);
    if (rc <= 0) {
        uint64_t cur = sl_cur_number(sl_load_acquire(&p->words->cur));
        if (rc < 0) sl_broker_say(b, SL_EVENT_DAMAGED, p->block, rc, sl_last_errno(), p->next_offset, 0, "segment %llu cannot be mapped: %s",
                                  (unsigned long long)p->number, sl_strerror(rc));
        leave_segment(b, p);
        if (p->number < cur) { /* reused: it was wholly spilled. Or it is gone: its successor's base tells the gap */
            p->number++;
            p->cell = 0;
            return 1;
        }
        if (rc < 0) p->retry_ns = now + SL_RETRY_NS;
        return 0;
    }
    uint64_t cur = sl_cur_number(sl_load_acquire(&p->words->cur)); /* first: the base is set before `cur` moves on to it, and not the other way round */
    uint64_t base = segment_base(p->map, p->number);
    if (base == UINT64_MAX) {
        release_segment(b);
        if (p->number > cur) return 0; /* it was ready and not active yet */
        sl_broker_say(b, SL_EVENT_DAMAGED, p->block, SL_E_DAMAGED, 0, p->next_offset, 0, "the base of segment %llu is damaged", (unsigned long long)p->number);
        if (p->number == cur) { p->retry_ns = now + SL_RETRY_NS; return 0; }
        p->number++; /* its successor's base tells how many records are lost */
        p->cell = 0;
        return 1;
    }
    if (p->cell >= p->map->cell_count || (!sl_load_acquire(&p->map->cells[p->cell]) && p->next_offset >= base)) {
        release_segment(b);
        if (p->sync_asked) {
            p->sync_asked = 0;
            if (p->file && p->durable < p->file_end) { p->sync_now = 1; pthread_cond_signal(&b->sync_work); }
        }
        if (p->roll_asked && p->file && !p->rewrite_to && p->file_end > p->file_base) { roll_now(b, p); return 0; }
        if (p->cell >= p->map->cell_count) { p->number++; p->cell = 0; leave_segment(b, p); return 1; }
        return 0;
    }
    rc = gather(b, p, t, base);
    release_segment(b);
    if (rc < 0) { p->retry_ns = now + SL_RETRY_NS; return 0; }
    SL_FAILPOINT(spill_gathered);

    if (t->n) {
        uint64_t from = t->offsets[0];
        if (p->file && !p->rewrite_to &&
            (sl_file_bytes(p->file) + t->bytes > p->file_roll_bytes || p->roll_asked || t->end_offset - p->file_base > UINT32_MAX) &&
            p->file_end > p->file_base) {
            roll_now(b, p);
            return 0; /* the batch is gathered again when the file is closed */
        }
        p->unchecked_bytes += t->bytes;
        if (now - p->checked_disk_ns > DISK_CHECK_NS || p->unchecked_bytes > DISK_CHECK_BYTES || p->unchecked_bytes > p->disk_headroom / 4) {
            uint64_t free_bytes = disk_free(p), reserve = b->options.reserve_disk_bytes;
            p->checked_disk_ns = now;
            p->unchecked_bytes = 0;
            p->disk_headroom = free_bytes > reserve ? free_bytes - reserve : 0;
            if (reserve == UINT64_MAX || free_bytes < reserve + t->bytes) {
                sl_set_errno(ENOSPC);
                disk_refused(b, p, SL_E_DISK_FULL, t->bytes, now);
                p->disk_free = free_bytes > reserve ? free_bytes - reserve : 0;
                sl_store_relaxed(&p->words->storage_free_bytes, p->disk_free);
                return 0;
            }
        }
        sl_file *file = p->file;
        uint64_t file_base = file ? p->file_base : from;
        p->writing = 1;
        pthread_mutex_unlock(&b->lock);
        rc = file ? SL_OK : create_file(b, p, file_base, &file);
        if (rc == SL_OK) {
            SL_FAILPOINT(spill_file_made);
            for (size_t i = 0; i < t->n; i++) t->pieces[i].rel = (uint32_t)(t->offsets[i] - file_base);
            rc = sl_file_append(file, t->pieces, t->n, t->end_offset);
        }
        int saved = sl_last_errno();
        pthread_mutex_lock(&b->lock);
        p->writing = 0;
        pthread_cond_broadcast(&b->done);
        if (!p->file && file) {
            p->file = file;
            p->file_base = p->file_end = file_base;
            p->roll_asked = 0;
        }
        if (rc < 0) {
            if (rc == SL_E_IO && p->file) p->sync_failed = 1; /* who knows what the file is now: as after a failed sync */
            sl_set_errno(saved);
            disk_refused(b, p, rc, t->bytes, now);
            return 0;
        }
        SL_FAILPOINT(spill_written);
        p->file_end = t->end_offset;
        sl_fetch_add_relaxed(&p->words->spilled_bytes, t->bytes);
        sl_fetch_add_relaxed(&p->words->disk_bytes, t->bytes);
        sl_store_relaxed(&p->words->file_leader_epoch, p->leader_epoch);
        if (!p->rewrite_to) sl_store_release(&p->words->file_base_offset, p->file_base);
        if (!p->unsynced_ns) { p->unsynced_ns = sl_monotonic_ns(); p->last_flushed = p->durable; }
    }
    int progress = t->n || t->sealed || t->cell != p->cell;
    p->next_offset = t->end_offset;
    p->seeking = t->seeking;
    p->cell = t->cell;
    if (t->sealed) { p->number++; p->cell = 0; p->seeking = 0; leave_segment(b, p); }

    if (p->rewrite_to) {
        if (p->next_offset < p->rewrite_to) return 1;
        p->writing = 1;
        pthread_mutex_unlock(&b->lock);
        rc = p->file ? sl_file_sync(p->file) : SL_OK;
        if (rc == SL_OK && p->file) rc = install_rewrite(p);
        int saved = sl_last_errno();
        pthread_mutex_lock(&b->lock);
        p->writing = 0;
        pthread_cond_broadcast(&b->done);
        if (rc < 0) {
            sl_set_errno(saved);
            disk_refused(b, p, rc, 0, now);
            begin_rewrite(b, p);
            return 0;
        }
        p->rewrite_to = 0;
        close_salvage(p);
        p->sync_now = 1; /* synced already; the sync thread says so */
        sl_store_release(&p->words->file_base_offset, p->file_base);
    }
    if (t->n) {
        rc = sl_log_advance(b->cluster, p->block, SL_WORD_SPILLED, p->leader_epoch, p->next_offset);
        SL_FAILPOINT(spill_published);
        if (rc == SL_E_FENCED) {
            p->fenced = 1;
            sl_broker_say(b, SL_EVENT_FENCED, p->block, rc, 0, p->next_offset, 0, "a later leader epoch is in force; this broker leaves the partition alone");
            return 0;
        }
        if (p->disk_state != SL_STORAGE_OK) disk_state(b, p, SL_STORAGE_OK, 0, 0, 0);
        if (p->sync_asked || p->next_offset - p->last_flushed >= p->flush_messages) {
            p->sync_now = 1;
            if (!t->more) p->sync_asked = 0;
        }
        if (p->sync_now || p->unsynced_ns) pthread_cond_signal(&b->sync_work);
        pthread_cond_broadcast(&b->done);
    }
    return progress;
}

/* ---- the spill thread ---- */

static void *spill_main(void *argument) {
    sl_broker *b = argument;
    batch *t = aligned_alloc(64, (sizeof *t + 63) & ~(size_t)63);
    SL_ASSERT(t);
    int64_t tick = SL_TICK_NS;
    pthread_mutex_lock(&b->lock);
    while (!b->halt) {
        uint32_t bell = sl_load_acquire(&b->process->bell);
        int64_t now = sl_monotonic_ns(), look_again = 0;
        int worked = 0, pending = 0;
        sl_ring_count(b, now);
        for (sl_bp *p = b->partitions; p; p = p->next) {
            int64_t care = sl_ring_care(b, p, now);
            if (care && (!look_again || care < look_again)) look_again = care;
            int turns = 0;
            if (p->dir)
                while (turns < BATCHES_PER_TURN && spill_batch(b, p, t, now)) {
                    turns++;
                    if (sl_load_relaxed(&p->words->wanted_bytes)) sl_ring_care(b, p, now); /* what was just spilled is room for somebody who waits */
                }
            if (turns) { worked = 1; sl_ring_care(b, p, now = sl_monotonic_ns()); }
            if (turns == BATCHES_PER_TURN) pending = 1;
            if (p->retry_ns > now && (!look_again || p->retry_ns < look_again)) look_again = p->retry_ns;
            if (p->fd >= 0 && now - p->active_ns > INT64_C(1000000000)) { close(p->fd); p->fd = -1; p->fd_buffer = 0; }
        }
        sl_ring_tidy(b, now);
        if (now - b->swept_ns > SL_IDLE_TICK_NS) {
            b->swept_ns = now;
            for (sl_bp *p = b->partitions; p; p = p->next) { sl_bits_sweep(b->cluster, p->waits->commit); sl_bits_sweep(b->cluster, p->waits->data); }
            if (b->big && now - b->big_ns > INT64_C(5000000000)) { free(b->big); b->big = NULL; b->big_bytes = 0; }
        }
        if (pending) continue; /* a full turn: there is more */

        tick = worked || (look_again && look_again <= now + SL_TICK_NS) ? SL_TICK_NS : tick * 2 < SL_IDLE_TICK_NS ? tick * 2 : SL_IDLE_TICK_NS;
        int64_t until = now + tick;
        if (look_again > now && look_again < until) until = look_again;
        sl_store_sc(&b->process->bell_sleeping, 1); /* SYNC bell: announced, then a last look; pairs with sl_bell_ring() */
        if (sl_load_sc(&b->process->bell) == bell && !b->halt) {
            pthread_mutex_unlock(&b->lock);
            sl_futex_wait(&b->process->bell, bell, until);
            pthread_mutex_lock(&b->lock);
        } else {
            pthread_mutex_unlock(&b->lock); /* callers have waited for it: let one in */
            pthread_mutex_lock(&b->lock);
        }
        sl_store_release(&b->process->bell_sleeping, 0);
        if (sl_load_acquire(&b->process->bell) != bell) tick = SL_TICK_NS;
    }
    pthread_mutex_unlock(&b->lock);
    free(t);
    return NULL;
}

/* ---- the sync thread ---- */

/* When a partition's file is to be synced: 0 never, 1 now, else the time. */
static int64_t sync_due(const sl_broker *b, const sl_bp *p) {
    if (!p->dir || !p->file || p->syncing || p->sync_failed || p->rewrite_to || p->removed || p->fenced) return 0;
    if (p->rolling && p->writing) return 0;
    if (p->rolling) return 1;
    if (p->durable >= p->file_end) return 0;
    if (p->sync_now || b->draining) return 1;
    return p->flush_ns < INT64_MAX - p->unsynced_ns ? p->unsynced_ns + p->flush_ns : 0;
}

static void sync_one(sl_broker *b, sl_bp *p) {
    sl_file *file = p->file;
    uint64_t target = p->file_end;
    int closing = p->rolling, need = p->durable < target;
    p->sync_now = 0;
    p->unsynced_ns = 0;
    p->last_flushed = target;
    p->syncing = 1;
    pthread_mutex_unlock(&b->lock);
    SL_FAILPOINT(sync_begin);
    int rc = need ? sl_file_sync(file) : SL_OK;
    int saved = sl_last_errno();
    SL_FAILPOINT(sync_done);
    pthread_mutex_lock(&b->lock);
    p->syncing = 0;
    if (rc < 0) {
        p->sync_failed = 1;
        sl_broker_say(b, SL_EVENT_SYNC_FAILED, p->block, rc, saved, p->durable, p->next_offset - p->durable,
                      "fdatasync failed; records from %llu on are written to a new file", (unsigned long long)p->durable);
        sl_set_errno(saved);
        disk_refused(b, p, SL_E_IO, 0, sl_monotonic_ns());
        sl_bell_ring(b->cluster, b->options.process);
    } else {
        if (target > p->durable) p->durable = target;
        if (p->file_end > target && !p->unsynced_ns) p->unsynced_ns = sl_monotonic_ns();
        if (sl_log_advance(b->cluster, p->block, SL_WORD_DURABLE, p->leader_epoch, p->durable) == SL_E_FENCED) p->fenced = 1;
        SL_FAILPOINT(sync_published);
        sl_wake_bits(b->cluster, p->waits->commit); /* SYNC durable: after the word; pairs with sl_wait_durable() */
        if (closing && p->rolling) {
            uint64_t bytes = sl_file_bytes(file);
            sl_file_close(file);
            p->file = NULL;
            p->rolling = 0;
            if (p->next_offset > target) { /* dropped records: what lies there is nowhere, and durable in that sense */
                p->durable = p->next_offset;
                sl_log_advance(b->cluster, p->block, SL_WORD_DURABLE, p->leader_epoch, p->durable);
            }
            p->unsynced_ns = 0;
            sl_broker_say(b, SL_EVENT_ROLLED, p->block, SL_OK, 0, target, bytes, "file %llu-%u closed at %llu", (unsigned long long)p->file_base, p->leader_epoch,
                          (unsigned long long)target);
            sl_bell_ring(b->cluster, b->options.process);
        }
    }
    pthread_cond_broadcast(&b->done);
}

static void *sync_main(void *argument) {
    sl_broker *b = argument;
    pthread_mutex_lock(&b->lock);
    while (!b->halt) {
        int64_t next = 0, now = sl_monotonic_ns();
        sl_bp *due = NULL;
        int64_t due_at = INT64_MAX;
        for (sl_bp *p = b->partitions; p; p = p->next) {
            int64_t at = sync_due(b, p);
            if (!at) continue;
            if (at <= now) {
                /* Whoever waited longest; somebody waits for those that are asked for. */
                int64_t rank = p->sync_now || p->rolling ? p->unsynced_ns - INT64_C(3600000000000) : at;
                if (rank < due_at) { due = p; due_at = rank; }
            } else if (!next || at < next) next = at;
        }
        if (due) { sync_one(b, due); continue; }
        if (next) {
            struct timespec ts = {.tv_sec = next / 1000000000, .tv_nsec = next % 1000000000};
            pthread_cond_timedwait(&b->sync_work, &b->lock, &ts);
        } else
            pthread_cond_wait(&b->sync_work, &b->lock); /* signalled with the first byte that is not synced, a roll, and the end */
    }
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

/* ---- starting and stopping ---- */

int sl_broker_start(sl_cluster *cluster, const sl_broker_options *options, sl_broker **out) {
    sl_row *row = sl_cluster_row(cluster, options->spill_row);
    if (!row || options->process >= SL_MAX_PROCESSES) return SL_E_INVALID;
    sl_broker *b = calloc(1, sizeof *b);
    if (!b) return SL_E_NOMEM;
    b->cluster = cluster;
    b->control = sl_cluster_control(cluster);
    b->row = row;
    b->options = *options;
    b->process = &b->control->processes[options->process];
    b->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    b->raw = aligned_alloc(4096, RAW_ROOM);
    if (b->event_fd < 0 || !b->raw) {
        sl_set_errno(errno);
        if (b->event_fd >= 0) close(b->event_fd);
        free(b->raw);
        free(b);
        return SL_E_SYS;
    }
    pthread_mutex_init(&b->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&b->done, &monotonic);
    pthread_cond_init(&b->sync_work, &monotonic);
    pthread_condattr_destroy(&monotonic);
    sl_ring_scan(b);

    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* threads inherit it: signals are Python's */
    int rc = pthread_create(&b->spill_thread, NULL, spill_main, b);
    if (rc == 0 && (rc = pthread_create(&b->sync_thread, NULL, sync_main, b)) != 0) {
        b->halt = 1;
        sl_bell_ring(cluster, options->process);
        pthread_join(b->spill_thread, NULL);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) { sl_set_errno(rc); sl_broker_free(b); return SL_E_SYS; }
    b->threads = 1;
    pthread_setname_np(b->spill_thread, "shmlog-spill");
    pthread_setname_np(b->sync_thread, "shmlog-sync");
    *out = b;
    return SL_OK;
}

static sl_bp *find(sl_broker *b, uint32_t block) {
    for (sl_bp *p = b->partitions; p; p = p->next)
        if (p->block == block && !p->removed) return p;
    return NULL;
}

static int wait_done(sl_broker *b, int64_t deadline_ns) {
    struct timespec ts = {.tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000};
    return pthread_cond_timedwait(&b->done, &b->lock, &ts) == ETIMEDOUT ? SL_E_TIMEOUT : SL_OK;
}

/* Waits until nobody works on the partition's file without the lock. The wait is bounded by the disk: a call into it cannot be taken back. */
static void wait_quiet(sl_broker *b, sl_bp *p) {
    while (p->writing || p->syncing) wait_done(b, sl_monotonic_ns() + SL_RETRY_NS);
}

int sl_broker_drain(sl_broker *b, int64_t deadline_ns) {
    pthread_mutex_lock(&b->lock);
    uint32_t n = 0;
    struct { uint32_t block; uint64_t end; } *ends = calloc(b->n_partitions + 1, sizeof *ends);
    int rc = ends ? SL_OK : SL_E_NOMEM;
    for (sl_bp *p = b->partitions; p && rc == SL_OK; p = p->next) {
        sl_offsets o;
        if (!p->dir || p->fenced || sl_log_offsets(b->cluster, b->options.spill_row, p->block, &o) < 0) continue;
        if (n < b->n_partitions) { ends[n].block = p->block; ends[n++].end = o.end; }
    }
    b->draining++;
    sl_bell_ring(b->cluster, b->options.process);
    pthread_cond_signal(&b->sync_work);
    for (uint32_t i = 0; i < n && rc == SL_OK;) {
        sl_bp *p = find(b, ends[i].block);
        if (!p || p->durable >= ends[i].end || p->fenced) { i++; continue; }
        int64_t slice = sl_monotonic_ns() + SL_IDLE_TICK_NS;
        if (!b->threads) rc = SL_E_GONE;
        else if (sl_monotonic_ns() >= deadline_ns)
            rc = p->disk_state == SL_STORAGE_DISK_FULL ? SL_E_DISK_FULL : p->disk_state == SL_STORAGE_DISK_ERROR ? SL_E_IO : SL_E_TIMEOUT;
        else wait_done(b, slice < deadline_ns ? slice : deadline_ns);
    }
    b->draining--;
    pthread_mutex_unlock(&b->lock);
    free(ends);
    return rc;
}

static void end_threads(sl_broker *b) {
    if (!b->threads) return;
    pthread_mutex_lock(&b->lock);
    b->halt = 1;
    pthread_cond_broadcast(&b->sync_work);
    pthread_mutex_unlock(&b->lock);
    sl_bell_ring(b->cluster, b->options.process);
    pthread_join(b->spill_thread, NULL);
    pthread_join(b->sync_thread, NULL);
    b->threads = 0;
}

int sl_broker_stop(sl_broker *b, int64_t deadline_ns) {
    int rc = sl_broker_drain(b, deadline_ns);
    end_threads(b);
    return rc;
}

static void free_partition(sl_broker *b, sl_bp *p) {
    leave_segment(b, p);
    close_salvage(p);
    if (p->file) sl_file_close(p->file);
    free(p->ring.items);
    free(p->dir);
    free(p);
}

void sl_broker_free(sl_broker *b) {
    end_threads(b);
    sl_ring_free(b, 1);
    for (sl_bp *p = b->partitions, *next; p; p = next) {
        next = p->next;
        free_partition(b, p);
    }
    close(b->event_fd);
    pthread_mutex_destroy(&b->lock);
    pthread_cond_destroy(&b->done);
    pthread_cond_destroy(&b->sync_work);
    free(b->raw);
    free(b->big);
    free(b);
}

/* ---- partitions ---- */

static void configure(sl_bp *p, const sl_broker_partition *given) {
    p->file_roll_bytes = given->file_roll_bytes ? given->file_roll_bytes : 256u << 20;
    p->flush_ns = given->flush_ns > 0 ? given->flush_ns : given->flush_ns == 0 ? 1 : INT64_MAX;
    p->flush_messages = given->flush_messages ? given->flush_messages : UINT64_MAX;
}

int sl_broker_add(sl_broker *b, const sl_broker_partition *given) {
    sl_partition *words = sl_cluster_partition(b->cluster, given->block);
    sl_waits *waits = sl_cluster_waits(b->cluster, given->block);
    if (!words || !waits) return SL_E_INVALID;
    if (sl_load_acquire(&words->state) != SL_PARTITION_LIVE) return SL_E_DELETED;
    sl_bp *p = calloc(1, sizeof *p);
    if (!p) return SL_E_NOMEM;
    p->block = given->block;
    p->leader_epoch = given->leader_epoch;
    p->words = words;
    p->waits = waits;
    memcpy(p->topic_id, words->topic_id, 16);
    p->partition = words->partition;
    p->fd = -1;
    p->tail_hint = 4096;
    p->segment_bytes = SL_SEGMENT_MIN_BYTES;
    if (given->dir && !(p->dir = strdup(given->dir))) { free(p); return SL_E_NOMEM; }
    configure(p, given);

    pthread_mutex_lock(&b->lock);
    int rc = find(b, given->block) ? SL_E_INVALID : SL_OK;
    uint32_t first = 0;
    if (rc == SL_OK) sl_ring_adopt(b, p);
    if (rc == SL_OK) rc = sl_ring_first(b, p, &first);
    SL_FAILPOINT(add_before_open);
    if (rc == SL_OK) rc = sl_log_open_epoch(b->cluster, b->options.spill_row, p->block, p->leader_epoch, first, given->base_offset);
    SL_FAILPOINT(add_opened);
    if (rc == 0) sl_ring_unused(b, p, first);
    if (rc > 0) rc = SL_OK;
    if (rc == SL_OK && p->dir) {
        /* The files end at base_offset, and the caller has synced them. Memory may go on beyond; it goes on from there. */
        p->durable = given->base_offset;
        p->last_flushed = p->durable;
        seek(b, p, given->base_offset);
        rc = sl_log_advance(b->cluster, p->block, SL_WORD_SPILLED, p->leader_epoch, given->base_offset);
        if (rc == SL_OK) rc = sl_log_advance(b->cluster, p->block, SL_WORD_DURABLE, p->leader_epoch, given->base_offset);
    }
    if (rc == SL_OK) {
        p->seen_cur = sl_cur_number(sl_load_acquire(&words->cur));
        p->seen_offset = p->next_offset;
        p->rotated_ns = p->looked_ns = sl_monotonic_ns();
        p->active_ns = p->looked_ns - 2 * SL_IDLE_TICK_NS; /* not active, but what was adopted is let go only after the usual idleness */
        p->burst_ns = p->looked_ns;
        sl_store_relaxed(&words->storage_state, SL_STORAGE_OK);
        sl_store_relaxed(&words->storage_errno, 0);
        sl_store_relaxed(&words->sync_wanted, 1); /* waiters whose wish died with our predecessor */
        p->next = b->partitions;
        b->partitions = p;
        b->n_partitions++;
        sl_wake_all(b->cluster, p->block);
        sl_bell_ring(b->cluster, b->options.process);
    } else {
        /* Buffers stay where they are: the next try adopts them. */
        if (first) sl_ring_unused(b, p, first);
        sl_ring_leave(b, p);
        free_partition(b, p);
    }
    pthread_mutex_unlock(&b->lock);
    return rc;
}

/* Nobody appends any more, until a later leader epoch opens the partition. The present one is open, so it is the next one that fences. */
static int fence(sl_broker *b, sl_bp *p) {
    uint64_t cur = sl_load_acquire(&p->words->cur);
    if (p->fenced || sl_cur_fenced(cur) || sl_cur_number(cur) == 0) return SL_OK;
    return sl_log_fence(b->cluster, b->options.spill_row, p->block, p->leader_epoch + 1);
}

int sl_broker_fence(sl_broker *b, uint32_t block) {
    pthread_mutex_lock(&b->lock);
    int rc = block == UINT32_MAX || find(b, block) ? SL_OK : SL_E_NOENT;
    for (sl_bp *p = b->partitions; p; p = p->next)
        if (p->block == block || block == UINT32_MAX) {
            int one = fence(b, p);
            if (one < 0) rc = one;
        }
    pthread_mutex_unlock(&b->lock);
    return rc;
}

static void take_off(sl_broker *b, sl_bp *p) {
    p->removed = 1;
    wait_quiet(b, p);
    for (sl_bp **at = &b->partitions; *at; at = &(*at)->next)
        if (*at == p) { *at = p->next; break; }
    b->n_partitions--;
    leave_segment(b, p);
}

int sl_broker_release(sl_broker *b, uint32_t block) {
    pthread_mutex_lock(&b->lock);
    sl_bp *p = find(b, block);
    if (p) {
        take_off(b, p);
        sl_ring_leave(b, p);
        free_partition(b, p);
    }
    pthread_mutex_unlock(&b->lock);
    return p ? SL_OK : SL_E_NOENT;
}

int sl_broker_remove(sl_broker *b, uint32_t block) {
    pthread_mutex_lock(&b->lock);
    sl_bp *p = find(b, block);
    if (!p) { /* never taken over, deleted meanwhile: what an earlier broker left goes all the same */
        int rc = sl_ring_discard(b, block);
        pthread_mutex_unlock(&b->lock);
        return rc;
    }
    fence(b, p); /* whatever comes of it: the memory goes */
    take_off(b, p);
    if (!p->fenced) sl_ring_give_up(b, p);
    else sl_ring_leave(b, p);
    free_partition(b, p);
    pthread_mutex_unlock(&b->lock);
    sl_wake_all(b->cluster, block);
    return SL_OK;
}

int sl_broker_configure(sl_broker *b, const sl_broker_partition *given) {
    pthread_mutex_lock(&b->lock);
    sl_bp *p = find(b, given->block);
    if (p) configure(p, given);
    pthread_cond_signal(&b->sync_work);
    pthread_mutex_unlock(&b->lock);
    return p ? SL_OK : SL_E_NOENT;
}

int sl_broker_roll(sl_broker *b, uint32_t block) {
    pthread_mutex_lock(&b->lock);
    sl_bp *p = find(b, block);
    int rc = p ? SL_OK : SL_E_NOENT;
    if (p && p->file && !p->rolling && !p->rewrite_to && !p->sync_failed) {
        if (p->writing) p->roll_asked = 1; /* before the next batch */
        else roll_now(b, p);
    }
    pthread_mutex_unlock(&b->lock);
    return rc;
}

int sl_broker_trim(sl_broker *b, uint32_t block, uint64_t log_start) {
    pthread_mutex_lock(&b->lock);
    sl_bp *p = find(b, block);
    int rc = p ? sl_log_advance(b->cluster, block, SL_WORD_LOG_START, p->leader_epoch, log_start) : SL_E_NOENT;
    pthread_mutex_unlock(&b->lock);
    return rc;
}

/* An estimate that is 0 exactly when nothing is left to write. */
int64_t sl_broker_unspilled_bytes(sl_broker *b) {
    uint64_t bytes = 0;
    pthread_mutex_lock(&b->lock);
    for (sl_bp *p = b->partitions; p; p = p->next) {
        if (!p->dir || p->fenced) continue;
        uint64_t cur = sl_cur_number(sl_load_acquire(&p->words->cur));
        for (uint64_t n = p->number; n <= cur; n++) {
            uint32_t id = sl_log_buffer(p->words, n);
            sl_map *map;
            if (!id || sl_map_get(b->cluster, id, 1, &map) < 0) continue;
            uint64_t cells = 0, from = n == p->number ? p->cell : 0;
            while (from + cells < map->cell_count) {
                uint64_t w = sl_load_acquire(&map->cells[from + cells]);
                if (!w || sl_cell_type(w) == SL_CELL_SEAL) break;
                cells++;
            }
            uint64_t used = sl_load_relaxed(&map->segment->alloc_units) * SL_UNIT_BYTES;
            if (used > map->bytes) used = map->bytes;
            if (cells) bytes += from + cells ? used * cells / (from + cells) + 1 : 1;
            sl_map_put(b->cluster, map);
        }
    }
    pthread_mutex_unlock(&b->lock);
    return (int64_t)bytes;
}

void sl_broker_reserve_disk(sl_broker *b, uint64_t reserve_disk_bytes) {
    pthread_mutex_lock(&b->lock);
    b->options.reserve_disk_bytes = reserve_disk_bytes;
    for (sl_bp *p = b->partitions; p; p = p->next) p->checked_disk_ns = 0;
    pthread_mutex_unlock(&b->lock);
}

int sl_broker_eventfd(sl_broker *b) { return b->event_fd; }

int sl_broker_event_next(sl_broker *b, sl_broker_event *out) {
    pthread_mutex_lock(&b->lock);
    int any = b->event_tail != b->event_head;
    eventfd_t ignored;
    if (any) *out = b->events[b->event_tail++ % SL_EVENTS];
    else if (eventfd_read(b->event_fd, &ignored) < 0) { /* it was empty */ }
    pthread_mutex_unlock(&b->lock);
    return any;
}
