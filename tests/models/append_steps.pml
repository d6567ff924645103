/* Steps of a producer: attach, append, seal, rotate (PROTOCOL.md 1-12). Included inside the do-loop of a process. */
#ifndef LOAN
#define SEALED u = 0; pc = rotate_load_dir
#elif defined(W_LOAN)
#define SEALED if :: me == 0 && u != NOROOM -> lb = b; lu = u; ls = s :: else -> skip fi; u = 0; pc = rotate_load_dir
#else
#define SEALED if :: me == 0 && u != NOROOM -> lb = b; lu = u; ls = s; pc = loan_pin_store :: else -> pc = rotate_load_dir fi; u = 0
#endif

/* -- attach ------------------------------------------------------------------------------------------------------------ */
#ifdef LATEREG
STEP(row_register)     nrows++; pc = attach_load_cur END
#endif
STEP(attach_load_cur)  s = cur; pc = attach_load_dir END
STEP(attach_load_dir)  if :: PRESENT(s) -> b = dbuf[s % D]; pc = attach_hazard :: else -> s = 0; pc = attach_load_cur fi END
STEP(attach_hazard)    hz[2 * me + h] = s; pc = attach_recheck END
STEP(attach_recheck)   if :: cur == s -> pc = chunk_take :: else -> s = 0; b = 0; pc = attach_load_cur fi END

/* -- append ------------------------------------------------------------------------------------------------------------ */
STEP(chunk_take)
    TOUCH(b, s);
    if :: alloc[b] < U -> u = alloc[b]; alloc[b] = alloc[b] + 1; pc = payload_write
       :: else -> u = NOROOM; pc = hint_load fi END
#ifdef LOAN
/* the bytes of a loan exist only in the old chunk, which the loan pin (or, in the wrong variant, nothing) protects */
STEPIF(payload_write, ls != 0)
    TOUCH(lb, ls); t = pay[lb * U + lu]; assert(t == ID(me, n + 1)); pc = payload_copy END
STEP(payload_copy)
    TOUCH(b, s); assert(pay[b * U + u] == 0); pay[b * U + u] = t; t = 0; pc = loan_pin_clear END
STEP(loan_pin_clear)   lp[me] = 0; lb = 0; lu = 0; ls = 0; pc = hint_load END
STEPIF(payload_write, ls == 0)
#else
STEP(payload_write)
#endif
    TOUCH(b, s); assert(pay[b * U + u] == 0);
    pay[b * U + u] = ID(me, n + 1); pc = hint_load END
STEP(hint_load)
    TOUCH(b, s); i = hint[b];
    pc = (i == NC - 1 || u == NOROOM -> seal_cas : cell_cas) END
STEP(cell_cas)
    TOUCH(b, s);
    if :: cells[b * NC + i] == 0 ->
            assert(i == 0 || (cells[b * NC + i - 1] != 0 && cells[b * NC + i - 1] != SEAL));
            cells[b * NC + i] = u + 1; u = 0;
#ifdef W_EARLYCLR
            pc = early_clear
#else
            pc = hint_store
#endif
       :: cells[b * NC + i] == SEAL -> SEALED
       :: else -> i++; pc = (i == NC - 1 -> seal_cas : cell_cas) fi END
STEP(seal_cas)
    TOUCH(b, s);
    if :: cells[b * NC + i] == 0 ->
            assert(i == 0 || (cells[b * NC + i - 1] != 0 && cells[b * NC + i - 1] != SEAL));
            cells[b * NC + i] = SEAL; SEALED
       :: cells[b * NC + i] == SEAL -> SEALED
       :: else -> i++ fi END
STEP(hint_store)       TOUCH(b, s); hint[b] = i + 1; i = 0; pc = base_read END
/* the call returns: the hazard word is cleared, or kept for the next call (which then needs no attach) */
STEP(base_read)        TOUCH(b, s); assert(base[b] != UNSET); n++; acked[me] = n; pc = hazard_clear END
#ifdef KEEP
STEPIF(hazard_clear, n < QUOTA && !won) pc = chunk_take END
#endif
STEP(hazard_clear)
    hz[2 * me + h] = 0; s = 0; b = 0; h = 0;
    ret = (n == QUOTA -> finished : attach_load_cur);
    if :: won -> won = 0; pc = recycle_pick :: else -> pc = ret; ret = 0 fi END
#ifdef W_EARLYCLR
STEP(early_clear)      hz[2 * me + h] = 0; pc = hint_store END
#endif
STEP(finished)         over[me] = 1; ret = 0; pc = 0 END

#ifdef LOAN
STEP(loan_pin_store)   lp[me] = s; pc = rotate_load_dir END             /* while hz[h] still names s; scanned after the hazard words */
#endif
/* -- rotate, or help to: i is the index of SEAL in s -------------------------------------------------------------------- */
STEP(rotate_load_dir)
    if :: PRESENT(s + 1) -> b2 = dbuf[(s + 1) % D];
#ifdef W_BASE
            pc = rotate_load_base
#else
            pc = rotate_hazard_next
#endif
       :: else -> pc = rotate_wait fi END
STEPIF(rotate_wait, PRESENT(s + 1)) pc = rotate_load_dir END
STEPIF(rotate_wait, cur != s)       i = 0; s = 0; b = 0; pc = attach_load_cur END
STEPIF(rotate_wait, MAYRECYCLE)     ret = rotate_load_dir; pc = recycle_pick END
STEP(rotate_hazard_next) hz[2 * me + 1 - h] = s + 1; pc = rotate_recheck END
STEP(rotate_recheck)     if :: cur == s -> pc = rotate_load_base :: else -> pc = rotate_back_off fi END
STEP(rotate_back_off)    hz[2 * me + 1 - h] = 0; i = 0; s = 0; b = 0; b2 = 0; pc = attach_load_cur END
STEP(rotate_load_base)   TOUCH(b, s); bs = base[b] + i; i = 0; pc = base_cas END
STEP(base_cas)
    TOUCH(b2, s + 1);
    if :: base[b2] == UNSET -> base[b2] = bs :: else -> assert(base[b2] == bs) fi;
    bs = 0; pc = cur_cas END
STEP(cur_cas)            if :: cur == s -> cur = s + 1; won = 1 :: else -> skip fi; pc = rotate_clear_old END
STEP(rotate_clear_old)
    hz[2 * me + h] = 0;
#ifdef W_BASE
    s = 0; b = 0; b2 = 0; pc = attach_load_cur
#else
    h = 1 - h; s = s + 1; b = b2; b2 = 0; pc = chunk_take   /* swap roles: hz[1-h] has named s+1 since before cur left s */
#endif
END
