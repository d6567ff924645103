/* Scenarios over the public C interface, one a call: `calls NAME TOPIC`. What a scenario expects it checks itself; the test in Python runs it and looks from the
 * other side. Written against the installed header and library, as a user's program is. */
#define _GNU_SOURCE
#include <pthread.h>
#include <shmlog.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define S INT64_C(1000000000)
#define WAIT (60 * S)
#define REQUIRE(cond) do { if (!(cond)) { fprintf(stderr, "calls.c:%d: not so: %s (%s)\n", __LINE__, #cond, shmlog_error()); exit(1); } } while (0)
#define REQUIRE_CODE(call, code) do { long long r_ = (long long)(call); if (r_ != (code)) { \
    fprintf(stderr, "calls.c:%d: %s is %lld, not %s (%s)\n", __LINE__, #call, r_, #code, shmlog_error()); exit(1); } } while (0)

static shmlog_cluster *cluster;
static const char *topic;

static shmlog_producer *producer_of(const char *name) {
    shmlog_producer *p;
    REQUIRE_CODE(shmlog_producer_open(cluster, name, 0, 0, WAIT, &p), 0);
    return p;
}
static shmlog_consumer *consumer_of(const char *name, int64_t offset) {
    shmlog_consumer *c;
    REQUIRE_CODE(shmlog_consumer_open(cluster, name, 0, offset, SHMLOG_VERIFY, WAIT, &c), 0);
    return c;
}
static shmlog_record text(const char *value) { return (shmlog_record){.value = value, .value_bytes = (uint32_t)strlen(value)}; }
static int64_t append(shmlog_producer *p, const char *value) {
    shmlog_record r = text(value);
    int64_t offset = shmlog_append(p, &r, SHMLOG_ANYWHERE, WAIT);
    REQUIRE(offset >= 0);
    return offset;
}
static int is(const shmlog_view *v, const char *value) { return v->value_bytes == strlen(value) && memcmp(v->value, value, v->value_bytes) == 0; }

static void conflict(void) {
    shmlog_producer *p = producer_of(topic);
    shmlog_record r = text("first");
    REQUIRE_CODE(shmlog_append(p, &r, 0, WAIT), 0);
    REQUIRE_CODE(shmlog_append(p, &r, 0, WAIT), SHMLOG_E_CONFLICT);
    REQUIRE(strstr(shmlog_error(), "ends at offset 1, not at 0"));
    REQUIRE_CODE(shmlog_end_offset(p), 1);
    REQUIRE_CODE(shmlog_append(p, &r, 1, WAIT), 1);
    REQUIRE_CODE(shmlog_append(p, &r, -7, WAIT), SHMLOG_E_INVALID);
    REQUIRE_CODE(shmlog_append(p, NULL, SHMLOG_ANYWHERE, WAIT), SHMLOG_E_INVALID);
    shmlog_producer_close(p);
}

static void loan(void) {
    shmlog_producer *p = producer_of(topic);
    shmlog_loan l, many[9];
    shmlog_record r = {.key = "k", .key_bytes = 1, .value_bytes = 100000};
    REQUIRE_CODE(shmlog_loan_take(p, &r, WAIT, &l), 0);
    REQUIRE(l.value_bytes == 100000 && ((uintptr_t)l.value & 63) == 0);
    memset(l.value, 'x', 100000);
    r.value_bytes = 99999;
    REQUIRE_CODE(shmlog_loan_publish(p, &l, &r, SHMLOG_ANYWHERE, WAIT), 0);
    REQUIRE(!l.value);
    REQUIRE_CODE(shmlog_loan_publish(p, &l, &r, SHMLOG_ANYWHERE, WAIT), SHMLOG_E_INVALID);
    REQUIRE_CODE(shmlog_loan_take(p, &r, WAIT, &l), 0);
    shmlog_loan_drop(p, &l);
    shmlog_loan_drop(p, &l);
    r.value_bytes = 8;
    for (int i = 0; i < 8; i++) REQUIRE_CODE(shmlog_loan_take(p, &r, WAIT, &many[i]), 0);
    REQUIRE_CODE(shmlog_loan_take(p, &r, WAIT, &many[8]), SHMLOG_E_NO_SLOT);
    shmlog_loan scribbled = many[3];
    scribbled.reserved[0] ^= 1;
    REQUIRE_CODE(shmlog_loan_publish(p, &scribbled, &r, SHMLOG_ANYWHERE, WAIT), SHMLOG_E_INVALID);
    memcpy(many[7].value, "the last", 8);
    REQUIRE_CODE(shmlog_loan_publish(p, &many[7], &r, 0, WAIT), SHMLOG_E_CONFLICT);
    REQUIRE_CODE(shmlog_loan_publish(p, &many[7], &r, 1, WAIT), 1);
    r.value_bytes = 0;
    REQUIRE_CODE(shmlog_loan_take(p, &r, WAIT, &many[8]), 0);
    REQUIRE_CODE(shmlog_loan_publish(p, &many[8], &r, 2, WAIT), 2);
    shmlog_producer_close(p); /* with seven of them lent */
    p = producer_of(topic);   /* on the same row: it is clear */
    for (int i = 0; i < 8; i++) REQUIRE_CODE(shmlog_loan_take(p, &r, WAIT, &many[i]), 0);
    shmlog_producer_close(p);
}

static void headers(void) {
    shmlog_producer *p = producer_of(topic);
    shmlog_header list[3] = {{"one", "1", 3, 1}, {"none", NULL, 4, 0}, {"", "", 0, 0}}, h;
    shmlog_record r = {.key = "key", .key_bytes = 3, .headers = list, .header_count = 3, .timestamp_ns = 1700000000123456789};
    REQUIRE_CODE(shmlog_append(p, &r, SHMLOG_ANYWHERE, WAIT), 0); /* a tombstone */
    shmlog_consumer *c = consumer_of(topic, SHMLOG_START);
    shmlog_view v[4];
    REQUIRE_CODE(shmlog_read(c, v, 4, WAIT), 1);
    REQUIRE(v[0].offset == 0 && !v[0].value && v[0].key_bytes == 3 && !memcmp(v[0].key, "key", 3) && v[0].timestamp_ns == 1700000000123456789);
    REQUIRE_CODE(shmlog_view_header(&v[0], 0, &h), 1);
    REQUIRE(h.name_bytes == 3 && !memcmp(h.name, "one", 3) && h.value_bytes == 1 && *(const char *)h.value == '1');
    REQUIRE_CODE(shmlog_view_header(&v[0], 1, &h), 1);
    REQUIRE(h.name_bytes == 4 && !h.value);
    REQUIRE_CODE(shmlog_view_header(&v[0], 2, &h), 1);
    REQUIRE(h.name_bytes == 0 && h.value && h.value_bytes == 0);
    REQUIRE_CODE(shmlog_view_header(&v[0], 3, &h), 0);
    for (uint32_t cut = 0; cut < v[0].headers_bytes; cut++) { /* damaged: reported, whatever is asked for, and never read beyond */
        shmlog_view broken = v[0];
        uint8_t *copy = malloc(cut + 1);
        memcpy(copy, v[0].headers, cut);
        broken.headers = copy;
        broken.headers_bytes = cut;
        REQUIRE(shmlog_view_header(&broken, 2, &h) <= 0);
        free(copy);
    }
    shmlog_consumer_close(c);
    shmlog_producer_close(p);
}

static void print_headers(void) {
    shmlog_consumer *c = consumer_of(topic, SHMLOG_START);
    shmlog_view v[8];
    shmlog_header h;
    for (int seen = 0; seen < 3;) {
        int64_t n = shmlog_read(c, v, 8, WAIT);
        REQUIRE(n > 0);
        for (int64_t i = 0; i < n; i++, seen++) {
            printf("%.*s:", (int)v[i].value_bytes, (const char *)v[i].value);
            for (uint32_t k = 0; shmlog_view_header(&v[i], k, &h) == 1; k++)
                printf(" %.*s=%.*s", (int)h.name_bytes, h.name, h.value ? (int)h.value_bytes : 4, h.value ? (const char *)h.value : "null");
            puts("");
        }
    }
    shmlog_consumer_close(c);
}

static void seek(void) {
    shmlog_producer *p = producer_of(topic);
    char value[8];
    for (int i = 0; i < 10; i++) {
        snprintf(value, sizeof value, "%d", i);
        shmlog_record r = text(value);
        r.timestamp_ns = (i + 1) * S;
        REQUIRE_CODE(shmlog_append(p, &r, i, WAIT), i);
    }
    shmlog_consumer *c = consumer_of(topic, SHMLOG_END);
    shmlog_view v[16];
    REQUIRE_CODE(shmlog_read(c, v, 16, 0), 0);
    REQUIRE_CODE(shmlog_position(c), 10);
    REQUIRE_CODE(shmlog_seek(c, SHMLOG_START), 0);
    REQUIRE_CODE(shmlog_lag(c), 10);
    REQUIRE_CODE(shmlog_read(c, v, 3, WAIT), 3);
    REQUIRE(is(&v[0], "0") && is(&v[2], "2"));
    REQUIRE_CODE(shmlog_lag(c), 7);
    REQUIRE_CODE(shmlog_seek(c, 11), SHMLOG_E_RANGE);
    REQUIRE_CODE(shmlog_seek(c, -5), SHMLOG_E_INVALID);
    REQUIRE_CODE(shmlog_position(c), 3);
    REQUIRE_CODE(shmlog_seek(c, 9), 9);
    REQUIRE_CODE(shmlog_read(c, v, 16, WAIT), 1);
    REQUIRE(is(&v[0], "9"));
    shmlog_release(c);
    REQUIRE_CODE(shmlog_seek_time(c, 5 * S), 4);
    REQUIRE_CODE(shmlog_seek_time(c, 6 * S + 1), 6);
    REQUIRE_CODE(shmlog_seek_time(c, 100 * S), 10);
    REQUIRE_CODE(shmlog_seek_time(c, 0), 0);
    shmlog_consumer *late;
    REQUIRE_CODE(shmlog_consumer_open(cluster, topic, 0, 11, 0, WAIT, &late), SHMLOG_E_RANGE);
    shmlog_disconnect(cluster); /* what is open keeps what it needs */
    cluster = NULL;
    REQUIRE_CODE(shmlog_read(c, v, 16, WAIT), 10);
    shmlog_consumer_close(c);
    REQUIRE_CODE(append(p, "after"), 10);
    shmlog_producer_close(p);
}

/* A wait that ends with 1 is a hint (an idle log that becomes smaller ends one too): reading tells, and there is nothing. */
static void wait_for_nothing(shmlog_consumer **c, int64_t timeout_ns) {
    int rc;
    while ((rc = shmlog_wait(c, 2, timeout_ns)) == 1) {
        shmlog_view v[4];
        for (int i = 0; i < 2; i++) REQUIRE_CODE(shmlog_read(c[i], v, 4, 0), 0);
    }
    REQUIRE_CODE(rc, 0);
}

static void *wake_it(void *consumer) { shmlog_wakeup(consumer); return NULL; }

static void wait_and_wake(void) {
    char other[300];
    snprintf(other, sizeof other, "%s-b", topic);
    shmlog_producer *b = producer_of(other);
    append(b, "0");
    shmlog_producer_close(producer_of(topic)); /* makes it */
    shmlog_consumer *c[2] = {consumer_of(topic, SHMLOG_END), consumer_of(other, SHMLOG_END)};
    shmlog_view v[4];
    pthread_t thread;
    for (int i = 0; i < 2; i++) REQUIRE_CODE(shmlog_read(c[i], v, 4, 0), 0);
    wait_for_nothing(c, 1);
    shmlog_wakeup(c[0]); /* before the wait: it is the next one that ends */
    REQUIRE_CODE(shmlog_read(c[0], v, 4, SHMLOG_FOREVER), 0);
    REQUIRE(pthread_create(&thread, NULL, wake_it, c[0]) == 0);
    wait_for_nothing(c, SHMLOG_FOREVER);
    pthread_join(thread, NULL);
    pid_t child = fork(); /* a process of its own, as its handles are */
    REQUIRE(child >= 0);
    if (child == 0) {
        shmlog_cluster *mine;
        shmlog_producer *p;
        REQUIRE_CODE(shmlog_connect(NULL, &mine), 0);
        REQUIRE_CODE(shmlog_producer_open(mine, other, 0, SHMLOG_NO_CREATE, WAIT, &p), 0);
        append(p, "from the child");
        shmlog_producer_close(p);
        shmlog_disconnect(mine);
        _exit(0);
    }
    int64_t n;
    do { /* a wait that ends is a hint: reading tells */
        REQUIRE_CODE(shmlog_wait(c, 2, SHMLOG_FOREVER), 1);
        REQUIRE_CODE(shmlog_read(c[0], v, 4, 0), 0);
        n = shmlog_read(c[1], v, 4, 0);
    } while (n == 0);
    REQUIRE(n == 1 && is(&v[0], "from the child"));
    int status;
    REQUIRE(waitpid(child, &status, 0) == child && status == 0);
    shmlog_consumer *foreign[2] = {c[0], NULL};
    REQUIRE_CODE(shmlog_wait(foreign, 2, 0), SHMLOG_E_INVALID);
    shmlog_consumer_close(c[0]);
    shmlog_consumer_close(c[1]);
    shmlog_producer_close(b);
}

static void after_fork(void) {
    shmlog_producer *p = producer_of(topic), *none;
    shmlog_loan l;
    shmlog_record r = {.value = "x", .value_bytes = 1};
    append(p, "parent");
    shmlog_consumer *c = consumer_of(topic, SHMLOG_START), *nothing;
    shmlog_view v[4];
    REQUIRE_CODE(shmlog_read(c, v, 4, WAIT), 1);
    REQUIRE_CODE(shmlog_loan_take(p, &r, WAIT, &l), 0);
    memcpy(l.value, "y", 1);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        shmlog_loan another;
        REQUIRE_CODE(shmlog_append(p, &r, SHMLOG_ANYWHERE, WAIT), SHMLOG_E_FORKED);
        REQUIRE_CODE(shmlog_loan_take(p, &r, WAIT, &another), SHMLOG_E_FORKED);
        REQUIRE_CODE(shmlog_loan_publish(p, &l, &r, SHMLOG_ANYWHERE, WAIT), SHMLOG_E_FORKED);
        shmlog_loan_drop(p, &l);
        REQUIRE_CODE(shmlog_flush(p, SHMLOG_COMMITTED, WAIT), SHMLOG_E_FORKED);
        REQUIRE_CODE(shmlog_end_offset(p), SHMLOG_E_FORKED);
        REQUIRE_CODE(shmlog_read(c, v, 4, WAIT), SHMLOG_E_FORKED);
        REQUIRE_CODE(shmlog_wait(&c, 1, WAIT), SHMLOG_E_FORKED);
        REQUIRE_CODE(shmlog_seek(c, 0), SHMLOG_E_FORKED);
        REQUIRE_CODE(shmlog_seek_time(c, 0), SHMLOG_E_FORKED);
        REQUIRE_CODE(shmlog_position(c), SHMLOG_E_FORKED);
        REQUIRE_CODE(shmlog_lag(c), SHMLOG_E_FORKED);
        REQUIRE_CODE(shmlog_producer_open(cluster, topic, 0, 0, WAIT, &none), SHMLOG_E_FORKED);
        REQUIRE_CODE(shmlog_consumer_open(cluster, topic, 0, 0, 0, WAIT, &nothing), SHMLOG_E_FORKED);
        shmlog_wakeup(c);
        shmlog_release(c);
        shmlog_consumer_close(c);
        shmlog_producer_close(p);
        shmlog_disconnect(cluster);
        REQUIRE_CODE(shmlog_connect(NULL, &cluster), 0); /* anew */
        append(producer_of(topic), "child");
        _exit(0);
    }
    int status;
    REQUIRE(waitpid(child, &status, 0) == child && status == 0);
    REQUIRE_CODE(shmlog_loan_publish(p, &l, &r, 2, WAIT), 2); /* the parent's are untouched */
    REQUIRE_CODE(shmlog_read(c, v, 4, WAIT), 2);
    REQUIRE(is(&v[0], "child") && is(&v[1], "y"));
    shmlog_consumer_close(c);
    shmlog_producer_close(p);
}

static void refusals(void) {
    shmlog_producer *p;
    shmlog_consumer *c;
    shmlog_cluster *none;
    REQUIRE_CODE(shmlog_producer_open(cluster, topic, 0, SHMLOG_NO_CREATE, WAIT / 1000, &p), SHMLOG_E_NOENT);
    REQUIRE_CODE(shmlog_consumer_open(cluster, topic, 0, 0, 0, 0, &c), SHMLOG_E_NOENT);
    REQUIRE(strstr(shmlog_error(), "there is no topic"));
    REQUIRE_CODE(shmlog_producer_open(cluster, "a/b", 0, 0, WAIT, &p), SHMLOG_E_INVALID);
    REQUIRE_CODE(shmlog_producer_open(cluster, "..", 0, 0, WAIT, &p), SHMLOG_E_INVALID);
    REQUIRE_CODE(shmlog_producer_open(cluster, topic, 0, 64, WAIT, &p), SHMLOG_E_INVALID);
    shmlog_producer_close(producer_of(topic));
    REQUIRE_CODE(shmlog_producer_open(cluster, topic, 7, 0, WAIT, &p), SHMLOG_E_NOENT);
    REQUIRE(strstr(shmlog_error(), "has 1 partitions"));
    REQUIRE_CODE(shmlog_consumer_open(cluster, topic, 0, 5, 0, WAIT, &c), SHMLOG_E_RANGE);
    REQUIRE_CODE(shmlog_connect("localhost:9092", &none), SHMLOG_E_INVALID);
    REQUIRE_CODE(shmlog_connect("shm://", &none), SHMLOG_E_INVALID);
    REQUIRE_CODE(shmlog_connect("shm://no-such-cluster-at-all", &none), SHMLOG_E_NOENT);
    REQUIRE(strstr(shmlog_error(), "shmlog up --cluster no-such-cluster-at-all"));
    p = producer_of(topic);
    shmlog_record huge = {.value = topic, .value_bytes = 1u << 31};
    REQUIRE_CODE(shmlog_append(p, &huge, SHMLOG_ANYWHERE, WAIT), SHMLOG_E_TOO_BIG);
    REQUIRE_CODE(shmlog_flush(p, 7, WAIT), SHMLOG_E_INVALID);
    shmlog_producer_close(p);
    shmlog_producer_close(NULL);
    shmlog_consumer_close(NULL);
    for (int code = 0; code >= SHMLOG_E_FORKED; code--) REQUIRE(strcmp(shmlog_strerror(code), "unknown code"));
    REQUIRE(strcmp(shmlog_strerror(SHMLOG_E_REFUSED), "unknown code"));
    REQUIRE(shmlog_api_version() == SHMLOG_API_VERSION);
}

static void durable(void) {
    shmlog_producer *p = producer_of(topic);
    REQUIRE_CODE(shmlog_flush(p, SHMLOG_DURABLE, WAIT), 0); /* nothing to wait for */
    append(p, "x");
    REQUIRE_CODE(shmlog_flush(p, SHMLOG_COMMITTED, WAIT), 0);
    REQUIRE_CODE(shmlog_flush(p, SHMLOG_DURABLE, WAIT), 0);
    shmlog_producer_close(p);
}

static void on_signal(int number) { (void)number; }

/* Reads for ever; the test does something to the cluster or the topic meanwhile, and this prints what it was told. */
static void read_until_told(void) {
    struct sigaction quiet = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &quiet, NULL);
    shmlog_consumer *c = consumer_of(topic, SHMLOG_START);
    shmlog_view v[16];
    puts("reading");
    fflush(stdout);
    int64_t n;
    while ((n = shmlog_read(c, v, 16, SHMLOG_FOREVER)) >= 0) {}
    printf("%lld %s\n", (long long)n, shmlog_error());
    shmlog_consumer_close(c);
}

/* Appends for ever, a line for each acknowledged record; killed by the test. With a loan in hand, too. */
static void append_for_ever(void) {
    shmlog_producer *p = producer_of(topic);
    shmlog_record r = {.value_bytes = 64};
    shmlog_loan l;
    REQUIRE_CODE(shmlog_loan_take(p, &r, WAIT, &l), 0);
    char value[32];
    for (int i = 0;; i++) {
        snprintf(value, sizeof value, "%d", i);
        append(p, value);
        printf("%d\n", i);
        fflush(stdout);
    }
}

/* A producer that writes into what it has published: the record is refused, named, and can be passed. */
static void pass_damage(void) {
    shmlog_producer *p = producer_of(topic);
    append(p, "before");
    shmlog_record r = {.value_bytes = 100};
    shmlog_loan l;
    REQUIRE_CODE(shmlog_loan_take(p, &r, WAIT, &l), 0);
    char *scribble = l.value;
    memset(scribble, 0, 100);
    REQUIRE_CODE(shmlog_loan_publish(p, &l, &r, SHMLOG_ANYWHERE, WAIT), 1);
    append(p, "after");
    scribble[5] = 1;
    shmlog_consumer *c = consumer_of(topic, SHMLOG_START);
    shmlog_view v[4];
    REQUIRE_CODE(shmlog_read(c, v, 4, WAIT), 1);
    REQUIRE(is(&v[0], "before"));
    REQUIRE_CODE(shmlog_read(c, v, 4, WAIT), SHMLOG_E_CORRUPT);
    REQUIRE(strstr(shmlog_error(), "offsets 1 to 1 are damaged or lost"));
    REQUIRE_CODE(shmlog_position(c), 1);
    REQUIRE_CODE(shmlog_damage_end(c), 2);
    REQUIRE_CODE(shmlog_seek(c, shmlog_damage_end(c)), 2);
    REQUIRE_CODE(shmlog_read(c, v, 4, WAIT), 1);
    REQUIRE(is(&v[0], "after"));
    shmlog_consumer_close(c);
    shmlog_producer_close(p);
}

static void *open_for_ever(void *id) {
    shmlog_consumer *c;
    __atomic_store_n((pid_t *)id, gettid(), __ATOMIC_RELEASE);
    shmlog_consumer_open(cluster, topic, 0, SHMLOG_START, 0, SHMLOG_FOREVER, &c);
    return NULL;
}
static int sleeps(pid_t thread) {
    char path[64], state = 0;
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)thread);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    if (fscanf(f, "%*d (%*[^)]) %c", &state) != 1) state = 0;
    fclose(f);
    return state == 'S';
}
/* While one thread waits for a coordinator that does not answer, another opens within its own timeout, and closes. The test has stopped them all. */
static void wait_beside_a_request(void) {
    shmlog_producer *p = producer_of(topic), *other;
    append(p, "x");
    puts("open");
    fflush(stdout);
    getchar();
    alarm(60);
    pthread_t thread;
    pid_t id = 0;
    pthread_create(&thread, NULL, open_for_ever, &id);
    while (!__atomic_load_n(&id, __ATOMIC_ACQUIRE) || !sleeps(id)) {} /* in the request */
    REQUIRE_CODE(shmlog_producer_open(cluster, topic, 0, 0, 0, &other), SHMLOG_E_TIMEOUT);
    shmlog_producer_close(p);
    exit(0);
}

/* Disconnects, and lives on. */
static void live_on(void) {
    shmlog_consumer *c[3];
    shmlog_producer_close(producer_of(topic));
    for (int i = 0; i < 3; i++) c[i] = consumer_of(topic, SHMLOG_START);
    shmlog_disconnect(cluster);
    puts("open");
    fflush(stdout);
    getchar();
    for (int i = 0; i < 3; i++) shmlog_consumer_close(c[i]);
    cluster = NULL;
    puts("closed");
    fflush(stdout);
    getchar();
}

int main(int argc, char **argv) {
    static const struct { const char *name; void (*run)(void); } scenarios[] = {
        {"conflict", conflict}, {"loan", loan}, {"headers", headers}, {"print_headers", print_headers}, {"seek", seek}, {"wait_and_wake", wait_and_wake},
        {"after_fork", after_fork}, {"refusals", refusals}, {"durable", durable}, {"read_until_told", read_until_told}, {"append_for_ever", append_for_ever},
        {"live_on", live_on}, {"pass_damage", pass_damage},
        {"wait_beside_a_request", wait_beside_a_request}};
    REQUIRE(argc == 3);
    topic = argv[2];
    REQUIRE_CODE(shmlog_connect(NULL, &cluster), 0);
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++)
        if (strcmp(scenarios[i].name, argv[1]) == 0) {
            scenarios[i].run();
            shmlog_disconnect(cluster);
            return 0;
        }
    fprintf(stderr, "calls: no scenario %s\n", argv[1]);
    return 2;
}
