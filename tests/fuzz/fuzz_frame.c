/* Frames as a hostile process or a bad disk would leave them: sl_frame_check() and sl_frame_views() over any bytes, and whatever a caller may put into a
 * record. The first byte says which, and whether the checksum is made right so that the rest is looked at. */
#include "core.h"
#include "fuzz.h"

#include <stddef.h>

#define LIMIT 8192

static uint32_t load(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }

/* What the frame's CRC covers, if its header is in its place at all. */
static uint32_t covered_end(const uint8_t *frame, size_t n) {
    sl_frame h;
    if (n < sizeof h) return 0;
    memcpy(&h, frame, sizeof h);
    uint64_t end = h.flags & SL_FF_CRC_ALL ? h.frame_bytes : SL_FRAME_HEADER_BYTES + (uint64_t)h.extension_bytes;
    return end < sizeof h || end > n ? 0 : (uint32_t)end;
}

static void look(const uint8_t *frame, size_t n, const sl_view *v) {
    INSIDE(v->key, v->key_bytes, frame, n);
    INSIDE(v->value, v->value_bytes, frame, n);
    INSIDE(v->headers, v->headers_bytes, frame, n);
    INSIDE(v->dtype, v->dtype_bytes, frame, n);
    if (v->key) touch(v->key, v->key_bytes);
    if (v->value) touch(v->value, v->value_bytes);
    if (v->headers) touch(v->headers, v->headers_bytes);
    if (v->dtype) touch(v->dtype, v->dtype_bytes);
}

static void views(const uint8_t *frame, size_t n, uint32_t from_row) {
    sl_view v[5];
    int64_t got = sl_frame_views(frame, n, 1000, from_row, v, 5);
    MUST(got >= SL_E_FORKED && got <= 5);
    for (int64_t i = 0; i < got; i++) {
        look(frame, n, &v[i]);
        MUST(v[i].offset == 1000 + (int64_t)v[i].frame_row && v[i].frame_row >= from_row && v[i].frame_row < v[i].frame_rows);
        MUST(i == 0 || v[i].offset > v[i - 1].offset);
    }
    if (got > 0) {
        uintptr_t lo, hi;
        uint8_t copy[5 * LIMIT];
        int64_t bytes = sl_views_span(v, (size_t)got, &lo, &hi), stride = sl_views_stride(v, (size_t)got);
        MUST(bytes >= 0 && stride >= -1);
        INSIDE(lo, hi - lo, frame, n);
        sl_views_gather(v, (size_t)got, copy, from_row % (5 * LIMIT));
        if (sl_views_copy(v, (size_t)got, copy, sizeof copy) >= 0)
            for (int64_t i = 0; i < got; i++) look(copy, sizeof copy, &v[i]);
    }
}

/* Any bytes. */
static void parse(input *in, uint8_t how) {
    uint32_t from_row = (uint32_t)take_any(in), flip = take16(in);
    size_t n = in->left > LIMIT ? LIMIT : in->left;
    uint8_t *frame = malloc(n ? n : 1);
    memcpy(frame, in->p, n);
    if (how & 2 && n >= 4) { uint32_t all = (uint32_t)n; memcpy(frame, &all, 4); }
    uint32_t end = covered_end(frame, n);
    if (how & 4 && end) { uint32_t crc = sl_crc32c(0, frame + 8, end - 8); memcpy(frame + 4, &crc, 4); }
    int bounds = sl_frame_check(frame, n, 0), right = sl_frame_check(frame, n, 1);
    MUST((bounds == SL_OK || bounds == SL_E_CORRUPT) && (right == bounds || right == SL_E_CORRUPT));
    views(frame, n, 0);
    views(frame, n, from_row);
    if (right == SL_OK) {
        MUST(load(frame) <= n && sl_frame_rows(frame) >= 1);
        sl_frame_timestamp_ns(frame);
        sl_frame_max_timestamp_ns(frame);
        uint32_t at = 8 + flip % (end - 8); /* no single wrong bit gets past the checksum */
        frame[at] ^= (uint8_t)(1 << flip % 8);
        MUST(covered_end(frame, n) != end || sl_frame_check(frame, n, 1) == SL_E_CORRUPT);
    }
    free(frame);
}

/* Any record that a caller could ask for. */
static void build(input *in, uint8_t how) {
    static uint8_t arena[4 * LIMIT];
    uint8_t what = take8(in);
    sl_record r = {.kind = what & 3, .flags = take16(in) & 1 ? SL_FF_TRANSACTIONAL : 0, .producer_id = -1, .timestamp_ns = (int64_t)take_any(in)};
    if (what & 4) { r.producer_id = (int64_t)take_any(in); r.sequence = (int32_t)take32(in); r.producer_epoch = (int32_t)take32(in); }
    if (what & 8) { r.rows = (uint32_t)take_any(in); r.row_bytes = (uint32_t)take_any(in); }
    if (what & 16) r.flags |= SL_RECORD_LOAN;
    if (how & 8) r.flags |= (uint32_t)take_any(in);
    uint16_t sizes[4];
    for (int i = 0; i < 4; i++) sizes[i] = (uint16_t)(take16(in) % (LIMIT - 1));
    static const uint8_t none[4];
    const uint8_t *parts[4] = {what & 32 ? none : NULL, what & 64 ? none : NULL, what & 128 ? none : NULL, how & 16 ? none : NULL};
    for (int i = 0; i < 4; i++) {
        if (!parts[i]) { sizes[i] = 0; continue; }
        if (sizes[i] > in->left) sizes[i] = (uint16_t)in->left;
        parts[i] = in->p;
        in->p += sizes[i];
        in->left -= sizes[i];
    }
    r.key = parts[0], r.key_bytes = sizes[0];
    r.value = parts[1], r.value_bytes = sizes[1];
    r.headers = parts[2], r.headers_bytes = sizes[2];
    r.dtype = parts[3], r.dtype_bytes = sizes[3];
    if (how & 32 && r.row_bytes) r.rows = r.value_bytes / r.row_bytes, r.value_bytes = r.rows * r.row_bytes;
    uint32_t position;
    int64_t bytes = sl_frame_measure(&r, &position);
    if (bytes < 0) { MUST(bytes == SL_E_INVALID || bytes == SL_E_TOO_BIG); return; }
    if (bytes > (int64_t)sizeof arena || (!r.value && r.value_bytes)) return;
    uint8_t *to = malloc((size_t)bytes);
    int64_t built = sl_frame_build(to, &r, r.timestamp_ns, 1, how & 64);
    if (built < 0) { MUST(built == SL_E_INVALID); free(to); return; }
    MUST(built == bytes && sl_frame_check(to, (uint64_t)bytes, 1) == SL_OK);
    MUST(bytes == 28 || sl_frame_check(to, (uint64_t)bytes - 1, 1) == SL_E_CORRUPT);
    sl_view v;
    int64_t n = sl_frame_views(to, (uint64_t)bytes, 7, 0, &v, 1);
    if (r.kind == SL_FF_CONTROL) MUST(n == 0);
    else if (r.kind != SL_FF_BATCH) {
        MUST(n == 1 && v.offset == 7 && v.timestamp_ns == r.timestamp_ns && !v.key == !r.key && !v.value == !r.value);
        MUST(v.key_bytes == r.key_bytes && (!r.key || memcmp(v.key, r.key, r.key_bytes) == 0));
        MUST(v.value_bytes == (r.rows ? r.row_bytes : r.value_bytes) && (!r.value || memcmp(v.value, r.value, v.value_bytes) == 0));
        MUST(v.headers_bytes == r.headers_bytes && v.dtype_bytes == r.dtype_bytes && v.producer_id == (r.producer_id < 0 ? -1 : r.producer_id));
    } else views(to, (size_t)bytes, 0);
    free(to);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size};
    uint8_t how = take8(&in);
    if (how & 1) build(&in, how);
    else parse(&in, how);
    return 0;
}
