//! The program's heap: where the system gives no more, the command ends with status 2 and says what it was reading.
//!
//! Rust's own way to end is an abort, status 134, whose backtrace needs the memory that is not there, or the lock of
//! whoever was asking for it.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicBool, Ordering},
};

use trtcalib::artifact::{Told, being_read};

/// The system's heap with that end.
pub struct Heap;

// SAFETY: passes everything on to the system's allocator; what comes back is what it gave.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those of the system's allocator.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        given(unsafe { System.realloc(pointer, layout, size) }, size)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn given(pointer: *mut u8, size: usize) -> *mut u8 {
    if pointer.is_null() {
        end(size);
    }
    pointer
}

/// Set by the first thread that ends the process: two that speak at once are not understood.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Says what lacks and ends the process. Nothing here takes memory or a lock.
#[cold]
fn end(size: usize) -> ! {
    if ENDING.swap(true, Ordering::SeqCst) {
        loop {
            // SAFETY: sleeps, until the first thread has ended the process.
            unsafe { libc::sleep(1) };
        }
    }
    let mut digits = [0u8; 20];
    let mut rest = size.div_ceil(1 << 20);
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    say(b"error: out of memory: ");
    say(&digits[at..]);
    say(b" MB more are not to be had");
    being_read(&mut |file, told| {
        let about = match told {
            Told::Read => ", while reading ",
            Told::WorkedOn => ", while working on ",
            Told::Largest => "; the largest file read is ",
        };
        say(about.as_bytes());
        say(file);
    });
    say(b"; give the command more with --max-memory-mb, a machine with more, or less to read\n");
    // SAFETY: ends the process at once, without the handlers that run at exit: they may need memory.
    unsafe { libc::_exit(2) }
}

fn say(text: &[u8]) {
    // SAFETY: writes bytes that live through the call to standard error; a failure leaves nothing else to do.
    let _ = unsafe { libc::write(2, text.as_ptr().cast(), text.len() as _) };
}
