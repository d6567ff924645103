/* What the C core offers to the Python side (by cffi, verbatim), to the library for C programs (shmlog.h, shmlog.c) and its files to each other.
 *
 * One int64_t or int return carries a result (>= 0) or a code (SL_E_*, < 0). Deadlines are absolute CLOCK_MONOTONIC nanoseconds; 0 = do not
 * wait. No function waits without one, allocates on the append or poll path, or calls back. A call that a signal interrupts while it waits returns
 * SL_E_INTR (call it again with the same deadline). Handles belong to one thread at a time unless said otherwise. */
#ifndef SHMLOG_CORE_H
#define SHMLOG_CORE_H
#include "format.h"

/* cffi:begin */
#define SL_OK 0
#define SL_E_AGAIN (-1)        /* nothing there yet (deadline 0) */
#define SL_E_TIMEOUT (-2)      /* the deadline passed */
#define SL_E_INTR (-3)         /* a signal arrived while waiting */
#define SL_E_NOENT (-4)        /* no such object or file */
#define SL_E_VERSION (-5)      /* another layout or disk version */
#define SL_E_BOOT (-6)         /* memory of another boot */
#define SL_E_OWNER (-7)        /* belongs to another user */
#define SL_E_DAMAGED (-8)      /* a header or structure that cannot be right */
#define SL_E_HALFMADE (-9)     /* its maker has not finished, or died making it */
#define SL_E_SHM_FULL (-10)    /* /dev/shm or the memory budget is full */
#define SL_E_RING_FULL (-11)   /* no room in the ring and shmlog.full=raise */
#define SL_E_DISK_FULL (-12)
#define SL_E_IO (-13)
#define SL_E_TOO_BIG (-14)     /* record larger than max.message.bytes or than a segment can be */
#define SL_E_CONFLICT (-15)    /* expected_offset is not the end of the log */
#define SL_E_FENCED (-16)      /* the partition has no leader just now; retriable */
#define SL_E_DELETED (-17)     /* the topic was deleted (and perhaps made anew) */
#define SL_E_RANGE (-18)       /* offset below log start or above the end */
#define SL_E_CORRUPT (-19)     /* a record's bytes are damaged */
#define SL_E_INVALID (-20)     /* an argument */
#define SL_E_NOMEM (-21)
#define SL_E_NO_SLOT (-22)     /* rows, tethers, pins, partitions: the table is full */
#define SL_E_SYS (-23)         /* errno, see sl_last_errno() */
#define SL_E_GONE (-24)        /* the cluster is down or going down */
#define SL_E_BEHIND (-25)      /* timed out because the disk is slower than the producers */
#define SL_E_FORKED (-26)
#define SL_E_LOST (-27)        /* a LOST frame: records that were damaged or gone when they were to be copied */
#define SL_E_NOT_ENOUGH_REPLICAS (-28)

const char *sl_strerror(int code);
int sl_last_errno(void);               /* of this thread's last SL_E_SYS / SL_E_IO / SL_E_SHM_FULL */

uint32_t sl_crc32c(uint32_t crc, const void *data, size_t bytes);  /* Castagnoli, crc = 0 to begin; run-time dispatched */
uint32_t sl_murmur2(const void *data, size_t bytes);               /* as org.apache.kafka.common.utils.Utils.murmur2 */
int64_t sl_monotonic_ns(void);
int64_t sl_wall_ns(void);
int sl_boot_id(uint8_t out[16]);
uint64_t sl_start_ticks(uint32_t pid);  /* field 22 of /proc/<pid>/stat, 0 if there is no such process */

/* ---- objects ---- */
/* Fills the frozen header of fresh memory, all but `state`; sl_object_ready() then publishes it. */
int sl_object_format(void *memory, uint64_t bytes, uint32_t kind, uint64_t object_id, const uint8_t cluster_id[16], const char *owner_lock);
void sl_object_ready(void *memory);
/* Validates a private copy of the frozen header against what the caller expects: SL_E_VERSION, BOOT, OWNER, DAMAGED, HALFMADE.
 * kind 0: any. bytes: how much is mapped. */
int sl_object_check(const void *memory, uint64_t bytes, uint32_t kind);

/* ---- a process's view of a cluster (cluster.c); shared by all threads of the process ---- */
typedef struct sl_cluster sl_cluster;
/* prefix: "/shmlog.<uid>.<cluster>". Maps control, partitions, waits, rows and checks them. */
int sl_cluster_open(const char *prefix, sl_cluster **out);
void sl_cluster_close(sl_cluster *cluster);    /* every handle below must be closed first; views stay mapped until released */
sl_control *sl_cluster_control(sl_cluster *cluster);
sl_partition *sl_cluster_partition(sl_cluster *cluster, uint32_t block);  /* NULL: not allocated */
sl_waits *sl_cluster_waits(sl_cluster *cluster, uint32_t block);
sl_row *sl_cluster_row(sl_cluster *cluster, uint32_t row);
uint32_t sl_cluster_partitions_used(sl_cluster *cluster);
uint32_t sl_cluster_rows_used(sl_cluster *cluster);
sl_meter *sl_cluster_meter(sl_cluster *cluster, uint32_t index);          /* NULL: not allocated */
uint32_t sl_cluster_meters(sl_cluster *cluster);                          /* how many there are, 0 without the object */

/* ---- segments ---- */
/* Layout of a segment object of `bytes` bytes: cell count, arena position and units. */
void sl_segment_geometry(uint64_t bytes, uint32_t *cell_count, uint32_t *arena_position, uint32_t *arena_units);
/* Makes a buffer: shm_open(O_EXCL), fchmod, posix_fallocate (SL_E_SHM_FULL), header; not in any directory. Returns its id. Broker only. */
int64_t sl_segment_make(sl_cluster *cluster, uint64_t bytes);
int sl_segment_unlink(sl_cluster *cluster, uint32_t buffer);

/* ---- append (append.c) ---- */
typedef struct sl_record {
    const uint8_t *key;         /* NULL: null key */
    const uint8_t *value;       /* NULL: null value */
    const uint8_t *headers;     /* encoded: u16 count, then (u16 bytes, name)(u32 bytes or SL_NULL_BYTES, value) each; NULL: none */
    const uint8_t *dtype;       /* SL_FF_HAS_DTYPE extension, multiple of 4 bytes; NULL: none */
    uint32_t key_bytes;
    uint32_t value_bytes;
    uint32_t headers_bytes;
    uint32_t dtype_bytes;
    int64_t  timestamp_ns;      /* wall clock; 0: now */
    uint32_t rows;              /* > 0: an array frame of `rows` rows of `row_bytes` (value_bytes = rows * row_bytes) */
    uint32_t row_bytes;
    uint32_t kind;              /* SL_FF_RECORD, SL_FF_ARRAY, SL_FF_BATCH (then rows = its record count) */
    uint32_t flags;             /* SL_FF_TRANSACTIONAL */
    int64_t  producer_id;       /* -1: none */
    int32_t  sequence;
    int32_t  producer_epoch;
} sl_record;

typedef struct sl_append_result {
    int64_t offset;             /* of the first record */
    int64_t timestamp_ns;
    uint64_t needed_bytes;      /* with SL_E_SHM_FULL, DISK_FULL, TOO_BIG, RING_FULL: what it would take */
    uint64_t free_bytes;
} sl_append_result;

typedef struct sl_appender sl_appender;   /* one row's handle on one partition; rows may own many appenders, one thread at a time */
int sl_appender_open(sl_cluster *cluster, uint32_t row, uint32_t block, const uint8_t topic_id[16], sl_appender **out);
void sl_appender_close(sl_appender *appender);
/* Appends one frame. expected_offset -1: anywhere; else SL_E_CONFLICT (result->offset = the end that was found) unless it is the log's end.
 * Waits for room until `deadline_ns`. Returns 0. No system call, one locked instruction besides the hazard word's store when there is room. */
int sl_append(sl_appender *appender, const sl_record *record, int64_t expected_offset, int64_t deadline_ns, sl_append_result *result);

typedef struct sl_loan {
    uint8_t *value;             /* value_bytes writable bytes in the log's own memory, 64-byte aligned */
    uint64_t value_bytes;
    /* private */
    uint64_t number; uint32_t unit; uint32_t units; uint32_t frame_bytes; uint32_t pin; uint32_t buffer; uint32_t value_position;
} sl_loan;
int sl_loan_take(sl_appender *appender, const sl_record *record, int64_t deadline_ns, sl_loan *loan, sl_append_result *result);
/* Publishes; record gives key, headers, timestamps, dtype as at take (value ignored); value_bytes may be smaller than taken (truncate). */
int sl_loan_publish(sl_appender *appender, sl_loan *loan, const sl_record *record, int64_t expected_offset, int64_t deadline_ns, sl_append_result *result);
void sl_loan_drop(sl_appender *appender, sl_loan *loan);
/* Keeps a buffer (sl_loan.buffer) mapped for writing beyond its loan: what the loan's array shows then is undefined, but looking is not a fault. Any thread. */
int sl_buffer_hold(sl_cluster *cluster, uint32_t buffer);
void sl_buffer_drop(sl_cluster *cluster, uint32_t buffer);

/* Waits until `offset` (exclusive end) is durable / committed. SL_OK, SL_E_TIMEOUT, SL_E_INTR, SL_E_GONE, SL_E_IO... */
int sl_wait_durable(sl_cluster *cluster, uint32_t row, uint32_t block, const uint8_t topic_id[16], uint64_t offset, int64_t deadline_ns);
int sl_wait_committed(sl_cluster *cluster, uint32_t row, uint32_t block, const uint8_t topic_id[16], uint64_t offset, int64_t deadline_ns);

/* log start, end (exclusive), high watermark, spilled, durable: consistent with invariant 4 */
typedef struct sl_offsets { uint64_t log_start, end, high_watermark, last_stable, spilled, durable; uint32_t leader_epoch; uint32_t state; } sl_offsets;
int sl_log_offsets(sl_cluster *cluster, uint32_t row, uint32_t block, sl_offsets *out);

/* ---- closing, moving on, reusing (log.c): each caller has a row ---- */
/* Closes the active segment if it is `number` (or whatever is active: number 0) and helps rotate if a successor is there. */
int sl_log_seal(sl_cluster *cluster, uint32_t row, uint32_t block, uint64_t number);
/* Recycles at most one segment of the partition that nobody needs and publishes it as the next one; 1 did, 0 nothing to do. */
int sl_log_recycle(sl_cluster *cluster, uint32_t row, uint32_t block);
/* First use of a partition block, or a new leader epoch on memory that was there: fence, seal, move the words to the new epoch, open a segment made of
 * `buffer` (from sl_segment_make) with base = max(end of the sealed one, base_offset). Restartable. 1; 0: a segment stood ready, `buffer` is the caller's again; SL_E_FENCED: a later epoch. After
 * any other error `buffer` may be in the directory. */
int sl_log_open_epoch(sl_cluster *cluster, uint32_t row, uint32_t block, uint32_t leader_epoch, uint32_t buffer, uint64_t base_offset);
/* Publishes a fresh buffer as the next segment. SL_E_AGAIN: the directory is full (free the buffer or keep it). */
int sl_log_publish(sl_cluster *cluster, uint32_t row, uint32_t block, uint32_t leader_epoch, uint32_t buffer);
int sl_log_fence(sl_cluster *cluster, uint32_t row, uint32_t block, uint32_t leader_epoch);   /* fenced and sealed: nobody appends any more */
/* Segments ready beyond the active one. */
int sl_log_ready(sl_cluster *cluster, uint32_t block);
/* Moves a word "@" forward by CAS under an epoch; SL_E_FENCED if the word carries a later one. which: SL_WORD_*. */
#define SL_WORD_HIGH_WATERMARK 0
#define SL_WORD_LAST_STABLE 1
#define SL_WORD_SPILLED 2
#define SL_WORD_DURABLE 3
#define SL_WORD_LOG_START 4
int sl_log_advance(sl_cluster *cluster, uint32_t block, int which, uint32_t leader_epoch, uint64_t offset);
/* After the death certificate of the row's process only: taints what its words name, lets go of its tethers, clears it. The coordinator. Returns how many
 * words must stay for now: call again after a second, then none. */
int sl_row_clean(sl_cluster *cluster, uint32_t row);
/* Wakes every sleeper of a partition (block), or of all (block = UINT32_MAX): death of a producer, change of leader, shutdown. */
void sl_wake_all(sl_cluster *cluster, uint32_t block);
/* Rings the bell of a process: its C threads look at their partitions now. */
void sl_bell_ring(sl_cluster *cluster, uint32_t process);

/* ---- read (reader.c) ---- */
typedef struct sl_view {         /* one record (or one array row); pointers into the log's memory or the reader's file buffer */
    int64_t offset;
    int64_t timestamp_ns;
    const uint8_t *key;          /* NULL: null */
    const uint8_t *value;        /* NULL: null */
    const uint8_t *headers;      /* encoded as in sl_record, NULL none */
    const uint8_t *dtype;        /* NULL none */
    uint32_t key_bytes, value_bytes, headers_bytes, dtype_bytes;
    int64_t producer_id;
    int32_t sequence, producer_epoch;
    uint32_t flags;              /* SL_FF_* of the frame */
    uint32_t leader_epoch;
    uint32_t frame_row;          /* index of this row in its frame (arrays, batches) */
    uint32_t frame_rows;         /* rows in its frame, 1 for a record */
} sl_view;

typedef struct sl_reader sl_reader;
/* dir: the partition's directory on disk, NULL for memory only. */
int sl_reader_open(sl_cluster *cluster, uint32_t row, uint32_t block, const uint8_t topic_id[16], const char *dir, sl_reader **out);
/* A reader over one file or directory with no cluster at all (verify, dump, recovery). */
int sl_reader_open_files(const char *dir, sl_reader **out);
void sl_reader_close(sl_reader *reader);   /* leased memory stays until released */
int sl_reader_seek(sl_reader *reader, uint64_t offset);
/* The files are elsewhere now: another replica leads. What was read last stays as it is. */
int sl_reader_directory(sl_reader *reader, const char *dir);
uint64_t sl_reader_position(sl_reader *reader);
/* Would a poll find something, as far as two loads tell? 0 only if not; without a pin. After a poll that returned 0, for who looks again and again. */
int sl_reader_ready(sl_reader *reader);
/* After a poll said SL_E_CORRUPT: where to seek to go on behind what is damaged or lost; position + 1 if nothing says how far that goes. */
uint64_t sl_reader_damage_end(sl_reader *reader);
/* Up to max_views records of up to about max_bytes (at least one record). Returns how many (0: at the end), or SL_E_RANGE (position below log start or beyond
 * the end), SL_E_CORRUPT (the position names it; seek to sl_reader_damage_end() to go on), SL_E_DELETED, SL_E_IO. Views are valid until the next poll, seek, done or close, unless
 * leased. Never waits. verify_crc: check the producers' and the file's CRCs. A row has one poll pin: call sl_reader_done() before another reader of the row. */
int64_t sl_reader_poll(sl_reader *reader, sl_view *views, size_t max_views, uint64_t max_bytes, int verify_crc);
void sl_reader_done(sl_reader *reader);    /* clears the poll pin: call before sleeping or leaving poll() without a lease */
/* Keeps what the last poll returned: hands the pin to a view pin (or keeps the file buffer). Returns a lease id >= 0, or SL_E_NO_SLOT (copy instead). */
int64_t sl_reader_lease(sl_reader *reader);
void sl_lease_release(sl_cluster *cluster, uint32_t row, int64_t lease);   /* any thread; after the reader's close too */
/* Offset of the first record with timestamp >= timestamp_ns, -1 none. *found_ns its timestamp. */
int64_t sl_reader_offset_for_time(sl_reader *reader, int64_t timestamp_ns, int64_t *found_ns);
int sl_reader_tether(sl_reader *reader, int on);   /* memory-only topics: hold segments from the current position on */

/* Waits until one of the partitions has something to read at its reader's position, the row is woken, or the deadline. spin_ns: how long to poll first.
 * Returns 1 there is something, SL_E_TIMEOUT, SL_E_INTR, SL_E_GONE; 0 woken by sl_row_wakeup. The row must be the readers' own. */
int sl_readers_wait(sl_cluster *cluster, uint32_t row, sl_reader **readers, size_t n, int64_t spin_ns, int64_t deadline_ns);
/* For select/asyncio: announce so that producers write a byte into the row's FIFO; 1 = there is something already (not armed). */
int sl_readers_arm(sl_cluster *cluster, uint32_t row, sl_reader **readers, size_t n);
void sl_readers_disarm(sl_cluster *cluster, uint32_t row, sl_reader **readers, size_t n);
void sl_row_wakeup(sl_cluster *cluster, uint32_t row);   /* any thread */
/* Sleeps on control.view_changes while it is `seen`. */
int sl_view_wait(sl_cluster *cluster, uint32_t seen, int64_t deadline_ns);

/* ---- meters (meter.c) ---- */
uint32_t sl_meter_bucket(int64_t ns);
int64_t sl_meter_bound_ns(uint32_t bucket);       /* the least age that falls into it */
uint32_t sl_meters_taken(sl_cluster *cluster);

/* ---- many views at once (views.c) ---- */
/* Bytes that keys, values, headers and dtypes of the views take; *lo, *hi the least range of addresses that holds them all (0, 0: none). */
int64_t sl_views_span(const sl_view *views, size_t n, uintptr_t *lo, uintptr_t *hi);
/* Distance of the values if all are of one size, none null, and they lie at one distance not below that size; else -1. */
int64_t sl_views_stride(const sl_view *views, size_t n);
/* Copies the values one behind the other; bytes copied, SL_E_INVALID if they need more than `capacity`. */
int64_t sl_views_gather(const sl_view *views, size_t n, uint8_t *to, size_t capacity);
/* Copies all that the views name and points them at the copies (values first in each record). */
int64_t sl_views_copy(sl_view *views, size_t n, uint8_t *to, size_t capacity);

/* ---- frames (frame.c): pure functions over bytes ---- */
/* In sl_record.flags for measure and build: the value starts at a multiple of 64 whatever its size, and `value` may be NULL (loans: a value cut
 * from 300 to 200 bytes stays where it is). */
#define SL_RECORD_LOAN 65536
/* In sl_view.flags: a record of a batch whose `headers` are Kafka's own bytes (varint count, then varint-counted names and values, -1 null). */
#define SL_VIEW_KAFKA_HEADERS 131072
/* Where each part of a record's frame will stand. Who appends asks once, for what comes of it decides where the frame goes; then it is written. */
typedef struct sl_layout {
    uint32_t flags, extension_bytes, key_bytes, headers_bytes, value_bytes, value_position, frame_bytes;
} sl_layout;
/* value_there: as build's copy_value 0. SL_OK, SL_E_TOO_BIG, SL_E_INVALID. */
int sl_frame_lay_out(const sl_record *record, int value_there, sl_layout *layout);
/* As build, of a record that was laid out and has not changed since. */
int64_t sl_frame_write(uint8_t *to, const sl_record *record, const sl_layout *layout, int64_t timestamp_ns, int copy_value, int crc_always);
/* Bytes the frame of `record` takes, or SL_E_TOO_BIG / SL_E_INVALID; *value_position where its value begins. */
int64_t sl_frame_measure(const sl_record *record, uint32_t *value_position);
/* Builds it at `to` (64-byte aligned, measured). copy_value 0: the value is already there (loan). crc_always: cover payloads of any size. Returns frame_bytes. */
int64_t sl_frame_build(uint8_t *to, const sl_record *record, int64_t timestamp_ns, int copy_value, int crc_always);
/* Checks a *private copy or immutable* frame of at most `limit` bytes: bounds, extension sizes, and with verify_crc its CRC. SL_OK, SL_E_CORRUPT. */
int sl_frame_check(const uint8_t *frame, uint64_t limit, int verify_crc);
/* Number of offsets the frame takes (1 for a record). Of a frame that was checked. */
uint32_t sl_frame_rows(const uint8_t *frame);
/* Expands rows [from_row, ...) into views; returns how many views (<= max_views). offset: of the frame's row 0. A batch is decoded in place (uncompressed only:
 * else SL_E_INVALID); its timestamps are whole ms. 0: no record there or behind (a CONTROL frame; the end of a batch with gaps). Reads no byte outside `limit`
 * whatever stands there; SL_E_CORRUPT if the first record asked for cannot be decoded (those before the damage are delivered). */
int64_t sl_frame_views(const uint8_t *frame, uint64_t limit, int64_t offset, uint32_t from_row, sl_view *views, size_t max_views);
int64_t sl_frame_timestamp_ns(const uint8_t *frame);
/* Record batch v2 (Kafka's format, uncompressed, base offset 0) of n records: size, then bytes. SL_E_TOO_BIG above INT32_MAX. Producer and flags are the
 * first record's. timestamp_ns 0 is the time of the build; where only some are 0 the batch may come out a few bytes smaller than measured. */
int64_t sl_batch_measure(const sl_record *records, size_t n);
int64_t sl_batch_build(uint8_t *to, size_t capacity, const sl_record *records, size_t n);

/* ---- files (file.c, file_recover.c) ---- */
typedef struct sl_file sl_file;   /* one <base>-<epoch>.log being written, with its .cells; used by one spill thread */
int sl_file_create(const char *dir, uint64_t base_offset, uint32_t leader_epoch, uint32_t partition, const uint8_t topic_id[16],
                   const uint8_t cluster_id[16], sl_file **out);
/* Appends frames in log order. Each piece: a validated private copy of one frame; frames at multiples of 64 that follow each other in memory as they
 * will in the file are written as one run, with the (zero) padding between them. Handles short writes; on ENOSPC/EIO nothing of
 * the call counts (the file is cut back) and SL_E_DISK_FULL / SL_E_IO is returned. */
typedef struct sl_file_piece { const uint8_t *frame; uint32_t frame_bytes; uint32_t rel; uint32_t crc32c; uint16_t count; uint8_t type; uint8_t flags; } sl_file_piece;
int sl_file_append(sl_file *file, const sl_file_piece *pieces, size_t n, uint64_t end_offset);
/* fdatasync of both files, at first of their names too; safe from another thread than the writer's. Once it failed (SL_E_IO), always; append too.
 * SL_E_SYS: no descriptor was to be had, nothing has happened. */
int sl_file_sync(sl_file *file);
/* The same for who waits: the table's fdatasync is left for later if no frame needs it (file.c says which do). */
int sl_file_sync_log(sl_file *file);
int sl_file_table_behind(sl_file *file);   /* 1: a sl_file_sync() is still owed */
int sl_file_rest(sl_file *file);           /* the writer, while nobody syncs: closes the descriptors until the next append. SL_E_AGAIN: not all is synced */
int sl_file_resting(sl_file *file);
int sl_file_wake(sl_file *file);           /* opens them again, as append does. SL_E_SYS (no descriptor): try again; SL_E_IO: it is not the same file any more */
/* Moves a synced file into another directory of the same file system, over what bears its names there, in an order that a kill between any two steps leaves
 * either file whole: .log, fsync of the directory, .cells, fsync. A .log beside the table of the other one is readable and recovers as a whole. */
int sl_file_install(sl_file *file, const char *from_dir, const char *to_dir);
uint64_t sl_file_bytes(sl_file *file);
uint64_t sl_file_end_offset(sl_file *file);
uint64_t sl_file_base_offset(sl_file *file);
int sl_file_close(sl_file *file);          /* writes nothing more; does not sync */
/* Opens the last file of a directory for recovery: walks from the last whole cell page below the mark of the last sync, cuts after the last valid frame (or at
 * cut_offset if lower; UINT64_MAX: none), returns the end offset; both files are synced then. What is damaged below the mark is kept (a reader reports it), for what follows
 * it was durable. durable_offset: another witness says that all below it was synced; there large payloads are believed though the cell that
 * vouches for them is gone. Idempotent under kill. *cut_bytes what was cut. A file that died while it was made holds nothing: it is removed, the result is its base. */
int64_t sl_file_recover(const char *dir, const char *log_name, uint64_t cut_offset, uint64_t durable_offset, uint64_t *cut_bytes);
/* Cheap facts of one file from its headers and last cells (no scan): base, end, first/last timestamps, bytes. */
typedef struct sl_file_facts { uint64_t base_offset, end_offset, log_bytes, cells; int64_t max_timestamp_ns, made_ns; uint32_t leader_epoch, flags, disk_version, partition; uint8_t topic_id[16]; } sl_file_facts;
int sl_file_inspect(const char *dir, const char *log_name, sl_file_facts *out);
/* Walks a whole .log checking every frame and its cell; LOST frames are problems too (SL_E_LOST): their records are missing. Fills up to max_problems. Returns the number of frames, *problems how many problems. */
typedef struct sl_file_problem { uint64_t position; int64_t offset; int32_t code; char what[100]; } sl_file_problem;
int64_t sl_file_verify(const char *dir, const char *log_name, sl_file_problem *problems_out, size_t max_problems, size_t *problems);

typedef struct sl_file_entry { uint64_t base_offset; uint64_t until; uint32_t leader_epoch; char name[44]; } sl_file_entry;
/* The files of a directory that count, by base offset; `until` is where the next one takes over (UINT64_MAX: none yet). Of overlapping files the higher
 * leader epoch wins from its base on; files hidden altogether are left out. Returns how many there are (fills up to max), SL_E_NOENT no directory. */
int64_t sl_file_list(const char *dir, sl_file_entry *out, size_t max);

/* ---- the broker's C threads (broker.c, spill.c) ---- */
typedef struct sl_broker sl_broker;
typedef struct sl_broker_options {
    uint32_t process;             /* index in control.processes: its bell */
    uint32_t spill_row;           /* row of the spill thread */
    uint32_t broker_epoch;
    uint32_t pad;
    uint64_t memory_max_bytes;    /* of all this broker's segments */
    uint64_t reserve_disk_bytes;  /* data.max.bytes guard: stop writing below this much free space */
} sl_broker_options;
int sl_broker_start(sl_cluster *cluster, const sl_broker_options *options, sl_broker **out);
int sl_broker_stop(sl_broker *broker, int64_t deadline_ns);   /* spills and syncs all that is there first; SL_E_TIMEOUT / DISK_FULL ... leaves all in memory */
typedef struct sl_broker_partition {
    uint32_t block;
    uint32_t leader_epoch;
    uint64_t base_offset;         /* recovered end offset: where the log goes on if memory holds nothing */
    uint64_t missing;             /* so many offsets below it are in no file although they were durable: written as LOST first */
    uint64_t file_roll_bytes;     /* segment.bytes */
    int64_t  flush_ns;            /* flush.ms */
    uint64_t flush_messages;
    const char *dir;              /* NULL: memory only */
    uint32_t replicated;          /* has followers, now or later: its words wait for sl_broker_followers() */
    uint32_t pad;
} sl_broker_partition;
/* Takes a partition over: opens its epoch, starts spilling. The caller has recovered its files and holds the death certificate of any earlier broker. */
int sl_broker_add(sl_broker *broker, const sl_broker_partition *partition);
int sl_broker_remove(sl_broker *broker, uint32_t block);      /* fenced, sealed, memory unlinked; files are the caller's */
int sl_broker_configure(sl_broker *broker, const sl_broker_partition *partition);
/* Nobody appends any more (block UINT32_MAX: to none of its partitions), spilling goes on; a later leader epoch opens the partition again. */
int sl_broker_fence(sl_broker *broker, uint32_t block);
int sl_broker_release(sl_broker *broker, uint32_t block);     /* leaves it as a dying broker would: memory and files stay; it may be added again */
int sl_broker_roll(sl_broker *broker, uint32_t block);        /* close the current file soon (retention of the active file) */
int sl_broker_trim(sl_broker *broker, uint32_t block, uint64_t log_start);   /* raises log start; memory below it is reused */
int64_t sl_broker_unspilled_bytes(sl_broker *broker);
/* eventfd that becomes readable when the storage state of a partition changed, a file was rolled, or a thread died */
int sl_broker_eventfd(sl_broker *broker);
/* Spills and syncs all that was appended before the call, while everything goes on. SL_OK, or at the deadline SL_E_TIMEOUT / DISK_FULL / IO: nothing is lost, try
 * again. sl_broker_stop() is this, then the end of the threads whatever came out; the handle stays good for sl_broker_unspilled_bytes() and events until freed. */
int sl_broker_drain(sl_broker *broker, int64_t deadline_ns);
void sl_broker_free(sl_broker *broker);        /* ends the threads if they still run (all stays in memory), frees the handle */
void sl_broker_reserve_disk(sl_broker *broker, uint64_t reserve_disk_bytes);   /* as in the options; UINT64_MAX stops all writing (data.max.bytes) */

/* ---- copies at other brokers (replica.c, broker.c) ----
 * What travels is a *run*: frames that follow each other in one file of the leader, byte for byte as they stand there, behind a header and their cells.
 * The followers that count for a partition (in sync, or about to be) are told to the leader's C side by its Python; their acknowledgements move the words. */
#define SL_RUN_MAGIC 0x4e55524c          /* "LRUN" */
#define SL_RUN_HEADER_BYTES 96
#define SL_FOLLOWERS_MAX 15
typedef struct sl_run {
    uint32_t magic;                /*  0 */
    uint32_t cells;                /*  4 how many sl_file_cell follow the header; then, at the next multiple of 64, the frames */
    uint64_t base_offset;          /*  8 of the first frame */
    uint64_t end_offset;           /* 16 */
    uint64_t frames_bytes;         /* 24 multiple of 64 */
    uint32_t file_epoch;           /* 32 leader epoch in the name of the file they stand in */
    uint32_t leader_epoch;         /* 36 of who sends */
    uint32_t partition;            /* 40 */
    uint32_t pad0;
    uint8_t  topic_id[16];         /* 48 */
    uint8_t  pad1[28];
    uint32_t crc32c;               /* 92 of the 92 bytes before and of the cells; each frame has its own in its cell */
} sl_run;
typedef struct sl_fetch sl_fetch;  /* a place in a partition's files, for one follower; one thread */
int sl_fetch_open(const char *dir, uint32_t partition, const uint8_t topic_id[16], sl_fetch **out);
void sl_fetch_close(sl_fetch *fetch);
/* Writes the run that begins at `offset` to `to`: whole frames below `end_offset` (what is spilled), as many as fit. Returns its bytes; 0 nothing there yet; SL_E_TOO_BIG:
 * *needed_bytes for one frame; SL_E_RANGE: no frame begins at `offset` (or it is below the first file), *needed_bytes is where the frame begins that holds it. */
int64_t sl_fetch_run(sl_fetch *fetch, uint64_t offset, uint64_t end_offset, uint32_t leader_epoch, uint8_t *to, uint64_t capacity, uint64_t *needed_bytes);

typedef struct sl_replica sl_replica;   /* a follower's files of one partition. One thread appends, another may sync */
/* The files are recovered; they end at end_offset, the last of them was written under last_epoch (0: there are none). */
int sl_replica_open(const char *dir, uint32_t partition, const uint8_t topic_id[16], const uint8_t cluster_id[16], uint64_t end_offset, uint32_t last_epoch,
                    uint64_t file_roll_bytes, sl_replica **out);
/* Validates a run whole (hostile input) and appends it. SL_OK; SL_E_RANGE: it does not begin at the replica's end; SL_E_FENCED: another leader epoch than this one;
 * SL_E_CORRUPT; SL_E_DISK_FULL and SL_E_IO: nothing of it counts. `*end_offset` is the replica's end after the call in every case. */
int sl_replica_append(sl_replica *replica, const uint8_t *run, uint64_t bytes, uint32_t leader_epoch, uint64_t *end_offset);
/* fdatasync of all that was appended before the call: the offset up to which everything is on disk, or SL_E_IO (once failed, for ever: recover up to the last good one). */
int64_t sl_replica_sync(sl_replica *replica);
uint64_t sl_replica_end(sl_replica *replica);
void sl_replica_close(sl_replica *replica);
/* The followers that count for `block`, by broker id: the words spilled, high_watermark and durable stay below what each of them has acknowledged under this leader epoch.
 * min_insync: with fewer replicas (the leader is one) the high watermark rests. */
int sl_broker_followers(sl_broker *broker, uint32_t block, uint32_t leader_epoch, const uint32_t *followers, uint32_t n, uint32_t min_insync);
int sl_broker_acked(sl_broker *broker, uint32_t block, uint32_t leader_epoch, uint32_t follower, uint64_t end_offset, uint64_t durable_offset);
typedef struct sl_advanced { uint32_t block; uint32_t leader_epoch; uint64_t end_offset; uint32_t sync; uint32_t pad; } sl_advanced;
/* Replicated partitions whose files have grown, or for which somebody waits for a sync (sync 1), since the last call. How many; the eventfd becomes readable when there are. */
int sl_broker_advanced(sl_broker *broker, sl_advanced *out, uint32_t max);
int sl_broker_replica_eventfd(sl_broker *broker);

#define SL_EVENT_STORAGE 1        /* storage_state changed: code = new state */
#define SL_EVENT_ROLLED 2         /* a file was closed, synced: offset = its end */
#define SL_EVENT_LOST 3           /* `count` records from `offset` were damaged or gone and are a LOST frame now */
#define SL_EVENT_DAMAGED 4        /* a word in shared memory that cannot be right */
#define SL_EVENT_DROPPED 5        /* drop_oldest: `count` records up to `offset` */
#define SL_EVENT_SYNC_FAILED 6    /* fdatasync failed: what lies between `offset` (durable) and offset + count is rewritten from memory */
#define SL_EVENT_FENCED 7         /* another leader epoch is in force: the partition is left alone */
typedef struct sl_broker_event {
    int64_t at_ns;                /* wall clock */
    uint64_t offset, count;
    uint32_t kind, block;
    int32_t code, saved_errno;
    char what[88];
} sl_broker_event;
int sl_broker_event_next(sl_broker *broker, sl_broker_event *out);   /* 1 and the oldest event not yet taken, 0 none (reads the eventfd empty) */
/* ---- single words, for the coordinator's Python (control.c); all sequentially consistent ---- */
uint64_t sl_get64(const uint64_t *word);
uint32_t sl_get32(const uint32_t *word);
void sl_put64(uint64_t *word, uint64_t value);
void sl_put32(uint32_t *word, uint32_t value);
int sl_swap64(uint64_t *word, uint64_t expected, uint64_t desired);   /* compare-and-swap; 1 done */
void sl_view_changed(sl_control *control);                            /* view_changes += 1 and wakes who sleeps on it */
int sl_row_names_block(const sl_row *row, uint32_t block);            /* 1: a hazard word or pin of the row names a segment of this partition block */
/* cffi:end */

/* ---- between the files of the core -------------------------------------------------------------------------------------------------- */
void sl_set_errno(int saved_errno);
int sl_process_alive(uint32_t pid, uint64_t start_ticks);   /* exactly this process runs (a zombie does not) */

typedef struct sl_map {            /* a mapped segment; cached by buffer id, counted */
    sl_segment *segment;
    uint64_t bytes;
    uint32_t buffer;
    int32_t users;
    int32_t writable;
    uint32_t cell_count;           /* from `bytes`, never from the header */
    uint32_t arena_units;
    uint32_t pad;
    uint64_t *cells;
    uint8_t *arena;
    struct sl_map *next, *next_writable; /* of its bucket; of the process */
} sl_map;
/* Maps a buffer (or finds it) and counts one use. Validates header and geometry once: afterwards map->bytes bounds every position. */
int sl_map_get(sl_cluster *cluster, uint32_t buffer, int writable, sl_map **out);
void sl_map_put(sl_cluster *cluster, sl_map *map);
const char *sl_cluster_prefix(sl_cluster *cluster);
uint64_t sl_cluster_serial(sl_cluster *cluster);   /* from 1 on, never twice in a process: an address may be given out again */
/* Does this process still own the handle? 0, or SL_E_FORKED in a child that inherited it. */
int sl_cluster_check(sl_cluster *cluster);

/* log.c */
/* A buffer in LIMBO: 1 nobody names it any more (reset, FREE: pool it), 0 still named, 2 somebody died in it (DEAD: unlink). */
int sl_limbo_retry(sl_cluster *cluster, uint32_t row, sl_map *map);
/* Is this buffer of the partition lost with its claimer (dead, by certificate)? 1: it is out of the directory and DEAD now, unlink it; 0 no. */
int sl_segment_audit(sl_cluster *cluster, uint32_t row, uint32_t block, sl_map *map);
static inline uint32_t sl_segment_phase(const sl_segment *segment) { return sl_claim_phase(__atomic_load_n(&segment->claim, __ATOMIC_ACQUIRE)); }
/* The segment `number` of a partition while it is in the directory (or claimed); buffer id, or 0. */
uint32_t sl_log_buffer(sl_partition *partition, uint64_t number);
/* The broker's half of sl_log_recycle(): takes the oldest segment that nobody needs (same conditions; raises log_start of memory-only topics) out of the
 * directory and does not publish it. Returns its buffer id, 0 nothing to do; sl_segment_phase() says FREE (reset: pool or publish it), LIMBO or DEAD. */
int64_t sl_log_takeout(sl_cluster *cluster, uint32_t row, uint32_t block);
/* Index of the first empty cell, or of the SEAL; *end_rel the offset there relative to base; *sealed. The caller holds a hazard word or pin.
 * SL_E_DAMAGED if the cells cannot be right. */
int64_t sl_segment_end(const sl_map *map, uint64_t number, uint32_t *end_rel, int *sealed);

/* stamp.c: the wall clock, for who asks a million times a second. One thread's; zeros to begin with. */
typedef struct sl_stamp { uint64_t at, ticks, rate; int64_t ns, last; } sl_stamp;
int64_t sl_stamp_ns(sl_stamp *stamp);

/* crc32c.c */
uint32_t sl_crc32c_portable(uint32_t crc, const void *data, size_t bytes);                     /* without special instructions: the tests' measure */
uint32_t sl_crc32c_copy(uint32_t crc, void *to, const void *from, size_t bytes);               /* memcpy and the CRC of what was stored */

/* frame.c */
int64_t sl_frame_max_timestamp_ns(const uint8_t *frame);   /* of a checked frame: the latest of its records */

/* file_read.c, for readers: one file that may still be written. One thread. No mmap: EIO and short files are codes, never SIGBUS.
 * `end_offset` bounds every call: the partition's `spilled` word for a live file (what lies beyond may still be cut back), UINT64_MAX for a closed one. */
/* The one that holds `offset`: SL_E_NOENT no files, SL_E_RANGE below the first (then *out is the first). Look again at the end of a file. */
int sl_file_find(const char *dir, uint64_t offset, sl_file_entry *out);
typedef struct sl_file_reader sl_file_reader;
int sl_file_reader_open(const char *dir, const char *log_name, sl_file_reader **out);   /* SL_E_NOENT, SL_E_VERSION, SL_E_DAMAGED, SL_E_HALFMADE */
int sl_file_reader_open_at(const char *dir, uint64_t offset, sl_file_entry *entry, sl_file_reader **out);   /* find, then open */
void sl_file_reader_close(sl_file_reader *reader);
const sl_file_header *sl_file_reader_header(sl_file_reader *reader);
/* Index of the frame that holds `offset`, or of the first one behind it (compacted files); SL_E_RANGE below the base, SL_E_AGAIN at or beyond the end. */
int64_t sl_file_reader_find_offset(sl_file_reader *reader, uint64_t offset, uint64_t end_offset);
/* Index of the first frame with a record of that time or later, SL_E_AGAIN none. */
int64_t sl_file_reader_find_time(sl_file_reader *reader, int64_t timestamp_ns, uint64_t end_offset);
/* Reads whole frames from frame `index` on into a 64-aligned buffer: frame i stands at 64 * (cells[i].unit - cells[0].unit) and has offset base + cells[i].rel.
 * They have passed sl_frame_check, follow each other, and with verify_crc match their CRC and their cell's. Returns how many, 0 at the end,
 * SL_E_TOO_BIG: *needed_bytes for one, SL_E_CORRUPT: frame `index` is damaged (go on at sl_file_reader_cell(index + 1).rel), SL_E_IO. */
int64_t sl_file_reader_fill(sl_file_reader *reader, uint64_t index, uint64_t end_offset, int verify_crc, uint8_t *buffer, uint64_t capacity,
                            sl_file_cell *cells, size_t max_cells, uint64_t *needed_bytes);
int sl_file_reader_cell(sl_file_reader *reader, uint64_t index, uint64_t end_offset, sl_file_cell *out);   /* SL_E_AGAIN: at the end */

/* wait.c */
int sl_futex_wait(uint32_t *word, uint32_t seen, int64_t deadline_ns);   /* 0 woken or changed, SL_E_TIMEOUT, SL_E_INTR */
void sl_futex_wake(uint32_t *word, int n);
void sl_wake_bits(sl_cluster *cluster, uint64_t *bits);                   /* wakes the rows named in bits[SL_WAIT_WORDS] */
/* One sleep of a row (steps 34-35): begin, set bits in every partition (sl_bits_set), re-check what is waited for, then sleep; then clear bits and end. */
uint32_t sl_sleep_begin(sl_row *row, uint32_t how);
void sl_sleep_end(sl_row *row);
void sl_bits_set(uint64_t *bits, uint32_t row);
void sl_bits_clear(uint64_t *bits, uint32_t row);
void sl_bits_sweep(sl_cluster *cluster, uint64_t *bits);   /* the broker, now and then */
#endif
