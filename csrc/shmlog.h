/* shmlog for C and C++ programs: Kafka's model in shared memory on one machine. The whole public interface; everything else in the library is private.
 *
 *   cc talk.c $(pkg-config --cflags --libs shmlog)                 examples/c/talk.c is a producer and a consumer on one page
 *
 * Codes.     What returns int or int64_t returns a result >= 0 or a code SHMLOG_E_* < 0; shmlog_error() then has the sentence, with numbers.
 * Threads.   A shmlog_cluster serves all threads. A producer or consumer (and its loans and views) belongs to one thread at a time; only
 *            shmlog_wakeup() may be called from any other, and from a signal handler.
 * Waiting.   Only functions with a timeout wait, for at most timeout_ns nanoseconds from the call; 0: not at all; SHMLOG_FOREVER: for as long as the cluster
 *            lives. A signal that arrives meanwhile makes them return SHMLOG_E_INTR; nothing is lost, call again. With a cluster that was shut down, or none of
 *            whose processes lives any more, they return SHMLOG_E_GONE within seconds, whatever the timeout.
 * Fork.      Handles do not cross a fork: in the child every function returns SHMLOG_E_FORKED, closing frees memory and nothing else. Open anew.
 * Death.     Killed at any instruction, a program leaves whole records or nothing, and its place in the cluster is cleaned up.
 * Units.     *_ns are nanoseconds, *_bytes bytes; timestamps count from 1970 (UTC). An offset counts records: the first of a partition is 0.
 * Ownership. Strings and bytes that are passed in are copied or used up before the call returns. */
#ifndef SHMLOG_H
#define SHMLOG_H
#include <stddef.h>
#include <stdint.h>

#ifndef SHMLOG_API /* the library's own build says what it exports */
#define SHMLOG_API
#endif
#ifdef __cplusplus
extern "C" {
#endif

/* Grows with each addition. A program may be older than the library; the library's name (libshmlog.so.1) changes when that is no longer so. */
#define SHMLOG_API_VERSION 1
SHMLOG_API int shmlog_api_version(void); /* of the library that is loaded */

#define SHMLOG_OK 0
#define SHMLOG_E_AGAIN (-1)      /* nothing there yet */
#define SHMLOG_E_TIMEOUT (-2)    /* the timeout passed */
#define SHMLOG_E_INTR (-3)       /* a signal arrived while waiting */
#define SHMLOG_E_NOENT (-4)      /* no such cluster, topic or partition */
#define SHMLOG_E_VERSION (-5)    /* the cluster runs with another memory layout than this library knows */
#define SHMLOG_E_BOOT (-6)       /* memory of another boot */
#define SHMLOG_E_OWNER (-7)      /* the cluster belongs to another user */
#define SHMLOG_E_DAMAGED (-8)    /* shared memory or a file that cannot be right */
#define SHMLOG_E_HALFMADE (-9)   /* an object or file whose maker has not finished */
#define SHMLOG_E_SHM_FULL (-10)  /* /dev/shm or the cluster's memory budget is full */
#define SHMLOG_E_RING_FULL (-11) /* the partition's memory is full and the topic has shmlog.full=raise */
#define SHMLOG_E_DISK_FULL (-12) /* the log's disk is full */
#define SHMLOG_E_IO (-13)        /* the log's disk fails */
#define SHMLOG_E_TOO_BIG (-14)   /* larger than max.message.bytes, or than a segment can be */
#define SHMLOG_E_CONFLICT (-15)  /* the log does not end at expected_offset; shmlog_end_offset() says where */
#define SHMLOG_E_FENCED (-16)    /* the partition has no leader just now */
#define SHMLOG_E_DELETED (-17)   /* the topic was deleted (and perhaps made anew): close, and open again if you mean the new one */
#define SHMLOG_E_RANGE (-18)     /* the position is below the log's start (trimmed, dropped) or above its end: shmlog_seek() */
#define SHMLOG_E_CORRUPT (-19)   /* the record at shmlog_position() is damaged or lost: seek to shmlog_damage_end(), or stop */
#define SHMLOG_E_INVALID (-20)   /* an argument */
#define SHMLOG_E_NOMEM (-21)
#define SHMLOG_E_NO_SLOT (-22)   /* a table is full: more than 4,094 handles in the cluster, 8 loans of a producer, 16 tethers of a partition */
#define SHMLOG_E_SYS (-23)       /* a system call failed; errno's words are in shmlog_error() */
#define SHMLOG_E_GONE (-24)      /* the cluster was shut down, or none of its processes lives any more */
#define SHMLOG_E_BEHIND (-25)    /* no room within the timeout: the disk, or a tethered reader, is slower than the producers */
#define SHMLOG_E_FORKED (-26)    /* the handle was opened before a fork */
#define SHMLOG_E_NOT_ENOUGH_REPLICAS (-28) /* shmlog_flush(): fewer replicas are in sync than min.insync.replicas; appended, and perhaps committed later */
#define SHMLOG_E_REFUSED (-100)  /* the coordinator refused; shmlog_error() has its sentence */

SHMLOG_API const char *shmlog_strerror(int code); /* a few words, static */
SHMLOG_API const char *shmlog_error(void);        /* what this thread's last failed call ran into; valid until its next failed call */

#define SHMLOG_FOREVER INT64_MAX

/* ---- cluster ---- */

typedef struct shmlog_cluster shmlog_cluster;
typedef struct shmlog_producer shmlog_producer;
typedef struct shmlog_consumer shmlog_consumer;

/* Attaches to a running cluster. address: "shm://name" or "shm://name/namespace"; NULL: what $SHMLOG_CLUSTER names, else "default". Maps its memory and asks
 * nobody, so it returns at once; only a cluster that is coming up is waited for, up to 10 s. SHMLOG_E_NOENT none runs, _GONE its processes are all dead,
 * _VERSION, _OWNER, _INVALID (the address), _NOMEM, _SYS. */
SHMLOG_API int shmlog_connect(const char *address, shmlog_cluster **out);
/* Gives it up. Producers and consumers that are still open keep what they need until they are closed. NULL is fine. */
SHMLOG_API void shmlog_disconnect(shmlog_cluster *cluster);

/* ---- producing ---- */

typedef struct shmlog_header {
    const char *name;           /* UTF-8, name_bytes long; need not end with a zero */
    const void *value;          /* NULL: null */
    uint32_t name_bytes;        /* at most 65,535 */
    uint32_t value_bytes;
} shmlog_header;

/* Zero it, then fill in what the record has. */
typedef struct shmlog_record {
    const void *key;            /* NULL: no key */
    const void *value;          /* NULL: no value, a tombstone; with loans ignored */
    uint32_t key_bytes;
    uint32_t value_bytes;
    const shmlog_header *headers;
    uint32_t header_count;      /* at most 65,535 */
    uint32_t reserved;          /* 0 */
    int64_t timestamp_ns;       /* 0: now */
} shmlog_record;

#define SHMLOG_NO_CREATE 1u     /* an unknown topic is SHMLOG_E_NOENT; without it the topic is made, if auto.create.topics.enable allows */
#define SHMLOG_ANYWHERE (-1)    /* as expected_offset: wherever the log ends */

/* A producer of one partition. timeout_ns bounds the requests to the coordinator (a place for this handle, and making the topic).
 * SHMLOG_E_NOENT no such topic or partition, _INVALID (a name Kafka would refuse), _REFUSED, _NO_SLOT, _TIMEOUT, _GONE, _DAMAGED, _NOMEM, _SYS, _FORKED. */
SHMLOG_API int shmlog_producer_open(shmlog_cluster *cluster, const char *topic, uint32_t partition, uint32_t flags, int64_t timeout_ns, shmlog_producer **out);
/* Loans that were not published are dropped. What was appended stays, acknowledged or not. NULL is fine. */
SHMLOG_API void shmlog_producer_close(shmlog_producer *producer);

/* Appends a record and returns its offset; when it returns, every reader can see it. With expected_offset only if the log ends there. Waits up to timeout_ns for
 * room or a leader. No system call when there is room. SHMLOG_E_CONFLICT, _TOO_BIG, _RING_FULL, _DELETED, _INVALID, _GONE, _FORKED at once; after the timeout
 * _TIMEOUT, _BEHIND, _FENCED, _SHM_FULL, _DISK_FULL, _IO. After any code the record is not in the log. */
SHMLOG_API int64_t shmlog_append(shmlog_producer *producer, const shmlog_record *record, int64_t expected_offset, int64_t timeout_ns);

/* The log's own memory, to be written by the caller: no copy is made. A producer may have up to 8 at a time; each keeps its segment from being reused. */
typedef struct shmlog_loan {
    void *value;                /* value_bytes writable bytes, aligned to 64; NULL once published or dropped */
    uint64_t value_bytes;
    uint64_t reserved[4];
} shmlog_loan;
/* record: key and headers as they will be published, and value_bytes. Returns 0; codes as shmlog_append(), and _NO_SLOT. */
SHMLOG_API int shmlog_loan_take(shmlog_producer *producer, const shmlog_record *record, int64_t timeout_ns, shmlog_loan *loan);
/* Appends what was written; record->value_bytes may be less than was taken. Returns the offset; after a code the loan is still there: publish again or drop it. */
SHMLOG_API int64_t shmlog_loan_publish(shmlog_producer *producer, shmlog_loan *loan, const shmlog_record *record, int64_t expected_offset, int64_t timeout_ns);
SHMLOG_API void shmlog_loan_drop(shmlog_producer *producer, shmlog_loan *loan);

#define SHMLOG_COMMITTED 1      /* at every in-sync replica: survives the death of any process */
#define SHMLOG_DURABLE 2        /* fdatasync has returned: survives a power cut. _INVALID for topics that live in memory only */
/* Waits until all that this producer has appended is safe to that degree. 0, or SHMLOG_E_TIMEOUT, _DISK_FULL, _IO (it is still in the log and may become safe
 * later), _DELETED, _GONE, _INTR, _FORKED, _INVALID. */
SHMLOG_API int shmlog_flush(shmlog_producer *producer, int degree, int64_t timeout_ns);
/* The offset that the next record gets, by now. */
SHMLOG_API int64_t shmlog_end_offset(shmlog_producer *producer);

/* ---- consuming ---- */

/* A record where it lies in the log's memory. Bytes of another process: read-only, and immutable unless a producer misbehaves (see SHMLOG_VERIFY). */
typedef struct shmlog_view {
    int64_t offset;
    int64_t timestamp_ns;
    const uint8_t *key;         /* NULL: no key */
    const uint8_t *value;       /* NULL: no value, a tombstone */
    const uint8_t *headers;     /* read them with shmlog_view_header() */
    const uint8_t *dtype;       /* NULL, or dtype and shape of an array sent from Python, in shmlog's own encoding */
    uint32_t key_bytes, value_bytes, headers_bytes, dtype_bytes;
    int64_t producer_id;        /* -1: none */
    int32_t sequence, producer_epoch;
    uint32_t flags;             /* private */
    uint32_t leader_epoch;
    uint32_t frame_row;         /* of a record that was sent as one of many: its index among them, and how many they are; else 0 and 1 */
    uint32_t frame_rows;
} shmlog_view;

#define SHMLOG_START (-2)       /* the oldest record there is */
#define SHMLOG_END (-1)         /* behind the newest: what comes from now on */

#define SHMLOG_VERIFY 1u        /* check each record's CRC before it is shown */
#define SHMLOG_TETHER 2u        /* topics with shmlog.spill=false and shmlog.full=block: producers wait for this reader instead of overwriting what it has not read */

/* A reader of one partition, standing at `offset`: SHMLOG_START, SHMLOG_END or an offset. Waits up to timeout_ns for the topic to exist and its log to be
 * open. SHMLOG_E_NOENT no such topic or partition, _FENCED no leader has opened it, _RANGE, _NO_SLOT, _REFUSED, _TIMEOUT, _GONE, _INVALID, _DAMAGED, _NOMEM,
 * _SYS, _FORKED. */
SHMLOG_API int shmlog_consumer_open(shmlog_cluster *cluster, const char *topic, uint32_t partition, int64_t offset, uint32_t flags, int64_t timeout_ns,
                                    shmlog_consumer **out);
SHMLOG_API void shmlog_consumer_close(shmlog_consumer *consumer); /* NULL is fine */

/* Up to max_views records from the position on, waiting for the first one; moves the position behind the last. Returns how many; 0: none within the timeout, or
 * woken by shmlog_wakeup(). Views are valid until this consumer's next read, wait, seek, release or close; until then their segment is not reused, so copy
 * what you keep for long. SHMLOG_E_RANGE, _CORRUPT, _DELETED, _IO, _DAMAGED, _INTR, _GONE, _FORKED, _INVALID, _NOMEM. */
SHMLOG_API int64_t shmlog_read(shmlog_consumer *consumer, shmlog_view *views, size_t max_views, int64_t timeout_ns);
/* The views of the last read are not needed any more. For programs that turn to something else for long. */
SHMLOG_API void shmlog_release(shmlog_consumer *consumer);
/* Waits until one of `n` consumers of this thread seems to have something to read (1), or 0 as shmlog_read(). Whether and which one, their next reads tell: until
 * its first read after a seek a consumer always seems so. */
SHMLOG_API int shmlog_wait(shmlog_consumer **consumers, size_t n, int64_t timeout_ns);
/* Ends a wait of this consumer (of consumers[0] in shmlog_wait()), now or, if none is under way, perhaps the next one: a hint, besides a flag of your own. */
SHMLOG_API void shmlog_wakeup(shmlog_consumer *consumer);
/* The next read begins there: SHMLOG_START, SHMLOG_END or an offset. Returns the new position; SHMLOG_E_RANGE (it has not moved), _DAMAGED, _FORKED. */
SHMLOG_API int64_t shmlog_seek(shmlog_consumer *consumer, int64_t offset);
/* The same for the first record that is not older than timestamp_ns; the end if all are. _IO, _DELETED too. */
SHMLOG_API int64_t shmlog_seek_time(shmlog_consumer *consumer, int64_t timestamp_ns);
SHMLOG_API int64_t shmlog_position(shmlog_consumer *consumer); /* offset of the next record */
/* After SHMLOG_E_CORRUPT: the offset behind all that is damaged or lost at the position, which may be many records; reading goes on from there. */
SHMLOG_API int64_t shmlog_damage_end(shmlog_consumer *consumer);
SHMLOG_API int64_t shmlog_lag(shmlog_consumer *consumer);      /* offsets between the position and the end that readers may see */

/* Header `index` of a record: 1 and *out (pointing where it lies), 0 there is none, SHMLOG_E_CORRUPT. */
SHMLOG_API int shmlog_view_header(const shmlog_view *view, uint32_t index, shmlog_header *out);

#ifdef __cplusplus
}
#endif
#endif
