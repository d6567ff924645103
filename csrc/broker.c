/* A broker's handle: its two threads, its partitions, and what its Python asks of them. All under sl_broker.lock; a partition that a thread works on without
 * it (`writing`, `syncing`) is waited for before it is freed. The threads themselves are spill.c, the memory ring.c. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "broker.h"

/* ---- starting and stopping ---- */

/* How many partitions may have their file open: what RLIMIT_NOFILE leaves beside what this process has open already. */
static uint32_t files_at_once(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return SL_MAX_PARTITIONS;
    uint64_t used = 0, most = limit.rlim_cur;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d)) used++;
    if (d) closedir(d);
    uint64_t files = most > used + SL_FDS_SPARE ? (most - used - SL_FDS_SPARE) / SL_FDS_A_PARTITION : 0;
    return files < 1 ? 1 : files > SL_MAX_PARTITIONS ? SL_MAX_PARTITIONS : (uint32_t)files;
}

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
    b->replica_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    b->raw = aligned_alloc(4096, SL_RAW_ROOM);
    if (b->event_fd < 0 || b->replica_fd < 0 || !b->raw) {
        sl_set_errno(errno);
        if (b->event_fd >= 0) close(b->event_fd);
        if (b->replica_fd >= 0) close(b->replica_fd);
        free(b->raw);
        free(b);
        return SL_E_SYS;
    }
    b->max_open = files_at_once();
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
    int rc = pthread_create(&b->spill_thread, NULL, sl_spill_main, b);
    if (rc == 0 && (rc = pthread_create(&b->sync_thread, NULL, sl_sync_main, b)) != 0) {
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
        if (!p || (p->durable >= ends[i].end && !p->table_ns) || p->fenced) { i++; continue; }
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
    sl_spill_leave(b, p);
    sl_salvage_close(p);
    if (p->file) sl_file_close(p->file);
    sl_file_counted(b, p, 0);
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
    close(b->replica_fd);
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
    if (!words || !waits || given->missing > given->base_offset) return SL_E_INVALID;
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
    p->replicated = given->replicated != 0;
    p->sync_told = 1;
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
    if (rc == SL_OK) sl_ring_adopt(b, p); /* what the leader before us made ready between our first look and the fence */
    if (rc == SL_OK && p->dir) {
        /* The files end there, and the caller has synced them. Memory may go on beyond; it goes on from there. */
        uint64_t files_end = given->base_offset - given->missing;
        p->durable = files_end;
        p->last_flushed = p->durable;
        sl_spill_seek(b, p, files_end);
        rc = sl_commit(b, p);
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
    sl_spill_leave(b, p);
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
        if (p->writing) p->roll_asked = 1; /* before the next sl_batch */
        else sl_roll_now(b, p);
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

/* ---- followers ---- */

int sl_broker_followers(sl_broker *b, uint32_t block, uint32_t leader_epoch, const uint32_t *followers, uint32_t n, uint32_t min_insync) {
    if (n > SL_FOLLOWERS_MAX) return SL_E_INVALID;
    pthread_mutex_lock(&b->lock);
    sl_bp *p = find(b, block);
    int rc = !p ? SL_E_NOENT : p->leader_epoch != leader_epoch || p->fenced ? SL_E_FENCED : SL_OK;
    if (rc == SL_OK) {
        sl_follower before[SL_FOLLOWERS_MAX];
        memcpy(before, p->followers, sizeof before);
        memset(p->followers, 0, sizeof p->followers);
        for (uint32_t i = 0; i < n; i++) {
            p->followers[i].broker = followers[i]; /* one that is new has acknowledged nothing: the words rest until it has */
            for (uint32_t k = 0; k < p->n_followers; k++)
                if (before[k].broker == followers[i]) p->followers[i] = before[k];
        }
        p->n_followers = n;
        p->min_insync = min_insync;
        p->counting = 1;
        rc = sl_commit(b, p);
    }
    pthread_mutex_unlock(&b->lock);
    if (rc == SL_OK) sl_bell_ring(b->cluster, b->options.process); /* segments may have become reusable */
    return rc;
}

int sl_broker_acked(sl_broker *b, uint32_t block, uint32_t leader_epoch, uint32_t follower, uint64_t end_offset, uint64_t durable_offset) {
    pthread_mutex_lock(&b->lock);
    sl_bp *p = find(b, block);
    int rc = !p ? SL_E_NOENT : p->leader_epoch != leader_epoch || p->fenced ? SL_E_FENCED : SL_OK;
    /* What a follower says of more than there is here is a lie or a mistake: it is not believed beyond that. */
    if (rc == SL_OK && (end_offset > p->next_offset || durable_offset > end_offset)) rc = SL_E_INVALID;
    if (rc == SL_OK) {
        for (uint32_t i = 0; i < p->n_followers; i++)
            if (p->followers[i].broker == follower) {
                if (end_offset > p->followers[i].end) p->followers[i].end = end_offset;
                if (durable_offset > p->followers[i].durable) p->followers[i].durable = durable_offset;
            }
        rc = sl_commit(b, p);
    }
    pthread_mutex_unlock(&b->lock);
    if (rc == SL_OK && sl_load_relaxed(&p->words->wanted_bytes)) sl_bell_ring(b->cluster, b->options.process); /* somebody waits for room */
    return rc;
}

int sl_broker_advanced(sl_broker *b, sl_advanced *out, uint32_t max) {
    uint32_t n = 0;
    eventfd_t ignored;
    if (eventfd_read(b->replica_fd, &ignored) < 0) { /* nothing was told */ }
    pthread_mutex_lock(&b->lock);
    for (sl_bp *p = b->partitions; p; p = p->next) {
        if (!p->replicated || p->removed || p->fenced || (p->told_offset == p->next_offset && p->sync_told)) continue;
        if (n == max) {
            if (eventfd_write(b->replica_fd, 1) < 0) { /* it is readable already */ }
            break;
        }
        out[n++] = (sl_advanced){.block = p->block, .leader_epoch = p->leader_epoch, .end_offset = p->next_offset, .sync = !p->sync_told};
        p->told_offset = p->next_offset;
        p->sync_told = 1;
    }
    pthread_mutex_unlock(&b->lock);
    return (int)n;
}

int sl_broker_replica_eventfd(sl_broker *b) { return b->replica_fd; }

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
