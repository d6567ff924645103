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
 * <dir>/rewrite/, synced there, and renamed into place, the .log first; its base is the durable offset, and of two files that hold an offset the
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
 *   rewrite/ renamed .log only   -> its table is missing or is the failed file's, which does not belong: recovery makes it again from the synced .log
 *
 * Threads: both block all signals and never touch Python. sl_broker.lock covers everything but file I/O; a partition whose `writing` or `syncing` is set
 * may not be freed and its file not closed by anybody else. The callers of sl_broker_*() use the spill row too, under the lock.
 *
 * Copying out of memory is gather.c; the handle, its partitions and its end are broker.c. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "broker.h"

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

/* ---- files ---- */

void sl_roll_now(sl_broker *b, sl_bp *p) {
    p->rolling = 1;
    p->roll_asked = 0;
    pthread_cond_signal(&b->sync_work);
}

static int rewrite_dir(const sl_bp *p, char path[PATH_MAX]) { return snprintf(path, PATH_MAX, "%s/rewrite", p->dir) < PATH_MAX ? SL_OK : SL_E_INVALID; }

static void remove_rewrite(const sl_bp *p, uint64_t base) {
    char dir[PATH_MAX], path[PATH_MAX + 80], name[64];
    if (rewrite_dir(p, dir) < 0) return;
    for (int i = 0; i < 2; i++) { /* the .log last: a table alone in there is what an install left over */
        sl_segment_file_name(name, sizeof name, base, p->leader_epoch, i ? "log" : "cells");
        snprintf(path, sizeof path, "%s/%s", dir, name);
        unlink(path);
    }
    rmdir(dir);
}

/* The rewritten file is whole and synced: its names replace those of the failed one. */
static int install_rewrite(const sl_bp *p, sl_file *file) {
    char dir[PATH_MAX];
    int rc = rewrite_dir(p, dir);
    if (rc == SL_OK) rc = sl_file_install(file, dir, p->dir);
    if (rc == SL_OK) rmdir(dir);
    return rc;
}

/* ---- descriptors: of many partitions only those that are written hold any ---- */

void sl_file_counted(sl_broker *b, sl_bp *p, int open) {
    if (open != p->open) b->n_open += open ? 1u : UINT32_MAX;
    p->open = open;
}

static void close_file(sl_broker *b, sl_bp *p) {
    if (p->file) sl_file_close(p->file);
    p->file = NULL;
    p->table_ns = 0;
    sl_file_counted(b, p, 0);
}

/* 1 it rests now. Only what is synced may: a file that is opened anew need not be told of a write that failed before. */
static int rest(sl_broker *b, sl_bp *p) {
    if (!p->open || p->writing || p->syncing || p->rolling || p->sync_failed || p->rewrite_to || sl_file_rest(p->file) != SL_OK) return 0;
    sl_file_counted(b, p, 0);
    return 1;
}

/* May this partition's file be opened? If not, the ones that were not written for longest are let rest, or synced so that they can: ask again soon. */
static int room_to_open(sl_broker *b, const sl_bp *for_whom, int64_t now) {
    if (for_whom->open || b->n_open < b->max_open) return 1;
    sl_bp *oldest = NULL, *unsynced = NULL;
    for (sl_bp *p = b->partitions; p; p = p->next) {
        if (!p->open || p->writing || p->syncing) continue;
        if (p->durable < p->file_end || p->table_ns) {
            if (!p->sync_now && (!unsynced || p->written_ns < unsynced->written_ns)) unsynced = p;
        } else if (now - p->written_ns > SL_IDLE_TICK_NS ? rest(b, p) : 0) continue;
        else if (!oldest || p->written_ns < oldest->written_ns) oldest = p;
    }
    if (b->n_open < b->max_open || (oldest && rest(b, oldest))) return 1;
    if (unsynced) {
        unsynced->sync_now = 1;
        pthread_cond_signal(&b->sync_work);
    }
    return 0;
}

static int out_of_fds(int rc, int saved_errno) { return rc == SL_E_SYS && (saved_errno == EMFILE || saved_errno == ENFILE); }

/* In spite of all care: others took them, or the limit is too low for anything. One line, and again soon. */
static void say_out_of_fds(sl_broker *b, sl_bp *p, int saved_errno, int64_t now) {
    struct rlimit limit;
    p->retry_ns = now + SL_RETRY_NS;
    if (b->max_open > 1) b->max_open--;
    if (b->said_fds_ns && now - b->said_fds_ns < SAID_NS) return;
    b->said_fds_ns = now;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) limit.rlim_cur = 0;
    sl_broker_say(b, SL_EVENT_STORAGE, p->block, SL_STORAGE_BEHIND, saved_errno, p->next_offset, 0, "no file descriptor left: RLIMIT_NOFILE is %llu, %u files are open",
                  (unsigned long long)limit.rlim_cur, b->n_open);
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

static void begin_rewrite(sl_broker *b, sl_bp *p) {
    uint64_t to = p->rewrite_to > p->next_offset ? p->rewrite_to : p->next_offset;
    if (!p->rewrite_to) p->failed_base = p->file_base; /* else it is the rewrite that failed, and the file behind it is still the same */
    close_file(b, p);
    p->sync_failed = 0;
    p->rolling = 0;
    p->unsynced_ns = 0;
    sl_spill_seek(b, p, p->durable);
    p->rewrite_to = to > p->durable ? to : 0;
}

static void tell_replication(sl_broker *b) {
    if (b->replica_fd >= 0 && eventfd_write(b->replica_fd, 1) < 0) { /* it is readable already */ }
}

int sl_commit(sl_broker *b, sl_bp *p) {
    uint64_t end = p->next_offset, durable = p->durable; /* below the words while a file is written again: they rest then, and never go back */
    int rc = SL_OK, moved = 0;
    if (p->replicated) {
        if (end != p->told_offset) tell_replication(b);
        if (!p->counting) return SL_OK;
        for (uint32_t i = 0; i < p->n_followers; i++) {
            if (p->followers[i].end < end) end = p->followers[i].end;
            if (p->followers[i].durable < durable) durable = p->followers[i].durable;
        }
        uint64_t before = sl_word_offset(sl_load_relaxed(&p->words->high_watermark)), durable_before = sl_word_offset(sl_load_relaxed(&p->words->durable));
        rc = sl_log_advance(b->cluster, p->block, SL_WORD_SPILLED, p->leader_epoch, end);
        if (rc == SL_OK && 1 + p->n_followers >= p->min_insync) {
            rc = sl_log_advance(b->cluster, p->block, SL_WORD_HIGH_WATERMARK, p->leader_epoch, end);
            if (rc == SL_OK) rc = sl_log_advance(b->cluster, p->block, SL_WORD_LAST_STABLE, p->leader_epoch, end);
            moved = end > before;
        }
        moved |= durable > durable_before;
    } else rc = sl_log_advance(b->cluster, p->block, SL_WORD_SPILLED, p->leader_epoch, end);
    if (rc == SL_OK) rc = sl_log_advance(b->cluster, p->block, SL_WORD_DURABLE, p->leader_epoch, durable);
    if (moved) sl_wake_bits(b->cluster, p->waits->commit); /* SYNC durable: after the words; pairs with wait_word() and readers of replicated topics */
    return rc;
}

/* Writes one batch. 1 something was done (more may be there), 0 nothing to do. Drops the lock around file I/O. */
static int spill_batch(sl_broker *b, sl_bp *p, sl_batch *t, int64_t now) {
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
        if (p->replicated) {
            p->sync_told = 0;
            tell_replication(b);
        }
    }
    int rc = sl_spill_hold(b, p, p->number);
    if (rc <= 0) {
        uint64_t cur = sl_cur_number(sl_load_acquire(&p->words->cur));
        if (rc < 0) sl_broker_say(b, SL_EVENT_DAMAGED, p->block, rc, sl_last_errno(), p->next_offset, 0, "segment %llu cannot be mapped: %s",
                                  (unsigned long long)p->number, sl_strerror(rc));
        sl_spill_leave(b, p);
        if (p->number < cur) { /* reused: it was wholly spilled. Or it is gone: its successor's base tells the gap */
            p->number++;
            p->cell = 0;
            return 1;
        }
        if (rc < 0) p->retry_ns = now + SL_RETRY_NS;
        return 0;
    }
    uint64_t cur = sl_cur_number(sl_load_acquire(&p->words->cur)); /* first: the base is set before `cur` moves on to it, and not the other way round */
    uint64_t base = sl_spill_base(p->map, p->number);
    if (base == UINT64_MAX) {
        sl_spill_release(b);
        if (p->number > cur) return 0; /* it was ready and not active yet */
        sl_broker_say(b, SL_EVENT_DAMAGED, p->block, SL_E_DAMAGED, 0, p->next_offset, 0, "the base of segment %llu is damaged", (unsigned long long)p->number);
        if (p->number == cur) { p->retry_ns = now + SL_RETRY_NS; return 0; }
        p->number++; /* its successor's base tells how many records are lost */
        p->cell = 0;
        return 1;
    }
    if (p->cell >= p->map->cell_count || (!sl_load_acquire(&p->map->cells[p->cell]) && p->next_offset >= base)) {
        sl_spill_release(b);
        if (p->sync_asked) {
            p->sync_asked = 0;
            if (p->file && p->durable < p->file_end) { p->sync_now = 1; pthread_cond_signal(&b->sync_work); }
        }
        if (p->roll_asked && p->file && !p->rewrite_to && p->file_end > p->file_base) { sl_roll_now(b, p); return 0; }
        if (p->cell >= p->map->cell_count) { p->number++; p->cell = 0; sl_spill_leave(b, p); return 1; }
        return 0;
    }
    rc = sl_gather(b, p, t, base);
    sl_spill_release(b);
    if (rc < 0) { p->retry_ns = now + SL_RETRY_NS; return 0; }
    SL_FAILPOINT(spill_gathered);

    if (t->n) {
        uint64_t from = t->offsets[0];
        if (p->file && !p->rewrite_to &&
            (sl_file_bytes(p->file) + t->bytes > p->file_roll_bytes || p->roll_asked || t->end_offset - p->file_base > UINT32_MAX) &&
            p->file_end > p->file_base) {
            sl_roll_now(b, p);
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
        if (!room_to_open(b, p, now)) {
            p->retry_ns = now + SL_TICK_NS;
            return 0;
        }
        sl_file *file = p->file;
        uint64_t file_base = file ? p->file_base : from;
        p->writing = 1;
        pthread_mutex_unlock(&b->lock);
        rc = file ? sl_file_wake(file) : create_file(b, p, file_base, &file);
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
        if (p->file) {
            sl_file_counted(b, p, !sl_file_resting(p->file));
            p->written_ns = now;
        }
        if (out_of_fds(rc, saved)) {
            say_out_of_fds(b, p, saved, now);
            return 0;
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
    if (t->sealed) { p->number++; p->cell = 0; p->seeking = 0; sl_spill_leave(b, p); }

    if (p->rewrite_to) {
        if (p->next_offset < p->rewrite_to) return 1;
        p->writing = 1;
        pthread_mutex_unlock(&b->lock);
        rc = p->file ? sl_file_sync(p->file) : SL_OK;
        if (rc == SL_OK && p->file) rc = install_rewrite(p, p->file);
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
        sl_salvage_close(p);
        p->sync_now = 1; /* synced already; the sync thread says so */
        sl_store_release(&p->words->file_base_offset, p->file_base);
    }
    if (t->n) {
        rc = sl_commit(b, p);
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

void *sl_spill_main(void *argument) {
    sl_broker *b = argument;
    sl_batch *t = aligned_alloc(64, (sizeof *t + 63) & ~(size_t)63);
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
            if (p->open && now - p->written_ns > SL_REST_NS) rest(b, p);
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
    if (p->sync_retry_ns > sl_monotonic_ns()) return p->sync_retry_ns;
    if (!p->dir || !p->file || p->syncing || p->sync_failed || p->rewrite_to || p->removed || p->fenced) return 0;
    if (p->rolling && p->writing) return 0;
    if (p->rolling) return 1;
    int urgent = p->sync_now || b->draining;
    if (p->durable >= p->file_end) return p->table_ns && urgent ? 1 : p->table_ns;
    if (urgent) return 1;
    return p->flush_ns < INT64_MAX - p->unsynced_ns ? p->unsynced_ns + p->flush_ns : 0;
}

static void sync_one(sl_broker *b, sl_bp *p) {
    sl_file *file = p->file;
    uint64_t target = p->file_end;
    int closing = p->rolling, need = p->durable < target;
    /* Who waits, waits for the .log; the table comes with the next sync that nobody waits for. */
    int whole = closing || b->draining || (p->table_ns && (!need || sl_monotonic_ns() >= p->table_ns));
    p->sync_now = 0;
    p->unsynced_ns = 0;
    p->last_flushed = target;
    p->syncing = 1;
    pthread_mutex_unlock(&b->lock);
    SL_FAILPOINT(sync_begin);
    int rc = whole ? sl_file_sync(file) : need ? sl_file_sync_log(file) : SL_OK;
    int saved = sl_last_errno();
    int behind = sl_file_table_behind(file);
    SL_FAILPOINT(sync_done);
    pthread_mutex_lock(&b->lock);
    p->syncing = 0;
    if (out_of_fds(rc, saved)) { /* its names could not be synced yet, the data was not asked for */
        p->unsynced_ns = sl_monotonic_ns();
        p->sync_retry_ns = p->unsynced_ns + SL_RETRY_NS;
        p->sync_now = 1;
        say_out_of_fds(b, p, saved, p->unsynced_ns);
        sl_bell_ring(b->cluster, b->options.process);
    } else if (rc < 0) {
        p->sync_failed = 1;
        sl_broker_say(b, SL_EVENT_SYNC_FAILED, p->block, rc, saved, p->durable, p->next_offset - p->durable,
                      "fdatasync failed; records from %llu on are written to a new file", (unsigned long long)p->durable);
        sl_set_errno(saved);
        disk_refused(b, p, SL_E_IO, 0, sl_monotonic_ns());
        sl_bell_ring(b->cluster, b->options.process);
    } else {
        if (target > p->durable) p->durable = target;
        p->table_ns = !behind ? 0 : p->table_ns ? p->table_ns : sl_monotonic_ns() + SL_TABLE_NS;
        if (p->file_end > target && !p->unsynced_ns) p->unsynced_ns = sl_monotonic_ns();
        if (sl_commit(b, p) == SL_E_FENCED) p->fenced = 1;
        SL_FAILPOINT(sync_published);
        sl_wake_bits(b->cluster, p->waits->commit); /* SYNC durable: after the word; pairs with sl_wait_durable() */
        if (closing && p->rolling) {
            uint64_t bytes = sl_file_bytes(file);
            close_file(b, p);
            p->rolling = 0;
            if (p->next_offset > target) { /* dropped records: what lies there is nowhere, and durable in that sense */
                p->durable = p->next_offset;
                sl_commit(b, p);
            }
            p->unsynced_ns = 0;
            sl_broker_say(b, SL_EVENT_ROLLED, p->block, SL_OK, 0, target, bytes, "file %llu-%u closed at %llu", (unsigned long long)p->file_base, p->leader_epoch,
                          (unsigned long long)target);
            sl_bell_ring(b->cluster, b->options.process);
        }
    }
    pthread_cond_broadcast(&b->done);
}

void *sl_sync_main(void *argument) {
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
