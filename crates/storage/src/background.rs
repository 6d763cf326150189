//! What a thread does whose work nobody waits for: checkpoints and merges.
//!
//! On a machine with few cores a burst of such work would take the processor from the threads that answer clients.

/// By how much a background thread stands back: it gets about a tenth of what another gets that wants the same core, and all of an idle one.
const NICE: i32 = 10;

/// Makes the calling thread stand back. On other systems than Linux nothing changes.
pub fn stand_back() {
    // POSIX speaks of processes; Linux of threads, and zero is the calling one.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "a background thread keeps its priority");
    }
}

/// Gives memory back to the operating system that the allocator keeps after a burst of work. With another allocator than glibc's nothing
/// happens.
pub fn release_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "the allocator has no other way to be asked")]
    // SAFETY: the call takes no pointer, may be made at any time from any thread, and changes nothing that a program can see.
    unsafe {
        libc::malloc_trim(0);
    }
}
