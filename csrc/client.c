/* The control plane as a C program sees it: who coordinates, where a topic's partitions are. Three kinds of messages and one look into the metadata.
 *
 * The coordinator speaks msgpack (shmlog/messages.py), so this file writes the three requests that a client needs, and reads, from any bytes whatever, the
 * fields it wants: a cursor that stays inside its bytes and remembers that something was wrong; what it does not know it skips, so a newer cluster may say
 * more. Writing and reading them takes less code than a second protocol would on the other side, and there is one protocol to keep.
 *
 * The metadata is object v<n>: immutable, found by control.view_version, copied to private memory and checked there. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "atomic.h"
#include "client.h"

#define VIEW_MAX_BYTES (UINT64_C(1) << 30)
#define REPLY_MAX_BYTES (1u << 20)
#define VIEW_NS INT64_C(2000000000)    /* how long a view that control names may be unreadable before it counts as damaged */
#define RETRY_NS INT64_C(2000000)      /* a standby takes over in milliseconds */
#define RETRY_MAX_NS INT64_C(50000000)
#define WHY_BYTES 256
#define CONTROL_PROCESSES 4            /* the spare and the coordinators: while one of them lives the cluster heals by itself */

/* ---- names ---- */

static int plain_name(const char *from, size_t n, char to[33]) {
    if (n < 1 || n > 32) return 0;
    for (size_t i = 0; i < n; i++) {
        char c = from[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-')) return 0;
    }
    memcpy(to, from, n);
    to[n] = 0;
    return 1;
}

int sl_address_parse(const char *address, char cluster[33], char namespace_[33]) {
    const char *rest = address;
    if (address) {
        if (strncmp(address, "shm://", 6) != 0) return SL_E_INVALID;
        rest = address + 6;
    } else {
        rest = getenv("SHMLOG_CLUSTER");
        if (!rest || !*rest) rest = "default";
    }
    const char *slash = strchr(rest, '/');
    namespace_[0] = 0;
    if (!plain_name(rest, slash ? (size_t)(slash - rest) : strlen(rest), cluster)) return SL_E_INVALID;
    return !slash || plain_name(slash + 1, strlen(slash + 1), namespace_) ? SL_OK : SL_E_INVALID;
}

int sl_topic_name_ok(const char *topic) {
    size_t n = strnlen(topic, 250);
    if (n < 1 || n > 249 || strcmp(topic, ".") == 0 || strcmp(topic, "..") == 0) return 0;
    for (size_t i = 0; i < n; i++) {
        char c = topic[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-')) return 0;
    }
    return 1;
}

/* ---- msgpack, read ---- */

typedef enum kind { NIL, BOOL, UINT, INT, STR, BIN, ARRAY, MAP, OTHER } kind;
typedef struct item { kind kind; uint64_t n; const uint8_t *bytes; } item;   /* n: the number, or how many bytes or items */
typedef struct cursor { const uint8_t *at, *end; int bad; } cursor;

static uint64_t big_endian(cursor *c, unsigned bytes) {
    if ((size_t)(c->end - c->at) < bytes) { c->bad = 1; c->at = c->end; return 0; }
    uint64_t v = 0;
    while (bytes--) v = v << 8 | *c->at++;
    return v;
}

static item counted(cursor *c, kind k, uint64_t n) { /* bytes that follow, or items of at least one byte each */
    item i = {k, n, c->at};
    uint64_t least = k == MAP ? 2 * n : n;
    if (least > (uint64_t)(c->end - c->at)) { c->bad = 1; c->at = c->end; i.n = 0; }
    else if (k == STR || k == BIN || k == OTHER) c->at += n;
    return i;
}

/* One item; of arrays and maps only the head. After damage (c->bad) always NIL at the end. */
static item next(cursor *c) {
    uint8_t b = (uint8_t)big_endian(c, 1);
    if (c->bad) return (item){NIL, 0, c->end};
    if (b < 0x80) return (item){UINT, b, NULL};
    if (b < 0x90) return counted(c, MAP, b & 15);
    if (b < 0xa0) return counted(c, ARRAY, b & 15);
    if (b < 0xc0) return counted(c, STR, b & 31);
    if (b >= 0xe0) return (item){INT, (uint64_t)(int64_t)(int8_t)b, NULL};
    switch (b) {
    case 0xc0: return (item){NIL, 0, NULL};
    case 0xc2: case 0xc3: return (item){BOOL, b & 1, NULL};
    case 0xc4: case 0xc5: case 0xc6: return counted(c, BIN, big_endian(c, 1u << (b - 0xc4)));
    case 0xc7: case 0xc8: case 0xc9: { uint64_t n = big_endian(c, 1u << (b - 0xc7)); return counted(c, OTHER, n + 1); } /* ext: a type byte, then n */
    case 0xca: return counted(c, OTHER, 4);
    case 0xcb: return counted(c, OTHER, 8);
    case 0xcc: case 0xcd: case 0xce: case 0xcf: return (item){UINT, big_endian(c, 1u << (b - 0xcc)), NULL};
    case 0xd0: return (item){INT, (uint64_t)(int64_t)(int8_t)big_endian(c, 1), NULL};
    case 0xd1: return (item){INT, (uint64_t)(int64_t)(int16_t)big_endian(c, 2), NULL};
    case 0xd2: return (item){INT, (uint64_t)(int64_t)(int32_t)big_endian(c, 4), NULL};
    case 0xd3: return (item){INT, big_endian(c, 8), NULL};
    case 0xd4: case 0xd5: case 0xd6: case 0xd7: case 0xd8: return counted(c, OTHER, (UINT64_C(1) << (b - 0xd4)) + 1);
    case 0xd9: case 0xda: case 0xdb: return counted(c, STR, big_endian(c, 1u << (b - 0xd9)));
    case 0xdc: case 0xdd: return counted(c, ARRAY, big_endian(c, 2u << (b - 0xdc)));
    case 0xde: case 0xdf: return counted(c, MAP, big_endian(c, 2u << (b - 0xde)));
    default: c->bad = 1; c->at = c->end; return (item){NIL, 0, c->end}; /* 0xc1 */
    }
}

/* All of one item, however deep, without recursion: each head owes so many more. An item has at least a byte, so this ends. */
static void skip(cursor *c) {
    for (uint64_t owed = 1; owed && !c->bad; owed--) {
        item i = next(c);
        if (i.kind == ARRAY) owed += i.n;
        else if (i.kind == MAP) owed += 2 * i.n;
    }
}

/* Items that must be of a kind: anything else is damage. */
static uint64_t expect(cursor *c, kind k, item *out) {
    item i = next(c);
    if (i.kind != k) { c->bad = 1; c->at = c->end; i.n = 0; }
    if (out) *out = i;
    return i.n;
}
static int64_t expect_int(cursor *c) {
    item i = next(c);
    if ((i.kind != UINT && i.kind != INT) || (i.kind == UINT && i.n > INT64_MAX)) { c->bad = 1; c->at = c->end; return 0; }
    return (int64_t)i.n;
}
static int is_text(const item *i, const char *text) { return i->kind == STR && i->n == strlen(text) && memcmp(i->bytes, text, i->n) == 0; }

/* ---- msgpack, written: into a buffer that is large enough for the three requests ---- */

typedef struct writer { uint8_t bytes[2048]; size_t n; } writer;

static void put(writer *w, const void *from, size_t n) {
    SL_ASSERT(w->n + n <= sizeof w->bytes);
    memcpy(w->bytes + w->n, from, n);
    w->n += n;
}
static void put_byte(writer *w, unsigned b) { uint8_t x = (uint8_t)b; put(w, &x, 1); }
static void put_sized(writer *w, unsigned code, size_t n, const void *from) { put_byte(w, code); put_byte(w, (unsigned)n >> 8); put_byte(w, (unsigned)n & 255); put(w, from, n); }
static void put_text(writer *w, const char *text) { put_sized(w, 0xda, strlen(text), text); }
static void put_uint(writer *w, uint32_t v) { put_byte(w, 0xce); for (int s = 24; s >= 0; s -= 8) put_byte(w, v >> s & 255); }
static void put_array(writer *w, size_t n) { put_byte(w, 0xdc); put_byte(w, (unsigned)n >> 8); put_byte(w, (unsigned)n & 255); }
/* A message is a map whose "type" is its class name; on the stream a length stands before it. */
static void put_message(writer *w, const char *type, unsigned fields) {
    w->n = 4;
    put_byte(w, 0x80 | (fields + 1));
    put_text(w, "type");
    put_text(w, type);
}
static void put_length(writer *w) {
    uint32_t n = (uint32_t)(w->n - 4);
    memcpy(w->bytes, &n, 4); /* little-endian, as this machine */
}

/* ---- the view ---- */

int sl_view_find(const uint8_t *view, size_t bytes, const char *topic, uint32_t partition, sl_place *out) {
    cursor c = {view, view + bytes, 0}, found = {0}, brokers = {0};
    item id, directory = {0};
    memset(out, 0, sizeof *out);
    out->auto_create = 1;
    for (uint64_t n = expect(&c, MAP, NULL); n && !c.bad; n--) {
        item key = next(&c);
        if (is_text(&key, "version")) out->version = (uint64_t)expect_int(&c);
        else if (is_text(&key, "config")) {
            for (uint64_t k = expect(&c, MAP, NULL); k && !c.bad; k--) {
                item name = next(&c), value;
                expect(&c, STR, &value);
                if (is_text(&name, "auto.create.topics.enable")) out->auto_create = !(value.n == 5 && strncasecmp((const char *)value.bytes, "false", 5) == 0);
            }
        } else if (is_text(&key, "brokers")) { brokers = c; skip(&c); }
        else if (is_text(&key, "topics")) {
            for (uint64_t k = expect(&c, MAP, NULL); k && !c.bad; k--) {
                item name = next(&c);
                if (is_text(&name, topic)) found = c;
                skip(&c);
            }
        } else skip(&c);
    }
    if (c.bad) return SL_E_DAMAGED;
    if (!found.at) return SL_E_NOENT;

    /* [name, topic_id, config, partitions] */
    c = found;
    if (expect(&c, ARRAY, NULL) < 4) return SL_E_DAMAGED;
    skip(&c);
    if (expect(&c, BIN, &id) != 16) return SL_E_DAMAGED;
    memcpy(out->topic_id, id.bytes, 16);
    skip(&c);
    uint64_t partitions = expect(&c, ARRAY, NULL);
    if (c.bad || partitions > SL_MAX_PARTITIONS) return SL_E_DAMAGED;
    out->partitions = (uint32_t)partitions;
    if (partition >= partitions) return SL_E_RANGE;
    for (uint32_t i = 0; i < partition; i++) skip(&c);
    /* [block, leader, leader_epoch, ...] */
    if (expect(&c, ARRAY, NULL) < 3) return SL_E_DAMAGED;
    int64_t block = expect_int(&c), leader = expect_int(&c);
    if (c.bad || block < 0 || block >= SL_MAX_PARTITIONS || leader < -1 || leader > INT32_MAX) return SL_E_DAMAGED;
    out->block = (uint32_t)block;
    out->leader = (int32_t)leader;

    if (leader >= 0 && brokers.at) { /* {id: [id, process, broker_epoch, directory]} */
        c = brokers;
        for (uint64_t n = expect(&c, MAP, NULL); n && !c.bad; n--) {
            if (expect_int(&c) != leader) { skip(&c); continue; }
            cursor b = c;
            uint64_t fields = expect(&b, ARRAY, NULL);
            for (int i = 0; i < 3; i++) skip(&b);
            if (fields < 4) return SL_E_DAMAGED;
            expect(&b, STR, &directory);
            if (b.bad) return SL_E_DAMAGED;
            skip(&c);
        }
        if (c.bad) return SL_E_DAMAGED;
    }
    if (directory.n) { /* as messages.partition_directory() */
        char name[SL_NAME_MAX_BYTES], hex[33];
        snprintf(name, sizeof name, "%s", topic);
        for (char *p = name; (p = strchr(p, '/'));) *p = '~';
        for (int i = 0; i < 16; i++) snprintf(hex + 2 * i, 3, "%02x", out->topic_id[i]);
        int longer = strlen(name) > 200; /* a file name has 255 bytes; the whole id keeps shortened names apart */
        int n = snprintf(out->directory, sizeof out->directory, "%.*s/%.*s%s-%u-%.*s", (int)directory.n, (const char *)directory.bytes, longer ? 160 : 200, name,
                         longer ? "~" : "", partition, longer ? 32 : 8, hex);
        if (directory.n > sizeof out->directory || n < 0 || (size_t)n >= sizeof out->directory || memchr(directory.bytes, 0, directory.n)) return SL_E_DAMAGED;
    }
    return SL_OK;
}

/* A private copy of view `version`, checked: malloc()ed, *payload points into it. SL_E_NOENT it is not there, or not whole. */
static int view_read(const char *prefix, uint64_t version, uint8_t **copy, const uint8_t **payload, size_t *bytes) {
    char name[128];
    struct stat st;
    snprintf(name, sizeof name, "%s.v%llu", prefix, (unsigned long long)version);
    int fd = shm_open(name, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) { sl_set_errno(errno); return errno == ENOENT ? SL_E_NOENT : SL_E_SYS; }
    size_t head = sizeof(sl_object_header) + 16, done = 0;
    int rc = SL_OK;
    uint8_t *data = NULL;
    if (fstat(fd, &st) < 0) { sl_set_errno(errno); rc = SL_E_SYS; }
    else if (st.st_uid != geteuid() && geteuid() != 0 && (!(st.st_mode & S_IRGRP) || (st.st_mode & S_IWOTH))) rc = SL_E_OWNER; /* as in cluster.c */
    else if ((uint64_t)st.st_size < head || (uint64_t)st.st_size > VIEW_MAX_BYTES) rc = SL_E_NOENT;
    else if (!(data = malloc((size_t)st.st_size))) rc = SL_E_NOMEM;
    while (rc == SL_OK && done < (size_t)st.st_size) {
        ssize_t n = pread(fd, data + done, (size_t)st.st_size - done, (off_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) { sl_set_errno(errno); rc = SL_E_SYS; }
        else if (n == 0) rc = SL_E_NOENT;
        else done += (size_t)n;
    }
    close(fd);
    if (rc == SL_OK && sl_object_check(data, done, SL_KIND_VIEW) < 0) rc = SL_E_NOENT;
    if (rc == SL_OK) { /* u64 payload bytes, u32 CRC32C, u32 0, payload */
        uint64_t n;
        uint32_t crc;
        memcpy(&n, data + sizeof(sl_object_header), 8);
        memcpy(&crc, data + sizeof(sl_object_header) + 8, 4);
        if (n > done - head || sl_crc32c(0, data + head, (size_t)n) != crc) rc = SL_E_NOENT;
        *payload = data + head;
        *bytes = (size_t)n;
    }
    if (rc < 0) { free(data); return rc; }
    *copy = data;
    return SL_OK;
}

static void pause_ns(int64_t ns) {
    struct timespec t = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    nanosleep(&t, NULL);
}

int sl_place_find(sl_cluster *cluster, const char *topic, uint32_t partition, sl_place *out) {
    sl_control *control = sl_cluster_control(cluster);
    int64_t until = sl_monotonic_ns() + VIEW_NS;
    for (;;) {
        uint64_t version = sl_load_sc(&control->view_version);
        uint8_t *copy;
        const uint8_t *view;
        size_t bytes;
        int rc = view_read(sl_cluster_prefix(cluster), version, &copy, &view, &bytes);
        if (rc == SL_OK) {
            rc = sl_view_find(view, bytes, topic, partition, out);
            free(copy);
            return rc;
        }
        if (rc != SL_E_NOENT) return rc;
        if (sl_load_sc(&control->view_version) != version) continue; /* unlinked between the two loads: a later one is in force */
        if (sl_load_acquire(&control->cluster_state) == SL_CLUSTER_DOWN) return SL_E_GONE;
        if (sl_monotonic_ns() > until) return SL_E_DAMAGED;
        pause_ns(RETRY_NS);
    }
}

/* ---- requests ---- */

int sl_cluster_alive(sl_cluster *cluster) {
    sl_control *control = sl_cluster_control(cluster);
    for (int turn = 0; turn < 3; turn++) { /* an entry is empty for microseconds while it changes hands */
        for (int i = 0; i < CONTROL_PROCESSES; i++)
            if (sl_process_alive(sl_load_relaxed(&control->processes[i].pid), sl_load_relaxed(&control->processes[i].start_ticks))) return 1;
        if (turn < 2) pause_ns(1000000 << (2 * turn));
    }
    return 0;
}

/* Until the socket is ready for `events`. SL_OK, SL_E_TIMEOUT, SL_E_INTR. */
static int ready(int fd, short events, int64_t deadline_ns) {
    int64_t left = deadline_ns - sl_monotonic_ns();
    if (left <= 0) return SL_E_TIMEOUT;
    struct timespec t = {.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
    struct pollfd p = {.fd = fd, .events = events};
    int n = ppoll(&p, 1, &t, NULL);
    return n > 0 ? SL_OK : n == 0 ? SL_E_TIMEOUT : errno == EINTR ? SL_E_INTR : SL_E_SYS;
}

static int transfer(int fd, uint8_t *bytes, size_t n, int sending, int64_t deadline_ns) {
    for (size_t done = 0; done < n;) {
        ssize_t m = sending ? send(fd, bytes + done, n - done, MSG_NOSIGNAL) : recv(fd, bytes + done, n - done, 0);
        if (m > 0) { done += (size_t)m; continue; }
        if (m == 0 || (errno != EAGAIN && errno != EINTR)) return SL_E_AGAIN; /* it died: the next one answers */
        if (errno == EINTR) continue;
        int rc = ready(fd, sending ? POLLOUT : POLLIN, deadline_ns);
        if (rc < 0) return rc;
    }
    return SL_OK;
}

/* One question on a connection of its own. SL_E_AGAIN: nobody took it to the end. */
static int ask_once(sl_cluster *cluster, writer *request, int64_t deadline_ns, uint8_t **reply, size_t *bytes) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int n = snprintf(to.sun_path, sizeof to.sun_path, "/dev/shm%s/coordinator.sock", sl_cluster_prefix(cluster));
    if (n < 0 || (size_t)n >= sizeof to.sun_path) return SL_E_INVALID;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) { sl_set_errno(errno); return SL_E_SYS; }
    int rc = connect(fd, (struct sockaddr *)&to, sizeof to) == 0 ? SL_OK : SL_E_AGAIN; /* also with a full queue (EAGAIN) */
    uint32_t length = 0;
    *reply = NULL;
    if (rc == SL_OK) rc = transfer(fd, request->bytes, request->n, 1, deadline_ns);
    if (rc == SL_OK) rc = transfer(fd, (uint8_t *)&length, 4, 0, deadline_ns);
    if (rc == SL_OK && (length == 0 || length > REPLY_MAX_BYTES)) rc = SL_E_DAMAGED;
    if (rc == SL_OK && !(*reply = malloc(length))) rc = SL_E_NOMEM;
    if (rc == SL_OK) rc = transfer(fd, *reply, length, 0, deadline_ns);
    close(fd);
    if (rc < 0) { free(*reply); *reply = NULL; }
    *bytes = length;
    return rc;
}

static int ask(sl_cluster *cluster, writer *request, const char *wanted, int64_t deadline_ns, uint32_t *row, char *why) {
    put_length(request);
    for (int64_t wait_ns = RETRY_NS;;) {
        uint8_t *reply;
        size_t bytes;
        int rc = ask_once(cluster, request, deadline_ns, &reply, &bytes);
        if (rc == SL_OK) {
            rc = sl_reply_read(reply, bytes, wanted, row, why);
            free(reply);
            return rc;
        }
        if (rc != SL_E_AGAIN) return rc;
        if (sl_load_acquire(&sl_cluster_control(cluster)->cluster_state) == SL_CLUSTER_DOWN || !sl_cluster_alive(cluster)) return SL_E_GONE;
        if (sl_monotonic_ns() + wait_ns > deadline_ns) return SL_E_TIMEOUT;
        pause_ns(wait_ns);
        if ((wait_ns *= 2) > RETRY_MAX_NS) wait_ns = RETRY_MAX_NS;
    }
}

/* "name: message" of a Failure, whose fields follow at the cursor. */
static void read_failure(cursor c, uint64_t fields, char *why) {
    item name = {0}, message = {0};
    for (; fields && !c.bad; fields--) {
        item key = next(&c);
        if (is_text(&key, "name")) expect(&c, STR, &name);
        else if (is_text(&key, "message")) expect(&c, STR, &message);
        else skip(&c);
    }
    snprintf(why, WHY_BYTES, "%.*s%s%.*s", name.n > 80 ? 80 : (int)name.n, name.bytes ? (const char *)name.bytes : "", message.n ? ": " : "",
             message.n > 160 ? 160 : (int)message.n, message.bytes ? (const char *)message.bytes : "");
}
/* Whether the map at the cursor (of *fields pairs) is of this type; a tag may stand anywhere in it. */
static int is_message(cursor c, const char *type) {
    for (uint64_t fields = expect(&c, MAP, NULL); fields && !c.bad; fields--) {
        item key = next(&c);
        if (!is_text(&key, "type")) { skip(&c); continue; }
        item tag = next(&c);
        return is_text(&tag, type);
    }
    return 0;
}

int sl_reply_read(const uint8_t *reply, size_t bytes, const char *wanted, uint32_t *row, char *why) {
    cursor c = {reply, reply + bytes, 0};
    why[0] = 0;
    if (is_message(c, "Failure")) {
        uint64_t fields = expect(&c, MAP, NULL);
        read_failure(c, fields, why);
        return SL_E_REFUSED;
    }
    if (!is_message(c, wanted)) return SL_E_DAMAGED;
    int rc = SL_OK, rows = 0;
    for (uint64_t fields = expect(&c, MAP, NULL); fields && !c.bad; fields--) {
        item key = next(&c);
        if (row && is_text(&key, "rows")) {
            uint64_t n = expect(&c, ARRAY, NULL);
            int64_t r = n ? expect_int(&c) : -1;
            for (uint64_t i = 1; i < n && !c.bad; i++) skip(&c);
            if (r < 0 || r >= SL_MAX_ROWS) return SL_E_DAMAGED;
            *row = (uint32_t)r;
            rows = 1;
        } else if (is_text(&key, "failures")) { /* of Results: nil, or what was wrong with the one topic that we asked for */
            uint64_t n = expect(&c, ARRAY, NULL);
            for (; n && !c.bad; n--) {
                cursor one = c;
                item i = next(&one);
                if (i.kind == MAP) { read_failure(one, i.n, why); rc = SL_E_REFUSED; }
                skip(&c);
            }
        } else skip(&c);
    }
    return c.bad || (row && !rows) ? SL_E_DAMAGED : rc;
}

int64_t sl_ask_row(sl_cluster *cluster, uint32_t kind, int64_t deadline_ns, char *why) {
    writer w;
    uint32_t row = 0;
    put_message(&w, "Register", 2);
    put_text(&w, "kind");
    put_uint(&w, kind);
    put_text(&w, "rows");
    put_uint(&w, 1);
    int rc = ask(cluster, &w, "Registered", deadline_ns, &row, why);
    return rc < 0 ? rc : (int64_t)row;
}

int sl_ask_unregister(sl_cluster *cluster, const uint32_t *rows, size_t n, int64_t deadline_ns) {
    char why[WHY_BYTES];
    for (size_t from = 0, take; from < n; from += take) {
        writer w;
        take = n - from > 256 ? 256 : n - from;
        put_message(&w, "Unregister", 1);
        put_text(&w, "rows");
        put_array(&w, take);
        for (size_t i = 0; i < take; i++) put_uint(&w, rows[from + i]);
        int rc = ask(cluster, &w, "Done", deadline_ns, NULL, why);
        if (rc < 0) return rc;
    }
    return SL_OK;
}

/* We choose the id, so that a request which is repeated to the next coordinator is recognised as the same. */
static int random_id(uint8_t id[16]) {
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, id, 16);
    if (n != 16) sl_set_errno(errno);
    if (fd >= 0) close(fd);
    return n == 16 ? SL_OK : SL_E_SYS;
}

int sl_ask_topic(sl_cluster *cluster, const char *topic, int64_t deadline_ns, char *why) {
    writer w;
    uint8_t id[16];
    int rc = random_id(id);
    if (rc < 0) return rc;
    put_message(&w, "CreateTopics", 1);
    put_text(&w, "topics");
    put_array(&w, 1);
    put_byte(&w, 0x82);
    put_text(&w, "name");
    put_text(&w, topic);
    put_text(&w, "topic_id");
    put_sized(&w, 0xc5, 16, id);
    rc = ask(cluster, &w, "Results", deadline_ns, NULL, why);
    static const char exists[] = "TopicAlreadyExistsError"; /* another producer was quicker */
    return rc == SL_E_REFUSED && strncmp(why, exists, sizeof exists - 1) == 0 ? SL_OK : rc;
}
