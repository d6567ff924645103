/* The rows of shmlog/testing/history.py, written from C; there is said what they mean and why kind and outcome are stored last. */
#ifndef HISTORY_H
#define HISTORY_H
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "atomic.h"
#include "core.h"

enum { HISTORY_NAME = 1, HISTORY_SEND, HISTORY_READ, HISTORY_SEEK, HISTORY_GAP, HISTORY_MARK, HISTORY_LEADER, HISTORY_COMMIT, HISTORY_COMMITTED, HISTORY_FINAL };
enum { HISTORY_UNKNOWN, HISTORY_OK, HISTORY_FAIL };
enum { HISTORY_START, HISTORY_DURABLE, HISTORY_SPILLED, HISTORY_STABLE, HISTORY_HIGH, HISTORY_END };

typedef struct history_row {
    uint8_t kind, outcome;
    uint16_t flags;
    uint32_t log, client, epoch;
    uint64_t value;
    int64_t offset, begin_ns, end_ns, extra, reserved;
} history_row;
_Static_assert(sizeof(history_row) == 64, "as ROW in history.py");

typedef struct history { history_row *rows; uint64_t n, room; } history;

static history_row *history_add(history *h, history_row row) {
    if (h->n == h->room) { fprintf(stderr, "history: full\n"); _exit(70); }
    history_row *at = &h->rows[h->n++];
    uint8_t kind = row.kind;
    row.kind = 0;
    *at = row;
    sl_store_release(&at->kind, kind);
    return at;
}

/* One file a process, for at most `rows` operations on the one log "t-0". */
static history history_open(const char *dir, const char *name, uint64_t rows) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s.history", dir, name);
    uint64_t bytes = (rows + 2) * sizeof(history_row);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0 || posix_fallocate(fd, 0, (off_t)bytes) != 0) { perror(path); _exit(70); }
    uint8_t *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) { perror(path); _exit(70); }
    close(fd);
    struct { char magic[8]; uint32_t version, row_bytes, pid; } header = {{'S', 'H', 'M', 'L', 'O', 'G', 'H', '\n'}, 1, sizeof(history_row), (uint32_t)getpid()};
    memcpy(p, &header, 20);
    history h = {(history_row *)(void *)p + 1, 0, rows + 1};
    history_row named = {.kind = HISTORY_NAME, .outcome = HISTORY_OK, .value = 3};
    memcpy(&named.offset, "t-0", 3);
    history_add(&h, named);
    return h;
}

static inline history_row *history_send(history *h, uint32_t client, uint64_t value, uint32_t crc) {
    return history_add(h, (history_row){.kind = HISTORY_SEND, .client = client, .value = value, .offset = -1, .begin_ns = sl_monotonic_ns(), .extra = crc});
}
static inline void history_done(history_row *row, int outcome, int64_t offset) {
    row->offset = offset;
    row->end_ns = sl_monotonic_ns();
    sl_store_release(&row->outcome, (uint8_t)outcome);
}
static inline void history_saw(history *h, int kind, uint32_t client, uint64_t value, int64_t offset, int64_t begin_ns, int64_t end_ns, int64_t extra) {
    history_add(h, (history_row){.kind = (uint8_t)kind, .outcome = HISTORY_OK, .client = client, .value = value, .offset = offset,
                                 .begin_ns = begin_ns, .end_ns = end_ns, .extra = extra});
}
static inline void history_mark(history *h, int which, int64_t offset, int64_t begin_ns, int64_t end_ns) {
    history_add(h, (history_row){.kind = HISTORY_MARK, .outcome = HISTORY_OK, .flags = (uint16_t)which, .offset = offset, .begin_ns = begin_ns, .end_ns = end_ns});
}
#endif
