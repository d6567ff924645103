/* A producer killed, or stopped, at every single instruction: ./step WHAT kill|stop EVERY
 *
 * A child prepares, then runs WHAT under PTRACE_SINGLESTEP; in turn i it dies (or stops) after i * EVERY instructions. This is release code, without failpoints.
 *
 *   append     a record into a segment that the producer holds already
 *   first      a producer's first append: it attaches, maps the segment, resolves symbols
 *   loan       publishing a loan
 *   rotate     an append that finds the segment full: seals it, moves on, appends
 *   recycle    one turn of recycling
 *   clean      the coordinator's cleaning of a row whose owner died in a segment
 *
 * Each time: somebody else appends at once; offsets are dense; the record is there whole or not at all (stopped and resumed: exactly once, where its
 * producer was told); every CRC is right; the dead row is cleaned; and of the partition's memory all comes back: what the dead could have written to
 * is unlinked, the rest is reused, so that at the end of each turn the active segment and two that stand ready are all there is.
 *
 * Exit 0 and one line with figures; 1 and what is wrong; 3: ptrace is not permitted here. */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>
#if defined(__aarch64__)
#include <elf.h>
#include <sys/uio.h>
#endif

#include "../c/fixture.h"

#if defined(__x86_64__)
#define TRAP() __asm__ volatile("int3")
#else
#define TRAP() __asm__ volatile("brk #0; nop") /* the tracer steps over it */
#endif

#define CHILD_ROW 5
#define DEAD_ROW 6
#define READY 2
enum { WARM = 1, STEPPED, BESIDE };

typedef struct note { uint64_t who, turn, n; uint8_t more[80]; } note;   /* no padding in it */

static struct told { int64_t offset; int rc; int reached; } *told;
static const char *what;
static int stops;
static int64_t turn;
static pid_t child;
static sl_cluster *c;
static sl_partition *p;
static sl_appender *mine;
static sl_reader *reader;
static uint64_t beside_n, next_offset, seen_beside;

static void finish(int code) {
    if (child > 0) { kill(child, SIGKILL); waitpid(child, NULL, 0); }
    char prefix[100];
    snprintf(prefix, sizeof prefix, "%s.", fixture_prefix);
    DIR *d = opendir("/dev/shm");
    for (struct dirent *e; d && (e = readdir(d));)
        if (strncmp(e->d_name, prefix + 1, strlen(prefix) - 1) == 0) { char full[300]; snprintf(full, sizeof full, "/%.255s", e->d_name); shm_unlink(full); }
    exit(code);
}
#define WRONG(...) do { fprintf(stderr, "%s, %s after %lld instructions: ", what, stops ? "stopped" : "killed", (long long)turn); \
    fprintf(stderr, __VA_ARGS__); fputc('\n', stderr); finish(1); } while (0)
#define CHECK(cond) do { if (!(cond)) WRONG("not so (line %d): %s", __LINE__, #cond); } while (0)
#define CHECK_EQ(a, b) do { long long a_ = (long long)(a), b_ = (long long)(b); if (a_ != b_) WRONG("line %d: %s is %lld, not %lld", __LINE__, #a, a_, b_); } while (0)

static note note_of(uint64_t who, uint64_t n) {
    note t = {who, (uint64_t)turn, n, {0}};
    for (size_t i = 0; i < sizeof t.more; i++) t.more[i] = (uint8_t)(who * 7 + (uint64_t)turn + n + i);
    return t;
}
static int append_note(sl_appender *a, uint64_t who, uint64_t n, int64_t *offset) {
    note t = note_of(who, n);
    sl_record r = {.value = (const uint8_t *)&t, .value_bytes = sizeof t, .producer_id = -1, .sequence = -1};
    sl_append_result result;
    int rc = sl_append(a, &r, -1, SOON, &result);
    if (offset) *offset = result.offset;
    return rc;
}

/* ---- the child ---- */

static void run_child(pid_t parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(71);
    c = fixture_open();
    p = sl_cluster_partition(c, 0);
    sl_appender *a, *b;
    int cold = !strcmp(what, "first");
    if (sl_appender_open(c, CHILD_ROW, 0, fixture_topic_id, &a) < 0 || sl_appender_open(c, CHILD_ROW, 0, fixture_topic_id, &b) < 0) _exit(72);
    if (!cold && append_note(a, WARM, 0, NULL) < 0) _exit(73);
    note t = note_of(STEPPED, 0);
    sl_record r = {.value = (const uint8_t *)&t, .value_bytes = sizeof t, .producer_id = -1, .sequence = -1};
    sl_append_result result = {0};
    sl_loan loan = {0};
    int64_t deadline = SOON;
    int rc = 0;
    if (!strcmp(what, "loan")) {
        if (sl_loan_take(a, &r, deadline, &loan, &result) < 0) _exit(74);
        memcpy(loan.value, &t, sizeof t);
    }
    if (!strcmp(what, "rotate")) { /* full, as far as `b` can know, which has no chunk; what comes next is mapped already */
        sl_map *m;
        for (uint64_t n = sl_cur_number(p->cur); n <= sl_cur_number(p->cur) + READY; n++)
            if (sl_map_get(c, sl_log_buffer(p, n), 1, &m) < 0) _exit(75);
            else if (n == sl_cur_number(p->cur)) m->segment->alloc_units = m->arena_units;
    }
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0) _exit(76);
    TRAP();
    if (!strcmp(what, "append") || cold) rc = sl_append(a, &r, -1, deadline, &result);
    else if (!strcmp(what, "loan")) rc = sl_loan_publish(a, &loan, &r, -1, deadline, &result);
    else if (!strcmp(what, "rotate")) rc = sl_append(b, &r, -1, deadline, &result);
    else if (!strcmp(what, "recycle")) rc = sl_log_recycle(c, CHILD_ROW, 0) < 0;
    else if (!strcmp(what, "clean")) rc = sl_row_clean(c, DEAD_ROW) < 0; /* words that must stay for now: clean() comes again */
    TRAP();
    told->offset = result.offset;
    told->rc = rc;
    sl_store_release(&told->reached, 1);
    _exit(0);
}

/* One step or, signal by signal, on to the end. 1 stopped again, 0 gone. */
static int go(enum __ptrace_request how, int *status) {
    if (ptrace(how, child, NULL, NULL) < 0 && errno != ESRCH) WRONG("ptrace: %s", strerror(errno));
    while (waitpid(child, status, 0) < 0) CHECK(errno == EINTR);
    if (!WIFSTOPPED(*status)) { child = 0; return 0; }
    return 1;
}
static int at_trap(void) {
    siginfo_t info;
    return ptrace(PTRACE_GETSIGINFO, child, NULL, &info) == 0 && info.si_signo == SIGTRAP && info.si_code != 2; /* TRAP_TRACE */
}

static void start_child(void) {
    memset(told, 0, sizeof *told);
    fflush(NULL);
    pid_t parent = getpid();
    child = fork();
    CHECK(child >= 0);
    if (child == 0) { child = -1; run_child(parent); }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 76) {
        child = 0;
        fprintf(stderr, "ptrace is not permitted here, so no instruction can be stepped: run where PTRACE_TRACEME is allowed (a container needs "
                        "--cap-add=SYS_PTRACE or a seccomp profile that lets it through; kernel.yama.ptrace_scope must be below 3)\n");
        finish(3);
    }
    if (!WIFSTOPPED(status)) { child = 0; WRONG("the child did not get to its first step: status %d", status); }
#if defined(__aarch64__)
    struct { uint64_t x[31], sp, pc, pstate; } regs;
    struct iovec v = {&regs, sizeof regs};
    CHECK(ptrace(PTRACE_GETREGSET, child, (void *)NT_PRSTATUS, &v) == 0);
    regs.pc += 4;
    CHECK(ptrace(PTRACE_SETREGSET, child, (void *)NT_PRSTATUS, &v) == 0);
#endif
}

/* ---- the others ---- */

static void beside(void) {
    CHECK_EQ(append_note(mine, BESIDE, beside_n, NULL), SL_OK);
    beside_n++;
}

static void make_ready(void) {
    while (sl_log_ready(c, 0) < READY) {
        int64_t buffer = sl_segment_make(c, SL_SEGMENT_MIN_BYTES);
        CHECK(buffer > 0);
        CHECK_EQ(sl_log_publish(c, 31, 0, p->leader_epoch, (uint32_t)buffer), SL_OK);
    }
}
static void spill(void) { /* all of it counts as written */
    sl_offsets o;
    CHECK_EQ(sl_log_offsets(c, 30, 0, &o), SL_OK);
    CHECK_EQ(sl_log_advance(c, 0, SL_WORD_SPILLED, p->leader_epoch, o.end), SL_OK);
}
static void move_on(void) {
    CHECK_EQ(sl_log_seal(c, 30, 0, 0), SL_OK);
    make_ready();
    spill();
}

/* The broker's care for its buffers, in short: returns how many segments there are. */
static int care(void) {
    while (sl_log_takeout(c, 31, 0) > 0) {}
    char prefix[100];
    int n = 0, bytes = snprintf(prefix, sizeof prefix, "%s.s", fixture_prefix) - 1;
    DIR *d = opendir("/dev/shm");
    for (struct dirent *e; (e = readdir(d));) {
        if (strncmp(e->d_name, prefix + 1, (size_t)bytes) != 0) continue;
        uint32_t buffer = (uint32_t)strtoul(e->d_name + bytes, NULL, 10);
        sl_map *m;
        CHECK_EQ(sl_map_get(c, buffer, 1, &m), SL_OK);
        int gone = sl_segment_audit(c, 31, 0, m) == 1;
        if (sl_segment_phase(m->segment) == SL_SEGMENT_LIMBO) gone |= sl_limbo_retry(c, 31, m) > 0;
        uint32_t phase = sl_segment_phase(m->segment);
        gone |= phase == SL_SEGMENT_DEAD || phase == SL_SEGMENT_FREE;
        sl_map_put(c, m);
        if (gone) sl_segment_unlink(c, buffer);
        else n++;
    }
    closedir(d);
    return n;
}

static void clean(uint32_t index) {
    sl_row *row = sl_cluster_row(c, index);
    if (sl_row_clean(c, index) != 0) {
        row->dead_ns -= INT64_C(1100000000); /* a second later */
        CHECK_EQ(sl_row_clean(c, index), 0);
    }
    CHECK(row->hazard[0] == 0 && row->hazard[1] == 0 && row->poll_pin == 0);
    for (int i = 0; i < SL_VIEW_PINS; i++) CHECK(row->view_pins[i] == 0);
    row->generation++;
    sl_store_release(&row->state, SL_ROW_LIVE);
}

/* Everything since the last look: dense, right to the byte. Returns how many of the child's stepped record there are, *at where. */
static int look(int64_t *at) {
    sl_view v[32];
    int stepped = 0;
    for (int64_t n; (n = sl_reader_poll(reader, v, 32, 1 << 20, 1)) != 0;) {
        if (n < 0) WRONG("reading offset %llu: %s", (unsigned long long)sl_reader_position(reader), sl_strerror((int)n));
        for (int64_t i = 0; i < n; i++) {
            CHECK_EQ(v[i].offset, next_offset);
            next_offset++;
            note t;
            CHECK_EQ(v[i].value_bytes, sizeof t);
            memcpy(&t, v[i].value, sizeof t);
            CHECK_EQ(t.turn, turn);
            note want = note_of(t.who, t.n);
            CHECK(memcmp(&t, &want, sizeof t) == 0);
            if (t.who == STEPPED) { stepped++; *at = v[i].offset; }
            else if (t.who == BESIDE) { CHECK_EQ(t.n, seen_beside); seen_beside++; }
            else CHECK_EQ(t.who, WARM);
        }
    }
    sl_reader_done(reader);
    CHECK_EQ(seen_beside, beside_n);
    return stepped;
}

static void die_in_a_segment(void) { /* row DEAD_ROW: as if its owner had been killed between attaching and letting go */
    sl_cluster_row(c, DEAD_ROW)->hazard[0] = sl_pin_make(0, sl_cur_number(p->cur));
    sl_cluster_row(c, DEAD_ROW)->view_pins[3] = sl_pin_make(0, sl_cur_number(p->cur));
}

/* One turn: `steps` instructions (-1: to the end, and counts them). Returns how many there are to the end, or -1. */
static int64_t one(int64_t steps) {
    int status, appends = strcmp(what, "recycle") && strcmp(what, "clean");
    int64_t count = 0, at = -1;
    int found = 0;
    turn = steps < 0 ? 0 : steps;
    if (!strcmp(what, "recycle")) { beside(); look(&at); move_on(); }   /* something to recycle */
    if (!strcmp(what, "clean")) die_in_a_segment();
    start_child();
    int alive = 1;
    if (steps < 0) while (alive && ((alive = go(PTRACE_SINGLESTEP, &status))) && !at_trap()) count++;
    else while (alive && count < steps) { alive = go(PTRACE_SINGLESTEP, &status); count++; }
    if (steps < 0 || stops) {
        if (stops && alive) { /* the partition moves on under it, as far as it goes */
            for (int i = 0; i < 4; i++) { beside(); found += look(&at); move_on(); care(); }
        }
        while (alive) alive = go(PTRACE_CONT, &status); /* the trap at the end is passed over */
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    } else if (alive) {
        kill(child, SIGKILL);
        CHECK(waitpid(child, &status, 0) == child);
        child = 0;
    }
    int complete = told->reached;
    if (complete) CHECK_EQ(told->rc, 0);
    beside(); /* at once, before anybody has cleaned anything */
    found += look(&at);
    if (appends) {
        CHECK(found <= 1);
        if (complete) { CHECK_EQ(found, 1); CHECK_EQ(at, told->offset); }
    } else CHECK_EQ(found, 0);
    clean(CHILD_ROW);
    if (!strcmp(what, "clean")) clean(DEAD_ROW);
    move_on();
    int left = care();
    CHECK_EQ(left, READY + 1);
    seen_beside = beside_n = 0;
    return steps < 0 ? count : -1;
}

int main(int argc, char **argv) {
    if (argc != 4) { fprintf(stderr, "step append|first|loan|rotate|recycle|clean kill|stop EVERY\n"); return 2; }
    what = argv[1];
    stops = !strcmp(argv[2], "stop");
    int every = atoi(argv[3]);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    alarm(1500);
    told = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    fixture_make();
    c = fixture_open();
    p = sl_cluster_partition(c, 0);
    p->flags = SL_PF_SPILL;
    int64_t first = sl_segment_make(c, SL_SEGMENT_MIN_BYTES);
    CHECK_EQ(sl_log_open_epoch(c, 31, 0, 1, (uint32_t)first, 0), 1);
    make_ready();
    CHECK_EQ(sl_appender_open(c, 10, 0, fixture_topic_id, &mine), SL_OK);
    CHECK_EQ(sl_reader_open(c, 12, 0, fixture_topic_id, NULL, &reader), SL_OK);
    int64_t began = sl_monotonic_ns(), most = one(-1), points = 0;
    CHECK(most > 50);
    /* A little beyond the end: the count may differ from run to run where there is a clock or a spin in it. */
    for (int64_t i = 0; i <= most + 10; i += every) { one(i); points++; }
    printf("%s: %s at %lld of %lld instructions, %.1f s\n", what, stops ? "stopped" : "killed", (long long)points, (long long)most + 1,
           (double)(sl_monotonic_ns() - began) / 1e9);
    sl_appender_close(mine);
    sl_reader_close(reader);
    sl_cluster_close(c);
    finish(0);
}
