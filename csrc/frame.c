/* Frames: how one record, n equal rows or a Kafka record batch stands in memory and in files. Pure functions over bytes.
 *
 *   header (28) | extensions in the order of their flags | key | headers | padding | value
 *
 * The value ends the frame, so value_position = frame_bytes - value_bytes. Values of SL_FRAME_ALIGN_MIN_BYTES or more, array rows and loans
 * start at a multiple of 64; only then is there padding, zeros. 28 bytes of header let a 100-byte value take two lines.
 *
 * Nothing here believes what it reads: parse() copies header and extensions once and derives every position from that copy, in 64 bits, so that
 * views stay inside `limit` even while a hostile process changes the bytes. A batch is bounded by the value that holds it, each of its
 * records by the batch, each field by its record. */
#include "atomic.h"
#include "core.h"

#include <string.h>

#define KNOWN_FLAGS (SL_FF_KIND_MASK | SL_FF_CRC_ALL | SL_FF_HAS_PRODUCER | SL_FF_HAS_ROWS | SL_FF_HAS_HEADERS | SL_FF_HAS_DTYPE \
                     | SL_FF_TRANSACTIONAL | SL_FF_LOG_APPEND_TIME | SL_FF_LOST)
#define RECORD_FLAGS (SL_FF_TRANSACTIONAL | SL_FF_LOG_APPEND_TIME | SL_FF_LOST)   /* those a caller may set */
#define EXTENSIONS (SL_FF_HAS_PRODUCER | SL_FF_HAS_ROWS | SL_FF_HAS_HEADERS | SL_FF_HAS_DTYPE)
#define PRODUCER_BYTES 16
#define ROWS_BYTES 8
#define HEADERS_BYTES 4
#define DTYPE_MAX_BYTES (65532 - PRODUCER_BYTES - ROWS_BYTES - HEADERS_BYTES)

static inline uint16_t load16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t load32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t load64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline uint64_t align64(uint64_t n) { return (n + 63) & ~UINT64_C(63); }

/* ---- record batch v2: the fixed part --------------------------------------------------------------------------------------------------- */

/* Big-endian: base offset i64, length i32 (of what follows), leader epoch i32, magic i8, crc u32 (of what follows), attributes i16,
 * last offset delta i32, base timestamp i64, max timestamp i64, producer id i64, producer epoch i16, base sequence i32, records i32 */
#define BATCH_HEADER_BYTES 61
#define BATCH_LENGTH 8
#define BATCH_LEADER_EPOCH 12
#define BATCH_MAGIC 16
#define BATCH_CRC 17
#define BATCH_ATTRIBUTES 21
#define BATCH_LAST_DELTA 23
#define BATCH_BASE_TIMESTAMP 27
#define BATCH_MAX_TIMESTAMP 35
#define BATCH_PRODUCER_ID 43
#define BATCH_PRODUCER_EPOCH 51
#define BATCH_SEQUENCE 53
#define BATCH_RECORDS 57
#define ATTRIBUTE_COMPRESSION 7
#define ATTRIBUTE_LOG_APPEND_TIME 8
#define ATTRIBUTE_TRANSACTIONAL 16
#define ATTRIBUTE_CONTROL 32

typedef struct batch_header {
    int64_t base_timestamp_ms, max_timestamp_ms, producer_id;
    uint32_t crc;
    int32_t last_delta, sequence, records;
    int16_t attributes, producer_epoch;
} batch_header;

static inline uint16_t load_big16(const uint8_t *p) { return __builtin_bswap16(load16(p)); }
static inline uint32_t load_big32(const uint8_t *p) { return __builtin_bswap32(load32(p)); }
static inline uint64_t load_big64(const uint8_t *p) { return __builtin_bswap64(load64(p)); }
static inline void store_big16(uint8_t *p, uint16_t v) { v = __builtin_bswap16(v); memcpy(p, &v, 2); }
static inline void store_big32(uint8_t *p, uint32_t v) { v = __builtin_bswap32(v); memcpy(p, &v, 4); }
static inline void store_big64(uint8_t *p, uint64_t v) { v = __builtin_bswap64(v); memcpy(p, &v, 8); }

/* The batch must be exactly `bytes` long and span exactly `rows` offsets; it may hold fewer records (Kafka compacts inside batches). */
static int parse_batch(const uint8_t *batch, uint64_t bytes, uint32_t rows, batch_header *h) {
    if (bytes < BATCH_HEADER_BYTES || bytes > INT32_MAX) return SL_E_CORRUPT;
    if (load_big32(batch + BATCH_LENGTH) != bytes - 12 || batch[BATCH_MAGIC] != 2) return SL_E_CORRUPT;
    h->crc = load_big32(batch + BATCH_CRC);
    h->attributes = (int16_t)load_big16(batch + BATCH_ATTRIBUTES);
    h->last_delta = (int32_t)load_big32(batch + BATCH_LAST_DELTA);
    h->base_timestamp_ms = (int64_t)load_big64(batch + BATCH_BASE_TIMESTAMP);
    h->max_timestamp_ms = (int64_t)load_big64(batch + BATCH_MAX_TIMESTAMP);
    h->producer_id = (int64_t)load_big64(batch + BATCH_PRODUCER_ID);
    h->producer_epoch = (int16_t)load_big16(batch + BATCH_PRODUCER_EPOCH);
    h->sequence = (int32_t)load_big32(batch + BATCH_SEQUENCE);
    h->records = (int32_t)load_big32(batch + BATCH_RECORDS);
    if (h->last_delta < 0 || (uint32_t)h->last_delta != rows - 1) return SL_E_CORRUPT;
    if (h->records < 0 || (uint32_t)h->records > rows) return SL_E_CORRUPT;
    return SL_OK;
}

/* ms to ns; -1 stays "none", and what a hostile batch claims stops at the ends of the range. */
static int64_t ms_to_ns(int64_t ms) {
    int64_t ns;
    if (ms == -1) return -1;
    if (__builtin_mul_overflow(ms, INT64_C(1000000), &ns)) return ms < 0 ? INT64_MIN : INT64_MAX;
    return ns;
}
static int64_t ns_to_ms(int64_t ns) {
    int64_t ms = ns / 1000000;
    return ns % 1000000 < 0 ? ms - 1 : ms; /* towards the past, as Record.timestamp does */
}

/* ---- headers in our encoding ----------------------------------------------------------------------------------------------------------- */

/* u16 count, then (u16 bytes, name)(u32 bytes or SL_NULL_BYTES, value) each. */
static int headers_ok(const uint8_t *p, uint64_t bytes) {
    if (bytes < 2) return 0;
    uint32_t count = load16(p);
    uint64_t at = 2;
    while (count--) {
        if (bytes - at < 2) return 0;
        uint32_t name = load16(p + at);
        at += 2;
        if (bytes - at < (uint64_t)name + 4) return 0;
        at += name;
        uint32_t value = load32(p + at);
        at += 4;
        if (value == SL_NULL_BYTES) continue;
        if (bytes - at < value) return 0;
        at += value;
    }
    return at == bytes;
}

/* ---- parse ----------------------------------------------------------------------------------------------------------------------------- */

typedef struct parts {
    int64_t timestamp_ns, producer_id;
    uint32_t frame_bytes, crc, key_bytes, value_bytes, flags, extension_bytes;
    uint32_t rows, row_bytes, headers_bytes, dtype_bytes;
    uint32_t key_position, headers_position, value_position;
    int32_t sequence, producer_epoch;
} parts;

static int parse(const uint8_t *frame, uint64_t limit, parts *p) {
    sl_frame h;
    if (limit < SL_FRAME_HEADER_BYTES) return SL_E_CORRUPT;
    memcpy(&h, frame, sizeof h);
    if (h.frame_bytes > limit || h.frame_bytes > SL_SEGMENT_MAX_BYTES) return SL_E_CORRUPT;
    if (h.flags & ~(uint32_t)KNOWN_FLAGS) return SL_E_CORRUPT;
    uint64_t key = h.key_bytes == SL_NULL_BYTES ? 0 : h.key_bytes;
    uint64_t value = h.value_bytes == SL_NULL_BYTES ? 0 : h.value_bytes;
    uint64_t front = SL_FRAME_HEADER_BYTES + (uint64_t)h.extension_bytes;
    if (front > h.frame_bytes) return SL_E_CORRUPT;
    p->frame_bytes = h.frame_bytes;
    p->crc = h.crc32c;
    p->key_bytes = h.key_bytes;
    p->value_bytes = h.value_bytes;
    p->flags = h.flags;
    p->extension_bytes = h.extension_bytes;
    p->timestamp_ns = (int64_t)((uint64_t)h.timestamp_ns_high << 32 | h.timestamp_ns_low);
    p->rows = 1;
    p->row_bytes = p->headers_bytes = p->dtype_bytes = 0;
    p->producer_id = -1;
    p->sequence = p->producer_epoch = -1;
    if (h.flags & EXTENSIONS || h.extension_bytes) {
        const uint8_t *e = frame + SL_FRAME_HEADER_BYTES;
        uint32_t left = h.extension_bytes;
        if (left & 3) return SL_E_CORRUPT;
        if (h.flags & SL_FF_HAS_PRODUCER) {
            if (left < PRODUCER_BYTES) return SL_E_CORRUPT;
            p->producer_id = (int64_t)load64(e);
            p->sequence = (int32_t)load32(e + 8);
            p->producer_epoch = (int32_t)load32(e + 12);
            e += PRODUCER_BYTES;
            left -= PRODUCER_BYTES;
        }
        if (h.flags & SL_FF_HAS_ROWS) {
            if (left < ROWS_BYTES) return SL_E_CORRUPT;
            p->rows = load32(e);
            p->row_bytes = load32(e + 4);
            if (p->rows == 0 || p->rows > INT32_MAX) return SL_E_CORRUPT;
            e += ROWS_BYTES;
            left -= ROWS_BYTES;
        }
        if (h.flags & SL_FF_HAS_HEADERS) {
            if (left < HEADERS_BYTES) return SL_E_CORRUPT;
            p->headers_bytes = load32(e);
            left -= HEADERS_BYTES;
        }
        if (h.flags & SL_FF_HAS_DTYPE ? left == 0 : left != 0) return SL_E_CORRUPT;
        p->dtype_bytes = left;
    }
    uint64_t prefix = front + key + p->headers_bytes; /* below 2^34: no overflow */
    if (prefix + value > h.frame_bytes) return SL_E_CORRUPT;
    uint64_t value_position = h.frame_bytes - value;
    if (value_position != prefix && value_position != align64(prefix)) return SL_E_CORRUPT;
    p->key_position = (uint32_t)front;
    p->headers_position = (uint32_t)(front + key);
    p->value_position = (uint32_t)value_position;

    uint32_t kind = h.flags & SL_FF_KIND_MASK;
    int has_rows = (h.flags & SL_FF_HAS_ROWS) != 0;
    if (has_rows != (kind != SL_FF_RECORD)) return SL_E_CORRUPT;
    if (value >= SL_FRAME_ALIGN_MIN_BYTES && (value_position & 63)) return SL_E_CORRUPT;
    if (kind == SL_FF_ARRAY) {
        if (h.key_bytes != SL_NULL_BYTES || h.value_bytes == SL_NULL_BYTES || (value_position & 63)) return SL_E_CORRUPT;
        if ((uint64_t)p->rows * p->row_bytes != value) return SL_E_CORRUPT;
    } else if (kind == SL_FF_BATCH) {
        if (h.key_bytes != SL_NULL_BYTES || h.value_bytes == SL_NULL_BYTES || p->headers_bytes) return SL_E_CORRUPT;
    }
    return SL_OK;
}

int sl_frame_check(const uint8_t *frame, uint64_t limit, int verify_crc) {
    parts p;
    batch_header batch;
    if (parse(frame, limit, &p) != SL_OK) return SL_E_CORRUPT;
    uint32_t front = SL_FRAME_HEADER_BYTES + p.extension_bytes;
    int covered = (p.flags & SL_FF_CRC_ALL) != 0;
    if (!covered && p.frame_bytes - front <= SL_FRAME_CRC_MAX_BYTES) return SL_E_CORRUPT;
    if (p.headers_bytes ? !headers_ok(frame + p.headers_position, p.headers_bytes) : (p.flags & SL_FF_HAS_HEADERS) != 0) return SL_E_CORRUPT;
    int is_batch = (p.flags & SL_FF_KIND_MASK) == SL_FF_BATCH;
    if (is_batch && parse_batch(frame + p.value_position, p.value_bytes, p.rows, &batch) != SL_OK) return SL_E_CORRUPT;
    if (!verify_crc) return SL_OK;
    if (sl_crc32c(0, frame + 8, (covered ? p.frame_bytes : front) - 8) != p.crc) return SL_E_CORRUPT;
    /* A batch carries a CRC of its own, whatever its size. */
    if (is_batch && !covered
        && sl_crc32c(0, frame + p.value_position + BATCH_ATTRIBUTES, p.value_bytes - BATCH_ATTRIBUTES) != batch.crc) return SL_E_CORRUPT;
    return SL_OK;
}

uint32_t sl_frame_rows(const uint8_t *frame) {
    uint32_t flags = load16(frame + offsetof(sl_frame, flags));
    if (!(flags & SL_FF_HAS_ROWS)) return 1;
    return load32(frame + SL_FRAME_HEADER_BYTES + (flags & SL_FF_HAS_PRODUCER ? PRODUCER_BYTES : 0));
}

int64_t sl_frame_timestamp_ns(const uint8_t *frame) { return (int64_t)load64(frame + offsetof(sl_frame, timestamp_ns_low)); }

int64_t sl_frame_max_timestamp_ns(const uint8_t *frame) {
    int64_t ns = sl_frame_timestamp_ns(frame);
    sl_frame h;
    memcpy(&h, frame, sizeof h);
    if ((h.flags & SL_FF_KIND_MASK) != SL_FF_BATCH || h.flags & SL_FF_LOG_APPEND_TIME) return ns;
    int64_t batch_ns = ms_to_ns((int64_t)load_big64(frame + (h.frame_bytes - h.value_bytes) + BATCH_MAX_TIMESTAMP));
    return batch_ns > ns ? batch_ns : ns;
}

/* ---- build ----------------------------------------------------------------------------------------------------------------------------- */

/* The one place where a frame's layout is decided; both measure and build come here. */
int sl_frame_lay_out(const sl_record *r, int value_there, sl_layout *l) {
    /* Most records: a value of bytes, perhaps a key. What follows says the same of them, in three times as many instructions. */
    if (sl_likely(r->value && r->value_bytes < SL_FRAME_ALIGN_MIN_BYTES && (r->kind | r->flags | r->rows) == 0 && r->producer_id < 0 && !r->headers && !r->dtype)) {
        uint32_t key_bytes = r->key ? r->key_bytes : 0;
        if (sl_likely(key_bytes < SL_FRAME_ALIGN_MIN_BYTES)) {
            uint32_t at = SL_FRAME_HEADER_BYTES + key_bytes;
            *l = (sl_layout){.key_bytes = key_bytes, .value_bytes = r->value_bytes, .value_position = at, .frame_bytes = at + r->value_bytes};
            return SL_OK;
        }
    }
    if (sl_unlikely(r->kind & ~(uint32_t)SL_FF_KIND_MASK || r->flags & ~(uint32_t)(RECORD_FLAGS | SL_RECORD_LOAN))) return SL_E_INVALID;
    uint32_t kind = r->kind == SL_FF_RECORD && r->rows ? SL_FF_ARRAY : r->kind;
    uint32_t flags = kind | (r->flags & RECORD_FLAGS), extension = 0;
    uint64_t key = r->key ? r->key_bytes : 0, headers = r->headers ? r->headers_bytes : 0;
    /* value NULL with a size is a value that is, or will be, written in place */
    int value_null = !r->value && !value_there && (r->value_bytes == 0 || r->value_bytes == SL_NULL_BYTES);
    uint64_t value = value_null ? 0 : r->value_bytes;
    if (r->producer_id >= 0) {
        flags |= SL_FF_HAS_PRODUCER;
        extension += PRODUCER_BYTES;
    }
    if (sl_unlikely(kind != SL_FF_RECORD)) {
        if (r->rows == 0 || r->rows > INT32_MAX) return SL_E_INVALID;
        if (kind != SL_FF_CONTROL && (r->key || value_null)) return SL_E_INVALID;
        if (kind == SL_FF_ARRAY && (uint64_t)r->rows * r->row_bytes != value) return SL_E_INVALID;
        if (kind == SL_FF_BATCH && (headers || value < BATCH_HEADER_BYTES)) return SL_E_INVALID;
        flags |= SL_FF_HAS_ROWS;
        extension += ROWS_BYTES;
    }
    if (headers) {
        if (!headers_ok(r->headers, headers)) return SL_E_INVALID;
        flags |= SL_FF_HAS_HEADERS;
        extension += HEADERS_BYTES;
    }
    if (sl_unlikely(r->dtype && r->dtype_bytes)) {
        if (r->dtype_bytes & 3 || r->dtype_bytes > DTYPE_MAX_BYTES) return SL_E_INVALID;
        flags |= SL_FF_HAS_DTYPE;
        extension += r->dtype_bytes;
    }
    uint64_t position = SL_FRAME_HEADER_BYTES + (uint64_t)extension + key + headers;
    if (value >= SL_FRAME_ALIGN_MIN_BYTES || r->flags & SL_RECORD_LOAN || kind == SL_FF_ARRAY) position = align64(position);
    if (sl_unlikely(position + value > SL_SEGMENT_MAX_BYTES)) return SL_E_TOO_BIG;
    l->flags = flags;
    l->extension_bytes = extension;
    l->key_bytes = (uint32_t)key;
    l->headers_bytes = (uint32_t)headers;
    l->value_bytes = value_null ? SL_NULL_BYTES : (uint32_t)value;
    l->value_position = (uint32_t)position;
    l->frame_bytes = (uint32_t)(position + value);
    return SL_OK;
}

int64_t sl_frame_measure(const sl_record *record, uint32_t *value_position) {
    sl_layout l;
    int code = sl_frame_lay_out(record, 0, &l);
    if (code != SL_OK) return code;
    if (value_position) *value_position = l.value_position;
    return l.frame_bytes;
}

int64_t sl_frame_build(uint8_t *to, const sl_record *record, int64_t timestamp_ns, int copy_value, int crc_always) {
    sl_layout l;
    int code = sl_frame_lay_out(record, !copy_value, &l);
    return sl_unlikely(code != SL_OK) ? code : sl_frame_write(to, record, &l, timestamp_ns, copy_value, crc_always);
}

int64_t sl_frame_write(uint8_t *to, const sl_record *record, const sl_layout *laid_out, int64_t timestamp_ns, int copy_value, int crc_always) {
    const sl_layout l = *laid_out;
    uint32_t value_bytes = l.value_bytes == SL_NULL_BYTES ? 0 : l.value_bytes;
    if (sl_unlikely(copy_value && value_bytes && !record->value)) return SL_E_INVALID;
    if (sl_unlikely((l.flags & SL_FF_KIND_MASK) == SL_FF_BATCH)) {
        batch_header batch;
        if (parse_batch(copy_value ? record->value : to + l.value_position, value_bytes, record->rows, &batch) != SL_OK) return SL_E_INVALID;
    }
    uint32_t front = SL_FRAME_HEADER_BYTES + l.extension_bytes;
    int covered = crc_always || l.frame_bytes - front <= SL_FRAME_CRC_MAX_BYTES;

    /* Written in words of the sizes that the CRC reads them in: a load of two smaller stores would wait for both to leave the store buffer. */
    uint64_t words[3];
    words[0] = (uint64_t)timestamp_ns;
    words[1] = (uint64_t)(l.value_bytes) << 32 | (record->key ? record->key_bytes : SL_NULL_BYTES);
    words[2] = (uint64_t)l.extension_bytes << 16 | l.flags | (covered ? SL_FF_CRC_ALL : 0);
    uint32_t crc = sl_crc32c_copy(0, to + 8, words, 20);
    uint8_t *p = to + SL_FRAME_HEADER_BYTES;
    if (l.extension_bytes) {
        uint8_t *e = p;
        if (l.flags & SL_FF_HAS_PRODUCER) {
            memcpy(e, &record->producer_id, 8);
            memcpy(e + 8, &record->sequence, 4);
            memcpy(e + 12, &record->producer_epoch, 4);
            e += PRODUCER_BYTES;
        }
        if (l.flags & SL_FF_HAS_ROWS) {
            memcpy(e, &record->rows, 4);
            memcpy(e + 4, &record->row_bytes, 4);
            e += ROWS_BYTES;
        }
        if (l.flags & SL_FF_HAS_HEADERS) {
            memcpy(e, &l.headers_bytes, 4);
            e += HEADERS_BYTES;
        }
        if (l.flags & SL_FF_HAS_DTYPE) memcpy(e, record->dtype, record->dtype_bytes);
        crc = sl_crc32c(crc, p, l.extension_bytes);
        p += l.extension_bytes;
    }
    if (l.key_bytes) {
        if (covered) crc = sl_crc32c_copy(crc, p, record->key, l.key_bytes);
        else memcpy(p, record->key, l.key_bytes);
        p += l.key_bytes;
    }
    if (l.headers_bytes) {
        if (covered) crc = sl_crc32c_copy(crc, p, record->headers, l.headers_bytes);
        else memcpy(p, record->headers, l.headers_bytes);
        p += l.headers_bytes;
    }
    uint8_t *value = to + l.value_position;
    if (p != value) {
        static const uint8_t zeros[64];
        if (covered) crc = sl_crc32c_copy(crc, p, zeros, (size_t)(value - p));
        else memcpy(p, zeros, (size_t)(value - p));
    }
    if (value_bytes) {
        if (!copy_value) crc = covered ? sl_crc32c(crc, value, value_bytes) : crc;
        else if (covered) crc = sl_crc32c_copy(crc, value, record->value, value_bytes);
        else memcpy(value, record->value, value_bytes);
    }
    uint64_t first = (uint64_t)crc << 32 | l.frame_bytes;
    memcpy(to, &first, 8);
    return l.frame_bytes;
}

/* ---- varints --------------------------------------------------------------------------------------------------------------------------- */

typedef struct cursor {
    const uint8_t *p, *end;
} cursor;

/* Zig-zag; at most 10 bytes. 0 on success. */
static int read_varint(cursor *c, int64_t *out) {
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (c->p == c->end) return -1;
        uint8_t b = *c->p++;
        if (shift == 63 && b > 1) return -1;
        v |= (uint64_t)(b & 127) << shift;
        if (!(b & 128)) {
            *out = (int64_t)(v >> 1 ^ -(v & 1));
            return 0;
        }
    }
    return -1;
}

/* A length (-1: null where allowed) and as many bytes; NULL in *data for null. */
static int read_bytes(cursor *c, int allow_null, const uint8_t **data, uint32_t *bytes) {
    int64_t n;
    *data = NULL;
    *bytes = 0;
    if (read_varint(c, &n)) return -1;
    if (n == -1 && allow_null) return 0;
    if (n < 0 || n > c->end - c->p) return -1;
    *data = c->p;
    *bytes = (uint32_t)n;
    c->p += n;
    return 0;
}

static uint32_t varint_bytes(int64_t value) {
    uint64_t v = (uint64_t)value << 1 ^ (uint64_t)(value >> 63);
    return (uint32_t)(70 - __builtin_clzll(v | 1)) / 7;
}
static uint8_t *write_varint(uint8_t *p, int64_t value) {
    uint64_t v = (uint64_t)value << 1 ^ (uint64_t)(value >> 63);
    for (; v > 127; v >>= 7) *p++ = (uint8_t)(v | 128);
    *p++ = (uint8_t)v;
    return p;
}

/* ---- views ----------------------------------------------------------------------------------------------------------------------------- */

/* One record of a batch from its body; 0 on success. */
static int read_batch_record(cursor body, int64_t *timestamp_delta, int64_t *offset_delta, sl_view *v) {
    const uint8_t *ignored;
    uint32_t ignored_bytes;
    int64_t count;
    if (body.p == body.end) return -1;
    body.p++; /* attributes: none defined */
    if (read_varint(&body, timestamp_delta) || read_varint(&body, offset_delta)) return -1;
    if (read_bytes(&body, 1, &v->key, &v->key_bytes) || read_bytes(&body, 1, &v->value, &v->value_bytes)) return -1;
    const uint8_t *headers = body.p;
    if (read_varint(&body, &count) || count < 0 || count > body.end - body.p) return -1;
    v->headers = count ? headers : NULL;
    v->headers_bytes = count ? (uint32_t)(body.end - headers) : 0;
    while (count--)
        if (read_bytes(&body, 0, &ignored, &ignored_bytes) || read_bytes(&body, 1, &ignored, &ignored_bytes)) return -1;
    return body.p == body.end ? 0 : -1;
}

static int64_t batch_views(const uint8_t *value, const parts *p, int64_t offset, uint32_t from_row, sl_view *views, size_t max_views) {
    batch_header h;
    if (parse_batch(value, p->value_bytes, p->rows, &h) != SL_OK) return SL_E_CORRUPT;
    if (h.attributes & ATTRIBUTE_COMPRESSION) return SL_E_INVALID;
    if (h.attributes & ATTRIBUTE_CONTROL) return 0;
    cursor c = {value + BATCH_HEADER_BYTES, value + p->value_bytes};
    int64_t last_delta = -1;
    size_t n = 0;
    for (int32_t i = 0; i < h.records && n < max_views; i++) {
        int64_t bytes, timestamp_delta, delta;
        if (read_varint(&c, &bytes) || bytes < 0 || bytes > c.end - c.p) return n ? (int64_t)n : SL_E_CORRUPT;
        cursor body = {c.p, c.p + bytes};
        c.p += bytes;
        sl_view v = {.producer_id = p->producer_id, .sequence = p->sequence, .producer_epoch = p->producer_epoch};
        if (read_batch_record(body, &timestamp_delta, &delta, &v) || delta <= last_delta || delta > h.last_delta) return n ? (int64_t)n : SL_E_CORRUPT;
        if (i == h.records - 1 && c.p != c.end) return n ? (int64_t)n : SL_E_CORRUPT;
        last_delta = delta;
        if (delta < from_row) continue;
        v.offset = offset + delta;
        v.frame_row = (uint32_t)delta;
        v.frame_rows = p->rows;
        v.flags = p->flags | SL_VIEW_KAFKA_HEADERS;
        if (h.attributes & ATTRIBUTE_TRANSACTIONAL) v.flags |= SL_FF_TRANSACTIONAL;
        if (p->flags & SL_FF_LOG_APPEND_TIME) v.timestamp_ns = p->timestamp_ns;
        else if (h.attributes & ATTRIBUTE_LOG_APPEND_TIME) {
            v.timestamp_ns = ms_to_ns(h.max_timestamp_ms);
            v.flags |= SL_FF_LOG_APPEND_TIME;
        } else {
            int64_t ms;
            if (__builtin_add_overflow(h.base_timestamp_ms, timestamp_delta, &ms)) ms = timestamp_delta < 0 ? INT64_MIN : INT64_MAX;
            v.timestamp_ns = ms_to_ns(ms);
        }
        if (p->producer_id < 0 && h.producer_id >= 0) {
            v.producer_id = h.producer_id;
            v.producer_epoch = h.producer_epoch;
            v.sequence = h.sequence;
        }
        if (v.producer_id >= 0 && v.sequence >= 0) /* sequences wrap to 0 behind INT32_MAX, as Kafka's do */
            v.sequence = (int32_t)(((uint64_t)(uint32_t)v.sequence + (uint64_t)delta) & INT32_MAX);
        views[n++] = v;
    }
    return (int64_t)n;
}

int64_t sl_frame_views(const uint8_t *frame, uint64_t limit, int64_t offset, uint32_t from_row, sl_view *views, size_t max_views) {
    parts p;
    if (parse(frame, limit, &p) != SL_OK) return SL_E_CORRUPT;
    if (from_row >= p.rows) return 0;
    uint32_t kind = p.flags & SL_FF_KIND_MASK;
    if (kind == SL_FF_CONTROL) return 0;
    if (kind == SL_FF_BATCH) return batch_views(frame + p.value_position, &p, offset, from_row, views, max_views);
    sl_view v = {
        .offset = offset,
        .timestamp_ns = p.timestamp_ns,
        .key = p.key_bytes == SL_NULL_BYTES ? NULL : frame + p.key_position,
        .value = p.value_bytes == SL_NULL_BYTES ? NULL : frame + p.value_position,
        .headers = p.headers_bytes ? frame + p.headers_position : NULL,
        .dtype = p.dtype_bytes ? frame + SL_FRAME_HEADER_BYTES + p.extension_bytes - p.dtype_bytes : NULL,
        .key_bytes = p.key_bytes == SL_NULL_BYTES ? 0 : p.key_bytes,
        .value_bytes = p.value_bytes == SL_NULL_BYTES ? 0 : p.value_bytes,
        .headers_bytes = p.headers_bytes,
        .dtype_bytes = p.dtype_bytes,
        .producer_id = p.producer_id,
        .sequence = p.sequence,
        .producer_epoch = p.producer_epoch,
        .flags = p.flags,
        .frame_rows = p.rows,
    };
    if (kind == SL_FF_RECORD) {
        if (max_views == 0) return 0;
        views[0] = v;
        return 1;
    }
    size_t n = p.rows - from_row;
    if (n > max_views) n = max_views;
    v.value_bytes = p.row_bytes;
    for (size_t i = 0; i < n; i++) {
        uint32_t row = from_row + (uint32_t)i;
        v.offset = offset + row;
        v.frame_row = row;
        v.value = frame + p.value_position + (uint64_t)row * p.row_bytes;
        if (p.producer_id >= 0 && p.sequence >= 0) v.sequence = (int32_t)(((uint64_t)(uint32_t)p.sequence + row) & INT32_MAX);
        views[i] = v;
    }
    return (int64_t)n;
}

/* ---- record batch v2: build ------------------------------------------------------------------------------------------------------------ */

/* Our headers as Kafka's: the bytes they take, written to `p` unless NULL. They are headers_ok(). */
static uint64_t kafka_headers(const uint8_t *h, uint8_t *p) {
    uint32_t count = load16(h);
    uint64_t total = varint_bytes(count);
    if (p) p = write_varint(p, count);
    for (h += 2; count; count--) {
        uint32_t name_bytes = load16(h);
        const uint8_t *name = h + 2;
        uint32_t value_bytes = load32(name + name_bytes);
        const uint8_t *value = name + name_bytes + 4;
        int null = value_bytes == SL_NULL_BYTES;
        uint32_t there = null ? 0 : value_bytes;
        int64_t coded = null ? -1 : (int64_t)value_bytes;
        total += varint_bytes(name_bytes) + name_bytes + varint_bytes(coded) + there;
        if (p) {
            p = write_varint(p, name_bytes);
            memcpy(p, name, name_bytes);
            p = write_varint(p + name_bytes, coded);
            if (there) memcpy(p, value, there);
            p += there;
        }
        h = value + there;
    }
    return total;
}

/* The size of a record behind its own length, or a code. */
static int64_t batch_record_bytes(const sl_record *r, size_t index, uint32_t timestamp_bytes) {
    if ((r->key_bytes && !r->key) || (r->value_bytes && r->value_bytes != SL_NULL_BYTES && !r->value)) return SL_E_INVALID;
    if (r->headers && r->headers_bytes && !headers_ok(r->headers, r->headers_bytes)) return SL_E_INVALID;
    uint64_t n = 1 + timestamp_bytes + varint_bytes((int64_t)index);
    n += r->key ? varint_bytes(r->key_bytes) + (uint64_t)r->key_bytes : 1;
    n += r->value ? varint_bytes(r->value_bytes) + (uint64_t)r->value_bytes : 1;
    n += r->headers && r->headers_bytes ? kafka_headers(r->headers, NULL) : 1;
    return n > INT32_MAX ? SL_E_TOO_BIG : (int64_t)n;
}

static int batch_arguments_ok(const sl_record *records, size_t n) {
    if (n == 0 || n > INT32_MAX) return 0;
    return records[0].producer_id < 0 || (records[0].producer_epoch >= 0 && records[0].producer_epoch <= INT16_MAX);
}

/* What a record's timestamp says relative to the first's. `now_ns` 0: not known yet. */
static int64_t batch_timestamp_ms(const sl_record *r, int64_t now_ns) { return ns_to_ms(r->timestamp_ns ? r->timestamp_ns : now_ns); }
static int64_t subtract_ms(int64_t a, int64_t b) { return (int64_t)((uint64_t)a - (uint64_t)b); } /* both below 2^44 in size: they were ns */

int64_t sl_batch_measure(const sl_record *records, size_t n) {
    if (!batch_arguments_ok(records, n)) return SL_E_INVALID;
    uint64_t total = BATCH_HEADER_BYTES;
    for (size_t i = 0; i < n; i++) {
        /* two stamps that are both known, or both the time of the build, have a known distance */
        uint32_t timestamp_bytes = !records[i].timestamp_ns == !records[0].timestamp_ns
            ? varint_bytes(subtract_ms(batch_timestamp_ms(&records[i], 0), batch_timestamp_ms(&records[0], 0))) : 10;
        int64_t bytes = batch_record_bytes(&records[i], i, timestamp_bytes);
        if (bytes < 0) return bytes;
        total += varint_bytes(bytes) + (uint64_t)bytes;
        if (total > INT32_MAX) return SL_E_TOO_BIG;
    }
    return (int64_t)total;
}

int64_t sl_batch_build(uint8_t *to, size_t capacity, const sl_record *records, size_t n) {
    if (!batch_arguments_ok(records, n)) return SL_E_INVALID;
    if (capacity < BATCH_HEADER_BYTES) return SL_E_INVALID;
    int64_t now_ns = sl_wall_ns();
    int64_t base_ms = batch_timestamp_ms(&records[0], now_ns), max_ms = base_ms;
    uint64_t at = BATCH_HEADER_BYTES;
    for (size_t i = 0; i < n; i++) {
        const sl_record *r = &records[i];
        int64_t ms = batch_timestamp_ms(r, now_ns), delta = subtract_ms(ms, base_ms);
        if (ms > max_ms) max_ms = ms;
        int64_t bytes = batch_record_bytes(r, i, varint_bytes(delta));
        if (bytes < 0) return bytes;
        if (capacity - at < varint_bytes(bytes) + (uint64_t)bytes) return SL_E_INVALID;
        if (at + varint_bytes(bytes) + (uint64_t)bytes > INT32_MAX) return SL_E_TOO_BIG;
        uint8_t *p = write_varint(to + at, bytes);
        *p++ = 0;
        p = write_varint(p, delta);
        p = write_varint(p, (int64_t)i);
        p = write_varint(p, r->key ? (int64_t)r->key_bytes : -1);
        if (r->key && r->key_bytes) {
            memcpy(p, r->key, r->key_bytes);
            p += r->key_bytes;
        }
        p = write_varint(p, r->value ? (int64_t)r->value_bytes : -1);
        if (r->value && r->value_bytes) {
            memcpy(p, r->value, r->value_bytes);
            p += r->value_bytes;
        }
        if (r->headers && r->headers_bytes) p += kafka_headers(r->headers, p);
        else *p++ = 0;
        at = (uint64_t)(p - to);
    }
    const sl_record *first = &records[0];
    int has_producer = first->producer_id >= 0;
    store_big64(to, 0);
    store_big32(to + BATCH_LENGTH, (uint32_t)(at - 12));
    store_big32(to + BATCH_LEADER_EPOCH, UINT32_MAX);
    to[BATCH_MAGIC] = 2;
    store_big16(to + BATCH_ATTRIBUTES, first->flags & SL_FF_TRANSACTIONAL ? ATTRIBUTE_TRANSACTIONAL : 0);
    store_big32(to + BATCH_LAST_DELTA, (uint32_t)(n - 1));
    store_big64(to + BATCH_BASE_TIMESTAMP, (uint64_t)base_ms);
    store_big64(to + BATCH_MAX_TIMESTAMP, (uint64_t)max_ms);
    store_big64(to + BATCH_PRODUCER_ID, has_producer ? (uint64_t)first->producer_id : UINT64_MAX);
    store_big16(to + BATCH_PRODUCER_EPOCH, has_producer ? (uint16_t)first->producer_epoch : UINT16_MAX);
    store_big32(to + BATCH_SEQUENCE, has_producer ? (uint32_t)first->sequence : UINT32_MAX);
    store_big32(to + BATCH_RECORDS, (uint32_t)n);
    store_big32(to + BATCH_CRC, sl_crc32c(0, to + BATCH_ATTRIBUTES, at - BATCH_ATTRIBUTES));
    return (int64_t)at;
}
