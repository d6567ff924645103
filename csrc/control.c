/* Single words of shared memory for the coordinator's Python, which has no atomics of its own.
 *
 * The coordinator decides in Python and stores a few words per decision; each goes through one of these, so that the order of its stores is the
 * order in which others see them (on x86 plain stores would do, on ARM they would not). */
#include <limits.h>

#include "atomic.h"
#include "core.h"

uint64_t sl_get64(const uint64_t *word) { return sl_load_sc(word); }
uint32_t sl_get32(const uint32_t *word) { return sl_load_sc(word); }
void sl_put64(uint64_t *word, uint64_t value) { sl_store_sc(word, value); }
void sl_put32(uint32_t *word, uint32_t value) { sl_store_sc(word, value); }

int sl_swap64(uint64_t *word, uint64_t expected, uint64_t desired) { return sl_cas_sc(word, &expected, desired); }

void sl_view_changed(sl_control *control) {
    sl_fetch_add_sc(&control->view_changes, 1); /* SYNC view_changed: after view_version; pairs with sl_view_wait() */
    sl_futex_wake(&control->view_changes, INT_MAX);
}

int sl_row_names_block(const sl_row *row, uint32_t block) {
    const uint64_t *words = (const uint64_t *)row; /* the row opens with hazard, poll_pin, view_pins, side by side */
    for (size_t i = 0; i < 2 + 1 + SL_VIEW_PINS; i++) {
        uint64_t w = sl_load_sc(&words[i]);
        if (w && w >> 40 == block) return 1;
    }
    return 0;
}
