/* What Python asks of many views at once, and buffers kept mapped for it: a loop over 4096 views costs 5 us here and 500 us there.
 *
 * Pure functions over an array of views that sl_reader_poll() filled; the lengths in them were checked there. */
#include <string.h>

#include "core.h"

static inline void widen(const uint8_t *p, uint32_t bytes, uintptr_t *lo, uintptr_t *hi) {
    if (!p || !bytes) return;
    uintptr_t at = (uintptr_t)p;
    if (at < *lo) *lo = at;
    if (at + bytes > *hi) *hi = at + bytes;
}

int64_t sl_views_span(const sl_view *views, size_t n, uintptr_t *lo, uintptr_t *hi) {
    int64_t sum = 0;
    *lo = UINTPTR_MAX;
    *hi = 0;
    for (size_t i = 0; i < n; i++) {
        const sl_view *v = &views[i];
        widen(v->key, v->key_bytes, lo, hi);
        widen(v->value, v->value_bytes, lo, hi);
        widen(v->headers, v->headers_bytes, lo, hi);
        widen(v->dtype, v->dtype_bytes, lo, hi);
        sum += (v->key ? v->key_bytes : 0) + (v->value ? v->value_bytes : 0) + v->headers_bytes + v->dtype_bytes;
    }
    if (*hi == 0) *lo = 0;
    return sum;
}

int64_t sl_views_stride(const sl_view *views, size_t n) {
    if (n == 0 || !views[0].value) return -1;
    uint32_t bytes = views[0].value_bytes;
    if (n == 1) return bytes;
    intptr_t stride = (intptr_t)((uintptr_t)views[1].value - (uintptr_t)views[0].value);
    for (size_t i = 1; i < n; i++)
        if (!views[i].value || views[i].value_bytes != bytes || (intptr_t)((uintptr_t)views[i].value - (uintptr_t)views[i - 1].value) != stride) return -1;
    return stride < (intptr_t)bytes ? -1 : stride;
}

int64_t sl_views_gather(const sl_view *views, size_t n, uint8_t *to, size_t capacity) {
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bytes = views[i].value ? views[i].value_bytes : 0;
        if (bytes > capacity - at) return SL_E_INVALID;
        if (bytes) memcpy(to + at, views[i].value, bytes);
        at += bytes;
    }
    return (int64_t)at;
}

int64_t sl_views_copy(sl_view *views, size_t n, uint8_t *to, size_t capacity) {
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        struct { const uint8_t **p; uint32_t bytes; } parts[4] = {
            {&views[i].value, views[i].value_bytes}, {&views[i].key, views[i].key_bytes}, {&views[i].headers, views[i].headers_bytes},
            {&views[i].dtype, views[i].dtype_bytes}};
        for (int k = 0; k < 4; k++) {
            if (!*parts[k].p) continue;
            if (parts[k].bytes > capacity - at) return SL_E_INVALID;
            memcpy(to + at, *parts[k].p, parts[k].bytes);
            *parts[k].p = to + at;
            at += parts[k].bytes;
        }
    }
    return (int64_t)at;
}

int sl_buffer_hold(sl_cluster *cluster, uint32_t buffer) {
    sl_map *m;
    return sl_map_get(cluster, buffer, 1, &m);
}

void sl_buffer_drop(sl_cluster *cluster, uint32_t buffer) {
    sl_map *m;
    if (sl_map_get(cluster, buffer, 1, &m) < 0) return; /* cannot be while it is held: the mapping is found, not made */
    sl_map_put(cluster, m);
    sl_map_put(cluster, m);
}
