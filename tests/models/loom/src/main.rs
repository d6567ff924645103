//! The memory orders of csrc/, explored by loom (C11 without out-of-thin-air): every scenario is the steps around one pair of SYNC names, with the orders
//! of the C; then each order is weakened in turn, and some execution must break the scenario's assertion, or ../ORDERS.md says why it may be weaker.
//!
//! loom treats SeqCst accesses as AcqRel, but knows SeqCst fences. So a pair of which each side stores and then loads (seq_cst accesses in C) has
//! a fence between the two here, and "weakened" takes the fence away: what is shown is that both sides need the order, and that with it nothing is missed. That seq_cst *accesses*
//! give what these fences give is argued in ../ORDERS.md, not shown.
//! Plain bytes (payload, header, cells in a reset) are loom cells, which report any two accesses that nothing orders.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{fence, AtomicU64, Ordering, Ordering::*};
use loom::sync::Arc;
use loom::thread;
use std::panic;

/// The orders of one run: the site named here is weakened, all others are as in C.
#[derive(Clone, Copy)]
struct Orders(&'static str);
impl Orders {
    fn get(self, site: &str, strong: Ordering) -> Ordering {
        if self.0 == site { Relaxed } else { strong }
    }
    /// Between a store and a load that C has seq_cst.
    fn store_load(self, site: &str) {
        if self.0 != site { fence(SeqCst) }
    }
}

#[derive(Default)]
struct Memory { a: AtomicU64, b: AtomicU64, c: AtomicU64, bytes: Plain }
#[derive(Default)]
struct Plain(UnsafeCell<u64>);
unsafe impl Sync for Plain {}
impl Plain {
    fn write(&self, v: u64) { self.0.with_mut(|p| unsafe { *p = v }) }
    fn read(&self) -> u64 { self.0.with(|p| unsafe { *p }) }
}

fn two(one: impl FnOnce(&Memory) -> u64 + 'static, other: impl FnOnce(&Memory) -> u64) -> (u64, u64, Arc<Memory>) {
    let m = Arc::new(Memory::default());
    let theirs = m.clone();
    let t = thread::spawn(move || one(&theirs));
    let r = other(&m);
    (t.join().unwrap(), r, m)
}

/// Bytes, then a word that says so; whoever sees the word reads the bytes.
fn message(o: Orders, says: &'static str, hears: &'static str) {
    two(move |m| { m.bytes.write(7); let _ = m.a.compare_exchange(0, 1, o.get(says, AcqRel), Acquire); 0 },
        move |m| { if m.a.load(o.get(hears, Acquire)) == 1 { assert_eq!(m.bytes.read(), 7) } 0 });
}
/// The same where the bytes are another atomic word, loaded with acquire.
fn words(o: Orders, first: &'static str, says: &'static str, hears: &'static str, then: &'static str) {
    two(move |m| { m.a.store(1, o.get(first, Release)); let _ = m.b.compare_exchange(0, 1, o.get(says, AcqRel), Acquire); 0 },
        move |m| { if m.b.load(o.get(hears, Acquire)) == 1 { assert_eq!(m.a.load(o.get(then, Acquire)), 1) } 0 });
}
/// Each stores his word, then looks at the other's: one of them sees the other.
fn both_look(o: Orders, one: &'static str, other: &'static str) {
    let (saw, seen, _) = two(move |m| { m.a.fetch_or(1, AcqRel); o.store_load(one); m.b.load(Acquire) },
                             move |m| { let _ = m.b.compare_exchange(0, 1, AcqRel, Acquire); o.store_load(other); m.a.load(Acquire) });
    assert!(saw == 1 || seen == 1);
}
/// a = what names the segment (a hazard word or a pin), b = what says that it is still there (cur, or the directory word): 0 yes, 1 gone.
fn named_or_gone(o: Orders, name: &'static str, clear: &'static str, gone: &'static str, scan: &'static str) {
    two(move |m| {
            m.a.store(1, Release);
            o.store_load(name);
            if m.b.load(Acquire) == 0 { m.bytes.write(1) }      // our life of the segment
            m.a.store(0, o.get(clear, Release));
            0
        },
        move |m| {
            let _ = m.b.compare_exchange(0, 1, AcqRel, Acquire);
            o.store_load(gone);
            if m.a.load(o.get(scan, Acquire)) == 0 { m.bytes.write(0) }     // the reset
            0
        });
}
/// a = poll pin (stored before), b = view pin; the scan goes in the order of the hand-over.
fn hand_over(o: Orders, turned: bool) {
    let m = Arc::new(Memory::default());
    m.a.store(1, Relaxed);
    let theirs = m.clone();
    let t = thread::spawn(move || {
        theirs.b.store(1, o.get("pin_handover", Release));
        theirs.a.store(0, o.get("pin_clear", Release));
    });
    let poll = |m: &Memory| m.a.load(o.get("scan poll pin", Acquire));
    let view = |m: &Memory| m.b.load(o.get("scan view pin", Acquire));
    let found = if turned { view(&m) | poll(&m) } else { poll(&m) | view(&m) };
    assert_eq!(found, 1);       // a view is out: somebody names the segment all the time
    t.join().unwrap();
}
/// a = base, b = cur: two helpers compute the same base; whoever sees the new `cur` finds it.
fn rotate(o: Orders) {
    let m = Arc::new(Memory::default());
    let helper = |m: Arc<Memory>| move || {
        if let Err(found) = m.a.compare_exchange(0, 5, o.get("base_cas", AcqRel), o.get("base_cas failed", Acquire)) { assert_eq!(found, 5) }
        let _ = m.b.compare_exchange(0, 1, o.get("cur_cas", AcqRel), Acquire);
    };
    let (one, other) = (thread::spawn(helper(m.clone())), thread::spawn(helper(m.clone())));
    if m.b.load(o.get("attach_load_cur", Acquire)) == 1 { assert_eq!(m.a.load(o.get("base load", Acquire)), 5) }
    one.join().unwrap();
    other.join().unwrap();
}
/// a, b = two cells, c = hint; a second producer walks past the first one's cell. What is filled is filled from below, whoever looks.
fn walk(o: Orders) {
    let m = Arc::new(Memory::default());
    let append = |m: Arc<Memory>| move || {
        if m.a.compare_exchange(0, 1, AcqRel, o.get("cell_cas failed", Acquire)).is_ok() { m.c.store(1, o.get("hint_store", Release)) }
        else { let _ = m.b.compare_exchange(0, 1, o.get("second cell_cas", AcqRel), Acquire); }
    };
    let (one, other) = (thread::spawn(append(m.clone())), thread::spawn(append(m.clone())));
    if m.c.load(o.get("hint load", Acquire)) == 1 { assert_eq!(m.a.load(Acquire), 1) }
    if m.b.load(o.get("second cell load", Acquire)) == 1 { assert_eq!(m.a.load(Acquire), 1) }
    one.join().unwrap();
    other.join().unwrap();
}
/// a = the word of a dead row (still naming), b = tainted. Whoever finds the word cleared finds the taint.
fn taint(o: Orders) {
    let m = Arc::new(Memory::default());
    m.a.store(1, Relaxed);
    let theirs = m.clone();
    let t = thread::spawn(move || { theirs.b.store(1, o.get("clean_taint", Release)); theirs.a.store(0, o.get("clean_clear", Release)) });
    if m.a.load(o.get("scan", Acquire)) == 0 { assert_eq!(m.b.load(o.get("tainted load", Acquire)), 1) }
    t.join().unwrap();
}

struct Scenario { name: &'static str, run: fn(Orders), must: &'static [&'static str], may: &'static [&'static str] }
const SCENARIOS: &[Scenario] = &[
    Scenario { name: "append, read", run: |o| message(o, "cell_cas", "cell load"), must: &["cell_cas", "cell load"], may: &[] },
    Scenario { name: "walk, hint", run: walk, must: &["hint_store", "hint load", "second cell_cas", "second cell load"], may: &["cell_cas failed"] },
    Scenario { name: "reset, publish, look up", run: |o| message(o, "recycle_publish", "directory load"), must: &["recycle_publish", "directory load"], may: &[] },
    Scenario { name: "spill, read the file", run: |o| message(o, "advance", "word load"), must: &["advance", "word load"], may: &[] },
    Scenario { name: "make an object, map it", run: |o| message(o, "object_ready", "object check"), must: &["object_ready", "object check"], may: &[] },
    Scenario { name: "view, its word", run: |o| message(o, "view_changed", "view_changes load"), must: &["view_changed", "view_changes load"], may: &[] },
    Scenario { name: "hazard word, cur", run: |o| named_or_gone(o, "attach_hazard", "hazard_clear", "recycle_scan", "scan"),
        must: &["attach_hazard", "hazard_clear", "recycle_scan", "scan"], may: &[] },
    Scenario { name: "pin, directory", run: |o| named_or_gone(o, "pin_store", "pin_clear", "recycle_takeout", "scan"),
        must: &["pin_store", "pin_clear", "recycle_takeout", "scan"], may: &[] },
    Scenario { name: "poll pin to view pin", run: |o| hand_over(o, o.0 == "order of the scan"), must: &["pin_clear", "scan poll pin", "order of the scan"],
        may: &["pin_handover", "scan view pin"] },
    Scenario { name: "rotate", run: rotate, must: &["cur_cas", "attach_load_cur"], may: &["base_cas", "base_cas failed", "base load"] },
    Scenario { name: "clean a dead row", run: taint, must: &["clean_clear", "scan"], may: &["clean_taint", "tainted load"] },
    Scenario { name: "taint, is it still there", run: |o| both_look(o, "clean_taint", "recycle_takeout"), must: &["clean_taint", "recycle_takeout"], may: &[] },
    Scenario { name: "new epoch, directory", run: |o| words(o, "leader_epoch", "open_dir", "recycle_choose_slot", "leader_epoch load"),
        must: &["open_dir", "recycle_choose_slot"], may: &["leader_epoch", "leader_epoch load"] },
    Scenario { name: "announce, append", run: |o| both_look(o, "announce", "cell_cas"), must: &["announce", "cell_cas"], may: &[] },
    Scenario { name: "asleep, its bit", run: |o| words(o, "sleeping", "announce_bit", "wake_load_bitmap", "sleeping load"),
        must: &["announce_bit", "wake_load_bitmap"], may: &["sleeping", "sleeping load"] },
    Scenario { name: "asleep, wake all", run: |o| both_look(o, "sleeping", "wake all"), must: &["sleeping", "wake all"], may: &[] },
    Scenario { name: "room", run: |o| both_look(o, "room", "recycle_publish"), must: &["room", "recycle_publish"], may: &[] },
    Scenario { name: "bell", run: |o| both_look(o, "bell", "bell_sleeping"), must: &["bell", "bell_sleeping"], may: &[] },
    Scenario { name: "durable", run: |o| both_look(o, "wait durable", "durable"), must: &["wait durable", "durable"], may: &[] },
    Scenario { name: "sync wanted", run: |o| both_look(o, "wait_word", "sync_wanted"), must: &["wait_word", "sync_wanted"], may: &[] },
    Scenario { name: "tether, claim", run: |o| both_look(o, "tether", "recycle_claim"), must: &["tether", "recycle_claim"], may: &[] },
];

fn holds(run: fn(Orders), site: &'static str) -> bool {
    panic::catch_unwind(move || loom::model(move || run(Orders(site)))).is_ok()
}

fn main() {
    panic::set_hook(Box::new(|_| {}));
    let mut wrong = 0;
    let mut tried = 0;
    let mut say = |ok: bool, what: String| { wrong += !ok as u32; tried += 1; println!("{} {}", if ok { "ok  " } else { "FAIL" }, what) };
    for s in SCENARIOS {
        say(holds(s.run, ""), format!("{:26} holds with the orders of csrc/", s.name));
        for site in s.must { say(!holds(s.run, site), format!("{:26} {site} weakened: caught", s.name)) }
        for site in s.may { say(holds(s.run, site), format!("{:26} {site} weakened: holds, as ORDERS.md argues", s.name)) }
    }
    println!("{tried} memory orders: {}", if wrong == 0 { "all as expected.".to_string() } else { format!("{wrong} NOT as expected") });
    std::process::exit((wrong != 0) as i32);
}
