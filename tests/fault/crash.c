/* One cell of the crash matrix: ./crash PLACE HIT ACTION PRODUCERS REGIME DIRECTORY
 *
 * Real processes on real memory and files: a broker (sl_broker, its own process), producers, a reader that follows, and this one, which is the
 * coordinator (death certificates, successors) and a producer beside the others. One of them, the victim, runs with the failpoint PLACE set, and the
 * HIT-th time it passes there it is killed (ACTION kill) or stopped; stopped it is resumed (resume) or killed (end) when the partition has moved on:
 * appended to by somebody else at once, past three rotations, and through two changes of leader where the victim is not the leader itself.
 *
 * Afterwards all go on to their end, the log is read through, and everything is removed. This program checks what is left behind; what was promised to
 * whom stands in the histories, one a process, for shmlog.testing.history.
 *
 *   regime      the ring
 *   idle        a few records, no rotation
 *   rotating    room for all: segment after segment, none reused
 *   recycling   a budget of 1 MiB: reused all the time, by whoever comes first
 *   alone       memory only, a tethered reader and no broker: producers reuse their own
 *
 * Exit 0: all is well, and stdout says "reached" or "missed"; 1: stderr says what is not. */
#include <dirent.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../c/fixture.h"
#include "broker.h"
#include "history.h"

#define MAIN_ROW 10
#define READER_ROW 12
#define FINAL_ROW 13
#define SPILL_ROW 20
#define PATIENCE_NS INT64_C(240000000000) /* a virtual machine stood still for 30 s here, and a producer took that for a leader that does not come */

enum role { PRODUCER, READER, BROKER, RECOVERY, CLEANER };
static const struct { const char *prefix; enum role role; } roles[] = {
    {"pin_handover", PRODUCER}, {"pin_", READER}, {"announce_", READER}, {"wait_", READER}, {"spill_", BROKER}, {"sync_", BROKER}, {"ring_", BROKER}, {"file_recover", RECOVERY}, {"file_", BROKER},
    {"add_", RECOVERY}, {"fence_cas", RECOVERY}, {"open_", RECOVERY}, {"clean_", CLEANER}, {"", PRODUCER},
};

static struct shared {
    uint32_t go, broker_epoch, drain, drained, drain_code, remove, reader_stop, reader_ready, keeper_stop;
    uint64_t reader_position, reader_target;
} *shared;
static const char *place, *action, *regime, *out;
static char files[300], armed[310]; /* `armed` is there until the victim meets its failpoint or it is decided that it does not */
static int hit, alone, rewrites, fail_a_sync;
static enum role role;
static uint32_t flags, epoch, total_records, per_producer;
static sl_cluster *c;
static sl_partition *p;
static history mine;
static sl_appender *appender;
static uint32_t next_sequence;
static pid_t children[64], broker_pid;
static int n_children;

/* What a stuck ring looks like. */
static uint32_t kept[64];
static void dump(void) {
    if (!c || !p) return;
    fprintf(stderr, "  cur %llu epoch %u, log start %llu, spilled %llu\n", (unsigned long long)sl_cur_number(p->cur), sl_cur_epoch(p->cur),
            (unsigned long long)sl_word_offset(p->log_start), (unsigned long long)sl_word_offset(p->spilled));
    for (uint32_t i = 0; i < SL_DIR_SLOTS; i++)
        if (sl_dir_buffer(p->dir[i])) fprintf(stderr, "  dir: number %u is buffer %u\n", sl_dir_number(p->dir[i]), sl_dir_buffer(p->dir[i]));
    for (uint32_t i = 0; i < 64 && kept[i]; i++) {
        sl_map *m;
        if (sl_map_get(c, kept[i], 0, &m) != SL_OK) continue;
        uint64_t w = m->segment->claim;
        fprintf(stderr, "  buffer %u: phase %u, row %d, number %llu, tainted %u\n", kept[i], sl_claim_phase(w), (int)sl_claim_row(w), (unsigned long long)sl_claim_number(w), m->segment->tainted);
        sl_map_put(c, m);
    }
    for (uint32_t r = 0; r < 32; r++) {
        sl_row *row = sl_cluster_row(c, r);
        if (row->hazard[0] | row->hazard[1] | row->poll_pin | row->view_pins[0] | (uint64_t)(row->state == SL_ROW_DEAD))
            fprintf(stderr, "  row %u: state %u, names %llx %llx %llx %llx\n", r, row->state, (unsigned long long)row->hazard[0], (unsigned long long)row->hazard[1],
                    (unsigned long long)row->poll_pin, (unsigned long long)row->view_pins[0]);
    }
    sl_waits *w = sl_cluster_waits(c, 0);
    for (int i = 0; i < SL_TETHERS; i++) if (w->tethers[i]) fprintf(stderr, "  tether at %llu\n", (unsigned long long)(w->tethers[i] & SL_NUMBER_MASK));
    fprintf(stderr, "  the reader is at %llu\n", (unsigned long long)shared->reader_position);
}
static void finish(int code) {
    for (int i = 0; i < n_children; i++) if (children[i] > 0) { kill(children[i], SIGKILL); waitpid(children[i], NULL, 0); }
    char name[300];
    snprintf(name, sizeof name, "%s.", fixture_prefix);
    DIR *d = opendir("/dev/shm");
    for (struct dirent *e; d && (e = readdir(d));)
        if (strncmp(e->d_name, name + 1, strlen(name) - 1) == 0) { char full[300]; snprintf(full, sizeof full, "/%.255s", e->d_name); shm_unlink(full); }
    if (d) closedir(d);
    exit(code);
}
#define WRONG(...) do { fprintf(stderr, "%s:%d %s %u %s: ", place, hit, action, total_records, regime); fprintf(stderr, __VA_ARGS__); fputc('\n', stderr); dump(); finish(1); } while (0)
#define CHECK(cond) do { if (!(cond)) WRONG("not so (line %d): %s", __LINE__, #cond); } while (0)
#define EVENTUALLY(cond) do { int64_t until_ = sl_monotonic_ns() + PATIENCE_NS; while (!(cond)) { if (sl_monotonic_ns() > until_) WRONG("never (line %d): %s", __LINE__, #cond); usleep(100); } } while (0)

static pid_t begin_child(int is_victim) {
    fflush(NULL);
    pid_t parent = getpid(), pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(71);
        n_children = 0;
        if (is_victim) {
            char text[500];
            snprintf(text, sizeof text, "%s:%d:%s:%s", place, hit, strcmp(action, "kill") ? "stop" : "kill", armed);
            setenv("SHMLOG_FAILPOINT", text, 1);
            fail_a_sync = rewrites;
        }
        c = fixture_open();
        p = sl_cluster_partition(c, 0);
        return 0;
    }
    for (int i = 0; i < n_children; i++) if (children[i] == 0) { children[i] = pid; return pid; }
    children[n_children++] = pid;
    return pid;
}
static void forget(pid_t pid) { for (int i = 0; i < n_children; i++) if (children[i] == pid) children[i] = 0; }

/* ---- values and appends ---- */

static uint32_t fill(uint8_t *to, uint64_t producer, uint64_t sequence) {
    uint32_t bytes = 16 + (uint32_t)((sequence * 2654435761u + producer * 40503u) % 1000);
    for (uint32_t i = 0; i < bytes; i++) to[i] = (uint8_t)(producer * 31 + sequence + i);
    memcpy(to, &producer, 8);
    memcpy(to + 8, &sequence, 8);
    return bytes;
}

/* Retried as a client does, until the deadline; the outcome goes into the history. */
static int append(history *h, sl_appender *a, uint64_t producer, uint32_t sequence, sl_loan *loan, int64_t deadline) {
    uint8_t local[1100], *value = loan ? loan->value : local;
    uint32_t bytes = fill(value, producer, sequence);
    sl_record r = {.value = value, .value_bytes = bytes, .producer_id = -1, .sequence = -1};
    history_row *row = history_send(h, (uint32_t)producer, producer << 40 | sequence, sl_crc32c(0, value, bytes));
    sl_append_result result;
    int rc;
    for (;;) {
        rc = loan ? sl_loan_publish(a, loan, &r, -1, deadline, &result) : sl_append(a, &r, -1, deadline, &result);
        if ((rc != SL_E_FENCED && rc != SL_E_INTR) || sl_monotonic_ns() > deadline) break;
        if (rc == SL_E_FENCED) usleep(200);
    }
    history_done(row, rc == SL_OK ? HISTORY_OK : HISTORY_FAIL, rc == SL_OK ? result.offset : -1);
    return rc;
}

static void produce(uint32_t producer, uint32_t records) {
    char name[40];
    snprintf(name, sizeof name, "producer-%u", producer);
    history h = history_open(out, name, records + 10);
    sl_appender *a;
    if (sl_appender_open(c, producer, 0, fixture_topic_id, &a) != SL_OK) _exit(2);
    while (!sl_load_acquire(&shared->go)) usleep(50);
    sl_loan loan = {0};
    for (uint32_t n = 0; n < records; n++) {
        int64_t deadline = sl_monotonic_ns() + PATIENCE_NS / 2;
        int rc = SL_OK;
        if (!loan.value && n % 5 == 4) {
            sl_record r = {.value = (const uint8_t *)"", .value_bytes = 1100, .producer_id = -1, .sequence = -1};
            sl_append_result result;
            while ((rc = sl_loan_take(a, &r, deadline, &loan, &result)) == SL_E_FENCED || rc == SL_E_INTR) usleep(200);
            if (rc != SL_OK) { fprintf(stderr, "producer %u, loan %u: %s\n", producer, n, sl_strerror(rc)); _exit(3); }
        }
        rc = append(&h, a, producer, n, loan.value && n % 5 == 3 ? &loan : NULL, deadline);
        if (rc != SL_OK) { fprintf(stderr, "producer %u, record %u: %s\n", producer, n, sl_strerror(rc)); _exit(3); }
        if (n % 8 == 0) usleep(50); /* so that the reader sleeps now and then */
    }
    if (loan.value) sl_loan_drop(a, &loan);
    sl_appender_close(a);
    _exit(0);
}

/* Appends, in this process, as one more producer. */
static int beside(int64_t patience_ns) {
    int rc = append(&mine, appender, 100, next_sequence, NULL, sl_monotonic_ns() + patience_ns);
    next_sequence++;
    return rc;
}

/* ---- the reader ---- */

static uint64_t read_all(history *h, uint32_t client, sl_reader *r, uint64_t target, int follow) {
    static sl_view v[64];
    for (;;) {
        int64_t begin = sl_monotonic_ns();
        int64_t n = sl_reader_poll(r, v, 64, 1 << 20, 1), end = sl_monotonic_ns();
        if (n == SL_E_INTR) continue;
        if (n < 0) { fprintf(stderr, "client %u at offset %llu: %s\n", client, (unsigned long long)sl_reader_position(r), sl_strerror((int)n)); return UINT64_MAX; }
        for (int64_t i = 0; i < n; i++) {
            uint64_t note[2] = {0, 0};
            if (v[i].value_bytes >= 16) memcpy(note, v[i].value, 16);
            history_saw(h, HISTORY_READ, client, note[0] << 40 | note[1], v[i].offset, begin, end, sl_crc32c(0, v[i].value, v[i].value_bytes));
        }
        uint64_t at = sl_reader_position(r);
        sl_reader_done(r);
        if (follow) {
            sl_store_release(&shared->reader_position, at);
            if (sl_load_acquire(&shared->reader_stop) && at >= sl_load_acquire(&shared->reader_target)) return at;
            if (n == 0) sl_readers_wait(c, READER_ROW, &r, 1, 0, sl_monotonic_ns() + 2000000);
        } else if (n == 0 && at >= target) return at;
        else if (n == 0) return at; /* the end, short of what was asked for */
    }
}

static void follow(void) {
    history h = history_open(out, "reader", total_records * 2 + 30000);
    sl_reader *r;
    if (sl_reader_open(c, READER_ROW, 0, fixture_topic_id, alone ? NULL : files, &r) != SL_OK) _exit(2);
    if (alone && sl_reader_tether(r, 1) < 0) _exit(2);
    int64_t now = sl_monotonic_ns();
    history_saw(&h, HISTORY_SEEK, 12, 0, (int64_t)sl_reader_position(r), now, now, 0);
    sl_store_release(&shared->reader_ready, 1);
    if (read_all(&h, 12, r, 0, 1) == UINT64_MAX) _exit(3);
    sl_reader_close(r);
    _exit(0);
}

/* ---- the broker: as shmlog/broker does it, in short ---- */

/* For what comes only after a disk that failed: one sync of the victim's fails, once. */
int fdatasync(int fd) {
    static int synced;
    if (fail_a_sync && sl_fetch_add_relaxed(&synced, 1) == 3) { errno = EIO; return -1; }
    return (int)syscall(SYS_fdatasync, fd);
}

/* A rewrite that was not finished, and tables whose .log never came: as recovery.py. */
static void remove_halves(void) {
    char path[600], log[600];
    snprintf(path, sizeof path, "rm -rf '%s/rewrite'", files);
    if (system(path) != 0) _exit(5);
    DIR *d = opendir(files);
    for (struct dirent *e; d && (e = readdir(d));) {
        size_t n = strlen(e->d_name);
        if (n < 7 || strcmp(e->d_name + n - 6, ".cells")) continue;
        snprintf(log, sizeof log, "%s/%.*s.log", files, (int)(n - 6), e->d_name);
        snprintf(path, sizeof path, "%s/%.200s", files, e->d_name);
        if (access(log, F_OK) != 0) unlink(path);
    }
    if (d) closedir(d);
}

static uint64_t recover(uint64_t cut_at, uint64_t durable) {
    remove_halves();
    sl_file_entry found[256];
    for (int64_t n = sl_file_list(files, found, 256); n > 0; n--) {
        uint64_t cut;
        char path[400];
        int64_t end = sl_file_recover(files, found[n - 1].name, cut_at, durable, &cut);
        if (end < 0) { fprintf(stderr, "recovery of %s: %s\n", found[n - 1].name, sl_strerror((int)end)); _exit(5); }
        if ((uint64_t)end > found[n - 1].base_offset) return (uint64_t)end;
        snprintf(path, sizeof path, "%s/%s", files, found[n - 1].name);
        unlink(path);
        memcpy(path + strlen(path) - 3, "cells", 6);
        unlink(path);
    }
    return 0;
}

static void serve(uint32_t my_epoch) {
    uint64_t number = sl_cur_number(p->cur), base = 0;
    int in_memory = number && sl_log_buffer(p, number) != 0;
    if (!alone) base = in_memory ? recover(sl_word_offset(sl_load_acquire(&p->spilled)), sl_word_offset(sl_load_acquire(&p->durable))) : recover(UINT64_MAX, 0);
    sl_broker *b;
    sl_broker_options o = {.process = 1, .spill_row = SPILL_ROW, .broker_epoch = my_epoch,
                           .memory_max_bytes = strcmp(regime, "recycling") ? 64 << 20 : 1 << 20, .reserve_disk_bytes = 0};
    if (sl_broker_start(c, &o, &b) < 0) _exit(6);
    sl_broker_partition given = {.block = 0, .leader_epoch = my_epoch, .base_offset = base, .file_roll_bytes = role == RECOVERY ? 64 << 20 : 150000, .flush_ns = 2000000,
                                 .flush_messages = UINT64_MAX, .dir = alone ? NULL : files};
    int rc = sl_broker_add(b, &given);
    if (rc < 0) { fprintf(stderr, "sl_broker_add, epoch %u: %s\n", my_epoch, sl_strerror(rc)); _exit(7); }
    sl_store_release(&shared->broker_epoch, my_epoch);
    while (!sl_load_acquire(&shared->remove)) {
        if (sl_load_acquire(&shared->drain) && !sl_load_acquire(&shared->drained)) {
            int code = sl_broker_drain(b, sl_monotonic_ns() + PATIENCE_NS);
            sl_store_release(&shared->drain_code, (uint32_t)-code);
            sl_store_release(&shared->drained, 1);
        }
        usleep(200);
    }
    if (sl_broker_remove(b, 0) != SL_OK) _exit(8);
    for (int64_t until = sl_monotonic_ns() + PATIENCE_NS / 2;;) { /* what somebody named, alive or dead by certificate, is nobody's by now */
        pthread_mutex_lock(&b->lock);
        uint32_t held = b->limbo.n;
        pthread_mutex_unlock(&b->lock);
        if (!held) break;
        if (sl_monotonic_ns() > until) { fprintf(stderr, "%u segments stay in limbo\n", held); _exit(9); }
        usleep(1000);
    }
    sl_broker_free(b);
    _exit(0);
}

static void clean(uint32_t row) {
    if (sl_row_clean(c, row) != 0) { /* as the coordinator does after a second: what the dead named is over by then */
        sl_row *r = sl_cluster_row(c, row);
        sl_store_relaxed(&r->dead_ns, sl_load_relaxed(&r->dead_ns) - INT64_C(1100000000));
        CHECK(sl_row_clean(c, row) == 0);
    }
}
static void revive(uint32_t row) {
    clean(row);
    sl_row *r = sl_cluster_row(c, row);
    r->generation++;
    sl_store_release(&r->state, SL_ROW_LIVE);
}

static void start_broker(int is_victim) {
    if (epoch) revive(SPILL_ROW);
    epoch++;
    pid_t pid = begin_child(is_victim);
    if (pid == 0) serve(epoch);
    broker_pid = pid;
}
/* Gone without a word: 0; else its exit code is an error. */
static void await_broker(void) {
    EVENTUALLY(({
        int status, gone = waitpid(broker_pid, &status, WNOHANG) == broker_pid;
        if (gone) { forget(broker_pid); WRONG("the broker of epoch %u ended with status %d before it served", epoch, status); }
        sl_load_acquire(&shared->broker_epoch) == epoch;
    }));
}
static void end_process(pid_t pid) {
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, NULL, 0) == pid);
    forget(pid);
}
static void change_leader(void) {
    end_process(broker_pid);
    start_broker(0);
    await_broker();
}

/* In `alone` somebody must still do what only a broker does for a ring: what was named when it was taken out is looked at again, what is lost with a
 * dead row is replaced. It never takes anything out by itself. */
#define KEEPER_ROW 15
static void keep(void) {
    while (!sl_load_acquire(&shared->keeper_stop)) {
        for (int i = 0; i < 64 && kept[i]; i++) {
            sl_map *m;
            if (sl_map_get(c, kept[i], 1, &m) != SL_OK) _exit(10);
            int lost = sl_segment_audit(c, KEEPER_ROW, 0, m) == 1;
            if (sl_segment_phase(m->segment) == SL_SEGMENT_LIMBO) sl_limbo_retry(c, KEEPER_ROW, m);
            uint32_t phase = sl_segment_phase(m->segment);
            sl_map_put(c, m);
            if (lost || phase == SL_SEGMENT_DEAD) {
                sl_segment_unlink(c, kept[i]);
                int64_t fresh = sl_segment_make(c, SL_SEGMENT_MIN_BYTES);
                if (fresh < 0) _exit(11);
                kept[i] = (uint32_t)fresh;
                phase = SL_SEGMENT_FREE;
            }
            if (phase == SL_SEGMENT_FREE) sl_log_publish(c, KEEPER_ROW, 0, p->leader_epoch, kept[i]);
        }
        usleep(500);
    }
    _exit(0);
}

static int segments_left(char *which) {
    char prefix[100];
    snprintf(prefix, sizeof prefix, "%s.s", fixture_prefix);
    int n = 0;
    DIR *d = opendir("/dev/shm");
    for (struct dirent *e; (e = readdir(d));)
        if (strncmp(e->d_name, prefix + 1, strlen(prefix) - 1) == 0) { n++; snprintf(which, 100, "%.99s", e->d_name); }
    closedir(d);
    return n;
}

int main(int argc, char **argv) {
    if (argc != 7) { fprintf(stderr, "crash PLACE HIT kill|resume|end PRODUCERS idle|rotating|recycling|alone DIRECTORY\n"); return 2; }
    place = argv[1]; hit = atoi(argv[2]); action = argv[3]; regime = argv[5]; out = argv[6];
    uint32_t producers = (uint32_t)atoi(argv[4]);
    alone = !strcmp(regime, "alone");
    rewrites = !strncmp(place, "file_install", 12); /* passed only after a disk that failed, and a moment's rest */
    int idle = !strcmp(regime, "idle");
    for (size_t i = 0;; i++) if (!strncmp(place, roles[i].prefix, strlen(roles[i].prefix))) { role = roles[i].role; break; }
    int half_made = !strcmp(place, "file_recover_remove"); /* needs a predecessor that died while it made a file */
    total_records = idle ? 96 : 2400;
    per_producer = total_records / producers;
    flags = alone ? 0 : SL_PF_SPILL;
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    alarm(600); /* a hang is a failure */

    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    snprintf(files, sizeof files, "%s/log", out);
    CHECK(mkdir(files, 0700) == 0);
    snprintf(armed, sizeof armed, "%s/armed", out);
    CHECK(mknod(armed, S_IFREG | 0600, 0) == 0);
    fixture_make();
    c = fixture_open();
    p = sl_cluster_partition(c, 0);
    p->flags = flags;
    mine = history_open(out, "beside", 40000);

    pid_t keeper = 0;
    if (alone) {
        epoch = 1;
        int64_t first = sl_segment_make(c, SL_SEGMENT_MIN_BYTES);
        CHECK(sl_log_open_epoch(c, MAIN_ROW, 0, 1, (uint32_t)first, 0) == 1);
        kept[0] = (uint32_t)first;
        for (uint32_t i = 0; i < producers + 5; i++) { /* each producer may hold one by a loan while it waits for room */
            int64_t more = sl_segment_make(c, SL_SEGMENT_MIN_BYTES);
            CHECK(sl_log_publish(c, MAIN_ROW, 0, 1, (uint32_t)more) == SL_OK);
            kept[i + 1] = (uint32_t)more;
        }
        keeper = begin_child(0);
        if (keeper == 0) keep();
    } else {
        if (half_made) setenv("SHMLOG_FAILPOINT", "file_create_cells:1:kill", 1);
        start_broker(role == BROKER);
        unsetenv("SHMLOG_FAILPOINT");
        if (role != BROKER) await_broker();
    }
    pid_t victim = role == BROKER ? broker_pid : 0, reader = begin_child(role == READER);
    if (reader == 0) follow();
    if (role == READER) victim = reader;
    pid_t pids[8];
    for (uint32_t i = 0; i < producers; i++) {
        int is_victim = i == 0 && role == PRODUCER;
        pids[i] = begin_child(is_victim);
        if (pids[i] == 0) {
            if (i == 0 && role == CLEANER) { char text[] = "payload_write:9:kill"; setenv("SHMLOG_FAILPOINT", text, 1); }
            produce(i, per_producer);
        }
        if (is_victim) victim = pids[i];
    }
    if (alone || role != READER) EVENTUALLY(sl_load_acquire(&shared->reader_ready) || waitpid(reader, NULL, WNOHANG | WNOWAIT) == reader);
    CHECK(sl_appender_open(c, MAIN_ROW, 0, fixture_topic_id, &appender) == SL_OK);
    sl_store_release(&shared->go, 1);

    if (role == RECOVERY) { /* the victim is the successor of a broker that was killed at work */
        /* The broker that dies over its first file makes no room: then the producers alone fill what is ready, and wait for its successor. */
        for (int i = 0; i < 20 && !half_made; i++) CHECK(beside(PATIENCE_NS) == SL_OK);
        if (half_made) {
            EVENTUALLY(waitpid(broker_pid, NULL, WNOHANG) == broker_pid);
            forget(broker_pid);
        } else {
            EVENTUALLY(sl_word_offset(sl_load_acquire(&p->durable)) >= (idle ? 20 : 500)); /* there is something to recover */
            end_process(broker_pid);
        }
        if (!strcmp(place, "file_recover_page") || !strcmp(place, "file_recover_table")) { /* whole pages are written only where the table is made anew */
            sl_file_entry found[256];
            int64_t n = sl_file_list(files, found, 256);
            char path[400];
            snprintf(path, sizeof path, "%s/%s", files, found[n - 1].name);
            memcpy(path + strlen(path) - 3, "cells", 6);
            CHECK(n == 1 && unlink(path) == 0);
        }
        start_broker(1);
        victim = broker_pid;
    }
    if (role == CLEANER) { /* the victim is who cleans up after a producer that died in a segment */
        int status;
        CHECK(waitpid(pids[0], &status, 0) == pids[0] && WIFSIGNALED(status));
        forget(pids[0]);
        pids[0] = 0;
        victim = begin_child(1);
        if (victim == 0) { sl_row_clean(c, 0); _exit(0); }
    }

    /* ---- it happens, or not ---- */
    int status = 0, reached = -1;
    EVENTUALLY(({
        if (waitpid(victim, &status, WNOHANG | WUNTRACED) == victim) {
            reached = WIFSTOPPED(status) || WIFSIGNALED(status);
            if (!WIFSTOPPED(status)) forget(victim);
            if (!reached && WEXITSTATUS(status)) WRONG("the victim ended with %d", WEXITSTATUS(status));
        } else if (role == BROKER || role == READER || role == RECOVERY) { /* they never end by themselves: it is over when the producers are done */
            int busy = 0;
            for (uint32_t i = 0; i < producers; i++) {
                siginfo_t info = {0};
                if (pids[i] && (waitid(P_PID, (id_t)pids[i], &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0)) busy = 1;
            }
            static int64_t quiet_ns;
            if (busy) quiet_ns = 0;
            else if (!quiet_ns) quiet_ns = sl_monotonic_ns();
            if (role == RECOVERY && sl_load_acquire(&shared->broker_epoch) != epoch) quiet_ns = 0;
            if (quiet_ns && sl_monotonic_ns() - quiet_ns > (rewrites ? 2000000000 : 30000000) && unlink(armed) == 0) reached = 0;
        }
        reached >= 0;
    }));
    int dead = reached == 1 && WIFSIGNALED(status), stopped = reached == 1 && WIFSTOPPED(status);
    if (dead) CHECK(WTERMSIG(status) == SIGKILL);
    int leader = role == BROKER || role == RECOVERY;
    if (reached) {
        /* Nobody is held up: somebody else appends at once, whatever the state of the victim. Without a broker, only as long as there is room. */
        uint64_t from = sl_cur_number(sl_load_acquire(&p->cur));
        for (int i = 0; i < (idle ? 20 : 3000); i++) {
            int rc = beside(leader ? 20000000 : PATIENCE_NS / 2);
            if (leader && rc != SL_OK) break;
            if (rc != SL_OK) WRONG("beside the victim: %s", sl_strerror(rc));
            if (!idle && sl_cur_number(sl_load_acquire(&p->cur)) >= from + 3) break;
        }
        if (stopped && !leader && !alone) { change_leader(); CHECK(beside(PATIENCE_NS) == SL_OK); change_leader(); CHECK(beside(PATIENCE_NS) == SL_OK); }
        if (stopped && !strcmp(action, "end")) { end_process(victim); dead = 1; }
        else if (stopped) kill(victim, SIGCONT);
        if (dead && role == PRODUCER) { clean(0); pids[0] = 0; }
        if (dead && role == READER) { clean(READER_ROW); reader = 0; }
        if (dead && leader) start_broker(0);
        if (role == CLEANER) { if (!dead) { CHECK(waitpid(victim, &status, 0) == victim && status == 0); forget(victim); } clean(0); }
    } else if (role == PRODUCER) pids[0] = 0; /* reaped above */
    else if (role == CLEANER) clean(0); /* it came too late for the taint: the segment was out of the directory, and the words are for later */
    if (leader && (dead || role == RECOVERY)) await_broker();

    /* ---- all come to their end ---- */
    for (uint32_t i = 0; i < producers; i++) {
        if (!pids[i]) continue;
        EVENTUALLY(waitpid(pids[i], &status, WNOHANG) == pids[i]);
        forget(pids[i]);
        if (status) WRONG("producer %u ended with status %d", i, status);
    }
    CHECK(beside(PATIENCE_NS) == SL_OK);
    sl_offsets o;
    int64_t looked = sl_monotonic_ns();
    CHECK(sl_log_offsets(c, MAIN_ROW, 0, &o) == SL_OK);
    int64_t seen = sl_monotonic_ns();
    const uint64_t marks[] = {o.log_start, o.durable, o.spilled, o.last_stable, o.high_watermark, o.end};
    for (int i = 0; i < 6; i++) if (!alone || (i != HISTORY_DURABLE && i != HISTORY_SPILLED)) history_mark(&mine, i, (int64_t)marks[i], looked, seen);
    sl_store_release(&shared->reader_target, o.end);
    sl_store_release(&shared->reader_stop, 1);
    if (reader) {
        EVENTUALLY(waitpid(reader, &status, WNOHANG) == reader);
        forget(reader);
        if (status) WRONG("the reader ended with status %d", status);
    }
    if (!alone) {
        sl_store_release(&shared->drain, 1);
        EVENTUALLY(sl_load_acquire(&shared->drained));
        CHECK(sl_load_acquire(&shared->drain_code) == 0);
        CHECK(sl_word_offset(sl_load_acquire(&p->durable)) == o.end);
        int64_t began = sl_monotonic_ns();
        sl_reader *r;
        CHECK(sl_reader_open(c, FINAL_ROW, 0, fixture_topic_id, files, &r) == SL_OK);
        CHECK(sl_reader_seek(r, 0) == SL_OK);
        history last = history_open(out, "final", o.end + 10);
        CHECK(read_all(&last, 13, r, o.end, 0) == o.end);
        history_saw(&last, HISTORY_FINAL, 13, 0, 0, began, sl_monotonic_ns(), (int64_t)o.end);
        sl_reader_close(r);
    } else {
        sl_appender_close(appender);
        sl_store_release(&shared->keeper_stop, 1);
        EVENTUALLY(waitpid(keeper, &status, WNOHANG) == keeper);
        forget(keeper);
        CHECK(status == 0);
        start_broker(0); /* it adopts what is there */
        await_broker();
    }

    /* ---- and leave nothing ---- */
    if (!alone) sl_appender_close(appender);
    for (uint32_t i = 0; i < 32; i++) {
        sl_row *row = sl_cluster_row(c, i);
        if (i == SPILL_ROW) continue; /* at work */
        CHECK(row->hazard[0] == 0 && row->hazard[1] == 0 && row->poll_pin == 0);
        for (int k = 0; k < SL_VIEW_PINS; k++) CHECK(row->view_pins[k] == 0);
        CHECK(row->sleeping == SL_AWAKE);
    }
    sl_waits *w = sl_cluster_waits(c, 0);
    for (int i = 0; i < SL_TETHERS; i++) CHECK(w->tethers[i] == 0);
    char left[100] = "";
    sl_store_release(&shared->remove, 1);
    EVENTUALLY(waitpid(broker_pid, &status, WNOHANG) == broker_pid);
    forget(broker_pid);
    if (status) WRONG("the last broker ended with status %d", status);
    if (segments_left(left)) WRONG("%d segments are left in /dev/shm, %s one of them", segments_left(left), left);
    if (!alone) {
        sl_file_entry found[256];
        int64_t n = sl_file_list(files, found, 256);
        CHECK(n > 0);
        for (int64_t i = 0; i < n; i++) {
            sl_file_problem problem[4];
            size_t problems = 0;
            CHECK(sl_file_verify(files, found[i].name, problem, 4, &problems) >= 0);
            if (problems) WRONG("%s: %s", found[i].name, problem[0].what);
        }
    }
    sl_cluster_close(c);
    puts(reached ? "reached" : "missed");
    finish(0);
}
