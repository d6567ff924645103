/* A process's attachment to a cluster: the four fixed objects, and a cache of mapped segments.
 *
 * The tables are mapped once at their largest size; only entries below `allocated` are touched, which their maker backed with real memory first, so
 * that a full /dev/shm is an error there and never a SIGBUS here. Writable mappings are not inherited over fork (a child could not tell whose
 * hazard word it clears); read-only segment mappings are, so that a view taken before a fork stays readable.
 *
 * No byte of a header is trusted: sl_object_check() works on a private copy, and a segment's geometry follows from the size the kernel reports. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "atomic.h"
#include "core.h"

#define MAP_BUCKETS 256
#define IDLE_MAPS_MAX 64 /* unused mappings kept, because segments are recycled under the same buffer id */

struct sl_cluster {
    char prefix[96];
    uint64_t serial;
    sl_control *control;
    sl_table *partitions, *waits, *rows, *meters; /* meters: NULL without that object */
    uint32_t fork_generation;
    uint32_t idle_maps;
    pthread_mutex_t lock; /* of the cache below; never held over a wait */
    sl_map *maps[MAP_BUCKETS];
};

/* Grows in each forked child: a cheap "am I still the process that opened this?" */
static uint32_t fork_generation;

/* The writable segments of all clusters. A forked child does not inherit them: it would go on writing when its parent is dead and the segment lives another
 * life. It gets private zeros in their place, so that the array of a loan that it inherited takes writes that nobody sees, instead of killing it. The lock is
 * held over a fork, or the child might find the list half linked. */
static pthread_mutex_t writable_lock = PTHREAD_MUTEX_INITIALIZER;
static sl_map *writable_maps;
static void before_fork(void) { pthread_mutex_lock(&writable_lock); }
static void after_fork(void) { pthread_mutex_unlock(&writable_lock); }
static void after_fork_in_child(void) {
    fork_generation++;
    for (const sl_map *m = writable_maps; m; m = m->next_writable) /* refused where something else is there by now: then it is not ours to replace */
        mmap(m->segment, m->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    writable_maps = NULL;
    pthread_mutex_unlock(&writable_lock);
}
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static void register_fork_handler(void) { pthread_atfork(before_fork, after_fork, after_fork_in_child); }

int sl_cluster_check(sl_cluster *c) { return c->fork_generation == fork_generation ? SL_OK : SL_E_FORKED; }

/* ---- frozen headers ---- */

int sl_object_format(void *memory, uint64_t bytes, uint32_t kind, uint64_t object_id, const uint8_t cluster_id[16], const char *owner_lock) {
    sl_object_header *h = memory;
    if (bytes < sizeof *h) return SL_E_INVALID;
    memset(h, 0, sizeof *h);
    h->magic = SL_MAGIC;
    h->layout_version = SL_LAYOUT_VERSION;
    h->kind = kind;
    int rc = sl_boot_id(h->boot_id);
    if (rc < 0) return rc;
    if (cluster_id) memcpy(h->cluster_id, cluster_id, 16);
    h->object_bytes = bytes;
    h->object_id = object_id;
    h->maker_pid = (uint32_t)getpid();
    h->maker_start_ticks = sl_start_ticks(h->maker_pid);
    h->owner_uid = (uint32_t)geteuid();
    h->made_ns = sl_wall_ns();
    if (owner_lock) strncpy(h->owner_lock, owner_lock, sizeof h->owner_lock - 1);
    h->header_crc = sl_crc32c(0, h, offsetof(sl_object_header, header_crc));
    return SL_OK;
}

void sl_object_ready(void *memory) {
    sl_store_release(&((sl_object_header *)memory)->state, SL_OBJECT_READY); /* SYNC object_ready: pairs with sl_object_check() */
}

int sl_object_check(const void *memory, uint64_t bytes, uint32_t kind) {
    if (bytes < sizeof(sl_object_header)) return SL_E_HALFMADE;
    const sl_object_header *shared = memory;
    uint32_t state = sl_load_acquire(&shared->state); /* SYNC object_ready */
    sl_object_header h;
    memcpy(&h, shared, sizeof h);
    if (state != SL_OBJECT_READY) return state == SL_OBJECT_HALFMADE ? SL_E_HALFMADE : SL_E_DAMAGED;
    if (h.magic != SL_MAGIC) return SL_E_DAMAGED;
    if (h.header_crc != sl_crc32c(0, &h, offsetof(sl_object_header, header_crc))) return SL_E_DAMAGED;
    if (h.layout_version != SL_LAYOUT_VERSION) return SL_E_VERSION;
    uint8_t boot[16];
    int rc = sl_boot_id(boot);
    if (rc < 0) return rc;
    if (memcmp(boot, h.boot_id, 16) != 0) return SL_E_BOOT;
    if (kind && h.kind != kind) return SL_E_DAMAGED;
    if (h.object_bytes > bytes) return SL_E_DAMAGED;
    return SL_OK;
}

/* ---- attach ---- */

/* Opens an object and returns its real size; the fd is closed by the caller after mmap. Never O_CREAT: fs.protected_regular, and it is not ours to make. */
static int open_object(const char *name, int writable, uint64_t *bytes) {
    int fd = shm_open(name, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC, 0);
    if (fd < 0) { sl_set_errno(errno); return errno == ENOENT ? SL_E_NOENT : errno == EACCES || errno == EPERM ? SL_E_OWNER : SL_E_SYS; }
    struct stat st;
    if (fstat(fd, &st) < 0) { sl_set_errno(errno); close(fd); return SL_E_SYS; }
    if (st.st_uid != geteuid() && geteuid() != 0) {
        /* A group may share a cluster (mode 0660); a stranger's object that merely has our name may not be believed. */
        if (!(st.st_mode & S_IRGRP) || (st.st_mode & S_IWOTH)) { close(fd); return SL_E_OWNER; }
    }
    *bytes = (uint64_t)st.st_size;
    return fd;
}

static int attach(const char *prefix, const char *suffix, uint32_t kind, uint64_t map_bytes, void **out) {
    char name[128];
    uint64_t bytes;
    snprintf(name, sizeof name, "%s.%s", prefix, suffix);
    int fd = open_object(name, 1, &bytes);
    if (fd < 0) return fd;
    if (bytes < map_bytes) { close(fd); return SL_E_HALFMADE; } /* a table is as long as it may ever become: no word in it leads beyond its end */
    void *p = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int saved = errno;
    close(fd);
    if (p == MAP_FAILED) { sl_set_errno(saved); return SL_E_SYS; }
    int rc = sl_object_check(p, bytes, kind);
    if (rc < 0) { munmap(p, map_bytes); return rc; }
    madvise(p, map_bytes, MADV_DONTFORK);
    *out = p;
    return SL_OK;
}

#define PARTITIONS_BYTES (SL_TABLE_HEADER_BYTES + (uint64_t)SL_MAX_PARTITIONS * sizeof(sl_partition))
#define WAITS_BYTES (SL_TABLE_HEADER_BYTES + (uint64_t)SL_MAX_PARTITIONS * sizeof(sl_waits))
#define ROWS_BYTES (SL_TABLE_HEADER_BYTES + (uint64_t)SL_MAX_ROWS * sizeof(sl_row))

#define METERS_BYTES (SL_TABLE_HEADER_BYTES + (uint64_t)SL_MAX_METERS * sizeof(sl_meter))

static void detach(sl_cluster *c) {
    if (c->control) munmap(c->control, sizeof *c->control);
    if (c->partitions) munmap(c->partitions, PARTITIONS_BYTES);
    if (c->waits) munmap(c->waits, WAITS_BYTES);
    if (c->rows) munmap(c->rows, ROWS_BYTES);
    if (c->meters) munmap(c->meters, METERS_BYTES);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

int sl_cluster_open(const char *prefix, sl_cluster **out) {
    pthread_once(&fork_once, register_fork_handler);
    if (prefix[0] != '/' || strlen(prefix) >= sizeof ((sl_cluster *)0)->prefix) return SL_E_INVALID;
    sl_cluster *c = calloc(1, sizeof *c);
    if (!c) return SL_E_NOMEM;
    strcpy(c->prefix, prefix);
    static uint64_t serials;
    c->serial = sl_fetch_add_relaxed(&serials, 1) + 1;
    c->fork_generation = fork_generation;
    pthread_mutex_init(&c->lock, NULL);
    int rc = attach(prefix, "control", SL_KIND_CONTROL, sizeof(sl_control), (void **)&c->control);
    if (rc == SL_OK) rc = attach(prefix, "partitions", SL_KIND_PARTITIONS, PARTITIONS_BYTES, (void **)&c->partitions);
    if (rc == SL_OK) rc = attach(prefix, "waits", SL_KIND_WAITS, WAITS_BYTES, (void **)&c->waits);
    if (rc == SL_OK) rc = attach(prefix, "rows", SL_KIND_ROWS, ROWS_BYTES, (void **)&c->rows);
    if (rc == SL_OK && (memcmp(c->control->header.cluster_id, c->partitions->header.cluster_id, 16) ||
                        memcmp(c->control->header.cluster_id, c->waits->header.cluster_id, 16) ||
                        memcmp(c->control->header.cluster_id, c->rows->header.cluster_id, 16)))
        rc = SL_E_HALFMADE; /* objects of two lives of a cluster: one is being made just now */
    if (rc < 0) { detach(c); return rc; }
    /* Statistics: nobody fails because they are missing, damaged or of another life. */
    if (attach(prefix, "meters", SL_KIND_METERS, METERS_BYTES, (void **)&c->meters) == SL_OK &&
        memcmp(c->control->header.cluster_id, c->meters->header.cluster_id, 16)) { munmap(c->meters, METERS_BYTES); c->meters = NULL; }
    *out = c;
    return SL_OK;
}

static void unmap(sl_map *m) {
    if (m->writable) {
        pthread_mutex_lock(&writable_lock);
        sl_map **at = &writable_maps;
        while (*at != m) at = &(*at)->next_writable;
        *at = m->next_writable;
        pthread_mutex_unlock(&writable_lock);
    }
    munmap(m->segment, m->bytes);
    free(m);
}

void sl_cluster_close(sl_cluster *c) {
    if (sl_cluster_check(c) < 0) return; /* a forked child: the mappings are not there, the cache is the parent's copy */
    for (int b = 0; b < MAP_BUCKETS; b++)
        for (sl_map *m = c->maps[b], *next; m; m = next) {
            next = m->next;
            if (m->users == 0) unmap(m); /* one in use is leased: it stays mapped for as long as the process lives */
        }
    detach(c);
}

sl_control *sl_cluster_control(sl_cluster *c) { return c->control; }
const char *sl_cluster_prefix(sl_cluster *c) { return c->prefix; }
uint64_t sl_cluster_serial(sl_cluster *c) { return c->serial; }

static void *table_entry(sl_table *t, uint32_t index, uint32_t max, uint64_t entry_bytes) {
    if (index >= max || index >= sl_load_acquire(&t->allocated)) return NULL; /* pairs with the release after posix_fallocate in shm.py */
    return (uint8_t *)t + SL_TABLE_HEADER_BYTES + index * entry_bytes;
}
sl_partition *sl_cluster_partition(sl_cluster *c, uint32_t block) { return table_entry(c->partitions, block, SL_MAX_PARTITIONS, sizeof(sl_partition)); }
sl_waits *sl_cluster_waits(sl_cluster *c, uint32_t block) { return table_entry(c->waits, block, SL_MAX_PARTITIONS, sizeof(sl_waits)); }
sl_row *sl_cluster_row(sl_cluster *c, uint32_t row) { return table_entry(c->rows, row, SL_MAX_ROWS, sizeof(sl_row)); }

sl_meter *sl_cluster_meter(sl_cluster *c, uint32_t index) { return c->meters ? table_entry(c->meters, index, SL_MAX_METERS, sizeof(sl_meter)) : NULL; }
uint32_t sl_cluster_meters(sl_cluster *c) {
    uint32_t n = c->meters ? sl_load_acquire(&c->meters->allocated) : 0;
    return n < SL_MAX_METERS ? n : SL_MAX_METERS;
}

static uint32_t table_used(sl_table *t, uint32_t max) {
    uint32_t used = sl_load_sc(&t->used), allocated = sl_load_acquire(&t->allocated);
    if (used > allocated) used = allocated;
    return used > max ? max : used;
}
uint32_t sl_cluster_partitions_used(sl_cluster *c) { return table_used(c->partitions, SL_MAX_PARTITIONS); }
uint32_t sl_cluster_rows_used(sl_cluster *c) { return table_used(c->rows, SL_MAX_ROWS); }

/* ---- segments ---- */

void sl_segment_geometry(uint64_t bytes, uint32_t *cell_count, uint32_t *arena_position, uint32_t *arena_units) {
    /* A cell for each 128 bytes of arena, which is what a 100-byte value takes; at most 2^18 of them where records are large. */
    uint64_t cells = (bytes - SL_SEGMENT_HEADER_BYTES) / (128 + 8);
    if (cells > (1u << 18)) cells = 1u << 18;
    cells &= ~UINT64_C(7);
    *cell_count = (uint32_t)cells;
    *arena_position = (uint32_t)(SL_SEGMENT_HEADER_BYTES + cells * 8); /* a multiple of 64 */
    *arena_units = (uint32_t)((bytes - *arena_position) / SL_UNIT_BYTES);
}

static void segment_name(sl_cluster *c, uint32_t buffer, char name[128]) { snprintf(name, 128, "%s.s%u", c->prefix, buffer); }

int64_t sl_segment_make(sl_cluster *c, uint64_t bytes) {
    if (bytes < SL_SEGMENT_MIN_BYTES || bytes > SL_SEGMENT_MAX_BYTES || bytes % 4096) return SL_E_INVALID;
    uint64_t id = sl_fetch_add_sc(&c->control->next_buffer_id, 1) + 1;
    if (id > 0xfffffff) return SL_E_NO_SLOT;
    char name[128], path[160], self[40];
    segment_name(c, (uint32_t)id, name);
    /* Without a name until it is whole: memory for a large one takes many milliseconds, and a maker killed meanwhile leaves nothing. */
    int fd = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), unnamed = fd >= 0;
    if (!unnamed) fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600); /* a sandbox without O_TMPFILE */
    if (fd < 0) { sl_set_errno(errno); return SL_E_SYS; }
    snprintf(path, sizeof path, "/dev/shm%s", name);
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    int rc = SL_OK, saved = 0;
    struct stat st;
    /* Nobody else's, whatever the umask; real allocation, so that no store can ever fault. */
    if (fchmod(fd, 0600) < 0) { saved = errno; rc = SL_E_SYS; }
    if (rc == SL_OK && (saved = posix_fallocate(fd, 0, (off_t)bytes)) != 0) rc = saved == ENOSPC || saved == ENOMEM ? SL_E_SHM_FULL : SL_E_SYS;
    if (rc == SL_OK && (fstat(fd, &st) < 0 || (uint64_t)st.st_size != bytes)) { saved = errno; rc = SL_E_SYS; }
    void *p = MAP_FAILED;
    if (rc == SL_OK) {
        p = mmap(NULL, SL_SEGMENT_HEADER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED) { saved = errno; rc = SL_E_SYS; }
    }
    if (rc < 0) {
        close(fd);
        if (!unnamed) shm_unlink(name);
        sl_set_errno(saved);
        return rc;
    }
    sl_segment *s = p;
    rc = sl_object_format(s, bytes, SL_KIND_SEGMENT, id, c->control->header.cluster_id, c->control->header.owner_lock);
    if (rc == SL_OK) {
        sl_segment_geometry(bytes, &s->cell_count, &s->arena_position, &s->arena_units); /* for dump; nobody computes with these */
        s->claim = sl_claim_make(SL_SEGMENT_FREE, 0, UINT32_MAX, 0);
        sl_object_ready(s);
    }
    munmap(p, SL_SEGMENT_HEADER_BYTES);
    if (rc == SL_OK && unnamed && linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW) < 0) { sl_set_errno(errno); rc = SL_E_SYS; }
    close(fd);
    if (rc < 0) { if (!unnamed) shm_unlink(name); return rc; }
    return (int64_t)id;
}

int sl_segment_unlink(sl_cluster *c, uint32_t buffer) {
    char name[128];
    segment_name(c, buffer, name);
    if (shm_unlink(name) == 0) return SL_OK;
    if (errno == ENOENT) return SL_E_NOENT;
    sl_set_errno(errno);
    return SL_E_SYS;
}

/* ---- the cache of mappings: a buffer id is never given twice, so a client maps a buffer once ---- */

static void evict_idle(sl_cluster *c) {
    for (int b = 0; b < MAP_BUCKETS && c->idle_maps > IDLE_MAPS_MAX / 2; b++)
        for (sl_map **at = &c->maps[b]; *at;) {
            sl_map *m = *at;
            if (m->users) { at = &m->next; continue; }
            *at = m->next;
            c->idle_maps--;
            unmap(m);
        }
}

int sl_map_get(sl_cluster *c, uint32_t buffer, int writable, sl_map **out) {
#ifdef __SANITIZE_THREAD__
    writable = 1; /* one mapping for readers and producers: ThreadSanitizer goes by addresses */
#endif
    sl_map **bucket = &c->maps[(buffer * 2 + (writable ? 1 : 0)) % MAP_BUCKETS];
    pthread_mutex_lock(&c->lock);
    for (sl_map *m = *bucket; m; m = m->next)
        if (m->buffer == buffer && m->writable == (writable ? 1 : 0)) {
            if (m->users++ == 0) c->idle_maps--;
            pthread_mutex_unlock(&c->lock);
            *out = m;
            return SL_OK;
        }
    int rc = SL_OK;
    sl_map *m = NULL;
    char name[128];
    uint64_t bytes = 0;
    segment_name(c, buffer, name);
    int fd = open_object(name, writable, &bytes);
    if (fd < 0) rc = fd;
    else if (bytes < SL_SEGMENT_MIN_BYTES || bytes > SL_SEGMENT_MAX_BYTES) { close(fd); rc = SL_E_HALFMADE; }
    else if (!(m = calloc(1, sizeof *m))) { close(fd); rc = SL_E_NOMEM; }
    else {
        void *p = mmap(NULL, bytes, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
        int saved = errno;
        close(fd);
        if (p == MAP_FAILED) { sl_set_errno(saved); free(m); rc = SL_E_SYS; }
        else if ((rc = sl_object_check(p, bytes, SL_KIND_SEGMENT)) < 0 || ((sl_segment *)p)->header.object_id != buffer) {
            munmap(p, bytes);
            free(m);
            if (rc == SL_OK) rc = SL_E_DAMAGED;
        } else {
            uint32_t arena_position;
            m->segment = p;
            m->bytes = bytes;
            m->buffer = buffer;
            m->writable = writable ? 1 : 0;
            m->users = 1;
            sl_segment_geometry(bytes, &m->cell_count, &arena_position, &m->arena_units);
            m->cells = sl_segment_cells(p);
            m->arena = (uint8_t *)p + arena_position;
            if (writable) {
                pthread_mutex_lock(&writable_lock);
                madvise(p, bytes, MADV_DONTFORK);
                m->next_writable = writable_maps;
                writable_maps = m;
                pthread_mutex_unlock(&writable_lock);
            }
            m->next = *bucket;
            *bucket = m;
            *out = m;
        }
    }
    pthread_mutex_unlock(&c->lock);
    return rc;
}

void sl_map_put(sl_cluster *c, sl_map *m) {
    pthread_mutex_lock(&c->lock);
    SL_ASSERT(m->users > 0);
    if (--m->users == 0 && ++c->idle_maps > IDLE_MAPS_MAX) evict_idle(c);
    pthread_mutex_unlock(&c->lock);
}
