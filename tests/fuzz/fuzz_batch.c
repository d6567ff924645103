/* Record batches v2 in BATCH frames: any bytes as a batch, walked as a reader walks it (some views at a time, until its offsets are used up); and batches
 * built from any records, which must come back equal. */
#include "core.h"
#include "fuzz.h"

#include <stddef.h>

#define LIMIT 8192
#define HEAD 36 /* frame header and the extension `rows` */

static void store_big32(uint8_t *p, uint32_t v) { v = __builtin_bswap32(v); memcpy(p, &v, 4); }
static uint32_t load_big32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return __builtin_bswap32(v); }

/* The batch in a frame of its own in memory of that very size; its value stands at the next multiple of 64, as the layout asks of large values. */
static uint8_t *framed(const uint8_t *batch, size_t n, uint32_t rows, int covered, size_t *frame_bytes) {
    size_t at = n >= SL_FRAME_ALIGN_MIN_BYTES ? 64 : HEAD;
    covered |= at + n - HEAD <= SL_FRAME_CRC_MAX_BYTES;
    uint8_t *frame = calloc(1, at + n);
    sl_frame h = {.frame_bytes = (uint32_t)(at + n), .key_bytes = SL_NULL_BYTES, .value_bytes = (uint32_t)n,
                  .flags = (uint16_t)(SL_FF_BATCH | SL_FF_HAS_ROWS | (covered ? SL_FF_CRC_ALL : 0)), .extension_bytes = 8};
    memcpy(frame + 28, &rows, 4);
    memcpy(frame + at, batch, n);
    memcpy(frame, &h, sizeof h);
    h.crc32c = sl_crc32c(0, frame + 8, (covered ? at + n : HEAD) - 8);
    memcpy(frame, &h, sizeof h);
    *frame_bytes = at + n;
    return frame;
}

static void walk(const uint8_t *frame, size_t n, uint32_t rows, size_t at_once) {
    sl_view v[8];
    uint32_t row = 0;
    for (int turn = 0; turn < 5000 && row < rows; turn++) {
        int64_t got = sl_frame_views(frame, n, 500, row, v, at_once);
        MUST(got >= SL_E_FORKED && got <= (int64_t)at_once);
        if (got <= 0) return;
        for (int64_t i = 0; i < got; i++) {
            MUST(v[i].offset >= 500 + (int64_t)row && v[i].offset < 500 + (int64_t)rows);
            INSIDE(v[i].key, v[i].key_bytes, frame, n);
            INSIDE(v[i].value, v[i].value_bytes, frame, n);
            INSIDE(v[i].headers, v[i].headers_bytes, frame, n);
            if (v[i].key) touch(v[i].key, v[i].key_bytes);
            if (v[i].value) touch(v[i].value, v[i].value_bytes);
            if (v[i].headers) touch(v[i].headers, v[i].headers_bytes);
            row = (uint32_t)(v[i].offset - 500) + 1;
        }
    }
}

static void parse(input *in, uint8_t how) {
    uint32_t rows = (uint32_t)take_any(in);
    size_t n = in->left > LIMIT ? LIMIT : in->left, frame_bytes;
    uint8_t *batch = malloc(n ? n : 1);
    memcpy(batch, in->p, n);
    if (n >= 61) {
        if (how & 2) { store_big32(batch + 8, (uint32_t)n - 12); batch[16] = 2; }
        if (how & 4) rows = load_big32(batch + 23) + 1;
        if (how & 8) store_big32(batch + 17, sl_crc32c(0, batch + 21, n - 21));
    }
    uint8_t *frame = framed(batch, n, rows, !(how & 16), &frame_bytes);
    int right = sl_frame_check(frame, frame_bytes, 1);
    MUST(right == SL_OK || right == SL_E_CORRUPT);
    walk(frame, frame_bytes, rows, 1 + (how >> 5));
    if (right == SL_OK) sl_frame_max_timestamp_ns(frame);
    free(frame);
    free(batch);
}

/* One of our headers at `to`: u16 count, then names and values. */
static uint32_t make_headers(input *in, uint8_t *to) {
    uint32_t at = 2, count = take8(in) % 5;
    memcpy(to, &count, 2);
    for (uint32_t i = 0; i < count; i++) {
        uint8_t sizes = take8(in);
        uint16_t name = sizes & 15;
        uint32_t value = sizes >> 4 == 15 ? SL_NULL_BYTES : sizes >> 4;
        memcpy(to + at, &name, 2);
        for (at += 2; name; name--) to[at++] = take8(in);
        memcpy(to + at, &value, 4);
        at += 4;
        for (uint32_t k = value == SL_NULL_BYTES ? 0 : value; k; k--) to[at++] = take8(in);
    }
    return at;
}

static void build(input *in, uint8_t how) {
    enum { MAX = 24 };
    static uint8_t headers[MAX][256];
    sl_record r[MAX];
    size_t n = take8(in) % (MAX + 1);
    memset(r, 0, sizeof r);
    for (size_t i = 0; i < n; i++) {
        uint8_t what = take8(in);
        r[i].producer_id = what & 1 ? (int64_t)take_any(in) : -1;
        r[i].sequence = (int32_t)take_any(in);
        r[i].producer_epoch = (int32_t)take16(in);
        r[i].timestamp_ns = what & 2 ? (int64_t)take_any(in) : INT64_C(1700000000000000000);
        r[i].flags = what & 4 ? SL_FF_TRANSACTIONAL : 0;
        if (what & 8) { r[i].headers = headers[i]; r[i].headers_bytes = make_headers(in, headers[i]); }
        if (what & 8 && what & 128) r[i].headers_bytes -= take8(in) % r[i].headers_bytes; /* cut short: refused */
        uint32_t key = what & 16 ? take8(in) : 0, value = what & 32 ? (uint32_t)take16(in) % 600 : 0;
        if (key > in->left) key = (uint32_t)in->left;
        if (what & 16) r[i].key = in->p, r[i].key_bytes = key, in->p += key, in->left -= key;
        if (value > in->left) value = (uint32_t)in->left;
        if (what & 32) r[i].value = in->p, r[i].value_bytes = value, in->p += value, in->left -= value;
        if (what & 64 && !r[i].value) r[i].value_bytes = SL_NULL_BYTES;
    }
    int64_t bytes = sl_batch_measure(r, n);
    if (bytes < 0) { MUST(bytes == SL_E_INVALID || bytes == SL_E_TOO_BIG); return; }
    size_t capacity = how & 2 ? (size_t)take16(in) % ((size_t)bytes + 1) : (size_t)bytes, frame_bytes;
    uint8_t *to = malloc(capacity ? capacity : 1);
    int64_t built = sl_batch_build(to, capacity, r, n);
    MUST(built <= bytes && (built >= 0 || built == SL_E_INVALID) && (built < 0 || built <= (int64_t)capacity));
    if (built >= 0) {
        sl_view v[MAX];
        uint8_t *frame = framed(to, (size_t)built, (uint32_t)n, !(how & 4), &frame_bytes);
        MUST(sl_frame_check(frame, frame_bytes, 1) == SL_OK);
        MUST(sl_frame_views(frame, frame_bytes, 500, 0, v, MAX) == (int64_t)n);
        for (size_t i = 0; i < n; i++) {
            MUST(v[i].offset == 500 + (int64_t)i && !v[i].key == !r[i].key && !v[i].value == !r[i].value);
            MUST(v[i].key_bytes == r[i].key_bytes && (!v[i].key || memcmp(v[i].key, r[i].key, r[i].key_bytes) == 0));
            MUST(!v[i].value || (v[i].value_bytes == r[i].value_bytes && memcmp(v[i].value, r[i].value, r[i].value_bytes) == 0));
        }
        walk(frame, frame_bytes, (uint32_t)n, 3);
        free(frame);
    }
    free(to);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size};
    uint8_t how = take8(&in);
    if (how & 1) build(&in, how);
    else parse(&in, how);
    return 0;
}
