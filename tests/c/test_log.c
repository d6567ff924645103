/* Append, seal, rotate, recycle, read, loan, wait: on real shared memory, with real processes where more than one is meant. */
#include <signal.h>
#include <sys/wait.h>

#include "fixture.h"

static int failed;
#define CHECK(cond) do { if (!(cond)) { fprintf(stderr, "  %s:%d: not so: %s\n", __FILE__, __LINE__, #cond); failed = 1; return; } } while (0)
#define CHECK_EQ(a, b) do { long long a_ = (long long)(a), b_ = (long long)(b); if (a_ != b_) { \
    fprintf(stderr, "  %s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #a, a_, b_); failed = 1; return; } } while (0)

static sl_cluster *c;
static uint32_t block;

static sl_record record_of(const void *value, uint32_t bytes) {
    return (sl_record){.value = value, .value_bytes = bytes, .producer_id = -1, .sequence = -1};
}

static void open_partition(uint32_t flags, uint64_t segment_bytes) {
    fixture_make();
    c = fixture_open();
    block = 0;
    sl_cluster_partition(c, block)->flags = flags;
    int64_t buffer = sl_segment_make(c, segment_bytes);
    SL_ASSERT(buffer > 0);
    int rc = sl_log_open_epoch(c, 31, block, 1, (uint32_t)buffer, 0);
    if (rc != 1) { fprintf(stderr, "open_epoch: %d\n", rc); exit(2); }
}
static void close_partition(void) {
    sl_cluster_close(c);
    fixture_unlink();
}

static int append_text(sl_appender *a, const char *text, int64_t *offset) {
    sl_record r = record_of(text, (uint32_t)strlen(text));
    sl_append_result result;
    int rc = sl_append(a, &r, -1, SOON, &result);
    if (offset) *offset = result.offset;
    return rc;
}

static void an_appended_record_is_read_back_with_its_offset_and_bytes(void) {
    open_partition(0, SL_SEGMENT_MIN_BYTES);
    sl_appender *a;
    sl_reader *r;
    CHECK_EQ(sl_appender_open(c, 0, block, fixture_topic_id, &a), 0);
    CHECK_EQ(sl_reader_open(c, 1, block, fixture_topic_id, NULL, &r), 0);
    int64_t offset;
    for (int i = 0; i < 3; i++) {
        char text[32];
        snprintf(text, sizeof text, "record %d", i);
        CHECK_EQ(append_text(a, text, &offset), 0);
        CHECK_EQ(offset, i);
    }
    sl_view v[8];
    CHECK_EQ(sl_reader_poll(r, v, 8, 1 << 20, 1), 3);
    CHECK_EQ(v[2].offset, 2);
    CHECK_EQ(v[2].value_bytes, 8);
    CHECK(memcmp(v[2].value, "record 2", 8) == 0);
    CHECK(v[2].key == NULL);
    CHECK_EQ(v[2].leader_epoch, 1);
    CHECK_EQ(sl_reader_poll(r, v, 8, 1 << 20, 1), 0);
    CHECK_EQ(sl_cluster_row(c, 0)->hazard[0], 0); /* an idle producer names nothing */
    sl_reader_done(r);
    CHECK_EQ(sl_cluster_row(c, 1)->poll_pin, 0);
    sl_offsets o;
    CHECK_EQ(sl_log_offsets(c, 2, block, &o), 0);
    CHECK_EQ(o.end, 3);
    CHECK_EQ(sl_log_offsets(c, UINT32_MAX, block, &o), 0);
    CHECK_EQ(o.end, 3);
    sl_appender_close(a);
    sl_reader_close(r);
    close_partition();
}

static void expected_offset_wins_once_and_reports_the_end_to_the_loser(void) {
    open_partition(0, SL_SEGMENT_MIN_BYTES);
    sl_appender *a;
    sl_appender_open(c, 0, block, fixture_topic_id, &a);
    sl_record r = record_of("x", 1);
    sl_append_result result;
    CHECK_EQ(sl_append(a, &r, 0, SOON, &result), 0);
    CHECK_EQ(result.offset, 0);
    CHECK_EQ(sl_append(a, &r, 0, SOON, &result), SL_E_CONFLICT);
    CHECK_EQ(result.offset, 1);
    CHECK_EQ(sl_append(a, &r, 5, SOON, &result), SL_E_CONFLICT);
    CHECK_EQ(sl_append(a, &r, 1, SOON, &result), 0);
    sl_appender_close(a);
    close_partition();
}

static void offsets_stay_dense_over_many_rotations_and_lives(void) {
    open_partition(SL_PF_SPILL, SL_SEGMENT_MIN_BYTES);
    sl_appender *a;
    sl_reader *r;
    sl_appender_open(c, 0, block, fixture_topic_id, &a);
    sl_reader_open(c, 1, block, fixture_topic_id, NULL, &r);
    char value[300];
    int64_t read = 0;
    for (int i = 0; i < 20000; i++) {
        fixture_stock(c, 31, block, SL_SEGMENT_MIN_BYTES, 2);
        memset(value, i & 255, sizeof value);
        uint32_t bytes = (uint32_t)(i % 300);
        sl_record rec = record_of(value, bytes);
        sl_append_result result;
        CHECK_EQ(sl_append(a, &rec, -1, SOON, &result), 0);
        CHECK_EQ(result.offset, i);
        if (i % 7 == 0) {
            sl_view v[16];
            for (int64_t n; (n = sl_reader_poll(r, v, 16, 1 << 20, 1)) != 0;) {
                CHECK(n > 0);
                for (int64_t k = 0; k < n; k++, read++) {
                    CHECK_EQ(v[k].offset, read);
                    CHECK_EQ(v[k].value_bytes, read % 300);
                    for (uint32_t b = 0; b < v[k].value_bytes; b++) CHECK_EQ(v[k].value[b], read & 255);
                }
            }
            sl_reader_done(r);
        }
    }
    CHECK(sl_cluster_partition(c, block)->recycled_segments > 10);
    sl_appender_close(a);
    sl_reader_close(r);
    close_partition();
}

static void a_segment_under_a_view_is_never_reused(void) {
    open_partition(SL_PF_SPILL, SL_SEGMENT_MIN_BYTES);
    sl_appender *a;
    sl_reader *r;
    sl_appender_open(c, 0, block, fixture_topic_id, &a);
    sl_reader_open(c, 1, block, fixture_topic_id, NULL, &r);
    CHECK_EQ(append_text(a, "look at me", NULL), 0);
    sl_view v[4];
    CHECK_EQ(sl_reader_poll(r, v, 4, 1 << 20, 1), 1);
    int64_t lease = sl_reader_lease(r);
    CHECK(lease >= 0);
    sl_reader_done(r);
    for (int i = 0; i < 5000; i++) {
        fixture_stock(c, 31, block, SL_SEGMENT_MIN_BYTES, 2);
        CHECK_EQ(append_text(a, "something else that is longer than what was there before", NULL), 0);
    }
    CHECK(memcmp(v[0].value, "look at me", 10) == 0);
    sl_reader_close(r); /* the lease outlives its reader */
    CHECK(memcmp(v[0].value, "look at me", 10) == 0);
    sl_lease_release(c, 1, lease);
    for (int i = 0; i < SL_VIEW_PINS; i++) CHECK_EQ(sl_cluster_row(c, 1)->view_pins[i], 0);
    sl_appender_close(a);
    close_partition();
}

static void a_loan_is_published_in_place_or_copied_after_a_rotation(void) {
    open_partition(SL_PF_SPILL, SL_SEGMENT_MIN_BYTES);
    sl_appender *a;
    sl_reader *r;
    sl_appender_open(c, 0, block, fixture_topic_id, &a);
    sl_reader_open(c, 1, block, fixture_topic_id, NULL, &r);
    for (int across = 0; across < 2; across++) {
        sl_record rec = record_of(NULL, 0);
        rec.value = (const uint8_t *)"";
        rec.value_bytes = 4096;
        sl_loan loan = {0};
        sl_append_result result;
        CHECK_EQ(sl_loan_take(a, &rec, SOON, &loan, &result), 0);
        memset(loan.value, 'A' + across, 4096);
        if (across)
            for (int i = 0; i < 3000; i++) {
                fixture_stock(c, 31, block, SL_SEGMENT_MIN_BYTES, 2);
                CHECK_EQ(append_text(a, "meanwhile something else is appended by the same thread", NULL), 0);
            }
        fixture_stock(c, 31, block, SL_SEGMENT_MIN_BYTES, 2);
        CHECK_EQ(sl_loan_publish(a, &loan, &rec, -1, SOON, &result), 0);
        CHECK(loan.value == NULL);
        sl_reader_seek(r, (uint64_t)result.offset);
        sl_view v[1];
        CHECK_EQ(sl_reader_poll(r, v, 1, 1 << 20, 1), 1);
        CHECK_EQ(v[0].value_bytes, 4096);
        CHECK_EQ((uintptr_t)v[0].value % 64, 0);
        for (int i = 0; i < 4096; i++) CHECK_EQ(v[0].value[i], 'A' + across);
        sl_reader_done(r);
        for (int i = 0; i < SL_VIEW_PINS; i++) CHECK_EQ(sl_cluster_row(c, 0)->view_pins[i], 0);
    }
    sl_appender_close(a);
    sl_reader_close(r);
    close_partition();
}

static void arrays_and_batches_take_one_cell_and_are_read_row_by_row(void) {
    open_partition(0, SL_SEGMENT_MIN_BYTES);
    sl_appender *a;
    sl_reader *r;
    sl_appender_open(c, 0, block, fixture_topic_id, &a);
    sl_reader_open(c, 1, block, fixture_topic_id, NULL, &r);
    uint32_t rows[100];
    for (uint32_t i = 0; i < 100; i++) rows[i] = i;
    sl_record rec = record_of(rows, sizeof rows);
    rec.kind = SL_FF_ARRAY;
    rec.rows = 100;
    rec.row_bytes = 4;
    sl_append_result result;
    CHECK_EQ(sl_append(a, &rec, -1, SOON, &result), 0);
    sl_record parts[3] = {record_of("a", 1), record_of("bb", 2), record_of("ccc", 3)};
    uint8_t batch[1024];
    int64_t bytes = sl_batch_build(batch, sizeof batch, parts, 3);
    CHECK(bytes > 0);
    rec = record_of(batch, (uint32_t)bytes);
    rec.kind = SL_FF_BATCH;
    rec.rows = 3;
    CHECK_EQ(sl_append(a, &rec, -1, SOON, &result), 0);
    CHECK_EQ(result.offset, 100);
    batch[16] = 9; /* another magic: no batch, and it takes no offset */
    CHECK_EQ(sl_append(a, &rec, -1, SOON, &result), SL_E_INVALID);
    CHECK_EQ(append_text(a, "after", NULL), 0);
    sl_view v[16];
    int64_t next = 0;
    for (int64_t n; (n = sl_reader_poll(r, v, 16, 1 << 20, 1)) != 0;) {
        CHECK(n > 0);
        for (int64_t k = 0; k < n; k++, next++) {
            CHECK_EQ(v[k].offset, next);
            if (next < 100) { uint32_t got; memcpy(&got, v[k].value, 4); CHECK_EQ(got, next); CHECK_EQ(v[k].frame_rows, 100); }
            else if (next < 103) CHECK_EQ(v[k].value_bytes, next - 99);
            else CHECK(memcmp(v[k].value, "after", 5) == 0);
        }
    }
    CHECK_EQ(next, 104);
    sl_reader_seek(r, 57); /* into the middle of a frame */
    CHECK_EQ(sl_reader_poll(r, v, 1, 1 << 20, 1), 1);
    CHECK_EQ(v[0].offset, 57);
    sl_reader_seek(r, 105);
    CHECK_EQ(sl_reader_poll(r, v, 1, 1 << 20, 1), SL_E_RANGE);
    sl_appender_close(a);
    sl_reader_close(r);
    close_partition();
}

static void without_room_an_append_times_out_and_nothing_is_appended(void) {
    open_partition(SL_PF_SPILL, SL_SEGMENT_MIN_BYTES); /* nobody stocks, nothing is ever spilled */
    sl_appender *a;
    sl_appender_open(c, 0, block, fixture_topic_id, &a);
    int rc, n = 0;
    sl_record r = record_of("0123456789", 10);
    sl_append_result result;
    while ((rc = sl_append(a, &r, -1, sl_monotonic_ns() + 1000000, &result)) == 0) n++;
    CHECK_EQ(rc, SL_E_TIMEOUT);
    sl_offsets o;
    CHECK_EQ(sl_log_offsets(c, 2, block, &o), 0);
    CHECK_EQ(o.end, n);
    fixture_stock(c, 31, block, SL_SEGMENT_MIN_BYTES, 1);
    CHECK_EQ(sl_append(a, &r, n, SOON, &result), 0);
    r.value_bytes = (64 << 20) + 1;
    CHECK_EQ(sl_append(a, &r, -1, SOON, &result), SL_E_TOO_BIG);
    sl_appender_close(a);
    close_partition();
}

static void a_new_leader_epoch_fences_seals_and_goes_on_at_the_same_offset(void) {
    open_partition(SL_PF_SPILL, SL_SEGMENT_MIN_BYTES);
    sl_appender *a;
    sl_reader *r;
    sl_appender_open(c, 0, block, fixture_topic_id, &a);
    sl_reader_open(c, 1, block, fixture_topic_id, NULL, &r);
    CHECK_EQ(append_text(a, "one", NULL), 0);
    for (uint32_t epoch = 2; epoch < 80; epoch++) {
        if (epoch % 3 == 0) fixture_stock(c, 31, block, SL_SEGMENT_MIN_BYTES, 1); /* sometimes a segment of the old epoch stands ready */
        CHECK_EQ(sl_log_fence(c, 31, block, epoch), 0);
        sl_record rec = record_of("x", 1);
        sl_append_result result;
        CHECK_EQ(sl_append(a, &rec, -1, SOON, &result), SL_E_FENCED);
        int64_t buffer = sl_segment_make(c, SL_SEGMENT_MIN_BYTES);
        int rc = sl_log_open_epoch(c, 31, block, epoch, (uint32_t)buffer, 0);
        CHECK(rc == 0 || rc == 1);
        if (rc == 0) sl_segment_unlink(c, (uint32_t)buffer);
        CHECK_EQ(sl_log_open_epoch(c, 31, block, epoch, 0, 0), SL_E_FENCED); /* opened once; an older one even less */
        CHECK_EQ(sl_log_open_epoch(c, 31, block, epoch - 1, 0, 0), SL_E_FENCED);
        CHECK_EQ(sl_log_advance(c, block, SL_WORD_DURABLE, epoch - 1, 1000000), SL_E_FENCED);
        int64_t offset;
        CHECK_EQ(append_text(a, "next", &offset), 0);
        CHECK_EQ(offset, epoch - 1);
        sl_view v[4];
        CHECK_EQ(sl_reader_poll(r, v, 4, 1 << 20, 1), 1);
        if (epoch > 2) CHECK_EQ(v[0].leader_epoch, epoch - 1);
        fixture_stock(c, 31, block, SL_SEGMENT_MIN_BYTES, 0);
        sl_reader_done(r);
        while (sl_log_takeout(c, 31, block) > 0) {}
    }
    sl_cluster_partition(c, block)->state = SL_PARTITION_DELETED;
    sl_record rec = record_of("x", 1);
    sl_append_result result;
    CHECK_EQ(sl_append(a, &rec, -1, SOON, &result), SL_E_DELETED);
    sl_view v[4];
    CHECK_EQ(sl_reader_poll(r, v, 4, 1 << 20, 1), SL_E_DELETED);
    sl_appender_close(a);
    sl_reader_close(r);
    close_partition();
}

static void headers_that_cannot_be_right_are_codes_and_never_a_crash(void) {
    struct { const char *what; int code; } cases[] = {{"halfmade", SL_E_HALFMADE}, {"version", SL_E_VERSION}, {"boot", SL_E_BOOT},
                                                      {"magic", SL_E_DAMAGED}, {"kind", SL_E_DAMAGED}, {"flip", SL_E_DAMAGED}, {"short", SL_E_HALFMADE}, {"cut", SL_E_HALFMADE}, {"gone", SL_E_NOENT}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fixture_make();
        char name[128];
        snprintf(name, sizeof name, "%s.partitions", fixture_prefix);
        int fd = shm_open(name, O_RDWR, 0);
        sl_table *t = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        sl_object_header *h = &t->header;
        const char *w = cases[i].what;
        if (!strcmp(w, "halfmade")) h->state = SL_OBJECT_HALFMADE;
        if (!strcmp(w, "version")) h->layout_version = 2;
        if (!strcmp(w, "boot")) h->boot_id[3] ^= 1;
        if (!strcmp(w, "magic")) h->magic++;
        if (!strcmp(w, "kind")) h->kind = SL_KIND_ROWS;
        if (strcmp(w, "flip") != 0) h->header_crc = sl_crc32c(0, h, offsetof(sl_object_header, header_crc));
        else h->made_ns ^= 1;
        if (!strcmp(w, "short")) CHECK_EQ(ftruncate(fd, 64), 0);
        if (!strcmp(w, "cut")) CHECK_EQ(ftruncate(fd, 1 << 20), 0); /* `allocated` would lead beyond its end */
        if (!strcmp(w, "gone")) shm_unlink(name);
        close(fd);
        sl_cluster *cluster = NULL;
        CHECK_EQ(sl_cluster_open(fixture_prefix, &cluster), cases[i].code);
        munmap(t, 4096);
        fixture_unlink();
    }
}

/* ---- several processes ---- */

static pid_t spawn(void (*body)(int), int index) {
    pid_t pid = fork();
    if (pid == 0) {
        c = fixture_open(); /* writable mappings are not inherited: attach anew */
        body(index);
        _exit(0);
    }
    return pid;
}

#define PRODUCERS 3
#define EACH 20000
struct note { uint32_t producer, sequence; uint64_t salt; };

static void producer(int index) {
    sl_appender *a;
    if (sl_appender_open(c, (uint32_t)index, block, fixture_topic_id, &a) < 0) _exit(3);
    for (uint32_t i = 0; i < EACH; i++) {
        struct note n[8];
        for (int k = 0; k < 8; k++) n[k] = (struct note){(uint32_t)index, i, (uint64_t)i * 2654435761u + (uint64_t)index};
        sl_record r = record_of(n, (uint32_t)(sizeof *n * (1 + i % 8)));
        sl_append_result result;
        if (sl_append(a, &r, -1, SOON, &result) < 0) _exit(4);
    }
    sl_appender_close(a);
}

static void broker(int index) {
    for (;;) fixture_stock(c, (uint32_t)index, block, SL_SEGMENT_MIN_BYTES, 3);
}

static void producers_in_processes_lose_nothing_and_keep_their_order(void) {
    open_partition(0, SL_SEGMENT_MIN_BYTES); /* memory only, lossless by a tether: producers recycle too */
    sl_reader *r;
    CHECK_EQ(sl_reader_open(c, 20, block, fixture_topic_id, NULL, &r), 0);
    CHECK_EQ(sl_reader_tether(r, 1), 0);
    pid_t b = spawn(broker, 31), p[PRODUCERS];
    for (int i = 0; i < PRODUCERS; i++) p[i] = spawn(producer, i);
    uint32_t next[PRODUCERS] = {0};
    int64_t offset = 0, end = (int64_t)PRODUCERS * EACH, until = sl_monotonic_ns() + INT64_C(120000000000);
    sl_view v[256];
    while (offset < end && sl_monotonic_ns() < until) {
        int64_t n = sl_reader_poll(r, v, 256, 1 << 20, 1);
        CHECK(n >= 0);
        for (int64_t k = 0; k < n; k++, offset++) {
            struct note note;
            CHECK_EQ(v[k].offset, offset);
            memcpy(&note, v[k].value, sizeof note);
            CHECK(note.producer < PRODUCERS);
            CHECK_EQ(note.sequence, next[note.producer]);
            CHECK_EQ(note.salt, (uint64_t)note.sequence * 2654435761u + note.producer);
            CHECK_EQ(v[k].value_bytes, sizeof note * (1 + note.sequence % 8));
            next[note.producer]++;
        }
        if (n == 0) sl_readers_wait(c, 20, &r, 1, 1000, sl_monotonic_ns() + 100000000);
    }
    CHECK_EQ(offset, end);
    for (int i = 0; i < PRODUCERS; i++) {
        int status;
        waitpid(p[i], &status, 0);
        CHECK_EQ(status, 0);
    }
    kill(b, SIGKILL);
    waitpid(b, NULL, 0);
    sl_reader_close(r);
    close_partition();
}

static void racer(int index) {
    sl_appender *a;
    if (sl_appender_open(c, (uint32_t)index, block, fixture_topic_id, &a) < 0) _exit(3);
    sl_record r = record_of(&index, sizeof index);
    int64_t won = 0;
    for (int64_t expected = 0; expected < 20000;) {
        sl_append_result result;
        int rc = sl_append(a, &r, expected, SOON, &result);
        if (rc == SL_OK) { won++; expected = result.offset + 1; }
        else if (rc == SL_E_CONFLICT) expected = result.offset;
        else _exit(4);
    }
    sl_appender_close(a);
}

static void of_processes_racing_for_an_offset_exactly_one_wins_each(void) {
    open_partition(SL_PF_SPILL, SL_SEGMENT_MIN_BYTES);
    pid_t b = spawn(broker, 31), p[4];
    for (int i = 0; i < 4; i++) p[i] = spawn(racer, i);
    for (int i = 0; i < 4; i++) {
        int status;
        waitpid(p[i], &status, 0);
        CHECK_EQ(status, 0);
    }
    kill(b, SIGKILL);
    waitpid(b, NULL, 0);
    sl_offsets o;
    CHECK_EQ(sl_log_offsets(c, 2, block, &o), 0);
    CHECK(o.end >= 20000 && o.end < 20004);
    close_partition();
}

static void big_records_of_two_producers_make_progress(void) {
    open_partition(SL_PF_SPILL, 1 << 20);
    pid_t b = fork();
    if (b == 0) {
        c = fixture_open();
        for (;;) fixture_stock(c, 31, block, 1 << 20, 2);
    }
    pid_t p[2];
    for (int i = 0; i < 2; i++) {
        p[i] = fork();
        if (p[i]) continue;
        c = fixture_open();
        sl_appender *a;
        if (sl_appender_open(c, (uint32_t)i, block, fixture_topic_id, &a) < 0) _exit(3);
        uint8_t *big = malloc(700000); /* more than half an arena: each segment takes one */
        memset(big, i, 700000);
        for (int n = 0; n < 100; n++) {
            sl_record r = record_of(big, 700000);
            sl_append_result result;
            if (sl_append(a, &r, -1, SOON, &result) < 0) _exit(4);
        }
        _exit(0);
    }
    for (int i = 0; i < 2; i++) {
        int status;
        waitpid(p[i], &status, 0);
        CHECK_EQ(status, 0);
    }
    kill(b, SIGKILL);
    waitpid(b, NULL, 0);
    sl_offsets o;
    CHECK_EQ(sl_log_offsets(c, 2, block, &o), 0);
    CHECK_EQ(o.end, 200);
    close_partition();
}

static void a_dead_rows_segment_is_unlinked_and_never_reused(void) {
    open_partition(SL_PF_SPILL, SL_SEGMENT_MIN_BYTES);
    sl_appender *a;
    sl_appender_open(c, 0, block, fixture_topic_id, &a);
    CHECK_EQ(append_text(a, "x", NULL), 0);
    uint64_t number = sl_cur_number(sl_cluster_partition(c, block)->cur);
    uint32_t buffer = sl_log_buffer(sl_cluster_partition(c, block), number);
    sl_row *dead = sl_cluster_row(c, 5);
    dead->hazard[0] = sl_pin_make(block, number); /* it died in the middle of an append */
    for (int i = 0; i < 3000; i++) { fixture_stock(c, 31, block, SL_SEGMENT_MIN_BYTES, 2); CHECK_EQ(append_text(a, "more and more and more and more and more and more and more", NULL), 0); }
    sl_map *m;
    CHECK_EQ(sl_map_get(c, buffer, 1, &m), 0);
    CHECK_EQ(sl_segment_phase(m->segment), SL_SEGMENT_LIMBO);
    CHECK_EQ(sl_limbo_retry(c, 31, m), 0);   /* alive, for all we know */
    CHECK_EQ(sl_row_clean(c, 5), 1);         /* the certificate is there; its word names what is out of the directory */
    CHECK_EQ(sl_limbo_retry(c, 31, m), 2);
    CHECK_EQ(sl_segment_phase(m->segment), SL_SEGMENT_DEAD);
    CHECK_EQ(dead->hazard[0], 0);
    sl_map_put(c, m);
    sl_appender_close(a);
    close_partition();
}

/* Appends until `segments` more have been begun; a fresh one is always to be had. */
static int run_through(sl_appender *a, int segments) {
    sl_partition *p = sl_cluster_partition(c, block);
    uint64_t until = sl_cur_number(p->cur) + (uint64_t)segments;
    static const char text[] = "one record of many, long enough to fill a segment in good time and short enough to be dull";
    while (sl_cur_number(p->cur) < until) {
        for (int ready = sl_log_ready(c, block); ready < 2; ready++) {
            int64_t buffer = sl_segment_make(c, SL_SEGMENT_MIN_BYTES);
            if (buffer < 0 || sl_log_publish(c, 31, block, p->leader_epoch, (uint32_t)buffer) < 0) { if (buffer >= 0) sl_segment_unlink(c, (uint32_t)buffer); break; }
        }
        sl_offsets o;
        if (sl_log_offsets(c, 31, block, &o) == SL_OK) sl_log_advance(c, block, SL_WORD_SPILLED, p->leader_epoch, o.end);
        while (sl_log_ready(c, block) < 2 && sl_log_takeout(c, 30, block) > 0) {} /* somebody makes room, of what he can */
        if (append_text(a, text, NULL) < 0) return 0;
    }
    return 1;
}

/* A recycler (row 9, a process of its own) is stopped at each step in turn: the ring goes on, all the way round and beyond; then it is resumed, and
 * goes on legally, or killed, and its buffer is found. */
static void recyclers_anywhere(const char *action, uint32_t flags) {
    const char *places[] = {"recycle_claim", "recycle_tethers", "recycle_takeout", "recycle_scan", "recycle_reset", "recycle_choose_slot", "recycle_publish"};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        if (!strcmp(places[i], "recycle_tethers") && (flags & SL_PF_SPILL)) continue;
        open_partition(flags, SL_SEGMENT_MIN_BYTES);
        sl_appender *a;
        sl_appender_open(c, 0, block, fixture_topic_id, &a);
        CHECK(run_through(a, 3));
        char where[64];
        snprintf(where, sizeof where, "%s:1:%s", places[i], action);
        setenv("SHMLOG_FAILPOINT", where, 1);
        pid_t pid = fork();
        if (pid == 0) {
            c = fixture_open();
            sl_log_recycle(c, 9, block);
            _exit(0);
        }
        unsetenv("SHMLOG_FAILPOINT");
        int status;
        waitpid(pid, &status, WUNTRACED);
        int stopped = WIFSTOPPED(status);
        CHECK(stopped || WIFSIGNALED(status));
        CHECK(run_through(a, 2 * SL_DIR_SLOTS)); /* past the slot it was at work on, twice */
        if (stopped) {
            kill(pid, SIGCONT);
            waitpid(pid, &status, 0);
            CHECK_EQ(status, 0);
            CHECK_EQ(sl_cluster_row(c, 9)->hazard[1], 0);
        } else {
            CHECK_EQ(sl_row_clean(c, 9), 0);
            int lost = 0;
            for (uint32_t buffer = 1; buffer < 200; buffer++) {
                sl_map *m;
                if (sl_map_get(c, buffer, 1, &m) < 0) continue;
                lost += sl_segment_audit(c, 31, block, m);
                uint64_t w = m->segment->claim;
                sl_map_put(c, m);
                CHECK(!(sl_claim_row(w) == 9 && (sl_claim_phase(w) == SL_SEGMENT_HELD || sl_claim_phase(w) == SL_SEGMENT_TRY)));
            }
            int before_claim = i == 0, undone = i == 1;
            CHECK_EQ(lost, before_claim || undone ? 0 : 1);
        }
        CHECK(run_through(a, SL_DIR_SLOTS + 2));
        sl_appender_close(a);
        close_partition();
    }
}
static void a_recycler_stopped_anywhere_holds_up_one_buffer_and_not_the_ring(void) { recyclers_anywhere("stop", SL_PF_SPILL); }
static void a_recycler_of_a_memory_topic_stopped_anywhere_does_not_hold_up_the_ring(void) { recyclers_anywhere("stop", 0); }
static void a_recycler_killed_anywhere_loses_no_buffer(void) { recyclers_anywhere("kill", SL_PF_SPILL); }
static void a_recycler_of_a_memory_topic_killed_anywhere_loses_no_buffer(void) { recyclers_anywhere("kill", 0); }

static void full_and_raise_is_an_error_and_not_a_wait(void) {
    open_partition(SL_PF_SPILL | SL_PF_FULL_RAISE, SL_SEGMENT_MIN_BYTES);
    sl_appender *a;
    sl_appender_open(c, 0, block, fixture_topic_id, &a);
    int rc;
    sl_record r = record_of("0123456789", 10);
    sl_append_result result;
    while ((rc = sl_append(a, &r, -1, SOON, &result)) == 0) {}
    CHECK_EQ(rc, SL_E_RING_FULL);
    fixture_stock(c, 31, block, SL_SEGMENT_MIN_BYTES, 1);
    CHECK_EQ(sl_append(a, &r, -1, SOON, &result), 0);
    sl_appender_close(a);
    close_partition();
}

static void a_dtype_of_any_length_that_may_be_written_is_read_from_memory(void) {
    open_partition(0, SL_SEGMENT_MIN_BYTES);
    sl_appender *a;
    sl_reader *r;
    CHECK_EQ(sl_appender_open(c, 0, block, fixture_topic_id, &a), 0);
    CHECK_EQ(sl_reader_open(c, 1, block, fixture_topic_id, NULL, &r), 0);
    static uint8_t dtype[32 * 1024];
    memset(dtype, 'd', sizeof dtype);
    sl_record record = record_of("value", 5);
    record.dtype = dtype;
    record.dtype_bytes = sizeof dtype;
    sl_append_result result;
    CHECK_EQ(sl_append(a, &record, -1, SOON, &result), 0);
    sl_view v;
    CHECK_EQ(sl_reader_poll(r, &v, 1, 1 << 20, 1), 1);
    CHECK_EQ(v.dtype_bytes, sizeof dtype);
    CHECK(memcmp(v.dtype, dtype, sizeof dtype) == 0);
    CHECK(v.value_bytes == 5 && memcmp(v.value, "value", 5) == 0);
    sl_reader_close(r);
    sl_appender_close(a);
    close_partition();
}

/* A producer's frame is hostile input: without the check the reader shows a million rows of a gigabyte each. */
static void a_record_that_claims_rows_is_damage_and_not_views_of_other_memory(void) {
    open_partition(0, SL_SEGMENT_MIN_BYTES);
    sl_appender *a;
    sl_reader *r;
    CHECK_EQ(sl_appender_open(c, 0, block, fixture_topic_id, &a), 0);
    CHECK_EQ(sl_reader_open(c, 1, block, fixture_topic_id, NULL, &r), 0);
    uint32_t claim[2] = {1000000, 1u << 30};
    sl_record record = record_of("value", 5);
    record.dtype = (uint8_t *)claim;
    record.dtype_bytes = sizeof claim;
    sl_append_result result;
    CHECK_EQ(sl_append(a, &record, -1, SOON, &result), 0);
    sl_map *m;
    CHECK_EQ(sl_map_get(c, sl_log_buffer(sl_cluster_partition(c, block), 1), 1, &m), 0);
    sl_frame *frame = (sl_frame *)(m->arena + (uint64_t)sl_cell_unit(m->cells[0]) * SL_UNIT_BYTES);
    frame->flags = (uint16_t)((frame->flags & ~SL_FF_HAS_DTYPE) | SL_FF_HAS_ROWS);
    sl_map_put(c, m);
    sl_view v[4];
    CHECK_EQ(sl_reader_poll(r, v, 4, UINT64_MAX, 0), SL_E_CORRUPT);
    sl_reader_close(r);
    sl_appender_close(a);
    close_partition();
}

/* Who skips damage by it would skip right records, all up to where the reader stood before. */
static void where_damage_ends_is_not_known_from_before_a_seek(void) {
    open_partition(0, SL_SEGMENT_MIN_BYTES);
    sl_appender *a;
    sl_reader *r;
    CHECK_EQ(sl_appender_open(c, 0, block, fixture_topic_id, &a), 0);
    CHECK_EQ(sl_reader_open(c, 1, block, fixture_topic_id, NULL, &r), 0);
    sl_record record = record_of("value", 5);
    sl_append_result result;
    for (int i = 0; i < 10; i++) CHECK_EQ(sl_append(a, &record, -1, SOON, &result), 0);
    sl_view v[10];
    CHECK_EQ(sl_reader_poll(r, v, 10, UINT64_MAX, 1), 10);
    CHECK_EQ(sl_reader_seek(r, 3), 0);
    CHECK_EQ(sl_reader_damage_end(r), 4);
    sl_reader_close(r);
    sl_appender_close(a);
    close_partition();
}

static void a_recycler_stopped_over_the_deletion_of_its_topic_comes_to_an_end(void) {
    open_partition(0, SL_SEGMENT_MIN_BYTES);
    sl_partition *p = sl_cluster_partition(c, block);
    int64_t ready = sl_segment_make(c, SL_SEGMENT_MIN_BYTES), held = sl_segment_make(c, SL_SEGMENT_MIN_BYTES);
    CHECK_EQ(sl_log_publish(c, 31, block, 1, (uint32_t)ready), 0);
    for (int i = 0; i < SL_DIR_SLOTS; i++) /* as sl_ring_discard(): the buffers go, numbers and epochs stay */
        if (sl_dir_buffer(p->dir[i])) p->dir[i] = sl_dir_make(sl_dir_epoch(p->dir[i]), sl_dir_number(p->dir[i]), 0);
    alarm(10); /* it went round for ever */
    CHECK_EQ(sl_log_publish(c, 31, block, 1, (uint32_t)held), SL_E_AGAIN);
    alarm(600);
    close_partition();
}

static void a_reader_of_a_partition_that_is_not_open_yet_sleeps_until_it_is(void) {
    open_partition(0, SL_SEGMENT_MIN_BYTES);
    uint32_t other = 1; /* known to the coordinator, opened by no broker */
    sl_reader *r;
    sl_view v;
    CHECK_EQ(sl_reader_open(c, 1, other, fixture_topic_id, NULL, &r), 0);
    CHECK_EQ(sl_reader_poll(r, &v, 1, 1 << 20, 1), 0);
    CHECK_EQ(sl_readers_wait(c, 1, &r, 1, 0, sl_monotonic_ns() + 20000000), SL_E_TIMEOUT); /* it went round at once, for as long as that took */
    pid_t child = fork();
    if (child == 0) {
        sl_cluster *mine = fixture_open();
        while (!sl_cluster_waits(mine, other)->data[0]) sl_pause();
        int64_t buffer = sl_segment_make(mine, SL_SEGMENT_MIN_BYTES);
        _exit(sl_log_open_epoch(mine, 30, other, 1, (uint32_t)buffer, 0) == 1 ? 0 : 1);
    }
    int64_t deadline = SOON;
    CHECK_EQ(sl_readers_wait(c, 1, &r, 1, 0, deadline), 1);
    CHECK(sl_monotonic_ns() < deadline);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK_EQ(sl_reader_poll(r, &v, 1, 1 << 20, 1), 0);
    CHECK_EQ(sl_readers_wait(c, 1, &r, 1, 0, sl_monotonic_ns() + 1000000), SL_E_TIMEOUT);
    sl_reader_close(r);
    close_partition();
}

/* Stopped between its fence and its words, while epoch 3 opened and went on: what it does after that must not be seen. */
static void a_leader_that_opens_too_late_takes_nothing_back(void) {
    open_partition(0, SL_SEGMENT_MIN_BYTES);
    sl_partition *p = sl_cluster_partition(c, block);
    int64_t buffer = sl_segment_make(c, SL_SEGMENT_MIN_BYTES);
    CHECK_EQ(sl_log_open_epoch(c, 31, block, 3, (uint32_t)buffer, 0), 1);
    CHECK_EQ(sl_log_advance(c, block, SL_WORD_SPILLED, 3, 7), 0);
    uint64_t opened = p->cur, spilled = p->spilled;
    p->cur = sl_cur_make(2, 1, sl_cur_number(opened)); /* as epoch 2 saw it before it was stopped */
    int64_t late = sl_segment_make(c, SL_SEGMENT_MIN_BYTES);
    CHECK_EQ(sl_log_open_epoch(c, 31, block, 2, (uint32_t)late, 0), SL_E_FENCED);
    p->cur = opened;
    CHECK_EQ(p->leader_epoch, 3);
    CHECK_EQ(p->spilled, spilled);
    CHECK_EQ(sl_log_advance(c, block, SL_WORD_SPILLED, 2, 9), SL_E_FENCED);
    close_partition();
}

/* Epoch 2 is opened by a process of its own (row 30) that is stopped at `place`; meanwhile() happens; then it is resumed. Its result is its exit status. */
static int opened_over(const char *place, void (*meanwhile)(sl_appender *), sl_appender *a) {
    char where[64];
    snprintf(where, sizeof where, "%s:1:stop", place);
    setenv("SHMLOG_FAILPOINT", where, 1);
    pid_t pid = fork();
    if (pid == 0) {
        c = fixture_open();
        int64_t buffer = sl_segment_make(c, SL_SEGMENT_MIN_BYTES);
        _exit(-sl_log_open_epoch(c, 30, block, 2, (uint32_t)buffer, 0) & 0xff);
    }
    unsetenv("SHMLOG_FAILPOINT");
    int status;
    waitpid(pid, &status, WUNTRACED);
    if (!WIFSTOPPED(status)) { fprintf(stderr, "  not stopped at %s\n", place); return -1; }
    meanwhile(a);
    kill(pid, SIGCONT);
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
static void rotate_once(sl_appender *a) { run_through(a, 1); }
static void rotate_and_recycle(sl_appender *a) { /* until the buffer of the number that it looked at has another */
    sl_partition *p = sl_cluster_partition(c, block);
    uint64_t number = sl_cur_number(p->cur);
    int64_t until = sl_monotonic_ns() + INT64_C(60000000000);
    while (sl_log_buffer(p, number) && sl_monotonic_ns() < until) run_through(a, 1);
}
static void open_the_third(sl_appender *a) {
    int64_t buffer = sl_segment_make(c, SL_SEGMENT_MIN_BYTES);
    if (sl_log_open_epoch(c, 31, block, 3, (uint32_t)buffer, 0) < 0) { fprintf(stderr, "  epoch 3 is not opened\n"); exit(2); }
    append_text(a, "under epoch 3", NULL);
}

/* The old leader is dead and producers go on: the active segment that the new one saw may be full, left, even recycled before it has fenced. */
static void a_leader_change_over_rotations_goes_on_at_the_same_offset(void) {
    struct { const char *place; void (*meanwhile)(sl_appender *); } cases[] = {{"fence_cas", rotate_once}, {"open_look", rotate_once}, {"open_look", rotate_and_recycle}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        open_partition(SL_PF_SPILL, SL_SEGMENT_MIN_BYTES);
        sl_partition *p = sl_cluster_partition(c, block);
        sl_appender *a;
        sl_appender_open(c, 0, block, fixture_topic_id, &a);
        CHECK(run_through(a, 3));
        int rc = opened_over(cases[i].place, cases[i].meanwhile, a);
        CHECK(rc == 0 || rc == 0xff); /* -1: its own buffer was used */
        CHECK_EQ(sl_cur_epoch(p->cur), 2);
        CHECK(!sl_cur_fenced(p->cur));
        sl_offsets before, after;
        CHECK_EQ(sl_log_offsets(c, 31, block, &before), 0);
        CHECK(before.end >= before.spilled);
        int64_t offset;
        CHECK_EQ(append_text(a, "the next", &offset), 0);
        CHECK_EQ(offset, before.end);
        CHECK(offset > 100); /* what was appended before counts */
        CHECK_EQ(sl_log_offsets(c, 31, block, &after), 0);
        CHECK_EQ(after.end, before.end + 1);
        sl_appender_close(a);
        close_partition();
    }
}

static void a_leader_stopped_over_its_ready_segments_leaves_a_later_ones_epoch(void) {
    open_partition(SL_PF_SPILL, SL_SEGMENT_MIN_BYTES);
    sl_partition *p = sl_cluster_partition(c, block);
    sl_appender *a;
    sl_appender_open(c, 0, block, fixture_topic_id, &a);
    CHECK(run_through(a, 3));
    CHECK_EQ(opened_over("open_ready", open_the_third, a), -SL_E_FENCED & 0xff);
    CHECK_EQ(sl_cur_epoch(p->cur), 3);
    CHECK_EQ(sl_cluster_row(c, 30)->hazard[1], 0);
    uint64_t n = sl_cur_number(p->cur);
    for (sl_map *m; sl_log_buffer(p, n); n++) {
        CHECK_EQ(sl_map_get(c, sl_log_buffer(p, n), 1, &m), 0);
        uint32_t epoch = m->segment->leader_epoch;
        sl_map_put(c, m);
        CHECK_EQ(epoch, 3);
    }
    CHECK(n > sl_cur_number(p->cur));
    sl_appender_close(a);
    close_partition();
}

#define RUN(name) do { failed = 0; name(); printf("%s %s\n", failed ? "FAILED" : "ok    ", #name); fflush(stdout); if (failed) { fixture_unlink(); all = 1; } } while (0)
int main(void) {
    int all = 0;
    alarm(600); /* a hang is a failure */
    RUN(an_appended_record_is_read_back_with_its_offset_and_bytes);
    RUN(expected_offset_wins_once_and_reports_the_end_to_the_loser);
    RUN(offsets_stay_dense_over_many_rotations_and_lives);
    RUN(a_segment_under_a_view_is_never_reused);
    RUN(a_loan_is_published_in_place_or_copied_after_a_rotation);
    RUN(arrays_and_batches_take_one_cell_and_are_read_row_by_row);
    RUN(without_room_an_append_times_out_and_nothing_is_appended);
    RUN(a_new_leader_epoch_fences_seals_and_goes_on_at_the_same_offset);
    RUN(headers_that_cannot_be_right_are_codes_and_never_a_crash);
    RUN(a_dtype_of_any_length_that_may_be_written_is_read_from_memory);
    RUN(a_record_that_claims_rows_is_damage_and_not_views_of_other_memory);
    RUN(where_damage_ends_is_not_known_from_before_a_seek);
    RUN(a_dead_rows_segment_is_unlinked_and_never_reused);
    RUN(full_and_raise_is_an_error_and_not_a_wait);
    RUN(a_recycler_stopped_anywhere_holds_up_one_buffer_and_not_the_ring);
    RUN(a_recycler_of_a_memory_topic_stopped_anywhere_does_not_hold_up_the_ring);
    RUN(a_recycler_killed_anywhere_loses_no_buffer);
    RUN(a_recycler_of_a_memory_topic_killed_anywhere_loses_no_buffer);
    RUN(a_recycler_stopped_over_the_deletion_of_its_topic_comes_to_an_end);
    RUN(a_reader_of_a_partition_that_is_not_open_yet_sleeps_until_it_is);
    RUN(a_leader_that_opens_too_late_takes_nothing_back);
    RUN(a_leader_change_over_rotations_goes_on_at_the_same_offset);
    RUN(a_leader_stopped_over_its_ready_segments_leaves_a_later_ones_epoch);
    RUN(producers_in_processes_lose_nothing_and_keep_their_order);
    RUN(of_processes_racing_for_an_offset_exactly_one_wins_each);
    RUN(big_records_of_two_producers_make_progress);
    return all;
}
