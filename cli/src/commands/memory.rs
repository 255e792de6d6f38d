//! What the process may take of the machine's memory.

use anyhow::{Result, bail};
#[cfg(target_os = "linux")]
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Few heaps for all threads: each thread's own would keep the memory of the largest image it ever decoded, and the peak
/// would grow with the number of images. One is enough for two cores; sixteen would wait for it a third of their time.
pub fn share_heaps() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // SAFETY: sets an option of the allocator, before any other thread runs.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, cores.div_ceil(2).min(8) as libc::c_int);
        }
    }
}

/// A file beyond the limit of the user's file sizes is then an error of the write, and not the end of the process.
pub fn refuse_large_files_by_error() {
    #[cfg(unix)]
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// C++ ends the process where it finds no memory and cannot say so, and some libraries write to what they were not given: that
/// is an error like another under a limit.
#[cfg(target_os = "linux")]
extern "C" fn given_up(_: libc::c_int) {
    let text =
        b"error: a library gave up, most likely for want of memory; give the command more with --max-memory-mb\n";
    // SAFETY: writes bytes that live through the call, and ends the process at once; both may be called by a signal's handler.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len() as _);
        libc::_exit(2)
    }
}

/// Limits the memory that the process can write to, to `megabytes` or to what the machine or the container has. A model
/// that computes a huge shape is then refused by the allocation, with the node's name; without, the system ends some
/// process when memory runs out.
#[cfg(target_os = "linux")]
pub fn limit(megabytes: Option<u64>) -> Result<()> {
    if megabytes.is_some() {
        // SAFETY: the handler calls nothing that a handler may not.
        unsafe {
            for end in [libc::SIGSEGV, libc::SIGABRT] {
                libc::signal(end, given_up as *const () as libc::sighandler_t);
            }
        }
    }
    let limit_bytes = match megabytes {
        Some(megabytes) => Some(megabytes.saturating_mul(1 << 20)),
        None => available_bytes(),
    };
    let Some(bytes) = limit_bytes else { return Ok(()) };
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through both calls.
    let failed = unsafe {
        libc::getrlimit(libc::RLIMIT_DATA, &raw mut limit) != 0 || {
            limit.rlim_cur = limit.rlim_cur.min(bytes);
            libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) != 0
        }
    };
    if failed && megabytes.is_some() {
        bail!("--max-memory-mb: the system does not limit memory: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

/// The memory of the machine, or of the container if that has less.
#[cfg(target_os = "linux")]
fn available_bytes() -> Option<u64> {
    let system =
        System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()));
    let system = system.ok()?;
    let container = system.cgroup_limits().map(|limits| limits.total_memory);
    Some(system.total_memory()).into_iter().chain(container).filter(|&bytes| bytes > 0).min()
}

/// Other systems have no such limit.
#[cfg(not(target_os = "linux"))]
pub fn limit(megabytes: Option<u64>) -> Result<()> {
    if megabytes.is_some() {
        bail!("--max-memory-mb works on Linux only");
    }
    Ok(())
}
