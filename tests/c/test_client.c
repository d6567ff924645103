/* What a C program reads of the metadata and of the coordinator's replies: as Python writes them, and with any damage. */
#include "client.h"
#include "harness.h"
#include "shmlog.h"

/* messages.encode() and encode_view() made these; tests/capi/ has the two sides talk. */
static const char view_hex[] =
    "8faa636c75737465725f6964c41000000000000000000000000000000000a46e616d65a6676f6c64656ea776657273696f6ece00011170b1636f6f7264696e61746f725f6570"
    "6f6368cf0000000100000003ac626f6f745f636f756e74657201a9646174615f6469727391a22f64a973746174655f646972a22f73a6636f6e66696781b96175746f2e637265"
    "6174652e746f706963732e656e61626c65a546616c7365a762726f6b657273820094000401ab2f642f62726f6b65722d30cd012c94cd012c0502a0a6746f7069637383a16194"
    "a161c4100101010101010101010101010101010180919505000191009100a46e732f6194a46e732f61c4100202020202020202020202020202020281ac73686d6c6f672e7370"
    "696c6ca474727565939500cd012c0191cd012c91cd012c95cd3fff00099200cd012c91009507ff01910090d9e66c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c"
    "6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c"
    "6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c"
    "6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c94d9e66c6c"
    "6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c"
    "6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c"
    "6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c"
    "6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6c6cc4100303030303030303030303030303030380919501000191009100a864656c6574696e6790a96f776e65725f70696400b16f77"
    "6e65725f73746172745f7469636b7300a974656d706f72617279c2a6666f726d617401";
static const char registered_hex[] =
    "82a474797065aa52656769737465726564a4726f777392cd012ccd012d";
static const char failure_hex[] =
    "84a474797065a74661696c757265a46e616d65ad53686d53706163654572726f72a76d657373616765a76e6f20726f6f6da66669656c647381ac6e65656465645f6279746573"
    "07";
static const char results_hex[] =
    "83a474797065a7526573756c7473a86661696c757265739183a474797065a74661696c757265a46e616d65b7546f706963416c72656164794578697374734572726f72a76d65"
    "7373616765ac7468657265206973206f6e65ac766965775f76657273696f6e08";
static const char made_hex[] =
    "83a474797065a7526573756c7473a86661696c7572657391c0ac766965775f76657273696f6e08";

/* In memory of exactly their size, so that reading beyond is seen. */
static uint8_t *bytes_of(const char *hex, size_t *n) {
    *n = strlen(hex) / 2;
    uint8_t *b = malloc(*n ? *n : 1);
    for (size_t i = 0; i < *n; i++) { unsigned x; sscanf(hex + 2 * i, "%2x", &x); b[i] = (uint8_t)x; }
    return b;
}

TEST("a partition is found with its block, its topic's id and its leader's directory") {
    size_t n;
    uint8_t *view = bytes_of(view_hex, &n);
    sl_place p;
    CHECK_EQ(sl_view_find(view, n, "a", 0, &p), SL_OK);
    CHECK(p.version == 70000 && p.block == 5 && p.leader == 0 && p.partitions == 1 && p.topic_id[15] == 1 && !p.auto_create);
    CHECK(strcmp(p.directory, "/d/broker-0/a-0-01010101") == 0);
    CHECK_EQ(sl_view_find(view, n, "ns/a", 1, &p), SL_OK);
    CHECK(p.block == 16383 && p.partitions == 3 && strcmp(p.directory, "/d/broker-0/ns~a-1-02020202") == 0);
    CHECK_EQ(sl_view_find(view, n, "ns/a", 0, &p), SL_OK);
    CHECK(p.leader == 300 && !*p.directory); /* a broker in memory only */
    CHECK_EQ(sl_view_find(view, n, "ns/a", 2, &p), SL_OK);
    CHECK(p.leader == -1 && !*p.directory);
    char longer[231], wanted[300];
    memset(longer, 'l', 230);
    longer[230] = 0;
    snprintf(wanted, sizeof wanted, "/d/broker-0/%.160s~-0-03030303030303030303030303030303", longer);
    CHECK_EQ(sl_view_find(view, n, longer, 0, &p), SL_OK);
    CHECK(strcmp(p.directory, wanted) == 0);
    free(view);
}

TEST("what is not in the view is told apart: the topic, the partition") {
    size_t n;
    uint8_t *view = bytes_of(view_hex, &n);
    sl_place p;
    CHECK_EQ(sl_view_find(view, n, "b", 0, &p), SL_E_NOENT);
    CHECK_EQ(sl_view_find(view, n, "ns/", 0, &p), SL_E_NOENT);
    CHECK_EQ(sl_view_find(view, n, "ns/a", 3, &p), SL_E_RANGE);
    CHECK_EQ(p.partitions, 3);
    free(view);
}

TEST("replies are read: a row, a refusal with its sentence, a topic made") {
    size_t n;
    uint32_t row = 0;
    char why[256];
    uint8_t *b = bytes_of(registered_hex, &n);
    CHECK_EQ(sl_reply_read(b, n, "Registered", &row, why), SL_OK);
    CHECK_EQ(row, 300);
    CHECK_EQ(sl_reply_read(b, n, "Done", NULL, why), SL_E_DAMAGED);
    free(b);
    b = bytes_of(failure_hex, &n);
    CHECK_EQ(sl_reply_read(b, n, "Registered", &row, why), SL_E_REFUSED);
    CHECK(strcmp(why, "ShmSpaceError: no room") == 0);
    free(b);
    b = bytes_of(results_hex, &n);
    CHECK_EQ(sl_reply_read(b, n, "Results", NULL, why), SL_E_REFUSED);
    CHECK(strcmp(why, "TopicAlreadyExistsError: there is one") == 0);
    free(b);
    b = bytes_of(made_hex, &n);
    CHECK_EQ(sl_reply_read(b, n, "Results", NULL, why), SL_OK);
    free(b);
}

static void read_all(const uint8_t *b, size_t n) {
    static const char *topics[] = {"a", "ns/a", "b"};
    sl_place p;
    uint32_t row = 0;
    char why[256];
    for (int t = 0; t < 3; t++)
        for (uint32_t partition = 0; partition < 3; partition++) {
            int rc = sl_view_find(b, n, topics[t], partition, &p);
            CHECK(rc == SL_OK || rc == SL_E_NOENT || rc == SL_E_RANGE || rc == SL_E_DAMAGED);
            if (rc == SL_OK) CHECK(p.block < SL_MAX_PARTITIONS && p.leader >= -1 && partition < p.partitions && strlen(p.directory) < sizeof p.directory);
        }
    int rc = sl_reply_read(b, n, "Registered", &row, why);
    CHECK(rc == SL_OK || rc == SL_E_REFUSED || rc == SL_E_DAMAGED);
    if (rc == SL_OK) CHECK(row < SL_MAX_ROWS);
    rc = sl_reply_read(b, n, "Results", NULL, why);
    CHECK((rc == SL_OK || rc == SL_E_REFUSED || rc == SL_E_DAMAGED) && strlen(why) < sizeof why);
}

TEST("damaged bytes are refused or read, and never beyond their end") {
    static const char *all[] = {view_hex, registered_hex, failure_hex, results_hex, made_hex};
    seed_random(7);
    for (int k = 0; k < 5; k++) {
        size_t n;
        uint8_t *whole = bytes_of(all[k], &n);
        for (size_t cut = 0; cut < n; cut++) { /* every truncation */
            uint8_t *b = malloc(cut ? cut : 1);
            memcpy(b, whole, cut);
            read_all(b, cut);
            free(b);
        }
        static const uint8_t odd[] = {0, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc6, 0xc9, 0xcf, 0xd3, 0xd8, 0xdb, 0xdd, 0xdf, 0xff};
        for (size_t i = 0; i < n; i++) { /* every byte as one that begins something else: counts, lengths and types that cannot be right */
            uint8_t saved = whole[i];
            for (size_t v = 0; v < sizeof odd; v++) { whole[i] = odd[v]; read_all(whole, n); }
            whole[i] = saved;
        }
        for (int round = 0; round < 2000; round++) {
            uint8_t *b = malloc(n);
            memcpy(b, whole, n);
            for (uint64_t flips = random_below(8) + 1; flips; flips--) b[random_below(n)] = (uint8_t)random_u64();
            read_all(b, n);
            free(b);
        }
        free(whole);
    }
}

TEST("an address is shm://cluster or shm://cluster/namespace, else what the environment names") {
    char c[33], s[33];
    CHECK_EQ(sl_address_parse("shm://a", c, s), SL_OK);
    CHECK(strcmp(c, "a") == 0 && !*s);
    CHECK_EQ(sl_address_parse("shm://a/b-c", c, s), SL_OK);
    CHECK(strcmp(c, "a") == 0 && strcmp(s, "b-c") == 0);
    const char *bad[] = {"a", "shm://", "shm:///x", "shm://a/", "shm://a.b", "shm://a/b/c", "localhost:9092", "shm://123456789012345678901234567890123"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK_EQ(sl_address_parse(bad[i], c, s), SL_E_INVALID);
    setenv("SHMLOG_CLUSTER", "x/y", 1);
    CHECK_EQ(sl_address_parse(NULL, c, s), SL_OK);
    CHECK(strcmp(c, "x") == 0 && strcmp(s, "y") == 0);
    unsetenv("SHMLOG_CLUSTER");
    CHECK_EQ(sl_address_parse(NULL, c, s), SL_OK);
    CHECK(strcmp(c, "default") == 0 && !*s);
}

TEST("headers as Kafka writes them in a batch are read, and refused when cut") {
    static const uint8_t kafka[] = {4, 2, 'a', 2, '1', 4, 'b', 'c', 1}; /* 2: "a" = "1", "bc" = null; zigzag */
    shmlog_view v = {.flags = SL_VIEW_KAFKA_HEADERS, .headers = kafka, .headers_bytes = sizeof kafka};
    shmlog_header h;
    CHECK_EQ(shmlog_view_header(&v, 0, &h), 1);
    CHECK(h.name_bytes == 1 && *h.name == 'a' && h.value_bytes == 1 && *(const char *)h.value == '1');
    CHECK_EQ(shmlog_view_header(&v, 1, &h), 1);
    CHECK(h.name_bytes == 2 && h.name[1] == 'c' && !h.value);
    CHECK_EQ(shmlog_view_header(&v, 2, &h), 0);
    for (uint32_t cut = 1; cut < sizeof kafka; cut++) {
        uint8_t *copy = malloc(cut);
        memcpy(copy, kafka, cut);
        v.headers = copy;
        v.headers_bytes = cut;
        CHECK_EQ(shmlog_view_header(&v, 1, &h), SHMLOG_E_CORRUPT);
        free(copy);
    }
}
HARNESS_MAIN
