/* Every byte that shmlog shares in memory or keeps on disk. The only statement of a layout; Python derives its dtypes from here.
 *
 * Objects in /dev/shm, named /shmlog.<uid>.<cluster>.<suffix>:
 *   control        who runs: coordinator words, process table                 coordinator and brokers write, clients read
 *   partitions     one 1 KiB block a partition: cur, directory, offsets        producers and brokers write, consumers read
 *   waits          256 B a partition: who sleeps, who tethers                 everybody writes
 *   rows           256 B a registered thread: hazard words, pins, wake word   its owner writes, recyclers read
 *   meters         512 B a reader of a partition: where it is, ages of records  its owner writes, `shmlog top` reads
 *   v<n>           one snapshot of the metadata ("cluster view")              immutable once `control.view_version` names it
 *   s<buffer id>   a segment: header, cell table, arena                       producers write, consumers map read-only
 *
 * Each object opens with 128 bytes that are frozen for all versions (sl_object_header), so that any version can refuse or clean what it does
 * not know. Lines are 128 bytes: two 64-byte lines, because the adjacent-line prefetcher couples them. */
#ifndef SHMLOG_FORMAT_H
#define SHMLOG_FORMAT_H
#include <stddef.h>
#include <stdint.h>

/* cffi:begin */
#define SL_LAYOUT_VERSION 1
#define SL_DISK_VERSION 1
#define SL_UNIT_BYTES 64

/* object kinds */
#define SL_KIND_CONTROL 1
#define SL_KIND_PARTITIONS 2
#define SL_KIND_WAITS 3
#define SL_KIND_ROWS 4
#define SL_KIND_VIEW 5
#define SL_KIND_SEGMENT 6
#define SL_KIND_METERS 7

/* sl_object_header.state */
#define SL_OBJECT_HALFMADE 0
#define SL_OBJECT_READY 1

#define SL_MAX_PARTITIONS 16384
#define SL_MAX_ROWS 4096
#define SL_MAX_METERS 16384
#define SL_METER_BUCKETS 96
#define SL_METER_LOW_BITS 7         /* bucket 0: below 128 ns; then 4 an octave; the last: 1.75 s and more */
#define SL_MAX_PROCESSES 64
#define SL_DIR_SLOTS 32
#define SL_VIEW_PINS 8
#define SL_TETHERS 16
#define SL_WAIT_WORDS 4
#define SL_CELL_MAX_COUNT 16383
#define SL_SEGMENT_HEADER_BYTES 1024
#define SL_SEGMENT_MIN_BYTES 61440    /* 15 pages: with its block and its waits an idle partition takes less than 64 KiB */
#define SL_SEGMENT_MAX_BYTES 268435456
#define SL_NULL_BYTES 4294967295

/* The frozen 128 bytes. Written by the maker before `state` becomes READY (release); read by anybody, any version. */
typedef struct sl_object_header {
    uint64_t magic;             /*  0 "SHMLOG\r\n" */
    uint32_t layout_version;    /*  8 */
    uint32_t kind;              /* 12 SL_KIND_* */
    uint8_t  boot_id[16];       /* 16 /proc/sys/kernel/random/boot_id: memory of another boot is never believed */
    uint8_t  cluster_id[16];    /* 32 */
    uint64_t object_bytes;      /* 48 */
    uint64_t object_id;         /* 56 buffer id of a segment, version of a view, else 0 */
    uint64_t maker_start_ticks; /* 64 field 22 of /proc/<pid>/stat: with the pid it names one process of this boot */
    uint32_t maker_pid;         /* 72 */
    uint32_t owner_uid;         /* 76 */
    int64_t  made_ns;           /* 80 wall clock */
    uint32_t header_crc;        /* 88 CRC32C of bytes 0..87 */
    uint32_t state;             /* 92 SL_OBJECT_*: stored last, with release */
    char     owner_lock[32];    /* 96 file below the cluster's run directory whose flock is held while the cluster lives; NUL padded */
} sl_object_header;

/* ---- control ------------------------------------------------------------------------------------------------------------------------- */

/* A process of the cluster (coordinator, standby, spare, broker). Written by the active coordinator, the last line by the process itself. */
typedef struct sl_process {
    uint32_t role;              /*   0 SL_ROLE_* */
    uint32_t id;                /*   4 broker id, else 0 */
    uint32_t pid;               /*   8 */
    uint32_t state;             /*  12 SL_PROCESS_* */
    uint64_t start_ticks;       /*  16 */
    uint64_t broker_epoch;      /*  24 grows with every start */
    uint8_t  pad0[96];          /*  32 */
    uint64_t heartbeat_ns;      /* 128 monotonic; only finds the *stopped*, proves nothing */
    uint32_t bell;              /* 136 futex word: rung by who wants this process's C threads to look */
    uint32_t bell_sleeping;     /* 140 1 while a thread sleeps on `bell` (announced before its last look) */
    uint64_t segment_bytes;     /* 144 of a broker: memory of its segments, so that all of them keep to one budget */
    uint8_t  pad1[104];         /* 152 */
} sl_process;

#define SL_ROLE_NONE 0
#define SL_ROLE_COORDINATOR 1
#define SL_ROLE_STANDBY 2
#define SL_ROLE_SPARE 3
#define SL_ROLE_BROKER 4

#define SL_PROCESS_NONE 0
#define SL_PROCESS_STARTING 1
#define SL_PROCESS_UP 2
#define SL_PROCESS_STOPPED 3
#define SL_PROCESS_DEAD 4

#define SL_CLUSTER_STARTING 0
#define SL_CLUSTER_UP 1
#define SL_CLUSTER_STOPPING 2
#define SL_CLUSTER_DOWN 3

typedef struct sl_control {
    sl_object_header header;        /*   0 */
    /* line 1: the coordinator writes */
    uint64_t coordinator_epoch;     /* 128 boot counter << 32 | n; grows with each takeover */
    uint64_t view_version;          /* 136 object v<view_version> is the metadata in force; flipped by one CAS */
    uint32_t view_changes;          /* 144 futex word: +1 after each flip and each change of leader */
    uint32_t cluster_state;         /* 148 SL_CLUSTER_* */
    uint64_t boot_counter;          /* 152 */
    uint64_t coordinator_alive_ns;  /* 160 monotonic */
    uint64_t memory_max_bytes;      /* 168 budget of all segments */
    uint64_t next_buffer_id;        /* 176 fetch_add by brokers; a buffer id is never given twice (28 bits) */
    uint8_t  pad0[72];              /* 184 */
    sl_process processes[SL_MAX_PROCESSES]; /* 256 */
} sl_control;

/* ---- partitions ---------------------------------------------------------------------------------------------------------------------- */

/* Header lines of `partitions`, `waits` and `rows`: `allocated` entries are backed by memory (posix_fallocate returned before it grew). */
typedef struct sl_table {
    sl_object_header header;        /*   0 */
    uint32_t allocated;             /* 128 entries that may be touched; grows only (release; partner: table_entry() in cluster.c) */
    uint32_t used;                  /* 132 entries ever given out; grows only. Recyclers read it *after* the take-out (step 16) */
    uint8_t  pad[888];              /* 136 */
} sl_table;

#define SL_TABLE_HEADER_BYTES 1024

/* sl_partition.state */
#define SL_PARTITION_FREE 0
#define SL_PARTITION_LIVE 1
#define SL_PARTITION_DELETED 2

/* sl_partition.flags */
#define SL_PF_SPILL 1               /* a log on disk; off: shmlog.spill=false or --data none */
#define SL_PF_FULL_RAISE 2          /* shmlog.full=raise */
#define SL_PF_FULL_DROP 4           /* shmlog.full=drop_oldest; neither bit: block */
#define SL_PF_CRC_ALWAYS 8          /* shmlog.crc=append */
#define SL_PF_APPENDED 16           /* shmlog.visibility=appended */
#define SL_PF_LOG_APPEND_TIME 32    /* message.timestamp.type=LogAppendTime */
#define SL_PF_REPLICATED 64         /* replication factor > 1: readers stop at `high_watermark` */
#define SL_PF_BELOW_MIN_ISR 256     /* fewer replicas in sync than min.insync.replicas: acks=all cannot be given now */
#define SL_PF_SYNC_RECYCLE 128      /* a segment is recycled only when durable (flush.messages=1 or an acks=disk user) */

/* sl_partition.storage_state: why producers find no room */
#define SL_STORAGE_OK 0
#define SL_STORAGE_SHM_FULL 1
#define SL_STORAGE_DISK_FULL 2
#define SL_STORAGE_DISK_ERROR 3
#define SL_STORAGE_BEHIND 4         /* the disk is slower than the producers; nothing is broken */

/* One partition's words. Words "@" carry {leader epoch, low 16 bits : 16 | offset : 48}, move by CAS and never go back. */
typedef struct sl_partition {
    /* line 0: the coordinator; topic_id and partition before `state` becomes LIVE, the rest follows the view. leader_epoch: later ones by whoever opens them, CAS */
    uint8_t  topic_id[16];          /*   0 */
    uint32_t partition;             /*  16 */
    uint32_t state;                 /*  20 SL_PARTITION_* */
    uint32_t flags;                 /*  24 SL_PF_* */
    uint32_t max_message_bytes;     /*  28 */
    uint64_t memory_bytes;          /*  32 upper bound of the ring (shmlog.memory.bytes) */
    int32_t  leader;                /*  40 broker id, -1 none */
    uint32_t leader_epoch;          /*  44 */
    uint32_t bell_process;          /*  48 index in control.processes of the leader's broker */
    uint8_t  pad0[76];              /*  52 */
    /* line 1: whoever rotates or fences, by CAS */
    uint64_t cur;                   /* 128 {epoch:23 | fenced:1 | number:40} the active segment */
    uint8_t  pad1[120];
    /* line 2: the leader's broker (the recycler for log_start of memory-only topics), by CAS */
    uint64_t high_watermark;        /* 256 @ */
    uint64_t last_stable;           /* 264 @ */
    uint64_t spilled;               /* 272 @ written to the file (not synced) */
    uint64_t durable;               /* 280 @ fdatasync returned 0 */
    uint64_t log_start;             /* 288 @ */
    uint64_t dropped_records;       /* 296 by shmlog.full=drop_oldest; counted, never silent */
    uint8_t  pad2[80];
    /* line 3: producers, rarely */
    uint32_t wanted_bytes;          /* 384 largest frame asked for since the broker last looked (max by CAS) */
    uint32_t displaced;             /* 388 big frames that a SEAL displaced since the last big append (flaw F9) */
    uint32_t sync_wanted;           /* 392 a producer waits for `durable`: set by waiters, cleared by the broker before it syncs */
    uint32_t pad3;
    uint64_t room_waits;            /* 400 appends that had to wait for a segment; counter */
    uint8_t  pad4[104];
    /* lines 4-5: who claims and publishes segments, by CAS */
    uint64_t dir[SL_DIR_SLOTS];     /* 512 {epoch:8 | 0:12 | number:16 | buffer:28}; buffer 0: none, last held `number` */
    /* line 6: the leader's broker */
    uint32_t storage_state;         /* 768 SL_STORAGE_* */
    uint32_t storage_errno;         /* 772 */
    uint64_t storage_needed_bytes;  /* 776 */
    uint64_t storage_free_bytes;    /* 784 */
    uint64_t ring_bytes;            /* 792 memory of this partition's segments */
    uint64_t spilled_bytes;         /* 800 counters of this broker's life */
    uint64_t recycled_segments;     /* 808 */
    uint64_t unlinked_segments;     /* 816 */
    uint64_t disk_bytes;            /* 824 */
    int64_t  last_append_ns;        /* 832 wall clock, as the spiller saw it */
    uint64_t ring_keep_bytes;       /* 840 memory-only: producers recycle only when the ring is as large as this, so that history is kept */
    uint8_t  pad6[48];
    /* line 7: the leader's broker: where the files are */
    uint64_t file_base_offset;      /* 896 base offset of the file being written */
    uint32_t file_leader_epoch;     /* 904 */
    uint32_t pad7;
    uint8_t  pad8[112];
} sl_partition;

/* A partition's sleepers and tethers: apart from sl_partition, because consumers write here and map that read-only. */
typedef struct sl_waits {
    /* line 0: bit r = row r sleeps (the last bit: some row from 255 on). Set and cleared by the sleeper; see wait.c */
    uint64_t data[SL_WAIT_WORDS];     /*   0 for appended records */
    uint64_t commit[SL_WAIT_WORDS];   /*  32 for `durable`, `high_watermark`, or room: woken by the broker */
    uint8_t  pad0[64];
    /* line 1: {row + 1 : 24 | segment number : 40}: this segment and all after it must stay (memory-only topics, shmlog.full=block) */
    uint64_t tethers[SL_TETHERS];     /* 128 */
} sl_waits;

/* ---- rows ---------------------------------------------------------------------------------------------------------------------------- */

#define SL_ROW_FREE 0
#define SL_ROW_LIVE 1
#define SL_ROW_DEAD 2               /* the death certificate was seen; being cleaned */

#define SL_AWAKE 0
#define SL_SLEEPS_FUTEX 1
#define SL_SLEEPS_POLLER 2

/* One registered thread (producer) or handle (consumer). A hazard word or pin is {partition block:24 | segment number:40}, 0 none. */
typedef struct sl_row {
    /* line 0: its owner writes; recyclers read, in this order (pins are handed over downwards) */
    uint64_t hazard[2];             /*   0 */
    uint64_t poll_pin;              /*  16 */
    uint64_t view_pins[SL_VIEW_PINS]; /* 24 views and loans that outlive a call */
    uint8_t  pad0[40];
    /* line 1 */
    uint32_t state;                 /* 128 SL_ROW_*: the coordinator */
    uint32_t pid;                   /* 132 */
    uint64_t start_ticks;           /* 136 */
    uint32_t wake;                  /* 144 futex word: +1 by the sleeper before each sleep, +1 by each waker */
    uint32_t sleeping;              /* 148 SL_AWAKE / SL_SLEEPS_*: the owner */
    uint32_t kind;                  /* 152 1 producer, 2 consumer, 3 broker, 4 coordinator, 5 tool */
    uint32_t generation;            /* 156 +1 for each registration */
    uint64_t progress;              /* 160 operations; the owner */
    int64_t  dead_ns;               /* 168 monotonic: when sl_row_clean() was first called for it */
    uint8_t  pad1[80];
} sl_row;

/* ---- meters -------------------------------------------------------------------------------------------------------------------------- */

/* What one reader has seen of one partition. The object may be missing or full: statistics, nothing depends on them. See meter.c */
typedef struct sl_meter {
    uint64_t owner;                 /*   0 {row + 1 : 32 | block : 32}; 0 free. By CAS; back to 0 by the owner, or the coordinator after its death */
    uint32_t claims;                /*   8 +1 by each new owner, who then clears the rest */
    uint32_t pad0;
    uint64_t position;              /*  16 offset of the next record */
    uint64_t records;               /*  24 handed out since it was claimed */
    uint8_t  pad1[96];
    uint32_t counts[SL_METER_BUCKETS]; /* 128 ages (read minus timestamp) of records read from memory, sampled; bucket by sl_meter_bucket() */
} sl_meter;

/* ---- segment ------------------------------------------------------------------------------------------------------------------------- */

/* sl_segment.claim, phase: whose a buffer is. One word, so that no two can think it theirs; the steps are in log.c */
#define SL_SEGMENT_FREE 0           /* in the pool of its maker, or to be unlinked: whoever gets it by CAS (ring.c) */
#define SL_SEGMENT_LIVE 1           /* in the directory, or about to be put there by the row that the word names */
#define SL_SEGMENT_LIMBO 2          /* out of the directory, but somebody names it: anybody may look again */
#define SL_SEGMENT_DEAD 3           /* somebody died in it, or while recycling it: unlink, never reuse */
#define SL_SEGMENT_HELD 4           /* being taken out and reset by the row that the word names; number 0: about to be published by it */
#define SL_SEGMENT_TRY 5            /* memory-only: claimed, tethers not looked at again yet; anybody may undo it */

typedef struct sl_segment {
    sl_object_header header;        /*   0 */
    /* line 1: whoever holds the claim, before the directory names it */
    uint64_t number;                /* 128 */
    uint8_t  topic_id[16];          /* 136 */
    uint32_t partition;             /* 152 */
    uint32_t leader_epoch;          /* 156 */
    uint32_t cell_count;            /* 160 the last cell takes SEAL only */
    uint32_t arena_position;        /* 164 bytes from the start of the object, multiple of 64 */
    uint32_t arena_units;           /* 168 */
    uint32_t block;                 /* 172 index in `partitions` */
    uint64_t claim;                 /* 176 {phase:3 | row generation:9 | row + 1:12 | number:40}, by CAS; by its holder alone while HELD */
    uint64_t lives;                 /* 184 */
    uint32_t tainted;               /* 192 somebody died in it: stored before that hazard word is cleared */
    uint8_t  pad0[60];
    /* line 2: helpers, by CAS */
    uint64_t base;                  /* 256 {number:16 | first offset:48}; offset all ones = UNSET */
    uint8_t  pad1[120];
    /* line 3: producers, by CAS */
    uint64_t alloc_units;           /* 384 arena units given out as chunks */
    uint8_t  pad2[120];
    /* line 4: producers; any value whose lower cells are all filled is right */
    uint64_t hint;                  /* 512 */
    uint8_t  pad3[120];
    /* line 5: producers */
    int64_t  first_append_ns;       /* 640 wall clock of about the first append; 0 none */
    uint8_t  pad4[376];
    /* 1024: uint64_t cells[cell_count]; arena */
} sl_segment;

/* cell: {type:2 | count:14 | rel:22 | unit:22 | tag:4}, 0 = empty */
#define SL_CELL_DATA 1
#define SL_CELL_CONTROL 2
#define SL_CELL_SEAL 3

/* ---- frames -------------------------------------------------------------------------------------------------------------------------- */

#define SL_FRAME_HEADER_BYTES 28
#define SL_FRAME_CRC_MAX_BYTES 4096   /* payloads up to this are always covered by the producer's CRC */
#define SL_FRAME_ALIGN_MIN_BYTES 256  /* values from this size on start at a multiple of 64 */

/* sl_frame.flags */
#define SL_FF_KIND_MASK 3
#define SL_FF_RECORD 0
#define SL_FF_ARRAY 1                 /* `rows` equal rows, no keys */
#define SL_FF_BATCH 2                 /* the value is one Kafka record batch v2 */
#define SL_FF_CONTROL 3               /* `rows` offsets that hold no record: a loss that was found (see SL_FF_LOST), a transaction marker */
#define SL_FF_CRC_ALL 4               /* crc32c covers the payload too, else header and extensions only */
#define SL_FF_HAS_PRODUCER 8          /* extension 1: producer id, sequence, producer epoch (16 B) */
#define SL_FF_HAS_ROWS 16             /* extension 2: rows, row_bytes (8 B) */
#define SL_FF_HAS_HEADERS 32          /* extension 3: headers_bytes (4 B) */
#define SL_FF_HAS_DTYPE 64            /* extension 4: dtype and shape (variable, multiple of 4) */
#define SL_FF_TRANSACTIONAL 128
#define SL_FF_LOG_APPEND_TIME 256
#define SL_FF_LOST 512                /* with CONTROL: bytes were damaged before they were copied */

/* A frame: header, extensions in the order of their flags, key, headers, padding, value. 28 bytes, so that a 100-byte value fits 128. */
typedef struct sl_frame {
    uint32_t frame_bytes;           /*  0 all of it, without the padding to 64 behind it */
    uint32_t crc32c;                /*  4 of bytes 8 to the end of the extensions, or to the end of the frame (SL_FF_CRC_ALL) */
    uint32_t timestamp_ns_low;      /*  8 wall clock ns, 64 bits; in halves so that the struct is 28 bytes */
    uint32_t timestamp_ns_high;     /* 12 */
    uint32_t key_bytes;             /* 16 SL_NULL_BYTES: null */
    uint32_t value_bytes;           /* 20 SL_NULL_BYTES: null (tombstone); the value ends at frame_bytes */
    uint16_t flags;                 /* 24 SL_FF_* */
    uint16_t extension_bytes;       /* 26 multiple of 4 */
} sl_frame;

/* ---- disk ---------------------------------------------------------------------------------------------------------------------------- */

/* <base>-<leader epoch>.log: this header, then frames in log order, each at a multiple of 64. */
#define SL_FILE_HEADER_BYTES 256
#define SL_FILE_COMPACTED 1
typedef struct sl_file_header {
    uint64_t magic;                 /*   0 "SHMLOGF\n" */
    uint32_t disk_version;          /*   8 */
    uint32_t flags;                 /*  12 SL_FILE_COMPACTED: offsets have gaps, believe the cell table */
    uint8_t  topic_id[16];          /*  16 */
    uint8_t  cluster_id[16];        /*  32 */
    uint32_t partition;             /*  48 */
    uint32_t leader_epoch;          /*  52 */
    uint64_t base_offset;           /*  56 */
    int64_t  made_ns;               /*  64 */
    uint8_t  pad[184];              /*  72 */
    /* the CRC32C of bytes 0..251 stands in the last four */
} sl_file_header;

/* <base>-<leader epoch>.cells: a header page of 4096 bytes (the same sl_file_header, magic "SHMLOGC\n"), then pages of 255 sl_file_cell and one
 * sl_file_cell_footer. Derivable from the .log except in compacted files. */
#define SL_CELL_PAGE_BYTES 4096
#define SL_CELLS_PER_PAGE 255
typedef struct sl_file_cell {
    uint32_t rel;                   /*  0 first offset - base_offset of the file */
    uint32_t unit;                  /*  4 position in the .log / 64 */
    uint32_t crc32c;                /*  8 of the whole frame as written, computed by the broker from its private copy */
    uint16_t count;                 /* 12 records; 0 = see the frame */
    uint8_t  type;                  /* 14 SL_CELL_DATA or SL_CELL_CONTROL */
    uint8_t  flags;                 /* 15 */
} sl_file_cell;

typedef struct sl_file_cell_footer {
    int64_t  max_timestamp_ns;      /*  0 running maximum up to and with this page: the time index */
    uint32_t crc32c;                /*  8 of the 4080 bytes before the footer and of max_timestamp_ns */
    uint32_t cells;                 /* 12 255 */
} sl_file_cell_footer;

/* In the header page of the .cells at SL_FILE_MARK_POSITION: what certainly reached the disk. Written by each sync after the .log's fdatasync returned 0
 * and before the .cells', so recovery believes what lies below it and walks only what lies above. */
#define SL_FILE_MARK_POSITION 512
typedef struct sl_file_mark {
    uint64_t log_bytes;             /*  0 */
    uint64_t end_offset;            /*  8 */
    uint32_t cells;                 /* 16 */
    uint32_t crc32c;                /* 20 of bytes 0..19 */
} sl_file_mark;
/* cffi:end */

#define SL_MAGIC       UINT64_C(0x0a0d474f4c4d4853)  /* "SHMLOG\r\n" */
#define SL_FILE_MAGIC  UINT64_C(0x0a46474f4c4d4853)  /* "SHMLOGF\n" */
#define SL_CELLS_MAGIC UINT64_C(0x0a43474f4c4d4853)  /* "SHMLOGC\n" */

#define SL_AT(type, field, position) _Static_assert(offsetof(type, field) == (position), #type "." #field " is frozen")
#define SL_SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), "size of " #type)
SL_SIZE(sl_object_header, 128);  SL_AT(sl_object_header, boot_id, 16);  SL_AT(sl_object_header, object_bytes, 48);
SL_AT(sl_object_header, maker_pid, 72);  SL_AT(sl_object_header, header_crc, 88);  SL_AT(sl_object_header, state, 92);
SL_AT(sl_object_header, owner_lock, 96);
SL_SIZE(sl_process, 256);  SL_AT(sl_process, heartbeat_ns, 128);
SL_AT(sl_control, coordinator_epoch, 128);  SL_AT(sl_control, processes, 256);
SL_SIZE(sl_table, SL_TABLE_HEADER_BYTES);
SL_SIZE(sl_partition, 1024);  SL_AT(sl_partition, cur, 128);  SL_AT(sl_partition, high_watermark, 256);
SL_AT(sl_partition, wanted_bytes, 384);  SL_AT(sl_partition, dir, 512);  SL_AT(sl_partition, storage_state, 768);
SL_AT(sl_partition, file_base_offset, 896);
SL_SIZE(sl_waits, 256);  SL_AT(sl_waits, tethers, 128);
SL_SIZE(sl_row, 256);  SL_AT(sl_row, state, 128);  SL_AT(sl_row, wake, 144);
SL_SIZE(sl_meter, 512);  SL_AT(sl_meter, counts, 128);
SL_SIZE(sl_segment, SL_SEGMENT_HEADER_BYTES);  SL_AT(sl_segment, base, 256);  SL_AT(sl_segment, alloc_units, 384);
SL_AT(sl_segment, hint, 512);  SL_AT(sl_segment, first_append_ns, 640);
SL_SIZE(sl_frame, SL_FRAME_HEADER_BYTES);
SL_SIZE(sl_file_header, SL_FILE_HEADER_BYTES);  SL_SIZE(sl_file_cell, 16);  SL_SIZE(sl_file_cell_footer, 16);  SL_SIZE(sl_file_mark, 24);

/* ---- packed words ------------------------------------------------------------------------------------------------------------------- */

/* cell */
#define SL_CELL_REL_MAX  ((UINT32_C(1) << 22) - 1)
#define SL_CELL_UNIT_MAX ((UINT32_C(1) << 22) - 1)
static inline uint64_t sl_cell_make(uint32_t type, uint32_t count, uint32_t rel, uint32_t unit, uint64_t number) {
    return ((uint64_t)type << 62) | ((uint64_t)count << 48) | ((uint64_t)rel << 26) | ((uint64_t)unit << 4) | (number & 15);
}
static inline uint32_t sl_cell_type(uint64_t w)  { return (uint32_t)(w >> 62); }
static inline uint32_t sl_cell_count(uint64_t w) { return (uint32_t)(w >> 48) & 0x3fff; }
static inline uint32_t sl_cell_rel(uint64_t w)   { return (uint32_t)(w >> 26) & 0x3fffff; }
static inline uint32_t sl_cell_unit(uint64_t w)  { return (uint32_t)(w >> 4) & 0x3fffff; }
static inline uint32_t sl_cell_tag(uint64_t w)   { return (uint32_t)w & 15; } /* low bits of the segment's number: finds a cell of another life */
/* the offset after this cell, relative to the segment's base */
static inline uint32_t sl_cell_end(uint64_t w)   { return sl_cell_rel(w) + sl_cell_count(w); }

/* cur */
#define SL_NUMBER_MASK ((UINT64_C(1) << 40) - 1)
#define SL_CUR_FENCED  (UINT64_C(1) << 40)
static inline uint64_t sl_cur_make(uint32_t epoch, int fenced, uint64_t number) {
    return ((uint64_t)(epoch & 0x7fffff) << 41) | (fenced ? SL_CUR_FENCED : 0) | (number & SL_NUMBER_MASK);
}
static inline uint64_t sl_cur_number(uint64_t c) { return c & SL_NUMBER_MASK; }
static inline uint32_t sl_cur_epoch(uint64_t c)  { return (uint32_t)(c >> 41); }
static inline int      sl_cur_fenced(uint64_t c) { return (c & SL_CUR_FENCED) != 0; }

/* hazard words and pins; tethers */
static inline uint64_t sl_pin_make(uint32_t block, uint64_t number) { return ((uint64_t)block << 40) | (number & SL_NUMBER_MASK); }

/* dir */
static inline uint64_t sl_dir_make(uint32_t epoch, uint64_t number, uint32_t buffer) {
    return ((uint64_t)(epoch & 0xff) << 56) | ((number & 0xffff) << 28) | (buffer & 0xfffffff);
}
static inline uint32_t sl_dir_buffer(uint64_t d) { return (uint32_t)d & 0xfffffff; }
static inline uint32_t sl_dir_number(uint64_t d) { return (uint32_t)(d >> 28) & 0xffff; }
static inline uint32_t sl_dir_epoch(uint64_t d)  { return (uint32_t)(d >> 56); }

/* claim */
static inline uint64_t sl_claim_make(uint32_t phase, uint32_t generation, uint32_t row, uint64_t number) {
    return ((uint64_t)phase << 61) | ((uint64_t)(generation & 0x1ff) << 52) | ((uint64_t)((row + 1) & 0xfff) << 40) | (number & SL_NUMBER_MASK);
}
static inline uint32_t sl_claim_phase(uint64_t w)      { return (uint32_t)(w >> 61); }
static inline uint32_t sl_claim_generation(uint64_t w) { return (uint32_t)(w >> 52) & 0x1ff; }
static inline uint32_t sl_claim_row(uint64_t w)        { return ((uint32_t)(w >> 40) & 0xfff) - 1; } /* UINT32_MAX: none */
static inline uint64_t sl_claim_number(uint64_t w)     { return w & SL_NUMBER_MASK; }
static inline uint64_t sl_claim_as(uint64_t w, uint32_t phase) { return (w & ~(UINT64_C(7) << 61)) | ((uint64_t)phase << 61); }

/* words "@" and base */
#define SL_OFFSET_MASK ((UINT64_C(1) << 48) - 1)
static inline uint64_t sl_word_make(uint32_t tag, uint64_t offset) { return ((uint64_t)(tag & 0xffff) << 48) | (offset & SL_OFFSET_MASK); }
static inline uint64_t sl_word_offset(uint64_t w) { return w & SL_OFFSET_MASK; }
static inline uint32_t sl_word_tag(uint64_t w)    { return (uint32_t)(w >> 48); }
#define SL_BASE_UNSET SL_OFFSET_MASK

static inline uint64_t *sl_segment_cells(sl_segment *s) { return (uint64_t *)((uint8_t *)s + SL_SEGMENT_HEADER_BYTES); }
#endif
