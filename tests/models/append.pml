/* (a), (d) Append, seal, rotate with helpers, spill, recycle by whoever claims a segment; deaths, stops, late rows, late stores.
 *
 * Shows, in every state of the sizes that run.py names:
 *   a cell is written once per life, in order, nothing after SEAL; nobody reads or writes a life that is not the one he means;
 *   base(s+1) = base(s) + end(s), so offsets are dense; every append that returned is in the file once, in its producer's order, with its own payload;
 *   nobody is stuck at the end, and after a death no buffer is lost.
 * -DKILLS=1  producer VICTIM dies at any step; the broker cleans his row at any later time (clean_*). One death a run; never the broker's.
 * -DSTOPS    instead he is stopped for ever and no certificate comes: the other must still finish. This takes B >= 4 with two producers: the stopped
 *            one can keep two buffers from use (one held, one named), and two are needed to go on.
 * -DLATESTORE  a payload store of the dead may land at any later time. -DLATEREG  rows are registered late. -DKEEP  hazard words outlive a call.
 * -DBROKERIDLE the broker spills and looks at limbo, only producers claim segments. -DDIRCLAIM  the claim in the directory word.
 * -DASBUILT  the steps that csrc/log.c takes where they differ from the others here, which are the larger set (more processes may do more):
 *   publish(): the first absent number; HELD in its slot is taken out for its holder, anything else in it makes the buffer FREE (POOL here), and the
 *     broker publishes it later (sort_out(), obtain() in ring.c); after a lost CAS {HELD, t}. Without: what is in the slot is claimed and put into LIMBO;
 *   LIMBO is looked at again by the broker alone (sl_limbo_retry());
 *   sl_row_clean(): the row says DEAD first; taint, look again, clear, only of what is in the directory; other words stay until what they name is DEAD.
 *     W_AGAIN is the second call as log.c has it: it clears them whatever they name, because time has passed. A store that is later still hits a new life.
 * Being stopped and resumed is covered for everybody in every run: it is interleaving.
 * The C differs, without a model of it: a TRY found in a slot is undone and the buffer becomes FREE (help_slot() returns 0); a recycler's second hazard
 *   word names the block, so that a deleted topic's block is not given away; the words DEAD and "again" of sl_row_clean() are the coordinator's, not the
 *   broker's; sl_segment_audit() is called for each buffer at any later time, and often; the broker's pool holds, resizes and unlinks buffers; a reset
 *   is not repeated when a number was lost. Numbers in the directory have 16 bits. How the number is chosen over many turns of the ring: slot.pml.
 * Not covered: two deaths; the death of a broker (then the coordinator cleans, R); a producer that comes back on a cleaned row; weak memory; wrap of
 *   numbers; epochs, fencing and leader change; chunks of more than one record; records of more than one offset; spilling is one step a cell.
 */
#include "partition.pml"
