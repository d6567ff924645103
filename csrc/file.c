/* The log of a partition on disk: segment files of frames in log order, each with a table of cells beside it.
 *
 *   <base offset, 20 digits>-<leader epoch>.log     sl_file_header, then frames, each at a multiple of 64
 *   <base offset, 20 digits>-<leader epoch>.cells   a header page with the mark of the last sync, then pages of 255 cells and a footer
 *
 * The .log is the truth; the .cells can be made again from it (but for compacted files, whose offsets have gaps) and serves look-ups, recovery
 * without a scan, and the CRC of what the broker wrote where a producer wrote none. One process writes a directory at a time (its lock is
 * the caller's business); readers may follow a file that is being written, up to an end offset that the writer published after
 * sl_file_append() returned. A leader change starts a new file with a higher epoch in its name: the higher epoch wins from its base on.
 *
 * Order of writes: frames, then their cells; on failure both are cut back, so a cell never names what is not in the .log unless the machine
 * died. A sync writes the mark between the fdatasync of the .log and that of the .cells: below the mark recovery believes, above it
 * every frame must prove itself. Making a file syncs nothing; its first sync also syncs its names. Damage below the mark is kept in place, a hole that readers
 * report, because what follows it was promised. Nothing is mapped: a bad sector is a code, not a SIGBUS.
 *
 * A frame that proves itself (SL_FF_CRC_ALL: all payloads up to SL_FRAME_CRC_MAX_BYTES) is durable with the .log; one that does not needs its cell on disk
 * too. So a sync that somebody waits for (sl_file_sync_log) is one fdatasync where there are only such frames, and the table follows within a second: a
 * power cut before it did costs recovery a scan of that second, and the mark as a witness of it.
 *
 * Here: writing. Looking up and reading is file_read.c, recovery and verification file_recover.c, what they share file.h and file_io.c. */
#define _GNU_SOURCE
#include "file.h"

#include "atomic.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define WRITE_PIECES 1024            /* IOV_MAX on Linux */
#define CELLS_OUT_BYTES 16384

/* ---- writing --------------------------------------------------------------------------------------------------------------------------- */

struct sl_file {
    int log_fd, cells_fd;             /* -1 both while it rests: the writer's, between appends */
    char *dir;
    sl_file_header header;            /* of the .log; finds a file of that name that is another */
    uint64_t synced_bytes;            /* log_bytes when the last fdatasync of the .log returned 0; 0 none has. The syncing thread's, as are the next two */
    uint64_t tabled_bytes;            /* ... when that of the .cells with the mark did */
    int named;                        /* its names were synced */
    uint64_t base_offset;
    uint32_t leader_epoch;
    int failed;                       /* a sync or a cut failed: nobody knows what is on disk any more */
    /* what appends have completed: the writer changes them together under `state`, for the syncing thread */
    uint64_t log_bytes, end_offset, cells;
    uint64_t witnessed_bytes;         /* behind the last frame whose only witness is its cell: the table must be on disk up to here */
    /* the writer's alone */
    uint64_t cells_written;
    int64_t max_timestamp_ns;
    uint32_t page_crc;                /* of the cells of the last page so far */
    pthread_mutex_t state;
    pthread_mutex_t sync;             /* one sync at a time: the mark never goes back */
    struct iovec iov[WRITE_PIECES];
    uint8_t cells_out[CELLS_OUT_BYTES];
};

static void free_file(sl_file *file) {
    sl_close_fd(&file->log_fd);
    sl_close_fd(&file->cells_fd);
    pthread_mutex_destroy(&file->state);
    pthread_mutex_destroy(&file->sync);
    free(file->dir);
    free(file);
}

int sl_file_create(const char *dir, uint64_t base_offset, uint32_t leader_epoch, uint32_t partition, const uint8_t topic_id[16],
                   const uint8_t cluster_id[16], sl_file **out) {
    *out = NULL;
    if (base_offset > SL_OFFSET_MASK) return SL_E_INVALID;
    char log_name[SL_NAME_BYTES], cells_name[SL_NAME_BYTES];
    sl_file_make_name(log_name, base_offset, leader_epoch, "log");
    sl_file_make_name(cells_name, base_offset, leader_epoch, "cells");
    sl_file *file = calloc(1, sizeof *file);
    if (!file) return SL_E_NOMEM;
    file->log_fd = file->cells_fd = -1;
    file->base_offset = file->end_offset = base_offset;
    file->leader_epoch = leader_epoch;
    file->log_bytes = SL_FIRST_FRAME;
    file->max_timestamp_ns = SL_NO_TIMESTAMP;
    pthread_mutex_init(&file->state, NULL);
    pthread_mutex_init(&file->sync, NULL);
    if (!(file->dir = strdup(dir))) {
        free_file(file);
        return SL_E_NOMEM;
    }

    sl_file_header h = {.magic = SL_FILE_MAGIC, .disk_version = SL_DISK_VERSION, .partition = partition, .leader_epoch = leader_epoch,
                        .base_offset = base_offset, .made_ns = sl_wall_ns()};
    memcpy(h.topic_id, topic_id, 16);
    memcpy(h.cluster_id, cluster_id, 16);
    sl_file_seal_header(&h);
    file->header = h;

    int made_log = 0, made_cells = 0;
    int dir_fd = sl_open_directory(dir), code;
    if (dir_fd < 0) {
        free_file(file);
        return dir_fd;
    }
    /* The .log's name is the claim; whatever .cells somebody left under it is ours to overwrite. */
    code = file->log_fd = sl_open_below(dir_fd, log_name, O_RDWR | O_CREAT | O_EXCL);
    if (code < 0) goto failed;
    made_log = 1;
    SL_FAILPOINT(file_create_log);
    code = file->cells_fd = sl_open_below(dir_fd, cells_name, O_RDWR | O_CREAT | O_TRUNC);
    if (code < 0) goto failed;
    made_cells = 1;
    SL_FAILPOINT(file_create_cells);
    if ((code = sl_cells_header_write(file->cells_fd, &h)) != SL_OK) goto failed;
    if ((code = sl_write_at(file->log_fd, &h, sizeof h, 0)) != SL_OK) goto failed;
    SL_FAILPOINT(file_create_headers);
    /* No sync: this is the spill thread, and nothing in the file is durable before the first sl_file_sync(). */
    close(dir_fd);
    *out = file;
    return SL_OK;

failed:
    if (made_log) sl_remove_below(dir_fd, log_name);
    if (made_cells) sl_remove_below(dir_fd, cells_name);
    close(dir_fd);
    free_file(file);
    return code;
}

/* Pieces must follow each other and the file as this process counts: a caller's mistake is refused before a byte is written. */
static int check_pieces(const sl_file *file, const sl_file_piece *pieces, size_t n, uint64_t end_offset) {
    uint64_t rel = file->end_offset - file->base_offset, position = file->log_bytes;
    for (size_t i = 0; i < n; i++) {
        const sl_file_piece *p = &pieces[i];
        if (!p->frame || p->frame_bytes < SL_FRAME_HEADER_BYTES || p->frame_bytes > SL_SEGMENT_MAX_BYTES || p->rel != rel) return SL_E_INVALID;
        if (p->type != SL_CELL_DATA && p->type != SL_CELL_CONTROL) return SL_E_INVALID;
        rel += p->count ? p->count : sl_frame_rows(p->frame);
        position += sl_align64(p->frame_bytes);
        if (rel > UINT32_MAX || position / SL_UNIT_BYTES > UINT32_MAX) return SL_E_TOO_BIG;
    }
    return file->base_offset + rel == end_offset ? SL_OK : SL_E_INVALID;
}

/* Writes the pieces one behind the other; consumes iov. */
static int write_pieces(int fd, struct iovec *iov, size_t n, uint64_t position) {
    while (n) {
        ssize_t done = pwritev(fd, iov, n > WRITE_PIECES ? WRITE_PIECES : (int)n, (off_t)position);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return done ? sl_io_code() : SL_E_IO;
        position += (uint64_t)done;
        SL_FAILPOINT(file_step);
        size_t left = (size_t)done;
        while (n && left >= iov->iov_len) {
            left -= iov->iov_len;
            iov++;
            n--;
        }
        if (n) {
            iov->iov_base = (uint8_t *)iov->iov_base + left;
            iov->iov_len -= left;
        }
    }
    return SL_OK;
}

static int write_frames(sl_file *file, const sl_file_piece *pieces, size_t n, uint64_t *position) {
    static const uint8_t zeros[SL_UNIT_BYTES];
    size_t used = 0;
    uint64_t bytes = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t padding = sl_align64(pieces[i].frame_bytes) - pieces[i].frame_bytes;
        struct iovec *last = used ? &file->iov[used - 1] : NULL;
        if (last && (const uint8_t *)last->iov_base + last->iov_len == pieces[i].frame) last->iov_len += pieces[i].frame_bytes;
        else file->iov[used++] = (struct iovec){(void *)(uintptr_t)pieces[i].frame, pieces[i].frame_bytes};
        bytes += pieces[i].frame_bytes + padding;
        /* An aligned frame with the next at its place behind it is a run of the caller's, padding included. */
        if (padding && i + 1 < n && ((uintptr_t)pieces[i].frame & 63) == 0 && pieces[i + 1].frame == pieces[i].frame + pieces[i].frame_bytes + padding)
            file->iov[used - 1].iov_len += padding;
        else if (padding) file->iov[used++] = (struct iovec){(void *)(uintptr_t)zeros, padding};
        if (used + 2 > WRITE_PIECES || i + 1 == n) {
            int code = write_pieces(file->log_fd, file->iov, used, *position);
            if (code != SL_OK) return code;
            *position += bytes;
            used = 0;
            bytes = 0;
            SL_FAILPOINT(file_append_frames);
        }
    }
    return SL_OK;
}

/* Cells and footers are one contiguous stream of 16-byte entries. */
static int write_cells(sl_file *file, const sl_file_piece *pieces, size_t n) {
    uint64_t position = sl_cell_position(file->cells), unit = file->log_bytes / SL_UNIT_BYTES;
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        sl_file_cell cell = {.rel = pieces[i].rel, .unit = (uint32_t)unit, .crc32c = pieces[i].crc32c, .count = pieces[i].count,
                             .type = pieces[i].type, .flags = pieces[i].flags};
        int64_t ns = sl_frame_max_timestamp_ns(pieces[i].frame);
        if (ns > file->max_timestamp_ns) file->max_timestamp_ns = ns;
        file->page_crc = sl_crc32c_copy(file->page_crc, file->cells_out + used, &cell, sizeof cell);
        used += sizeof cell;
        unit += sl_align64(pieces[i].frame_bytes) / SL_UNIT_BYTES;
        if (++file->cells_written % SL_CELLS_PER_PAGE == 0) {
            sl_file_cell_footer footer;
            sl_footer_make(&footer, file->page_crc, file->max_timestamp_ns);
            memcpy(file->cells_out + used, &footer, sizeof footer);
            used += sizeof footer;
            file->page_crc = 0;
        }
        if (used + 2 * sizeof cell > CELLS_OUT_BYTES || i + 1 == n) {
            int code = sl_write_at(file->cells_fd, file->cells_out, used, position);
            if (code != SL_OK) return code;
            position += used;
            used = 0;
            SL_FAILPOINT(file_append_cells);
        }
    }
    return SL_OK;
}

int sl_file_rest(sl_file *file) {
    if (file->log_fd < 0) return SL_OK;
    if (file->tabled_bytes != file->log_bytes || sl_load_relaxed(&file->failed)) return SL_E_AGAIN; /* a new descriptor may not be told of a failed write */
    sl_close_fd(&file->log_fd);
    sl_close_fd(&file->cells_fd);
    return SL_OK;
}

int sl_file_resting(sl_file *file) { return file->log_fd < 0; }

int sl_file_wake(sl_file *file) {
    if (file->log_fd >= 0) return SL_OK;
    char log_name[SL_NAME_BYTES], cells_name[SL_NAME_BYTES];
    sl_file_header h;
    uint64_t log_bytes, cells_bytes;
    sl_file_make_name(log_name, file->base_offset, file->leader_epoch, "log");
    sl_file_make_name(cells_name, file->base_offset, file->leader_epoch, "cells");
    int dir_fd = sl_open_directory(file->dir), code = dir_fd;
    if (code >= 0) code = file->log_fd = sl_open_below(dir_fd, log_name, O_RDWR);
    if (code >= 0) code = file->cells_fd = sl_open_below(dir_fd, cells_name, O_RDWR);
    if (dir_fd >= 0) close(dir_fd);
    if (code >= 0) code = sl_file_read_header(file->log_fd, SL_FILE_MAGIC, file->base_offset, file->leader_epoch, &h);
    if (code == SL_OK) code = sl_size_of(file->log_fd, &log_bytes);
    if (code == SL_OK) code = sl_size_of(file->cells_fd, &cells_bytes);
    if (code == SL_OK && (memcmp(&h, &file->header, sizeof h) != 0 || log_bytes != file->log_bytes || cells_bytes != sl_cell_position(file->cells)))
        code = SL_E_DAMAGED;
    if (code == SL_OK) return SL_OK;
    sl_close_fd(&file->log_fd);
    sl_close_fd(&file->cells_fd);
    if (code == SL_E_SYS || code == SL_E_NOMEM) return code;
    sl_store_relaxed(&file->failed, 1); /* somebody removed, cut or replaced it */
    return SL_E_IO;
}

int sl_file_append(sl_file *file, const sl_file_piece *pieces, size_t n, uint64_t end_offset) {
    if (sl_load_relaxed(&file->failed)) return SL_E_IO;
    int code = check_pieces(file, pieces, n, end_offset);
    if (code != SL_OK || n == 0) return code;
    if ((code = sl_file_wake(file)) != SL_OK) return code;
    uint64_t position = file->log_bytes;
    int64_t max_timestamp_ns = file->max_timestamp_ns;
    uint32_t page_crc = file->page_crc;
    code = write_frames(file, pieces, n, &position);
    if (code == SL_OK) code = write_cells(file, pieces, n);
    if (code != SL_OK) {
        int saved = sl_last_errno();
        file->cells_written = file->cells;
        file->max_timestamp_ns = max_timestamp_ns;
        file->page_crc = page_crc;
        /* Cells first, so that none names a frame that is gone. */
        if (sl_cut_at(file->cells_fd, sl_cell_position(file->cells)) != SL_OK || sl_cut_at(file->log_fd, file->log_bytes) != SL_OK) {
            sl_store_relaxed(&file->failed, 1);
            code = SL_E_IO;
        }
        sl_set_errno(saved);
        return code;
    }
    int witnessed = 0;
    for (size_t i = 0; i < n && !witnessed; i++) witnessed = !sl_covers_itself(pieces[i].frame);
    pthread_mutex_lock(&file->state);
    sl_store_relaxed(&file->log_bytes, position);
    sl_store_relaxed(&file->end_offset, end_offset);
    file->cells = file->cells_written;
    if (witnessed) file->witnessed_bytes = position;
    pthread_mutex_unlock(&file->state);
    return SL_OK;
}

/* The names of both files, and of their directory: without them nothing in it is durable. */
static int sync_names(sl_file *file) {
    int dir_fd = sl_open_directory(file->dir);
    if (dir_fd < 0) return dir_fd;
    int parent_fd = openat(dir_fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int code = parent_fd >= 0 && fsync(dir_fd) == 0 && fsync(parent_fd) == 0 ? SL_OK : sl_code_of_errno();
    sl_close_fd(&parent_fd);
    close(dir_fd);
    return code;
}

/* whole: the table too, whether a frame needs it or not. */
static int sync_file(sl_file *file, int whole) {
    sl_file_mark mark;
    int code = SL_OK;
    pthread_mutex_lock(&file->sync);
    if (sl_load_relaxed(&file->failed)) {
        pthread_mutex_unlock(&file->sync);
        return SL_E_IO;
    }
    pthread_mutex_lock(&file->state);
    sl_mark_make(&mark, file->log_bytes, file->end_offset, file->cells);
    int table = whole || !file->named || file->witnessed_bytes > file->tabled_bytes;
    pthread_mutex_unlock(&file->state);
    if (file->synced_bytes == mark.log_bytes && (!table || file->tabled_bytes == mark.log_bytes)) { /* it may be resting */
        pthread_mutex_unlock(&file->sync);
        return SL_OK;
    }
    if (!file->named && (code = sync_names(file)) == SL_E_SYS) { /* no descriptor, say: nothing was asked of the data yet, try again */
        pthread_mutex_unlock(&file->sync);
        return code;
    }
    file->named = code == SL_OK;
    SL_FAILPOINT(file_sync_names);
    if (code == SL_OK && file->synced_bytes != mark.log_bytes && fdatasync(file->log_fd) != 0) code = sl_io_code();
    SL_FAILPOINT(file_sync_log);
    if (code == SL_OK) code = sl_write_at(file->cells_fd, &mark, sizeof mark, SL_FILE_MARK_POSITION);
    SL_FAILPOINT(file_sync_mark);
    if (code == SL_OK && table && fdatasync(file->cells_fd) != 0) code = sl_io_code();
    if (code != SL_OK) {
        /* The kernel has dropped or marked clean the pages it could not write: a second fdatasync would say 0 and mean nothing. */
        sl_store_relaxed(&file->failed, 1);
        code = SL_E_IO;
    } else {
        file->synced_bytes = mark.log_bytes;
        if (table) file->tabled_bytes = mark.log_bytes;
    }
    pthread_mutex_unlock(&file->sync);
    return code;
}

int sl_file_sync(sl_file *file) { return sync_file(file, 1); }
int sl_file_sync_log(sl_file *file) { return sync_file(file, 0); }

int sl_file_table_behind(sl_file *file) {
    pthread_mutex_lock(&file->sync);
    int behind = file->tabled_bytes < file->synced_bytes;
    pthread_mutex_unlock(&file->sync);
    return behind;
}

int sl_file_install(sl_file *file, const char *from_dir, const char *to_dir) {
    char name[SL_NAME_BYTES];
    int from = sl_open_directory(from_dir);
    if (from < 0) return from;
    int to = sl_open_directory(to_dir), code = to < 0 ? to : SL_OK;
    /* Until its own table follows the new .log stands beside the old one's, which is known by its header not to belong. The other way round the new
     * table, with its mark, would vouch for the bytes of a file whose sync failed. */
    for (int i = 0; code == SL_OK && i < 2; i++) {
        sl_file_make_name(name, file->base_offset, file->leader_epoch, i ? "cells" : "log");
        if (renameat(from, name, to, name) != 0) code = sl_io_code();
        SL_FAILPOINT(file_install_renamed);
        SL_FAILPOINT(file_step);
        if (code == SL_OK && fsync(to) != 0) code = sl_io_code();
        SL_FAILPOINT(file_install_synced);
    }
    char *dir = code == SL_OK ? strdup(to_dir) : NULL;
    if (code == SL_OK && !dir) code = SL_E_NOMEM;
    if (code == SL_OK) {
        free(file->dir);
        file->dir = dir;
    }
    if (to >= 0) close(to);
    close(from);
    return code;
}

uint64_t sl_file_bytes(sl_file *file) { return sl_load_relaxed(&file->log_bytes); }
uint64_t sl_file_end_offset(sl_file *file) { return sl_load_relaxed(&file->end_offset); }
uint64_t sl_file_base_offset(sl_file *file) { return file->base_offset; }

int sl_file_close(sl_file *file) {
    if (!file) return SL_OK;
    free_file(file);
    return SL_OK;
}
