/* What an append and a read cost, counted and not timed: instructions, locked instructions, system calls, page faults, and bytes of memory per record.
 *
 * The memory is made by hand (tests/c/fixture.h), so nothing else runs in it. The program traces a child of its own instruction by instruction (ptrace): the child
 * shares its code's addresses, so each instruction is looked up here. Windows are marked by int3. Page faults are counted by the kernel over very many operations,
 * segments ending and being recycled among them.
 *
 *   figures     prints one JSON object; exit code 3: this machine does not let us trace. */
#define _GNU_SOURCE
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

#include "fixture.h"

#define WINDOW 64   /* single-stepping costs some 20 us an instruction */
#define MANY 400000
#define BATCH 64
#define VALUE_BYTES 100
#define SEGMENT_BYTES (4u << 20)

static sl_cluster *cluster;
static sl_appender *appender;
static sl_reader *reader;
static sl_view views[BATCH];
static uint8_t payload[VALUE_BYTES];

static void must(int64_t rc, const char *what) {
    if (rc >= 0) return;
    fprintf(stderr, "figures: %s: %s\n", what, sl_strerror((int)rc));
    exit(2);
}

static inline void append_one(void) {
    sl_record r = {.value = payload, .value_bytes = VALUE_BYTES, .producer_id = -1, .sequence = -1, .timestamp_ns = 1}; /* the clock is not ours to count */
    sl_append_result result;
    must(sl_append(appender, &r, -1, 0, &result), "append");
}
static inline int64_t read_up_to(size_t n) {
    int64_t got = sl_reader_poll(reader, views, n, 1 << 30, 0);
    must(got, "poll");
    return got;
}

static void open_all(void) {
    cluster = fixture_open();
    must(sl_appender_open(cluster, 1, 0, fixture_topic_id, &appender), "appender");
    must(sl_reader_open(cluster, 2, 0, fixture_topic_id, NULL, &reader), "reader");
    must(sl_reader_seek(reader, 0), "seek");
}

/* The four windows, each between two int3. Before each: as many operations as make it steady, and room in the segment and the chunk for all of it. */
static void traced(void) {
    sl_offsets o;
    open_all();
    for (int i = 0; i < 3 * WINDOW; i++) { append_one(); read_up_to(1); }
    __asm__ volatile("int3");
    for (int i = 0; i < WINDOW; i++) append_one();
    __asm__ volatile("int3");
    __asm__ volatile("int3");
    for (int i = 0; i < WINDOW; i++) read_up_to(1);
    __asm__ volatile("int3");
    for (int i = 0; i < 3 * BATCH; i++) append_one();
    read_up_to(BATCH);
    __asm__ volatile("int3");
    read_up_to(BATCH);
    read_up_to(BATCH);
    __asm__ volatile("int3");
    must(sl_log_offsets(cluster, 3, 0, &o), "offsets");
    if (sl_reader_position(reader) != o.end) exit(2);
    __asm__ volatile("int3");
    for (int i = 0; i < WINDOW; i++) read_up_to(1); /* nothing there */
    __asm__ volatile("int3");
    _exit(0);
}

static const struct { const char *name; int operations; } windows[] = {{"append", WINDOW}, {"read, 1 a poll", WINDOW}, {"read, 64 a poll", 2 * BATCH},
                                                                       {"poll at the end", WINDOW}};

/* Segments end and come round again: what the kernel counted. */
static long untraced(void) {
    struct rusage before, after;
    open_all();
    for (int round = 0; round < 2; round++) {
        if (round) getrusage(RUSAGE_SELF, &before);
        for (int i = 0; i < MANY; i++) { append_one(); if (i % 256 == 0) while (read_up_to(BATCH) > 0) {} }
    }
    getrusage(RUSAGE_SELF, &after);
    return after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt;
}

#ifdef __x86_64__
typedef struct count { uint64_t instructions, cas, xchg, other, system_calls; } count;

/* One instruction by its bytes, which stand here at the same address. xchg with memory is locked without saying so. */
static void look_at(const uint8_t *b, int again, count *c) {
    int lock = 0, rep = 0;
    for (;; b++) {
        if (*b == 0xf0) lock = 1;
        else if (*b == 0xf2 || *b == 0xf3) rep = 1;
        else if (*b != 0x66 && *b != 0x67 && *b != 0x2e && *b != 0x36 && *b != 0x3e && *b != 0x26 && *b != 0x64 && *b != 0x65) break;
    }
    if ((*b & 0xf0) == 0x40) b++; /* REX */
    if (again && rep) return; /* rep movs and the like stop at each turn: one instruction all the same */
    c->instructions++;
    if (b[0] == 0x0f && b[1] == 0x05) c->system_calls++;
    if ((b[0] == 0x86 || b[0] == 0x87) && b[1] >> 6 != 3) c->xchg++;
    else if (lock && b[0] == 0x0f && (b[1] == 0xb0 || b[1] == 0xb1)) c->cas++;
    else if (lock) c->other++;
}

static void trace(void) {
    int status;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0) _exit(3);
        raise(SIGSTOP);
        traced();
    }
    if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) exit(WIFEXITED(status) ? WEXITSTATUS(status) : 3);
    ptrace(PTRACE_SETOPTIONS, child, NULL, (void *)PTRACE_O_EXITKILL);
    for (size_t w = 0; w < sizeof windows / sizeof *windows; w++) {
        count c = {0};
        const uint8_t *before = NULL;
        if (ptrace(PTRACE_CONT, child, NULL, NULL) < 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP) exit(2);
        for (;;) {
            const uint8_t *at = (const uint8_t *)ptrace(PTRACE_PEEKUSER, child, (void *)offsetof(struct user_regs_struct, rip), NULL);
            if (*at == 0xcc) break;
            look_at(at, at == before, &c);
            before = at;
            if (ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) < 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP) exit(2);
        }
        /* Onto the int3 itself: the next window begins behind it. */
        ptrace(PTRACE_CONT, child, NULL, NULL);
        if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) exit(2);
        double n = windows[w].operations;
        printf("%s\"%s\": {\"instructions\": %.1f, \"locked_cas\": %.4f, \"locked_xchg\": %.4f, \"locked_other\": %.4f, \"system_calls\": %.4f}", w ? ", " : "",
               windows[w].name, (double)c.instructions / n, (double)c.cas / n, (double)c.xchg / n, (double)c.other / n, (double)c.system_calls / n);
    }
    ptrace(PTRACE_CONT, child, NULL, NULL);
    waitpid(child, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status)) exit(2);
}
#else
static void trace(void) { exit(3); }
#endif

static void make_memory(int segments) {
    fixture_make();
    cluster = fixture_open();
    int64_t buffer = sl_segment_make(cluster, SEGMENT_BYTES);
    must(buffer, "segment");
    sl_partition *p = sl_cluster_partition(cluster, 0);
    p->leader_epoch = 1;
    must(sl_log_open_epoch(cluster, 0, 0, 1, (uint32_t)buffer, 0), "open");
    fixture_stock(cluster, 0, 0, SEGMENT_BYTES, segments - 1);
}

int main(void) {
    atexit(fixture_unlink);
    make_memory(2);
    printf("{");
    trace();
    fixture_unlink();
    make_memory(4);
    appender = NULL;
    printf(", \"page faults of %d appends and reads\": %ld", MANY, untraced());
    uint64_t used = 0, records = 0; /* of the segments that were filled: what a record took, its cell and the rest of the arena included */
    sl_offsets o;
    must(sl_log_offsets(cluster, 3, 0, &o), "offsets");
    uint64_t number = sl_cur_number(sl_cluster_partition(cluster, 0)->cur);
    for (uint64_t n = number - 1; n + 3 > number && n; n--) {
        sl_map *m;
        uint32_t end_rel, buffer = sl_log_buffer(sl_cluster_partition(cluster, 0), n);
        int sealed;
        if (!buffer || sl_map_get(cluster, buffer, 0, &m) < 0) continue;
        if (sl_segment_end(m, n, &end_rel, &sealed) >= 0 && sealed) { used += m->bytes; records += end_rel; }
        sl_map_put(cluster, m);
    }
    printf(", \"bytes of memory of a 100-byte record\": %.1f}\n", records ? (double)used / (double)records : 0);
    return 0;
}
