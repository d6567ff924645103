/* The library for C programs: shmlog.h over the core. It adds names (client.c), waiting in slices that notice the cluster's death, and sentences for codes; how
 * records get in and out is append.c and reader.c.
 *
 * Each handle has a row of its own (a thread's hazard words, a reader's pin), taken from the process's pool, which asks the coordinator when it is empty. A
 * cluster is counted by its handles and goes with the last of them, so that they may be closed in any order.
 *
 * Every function looks first whether it still runs in the process that opened the handle: the tables are not mapped in a forked child, and touching them
 * would be a fault. */
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "atomic.h"
#include "client.h"
#include "shmlog.h"

#define SLICE_NS INT64_C(100000000)     /* a wait looks this often whether the cluster lives */
#define DEAD_NS INT64_C(5000000000)     /* no coordinator has given a sign of life for so long: ask /proc */
#define START_NS INT64_C(10000000000)   /* how long connecting waits for a cluster that is just coming up */
#define END_NS INT64_C(2000000000)      /* giving rows back is a courtesy: the coordinator takes them when the process ends */
#define SPIN_NS INT64_C(100000)
#define FENCED_NS INT64_C(2000000)
#define MOST_WAITED 64                  /* consumers in one wait that need no memory */

_Static_assert(SHMLOG_E_FORKED == SL_E_FORKED && SHMLOG_E_REFUSED == SL_E_REFUSED && SHMLOG_E_AGAIN == SL_E_AGAIN && SHMLOG_E_CONFLICT == SL_E_CONFLICT,
               "the codes of shmlog.h are those of core.h");
_Static_assert(sizeof(shmlog_loan) == sizeof(sl_loan) && offsetof(shmlog_loan, value) == offsetof(sl_loan, value), "a shmlog_loan is an sl_loan");
#define SAME(field) _Static_assert(offsetof(shmlog_view, field) == offsetof(sl_view, field), "a shmlog_view is an sl_view")
SAME(offset); SAME(timestamp_ns); SAME(key); SAME(value); SAME(headers); SAME(dtype); SAME(key_bytes); SAME(producer_id); SAME(flags); SAME(frame_rows);
_Static_assert(sizeof(shmlog_view) == sizeof(sl_view), "a shmlog_view is an sl_view");

typedef struct pooled { uint32_t row, kind; int used; } pooled;

struct shmlog_cluster {
    sl_cluster *core;
    char name[33], namespace_[33];
    uint32_t users;              /* handles, and the program until it disconnects */
    pthread_mutex_t lock;        /* of the pool */
    pooled *rows;
    size_t row_count, row_room;
};

#define PRODUCES 1               /* sl_row.kind */
#define CONSUMES 2

/* What a producer and a consumer have in common: a partition and a row. */
typedef struct handle {
    shmlog_cluster *cluster;
    sl_cluster *core;
    sl_partition *words;
    char topic[SL_NAME_MAX_BYTES]; /* internal name */
    uint32_t partition, row;
    sl_place place;
} handle;

struct shmlog_producer {
    handle h;
    sl_appender *appender;
    uint64_t appended;           /* end of what this producer appended; 0 nothing */
    uint8_t *headers;            /* encoded, of the record in hand */
    size_t headers_room;
    sl_loan loans[SL_VIEW_PINS]; /* by pin: value NULL is none */
};

struct shmlog_consumer {
    handle h;
    sl_reader *reader;
    uint32_t flags;
    uint32_t woken;              /* shmlog_wakeup() sets it, whoever waits takes it */
};

/* ---- codes and sentences ---- */

static __thread char sentence[512];

static int fail(int code, const char *what, ...) __attribute__((format(printf, 2, 3)));
static int fail(int code, const char *what, ...) {
    va_list args;
    va_start(args, what);
    int n = vsnprintf(sentence, sizeof sentence, what, args);
    va_end(args);
    if ((code == SL_E_SYS || code == SL_E_IO) && sl_last_errno() && n >= 0 && (size_t)n < sizeof sentence)
        snprintf(sentence + n, sizeof sentence - (size_t)n, " (%s)", strerror(sl_last_errno()));
    return code;
}
static int fail_code(const handle *h, int code) { return fail(code, "%s-%u: %s", h->topic, h->partition, shmlog_strerror(code)); }
static int forked(void) { return fail(SL_E_FORKED, "this handle was opened before a fork, and belongs to the parent process"); }

int shmlog_api_version(void) { return SHMLOG_API_VERSION; }
const char *shmlog_error(void) { return sentence; }
const char *shmlog_strerror(int code) { return code == SL_E_REFUSED ? "the coordinator refused" : sl_strerror(code); }

/* ---- time and death ---- */

static int64_t deadline_of(int64_t timeout_ns) {
    int64_t now = sl_monotonic_ns();
    return timeout_ns <= 0 ? now : timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
}

static int gone(shmlog_cluster *c) { return fail(SL_E_GONE, "cluster %s was shut down", c->name); }

static int lifeless(shmlog_cluster *c) {
    return fail(SL_E_GONE, "no process of cluster %s lives any more; what was appended is kept: `shmlog up --cluster %s` resumes with it", c->name, c->name);
}

/* Between the slices of a wait. Death is not guessed: a coordinator is dead when /proc says that this very process is no more. */
static int still_there(shmlog_cluster *c) {
    sl_control *control = sl_cluster_control(c->core);
    if (sl_load_acquire(&control->cluster_state) == SL_CLUSTER_DOWN) return gone(c);
    if (sl_monotonic_ns() - (int64_t)sl_load_relaxed(&control->coordinator_alive_ns) < DEAD_NS || sl_cluster_alive(c->core)) return SL_OK;
    return lifeless(c);
}
/* A request, or a search in the metadata, has failed. */
static int request_failed(shmlog_cluster *c, int code, const char *what, const char *why) {
    if (code == SL_E_GONE) return sl_load_acquire(&sl_cluster_control(c->core)->cluster_state) == SL_CLUSTER_DOWN ? gone(c) : lifeless(c);
    return fail(code, "cluster %s: %s: %s", c->name, what, *why ? why : shmlog_strerror(code));
}

/* ---- cluster ---- */

static void cluster_put(shmlog_cluster *c) {
    if (sl_cluster_check(c->core) < 0) { /* the parent's mappings and rows; only the memory is ours, and not all of it can be known to be unused */
        return;
    }
    if (__atomic_sub_fetch(&c->users, 1, __ATOMIC_ACQ_REL)) return;
    uint32_t rows[256];
    for (size_t i = 0, n = 0; i < c->row_count; i++) {
        rows[n++] = c->rows[i].row;
        if (n < 256 && i + 1 < c->row_count) continue;
        if (sl_load_acquire(&sl_cluster_control(c->core)->cluster_state) == SL_CLUSTER_DOWN || !sl_cluster_alive(c->core)) break;
        if (sl_ask_unregister(c->core, rows, n, sl_monotonic_ns() + END_NS) < 0) break;
        n = 0;
    }
    sl_cluster_close(c->core);
    pthread_mutex_destroy(&c->lock);
    free(c->rows);
    free(c);
}

int shmlog_connect(const char *address, shmlog_cluster **out) {
    if (!out) return fail(SL_E_INVALID, "shmlog_connect: out is NULL");
    *out = NULL;
    shmlog_cluster *c = calloc(1, sizeof *c);
    if (!c) return fail(SL_E_NOMEM, "out of memory");
    int rc = sl_address_parse(address, c->name, c->namespace_);
    if (rc < 0) {
        free(c);
        return fail(rc, "\"%.80s\" is not an address: shm://name or shm://name/namespace, each 1 to 32 letters, digits, '_' and '-'",
                    address ? address : "$SHMLOG_CLUSTER");
    }
    char prefix[96];
    snprintf(prefix, sizeof prefix, "/shmlog.%u.%s", (unsigned)getuid(), c->name);
    rc = sl_cluster_open(prefix, &c->core);
    if (rc < 0) {
        if (rc == SL_E_NOENT || rc == SL_E_BOOT || rc == SL_E_HALFMADE || rc == SL_E_DAMAGED)
            rc = fail(SL_E_NOENT, "no cluster '%s' is running for user %u; start it with `shmlog up --cluster %s`", c->name, (unsigned)getuid(), c->name);
        else if (rc == SL_E_VERSION) fail(rc, "cluster '%s' runs with another memory layout; this library knows layout %d", c->name, SL_LAYOUT_VERSION);
        else fail(rc, "cluster '%s': %s", c->name, sl_strerror(rc));
        free(c);
        return rc;
    }
    pthread_mutex_init(&c->lock, NULL);
    c->users = 1;
    sl_control *control = sl_cluster_control(c->core);
    int64_t deadline_ns = sl_monotonic_ns() + START_NS;
    for (;;) {
        uint32_t changes = sl_load_sc(&control->view_changes), state = sl_load_sc(&control->cluster_state);
        if (state == SL_CLUSTER_DOWN) rc = gone(c);
        else if (!sl_cluster_alive(c->core)) rc = lifeless(c);
        else if (sl_load_sc(&control->view_version) && state != SL_CLUSTER_STARTING) break;
        else if (sl_monotonic_ns() > deadline_ns) rc = fail(SL_E_TIMEOUT, "cluster %s has been starting for %d s and is not up", c->name, (int)(START_NS / 1000000000));
        else rc = sl_view_wait(c->core, changes, sl_monotonic_ns() + SLICE_NS);
        if (rc == SL_E_INTR) fail(rc, "%s", sl_strerror(rc));
        if (rc < 0 && rc != SL_E_TIMEOUT) { cluster_put(c); return rc; }
        if (rc == SL_E_TIMEOUT && sl_monotonic_ns() > deadline_ns) { cluster_put(c); return rc; }
    }
    *out = c;
    return SL_OK;
}

void shmlog_disconnect(shmlog_cluster *c) { if (c) cluster_put(c); }

/* The pool has room for one more row, which is in use. */
static int add_row(shmlog_cluster *c, uint32_t row, uint32_t kind) {
    pthread_mutex_lock(&c->lock);
    int fits = c->row_count < c->row_room;
    if (!fits) {
        size_t room = c->row_room ? 2 * c->row_room : 8;
        pooled *more = realloc(c->rows, room * sizeof *more);
        if (more) { c->rows = more; c->row_room = room; fits = 1; }
    }
    if (fits) c->rows[c->row_count++] = (pooled){row, kind, 1};
    pthread_mutex_unlock(&c->lock);
    return fits;
}

/* A row for a handle. The lock is not held over the request: whoever opens or closes another handle meanwhile has a timeout of his own, or none. */
static int take_row(shmlog_cluster *c, uint32_t kind, int64_t deadline_ns, uint32_t *row) {
    char why[256] = "";
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; i < c->row_count; i++)
        if (c->rows[i].kind == kind && !c->rows[i].used) {
            c->rows[i].used = 1;
            *row = c->rows[i].row;
            pthread_mutex_unlock(&c->lock);
            return SL_OK;
        }
    pthread_mutex_unlock(&c->lock);
    int64_t rc = sl_ask_row(c->core, kind, deadline_ns, why);
    if (rc >= 0 && !sl_cluster_row(c->core, (uint32_t)rc)) rc = SL_E_DAMAGED;
    if (rc >= 0 && !add_row(c, (uint32_t)rc, kind)) {
        uint32_t back = (uint32_t)rc;
        sl_ask_unregister(c->core, &back, 1, sl_monotonic_ns() + END_NS);
        rc = SL_E_NOMEM;
    }
    if (rc < 0) return request_failed(c, (int)rc, "registering", why);
    *row = (uint32_t)rc;
    return SL_OK;
}

static void give_row(shmlog_cluster *c, uint32_t row) {
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; i < c->row_count; i++) if (c->rows[i].row == row) c->rows[i].used = 0;
    pthread_mutex_unlock(&c->lock);
}

/* Fills in the handle: the partition by name, waiting for it or making its topic; then a row. On success a use of the cluster is counted. */
static int handle_open(handle *h, shmlog_cluster *c, const char *topic, uint32_t partition, uint32_t kind, int create, int64_t timeout_ns) {
    if (!c || !topic) return fail(SL_E_INVALID, "the cluster or the topic is NULL");
    if (sl_cluster_check(c->core) < 0) return forked();
    if (!sl_topic_name_ok(topic))
        return fail(SL_E_INVALID, "\"%.80s\" is not a topic name: 1 to 249 of letters, digits, '.', '_' and '-', and not '.' or '..'", topic);
    int64_t deadline_ns = deadline_of(timeout_ns);
    h->cluster = c;
    h->core = c->core;
    h->partition = partition;
    snprintf(h->topic, sizeof h->topic, "%s%s%s", c->namespace_, *c->namespace_ ? "/" : "", topic);
    sl_control *control = sl_cluster_control(c->core);
    for (int asked = 0;;) {
        uint32_t changes = sl_load_sc(&control->view_changes);
        int rc = sl_place_find(c->core, h->topic, partition, &h->place);
        if (rc == SL_OK) {
            h->words = sl_cluster_partition(c->core, h->place.block);
            if (!h->words) return fail(SL_E_DAMAGED, "%s-%u: the metadata names block %u, which there is not", h->topic, partition, h->place.block);
            /* Readers need to know where the files are, and that is where the leader is. */
            if (kind == PRODUCES || *h->place.directory || !(sl_load_relaxed(&h->words->flags) & SL_PF_SPILL)) break;
            rc = SL_E_FENCED;
        }
        if (rc == SL_E_RANGE) return fail(SL_E_NOENT, "topic '%s' has %u partitions, and no partition %u", topic, h->place.partitions, partition);
        if (rc != SL_E_NOENT && rc != SL_E_FENCED) return request_failed(c, rc, "its metadata", "");
        if (rc == SL_E_NOENT && create) {
            char why[256] = "";
            if (!h->place.auto_create) return fail(SL_E_NOENT, "there is no topic '%s', and auto.create.topics.enable is false", topic);
            if (asked++) return fail(SL_E_DELETED, "topic '%s' was deleted as soon as it was made", topic);
            rc = sl_ask_topic(c->core, h->topic, deadline_ns, why);
            if (rc < 0) return request_failed(c, rc, "making the topic", why);
            continue;
        }
        int64_t now = sl_monotonic_ns();
        if (now >= deadline_ns) return fail(rc, rc == SL_E_NOENT ? "there is no topic '%s' in cluster %s" : "topic '%s' of cluster %s has no leader", topic, c->name);
        int there = still_there(c);
        if (there < 0) return there;
        if (sl_view_wait(c->core, changes, deadline_ns < now + SLICE_NS ? deadline_ns : now + SLICE_NS) == SL_E_INTR)
            return fail(SL_E_INTR, "%s", sl_strerror(SL_E_INTR));
    }
    int rc = take_row(c, kind, deadline_ns, &h->row);
    if (rc < 0) return rc;
    __atomic_add_fetch(&c->users, 1, __ATOMIC_RELAXED);
    return SL_OK;
}

static void handle_close(handle *h) {
    give_row(h->cluster, h->row);
    cluster_put(h->cluster);
}

static int offsets_of(handle *h, int64_t *start, int64_t *end) {
    sl_offsets o;
    int rc = sl_log_offsets(h->core, h->row, h->place.block, &o);
    if (rc < 0) return fail_code(h, rc);
    uint32_t flags = sl_load_relaxed(&h->words->flags);
    *start = (int64_t)o.log_start;
    *end = (int64_t)((flags & SL_PF_REPLICATED) && !(flags & SL_PF_APPENDED) ? o.high_watermark : o.end);
    if (*end < *start) *end = *start;
    return SL_OK;
}

/* ---- producing ---- */

int shmlog_producer_open(shmlog_cluster *cluster, const char *topic, uint32_t partition, uint32_t flags, int64_t timeout_ns, shmlog_producer **out) {
    if (!out || (flags & ~SHMLOG_NO_CREATE)) return fail(SL_E_INVALID, "shmlog_producer_open: out is NULL, or flags this library does not know");
    *out = NULL;
    shmlog_producer *p = calloc(1, sizeof *p);
    if (!p) return fail(SL_E_NOMEM, "out of memory");
    int rc = handle_open(&p->h, cluster, topic, partition, PRODUCES, !(flags & SHMLOG_NO_CREATE), timeout_ns);
    if (rc < 0) { free(p); return rc; }
    rc = sl_appender_open(cluster->core, p->h.row, p->h.place.block, p->h.place.topic_id, &p->appender);
    if (rc < 0) {
        fail_code(&p->h, rc);
        handle_close(&p->h);
        free(p);
        return rc;
    }
    *out = p;
    return SL_OK;
}

void shmlog_producer_close(shmlog_producer *p) {
    if (!p) return;
    if (sl_cluster_check(p->h.core) == SL_OK) for (int i = 0; i < SL_VIEW_PINS; i++) if (p->loans[i].value) sl_loan_drop(p->appender, &p->loans[i]);
    sl_appender_close(p->appender);
    if (sl_cluster_check(p->h.core) == SL_OK) handle_close(&p->h);
    free(p->headers);
    free(p);
}

/* Headers in the log's encoding: u16 count, then (u16 bytes, name)(u32 bytes or SL_NULL_BYTES, value) each. */
static int encode_headers(shmlog_producer *p, const shmlog_record *from, sl_record *to) {
    uint64_t bytes = 2;
    if (from->header_count > UINT16_MAX || !from->headers) return SL_E_INVALID;
    for (uint32_t i = 0; i < from->header_count; i++) {
        const shmlog_header *h = &from->headers[i];
        if (h->name_bytes > UINT16_MAX || (h->name_bytes && !h->name) || (h->value && h->value_bytes == SL_NULL_BYTES)) return SL_E_INVALID;
        bytes += 6 + (uint64_t)h->name_bytes + (h->value ? h->value_bytes : 0);
    }
    if (bytes > UINT32_MAX - 64) return SL_E_TOO_BIG;
    if (bytes > p->headers_room) {
        uint8_t *more = realloc(p->headers, (size_t)bytes);
        if (!more) return SL_E_NOMEM;
        p->headers = more;
        p->headers_room = (size_t)bytes;
    }
    uint8_t *at = p->headers;
    uint16_t count = (uint16_t)from->header_count;
    memcpy(at, &count, 2);
    at += 2;
    for (uint32_t i = 0; i < from->header_count; i++) {
        const shmlog_header *h = &from->headers[i];
        uint16_t name_bytes = (uint16_t)h->name_bytes;
        uint32_t value_bytes = h->value ? h->value_bytes : SL_NULL_BYTES;
        memcpy(at, &name_bytes, 2);
        if (name_bytes) memcpy(at + 2, h->name, name_bytes);
        at += 2 + name_bytes;
        memcpy(at, &value_bytes, 4);
        if (h->value && value_bytes) memcpy(at + 4, h->value, value_bytes);
        at += 4 + (h->value ? value_bytes : 0);
    }
    to->headers = p->headers;
    to->headers_bytes = (uint32_t)bytes;
    return SL_OK;
}

static inline int record_of(shmlog_producer *p, const shmlog_record *from, sl_record *to) {
    *to = (sl_record){.key = from->key, .value = from->value, .key_bytes = from->key ? from->key_bytes : 0, .value_bytes = from->value_bytes,
                      .timestamp_ns = from->timestamp_ns, .producer_id = -1, .sequence = -1, .producer_epoch = -1};
    if (sl_unlikely(from->timestamp_ns < 0)) return SL_E_INVALID;
    return sl_likely(from->header_count == 0) ? SL_OK : encode_headers(p, from, to);
}

/* One of the three ways into the log, so that waiting for room is written once. */
typedef struct attempt { shmlog_producer *p; const sl_record *record; sl_loan *take, *publish; int64_t expected_offset; sl_append_result result; } attempt;

static int try_once(attempt *a, int64_t deadline_ns) {
    if (a->take) return sl_loan_take(a->p->appender, a->record, deadline_ns, a->take, &a->result);
    if (a->publish) return sl_loan_publish(a->p->appender, a->publish, a->record, a->expected_offset, deadline_ns, &a->result);
    return sl_append(a->p->appender, a->record, a->expected_offset, deadline_ns, &a->result);
}

static int append_failed(attempt *a, int code) {
    const char *topic = a->p->h.topic;
    unsigned partition = a->p->h.partition;
    unsigned long long needed = a->result.needed_bytes, have = a->result.free_bytes;
    switch (code) {
    case SL_E_CONFLICT: return fail(code, "%s-%u: the log ends at offset %lld, not at %lld", topic, partition, (long long)a->result.offset, (long long)a->expected_offset);
    case SL_E_TOO_BIG: return fail(code, "%s-%u: a record of %llu bytes; max.message.bytes is %llu", topic, partition, needed, have);
    case SL_E_SHM_FULL: return fail(code, "%s-%u: no room in shared memory: %llu bytes needed, %llu free", topic, partition, needed, have);
    case SL_E_DISK_FULL: return fail(code, "%s-%u: no room on the log's disk: %llu bytes needed, %llu free", topic, partition, needed, have);
    case SL_E_RING_FULL: return fail(code, "%s-%u: the partition's memory is full and shmlog.full=raise", topic, partition);
    case SL_E_GONE: return gone(a->p->h.cluster);
    case SL_E_FORKED: return forked();
    default: return fail_code(&a->p->h, code);
    }
}

/* Goes on with what did not happen at once, in slices, up to the timeout. */
static int go_on(attempt *a, int code, int64_t timeout_ns) {
    handle *h = &a->p->h;
    int64_t deadline_ns = deadline_of(timeout_ns);
    sl_control *control = sl_cluster_control(h->core);
    while (code < 0) {
        int wait = code == SL_E_AGAIN || code == SL_E_TIMEOUT || code == SL_E_FENCED || code == SL_E_BEHIND || code == SL_E_DISK_FULL || code == SL_E_SHM_FULL || code == SL_E_IO;
        int64_t now = sl_monotonic_ns();
        if (!wait || now >= deadline_ns) return append_failed(a, code);
        int rc = still_there(h->cluster);
        if (rc < 0) return rc;
        int64_t until = deadline_ns < now + SLICE_NS ? deadline_ns : now + SLICE_NS;
        if (code == SL_E_FENCED && /* fails at once; a new leader bumps the word that sl_view_wait() sleeps on */
            sl_view_wait(h->core, sl_load_sc(&control->view_changes), until < now + FENCED_NS ? until : now + FENCED_NS) == SL_E_INTR) return append_failed(a, SL_E_INTR);
        code = try_once(a, until);
    }
    return SL_OK;
}

/* Every append and loan: checked arguments, a try that does not even look at the clock, then the slow way. */
static inline int do_append(attempt *a, const shmlog_record *record, int64_t timeout_ns) {
    sl_record r;
    if (sl_unlikely(sl_cluster_check(a->p->h.core) < 0)) return forked();
    if (sl_unlikely(!record || a->expected_offset < -1 || a->expected_offset > (int64_t)SL_OFFSET_MASK))
        return fail(SL_E_INVALID, "%s-%u: the record is NULL, or expected_offset %lld is no offset", a->p->h.topic, a->p->h.partition, (long long)a->expected_offset);
    a->record = &r;
    int rc = record_of(a->p, record, &r);
    if (sl_unlikely(rc < 0)) return fail_code(&a->p->h, rc);
    rc = try_once(a, 0);
    return sl_likely(rc == SL_OK) ? rc : go_on(a, rc, timeout_ns);
}

static inline int64_t appended(attempt *a) {
    if ((uint64_t)a->result.offset >= a->p->appended) a->p->appended = (uint64_t)a->result.offset + 1;
    return a->result.offset;
}

int64_t shmlog_append(shmlog_producer *p, const shmlog_record *record, int64_t expected_offset, int64_t timeout_ns) {
    if (sl_unlikely(!p)) return fail(SL_E_INVALID, "shmlog_append: the producer is NULL");
    attempt a = {.p = p, .expected_offset = expected_offset};
    int rc = do_append(&a, record, timeout_ns);
    return sl_likely(rc == SL_OK) ? appended(&a) : rc;
}

int shmlog_loan_take(shmlog_producer *p, const shmlog_record *record, int64_t timeout_ns, shmlog_loan *loan) {
    if (!p || !loan) return fail(SL_E_INVALID, "shmlog_loan_take: the producer or the loan is NULL");
    memset(loan, 0, sizeof *loan);
    attempt a = {.p = p, .take = (sl_loan *)loan, .expected_offset = -1};
    shmlog_record lent;
    if (record) { lent = *record; lent.value = ""; record = &lent; } /* a loan has a value, if only of no bytes */
    int rc = do_append(&a, record, timeout_ns);
    if (rc == SL_OK) p->loans[a.take->pin] = *a.take;
    else loan->value = NULL;
    return rc;
}

/* The loan as we lent it: what stands in the caller's struct may have been scribbled on. */
static sl_loan *loan_of(shmlog_producer *p, shmlog_loan *loan) {
    const sl_loan *given = (const sl_loan *)loan;
    if (!p || !loan || !given->value || given->pin >= SL_VIEW_PINS) return NULL;
    sl_loan *ours = &p->loans[given->pin];
    return memcmp(ours, given, sizeof *ours) == 0 ? ours : NULL;
}

int64_t shmlog_loan_publish(shmlog_producer *p, shmlog_loan *loan, const shmlog_record *record, int64_t expected_offset, int64_t timeout_ns) {
    if (p && sl_cluster_check(p->h.core) < 0) return forked();
    sl_loan *ours = loan_of(p, loan);
    if (!ours) return fail(SL_E_INVALID, "shmlog_loan_publish: not a loan of this producer that is still there");
    attempt a = {.p = p, .publish = ours, .expected_offset = expected_offset};
    int rc = do_append(&a, record, timeout_ns);
    if (rc < 0) return rc;
    loan->value = NULL;
    return appended(&a);
}

void shmlog_loan_drop(shmlog_producer *p, shmlog_loan *loan) {
    sl_loan *ours = loan_of(p, loan);
    if (!ours || sl_cluster_check(p->h.core) < 0) return;
    sl_loan_drop(p->appender, ours);
    loan->value = NULL;
}

int shmlog_flush(shmlog_producer *p, int degree, int64_t timeout_ns) {
    if (!p || (degree != SHMLOG_COMMITTED && degree != SHMLOG_DURABLE)) return fail(SL_E_INVALID, "shmlog_flush: the producer is NULL, or degree %d is none", degree);
    handle *h = &p->h;
    if (sl_cluster_check(h->core) < 0) return forked();
    if (degree == SHMLOG_DURABLE && !(sl_load_relaxed(&h->words->flags) & SL_PF_SPILL))
        return fail(SL_E_INVALID, "%s-%u lives in memory only: it cannot become durable", h->topic, h->partition);
    if (p->appended == 0) return SL_OK;
    int64_t deadline_ns = deadline_of(timeout_ns);
    for (;;) {
        int64_t now = sl_monotonic_ns(), until = deadline_ns < now + SLICE_NS ? deadline_ns : now + SLICE_NS;
        int rc = (degree == SHMLOG_DURABLE ? sl_wait_durable : sl_wait_committed)(h->core, h->row, h->place.block, h->place.topic_id, p->appended, until);
        if (rc == SL_OK) return rc;
        int wait = rc == SL_E_TIMEOUT || rc == SL_E_DISK_FULL || rc == SL_E_IO || rc == SL_E_AGAIN;
        if (!wait || sl_monotonic_ns() >= deadline_ns) return rc == SL_E_GONE ? gone(h->cluster) : fail_code(h, rc);
        if ((rc = still_there(h->cluster)) < 0) return rc;
    }
}

int64_t shmlog_end_offset(shmlog_producer *p) {
    sl_offsets o;
    if (!p) return fail(SL_E_INVALID, "shmlog_end_offset: the producer is NULL");
    if (sl_cluster_check(p->h.core) < 0) return forked();
    int rc = sl_log_offsets(p->h.core, p->h.row, p->h.place.block, &o);
    return rc < 0 ? fail_code(&p->h, rc) : (int64_t)o.end;
}

/* ---- consuming ---- */

static int reader_open(shmlog_consumer *c, uint64_t position) {
    int spills = (sl_load_relaxed(&c->h.words->flags) & SL_PF_SPILL) != 0;
    sl_reader *reader;
    int rc = sl_reader_open(c->h.core, c->h.row, c->h.place.block, c->h.place.topic_id, spills && *c->h.place.directory ? c->h.place.directory : NULL, &reader);
    if (rc < 0) return fail_code(&c->h, rc);
    sl_reader_seek(reader, position);
    if ((c->flags & SHMLOG_TETHER) && !spills && (rc = sl_reader_tether(reader, 1)) < 0) {
        sl_reader_close(reader);
        return fail_code(&c->h, rc);
    }
    if (c->reader) sl_reader_close(c->reader);
    c->reader = reader;
    return SL_OK;
}

/* The metadata changed: the files may be elsewhere now, with another leader. What cannot be known leaves things as they are. */
static int follow_leader(shmlog_consumer *c) {
    sl_place now;
    int rc = sl_place_find(c->h.core, c->h.topic, c->h.partition, &now);
    if (rc < 0 || memcmp(now.topic_id, c->h.place.topic_id, 16) != 0 || now.block != c->h.place.block) {
        if (rc == SL_OK || rc == SL_E_NOENT) c->h.place.version = sl_load_sc(&sl_cluster_control(c->h.core)->view_version); /* the reader finds that it was deleted */
        return SL_OK;
    }
    int moved = *now.directory && strcmp(now.directory, c->h.place.directory) != 0;
    if (!*now.directory) memcpy(now.directory, c->h.place.directory, sizeof now.directory);
    c->h.place = now;
    return moved ? reader_open(c, sl_reader_position(c->reader)) : SL_OK;
}

static int64_t seek(shmlog_consumer *c, int64_t offset) {
    int64_t start, end;
    int rc = offsets_of(&c->h, &start, &end);
    if (rc < 0) return rc;
    if (offset == SHMLOG_START) offset = start;
    else if (offset == SHMLOG_END) offset = end;
    if (offset < start || offset > end)
        return fail(SL_E_RANGE, "%s-%u: offset %lld is outside the log, which holds %lld to %lld", c->h.topic, c->h.partition, (long long)offset, (long long)start, (long long)end);
    sl_reader_seek(c->reader, (uint64_t)offset);
    return offset;
}

int shmlog_consumer_open(shmlog_cluster *cluster, const char *topic, uint32_t partition, int64_t offset, uint32_t flags, int64_t timeout_ns, shmlog_consumer **out) {
    if (!out || (flags & ~(SHMLOG_VERIFY | SHMLOG_TETHER)))
        return fail(SL_E_INVALID, "shmlog_consumer_open: out is NULL, or flags this library does not know");
    *out = NULL;
    shmlog_consumer *c = calloc(1, sizeof *c);
    if (!c) return fail(SL_E_NOMEM, "out of memory");
    int64_t rc = handle_open(&c->h, cluster, topic, partition, CONSUMES, 0, timeout_ns);
    if (rc < 0) { free(c); return (int)rc; }
    int64_t start, end;
    c->flags = flags & ~SHMLOG_TETHER;
    rc = offsets_of(&c->h, &start, &end);
    if (rc == SL_OK) rc = reader_open(c, (uint64_t)start);
    if (rc == SL_OK) rc = seek(c, offset);
    if (rc >= 0 && (flags & SHMLOG_TETHER)) { /* where it stands, not before: what it will not read holds up nobody */
        c->flags = flags;
        rc = reader_open(c, sl_reader_position(c->reader));
    }
    if (rc < 0) { shmlog_consumer_close(c); return (int)rc; }
    *out = c;
    return SL_OK;
}

void shmlog_consumer_close(shmlog_consumer *c) {
    if (!c) return;
    if (c->reader) sl_reader_close(c->reader);
    if (sl_cluster_check(c->h.core) == SL_OK) handle_close(&c->h);
    free(c);
}

/* One wait of up to a slice. 1 something may be there, 0 the deadline or shmlog_wakeup(), SL_E_TIMEOUT go on, or a code. */
static int wait_slice(shmlog_consumer *c, sl_reader **readers, size_t n, int64_t spin_ns, int64_t deadline_ns) {
    if (__atomic_exchange_n(&c->woken, 0, __ATOMIC_SEQ_CST)) return 0;
    int64_t now = sl_monotonic_ns();
    int rc = sl_readers_wait(c->h.core, c->h.row, readers, n, spin_ns, deadline_ns < now + SLICE_NS ? deadline_ns : now + SLICE_NS);
    if (rc == 1) return 1;
    if (__atomic_exchange_n(&c->woken, 0, __ATOMIC_SEQ_CST)) return 0;
    if (rc == SL_E_GONE) return gone(c->h.cluster);
    if (rc < 0 && rc != SL_E_TIMEOUT) return fail_code(&c->h, rc);
    if (sl_monotonic_ns() >= deadline_ns) return 0;
    return (rc = still_there(c->h.cluster)) < 0 ? rc : SL_E_TIMEOUT;
}

int64_t shmlog_read(shmlog_consumer *c, shmlog_view *views, size_t max_views, int64_t timeout_ns) {
    if (sl_unlikely(!c || !views || !max_views)) return fail(SL_E_INVALID, "shmlog_read: the consumer or the views are NULL, or no views are asked for");
    if (sl_unlikely(sl_cluster_check(c->h.core) < 0)) return forked();
    uint64_t *version = &sl_cluster_control(c->h.core)->view_version;
    int64_t deadline_ns = 0, spin_ns = SPIN_NS;
    for (;;) {
        if (sl_unlikely(sl_load_acquire(version) != c->h.place.version)) {
            int rc = follow_leader(c);
            if (rc < 0) return rc;
        }
        int64_t n = sl_reader_poll(c->reader, (sl_view *)views, max_views, UINT64_MAX, (c->flags & SHMLOG_VERIFY) != 0);
        if (n > 0) return n;
        if (n == SL_E_RANGE) {
            int64_t start = 0, end = 0;
            if (offsets_of(&c->h, &start, &end) == SL_OK && shmlog_position(c) >= start && shmlog_position(c) <= end) n = 0; /* the log moved meanwhile */
            else return fail(SL_E_RANGE, "%s-%u: offset %lld is outside the log, which holds %lld to %lld", c->h.topic, c->h.partition,
                             (long long)sl_reader_position(c->reader), (long long)start, (long long)end);
        }
        if (n == SL_E_CORRUPT)
            return fail(SL_E_CORRUPT, "%s-%u: offsets %lld to %lld are damaged or lost", c->h.topic, c->h.partition, (long long)sl_reader_position(c->reader),
                        (long long)sl_reader_damage_end(c->reader) - 1);
        if (n < 0) return fail_code(&c->h, (int)n);
        if (timeout_ns <= 0) return 0;
        if (!deadline_ns) deadline_ns = deadline_of(timeout_ns);
        int rc = wait_slice(c, &c->reader, 1, spin_ns, deadline_ns);
        if (rc == 0) return 0;
        if (rc < 0 && rc != SL_E_TIMEOUT) return rc;
        spin_ns = 0; /* once a call: who waits for long sleeps */
    }
}

void shmlog_release(shmlog_consumer *c) { if (c) sl_reader_done(c->reader); }

int shmlog_wait(shmlog_consumer **consumers, size_t n, int64_t timeout_ns) {
    if (!consumers || !n || !consumers[0]) return fail(SL_E_INVALID, "shmlog_wait: no consumers");
    shmlog_consumer *first = consumers[0];
    if (sl_cluster_check(first->h.core) < 0) return forked();
    sl_reader *few[MOST_WAITED], **readers = n <= MOST_WAITED ? few : malloc(n * sizeof *readers);
    if (!readers) return fail(SL_E_NOMEM, "out of memory");
    int rc = SL_OK;
    for (size_t i = 0; i < n; i++) {
        if (!consumers[i] || consumers[i]->h.cluster != first->h.cluster) { rc = fail(SL_E_INVALID, "shmlog_wait: a consumer is NULL or of another cluster"); break; }
        readers[i] = consumers[i]->reader;
    }
    int64_t deadline_ns = deadline_of(timeout_ns), spin_ns = SPIN_NS;
    if (rc == SL_OK) do {
        rc = wait_slice(first, readers, n, spin_ns, deadline_ns);
        spin_ns = 0;
    } while (rc == SL_E_TIMEOUT);
    if (readers != few) free(readers);
    return rc;
}

void shmlog_wakeup(shmlog_consumer *c) {
    if (!c || sl_cluster_check(c->h.core) < 0) return;
    __atomic_store_n(&c->woken, 1, __ATOMIC_SEQ_CST); /* before the wake: whoever wakes from it finds this */
    sl_row_wakeup(c->h.core, c->h.row);
}

int64_t shmlog_seek(shmlog_consumer *c, int64_t offset) {
    if (!c || (offset < 0 && offset != SHMLOG_START && offset != SHMLOG_END)) return fail(SL_E_INVALID, "shmlog_seek: the consumer is NULL, or %lld is no offset", (long long)offset);
    if (sl_cluster_check(c->h.core) < 0) return forked();
    return seek(c, offset);
}

int64_t shmlog_seek_time(shmlog_consumer *c, int64_t timestamp_ns) {
    if (!c) return fail(SL_E_INVALID, "shmlog_seek_time: the consumer is NULL");
    if (sl_cluster_check(c->h.core) < 0) return forked();
    int64_t offset = sl_reader_offset_for_time(c->reader, timestamp_ns, NULL);
    if (offset < -1) return fail_code(&c->h, (int)offset);
    return seek(c, offset == -1 ? SHMLOG_END : offset);
}

int64_t shmlog_position(shmlog_consumer *c) {
    if (!c) return fail(SL_E_INVALID, "shmlog_position: the consumer is NULL");
    if (sl_cluster_check(c->h.core) < 0) return forked();
    return (int64_t)sl_reader_position(c->reader);
}

int64_t shmlog_damage_end(shmlog_consumer *c) {
    if (!c) return fail(SL_E_INVALID, "shmlog_damage_end: the consumer is NULL");
    if (sl_cluster_check(c->h.core) < 0) return forked();
    return (int64_t)sl_reader_damage_end(c->reader);
}

int64_t shmlog_lag(shmlog_consumer *c) {
    if (!c) return fail(SL_E_INVALID, "shmlog_lag: the consumer is NULL");
    if (sl_cluster_check(c->h.core) < 0) return forked();
    int64_t start, end, at = (int64_t)sl_reader_position(c->reader);
    int rc = offsets_of(&c->h, &start, &end);
    return rc < 0 ? rc : end > at ? end - at : 0;
}

/* ---- headers of a view: bytes of another process, read within their bounds ---- */

static int64_t varint(const uint8_t **at, const uint8_t *end) { /* Kafka's zigzag; INT64_MIN: damaged */
    uint64_t v = 0;
    for (int shift = 0; shift < 64 && *at < end; shift += 7) {
        uint8_t b = *(*at)++;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) return (int64_t)(v >> 1) ^ -(int64_t)(v & 1);
    }
    return INT64_MIN;
}

int shmlog_view_header(const shmlog_view *view, uint32_t index, shmlog_header *out) {
    if (!view || !out) return fail(SL_E_INVALID, "shmlog_view_header: the view or the header is NULL");
    if (!view->headers || view->headers_bytes == 0) return 0;
    const uint8_t *at = view->headers, *end = at + view->headers_bytes;
    int kafka = (view->flags & SL_VIEW_KAFKA_HEADERS) != 0;
    int64_t count = 0;
    if (kafka) count = varint(&at, end);
    else if (end - at >= 2) { uint16_t n; memcpy(&n, at, 2); count = n; at += 2; }
    else count = -1;
    for (int64_t i = 0; i < count; i++) {
        int64_t name_bytes = -1, value_bytes = INT64_MIN;
        if (kafka) name_bytes = varint(&at, end);
        else if (end - at >= 2) { uint16_t n; memcpy(&n, at, 2); name_bytes = n; at += 2; }
        if (name_bytes < 0 || name_bytes > end - at) break;
        const uint8_t *name = at;
        at += name_bytes;
        if (kafka) value_bytes = varint(&at, end);
        else if (end - at >= 4) { uint32_t n; memcpy(&n, at, 4); value_bytes = n == SL_NULL_BYTES ? -1 : (int64_t)n; at += 4; }
        if (value_bytes < -1 || value_bytes > end - at) break;
        if (i == index) {
            *out = (shmlog_header){(const char *)name, value_bytes < 0 ? NULL : at, (uint32_t)name_bytes, value_bytes < 0 ? 0 : (uint32_t)value_bytes};
            return 1;
        }
        if (value_bytes > 0) at += value_bytes;
        if (i + 1 == count) return 0;
    }
    return count == 0 ? 0 : fail(SL_E_CORRUPT, "offset %lld: its headers are damaged", (long long)view->offset);
}
