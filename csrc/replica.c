/* Copies of a partition at other brokers: how frames leave a leader's files, and how a follower's files take them in.
 *
 * A follower's files hold the same frames at the same offsets as its leader's; where files begin and end is each broker's own affair, but the leader epoch in a
 * file's name is the one under which its frames were written down by their leader, so the names tell where epochs begin (KIP-101's leader epoch cache). A run (sl_run
 * in core.h) comes out of one file and goes into one file. What arrives is hostile input: everything is checked in the caller's private buffer before a byte is written.
 *
 * Who writes: a follower's directory belongs to its broker's process (the lock in it). Left if that dies in sl_replica_append(): a file with more than was
 * acknowledged, or a torn end; recovery cuts what does not prove itself, and the follower asks for the rest again. */
#include "file.h"

#include "atomic.h"

#include <pthread.h>
#include <string.h>

#define RUN_CELLS_MAX 8192
_Static_assert(sizeof(sl_run) == SL_RUN_HEADER_BYTES, "sl_run is a format between processes");
_Static_assert(offsetof(sl_run, crc32c) == 92, "the CRC covers what stands before it");

static uint64_t frames_position(uint32_t cells) { return sl_align64(SL_RUN_HEADER_BYTES + (uint64_t)cells * sizeof(sl_file_cell)); }

static uint32_t run_crc(const sl_run *h, const uint8_t *cells) {
    return sl_crc32c(sl_crc32c(0, h, offsetof(sl_run, crc32c)), cells, (size_t)h->cells * sizeof(sl_file_cell));
}

/* ---- leaving the leader ------------------------------------------------------------------------------------------------------------------ */

struct sl_fetch {
    char *dir;
    uint32_t partition;
    uint8_t topic_id[16];
    sl_file_reader *reader;      /* of `entry`; NULL: look for the file */
    sl_file_entry entry;
    uint64_t index, next_offset; /* where the last run ended: frame `index` begins at next_offset */
    sl_file_cell cells[RUN_CELLS_MAX];
};

int sl_fetch_open(const char *dir, uint32_t partition, const uint8_t topic_id[16], sl_fetch **out) {
    sl_fetch *f = calloc(1, sizeof *f);
    if (!f || !(f->dir = strdup(dir))) { free(f); return SL_E_NOMEM; }
    f->partition = partition;
    memcpy(f->topic_id, topic_id, 16);
    *out = f;
    return SL_OK;
}

static void leave_file(sl_fetch *f) {
    if (f->reader) sl_file_reader_close(f->reader);
    f->reader = NULL;
}

void sl_fetch_close(sl_fetch *f) {
    if (!f) return;
    leave_file(f);
    free(f->dir);
    free(f);
}

int64_t sl_fetch_run(sl_fetch *f, uint64_t offset, uint64_t end_offset, uint32_t leader_epoch, uint8_t *to, uint64_t capacity, uint64_t *needed_bytes) {
    *needed_bytes = 0;
    if (offset >= end_offset) return 0;
    for (int turn = 0; turn < 3; turn++) {
        if (!f->reader) {
            int rc = sl_file_reader_open_at(f->dir, offset, &f->entry, &f->reader);
            if (rc < 0) {
                f->reader = NULL;
                if (rc == SL_E_RANGE) *needed_bytes = f->entry.base_offset;
                return rc == SL_E_NOENT || rc == SL_E_HALFMADE ? 0 : rc; /* just being made, or just removed: the next look finds it, or its successor */
            }
            f->next_offset = UINT64_MAX;
        }
        uint64_t until = f->entry.until < end_offset ? f->entry.until : end_offset;
        if (offset < f->entry.base_offset || offset >= until) { leave_file(f); continue; }
        int64_t index = (int64_t)f->index;
        if (offset != f->next_offset) index = sl_file_reader_find_offset(f->reader, offset, until);
        if (index == SL_E_AGAIN) { leave_file(f); continue; } /* rolled, or written anew: the directory knows */
        if (index < 0) { leave_file(f); return index; }
        uint32_t max_cells = RUN_CELLS_MAX;
        if (capacity < frames_position(1) + SL_FRAME_HEADER_BYTES) { *needed_bytes = frames_position(1) + SL_UNIT_BYTES; return SL_E_TOO_BIG; }
        /* Cells stand before the frames, and how many there are is known only afterwards: frames of 128 bytes take an eighth more for their cells. */
        uint64_t room_for_cells = capacity / 9;
        if (room_for_cells / sizeof(sl_file_cell) < max_cells) max_cells = (uint32_t)(room_for_cells / sizeof(sl_file_cell));
        if (max_cells == 0) max_cells = 1;
        uint64_t at = frames_position(max_cells), frame_needs = 0;
        int64_t n = sl_file_reader_fill(f->reader, (uint64_t)index, until, 1, to + at, (capacity - at) & ~UINT64_C(63), f->cells, max_cells, &frame_needs);
        if (n == 0) { leave_file(f); continue; }
        if (n == SL_E_TOO_BIG) { *needed_bytes = frames_position(max_cells) + frame_needs + 64; return SL_E_TOO_BIG; }
        if (n < 0) { leave_file(f); return n; }
        uint64_t base = sl_file_reader_header(f->reader)->base_offset;
        if (base + f->cells[0].rel != offset) { *needed_bytes = base + f->cells[0].rel; return SL_E_RANGE; }
        const uint8_t *last = to + at + (uint64_t)(f->cells[n - 1].unit - f->cells[0].unit) * SL_UNIT_BYTES;
        uint32_t last_bytes;
        memcpy(&last_bytes, last, sizeof last_bytes);
        uint64_t frames_bytes = (uint64_t)(last - (to + at)) + sl_align64(last_bytes);
        /* The padding behind the last frame may lie beyond what was read. */
        memset(to + at + frames_bytes - (sl_align64(last_bytes) - last_bytes), 0, sl_align64(last_bytes) - last_bytes);
        sl_run h = {.magic = SL_RUN_MAGIC, .cells = (uint32_t)n, .base_offset = offset, .end_offset = base + f->cells[n - 1].rel + sl_frame_rows(last),
                    .frames_bytes = frames_bytes, .file_epoch = f->entry.leader_epoch, .leader_epoch = leader_epoch, .partition = f->partition};
        if (h.end_offset > until) return SL_E_CORRUPT; /* frames are whole below `spilled` and below a successor */
        memcpy(h.topic_id, f->topic_id, 16);
        uint64_t exact = frames_position((uint32_t)n);
        if (exact != at) memmove(to + exact, to + at, frames_bytes);
        memset(to, 0, exact);
        memcpy(to + SL_RUN_HEADER_BYTES, f->cells, (size_t)n * sizeof(sl_file_cell));
        h.crc32c = run_crc(&h, to + SL_RUN_HEADER_BYTES);
        memcpy(to, &h, sizeof h);
        f->index = (uint64_t)index + (uint64_t)n;
        f->next_offset = h.end_offset;
        return (int64_t)(exact + frames_bytes);
    }
    return 0;
}

/* ---- arriving at a follower --------------------------------------------------------------------------------------------------------------- */

struct sl_replica {
    char *dir;
    uint32_t partition;
    uint8_t topic_id[16], cluster_id[16];
    uint64_t file_roll_bytes;
    /* the appending thread's; `file`, `end` and `syncing` are changed under `lock` */
    sl_file *file;               /* NULL: the next run makes one */
    uint32_t file_epoch;
    uint64_t end, synced;
    int failed;
    int syncing;                 /* the other thread works on `file`: it may not be closed */
    pthread_mutex_t lock;
    pthread_cond_t done;
    uint8_t *frames;             /* the private copy of a run's frames, where a file may take them from as one run */
    uint64_t frames_room;
    sl_file_piece pieces[RUN_CELLS_MAX];
};

int sl_replica_open(const char *dir, uint32_t partition, const uint8_t topic_id[16], const uint8_t cluster_id[16], uint64_t end_offset, uint32_t last_epoch,
                    uint64_t file_roll_bytes, sl_replica **out) {
    sl_replica *r = calloc(1, sizeof *r);
    if (!r || !(r->dir = strdup(dir))) { free(r); return SL_E_NOMEM; }
    r->partition = partition;
    memcpy(r->topic_id, topic_id, 16);
    memcpy(r->cluster_id, cluster_id, 16);
    r->file_roll_bytes = file_roll_bytes;
    r->file_epoch = last_epoch;
    r->end = r->synced = end_offset; /* recovery syncs what it keeps */
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->done, NULL);
    *out = r;
    return SL_OK;
}

void sl_replica_close(sl_replica *r) {
    if (!r) return;
    if (r->file) sl_file_close(r->file);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->done);
    free(r->frames);
    free(r->dir);
    free(r);
}

uint64_t sl_replica_end(sl_replica *r) { return sl_load_relaxed(&r->end); }

int64_t sl_replica_sync(sl_replica *r) {
    pthread_mutex_lock(&r->lock);
    while (r->syncing) pthread_cond_wait(&r->done, &r->lock);
    sl_file *file = r->file;
    uint64_t end = r->end;
    if (r->failed || !file || r->synced == end) {
        int64_t result = r->failed ? SL_E_IO : (int64_t)end; /* without a file all was synced when it was closed */
        pthread_mutex_unlock(&r->lock);
        return result;
    }
    r->syncing = 1;
    pthread_mutex_unlock(&r->lock);
    int rc = sl_file_sync(file);
    pthread_mutex_lock(&r->lock);
    r->syncing = 0;
    if (rc < 0) r->failed = 1;
    else if (end > r->synced) r->synced = end;
    pthread_cond_broadcast(&r->done);
    pthread_mutex_unlock(&r->lock);
    return rc < 0 ? rc : (int64_t)end;
}

/* A file is on disk before its successor is made. */
static int close_file(sl_replica *r) {
    if (sl_replica_sync(r) < 0) return SL_E_IO;
    pthread_mutex_lock(&r->lock);
    while (r->syncing) pthread_cond_wait(&r->done, &r->lock);
    sl_file_close(r->file);
    r->file = NULL;
    pthread_mutex_unlock(&r->lock);
    return SL_OK;
}

/* The frames of a run as pieces: nothing is believed but what was computed here from these bytes. */
static int check_run(sl_replica *r, const sl_run *h, const uint8_t *cells, uint8_t *frames) {
    sl_file_cell first, cell;
    uint64_t at = 0, offset = h->base_offset;
    memcpy(&first, cells, sizeof first);
    for (uint32_t i = 0; i < h->cells; i++) {
        memcpy(&cell, cells + (size_t)i * sizeof cell, sizeof cell);
        uint32_t frame_bytes = 0;
        if (at + SL_FRAME_HEADER_BYTES > h->frames_bytes || (uint64_t)(cell.unit - first.unit) * SL_UNIT_BYTES != at || cell.unit < first.unit) return SL_E_CORRUPT;
        memcpy(&frame_bytes, frames + at, sizeof frame_bytes);
        if (frame_bytes < SL_FRAME_HEADER_BYTES || sl_align64(frame_bytes) > h->frames_bytes - at || frame_bytes > SL_SEGMENT_MAX_BYTES) return SL_E_CORRUPT;
        if (cell.type != SL_CELL_DATA && cell.type != SL_CELL_CONTROL) return SL_E_CORRUPT;
        if (sl_crc32c(0, frames + at, frame_bytes) != cell.crc32c || sl_frame_check(frames + at, frame_bytes, 1) < 0) return SL_E_CORRUPT;
        uint32_t rows = sl_frame_rows(frames + at);
        if (rows == 0 || (cell.count && cell.count != rows)) return SL_E_CORRUPT;
        r->pieces[i] = (sl_file_piece){.frame = frames + at, .frame_bytes = frame_bytes, .crc32c = cell.crc32c, .count = cell.count, .type = cell.type, .flags = cell.flags};
        offset += rows;
        memset(frames + at + frame_bytes, 0, sl_align64(frame_bytes) - frame_bytes); /* no CRC covers it */
        at += sl_align64(frame_bytes);
    }
    return at == h->frames_bytes && offset == h->end_offset ? SL_OK : SL_E_CORRUPT;
}

int sl_replica_append(sl_replica *r, const uint8_t *run, uint64_t bytes, uint32_t leader_epoch, uint64_t *end_offset) {
    *end_offset = r->end;
    sl_run h;
    if (bytes < sizeof h || ((uintptr_t)run & 3)) return SL_E_CORRUPT;
    memcpy(&h, run, sizeof h);
    if (h.magic != SL_RUN_MAGIC || h.cells == 0 || h.cells > RUN_CELLS_MAX || frames_position(h.cells) > bytes || h.frames_bytes != bytes - frames_position(h.cells) ||
        h.base_offset > SL_OFFSET_MASK || h.end_offset > SL_OFFSET_MASK || run_crc(&h, run + sizeof h) != h.crc32c)
        return SL_E_CORRUPT;
    if (memcmp(h.topic_id, r->topic_id, 16) || h.partition != r->partition || h.leader_epoch != leader_epoch) return SL_E_FENCED;
    if (h.base_offset != r->end) return SL_E_RANGE;
    if (h.file_epoch > leader_epoch || h.file_epoch < r->file_epoch) return SL_E_CORRUPT; /* epochs only grow along a log */
    if (sl_load_relaxed(&r->failed)) return SL_E_IO;
    if (h.frames_bytes > r->frames_room || r->frames_room > 8 * h.frames_bytes + (4u << 20)) {
        free(r->frames);
        r->frames_room = (h.frames_bytes + 4095) & ~UINT64_C(4095);
        if (!(r->frames = aligned_alloc(4096, r->frames_room))) { r->frames_room = 0; return SL_E_NOMEM; }
    }
    memcpy(r->frames, run + frames_position(h.cells), h.frames_bytes);
    int rc = check_run(r, &h, run + sizeof h, r->frames);
    if (rc < 0) return rc;
    if (r->file && (h.file_epoch != r->file_epoch || sl_file_bytes(r->file) + h.frames_bytes > r->file_roll_bytes || h.end_offset - sl_file_base_offset(r->file) > UINT32_MAX))
        if ((rc = close_file(r)) < 0) return rc;
    sl_file *file = r->file;
    if (!file && (rc = sl_file_create(r->dir, h.base_offset, h.file_epoch, r->partition, r->topic_id, r->cluster_id, &file)) < 0) return rc;
    uint64_t rel = h.base_offset - sl_file_base_offset(file);
    for (uint32_t i = 0; i < h.cells; i++) {
        r->pieces[i].rel = (uint32_t)rel;
        rel += r->pieces[i].count ? r->pieces[i].count : sl_frame_rows(r->pieces[i].frame);
    }
    rc = sl_file_append(file, r->pieces, h.cells, h.end_offset);
    pthread_mutex_lock(&r->lock);
    r->file = file;
    r->file_epoch = h.file_epoch;
    if (rc == SL_OK) sl_store_relaxed(&r->end, h.end_offset);
    else if (rc == SL_E_IO) r->failed = 1; /* who knows what the file is now */
    pthread_mutex_unlock(&r->lock);
    *end_offset = r->end;
    return rc;
}
