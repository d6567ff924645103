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
 * Being stopped and resumed is covered for everybody in every run: it is interleaving.
 * Not covered: two deaths; the death of a broker (then the coordinator cleans, R); a producer that comes back on a cleaned row; weak memory; wrap of
 *   numbers; epochs, fencing and leader change; chunks of more than one record; records of more than one offset; spilling is one step a cell.
 */
#include "partition.pml"
