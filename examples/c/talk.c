/* A producer and a consumer in C.
 *
 *   cc -o talk talk.c $(pkg-config --cflags --libs shmlog)
 *   seq 3 | ./talk produce numbers         appends a record for each line; the topic is made
 *   ./talk consume numbers 3               prints three records, waiting for them
 *
 * After `make install-c` to /usr/local run `ldconfig` once. To a PREFIX of yours: export PKG_CONFIG_PATH=PREFIX/lib/pkgconfig LD_LIBRARY_PATH=PREFIX/lib
 *
 * From Python the other end is `Consumer("numbers")` or `Producer().send("numbers", b"4")`; from a shell `shmlog consume numbers`. */
#include <shmlog.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECONDS INT64_C(1000000000)

static int complain(void) { fprintf(stderr, "talk: %s\n", shmlog_error()); return 1; }

static int produce(shmlog_cluster *cluster, const char *topic) {
    shmlog_producer *producer;
    char line[4096];
    int rc = shmlog_producer_open(cluster, topic, 0, 0, 10 * SECONDS, &producer);
    if (rc < 0) return complain();
    while (rc >= 0 && fgets(line, sizeof line, stdin)) {
        shmlog_record record = {.value = line, .value_bytes = (uint32_t)strcspn(line, "\n")};
        int64_t offset = shmlog_append(producer, &record, SHMLOG_ANYWHERE, 10 * SECONDS);
        if (offset < 0) rc = complain();
        else printf("%lld\n", (long long)offset); /* every reader can see it by now */
    }
    if (rc >= 0 && shmlog_flush(producer, SHMLOG_COMMITTED, 10 * SECONDS) < 0) rc = complain();
    shmlog_producer_close(producer);
    return rc;
}

static int consume(shmlog_cluster *cluster, const char *topic, long count) {
    shmlog_consumer *consumer;
    shmlog_view views[64];
    if (shmlog_consumer_open(cluster, topic, 0, SHMLOG_START, SHMLOG_VERIFY, 10 * SECONDS, &consumer) < 0) return complain();
    while (count > 0) {
        int64_t n = shmlog_read(consumer, views, count < 64 ? (size_t)count : 64, SHMLOG_FOREVER);
        if (n < 0 && n != SHMLOG_E_INTR) { shmlog_consumer_close(consumer); return complain(); }
        for (int64_t i = 0; i < n; i++) /* the values lie in the log's own memory: nothing was copied */
            printf("%lld %.*s\n", (long long)views[i].offset, (int)views[i].value_bytes, views[i].value ? (const char *)views[i].value : "");
        fflush(stdout);
        if (n > 0) count -= (long)n;
    }
    shmlog_consumer_close(consumer);
    return 0;
}

int main(int argc, char **argv) {
    shmlog_cluster *cluster;
    if (argc < 3) { fprintf(stderr, "talk produce TOPIC | talk consume TOPIC COUNT\n"); return 2; }
    if (shmlog_connect(NULL, &cluster) < 0) return complain(); /* $SHMLOG_CLUSTER, else "default" */
    int rc = strcmp(argv[1], "produce") == 0 ? produce(cluster, argv[2]) : consume(cluster, argv[2], argc > 3 ? atol(argv[3]) : 1);
    shmlog_disconnect(cluster);
    return rc;
}
