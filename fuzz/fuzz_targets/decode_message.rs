//! Any bytes as a message: see [`tribune_fuzz::decode_message`]. Here it is also held that a
//! message which is short on the wire does not become great in memory.
#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use libfuzzer_sys::fuzz_target;
use tribune::wire::codec::DECODED_BYTES_MAX;

/// How many bytes may be allocated for each that is read: a few lists within one another, whose
/// lengths are believed as far as the rest of the message could hold them.
const GROWTH_MAX: usize = 128;

/// What any message may take: the hashes of all buckets, and the like.
const SMALL: usize = 16 * 1024;

fuzz_target!(|bytes: &[u8]| {
    let before = ALLOCATED.load(Ordering::Relaxed);
    let message = tribune::wire::decode(bytes);
    let allocated = ALLOCATED.load(Ordering::Relaxed) - before;
    drop(message);
    assert!(allocated <= GROWTH_MAX * bytes.len() + SMALL, "{allocated} for {}", bytes.len());
    assert!(allocated <= DECODED_BYTES_MAX + SMALL, "{allocated} for {}", bytes.len());
    tribune_fuzz::decode_message(bytes);
});

/// All bytes that were ever asked for.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed on as it is; a number beside it is counted up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the rules of the allocator that is called.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; all memory comes from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
