/* Between the file*.c: what writing, reading and recovering a segment file share. The layout itself stands in format.h, what the files promise in file.c. */
#ifndef SHMLOG_FILE_H
#define SHMLOG_FILE_H
#include "core.h"

#define SL_NAME_BYTES 44
#define SL_FIRST_FRAME SL_FILE_HEADER_BYTES
#define SL_NO_TIMESTAMP INT64_MIN
#define SL_FOOTER_POSITION (SL_CELLS_PER_PAGE * sizeof(sl_file_cell))

static inline uint64_t sl_align64(uint64_t n) { return (n + 63) & ~UINT64_C(63); }
static inline uint64_t sl_cell_position(uint64_t index) {
    return SL_CELL_PAGE_BYTES + index / SL_CELLS_PER_PAGE * SL_CELL_PAGE_BYTES + index % SL_CELLS_PER_PAGE * sizeof(sl_file_cell);
}

/* System calls as codes: of an open, a name or a directory; of reads and writes of open files, where every failure but a full disk is the disk's. */
int sl_code_of_errno(void);
int sl_io_code(void);
int64_t sl_read_at(int fd, void *to, uint64_t bytes, uint64_t position);   /* bytes read, fewer only at the end of the file; or SL_E_IO */
int sl_write_at(int fd, const void *from, uint64_t bytes, uint64_t position);
int sl_cut_at(int fd, uint64_t bytes);
int sl_remove_below(int dir_fd, const char *name);
int sl_size_of(int fd, uint64_t *bytes);
void sl_close_fd(int *fd);
int sl_open_directory(const char *dir);
int sl_open_below(int dir_fd, const char *name, int flags);

void sl_file_make_name(char out[SL_NAME_BYTES], uint64_t base_offset, uint32_t leader_epoch, const char *suffix);
int sl_file_parse_name(const char *name, uint64_t *base_offset, uint32_t *leader_epoch);   /* 1: it is the name of a .log, and what it says */
void sl_file_seal_header(sl_file_header *h);
/* SL_OK, SL_E_HALFMADE (the file is shorter than a header, or no longer and wrong: its maker died), SL_E_VERSION, SL_E_DAMAGED, SL_E_IO. */
int sl_file_read_header(int fd, uint64_t magic, uint64_t base_offset, uint32_t leader_epoch, sl_file_header *h);

uint64_t sl_cells_in(uint64_t file_bytes);
void sl_footer_make(sl_file_cell_footer *f, uint32_t crc_of_cells, int64_t max_timestamp_ns);
int sl_footer_ok(const uint8_t *page, sl_file_cell_footer *f);
void sl_mark_make(sl_file_mark *m, uint64_t log_bytes, uint64_t end_offset, uint64_t cells);
int sl_covers_itself(const uint8_t *frame);   /* whether a (checked) frame's own CRCs cover all of it, so that it needs no cell as a witness */
sl_file_cell sl_cell_of_frame(const uint8_t *frame, uint32_t frame_bytes, uint64_t rel, uint64_t position);
/* Whether a .cells with this (right) header was made for the .log with that one: all but magic and CRC is the same, the time of making too. */
int sl_cells_belong(const sl_file_header *cells_header, const sl_file_header *log_header);
int sl_cells_header_write(int fd, const sl_file_header *log_header);   /* the whole header page, without a mark */

/* A window over a file that is read forward in large pieces. */
typedef struct sl_scan {
    int fd;
    uint64_t size;                    /* of the file, as of now */
    uint8_t *buffer;
    uint64_t capacity, begin, have;   /* the window: `have` bytes from `begin` */
} sl_scan;
void sl_scan_close(sl_scan *s);
/* Makes `bytes` bytes at `position` (a multiple of 64, so frames are aligned in the window too) readable. Returns how many there are. */
int64_t sl_scan_read(sl_scan *s, uint64_t position, uint64_t bytes, const uint8_t **out);
/* A whole checked frame. SL_OK, SL_E_CORRUPT (also: does not fit in the file), SL_E_IO, SL_E_NOMEM. */
int sl_scan_frame(sl_scan *s, uint64_t position, const uint8_t **frame, uint32_t *frame_bytes);

/* Cells as they stand in the file, a page at a time, nothing believed. */
typedef struct sl_cell_window {
    int fd;
    uint64_t count;                   /* that the file's size allows */
    uint64_t page;                    /* of the buffer; UINT64_MAX: none */
    uint64_t have;                    /* bytes of it */
    uint8_t bytes[SL_CELL_PAGE_BYTES];
} sl_cell_window;
int sl_window_page(sl_cell_window *w, uint64_t page);
/* 1 and the cell, 0 there is none, or a code. An empty one (zeros that a power cut left) is none. */
int sl_window_cell(sl_cell_window *w, uint64_t index, sl_file_cell *out);
int sl_window_footer(sl_cell_window *w, uint64_t page, sl_file_cell_footer *out);   /* 1 whole and right, 0 not, or a code */

struct sl_file_reader {
    sl_scan log;
    sl_cell_window cells;
    sl_file_header header;
    int page_proved;                  /* the window's page is whole and its footer right */
    uint64_t page_limit_rel;          /* what was readable when it was loaded: beyond, the writer may have cut back and written anew */
    /* Where the .cells is missing or damaged: the same table made from the .log, as far as it was needed. */
    int walking;
    sl_file_cell *walked;
    uint64_t walked_count, walked_capacity, walked_position, walked_rel;
};
static inline int compacted(const sl_file_reader *r) { return (r->header.flags & SL_FILE_COMPACTED) != 0; }
int sl_file_reader_count(sl_file_reader *r);   /* sets cells.count to how many cells the file has now */
#endif
