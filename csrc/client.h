/* Between client.c and shmlog.c: what a C program asks the coordinator and reads of the metadata. */
#ifndef SHMLOG_CLIENT_H
#define SHMLOG_CLIENT_H
#include "core.h"

#define SL_NAME_MAX_BYTES 300       /* "<namespace>/<topic>" with its zero */
#define SL_E_REFUSED (-100)         /* the coordinator answered with a Failure */

/* "shm://cluster[/namespace]", or with NULL "cluster[/namespace]" from the environment. SL_E_INVALID. */
int sl_address_parse(const char *address, char cluster[33], char namespace_[33]);
int sl_topic_name_ok(const char *topic);

typedef struct sl_place {           /* where a partition is, by one view */
    uint64_t version;
    uint32_t block;
    int32_t leader;
    uint32_t partitions;            /* of its topic */
    int auto_create;                /* auto.create.topics.enable of the cluster */
    uint8_t topic_id[16];
    char directory[1024];           /* of its files at the leader; "": none known */
} sl_place;
/* Looks a partition up in the bytes of a view (of foreign make: any bytes are fine). SL_OK; SL_E_NOENT no such topic (auto_create is set), SL_E_RANGE no such
 * partition (partitions is set), SL_E_DAMAGED. */
int sl_view_find(const uint8_t *view, size_t bytes, const char *topic, uint32_t partition, sl_place *out);
/* The same in the view in force, from a private, checked copy. Also SL_E_GONE, NOMEM, SYS. */
int sl_place_find(sl_cluster *cluster, const char *topic, uint32_t partition, sl_place *out);

/* Whether a process is left that keeps the cluster going: exactly those of control.processes, not their pids. */
int sl_cluster_alive(sl_cluster *cluster);

/* Requests. Each has a connection of its own, goes to the next coordinator when one dies under it, and ends by the deadline: SL_E_TIMEOUT, GONE, INTR; REFUSED
 * with the coordinator's sentence in `why` (of at least 256 bytes). */
int64_t sl_ask_row(sl_cluster *cluster, uint32_t kind, int64_t deadline_ns, char *why);
int sl_ask_unregister(sl_cluster *cluster, const uint32_t *rows, size_t n, int64_t deadline_ns);
int sl_ask_topic(sl_cluster *cluster, const char *topic, int64_t deadline_ns, char *why); /* SL_OK also if somebody else has just made it */
/* What a reply says, from its bytes (any bytes are fine). 0: as wanted (*row for a Registered), SL_E_REFUSED and `why`, SL_E_DAMAGED. */
int sl_reply_read(const uint8_t *reply, size_t bytes, const char *wanted, uint32_t *row, char *why);
#endif
