/* Frames and record batches: what is built is read back; what is damaged is refused; what is hostile stays inside its bytes. */
#include "atomic.h"
#include "core.h"
#include "harness.h"

#define TS INT64_C(1700000000123456789)

static uint8_t *aligned(size_t n) {
    size_t bytes = (n + 64) / 64 * 64;
    uint8_t *p = aligned_alloc(64, bytes);
    SL_ASSERT(p);
    memset(p, 0xa5, bytes);
    return p;
}
static sl_record plain(const void *value, uint32_t bytes) {
    return (sl_record){.value = value, .value_bytes = bytes, .producer_id = -1};
}
/* Builds into memory of exactly its size, so that ASan sees every byte beyond. */
static uint8_t *build(const sl_record *r, int crc_always, int64_t *bytes) {
    *bytes = sl_frame_measure(r, NULL);
    if (*bytes < 0) FAIL("measure: %s", sl_strerror((int)*bytes));
    uint8_t *f = aligned((size_t)*bytes), *exact = malloc((size_t)*bytes);
    CHECK_EQ(sl_frame_build(f, r, TS, 1, crc_always), *bytes);
    memcpy(exact, f, (size_t)*bytes);
    free(f);
    return exact;
}
static const uint8_t HEADERS[] = {2, 0, 1, 0, 'a', 3, 0, 0, 0, 'x', 'y', 'z', 2, 0, 'b', 'c', 255, 255, 255, 255};

TEST("a plain record comes back as it was sent") {
    int64_t n;
    sl_record r = plain("hello", 5);
    uint8_t *f = build(&r, 0, &n);
    CHECK_EQ(n, 33);
    CHECK_EQ(sl_frame_check(f, (uint64_t)n, 1), SL_OK);
    CHECK_EQ(sl_frame_rows(f), 1);
    CHECK_EQ(sl_frame_timestamp_ns(f), TS);
    sl_view v;
    CHECK_EQ(sl_frame_views(f, (uint64_t)n, 77, 0, &v, 1), 1);
    CHECK_EQ(v.offset, 77);
    CHECK_EQ(v.timestamp_ns, TS);
    CHECK(!v.key && !v.headers && !v.dtype);
    CHECK_EQ(v.value_bytes, 5);
    CHECK_BYTES(v.value, "hello", 5);
    CHECK_EQ(v.producer_id, -1);
    CHECK_EQ(v.frame_rows, 1);
    CHECK_EQ(sl_frame_views(f, (uint64_t)n, 77, 1, &v, 1), 0);
    free(f);
}

TEST("a 100-byte value takes 128 bytes") {
    uint8_t value[100] = {0};
    sl_record r = plain(value, 100);
    CHECK_EQ(sl_frame_measure(&r, NULL), 128);
}

TEST("all extensions, key and headers stand in their order") {
    uint8_t value[300], dtype[12] = "dtype bytes";
    memset(value, 7, sizeof value);
    sl_record r = {.key = (const uint8_t *)"key", .key_bytes = 3, .value = value, .value_bytes = sizeof value, .headers = HEADERS, .headers_bytes = sizeof HEADERS,
                   .dtype = dtype, .dtype_bytes = 12, .producer_id = 99, .sequence = 5, .producer_epoch = 3, .flags = SL_FF_TRANSACTIONAL};
    uint32_t position;
    CHECK_EQ(sl_frame_measure(&r, &position), 128 + 300);
    CHECK_EQ(position, 128); /* 28 + 16 + 4 + 12 + 3 + 20 = 83, then padding */
    int64_t n;
    uint8_t *f = build(&r, 0, &n);
    CHECK_EQ(sl_frame_check(f, (uint64_t)n, 1), SL_OK);
    CHECK_BYTES(f + 28 + 16 + 4, dtype, 12);
    CHECK_BYTES(f + 28 + 32, "key", 3);
    CHECK_BYTES(f + 28 + 35, HEADERS, sizeof HEADERS);
    for (int i = 83; i < 128; i++) CHECK_EQ(f[i], 0);
    sl_view v;
    CHECK_EQ(sl_frame_views(f, (uint64_t)n, 0, 0, &v, 1), 1);
    CHECK_EQ(v.producer_id, 99);
    CHECK_EQ(v.sequence, 5);
    CHECK_EQ(v.producer_epoch, 3);
    CHECK_EQ(v.dtype_bytes, 12);
    CHECK_BYTES(v.dtype, dtype, 12);
    CHECK_BYTES(v.headers, HEADERS, sizeof HEADERS);
    CHECK_BYTES(v.key, "key", 3);
    CHECK_BYTES(v.value, value, sizeof value);
    CHECK((v.flags & SL_FF_TRANSACTIONAL) && !(v.flags & SL_VIEW_KAFKA_HEADERS));
    free(f);
}

TEST("null and empty are different, of keys and of values") {
    int64_t n;
    for (int bits = 0; bits < 4; bits++) {
        sl_record r = {.key = bits & 1 ? (const uint8_t *)"" : NULL, .value = bits & 2 ? (const uint8_t *)"" : NULL, .producer_id = -1};
        uint8_t *f = build(&r, 0, &n);
        sl_view v;
        CHECK_EQ(sl_frame_check(f, (uint64_t)n, 1), SL_OK);
        CHECK_EQ(sl_frame_views(f, (uint64_t)n, 0, 0, &v, 1), 1);
        CHECK_EQ(v.key != NULL, bits & 1);
        CHECK_EQ(v.value != NULL, bits >> 1);
        free(f);
    }
}

TEST("an array gives one view a row, 64-byte aligned, from any row on") {
    uint32_t rows[10];
    for (uint32_t i = 0; i < 10; i++) rows[i] = i * i;
    sl_record r = {.value = (const uint8_t *)rows, .value_bytes = 40, .rows = 10, .row_bytes = 4, .kind = SL_FF_ARRAY, .producer_id = 4, .sequence = INT32_MAX - 1};
    uint32_t position;
    CHECK_EQ(sl_frame_measure(&r, &position), 104);
    CHECK_EQ(position, 64);
    r.kind = SL_FF_RECORD; /* rows alone say it too */
    int64_t n;
    uint8_t *f = build(&r, 0, &n);
    CHECK_EQ(sl_frame_check(f, (uint64_t)n, 1), SL_OK);
    CHECK_EQ(sl_frame_rows(f), 10);
    sl_view v[16];
    CHECK_EQ(sl_frame_views(f, (uint64_t)n, 1000, 0, v, 16), 10);
    for (uint32_t i = 0; i < 10; i++) {
        CHECK_EQ(v[i].offset, 1000 + i);
        CHECK_EQ(v[i].value_bytes, 4);
        CHECK_BYTES(v[i].value, &rows[i], 4);
        CHECK_EQ(v[i].frame_row, i);
        CHECK_EQ(v[i].frame_rows, 10);
    }
    CHECK_EQ(v[1].sequence, INT32_MAX);
    CHECK_EQ(v[2].sequence, 0);
    CHECK_EQ(sl_frame_views(f, (uint64_t)n, 1000, 7, v, 2), 2);
    CHECK_EQ(v[0].offset, 1007);
    CHECK_EQ(sl_frame_views(f, (uint64_t)n, 1000, 9, v, 16), 1);
    CHECK_EQ(sl_frame_views(f, (uint64_t)n, 1000, 10, v, 16), 0);
    free(f);
}

TEST("a control frame takes offsets and shows no record") {
    int64_t n;
    sl_record r = {.rows = 12, .kind = SL_FF_CONTROL, .flags = SL_FF_LOST, .producer_id = -1};
    uint8_t *f = build(&r, 0, &n);
    sl_view v;
    CHECK_EQ(sl_frame_check(f, (uint64_t)n, 1), SL_OK);
    CHECK_EQ(sl_frame_rows(f), 12);
    CHECK_EQ(sl_frame_views(f, (uint64_t)n, 0, 0, &v, 1), 0);
    free(f);
}

TEST("wrong records are refused") {
    static uint8_t value[64];
    uint8_t bad_headers[] = {1, 0, 200, 0, 'a'};
    sl_record r = {.value = value, .value_bytes = 40, .rows = 10, .row_bytes = 5, .kind = SL_FF_ARRAY, .producer_id = -1};
    CHECK_EQ(sl_frame_measure(&r, NULL), SL_E_INVALID);
    r.row_bytes = 4;
    r.key = value;
    CHECK_EQ(sl_frame_measure(&r, NULL), SL_E_INVALID);
    r = plain(value, 8);
    r.flags = SL_FF_CRC_ALL;
    CHECK_EQ(sl_frame_measure(&r, NULL), SL_E_INVALID);
    r = plain(value, 8);
    r.kind = 4;
    CHECK_EQ(sl_frame_measure(&r, NULL), SL_E_INVALID);
    r = plain(value, 8);
    r.headers = bad_headers;
    r.headers_bytes = sizeof bad_headers;
    CHECK_EQ(sl_frame_measure(&r, NULL), SL_E_INVALID);
    r = plain(value, 8);
    r.dtype = value;
    r.dtype_bytes = 6;
    CHECK_EQ(sl_frame_measure(&r, NULL), SL_E_INVALID);
    r.dtype_bytes = 65532;
    CHECK_EQ(sl_frame_measure(&r, NULL), SL_E_INVALID);
    r = plain(value, UINT32_MAX - 1);
    CHECK_EQ(sl_frame_measure(&r, NULL), SL_E_TOO_BIG);
    r.key = value;
    r.key_bytes = UINT32_MAX;
    CHECK_EQ(sl_frame_measure(&r, NULL), SL_E_TOO_BIG);
    r = (sl_record){.value = value, .value_bytes = 64, .rows = 1, .kind = SL_FF_BATCH, .producer_id = -1};
    uint8_t *f = aligned(256);
    CHECK_EQ(sl_frame_build(f, &r, TS, 1, 0), SL_E_INVALID); /* 64 zeros are no batch */
    free(f);
}

TEST("a lent value stays where it was lent, also when cut short") {
    sl_record r = {.value_bytes = 300, .key = (const uint8_t *)"k", .key_bytes = 1, .flags = SL_RECORD_LOAN, .producer_id = -1};
    uint32_t position, again;
    int64_t n = sl_frame_measure(&r, &position);
    CHECK_EQ(position, 64);
    CHECK_EQ(n, 364);
    uint8_t *f = aligned((size_t)n);
    memset(f + position, 'v', 300);
    r.value_bytes = 10;
    CHECK_EQ(sl_frame_measure(&r, &again), 74);
    CHECK_EQ(again, position);
    CHECK_EQ(sl_frame_build(f, &r, TS, 0, 0), 74);
    sl_view v;
    CHECK_EQ(sl_frame_check(f, 74, 1), SL_OK);
    CHECK_EQ(sl_frame_views(f, 74, 0, 0, &v, 1), 1);
    CHECK_EQ(v.value_bytes, 10);
    CHECK_BYTES(v.value, "vvvvvvvvvv", 10);
    r.value_bytes = 0;
    CHECK_EQ(sl_frame_build(f, &r, TS, 0, 0), 64);
    CHECK_EQ(sl_frame_check(f, 64, 1), SL_OK);
    CHECK_EQ(sl_frame_views(f, 64, 0, 0, &v, 1), 1);
    CHECK(v.value != NULL); /* empty, not null */
    free(f);
}

TEST("every bit of a small frame is under a CRC; of a large one the header, or all if asked") {
    uint8_t value[5000] = {0};
    for (int round = 0; round < 3; round++) {
        sl_record r = plain(value, round ? sizeof value : 90);
        r.key = (const uint8_t *)"key";
        r.key_bytes = 3;
        int64_t n;
        uint8_t *f = build(&r, round == 2, &n);
        CHECK_EQ(sl_frame_check(f, (uint64_t)n, 1), SL_OK);
        for (int64_t bit = 0; bit < 8 * n; bit += bit < 8 * 200 ? 1 : 101) {
            f[bit / 8] ^= (uint8_t)(1 << bit % 8);
            int found = sl_frame_check(f, (uint64_t)n, 1) != SL_OK;
            int covered = round != 1 || bit < 28 * 8;
            if (found != covered) FAIL("round %d: bit %lld of %lld: %s", round, (long long)bit, (long long)(8 * n), found ? "found" : "not found");
            f[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        for (int64_t limit = 0; limit < n; limit++) CHECK_EQ(sl_frame_check(f, (uint64_t)limit, 0), SL_E_CORRUPT);
        free(f);
    }
}

/* ---- batches ---- */

static sl_record batch_records[4];
static void make_batch_records(void) {
    batch_records[0] = (sl_record){.key = (const uint8_t *)"k0", .key_bytes = 2, .value = (const uint8_t *)"v0", .value_bytes = 2, .timestamp_ns = TS, .producer_id = 12, .sequence = 7,
                                   .producer_epoch = 2};
    batch_records[1] = (sl_record){.value = (const uint8_t *)"", .timestamp_ns = TS - 5000000, .headers = HEADERS, .headers_bytes = sizeof HEADERS, .producer_id = 12};
    batch_records[2] = (sl_record){.key = (const uint8_t *)"gone", .key_bytes = 4, .timestamp_ns = TS + 90000000000, .producer_id = 12};
    batch_records[3] = plain("last", 4);
    batch_records[3].timestamp_ns = TS;
}
static uint8_t *make_batch(int64_t *bytes) {
    make_batch_records();
    *bytes = sl_batch_measure(batch_records, 4);
    CHECK_OP(*bytes, >, 61);
    uint8_t *b = malloc((size_t)*bytes);
    CHECK_EQ(sl_batch_build(b, (size_t)*bytes, batch_records, 4), *bytes);
    return b;
}
static uint8_t *make_batch_frame(int64_t *n) {
    int64_t bytes;
    uint8_t *b = make_batch(&bytes);
    sl_record r = {.value = b, .value_bytes = (uint32_t)bytes, .rows = 4, .kind = SL_FF_BATCH, .producer_id = -1};
    uint8_t *f = build(&r, 0, n);
    free(b);
    return f;
}

TEST("a record batch has the bytes that another writer gives") {
    /* kafka-python 3.0.12: DefaultRecordBatchBuilder(magic=2, producer_id=12, producer_epoch=2, base_sequence=7) and the four records of
     * make_batch_records(), TS in whole ms. It writes leader epoch 0 where Java's producer and we write -1; no CRC covers that. */
    static const uint8_t expected[] = {
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x65, 0x00, 0x00, 0x00, 0x00, 0x02, 0x8d, 0x8b, 0x60, 0x67, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x03, 0x00, 0x00, 0x01, 0x8b, 0xcf, 0xe5, 0x68, 0x7b, 0x00, 0x00, 0x01, 0x8b, 0xcf, 0xe6, 0xc8, 0x0b, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x0c, 0x00, 0x02, 0x00, 0x00, 0x00, 0x07, 0x00, 0x00, 0x00, 0x04, 0x14, 0x00, 0x00, 0x00, 0x04, 0x6b, 0x30, 0x04, 0x76, 0x30, 0x00,
        0x20, 0x00, 0x09, 0x02, 0x01, 0x00, 0x04, 0x02, 0x61, 0x06, 0x78, 0x79, 0x7a, 0x04, 0x62, 0x63, 0x01, 0x18, 0x00, 0xa0, 0xfe, 0x0a, 0x04, 0x08,
        0x67, 0x6f, 0x6e, 0x65, 0x01, 0x00, 0x14, 0x00, 0x00, 0x06, 0x01, 0x08, 0x6c, 0x61, 0x73, 0x74, 0x00};
    int64_t n;
    uint8_t *b = make_batch(&n);
    CHECK_EQ(n, sizeof expected);
    CHECK_BYTES(b, expected, 12);
    CHECK_BYTES(b + 16, expected + 16, sizeof expected - 16);
    free(b);
}

TEST("the records of a batch come back, with Kafka's headers and whole milliseconds") {
    int64_t n;
    uint8_t *f = make_batch_frame(&n);
    sl_view v[8];
    CHECK_EQ(sl_frame_check(f, (uint64_t)n, 1), SL_OK);
    CHECK_EQ(sl_frame_rows(f), 4);
    CHECK_EQ(sl_frame_views(f, (uint64_t)n, 50, 0, v, 8), 4);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(v[i].offset, 50 + i);
        CHECK_EQ(v[i].timestamp_ns, batch_records[i].timestamp_ns / 1000000 * 1000000);
        CHECK_EQ(v[i].key != NULL, batch_records[i].key != NULL);
        CHECK_EQ(v[i].value != NULL, batch_records[i].value != NULL);
        CHECK_EQ(v[i].key_bytes, batch_records[i].key_bytes);
        CHECK_EQ(v[i].value_bytes, batch_records[i].value_bytes);
        CHECK_EQ(v[i].producer_id, 12);
        CHECK_EQ(v[i].producer_epoch, 2);
        CHECK_EQ(v[i].sequence, 7 + i);
        CHECK(v[i].flags & SL_VIEW_KAFKA_HEADERS);
        CHECK_EQ(v[i].headers != NULL, i == 1);
    }
    static const uint8_t expected[] = {4, 2, 'a', 6, 'x', 'y', 'z', 4, 'b', 'c', 1};
    CHECK_EQ(v[1].headers_bytes, sizeof expected);
    CHECK_BYTES(v[1].headers, expected, sizeof expected);
    CHECK_EQ(sl_frame_views(f, (uint64_t)n, 50, 2, v, 1), 1);
    CHECK_EQ(v[0].offset, 52);
    CHECK_EQ(sl_frame_views(f, (uint64_t)n, 50, 3, v, 8), 1);
    CHECK_EQ(sl_frame_max_timestamp_ns(f), (TS + 90000000000) / 1000000 * 1000000);
    free(f);
}

static void put_crc(uint8_t *batch, int64_t bytes) {
    uint32_t crc = sl_crc32c(0, batch + 21, (size_t)bytes - 21);
    for (int i = 0; i < 4; i++) batch[17 + i] = (uint8_t)(crc >> (24 - 8 * i));
}
static uint8_t *frame_of_batch(const uint8_t *batch, int64_t bytes, uint32_t rows, int64_t *n) {
    sl_record r = {.value = batch, .value_bytes = (uint32_t)bytes, .rows = rows, .kind = SL_FF_BATCH, .producer_id = -1};
    return build(&r, 0, n);
}

TEST("a compressed batch is kept but not decoded here") {
    int64_t bytes, n;
    uint8_t *b = make_batch(&bytes);
    b[22] |= 1;
    put_crc(b, bytes);
    uint8_t *f = frame_of_batch(b, bytes, 4, &n);
    sl_view v;
    CHECK_EQ(sl_frame_check(f, (uint64_t)n, 1), SL_OK);
    CHECK_EQ(sl_frame_views(f, (uint64_t)n, 0, 0, &v, 1), SL_E_INVALID);
    free(f);
    free(b);
}

TEST("a batch with gaps keeps its offsets, and LogAppendTime is the batch's latest time") {
    int64_t bytes, n;
    uint8_t *b = make_batch(&bytes);
    b[26] = 9; /* last offset delta: 4 records over 10 offsets */
    b[22] |= 8;
    put_crc(b, bytes);
    uint8_t *f = frame_of_batch(b, bytes, 10, &n);
    sl_view v[8];
    CHECK_EQ(sl_frame_rows(f), 10);
    CHECK_EQ(sl_frame_views(f, (uint64_t)n, 0, 0, v, 8), 4);
    CHECK_EQ(v[0].timestamp_ns, v[2].timestamp_ns);
    CHECK_EQ(sl_frame_views(f, (uint64_t)n, 0, 5, v, 8), 0);
    free(f);
    free(b);
}

TEST("records before the damage in a batch are delivered, then the damage is told") {
    int64_t bytes, n;
    uint8_t *b = make_batch(&bytes);
    b[bytes - 6] ^= 0x40; /* the length of the last record's value */
    put_crc(b, bytes);
    uint8_t *f = frame_of_batch(b, bytes, 4, &n);
    sl_view v[8];
    int64_t got = sl_frame_views(f, (uint64_t)n, 0, 0, v, 8);
    CHECK_EQ(got, 3);
    CHECK_EQ(sl_frame_views(f, (uint64_t)n, 0, 3, v, 8), SL_E_CORRUPT);
    free(f);
    free(b);
}

TEST("a batch measured with some times unknown is not smaller than built") {
    make_batch_records();
    batch_records[2].timestamp_ns = 0;
    int64_t measured = sl_batch_measure(batch_records, 4);
    uint8_t *b = malloc((size_t)measured);
    int64_t built = sl_batch_build(b, (size_t)measured, batch_records, 4);
    CHECK_OP(built, >, 0);
    CHECK_OP(built, <=, measured);
    CHECK_EQ(sl_batch_build(b, (size_t)built - 8, batch_records, 4), SL_E_INVALID);
    for (int i = 0; i < 4; i++) batch_records[i].timestamp_ns = 0;
    measured = sl_batch_measure(batch_records, 4);
    CHECK_EQ(sl_batch_build(b, (size_t)measured, batch_records, 4), measured);
    free(b);
}

/* ---- hostile bytes ---- */

static void touch(const void *p, uint64_t n) {
    static volatile uint8_t sink;
    for (uint64_t i = 0; i < n; i += i + 64 < n ? 64 : 1) sink ^= ((const uint8_t *)p)[i];
}
/* Everything a reader does with a frame; touches what the views name. */
static int use(const uint8_t *f, uint64_t n) {
    static sl_view v[64];
    int checked = sl_frame_check(f, n, 0), whole = sl_frame_check(f, n, 1);
    if (whole == SL_OK) SL_ASSERT(checked == SL_OK);
    uint32_t row = 0;
    for (int turn = 0; turn < 4; turn++) {
        int64_t got = sl_frame_views(f, n, 1000, row, v, turn == 2 ? 1 : 64);
        if (checked != SL_OK && got > 0) SL_ASSERT(got <= 64);
        if (got <= 0) break;
        for (int64_t i = 0; i < got; i++) {
            touch(v[i].key, v[i].key ? v[i].key_bytes : 0);
            touch(v[i].value, v[i].value ? v[i].value_bytes : 0);
            touch(v[i].headers, v[i].headers_bytes);
            touch(v[i].dtype, v[i].dtype_bytes);
            SL_ASSERT(v[i].frame_row >= row && v[i].offset == 1000 + v[i].frame_row);
        }
        row = v[got - 1].frame_row + 1;
    }
    if (checked == SL_OK) {
        SL_ASSERT(sl_frame_rows(f) >= 1);
        sl_frame_max_timestamp_ns(f);
    }
    return whole == SL_OK;
}

static uint8_t *sample(int kind, int64_t *n) {
    static uint8_t value[6000], dtype[8];
    sl_record r = plain(value, (uint32_t)random_below(kind == 1 ? 6000 : 300));
    if (kind == 0) return make_batch_frame(n);
    if (kind == 2) r = (sl_record){.value = value, .value_bytes = 120, .rows = 30, .row_bytes = 4, .producer_id = 1, .kind = SL_FF_ARRAY, .dtype = dtype, .dtype_bytes = 8};
    if (kind == 3) {
        r.headers = HEADERS;
        r.headers_bytes = sizeof HEADERS;
        r.key = value;
        r.key_bytes = (uint32_t)random_below(20);
        r.producer_id = 5;
    }
    if (kind == 4) r = (sl_record){.rows = 3, .kind = SL_FF_CONTROL, .producer_id = -1};
    return build(&r, 0, n);
}

/* Interesting numbers put over a random place. */
static void mutate(uint8_t *b, uint64_t n) {
    static const uint32_t nasty[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 0xfffffffe, 28, 64, 0x10000000};
    for (uint64_t times = 1 + random_below(3); times && n; times--) {
        uint64_t at = random_below(4) ? random_below(n < 96 ? n : 96) : random_below(n);
        switch (random_below(4)) {
        case 0: b[at] ^= (uint8_t)(1 << random_below(8)); break;
        case 1: b[at] = (uint8_t)random_u64(); break;
        case 2: {
            uint32_t v = nasty[random_below(sizeof nasty / sizeof *nasty)];
            uint64_t room = n - at;
            memcpy(b + at, &v, room < 4 ? room : 4);
            break;
        }
        default: b[at] = (uint8_t)nasty[random_below(sizeof nasty / sizeof *nasty)];
        }
    }
}

TEST("200,000 damaged frames and batches never lead outside their bytes") {
    uint64_t whole = 0, mutations = 200000;
    seed_random(20240503);
    for (uint64_t i = 0; i < mutations;) {
        int64_t n;
        uint8_t *original = sample((int)random_below(5), &n);
        SL_ASSERT(use(original, (uint64_t)n));
        for (int k = 0; k < 50; k++, i++) {
            uint64_t limit = random_below(8) ? (uint64_t)n : random_below((uint64_t)n + 1);
            uint8_t *f = malloc(limit ? limit : 1);
            memcpy(f, original, limit);
            mutate(f, limit);
            whole += (uint64_t)use(f, limit);
            free(f);
        }
        free(original);
    }
    /* some mutations change nothing, or a payload that is not covered; hardly any may pass otherwise */
    CHECK_OP(whole, <, mutations / 10);
}

TEST("hostile batches with a right CRC never lead outside their bytes") {
    seed_random(20240504);
    for (int i = 0; i < 100000; i++) {
        int64_t bytes, n;
        uint8_t *b = make_batch(&bytes);
        uint64_t body = (uint64_t)bytes - 61;
        for (uint64_t k = 1 + random_below(3); k; k--) b[61 + random_below(body)] = random_below(2) ? (uint8_t)random_u64() : (uint8_t)(0x80 | random_u64());
        put_crc(b, bytes);
        uint8_t *f = frame_of_batch(b, bytes, 4, &n);
        CHECK(use(f, (uint64_t)n));
        free(f);
        free(b);
    }
}

TEST("random records of all kinds come back equal") {
    seed_random(20240505);
    uint8_t *value = aligned(20000);
    for (int i = 0; i < 20000; i++) value[i] = (uint8_t)random_u64();
    for (int i = 0; i < 20000; i++) {
        sl_record r = plain(value, (uint32_t)random_below(i % 10 ? 400 : 20000));
        uint8_t dtype[16] = {1, 2, 3};
        if (random_below(2)) r.key = value + 3, r.key_bytes = (uint32_t)random_below(200);
        if (random_below(2)) r.headers = HEADERS, r.headers_bytes = sizeof HEADERS;
        if (random_below(3) == 0) r.dtype = dtype, r.dtype_bytes = 4 * (1 + (uint32_t)random_below(4));
        if (random_below(2)) r.producer_id = (int64_t)random_below(1u << 30);
        int64_t n;
        uint8_t *f = build(&r, (int)random_below(2), &n);
        sl_view v;
        CHECK_EQ(sl_frame_check(f, (uint64_t)n, 1), SL_OK);
        CHECK_EQ(sl_frame_views(f, (uint64_t)n, 9, 0, &v, 1), 1);
        CHECK_EQ(v.value_bytes, r.value_bytes);
        CHECK_BYTES(v.value, r.value, r.value_bytes);
        CHECK_EQ(v.key_bytes, r.key_bytes);
        if (r.key) CHECK_BYTES(v.key, r.key, r.key_bytes);
        CHECK_EQ(v.headers_bytes, r.headers_bytes);
        CHECK_EQ(v.dtype_bytes, r.dtype_bytes);
        CHECK_EQ(v.producer_id, r.producer_id);
        if (r.value_bytes >= SL_FRAME_ALIGN_MIN_BYTES) CHECK_EQ((v.value - f) % 64, 0);
        free(f);
    }
    free(value);
}

HARNESS_MAIN
