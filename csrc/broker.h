/* Between broker.c, spill.c, gather.c and ring.c: what a broker's C threads know of their partitions. Private memory of one process; nothing here is shared or kept. */
#ifndef SHMLOG_BROKER_H
#define SHMLOG_BROKER_H
#include <pthread.h>

#include "atomic.h"
#include "core.h"

#define SL_TICK_NS INT64_C(1000000)              /* while anything happens */
#define SL_IDLE_TICK_NS INT64_C(100000000)       /* the tick doubles up to this */
#define SL_RETRY_NS INT64_C(200000000)           /* a disk or a /dev/shm that refused is asked again after this */
#define SL_EVENTS 256
#define SL_FDS_A_PARTITION 3                     /* .log, .cells, and the segment it is copied from */
#define SL_FDS_SPARE 16                          /* for all else that comes and goes: sockets, recovery, mapping a segment */
#define SL_TABLE_NS INT64_C(500000000)           /* how long a table may stay behind its .log */
#define SL_REST_NS INT64_C(1000000000)           /* a partition without news for this long holds no descriptor */
#define SL_RAW_BYTES (1u << 20)                   /* a batch */
#define SL_RAW_ROOM (SL_RAW_BYTES + (64u << 10))   /* and the tail of its last frame */
#define SL_BATCH_PIECES 4096u
#define SL_BATCH_LOST 16u                        /* LOST frames in one batch */

/* A segment this broker made or adopted. In a partition's list while the directory names it (or a recycler is at work on it), else in the pool or in limbo. */
typedef struct sl_buffer {
    uint32_t id;
    uint32_t adopted;        /* another process made it: never pooled (step 21), unlinked when it leaves the directory */
    sl_map *map;
    int64_t since_ns;        /* when it came into its list */
} sl_buffer;

typedef struct sl_buffers { sl_buffer *items; uint32_t n, room; } sl_buffers;

typedef struct sl_follower { uint32_t broker; uint64_t end, durable; } sl_follower; /* what it has acknowledged under this leader epoch */

typedef struct sl_bp {       /* a partition of this broker */
    struct sl_bp *next;
    uint32_t block, partition;
    uint32_t leader_epoch;
    uint8_t topic_id[16];
    sl_partition *words;
    sl_waits *waits;
    char *dir;               /* NULL: memory only */
    uint64_t file_roll_bytes, flush_messages;
    int64_t flush_ns;

    /* the spiller's place in memory: the next cell to look at */
    uint64_t number;
    uint32_t cell;
    int seeking;             /* cells below next_offset are what was written already, not damage */
    uint32_t tail_hint;      /* bytes to read beyond the start of a batch's last frame */
    int fd;                  /* of `fd_buffer`, for pread; -1 none */
    uint32_t fd_buffer;
    sl_map *map;             /* of segment `number`, one use counted */

    /* files */
    sl_file *file;
    uint64_t file_base, file_end;  /* offsets, as of the last append that succeeded */
    uint64_t next_offset;    /* end of what was written */
    uint64_t durable;        /* end of what was synced */
    uint64_t last_flushed;   /* durable when `unsynced_ns` was taken */
    int64_t unsynced_ns;     /* first byte written since the last sync; 0 none */
    int64_t table_ns;        /* when the file's table is to be synced; 0 it is (file.c: a sync may leave it behind) */
    int64_t retry_ns;        /* not before */
    int64_t sync_retry_ns;   /* the same for its syncs */
    int64_t checked_disk_ns;
    uint64_t unchecked_bytes, disk_headroom; /* written since; free above the reserve, when it was checked last */
    uint64_t rewrite_to;     /* a sync failed: the new file replaces all up to here; 0 no rewrite under way */
    int open;                /* `file` is not resting: counted in n_open */
    int64_t written_ns;      /* when something was last written to it */
    uint64_t failed_base;    /* the file whose sync failed ... */
    sl_file_reader *failed_reader; /* ... while it is read back */
    int roll_asked, rolling; /* rolling: paused until the sync thread has synced and closed the file */
    int sync_asked, sync_now, sync_failed;
    int writing, syncing;    /* a thread works on the file without the lock: nobody may free the partition or close the file */
    int fenced, removed;
    uint32_t disk_state; int32_t disk_errno; uint64_t disk_needed, disk_free;

    /* copies at other brokers: what the words spilled, high_watermark and durable wait for */
    int replicated, counting;      /* counting: sl_broker_followers() was called under this leader epoch; before, nothing may move */
    uint32_t n_followers, min_insync;
    sl_follower followers[SL_FOLLOWERS_MAX];
    uint64_t told_offset;          /* next_offset when sl_broker_advanced() told of it last */
    int sync_told;                 /* nobody waits for a sync that was not told */

    /* the ring */
    sl_buffers ring;
    uint64_t ring_bytes;
    uint64_t seen_cur, seen_fill, seen_offset;
    int64_t active_ns;       /* when something was last appended, as seen */
    int64_t burst_ns;        /* when the present activity began */
    int64_t rotated_ns;
    int64_t life_ns;         /* how long the last segments lasted; 0 unknown */
    uint64_t segment_bytes;  /* size of the next segment */
    uint32_t frame_need;     /* largest frame somebody asked room for */
    int shrunk;              /* idle, and down to one small segment */
    uint64_t shrink_to;      /* sealing through to this number */
    uint32_t ring_state; uint64_t ring_needed, ring_free;
    int64_t ring_retry_ns;
    int64_t said_full_ns;    /* when a full /dev/shm or budget was last news ... */
    int said_full;           /* ... and has not been taken back */
    int64_t full_ns;         /* since when nothing is to be had; 0 it is not so */
    int64_t refused_ns;      /* when there was no room for a large frame */
    int64_t looked_ns;       /* at the states of its buffers */
} sl_bp;

struct sl_broker {
    sl_cluster *cluster;
    sl_control *control;
    sl_row *row;
    sl_broker_options options;
    sl_process *process;
    pthread_mutex_t lock;    /* all below, and the use of the spill row; dropped around file I/O and sleeps */
    pthread_cond_t done;     /* broadcast when `writing` or `syncing` drops, or offsets moved */
    pthread_cond_t sync_work;
    pthread_t spill_thread, sync_thread;
    int threads, halt, draining;
    int event_fd, replica_fd;
    sl_bp *partitions;
    uint32_t n_partitions;
    uint32_t n_open, max_open; /* partitions whose file is open, and how many may be: RLIMIT_NOFILE must do for them all */
    int64_t said_fds_ns;     /* when running out of descriptors was last news */
    uint32_t n_busy;         /* partitions written in the last second; counted once a pass */
    uint64_t idle_bytes;     /* memory of the others */
    uint64_t others_bytes;   /* of other brokers' segments; with ours they keep to one budget */
    sl_buffers pool, limbo;
    uint64_t total_bytes;    /* of all lists */
    int64_t tidied_ns, swept_ns;
    struct { uint32_t id, block; } *found; /* buffers found in /dev/shm at the start */
    uint32_t n_found;
    uint8_t *raw;            /* private copy of a span of an arena: frames are validated and written from here */
    uint8_t *big;            /* one frame that is larger */
    uint64_t big_bytes;
    int64_t big_ns;
    sl_broker_event events[SL_EVENTS];
    uint64_t event_head, event_tail;
};

/* What goes to a file in one append. Filled by sl_gather(). */
typedef struct sl_batch {
    sl_file_piece pieces[SL_BATCH_PIECES];
    uint64_t offsets[SL_BATCH_PIECES];
    uint64_t words[SL_BATCH_PIECES];
    _Alignas(64) uint8_t lost[SL_BATCH_LOST][128];
    size_t n, n_lost;
    uint64_t end_offset, bytes, records;
    uint32_t cell;            /* where the next batch begins */
    int seeking, sealed, more;
} sl_batch;

/* gather.c */
void sl_spill_leave(sl_broker *b, sl_bp *p);
/* Steps 23-25: a hazard word on the segment, then a second look whether the directory still names it. 1 held (p->map), 0 it is not there, < 0 an error. */
int sl_spill_hold(sl_broker *b, sl_bp *p, uint64_t number);
void sl_spill_release(sl_broker *b);
uint64_t sl_spill_base(const sl_map *map, uint64_t number);      /* offset of a segment's first record, UINT64_MAX if its base word does not say */
/* Goes to the segment that holds `offset`, else to the oldest there is above it: what is missing between becomes a LOST frame. */
void sl_spill_seek(sl_broker *b, sl_bp *p, uint64_t offset);
int sl_gather(sl_broker *b, sl_bp *p, sl_batch *t, uint64_t base); /* fills a batch from segment p->number, which is held; < 0 only when memory is missing here */
void sl_salvage_close(sl_bp *p);
void sl_segment_file_name(char *to, size_t room, uint64_t base, uint32_t leader_epoch, const char *kind);

/* spill.c */
void *sl_spill_main(void *broker);
void *sl_sync_main(void *broker);
void sl_roll_now(sl_broker *b, sl_bp *p);
/* Moves the words spilled, high_watermark, last_stable and durable to what is true now: of the files here, and of every follower that counts. SL_E_FENCED: the partition is
 * another leader's. */
int sl_commit(sl_broker *b, sl_bp *p);
void sl_file_counted(sl_broker *b, sl_bp *p, int open); /* after p->file was opened or closed */
void sl_broker_say(sl_broker *b, uint32_t kind, uint32_t block, int code, int saved_errno, uint64_t offset, uint64_t count, const char *what, ...)
    __attribute__((format(printf, 8, 9)));
void sl_storage_update(sl_broker *b, sl_bp *p);   /* the worse of disk and ring, into the partition's words; says so and wakes when it changed */

/* ring.c */
int64_t sl_ring_care(sl_broker *b, sl_bp *p, int64_t now);   /* when to look again at the latest; 0 nothing planned */
void sl_ring_count(sl_broker *b, int64_t now);               /* busy partitions, once a pass */
void sl_ring_tidy(sl_broker *b, int64_t now);                /* limbo and pool */
int sl_ring_first(sl_broker *b, sl_bp *p, uint32_t *buffer); /* a small fresh buffer for sl_log_open_epoch() */
void sl_ring_adopt(sl_broker *b, sl_bp *p);
void sl_ring_give_up(sl_broker *b, sl_bp *p);                /* takes all out of the directory and unlinks it */
int sl_ring_discard(sl_broker *b, uint32_t block);           /* the same for a block that is nobody's any more */
void sl_ring_leave(sl_broker *b, sl_bp *p);                  /* all stays as it is, for whoever adopts it */
void sl_ring_unused(sl_broker *b, sl_bp *p, uint32_t buffer);/* sl_log_open_epoch() found a segment ready: this one goes to the pool */
void sl_ring_scan(sl_broker *b);                             /* what earlier brokers left in /dev/shm */
void sl_ring_free(sl_broker *b, int unlink_pool);
#endif
