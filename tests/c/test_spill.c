/* The broker's threads on real memory, real files and real threads: spill, sync, ring care, adoption, damage, a disk that refuses. */
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "fixture.h"
#include "broker.h"

static int failed;
#define CHECK(cond) do { if (!(cond)) { fprintf(stderr, "  %s:%d: not so: %s\n", __FILE__, __LINE__, #cond); failed = 1; return; } } while (0)
#define CHECK_EQ(a, b) do { long long a_ = (long long)(a), b_ = (long long)(b); if (a_ != b_) { \
    fprintf(stderr, "  %s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #a, a_, b_); failed = 1; return; } } while (0)
/* A condition and a deadline, never a sleep that hopes. */
#define EVENTUALLY(cond) do { int64_t until_ = SOON; while (!(cond) && sl_monotonic_ns() < until_) usleep(500); CHECK(cond); } while (0)

#define SPILL_ROW 20
static sl_cluster *c;
static sl_broker *broker;
static char dir[256];

static void begin(uint32_t flags) {
    fixture_make();
    c = fixture_open();
    for (uint32_t b = 0; b < 4; b++) sl_cluster_partition(c, b)->flags = flags;
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/shmlog-spill-XXXXXX", tmp ? tmp : "/tmp");
    SL_ASSERT(mkdtemp(dir));
}

static void start(uint64_t memory_max_bytes, uint64_t reserve) {
    sl_broker_options o = {.process = 1, .spill_row = SPILL_ROW, .broker_epoch = 1, .memory_max_bytes = memory_max_bytes, .reserve_disk_bytes = reserve};
    int rc = sl_broker_start(c, &o, &broker);
    if (rc < 0) { fprintf(stderr, "sl_broker_start: %s\n", sl_strerror(rc)); exit(2); }
}

static int add(uint32_t block, uint32_t epoch, uint64_t base, int with_dir, uint64_t roll, int64_t flush_ns) {
    sl_broker_partition p = {.block = block, .leader_epoch = epoch, .base_offset = base, .file_roll_bytes = roll, .flush_ns = flush_ns,
                             .flush_messages = UINT64_MAX, .dir = with_dir ? dir : NULL};
    return sl_broker_add(broker, &p);
}

static void end(void) {
    if (broker) sl_broker_free(broker);
    broker = NULL;
    sl_cluster_close(c);
    fixture_unlink();
    char command[300];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    if (system(command) != 0) fprintf(stderr, "  %s stays\n", dir);
}

static uint64_t word(uint64_t *w) { return sl_word_offset(sl_load_acquire(w)); }

static int append_bytes(sl_appender *a, const void *value, uint32_t bytes, int64_t deadline, int64_t *offset) {
    sl_record r = {.value = value, .value_bytes = bytes, .producer_id = -1, .sequence = -1};
    sl_append_result result;
    int rc = sl_append(a, &r, -1, deadline, &result);
    if (offset) *offset = result.offset;
    return rc;
}

/* Values are reproducible from their offset: 8 bytes of it, then bytes that follow from it. */
static uint32_t value_of(uint64_t offset, uint8_t *to, uint32_t most) {
    uint32_t bytes = 8 + (uint32_t)((offset * 2654435761u) % most);
    memcpy(to, &offset, 8);
    for (uint32_t i = 8; i < bytes; i++) to[i] = (uint8_t)(offset + i);
    return bytes;
}

/* All files of the directory, in order: dense, right, values as made. Returns the end offset, or -1. */
static int64_t read_files(uint32_t most, uint64_t *lost) {
    sl_file_entry files[256];
    int64_t n = sl_file_list(dir, files, 256), next = -1;
    static uint8_t buffer[1 << 20], want[1 << 20];
    *lost = 0;
    for (int64_t f = 0; f < n; f++) {
        size_t problems = 0;
        sl_file_problem problem[64];
        int64_t frames = sl_file_verify(dir, files[f].name, problem, 64, &problems);
        if (problems && problems <= 64 && problem[0].code == SL_E_LOST && problem[problems - 1].code == SL_E_LOST) problems = 0; /* counted below */
        if (frames < 0 || problems) {
            fprintf(stderr, "  %s: %zu problems: %s\n", files[f].name, problems, problems ? problem[0].what : "");
            return -1;
        }
        char path[400];
        snprintf(path, sizeof path, "%s/%s", dir, files[f].name);
        FILE *in = fopen(path, "rb");
        if (!in) return -1;
        int64_t position = SL_FILE_HEADER_BYTES, offset = (int64_t)files[f].base_offset;
        if (next >= 0 && offset != next) { fprintf(stderr, "  %s does not follow %lld\n", files[f].name, (long long)next); fclose(in); return -1; }
        for (;;) {
            uint32_t frame_bytes;
            if (fseek(in, position, SEEK_SET) != 0 || fread(&frame_bytes, 4, 1, in) != 1 || frame_bytes == 0) break;
            if (frame_bytes > sizeof buffer) { offset++; position += (frame_bytes + 63) & ~63u; continue; } /* verify has seen it */
            if (fseek(in, position, SEEK_SET) != 0 || fread(buffer, 1, frame_bytes, in) != frame_bytes) break;
            sl_view v;
            uint16_t flags;
            memcpy(&flags, buffer + 24, 2);
            if ((flags & SL_FF_KIND_MASK) == SL_FF_CONTROL) *lost += sl_frame_rows(buffer);
            else if (sl_frame_views(buffer, frame_bytes, offset, 0, &v, 1) == 1 && most) {
                uint32_t bytes = value_of((uint64_t)offset, want, most);
                if (v.value_bytes != bytes || memcmp(v.value, want, bytes)) { fprintf(stderr, "  record %lld is another\n", (long long)offset); fclose(in); return -1; }
            }
            offset += sl_frame_rows(buffer);
            position += (frame_bytes + 63) & ~63u;
        }
        fclose(in);
        next = offset;
    }
    return next;
}

static void records_reach_files_and_become_durable(void) {
    begin(SL_PF_SPILL);
    start(64 << 20, 0);
    CHECK_EQ(add(0, 1, 0, 1, 1 << 20, 1000000), SL_OK);
    sl_partition *p = sl_cluster_partition(c, 0);
    sl_appender *a;
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), SL_OK);
    uint8_t value[4096];
    for (uint64_t i = 0; i < 20000; i++) {
        int64_t offset;
        CHECK_EQ(append_bytes(a, value, value_of(i, value, 1000), SOON, &offset), SL_OK);
        CHECK_EQ(offset, i);
    }
    CHECK_EQ(sl_wait_durable(c, 0, 0, fixture_topic_id, 20000, SOON), SL_OK);
    CHECK_EQ(word(&p->durable), 20000);
    CHECK_EQ(word(&p->spilled), 20000);
    CHECK_EQ(sl_broker_unspilled_bytes(broker), 0);
    CHECK_EQ(sl_broker_stop(broker, SOON), SL_OK);
    uint64_t lost;
    CHECK_EQ(read_files(1000, &lost), 20000);
    CHECK_EQ(lost, 0);
    sl_file_entry files[64];
    CHECK(sl_file_list(dir, files, 64) > 5); /* rolled at 1 MiB */
    sl_appender_close(a);
    end();
}

struct many { uint32_t row; int n; int failed; };
static void *append_many(void *argument) {
    struct many *m = argument;
    sl_appender *a;
    if (sl_appender_open(c, m->row, 0, fixture_topic_id, &a) < 0) { m->failed = 1; return NULL; }
    uint8_t value[70000];
    memset(value, (int)m->row, sizeof value);
    for (int i = 0; i < m->n && !m->failed; i++)
        if (append_bytes(a, value, (uint32_t)(i % 97 == 0 ? 60000 : 100 + i % 400), SOON, NULL) < 0) m->failed = 1;
    sl_appender_close(a);
    return NULL;
}

static void many_producers_fill_a_small_ring_and_nothing_is_lost(void) {
    begin(SL_PF_SPILL);
    start(4 << 20, 0);
    CHECK_EQ(add(0, 1, 0, 1, 4 << 20, 50000000), SL_OK);
    struct many m[4];
    pthread_t t[4];
    for (uint32_t i = 0; i < 4; i++) { m[i] = (struct many){i, 5000, 0}; pthread_create(&t[i], NULL, append_many, &m[i]); }
    for (int i = 0; i < 4; i++) { pthread_join(t[i], NULL); CHECK(!m[i].failed); }
    CHECK_EQ(sl_broker_drain(broker, SOON), SL_OK);
    CHECK_EQ(word(&sl_cluster_partition(c, 0)->durable), 20000);
    CHECK(sl_load_relaxed(&sl_cluster_partition(c, 0)->ring_bytes) <= 4 << 20);
    CHECK_EQ(sl_broker_stop(broker, SOON), SL_OK);
    uint64_t lost;
    CHECK_EQ(read_files(0, &lost), 20000);
    CHECK_EQ(lost, 0);
    end();
}

static void large_frames_get_segments_that_hold_them(void) {
    begin(SL_PF_SPILL);
    start(128 << 20, 0);
    CHECK_EQ(add(0, 1, 0, 1, 64 << 20, 1000000000), SL_OK);
    sl_appender *a;
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), SL_OK);
    uint8_t *value = malloc(6 << 20);
    memset(value, 7, 6 << 20);
    for (int i = 0; i < 30; i++) {
        CHECK_EQ(append_bytes(a, value, 6 << 20, SOON, NULL), SL_OK);
        CHECK_EQ(append_bytes(a, value, 100, SOON, NULL), SL_OK);
    }
    CHECK_EQ(sl_broker_drain(broker, SOON), SL_OK);
    CHECK(sl_load_relaxed(&sl_cluster_partition(c, 0)->ring_bytes) <= 128 << 20);
    uint64_t lost;
    CHECK_EQ(sl_broker_stop(broker, SOON), SL_OK);
    CHECK_EQ(read_files(0, &lost), 60);
    CHECK_EQ(lost, 0);
    free(value);
    sl_appender_close(a);
    end();
}

static void a_frame_that_no_budget_holds_is_a_typed_error(void) {
    begin(SL_PF_SPILL);
    start(1 << 20, 0);
    CHECK_EQ(add(0, 1, 0, 1, 64 << 20, 1000000000), SL_OK);
    sl_appender *a;
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), SL_OK);
    uint8_t *value = calloc(1, 6 << 20);
    sl_record r = {.value = value, .value_bytes = 6 << 20, .producer_id = -1, .sequence = -1};
    sl_append_result result = {0};
    CHECK_EQ(sl_append(a, &r, -1, sl_monotonic_ns() + 300000000, &result), SL_E_SHM_FULL);
    CHECK(result.needed_bytes >= 6 << 20);
    CHECK(result.free_bytes < 1 << 20);
    CHECK_EQ(append_bytes(a, value, 100, SOON, NULL), SL_OK); /* and others go on */
    free(value);
    sl_appender_close(a);
    end();
}

static void an_idle_partition_goes_back_to_one_small_segment(void) {
    begin(SL_PF_SPILL);
    start(64 << 20, 0);
    CHECK_EQ(add(0, 1, 0, 1, 64 << 20, 1000000), SL_OK);
    sl_partition *p = sl_cluster_partition(c, 0);
    CHECK_EQ(sl_load_relaxed(&p->ring_bytes), SL_SEGMENT_MIN_BYTES);
    sl_appender *a;
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), SL_OK);
    uint8_t value[1000] = {0};
    for (int i = 0; i < 40000; i++) CHECK_EQ(append_bytes(a, value, sizeof value, SOON, NULL), SL_OK);
    CHECK(sl_load_relaxed(&p->ring_bytes) > SL_SEGMENT_MIN_BYTES);
    EVENTUALLY(sl_load_relaxed(&p->ring_bytes) == SL_SEGMENT_MIN_BYTES);
    CHECK_EQ(word(&p->durable), 40000);
    CHECK_EQ(append_bytes(a, value, sizeof value, SOON, NULL), SL_OK);
    sl_appender_close(a);
    end();
}

static void a_memory_topic_wraps_within_its_bytes(void) {
    begin(0);
    sl_cluster_partition(c, 0)->memory_bytes = 2 << 20;
    start(64 << 20, 0);
    CHECK_EQ(add(0, 1, 0, 0, 0, 0), SL_OK);
    sl_partition *p = sl_cluster_partition(c, 0);
    sl_appender *a;
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), SL_OK);
    uint8_t value[1000] = {0};
    for (int i = 0; i < 100000; i++) CHECK_EQ(append_bytes(a, value, sizeof value, SOON, NULL), SL_OK);
    sl_offsets o;
    CHECK_EQ(sl_log_offsets(c, 0, 0, &o), SL_OK);
    CHECK_EQ(o.end, 100000);
    CHECK(o.log_start > 90000 && o.log_start < 100000);
    CHECK(sl_load_relaxed(&p->ring_bytes) <= (2 << 20) + 4 * SL_SEGMENT_MIN_BYTES);
    sl_appender_close(a);
    end();
}

static void scribbled_frames_and_cells_become_lost_records_and_the_rest_goes_on(void) {
    begin(SL_PF_SPILL);
    start(64 << 20, UINT64_MAX); /* no writing yet */
    CHECK_EQ(add(0, 1, 0, 1, 64 << 20, 1000000), SL_OK);
    sl_appender *a;
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), SL_OK);
    uint8_t value[1024];
    for (uint64_t i = 0; i < 100; i++) CHECK_EQ(append_bytes(a, value, value_of(i, value, 200), SOON, NULL), SL_OK);
    sl_partition *p = sl_cluster_partition(c, 0);
    EVENTUALLY(sl_load_acquire(&p->storage_state) == SL_STORAGE_DISK_FULL);
    CHECK_EQ(word(&p->spilled), 0);
    sl_map *m;
    CHECK_EQ(sl_map_get(c, sl_log_buffer(p, sl_cur_number(sl_load_relaxed(&p->cur))), 1, &m), SL_OK);
    m->arena[(uint64_t)sl_cell_unit(m->cells[10]) * 64 + 40] ^= 1;                 /* a payload byte */
    uint32_t huge = 0x7fffffff;
    memcpy(m->arena + (uint64_t)sl_cell_unit(m->cells[20]) * 64, &huge, 4);      /* a length */
    m->cells[30] ^= 5;                                                            /* a tag */
    m->cells[40] = sl_cell_make(SL_CELL_DATA, 1, 40, m->arena_units + 5, sl_cur_number(sl_load_relaxed(&p->cur))); /* out of the arena */
    sl_map_put(c, m);
    sl_broker_reserve_disk(broker, 0);
    CHECK_EQ(sl_wait_durable(c, 0, 0, fixture_topic_id, 100, SOON), SL_OK);
    CHECK_EQ(sl_load_relaxed(&p->storage_state), SL_STORAGE_OK);
    CHECK_EQ(sl_broker_stop(broker, SOON), SL_OK);
    uint64_t lost;
    CHECK_EQ(read_files(200, &lost), 100);
    CHECK_EQ(lost, 4);
    int lost_events = 0;
    sl_broker_event e;
    while (sl_broker_event_next(broker, &e) == 1) lost_events += e.kind == SL_EVENT_LOST;
    CHECK_EQ(lost_events, 4);
    sl_appender_close(a);
    end();
}

static void after_a_kill_the_next_broker_goes_on_from_memory(void) {
    begin(SL_PF_SPILL);
    int told[2];
    SL_ASSERT(pipe(told) == 0);
    sl_cluster_close(c);
    pid_t pid = fork();
    if (pid == 0) { /* a broker that writes nothing, with 500 records in memory over several segments */
        c = fixture_open();
        start(64 << 20, UINT64_MAX);
        if (add(0, 1, 0, 1, 64 << 20, 1000000) != SL_OK) _exit(1);
        sl_appender *a;
        if (sl_appender_open(c, 0, 0, fixture_topic_id, &a) != SL_OK) _exit(1);
        static uint8_t value[4096];
        for (uint64_t i = 0; i < 500; i++) if (append_bytes(a, value, value_of(i, value, 2000), SOON, NULL) != SL_OK) _exit(1);
        if (write(told[1], "x", 1) != 1) _exit(1);
        for (;;) pause();
    }
    char x;
    CHECK_EQ(read(told[0], &x, 1), 1);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    c = fixture_open();
    sl_row_clean(c, SPILL_ROW);
    sl_row *row = sl_cluster_row(c, SPILL_ROW);
    row->state = SL_ROW_LIVE;
    row->generation++;
    start(64 << 20, 0);
    CHECK_EQ(add(0, 2, 0, 1, 64 << 20, 1000000), SL_OK);
    sl_appender *a;
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), SL_OK);
    uint8_t value[4096];
    for (uint64_t i = 500; i < 600; i++) {
        int64_t offset;
        CHECK_EQ(append_bytes(a, value, value_of(i, value, 2000), SOON, &offset), SL_OK);
        CHECK_EQ(offset, i);
    }
    CHECK_EQ(sl_wait_durable(c, 0, 0, fixture_topic_id, 600, SOON), SL_OK);
    EVENTUALLY(sl_load_relaxed(&sl_cluster_partition(c, 0)->ring_bytes) == SL_SEGMENT_MIN_BYTES); /* adopted memory is let go */
    CHECK_EQ(sl_broker_stop(broker, SOON), SL_OK);
    uint64_t lost;
    CHECK_EQ(read_files(2000, &lost), 600);
    CHECK_EQ(lost, 0);
    sl_appender_close(a);
    end();
}

static void a_fence_holds_until_the_partition_is_opened_anew(void) {
    begin(SL_PF_SPILL);
    start(64 << 20, 0);
    CHECK_EQ(add(0, 1, 0, 1, 64 << 20, 1000000), SL_OK);
    sl_appender *a;
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), SL_OK);
    uint8_t value[512];
    for (uint64_t i = 0; i < 50; i++) CHECK_EQ(append_bytes(a, value, value_of(i, value, 100), SOON, NULL), SL_OK);
    CHECK_EQ(sl_broker_fence(broker, UINT32_MAX), SL_OK);
    CHECK_EQ(append_bytes(a, value, 10, sl_monotonic_ns() + 1000000, NULL), SL_E_FENCED);
    CHECK_EQ(sl_broker_drain(broker, SOON), SL_OK);
    CHECK_EQ(sl_broker_release(broker, 0), SL_OK);
    CHECK_EQ(add(0, 2, 50, 1, 64 << 20, 1000000), SL_OK);
    int64_t offset;
    CHECK_EQ(append_bytes(a, value, value_of(50, value, 100), SOON, &offset), SL_OK);
    CHECK_EQ(offset, 50);
    CHECK_EQ(sl_broker_drain(broker, SOON), SL_OK);
    uint64_t lost;
    CHECK_EQ(read_files(100, &lost), 51);
    sl_appender_close(a);
    end();
}

static void a_roll_closes_the_file_of_a_quiet_partition(void) {
    begin(SL_PF_SPILL);
    start(64 << 20, 0);
    CHECK_EQ(add(0, 1, 0, 1, 64 << 20, 1000000), SL_OK);
    sl_appender *a;
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), SL_OK);
    uint8_t value[512];
    for (uint64_t i = 0; i < 20; i++) {
        CHECK_EQ(append_bytes(a, value, value_of(i, value, 100), SOON, NULL), SL_OK);
        if (i % 5) continue;
        CHECK_EQ(sl_broker_drain(broker, SOON), SL_OK);
        CHECK_EQ(sl_broker_roll(broker, 0), SL_OK);
        sl_broker_event e = {0};
        EVENTUALLY(e.kind == SL_EVENT_ROLLED || (sl_broker_event_next(broker, &e) == 1 && e.kind == SL_EVENT_ROLLED));
        CHECK_EQ(e.offset, i + 1);
    }
    CHECK_EQ(sl_broker_stop(broker, SOON), SL_OK);
    uint64_t lost;
    CHECK_EQ(read_files(100, &lost), 20);
    sl_file_entry files[8];
    CHECK_EQ(sl_file_list(dir, files, 8), 5);
    sl_appender_close(a);
    end();
}

static void removal_leaves_no_memory(void) {
    begin(SL_PF_SPILL);
    start(64 << 20, 0);
    CHECK_EQ(add(0, 1, 0, 1, 64 << 20, 1000000), SL_OK);
    CHECK_EQ(add(1, 1, 0, 1, 64 << 20, 1000000), SL_OK);
    CHECK_EQ(sl_broker_remove(broker, 0), SL_OK);
    CHECK_EQ(sl_broker_remove(broker, 1), SL_OK);
    CHECK_EQ(sl_broker_remove(broker, 1), SL_OK);
    sl_broker_free(broker);
    broker = NULL;
    DIR *d = opendir("/dev/shm");
    int found = 0;
    for (struct dirent *e; (e = readdir(d));)
        if (strncmp(e->d_name, fixture_prefix + 1, strlen(fixture_prefix) - 1) == 0 && e->d_name[strlen(fixture_prefix)] == 's') found++;
    closedir(d);
    CHECK_EQ(found, 0);
    end();
}

static void a_missing_directory_is_a_disk_error_until_it_is_there(void) {
    begin(SL_PF_SPILL);
    start(64 << 20, 0);
    char real[256];
    strcpy(real, dir);
    snprintf(dir + strlen(dir), sizeof dir - strlen(dir), "/later");
    CHECK_EQ(add(0, 1, 0, 1, 64 << 20, 1000000), SL_OK);
    sl_appender *a;
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), SL_OK);
    CHECK_EQ(append_bytes(a, "0123456789", 10, SOON, NULL), SL_OK);
    CHECK_EQ(sl_wait_durable(c, 0, 0, fixture_topic_id, 1, sl_monotonic_ns() + 100000000), SL_E_IO);
    CHECK_EQ(sl_broker_drain(broker, sl_monotonic_ns() + 100000000), SL_E_IO);
    CHECK(sl_broker_unspilled_bytes(broker) > 0);
    CHECK_EQ(mkdir(dir, 0700), 0);
    CHECK_EQ(sl_wait_durable(c, 0, 0, fixture_topic_id, 1, SOON), SL_OK);
    CHECK_EQ(sl_load_relaxed(&sl_cluster_partition(c, 0)->storage_state), SL_STORAGE_OK);
    sl_appender_close(a);
    strcpy(dir, real);
    end();
}

static void drop_oldest_on_a_full_disk_drops_from_the_front_and_counts_it(void) {
    begin(SL_PF_SPILL | SL_PF_FULL_DROP);
    start(2 << 20, 0);
    CHECK_EQ(add(0, 1, 0, 1, 64 << 20, 1000000), SL_OK);
    sl_partition *p = sl_cluster_partition(c, 0);
    sl_appender *a;
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), SL_OK);
    uint8_t value[2048];
    struct rlimit limit, small;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    small = limit;
    small.rlim_cur = 1 << 20;
    setrlimit(RLIMIT_FSIZE, &small);
    uint64_t i = 0;
    for (; i < 20000; i++) CHECK_EQ(append_bytes(a, value, value_of(i, value, 1000), SOON, NULL), SL_OK); /* ten times what memory takes */
    setrlimit(RLIMIT_FSIZE, &limit);
    CHECK_EQ(sl_wait_durable(c, 0, 0, fixture_topic_id, i, SOON), SL_OK);
    uint64_t start_offset = word(&p->log_start);
    CHECK(start_offset > 0);
    CHECK(sl_load_relaxed(&p->dropped_records) > 0);
    CHECK(sl_load_relaxed(&p->dropped_records) <= start_offset);
    sl_reader *r;
    CHECK_EQ(sl_reader_open(c, 1, 0, fixture_topic_id, dir, &r), SL_OK);
    sl_view v[64];
    CHECK_EQ(sl_reader_poll(r, v, 64, 1 << 20, 1), SL_E_RANGE); /* said, not silent */
    sl_reader_seek(r, start_offset);
    uint64_t next = start_offset;
    for (int64_t n; (n = sl_reader_poll(r, v, 64, 1 << 20, 1)) != 0;) {
        CHECK(n > 0);
        for (int64_t k = 0; k < n; k++, next++) {
            CHECK_EQ(v[k].offset, next);
            CHECK_EQ(v[k].value_bytes, value_of(next, value, 1000));
            CHECK(memcmp(v[k].value, value, v[k].value_bytes) == 0);
        }
    }
    CHECK_EQ(next, i);
    sl_reader_close(r);
    sl_appender_close(a);
    CHECK_EQ(sl_broker_stop(broker, SOON), SL_OK);
    end();
}

static void a_full_disk_holds_nothing_up_but_itself_and_resumes_alone(void) {
    begin(SL_PF_SPILL);
    start(16 << 20, 0);
    CHECK_EQ(add(0, 1, 0, 1, 64 << 20, 1000000), SL_OK);
    sl_partition *p = sl_cluster_partition(c, 0);
    sl_appender *a;
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), SL_OK);
    uint8_t value[2048];
    uint64_t i = 0;
    for (; i < 100; i++) CHECK_EQ(append_bytes(a, value, value_of(i, value, 1000), SOON, NULL), SL_OK);
    CHECK_EQ(sl_wait_durable(c, 0, 0, fixture_topic_id, 100, SOON), SL_OK);
    struct rlimit limit, small;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    small = limit;
    small.rlim_cur = 3 << 20;
    setrlimit(RLIMIT_FSIZE, &small);
    for (; i < 10000; i++) CHECK_EQ(append_bytes(a, value, value_of(i, value, 1000), SOON, NULL), SL_OK); /* 5 MB: memory takes them */
    EVENTUALLY(sl_load_acquire(&p->storage_state) == SL_STORAGE_DISK_FULL);
    uint64_t durable = word(&p->durable);
    CHECK(durable < 10000);
    CHECK_EQ(sl_wait_durable(c, 0, 0, fixture_topic_id, 10000, sl_monotonic_ns() + 300000000), SL_E_DISK_FULL);
    CHECK(sl_broker_unspilled_bytes(broker) > 0);
    CHECK_EQ(sl_broker_drain(broker, sl_monotonic_ns() + 300000000), SL_E_DISK_FULL);
    setrlimit(RLIMIT_FSIZE, &limit);
    CHECK_EQ(sl_wait_durable(c, 0, 0, fixture_topic_id, 10000, SOON), SL_OK);
    CHECK_EQ(sl_load_relaxed(&p->storage_state), SL_STORAGE_OK);
    CHECK_EQ(sl_broker_stop(broker, SOON), SL_OK);
    uint64_t lost;
    CHECK_EQ(read_files(1000, &lost), 10000);
    CHECK_EQ(lost, 0);
    sl_appender_close(a);
    end();
}

/* ---- an fdatasync that fails: this program's own, in front of libc's ---- */
static int fail_syncs;
int fdatasync(int fd) {
    if (sl_load_acquire(&fail_syncs)) { errno = EIO; return -1; }
    return fsync(fd);
}

static void after_a_failed_sync_the_records_are_written_anew(void) {
    for (int synced_before = 0; synced_before < 2; synced_before++) {
        begin(SL_PF_SPILL | SL_PF_SYNC_RECYCLE);
        start(64 << 20, 0);
        CHECK_EQ(add(0, 1, 0, 1, 64 << 20, INT64_C(3600000000000)), SL_OK);
        sl_partition *p = sl_cluster_partition(c, 0);
        sl_appender *a;
        CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), SL_OK);
        EVENTUALLY(sl_load_acquire(&p->sync_wanted) == 0); /* what a dead predecessor's waiters may have wanted is done */
        uint8_t value[2048];
        uint64_t i = 0;
        for (; i < 1000; i++) CHECK_EQ(append_bytes(a, value, value_of(i, value, 1000), SOON, NULL), SL_OK);
        if (synced_before) CHECK_EQ(sl_wait_durable(c, 0, 0, fixture_topic_id, 1000, SOON), SL_OK);
        sl_store_release(&fail_syncs, 1);
        for (; i < 2000; i++) CHECK_EQ(append_bytes(a, value, value_of(i, value, 1000), SOON, NULL), SL_OK);
        CHECK_EQ(sl_wait_durable(c, 0, 0, fixture_topic_id, 2000, sl_monotonic_ns() + 500000000), SL_E_IO);
        uint64_t durable = word(&p->durable);
        CHECK_EQ(durable, synced_before ? 1000 : 0); /* nothing acknowledged that is not true */
        CHECK_EQ(sl_load_relaxed(&p->storage_state), SL_STORAGE_DISK_ERROR);
        for (; i < 2100; i++) CHECK_EQ(append_bytes(a, value, value_of(i, value, 1000), SOON, NULL), SL_OK); /* appends go on */
        sl_store_release(&fail_syncs, 0);
        CHECK_EQ(sl_wait_durable(c, 0, 0, fixture_topic_id, 2100, SOON), SL_OK);
        CHECK_EQ(sl_load_relaxed(&p->storage_state), SL_STORAGE_OK);
        CHECK_EQ(sl_broker_stop(broker, SOON), SL_OK);
        uint64_t lost;
        /* The failed file's tail lies under the new one: read what counts. */
        sl_file_entry files[8];
        int64_t n = sl_file_list(dir, files, 8);
        CHECK_EQ(n, synced_before ? 2 : 1);
        CHECK_EQ(files[n - 1].base_offset, durable);
        if (!synced_before) CHECK_EQ(read_files(1000, &lost), 2100);
        else {
            uint64_t cut;
            CHECK_EQ(sl_file_recover(dir, files[0].name, 1000, UINT64_MAX, &cut), 1000);
            CHECK_EQ(read_files(1000, &lost), 2100);
        }
        CHECK_EQ(lost, 0);
        sl_appender_close(a);
        end();
    }
}

/* damaged: some of the failed file's bytes are not what was written, as after the kernel dropped pages. */
static void fail_a_sync_after_memory_was_reused(int damaged) {
    begin(SL_PF_SPILL);
    start(1 << 20, 0);
    CHECK_EQ(add(0, 1, 0, 1, 64 << 20, INT64_C(3600000000000)), SL_OK);
    sl_appender *a;
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), SL_OK);
    uint8_t value[2048];
    uint64_t i = 0;
    for (; i < 10000; i++) CHECK_EQ(append_bytes(a, value, value_of(i, value, 1000), SOON, NULL), SL_OK); /* 5 MB through 1 MiB */
    EVENTUALLY(word(&sl_cluster_partition(c, 0)->spilled) == 10000);
    if (damaged) {
        sl_file_entry file;
        CHECK_EQ(sl_file_list(dir, &file, 1), 1);
        char path[400];
        snprintf(path, sizeof path, "%s/%s", dir, file.name);
        FILE *f = fopen(path, "r+b");
        CHECK(f && fseek(f, 1 << 20, SEEK_SET) == 0 && fwrite(value, 2048, 1, f) == 1);
        fclose(f);
    }
    sl_store_release(&fail_syncs, 1);
    CHECK_EQ(sl_wait_durable(c, 0, 0, fixture_topic_id, 10000, sl_monotonic_ns() + 300000000), SL_E_IO);
    sl_store_release(&fail_syncs, 0);
    CHECK_EQ(sl_wait_durable(c, 0, 0, fixture_topic_id, 10000, SOON), SL_OK);
    CHECK_EQ(sl_broker_stop(broker, SOON), SL_OK);
    uint64_t lost, cut;
    sl_file_entry files[4];
    int64_t n = sl_file_list(dir, files, 4); /* 1: nothing had been synced, and the new file took the old one's name */
    if (n == 2) CHECK_EQ(sl_file_recover(dir, files[0].name, files[1].base_offset, UINT64_MAX, &cut), files[1].base_offset); /* as recovery does */
    CHECK_EQ(read_files(1000, &lost), 10000);
    if (damaged) CHECK(lost > 0 && lost < 20);
    else CHECK_EQ(lost, 0);
    sl_appender_close(a);
    end();
}

static void after_a_failed_sync_what_left_memory_is_read_back(void) { fail_a_sync_after_memory_was_reused(0); }
static void after_a_failed_sync_what_cannot_be_read_back_is_named_as_lost(void) { fail_a_sync_after_memory_was_reused(1); }

static void many_partitions_share_the_threads(void) {
    begin(SL_PF_SPILL);
    start(64 << 20, 0);
    char base[256];
    strcpy(base, dir);
    for (uint32_t b = 0; b < 4; b++) {
        snprintf(dir, sizeof dir, "%.200s/%u", base, b);
        CHECK_EQ(mkdir(dir, 0700), 0);
        CHECK_EQ(add(b, 1, 0, 1, 1 << 20, 1000000), SL_OK);
    }
    sl_appender *a[4];
    for (uint32_t b = 0; b < 4; b++) CHECK_EQ(sl_appender_open(c, b, b, fixture_topic_id, &a[b]), SL_OK);
    uint8_t value[2048];
    for (uint64_t i = 0; i < 5000; i++)
        for (uint32_t b = 0; b < 4; b++) CHECK_EQ(append_bytes(a[b], value, value_of(i, value, 1000), SOON, NULL), SL_OK);
    CHECK_EQ(sl_broker_stop(broker, SOON), SL_OK);
    uint64_t lost;
    for (uint32_t b = 0; b < 4; b++) {
        snprintf(dir, sizeof dir, "%.200s/%u", base, b);
        CHECK_EQ(read_files(1000, &lost), 5000);
        CHECK_EQ(lost, 0);
        sl_appender_close(a[b]);
    }
    strcpy(dir, base);
    end();
}

static int open_fds(void) {
    DIR *d = opendir("/proc/self/fd");
    int n = -1; /* its own */
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* Room for one partition's descriptors, then for none at all: nothing is lost, nothing is called a broken disk, and when idle nobody holds any. */
static void many_partitions_live_within_few_descriptors(void) {
    begin(SL_PF_SPILL);
    struct rlimit before, few;
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    few = before;
    few.rlim_cur = (rlim_t)open_fds() + 16 + 3 + 4; /* and the broker's own */
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    start(64 << 20, 0);
    int idle = open_fds();
    char base[256];
    strcpy(base, dir);
    for (uint32_t b = 0; b < 4; b++) {
        snprintf(dir, sizeof dir, "%.200s/%u", base, b);
        CHECK_EQ(mkdir(dir, 0700), 0);
        CHECK_EQ(add(b, 1, 0, 1, 1 << 20, INT64_C(3600000000000)), SL_OK); /* nobody asks for a sync: the need for room does */
    }
    sl_appender *a[4];
    for (uint32_t b = 0; b < 4; b++) CHECK_EQ(sl_appender_open(c, b, b, fixture_topic_id, &a[b]), SL_OK);
    uint8_t value[2048];
    uint64_t i = 0;
    int most = 0;
    for (; i < 300; i++) {
        for (uint32_t b = 0; b < 4; b++) CHECK_EQ(append_bytes(a[b], value, value_of(i, value, 1000), SOON, NULL), SL_OK);
        if (i % 50 == 0) EVENTUALLY(word(&sl_cluster_partition(c, i / 50 % 4)->spilled) > i);
        int now = open_fds();
        if (now > most) most = now;
    }
    for (uint32_t b = 0; b < 4; b++) EVENTUALLY(word(&sl_cluster_partition(c, b)->spilled) == i);
    CHECK(most <= idle + 3 * 2 + 4);
    few.rlim_cur = 3; /* what is open stays open */
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    for (uint32_t b = 0; b < 4; b++) CHECK_EQ(append_bytes(a[b], value, value_of(i, value, 1000), SOON, NULL), SL_OK);
    sl_broker_event e;
    int said = 0;
    EVENTUALLY(said || (sl_broker_event_next(broker, &e) == 1 && strstr(e.what, "RLIMIT_NOFILE is 3") && ++said));
    for (uint32_t b = 0; b < 4; b++) CHECK(sl_load_relaxed(&sl_cluster_partition(c, b)->storage_state) != SL_STORAGE_DISK_ERROR);
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
    i++;
    for (uint32_t b = 0; b < 4; b++) EVENTUALLY(word(&sl_cluster_partition(c, b)->spilled) == i);
    CHECK_EQ(sl_broker_drain(broker, SOON), SL_OK);
    EVENTUALLY(open_fds() <= idle);
    CHECK_EQ(sl_broker_stop(broker, SOON), SL_OK);
    uint64_t lost;
    for (uint32_t b = 0; b < 4; b++) {
        snprintf(dir, sizeof dir, "%.200s/%u", base, b);
        CHECK_EQ(read_files(1000, &lost), i);
        CHECK_EQ(lost, 0);
        sl_appender_close(a[b]);
    }
    strcpy(dir, base);
    end();
}

/* ---- killed at every named place ---- */

/* What recovery.py does, in short. */
static uint64_t recover_directory(uint64_t spilled) {
    sl_file_entry files[256];
    int64_t n = sl_file_list(dir, files, 256);
    for (; n > 0; n--) {
        uint64_t cut;
        char path[400];
        int64_t end = sl_file_recover(dir, files[n - 1].name, spilled, UINT64_MAX, &cut);
        if (end < 0) { fprintf(stderr, "  %s: %s\n", files[n - 1].name, sl_strerror((int)end)); return UINT64_MAX; }
        if ((uint64_t)end > files[n - 1].base_offset) return (uint64_t)end;
        snprintf(path, sizeof path, "%s/%s", dir, files[n - 1].name);
        unlink(path);
        memcpy(path + strlen(path) - 3, "cells", 6);
        unlink(path);
    }
    return 0;
}

static void revive_row(uint32_t index) {
    sl_row_clean(c, index);
    sl_row *row = sl_cluster_row(c, index);
    row->state = SL_ROW_LIVE;
    row->generation++;
}

#define CRASH_RECORDS 1500
/* A broker and its producer in one process, which dies at the hit-th pass of the place; then a successor, which must have all that was appended. */
static void die_at(const char *place, int hit, int *reached) {
    begin(SL_PF_SPILL);
    uint64_t *appended = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    sl_cluster_close(c);
    pid_t pid = fork();
    if (pid == 0) {
        char failpoint[100];
        snprintf(failpoint, sizeof failpoint, "%s:%d:kill", place, hit);
        setenv("SHMLOG_FAILPOINT", failpoint, 1);
        c = fixture_open();
        start(1 << 20, 0);
        if (add(0, 1, 0, 1, 200000, 2000000) != SL_OK) _exit(1);
        sl_appender *a;
        if (sl_appender_open(c, 0, 0, fixture_topic_id, &a) != SL_OK) _exit(1);
        uint8_t value[4096];
        for (uint64_t i = 0; i < CRASH_RECORDS; i++) {
            if (append_bytes(a, value, value_of(i, value, 2000), SOON, NULL) != SL_OK) _exit(2);
            sl_store_release(appended, i + 1);
            if (i % 400 == 399 && sl_wait_durable(c, 1, 0, fixture_topic_id, i + 1, SOON) != SL_OK) _exit(3);
        }
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    CHECK(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
    *reached = WIFSIGNALED(status);
    c = fixture_open();
    revive_row(SPILL_ROW);
    revive_row(0);
    revive_row(1);
    sl_partition *p = sl_cluster_partition(c, 0);
    uint64_t n = sl_load_acquire(appended), number = sl_cur_number(p->cur);
    int in_memory = number && sl_log_buffer(p, number) != 0;
    CHECK(n == 0 || in_memory);
    uint64_t durable = word(&p->durable), spilled = word(&p->spilled), base = recover_directory(in_memory ? spilled : UINT64_MAX);
    CHECK_EQ(base, in_memory ? spilled : 0);
    CHECK(durable <= spilled);
    start(1 << 20, 0);
    CHECK_EQ(add(0, 2, base, 1, 200000, 2000000), SL_OK);
    sl_offsets o;
    CHECK_EQ(sl_log_offsets(c, 2, 0, &o), SL_OK);
    CHECK(o.end == n || o.end == n + 1); /* the record in hand is there as a whole, or not */
    sl_appender *a;
    CHECK_EQ(sl_appender_open(c, 0, 0, fixture_topic_id, &a), SL_OK);
    uint8_t value[4096];
    for (uint64_t i = o.end; i < o.end + 200; i++) {
        int64_t offset;
        CHECK_EQ(append_bytes(a, value, value_of(i, value, 2000), SOON, &offset), SL_OK);
        CHECK_EQ(offset, i);
    }
    CHECK_EQ(sl_broker_stop(broker, SOON), SL_OK);
    uint64_t lost;
    CHECK_EQ(read_files(2000, &lost), o.end + 200);
    CHECK_EQ(lost, 0);
    sl_appender_close(a);
    munmap(appended, 4096);
    end();
}

static void a_broker_killed_anywhere_loses_nothing(void) {
    static const char *places[] = {
        "spill_gathered", "spill_file_made", "spill_written", "spill_published", "sync_begin", "sync_done", "sync_published", "ring_made", "ring_taken_out",
        "ring_published", "add_before_open", "add_opened", "file_create_log", "file_create_cells", "file_create_headers", "file_sync_names",
        "file_append_frames", "file_append_cells", "file_sync_log", "file_sync_mark", "recycle_claim", "recycle_takeout", "recycle_scan", "recycle_reset",
        "recycle_publish", "open_cur_cas", "base_cas", "cur_cas", "cell_cas", "seal_cas", "payload_write", "chunk_take", "attach_hazard", "hint_store",
    };
    static const int hits[] = {1, 5};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        for (size_t h = 0; h < sizeof hits / sizeof *hits; h++) {
            int reached = 0;
            die_at(places[i], hits[h], &reached);
            if (failed) { fprintf(stderr, "  killed at %s, pass %d\n", places[i], hits[h]); return; }
            if (h == 0 && !reached) { fprintf(stderr, "  %s is never passed\n", places[i]); failed = 1; return; }
            if (!reached) break;
        }
}

#ifdef SL_FAILPOINTS
/* The failed file's bytes are damaged, as after the kernel dropped pages; nothing had been synced, so the rewrite takes its name. Killed between any two
 * steps of that, and with the memory gone as after a power cut, the directory holds one of the two: the failed file up to its damage, or all. */
static void a_rewrite_killed_anywhere_leaves_one_file_or_the_other(void) {
    static const char *const places[] = {"file_install_renamed:1", "file_install_synced:1", "file_install_renamed:2", "file_install_synced:2"};
    for (size_t at = 0; at < sizeof places / sizeof *places; at++) {
        begin(SL_PF_SPILL | SL_PF_SYNC_RECYCLE);
        sl_cluster_close(c);
        pid_t pid = fork();
        if (pid == 0) {
            char failpoint[100];
            snprintf(failpoint, sizeof failpoint, "%s:kill", places[at]);
            alarm(60);
            c = fixture_open();
            start(64 << 20, 0);
            if (add(0, 1, 0, 1, 64 << 20, INT64_C(3600000000000)) != SL_OK) _exit(1);
            sl_partition *p = sl_cluster_partition(c, 0);
            sl_appender *a;
            if (sl_appender_open(c, 0, 0, fixture_topic_id, &a) != SL_OK) _exit(1);
            while (sl_load_acquire(&p->sync_wanted)) usleep(500); /* the parent waits with a limit */
            uint8_t value[2048];
            for (uint64_t i = 0; i < 1000; i++) if (append_bytes(a, value, value_of(i, value, 1000), SOON, NULL) != SL_OK) _exit(2);
            while (word(&p->spilled) != 1000) usleep(500);
            sl_store_release(&fail_syncs, 1);
            sl_wait_durable(c, 0, 0, fixture_topic_id, 1000, sl_monotonic_ns() + 300000000);
            sl_file_entry file;
            char path[400];
            if (sl_file_list(dir, &file, 1) != 1) _exit(3);
            snprintf(path, sizeof path, "%s/%s", dir, file.name);
            FILE *f = fopen(path, "r+b");
            memset(value, 0, sizeof value);
            if (!f || fseek(f, 100000, SEEK_SET) != 0 || fwrite(value, 2048, 1, f) != 1) _exit(4);
            fclose(f);
            setenv("SHMLOG_FAILPOINT", failpoint, 1);
            sl_store_release(&fail_syncs, 0);
            sl_wait_durable(c, 0, 0, fixture_topic_id, 1000, SOON);
            _exit(0);
        }
        int status;
        waitpid(pid, &status, 0);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        c = fixture_open();
        sl_file_entry file;
        uint64_t found = recover_directory(UINT64_MAX), lost;
        CHECK_EQ(found, 1000); /* from the first rename on it is the new one */
        CHECK_EQ(sl_file_list(dir, &file, 1), 1);
        size_t problems = 1;
        CHECK(sl_file_verify(dir, file.name, NULL, 0, &problems) > 0);
        CHECK_EQ(problems, 0);
        CHECK_EQ(read_files(1000, &lost), 1000);
        CHECK_EQ(lost, 0);
        end();
        if (failed) { fprintf(stderr, "  killed at %s\n", places[at]); return; }
    }
}
#endif

static int listed(const sl_buffers *l, uint32_t id) {
    for (uint32_t i = 0; i < l->n; i++) if (l->items[i].id == id) return 1;
    return 0;
}
/* In the pool of `b`, and for as long as the test takes. */
static int pooled(sl_broker *b, uint32_t id) {
    int found = 0;
    pthread_mutex_lock(&b->lock);
    for (uint32_t i = 0; i < b->pool.n; i++)
        if (b->pool.items[i].id == id) { b->pool.items[i].since_ns = INT64_MAX; found = 1; }
    pthread_mutex_unlock(&b->lock);
    return found;
}

/* The broker that led goes on caring for what it made, and the one that leads has adopted it: each finds it FREE, and both would publish it. */
static void a_buffer_that_two_brokers_know_is_published_by_one_of_them(void) {
    begin(0);
    start(16 << 20, 0);
    CHECK_EQ(add(0, 1, 0, 0, 0, 0), SL_OK);
    sl_partition *p = sl_cluster_partition(c, 0);
    uint32_t oldest = sl_log_buffer(p, sl_cur_number(p->cur));
    EVENTUALLY((sl_log_seal(c, 2, 0, 1), sl_cur_number(sl_load_acquire(&p->cur)) >= 2));
    CHECK(oldest);

    pthread_mutex_lock(&broker->lock); /* it stands still */
    sl_broker *other;
    sl_broker_options o = {.process = 2, .spill_row = SPILL_ROW + 1, .broker_epoch = 2, .memory_max_bytes = 16 << 20};
    int rc = sl_broker_start(c, &o, &other);
    sl_broker_partition given = {.block = 0, .leader_epoch = 2};
    if (rc == SL_OK) rc = sl_broker_add(other, &given);
    int adopted = rc == SL_OK && (pthread_mutex_lock(&other->lock), listed(&other->partitions->ring, oldest));
    int64_t out = rc == SL_OK ? sl_log_takeout(c, SPILL_ROW + 1, 0) : 0;
    if (rc == SL_OK) pthread_mutex_unlock(&other->lock);
    for (uint32_t i = 0; i < broker->partitions->ring.n; i++) broker->partitions->ring.items[i].since_ns = 1; /* for longer than it took us */
    pthread_mutex_unlock(&broker->lock);
    CHECK_EQ(rc, SL_OK);
    CHECK(adopted);
    CHECK_EQ(out, oldest);

    EVENTUALLY(pooled(broker, oldest) && pooled(other, oldest));
    CHECK_EQ(add(1, 1, 0, 0, 0, 0), SL_OK);
    given = (sl_broker_partition){.block = 2, .leader_epoch = 1};
    CHECK_EQ(sl_broker_add(other, &given), SL_OK);
    uint32_t of[3];
    for (uint32_t b = 1; b < 3; b++) {
        sl_partition *q = sl_cluster_partition(c, b);
        of[b] = sl_log_buffer(q, sl_cur_number(q->cur));
        sl_map *m;
        CHECK_EQ(sl_map_get(c, of[b], 1, &m), SL_OK);
        CHECK_EQ(m->segment->block, b);
        sl_map_put(c, m);
    }
    CHECK(of[1] != of[2]);
    CHECK(of[1] == oldest || of[2] == oldest); /* it was the first in both pools */
    sl_broker_free(other);
    end();
}

#define TEST(f) {#f, f}
int main(int argc, char **argv) {
    struct { const char *name; void (*run)(void); } tests[] = {
        TEST(records_reach_files_and_become_durable),
        TEST(many_producers_fill_a_small_ring_and_nothing_is_lost),
        TEST(large_frames_get_segments_that_hold_them),
        TEST(a_frame_that_no_budget_holds_is_a_typed_error),
        TEST(an_idle_partition_goes_back_to_one_small_segment),
        TEST(a_memory_topic_wraps_within_its_bytes),
        TEST(scribbled_frames_and_cells_become_lost_records_and_the_rest_goes_on),
        TEST(after_a_kill_the_next_broker_goes_on_from_memory),
        TEST(a_fence_holds_until_the_partition_is_opened_anew),
        TEST(a_roll_closes_the_file_of_a_quiet_partition),
        TEST(removal_leaves_no_memory),
        TEST(a_missing_directory_is_a_disk_error_until_it_is_there),
        TEST(drop_oldest_on_a_full_disk_drops_from_the_front_and_counts_it),
        TEST(a_full_disk_holds_nothing_up_but_itself_and_resumes_alone),
        TEST(after_a_failed_sync_the_records_are_written_anew),
        TEST(after_a_failed_sync_what_left_memory_is_read_back),
        TEST(after_a_failed_sync_what_cannot_be_read_back_is_named_as_lost),
#ifdef SL_FAILPOINTS
        TEST(a_rewrite_killed_anywhere_leaves_one_file_or_the_other),
#endif
        TEST(a_buffer_that_two_brokers_know_is_published_by_one_of_them),
        TEST(many_partitions_share_the_threads),
        TEST(many_partitions_live_within_few_descriptors),
        TEST(a_broker_killed_anywhere_loses_nothing),
    };
    int bad = 0;
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (argc > 1 && !strstr(tests[i].name, argv[1])) continue;
        failed = 0;
        int64_t began = sl_monotonic_ns();
        tests[i].run();
        printf("%s %s (%lld ms)\n", failed ? "FAIL" : "ok  ", tests[i].name, (long long)((sl_monotonic_ns() - began) / 1000000));
        fflush(stdout);
        if (failed) {
            sl_broker_event e;
            while (broker && sl_broker_event_next(broker, &e) == 1)
                fprintf(stderr, "  event %u code %d errno %d offset %llu count %llu: %s\n", e.kind, e.code, e.saved_errno, (unsigned long long)e.offset, (unsigned long long)e.count, e.what);
            sl_fetch_add_relaxed(&bad, 1);
            if (broker) sl_broker_free(broker);
            broker = NULL;
            sl_store_release(&fail_syncs, 0);
            fixture_unlink();
        }
    }
    fixture_unlink();
    return bad != 0;
}
