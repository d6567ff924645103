/* The broker's care for the memory of its partitions: how many segments, how large, and what becomes of them.
 *
 * An idle partition holds one small segment. One that is being written has at least two ready beyond the active one; their size doubles while they
 * last less than some 30 ms, and their number follows from what is not spilled yet, up to the partition's share: the broker's budget over the busy
 * partitions. A segment is reused as soon as nobody needs it and two newer ones stand behind the active (a reader that lags a little stays in memory);
 * what becomes superfluous goes into a pool, last in first out, and is unlinked after about a second. Sizes double from 60 KiB, and are larger than 4
 * times the largest frame asked for; where the budget does not give that, the smallest size that still holds one such frame.
 *
 * A buffer's way, and what is left if the broker dies there (its successor scans /dev/shm; see sl_ring_scan and sl_ring_adopt):
 *   made, header FREE          nobody names it: unlinked at the next start, because its maker is dead
 *   published, in `dir`        adopted by whoever leads next: spilled, and unlinked instead of reused
 *   claimed for recycling      sl_segment_audit() finds that its claimer's row is dead: taken out, DEAD, unlinked
 *   taken out: FREE            as when made
 *   taken out: LIMBO           nobody may reset it before the holder lets go: the next leader adopts it in limbo, then unlinks it
 *   unlinked                   memory lives as long as somebody maps it, without a name; nothing to do
 *
 * Two living brokers may know one buffer after a change of leader: its maker, and who leads now and adopted it. Its claim word says whose it is, by CAS:
 * FREE it is of who gets it first, the one to unlink it (DEAD), or the other to publish it (HELD, number 0, then LIVE), LIMBO it goes to DEAD the same way;
 * from LIVE to the take-out it is of the partition that its header names. So nothing is published that has lost its name, and nothing unlinked that has
 * been published, but with its whole partition (sl_ring_give_up). Killed with it HELD(0): as FREE for the next scan, and the audit makes it DEAD.
 */
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "broker.h"

#define FRAME_STEP_BYTES 65536u            /* segments made for one large frame are multiples of this */
#define IDLE_NS INT64_C(1000000000)        /* not written for this long: not busy */
#define SHRINK_NS INT64_C(2000000000)      /* ... for this long: back to one small segment */
#define SUSTAINED_NS INT64_C(5000000)      /* a lone record does not stock a partition, 5 ms of records do */
#define POOL_NS INT64_C(1000000000)
#define LIFE_WANTED_NS INT64_C(30000000)   /* a segment should last this long */
#define SEGMENT_SOFT_MAX (16u << 20)       /* doubling ends here: larger ones only for larger frames */
#define REFUSED_NS INT64_C(1000000000)     /* how long a refusal of a large frame is to be seen: its producer looks when its deadline has come */
#define FULL_NS INT64_C(20000000)          /* memory that a dead process holds, or a reader, is often free again by then */
#define BEHIND_SEGMENTS 2u                 /* spilled segments kept behind the active one for readers */
#define RING_SOFT_MAX (SL_DIR_SLOTS - 3u)  /* claims in flight need slots too */
#define MEMORY_TOPIC_BYTES (64u << 20)     /* how much history a memory-only topic keeps that names no size */

/* ---- lists ---- */

static int list_add(sl_buffers *l, sl_buffer item) {
    if (l->n == l->room) {
        uint32_t room = l->room ? l->room * 2 : 8;
        sl_buffer *items = realloc(l->items, room * sizeof *items);
        if (!items) return SL_E_NOMEM;
        l->items = items;
        l->room = room;
    }
    l->items[l->n++] = item;
    return SL_OK;
}

static sl_buffer list_take(sl_buffers *l, uint32_t i) {
    sl_buffer item = l->items[i];
    memmove(&l->items[i], &l->items[i + 1], (--l->n - i) * sizeof item); /* in order: the pool's end is its warmest */
    return item;
}

static int ring_find(sl_bp *p, uint32_t id) {
    for (uint32_t i = 0; i < p->ring.n; i++)
        if (p->ring.items[i].id == id) return (int)i;
    return -1;
}

static void set_ring_bytes(sl_bp *p, uint64_t bytes) {
    p->ring_bytes = bytes;
    sl_store_relaxed(&p->words->ring_bytes, bytes);
}

/* Another broker's business from here on, or nobody's. */
static void forget(sl_broker *b, sl_buffer item) {
    b->total_bytes -= item.map->bytes;
    sl_map_put(b->cluster, item.map);
}

/* Of FREE and LIMBO one who would unlink and one who would go on with it: the CAS decides. */
static int ours_to_unlink(const sl_map *m) {
    uint64_t w = sl_load_acquire(&m->segment->claim);
    uint32_t phase = sl_claim_phase(w);
    if (phase == SL_SEGMENT_FREE || phase == SL_SEGMENT_LIMBO)
        return sl_cas_sc(&m->segment->claim, &w, sl_claim_as(w, SL_SEGMENT_DEAD)); /* SYNC ring_hold */
    return phase == SL_SEGMENT_DEAD;
}

static void unlink_it(sl_broker *b, sl_bp *p, sl_buffer item) {
    sl_segment_unlink(b->cluster, item.id);
    if (p) sl_fetch_add_relaxed(&p->words->unlinked_segments, 1);
}

static void destroy(sl_broker *b, sl_bp *p, sl_buffer item) {
    if (ours_to_unlink(item.map)) unlink_it(b, p, item);
    forget(b, item);
}

/* Has been published in another partition since it was in this one: whose header names that one, and whose claim has a number. */
static int elsewhere(const sl_bp *p, const sl_map *m) {
    uint64_t w = sl_load_acquire(&m->segment->claim);
    return sl_claim_phase(w) != SL_SEGMENT_FREE && sl_claim_number(w) != 0 && sl_load_relaxed(&m->segment->block) != p->block;
}

/* A FREE buffer that is to be published. 1 it is ours alone; 0 another broker has taken it, or unlinked it. */
static int hold(const sl_broker *b, const sl_map *m) {
    uint64_t w = sl_load_acquire(&m->segment->claim);
    return sl_claim_phase(w) == SL_SEGMENT_FREE &&
           sl_cas_sc(&m->segment->claim, &w, sl_claim_make(SL_SEGMENT_HELD, b->row->generation, b->options.spill_row, 0)); /* SYNC ring_hold: one wins */
}
static void let_go(const sl_broker *b, const sl_map *m) {
    uint64_t w = sl_claim_make(SL_SEGMENT_HELD, b->row->generation, b->options.spill_row, 0);
    sl_cas_sc(&m->segment->claim, &w, sl_claim_as(w, SL_SEGMENT_FREE));
}

/* ---- memory ---- */

static uint64_t shm_free(uint64_t *reserve) {
    struct statvfs v;
    if (statvfs("/dev/shm", &v) < 0) { *reserve = 0; return UINT64_MAX; }
    uint64_t total = (uint64_t)v.f_blocks * v.f_frsize, spare = total / 16;
    *reserve = spare > (32u << 20) ? 32u << 20 : spare; /* for other programs, and for control objects to come */
    return (uint64_t)v.f_bavail * v.f_frsize;
}

static uint64_t budget(const sl_broker *b) {
    uint64_t own = b->options.memory_max_bytes, all = sl_load_relaxed(&b->control->memory_max_bytes);
    if (!own) own = UINT64_MAX;
    if (all && all < own) own = all;
    return b->others_bytes < own ? own - b->others_bytes : 0;
}

/* Whether the topic names a size; one that names none has the whole budget there, or nothing. */
static int memory_bytes_named(const sl_broker *b, const sl_bp *p, uint64_t *bytes) {
    *bytes = sl_load_relaxed(&p->words->memory_bytes);
    return *bytes != 0 && *bytes < budget(b);
}

static uint64_t share(const sl_broker *b, const sl_bp *p) {
    uint64_t all = budget(b), own;
    uint64_t s = all > b->idle_bytes ? all - b->idle_bytes : 0;
    s /= b->n_busy ? b->n_busy : 1;
    if (memory_bytes_named(b, p, &own) && own < s) s = own;
    uint64_t least = 3 * SL_SEGMENT_MIN_BYTES;
    return s > least ? s : least;
}

/* Bytes of the smallest segment with room for one frame. */
static uint64_t segment_for_frame(uint64_t frame_bytes) {
    uint64_t bytes = frame_bytes + frame_bytes / 16 + 4 * SL_SEGMENT_HEADER_BYTES;
    bytes = (bytes + FRAME_STEP_BYTES - 1) & ~(uint64_t)(FRAME_STEP_BYTES - 1);
    for (; bytes < SL_SEGMENT_MAX_BYTES; bytes += FRAME_STEP_BYTES) {
        uint32_t cells, position, units;
        sl_segment_geometry(bytes, &cells, &position, &units);
        if ((uint64_t)units * SL_UNIT_BYTES >= frame_bytes) return bytes;
    }
    return SL_SEGMENT_MAX_BYTES;
}

static int fits(const sl_map *map, uint64_t frame_bytes) { return (uint64_t)map->arena_units * SL_UNIT_BYTES >= frame_bytes; }

/* How much history a memory-only topic keeps: what it was given, or a little. Of a topic with files memory keeps none on purpose. */
static uint64_t history(const sl_broker *b, const sl_bp *p) {
    uint64_t named, limit = share(b, p);
    if (p->dir) return 0;
    if (!memory_bytes_named(b, p, &named)) named = MEMORY_TOPIC_BYTES;
    return named < limit ? named : limit;
}

static uint64_t size_wanted(const sl_broker *b, const sl_bp *p) {
    uint64_t size = p->segment_bytes, limit = share(b, p) / 4;
    while (size > SL_SEGMENT_MIN_BYTES && size > limit) size /= 2;
    if (p->frame_need) {
        uint64_t four = segment_for_frame(4 * (uint64_t)p->frame_need), one = segment_for_frame(p->frame_need);
        while (size < four && size < SL_SEGMENT_MAX_BYTES) size *= 2;
        if (size > SL_SEGMENT_MAX_BYTES) size = SL_SEGMENT_MAX_BYTES;
        while (size > SL_SEGMENT_MIN_BYTES && size / 2 >= one && size > limit) size /= 2;
        if (size < one || size > share(b, p)) size = one;
    }
    return size;
}

/* Fresh pages cost 2.4 us each: here, and not under the first producer's store. Only page tables of header and cells stay: a process that maps little dies fast. */
static void populate(sl_map *map) {
    uint8_t *start = (uint8_t *)map->segment;
#ifdef MADV_POPULATE_WRITE
    int populated = madvise(start, map->bytes, MADV_POPULATE_WRITE) == 0;
#else
    int populated = 0;
#endif
    if (!populated) /* an old kernel: touch. Nobody else has the buffer yet, and what is there is zero */
        for (uint64_t at = 4096; at < map->bytes; at += 4096) *(volatile uint8_t *)(start + at) = 0;
    uint8_t *arena = start + (((uint64_t)(map->arena - start) + 4095) & ~UINT64_C(4095));
    if (arena < start + map->bytes) madvise(arena, (size_t)(start + map->bytes - arena), MADV_DONTNEED);
}

static int ring_state(sl_broker *b, sl_bp *p, uint32_t state, uint64_t needed, uint64_t free_bytes) {
    if (p->ring_state == state) return 0;
    p->ring_state = state;
    p->ring_needed = needed;
    p->ring_free = free_bytes;
    sl_storage_update(b, p);
    return 1;
}

/* A fresh buffer. SL_E_SHM_FULL with the numbers when budget or /dev/shm does not give it. needed: whatever the budget says, because without it a
 * partition that takes up the budget could not be opened, or not let go of it. */
static int make(sl_broker *b, uint64_t bytes, int needed, sl_buffer *out, uint64_t *free_bytes) {
    uint64_t all = budget(b), reserve;
    *free_bytes = all > b->total_bytes ? all - b->total_bytes : 0;
    while (*free_bytes < bytes && b->pool.n) { /* the coldest of the pool goes first */
        destroy(b, NULL, list_take(&b->pool, 0));
        *free_bytes = all > b->total_bytes ? all - b->total_bytes : 0;
    }
    if (*free_bytes < bytes && !needed) return SL_E_SHM_FULL;
    *free_bytes = shm_free(&reserve);
    if (*free_bytes < bytes + (needed ? 0 : reserve)) return SL_E_SHM_FULL;
    int64_t id = sl_segment_make(b->cluster, bytes);
    if (id < 0) return (int)id;
    SL_FAILPOINT(ring_made);
    sl_buffer item = {.id = (uint32_t)id, .since_ns = sl_monotonic_ns()};
    int rc = sl_map_get(b->cluster, item.id, 1, &item.map);
    if (rc < 0) { sl_segment_unlink(b->cluster, item.id); return rc; }
    populate(item.map);
    b->total_bytes += item.map->bytes;
    *out = item;
    return SL_OK;
}

/* ---- states of buffers that somebody else may have recycled ---- */

static int in_directory(const sl_bp *p, uint32_t id) {
    for (int i = 0; i < SL_DIR_SLOTS; i++)
        if (sl_dir_buffer(sl_load_acquire(&p->words->dir[i])) == id) return 1;
    return 0;
}

/* Where a buffer goes that has left the directory: by its claim word. Header words are others' to write: the worst a wrong one can do is to
 * unlink or keep memory; nothing is reset here that sl_log_takeout() or sl_limbo_retry() have not reset. */
static void sort_out(sl_broker *b, sl_bp *p, sl_buffer item, int64_t now) {
    uint32_t state = sl_segment_phase(item.map->segment);
    item.since_ns = now;
    if (state == SL_SEGMENT_LIMBO) {
        if (list_add(&b->limbo, item) == SL_OK) return;
    } else if (state == SL_SEGMENT_FREE && !item.adopted) {
        if (list_add(&b->pool, item) == SL_OK) return;
    }
    destroy(b, p, item);
}

static void look_at_buffers(sl_broker *b, sl_bp *p, int64_t now) {
    p->looked_ns = now;
    for (uint32_t i = 0; i < p->ring.n;) {
        sl_buffer *item = &p->ring.items[i];
        uint32_t state = sl_segment_phase(item->map->segment);
        int gone = 0;
        if (elsewhere(p, item->map)) {
            sl_buffer taken = list_take(&p->ring, i);
            set_ring_bytes(p, p->ring_bytes - taken.map->bytes);
            forget(b, taken);
            continue;
        }
        if (state == SL_SEGMENT_LIMBO || state == SL_SEGMENT_DEAD) gone = !in_directory(p, item->id);
        else if (state == SL_SEGMENT_FREE) gone = !in_directory(p, item->id) && now - item->since_ns > SL_IDLE_TICK_NS; /* a predecessor died over it */
        else gone = sl_segment_audit(b->cluster, b->options.spill_row, p->block, item->map) == 1;
        if (!gone) { i++; continue; }
        sl_buffer taken = list_take(&p->ring, i);
        set_ring_bytes(p, p->ring_bytes - taken.map->bytes);
        sort_out(b, p, taken, now);
    }
}

void sl_ring_tidy(sl_broker *b, int64_t now) {
    if (now - b->tidied_ns < SL_IDLE_TICK_NS) return;
    b->tidied_ns = now;
    for (uint32_t i = 0; i < b->limbo.n;) {
        sl_map *m = b->limbo.items[i].map;
        int rc = sl_limbo_retry(b->cluster, b->options.spill_row, m);
        uint32_t state = sl_segment_phase(m->segment), block = sl_load_relaxed(&m->segment->block);
        if (state == SL_SEGMENT_HELD && sl_segment_audit(b->cluster, b->options.spill_row, block, m) == 1) state = SL_SEGMENT_DEAD; /* who looked died there */
        if (rc == 0 && (state == SL_SEGMENT_LIMBO || state == SL_SEGMENT_HELD)) { i++; continue; }
        sl_buffer item = list_take(&b->limbo, i);
        if (state == SL_SEGMENT_LIVE) forget(b, item); /* another broker looked again before us */
        else sort_out(b, NULL, item, now); /* FREE, or DEAD; an error: unlinked */
    }
    while (b->pool.n && now - b->pool.items[0].since_ns > POOL_NS) destroy(b, NULL, list_take(&b->pool, 0));
}

void sl_ring_count(sl_broker *b, int64_t now) {
    uint32_t busy = 0;
    uint64_t idle = 0;
    for (sl_bp *p = b->partitions; p; p = p->next) {
        if (p->active_ns && now - p->active_ns < IDLE_NS) busy++;
        else idle += p->ring_bytes;
    }
    b->n_busy = busy;
    b->idle_bytes = idle;
    sl_store_relaxed(&b->process->segment_bytes, b->total_bytes);
    uint64_t others = 0;
    for (int i = 0; i < SL_MAX_PROCESSES; i++) { /* a dead one's memory is adopted, and counted, by whoever leads on */
        const sl_process *p = &b->control->processes[i];
        if (p != b->process && sl_load_relaxed(&p->role) == SL_ROLE_BROKER && sl_load_relaxed(&p->state) == SL_PROCESS_UP) others += sl_load_relaxed(&p->segment_bytes);
    }
    b->others_bytes = others;
}

/* ---- getting a buffer to publish ---- */

static int take_out(sl_broker *b, sl_bp *p, sl_buffer *out, int64_t now) {
    int64_t id = sl_log_takeout(b->cluster, b->options.spill_row, p->block);
    if (id <= 0) return 0;
    SL_FAILPOINT(ring_taken_out);
    int i = ring_find(p, (uint32_t)id);
    if (i < 0) { /* not ours to know: the directory named a buffer that we never adopted */
        sl_broker_say(b, SL_EVENT_DAMAGED, p->block, SL_E_DAMAGED, 0, 0, 0, "the directory named buffer %u, which is not this partition's", (unsigned)id);
        sl_buffer stray = {.id = (uint32_t)id};
        if (sl_map_get(b->cluster, stray.id, 1, &stray.map) == SL_OK) {
            b->total_bytes += stray.map->bytes;
            destroy(b, p, stray);
        }
        return -1;
    }
    sl_buffer item = list_take(&p->ring, (uint32_t)i);
    set_ring_bytes(p, p->ring_bytes - item.map->bytes);
    if (sl_segment_phase(item.map->segment) == SL_SEGMENT_FREE && !item.adopted) { *out = item; return 1; }
    sort_out(b, p, item, now);
    return -1; /* one is out, but not to be had now */
}

static int from_pool(sl_broker *b, uint64_t least, uint64_t most, sl_buffer *out) {
    for (uint32_t i = b->pool.n; i-- > 0;) {
        uint64_t bytes = b->pool.items[i].map->bytes;
        if (bytes >= least && bytes <= most) { *out = list_take(&b->pool, i); return 1; }
    }
    return 0;
}

/* 1 *out is a FREE buffer of at least `least` bytes; 0 there is none to be had (numbers for the error in p->ring_*). */
static int obtain(sl_broker *b, sl_bp *p, uint64_t size, uint64_t least, uint32_t ready, sl_buffer *out, int64_t now) {
    uint64_t limit = share(b, p), keep_bytes = history(b, p);
    uint32_t keep = 1 + ready + BEHIND_SEGMENTS;
    int over = p->ring_bytes + size > limit || p->ring.n >= RING_SOFT_MAX;
    /* Reuse the oldest, once there are enough. */
    while ((p->ring.n > keep && p->ring_bytes + size > keep_bytes) || over) {
        int rc = take_out(b, p, out, now);
        if (rc == 0) break;
        if (rc == 1) {
            if (out->map->bytes >= size && out->map->bytes <= 4 * size) return 1;
            sort_out(b, p, *out, now); /* another size class: the pool may have a use for it */
        }
        over = p->ring_bytes + size > limit || p->ring.n >= RING_SOFT_MAX;
    }
    uint64_t free_bytes = limit > p->ring_bytes ? limit - p->ring_bytes : 0;
    if (p->ring.n < RING_SOFT_MAX + 2) {
        for (uint64_t s = size; s >= least; s = s / 2 >= least || s == least ? s / 2 : least) {
            if (p->ring_bytes + s > limit && !(p->ring.n <= 4 && s == least)) continue; /* a short ring may have one more that fits, if the budget has it */
            if (from_pool(b, s, 2 * s, out)) return 1;
            if (make(b, s, 0, out, &free_bytes) == SL_OK) return 1; /* else smaller: whatever the reason, a limit on object sizes included */
        }
    }
    /* Nothing new to be had: whatever can be reused. */
    for (int rc; (rc = take_out(b, p, out, now)) != 0;)
        if (rc == 1) {
            if (out->map->bytes >= least) return 1;
            sort_out(b, p, *out, now);
        }
    p->ring_needed = least;
    p->ring_free = free_bytes;
    return 0;
}

/* ---- drop_oldest with a log on disk that does not keep up ---- */

static int drop_oldest(sl_broker *b, sl_bp *p) {
    uint64_t cur = sl_cur_number(sl_load_acquire(&p->words->cur));
    if (p->number >= cur || p->writing) return 0;
    /* The oldest segment that is not wholly spilled, as far as its successor's base: all of it is sealed, for `cur` has moved on. */
    uint32_t next = sl_log_buffer(p->words, p->number + 1);
    int i = next ? ring_find(p, next) : -1;
    if (i < 0) return 0;
    uint64_t end = sl_word_offset(sl_load_acquire(&p->ring.items[i].map->segment->base));
    if (end == SL_BASE_UNSET || end <= p->next_offset) return 0;
    uint64_t count = end - p->next_offset;
    if (sl_log_advance(b->cluster, p->block, SL_WORD_LOG_START, p->leader_epoch, end) < 0) return 0;
    sl_fetch_add_relaxed(&p->words->dropped_records, count);
    sl_broker_say(b, SL_EVENT_DROPPED, p->block, SL_OK, 0, end, count, "%llu records dropped: the disk is behind and shmlog.full=drop_oldest", (unsigned long long)count);
    p->next_offset = end; /* the file ends here; the next one begins at `end` */
    p->roll_asked = 1;
    p->seeking = 1;
    sl_log_advance(b->cluster, p->block, SL_WORD_SPILLED, p->leader_epoch, end);
    return 1;
}

/* ---- care ---- */

typedef struct ring_facts {
    uint64_t cur;
    sl_map *active;        /* NULL: not ours, or `cur` moved just now */
    uint32_t fill;         /* cells in use */
    int half, sealed;      /* of its cells or arena; sealed: and `cur` has nowhere to go */
    uint32_t ready;
    uint64_t ready_largest;
} ring_facts;

/* The active segment, under a hazard word: somebody else may recycle it the moment `cur` moves on. */
static void look_at_active(sl_broker *b, sl_bp *p, ring_facts *f) {
    memset(f, 0, sizeof *f);
    f->cur = sl_cur_number(sl_load_acquire(&p->words->cur));
    uint32_t id = sl_log_buffer(p->words, f->cur);
    int i = id ? ring_find(p, id) : -1;
    if (i < 0) return;
    sl_store_sc(&b->row->hazard[0], sl_pin_make(p->block, f->cur)); /* SYNC attach_hazard */
    if (sl_cur_number(sl_load_sc(&p->words->cur)) == f->cur && sl_log_buffer(p->words, f->cur) == id) {
        const sl_map *m = f->active = p->ring.items[i].map;
        uint64_t n = sl_load_acquire(&m->segment->hint), w = 0;
        if (n > m->cell_count) n = m->cell_count;
        if (n) w = sl_load_acquire(&m->cells[n - 1]);
        for (uint64_t next; n < m->cell_count && (next = sl_load_acquire(&m->cells[n])); n++) w = next;
        f->fill = (uint32_t)n;
        f->sealed = w && sl_cell_type(w) == SL_CELL_SEAL;
        f->half = n >= m->cell_count / 2 || sl_load_relaxed(&m->segment->alloc_units) >= m->arena_units / 2;
    }
    sl_store_release(&b->row->hazard[0], 0); /* SYNC hazard_clear */
}

static void look_at_ready(sl_bp *p, ring_facts *f) {
    f->ready = 0;
    f->ready_largest = 0;
    for (uint64_t n = f->cur + 1; f->ready < SL_DIR_SLOTS; n++, f->ready++) {
        uint32_t id = sl_log_buffer(p->words, n);
        int i = id ? ring_find(p, id) : -1;
        if (i < 0) return;
        uint64_t room = (uint64_t)p->ring.items[i].map->arena_units * SL_UNIT_BYTES;
        if (room > f->ready_largest) f->ready_largest = room;
    }
}

static int publish(sl_broker *b, sl_bp *p, sl_buffer item) {
    if (!hold(b, item.map)) { forget(b, item); return SL_E_AGAIN; }
    int rc = sl_log_publish(b->cluster, b->options.spill_row, p->block, p->leader_epoch, item.id);
    if (rc < 0) {
        let_go(b, item.map);
        list_add(&b->pool, item);
        if (rc == SL_E_FENCED) {
            p->fenced = 1;
            sl_broker_say(b, SL_EVENT_FENCED, p->block, rc, 0, 0, 0, "a later leader epoch is in force; this broker leaves the partition alone");
        }
        return rc;
    }
    SL_FAILPOINT(ring_published);
    item.since_ns = sl_monotonic_ns();
    if (list_add(&p->ring, item) < 0) return SL_E_NOMEM;
    set_ring_bytes(p, p->ring_bytes + item.map->bytes);
    return SL_OK;
}

/* Back to one small segment: publish it, seal through to it, then everything behind it is taken out as it becomes free. */
static int64_t shrink(sl_broker *b, sl_bp *p, ring_facts *f, int64_t now) {
    if (!p->dir) { p->shrunk = 1; return 0; } /* memory-only: its ring is its log */
    sl_buffer item;
    for (int rc; p->ring.n > 1 && (rc = take_out(b, p, &item, now)) != 0;)
        if (rc == 1) sort_out(b, p, item, now);
    int small = f->active && f->active->bytes == SL_SEGMENT_MIN_BYTES;
    if (!p->shrink_to && (f->ready || !small)) {
        uint64_t free_bytes;
        int got = from_pool(b, SL_SEGMENT_MIN_BYTES, SL_SEGMENT_MIN_BYTES, &item) || make(b, SL_SEGMENT_MIN_BYTES, 1, &item, &free_bytes) == SL_OK;
        if (got && publish(b, p, item) == SL_OK) p->shrink_to = f->cur + f->ready + 1;
        else if (f->ready) p->shrink_to = f->cur + 1; /* not even for so little is there memory: let go of one, then again */
        else return now + SL_RETRY_NS;
    }
    for (int guard = 0; p->shrink_to && guard < SL_DIR_SLOTS; guard++) {
        uint64_t cur = sl_cur_number(sl_load_acquire(&p->words->cur));
        if (cur >= p->shrink_to) { p->shrink_to = 0; break; }
        if (sl_log_seal(b->cluster, b->options.spill_row, p->block, cur) < 0) break;
    }
    look_at_active(b, p, f); /* our own rotations are no activity */
    p->seen_cur = f->cur;
    p->seen_fill = f->fill;
    for (int rc; p->ring.n > 1 && (rc = take_out(b, p, &item, now)) != 0;)
        if (rc == 1) sort_out(b, p, item, now);
    if (p->ring.n <= 1 && !p->shrink_to && f->active && f->active->bytes == SL_SEGMENT_MIN_BYTES) {
        p->shrunk = 1;
        p->segment_bytes = SL_SEGMENT_MIN_BYTES;
        p->frame_need = 0;
        p->life_ns = 0;
        return 0;
    }
    return now + SL_IDLE_TICK_NS;
}

int64_t sl_ring_care(sl_broker *b, sl_bp *p, int64_t now) {
    if (p->fenced) return 0;
    ring_facts f;
    look_at_active(b, p, &f);
    uint64_t cur = f.cur;
    uint32_t wanted = sl_load_relaxed(&p->words->wanted_bytes);
    int appended = cur != p->seen_cur || f.fill != p->seen_fill || p->next_offset != p->seen_offset;
    if (appended || wanted) {
        if (!p->active_ns || now - p->active_ns > SL_IDLE_TICK_NS * 2) p->burst_ns = now;
        p->active_ns = now;
        p->shrunk = 0;
        p->shrink_to = 0;
        if (appended) sl_store_relaxed(&p->words->last_append_ns, sl_wall_ns());
    }
    if (!appended && !wanted && !f.sealed && p->ring_state == SL_STORAGE_OK) {
        if (p->shrunk) return 0;
        if (now - p->looked_ns > SL_IDLE_TICK_NS) look_at_buffers(b, p, now);
        if (now - p->active_ns > SHRINK_NS) {
            look_at_ready(p, &f);
            return shrink(b, p, &f, now);
        }
        if (now - p->active_ns > SL_IDLE_TICK_NS) return now + SL_IDLE_TICK_NS;
    }

    if (cur != p->seen_cur && p->seen_cur) {
        uint64_t turns = cur - p->seen_cur;
        int64_t life = (now - p->rotated_ns) / (int64_t)(turns ? turns : 1);
        p->life_ns = p->life_ns ? (p->life_ns + life) / 2 : life;
        p->rotated_ns = now;
        if (!p->dir) sl_store_relaxed(&p->words->ring_keep_bytes, history(b, p));
        uint64_t most = (p->dir ? share(b, p) : history(b, p)) / 8;
        if (p->life_ns < LIFE_WANTED_NS && p->segment_bytes < SEGMENT_SOFT_MAX && p->segment_bytes * 2 <= most) p->segment_bytes *= 2;
    } else if (!p->rotated_ns) p->rotated_ns = now;
    p->seen_cur = cur;
    p->seen_fill = f.fill;
    p->seen_offset = p->next_offset;

    if (wanted) {
        wanted = __atomic_exchange_n(&p->words->wanted_bytes, 0, __ATOMIC_SEQ_CST);
        if (wanted > p->frame_need) p->frame_need = wanted;
        if (p->frame_need > SL_SEGMENT_MAX_BYTES) p->frame_need = SL_SEGMENT_MAX_BYTES;
    }
    if (now - p->looked_ns > SL_TICK_NS) look_at_buffers(b, p, now);

    look_at_ready(p, &f);
    uint32_t want = 0;
    if (wanted || f.half || f.sealed || now - p->burst_ns >= SUSTAINED_NS || p->segment_bytes > SL_SEGMENT_MIN_BYTES || !f.active) want = 2;
    if (want && p->life_ns && p->life_ns < LIFE_WANTED_NS / 3) want = 4;
    uint64_t least = p->frame_need ? segment_for_frame(p->frame_need) : SL_SEGMENT_MIN_BYTES;
    int published = 0, need_large = wanted && f.ready_largest < wanted;
    if (p->ring_retry_ns > now && !published && f.ready > 0 && !need_large) return now + SL_TICK_NS;
    while ((f.ready < want || need_large) && published < SL_DIR_SLOTS) {
        uint64_t size = size_wanted(b, p);
        sl_buffer item;
        if (!obtain(b, p, size, least < size ? least : size, want, &item, now)) {
            /* Full. Are segments waiting for the disk (or for tethered readers), or is it memory that is missing? The first look does not know. */
            if (!p->full_ns) p->full_ns = now;
            int waiting = least <= share(b, p) && (p->ring.n > f.ready + 1 || now - p->full_ns < FULL_NS);
            if (least > SL_SEGMENT_MIN_BYTES && !waiting) {
                /* No room for so large a frame: its producer is told, and the others get what there is. It asks again for as long as it waits. */
                if (need_large) {
                    p->refused_ns = now;
                    ring_state(b, p, SL_STORAGE_SHM_FULL, p->ring_needed, p->ring_free);
                }
                p->frame_need = 0;
                least = SL_SEGMENT_MIN_BYTES;
                need_large = 0;
                continue;
            }
            if (f.ready > 0 && !need_large) { p->ring_retry_ns = now + SL_TICK_NS * 4; break; }
            if ((sl_load_relaxed(&p->words->flags) & SL_PF_FULL_DROP) && p->dir && drop_oldest(b, p)) continue;
            /* What was said of a frame that is too large stands for a while: its producer, who seals small segments meanwhile, is to hear that and not that
             * the disk is behind. */
            if (now - p->refused_ns > REFUSED_NS) ring_state(b, p, waiting ? SL_STORAGE_BEHIND : SL_STORAGE_SHM_FULL, p->ring_needed, p->ring_free);
            p->ring_retry_ns = now + SL_TICK_NS;
            break;
        }
        int rc = publish(b, p, item);
        if (rc < 0) break;
        published++;
        f.ready++;
        p->full_ns = 0;
        if (fits(item.map, wanted)) need_large = 0;
    }
    if (f.ready > 0 && !need_large && p->ring_state != SL_STORAGE_OK && now - p->refused_ns > REFUSED_NS) ring_state(b, p, SL_STORAGE_OK, 0, 0);
    if (published) sl_wake_bits(b->cluster, p->waits->commit);
    return now + SL_TICK_NS;
}

/* ---- taking over and giving up ---- */

int sl_ring_first(sl_broker *b, sl_bp *p, uint32_t *buffer) {
    sl_buffer item;
    uint64_t free_bytes = 0;
    for (;;) {
        if (!from_pool(b, SL_SEGMENT_MIN_BYTES, SL_SEGMENT_MIN_BYTES, &item)) {
            int rc = make(b, SL_SEGMENT_MIN_BYTES, 1, &item, &free_bytes);
            if (rc < 0) return rc;
        }
        if (hold(b, item.map)) break; /* sl_log_open_epoch() publishes it, or sl_ring_unused() lets it go */
        forget(b, item);
    }
    *buffer = item.id;
    int rc = list_add(&p->ring, item);
    if (rc < 0) { let_go(b, item.map); destroy(b, NULL, item); return rc; }
    set_ring_bytes(p, p->ring_bytes + item.map->bytes);
    return SL_OK;
}

static void adopt_one(sl_broker *b, sl_bp *p, uint32_t id, int64_t now) {
    if (ring_find(p, id) >= 0) return;
    sl_buffer item = {.id = id, .adopted = 1, .since_ns = now};
    int rc = sl_map_get(b->cluster, id, 1, &item.map);
    if (rc == SL_E_NOENT) return; /* it was there when this broker started; whoever led the partition since has let it go */
    if (rc < 0) {
        sl_broker_say(b, SL_EVENT_DAMAGED, p->block, rc, sl_last_errno(), 0, 0, "buffer %u cannot be adopted: %s", id, sl_strerror(rc));
        return;
    }
    item.adopted = item.map->segment->header.maker_pid != (uint32_t)getpid();
    b->total_bytes += item.map->bytes;
    if (list_add(&p->ring, item) < 0) { sl_map_put(b->cluster, item.map); return; }
    set_ring_bytes(p, p->ring_bytes + item.map->bytes);
}

/* What the directory names is ours now; what else bears this partition's name is sorted out by look_at_buffers() (limbo, dead, or a recycler at work). */
void sl_ring_adopt(sl_broker *b, sl_bp *p) {
    int64_t now = sl_monotonic_ns();
    if (!p->dir) sl_store_relaxed(&p->words->ring_keep_bytes, history(b, p)); /* before anybody waits for room: a producer reuses what it says is not kept */
    for (int i = 0; i < SL_DIR_SLOTS; i++) {
        uint32_t id = sl_dir_buffer(sl_load_acquire(&p->words->dir[i]));
        if (id) adopt_one(b, p, id, now);
    }
    for (uint32_t i = 0; i < b->n_found; i++)
        if (b->found[i].id && b->found[i].block == p->block) {
            adopt_one(b, p, b->found[i].id, now);
            b->found[i].id = 0;
        }
    look_at_buffers(b, p, now);
}

int sl_ring_discard(sl_broker *b, uint32_t block) {
    sl_partition *words = sl_cluster_partition(b->cluster, block);
    if (!words) return SL_E_NOENT;
    for (int i = 0; i < SL_DIR_SLOTS; i++) {
        uint64_t d = sl_load_acquire(&words->dir[i]);
        /* Numbers and epochs stay: they never repeat. A recycler at work goes on with a buffer that has no name any more; sl_log_open_epoch() clears what he
         * may still put into the directory, before the block lives again. */
        while (sl_dir_buffer(d))
            if (sl_cas_sc(&words->dir[i], &d, sl_dir_make(sl_dir_epoch(d), sl_dir_number(d), 0))) {
                sl_segment_unlink(b->cluster, sl_dir_buffer(d));
                break;
            }
    }
    return SL_OK;
}

void sl_ring_give_up(sl_broker *b, sl_bp *p) {
    sl_ring_discard(b, p->block);
    while (p->ring.n) {
        sl_buffer item = list_take(&p->ring, p->ring.n - 1);
        uint64_t w = sl_load_acquire(&item.map->segment->claim);
        /* LIVE, or at a recycler who will find no directory to put it back into: with the partition its memory goes. */
        int with_it = (sl_claim_phase(w) == SL_SEGMENT_LIVE || sl_claim_phase(w) == SL_SEGMENT_TRY || sl_claim_phase(w) == SL_SEGMENT_HELD) &&
                      sl_claim_number(w) != 0 && !elsewhere(p, item.map);
        if (with_it) {
            unlink_it(b, p, item);
            forget(b, item);
        } else destroy(b, p, item);
    }
    set_ring_bytes(p, 0);
}

void sl_ring_leave(sl_broker *b, sl_bp *p) {
    int64_t now = sl_monotonic_ns();
    while (p->ring.n) {
        sl_buffer item = list_take(&p->ring, p->ring.n - 1);
        uint32_t state = sl_segment_phase(item.map->segment);
        /* Who leads next adopts what the directory names; nobody else knows of what is out of it already. */
        int ours = (state == SL_SEGMENT_FREE || state == SL_SEGMENT_LIMBO || state == SL_SEGMENT_DEAD) && !in_directory(p, item.id) && !elsewhere(p, item.map);
        if (ours) sort_out(b, p, item, now);
        else forget(b, item);
    }
}

void sl_ring_unused(sl_broker *b, sl_bp *p, uint32_t buffer) {
    int i = ring_find(p, buffer);
    if (i < 0 || in_directory(p, buffer)) return; /* published before the opening failed: the next try goes on from there, and needs it to have a name */
    sl_buffer item = list_take(&p->ring, (uint32_t)i);
    set_ring_bytes(p, p->ring_bytes - item.map->bytes);
    let_go(b, item.map);
    sort_out(b, p, item, sl_monotonic_ns());
}

static int maker_alive(const sl_object_header *h) { return h->maker_pid && sl_start_ticks(h->maker_pid) == h->maker_start_ticks; }

void sl_ring_scan(sl_broker *b) {
    const char *prefix = sl_cluster_prefix(b->cluster) + 1;
    size_t prefix_bytes = strlen(prefix);
    DIR *dir = opendir("/dev/shm");
    if (!dir) return;
    uint32_t room = 0;
    for (struct dirent *e; (e = readdir(dir));) {
        if (strncmp(e->d_name, prefix, prefix_bytes) || e->d_name[prefix_bytes] != '.' || e->d_name[prefix_bytes + 1] != 's') continue;
        char *end;
        unsigned long id = strtoul(e->d_name + prefix_bytes + 2, &end, 10);
        if (*end || end == e->d_name + prefix_bytes + 2 || !id || id > 0xfffffff) continue;
        sl_map *map;
        int rc = sl_map_get(b->cluster, (uint32_t)id, 0, &map);
        if (rc == SL_E_BOOT || rc == SL_E_HALFMADE) {
            struct stat st; /* a maker needs microseconds; one that died leaves it half made for ever */
            if (rc == SL_E_BOOT || (fstatat(dirfd(dir), e->d_name, &st, 0) == 0 && sl_wall_ns() / 1000000000 - st.st_mtim.tv_sec > 10))
                sl_segment_unlink(b->cluster, (uint32_t)id);
            continue;
        }
        if (rc < 0) continue;
        const sl_segment *s = map->segment;
        uint32_t block = sl_load_relaxed(&s->block);
        sl_partition *words = sl_cluster_partition(b->cluster, block);
        int orphan = 0;
        if (!maker_alive(&s->header)) {
            int known = words && sl_load_acquire(&words->state) == SL_PARTITION_LIVE && memcmp(words->topic_id, s->topic_id, 16) == 0;
            uint64_t w = sl_load_acquire(&s->claim);
            orphan = !known || sl_claim_phase(w) == SL_SEGMENT_FREE || (sl_claim_phase(w) == SL_SEGMENT_HELD && sl_claim_number(w) == 0);
            for (int i = 0; orphan && words && i < SL_DIR_SLOTS; i++)
                if (sl_dir_buffer(sl_load_acquire(&words->dir[i])) == id && known) orphan = 0;
        }
        sl_map_put(b->cluster, map);
        if (orphan) { sl_segment_unlink(b->cluster, (uint32_t)id); continue; }
        if (b->n_found == room) {
            room = room ? room * 2 : 64;
            void *grown = realloc(b->found, room * sizeof *b->found);
            if (!grown) break;
            b->found = grown;
        }
        b->found[b->n_found].id = (uint32_t)id;
        b->found[b->n_found++].block = block;
    }
    closedir(dir);
}

void sl_ring_free(sl_broker *b, int unlink_pool) {
    for (sl_bp *p = b->partitions; p; p = p->next) sl_ring_leave(b, p);
    while (b->pool.n) {
        sl_buffer item = list_take(&b->pool, b->pool.n - 1);
        if (unlink_pool) destroy(b, NULL, item);
        else sl_map_put(b->cluster, item.map);
    }
    while (b->limbo.n) sl_map_put(b->cluster, list_take(&b->limbo, b->limbo.n - 1).map); /* adopted by whoever leads its partition next */
    free(b->pool.items);
    free(b->limbo.items);
    free(b->found);
}
