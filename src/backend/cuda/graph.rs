//! Recording work once to launch it many times.

use std::sync::Arc;

use cudarc::driver::{
    CudaGraph, CudaStream,
    sys::{CUgraphInstantiate_flags, CUstreamCaptureMode},
};

use super::CudaError;

/// Records what `work` puts on `stream` instead of running it. Launch the graph with [`CudaGraph::launch`].
///
/// All earlier work of the device is waited for first. `work` must not wait for the stream, allocate or copy from
/// memory that is not pinned. When it fails, the recording is thrown away and the stream can be used again.
///
/// # Safety
/// A launch touches the memory that `work` named: it must stay allocated while the graph is launched and runs, and
/// nothing else may use it at that time, for buffers do not know of launches. On the same stream that is given.
pub unsafe fn capture<E: From<CudaError>>(
    stream: &Arc<CudaStream>,
    work: impl FnOnce() -> Result<(), E>,
) -> Result<CudaGraph, E> {
    let context = stream.context();
    context.synchronize().map_err(CudaError::from)?;
    let tracked = context.is_event_tracking();
    // Waiting for events from before the recording is not allowed in it; everything has been waited for above.
    // SAFETY: as the synchronization above and the caller's promise for launches make tracking needless.
    unsafe { context.disable_event_tracking() };
    let begun = stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    let worked = begun.map_err(|error| CudaError::from(error).into()).and_then(|()| work());
    let graph = if begun.is_ok() { stream.end_capture(CUgraphInstantiate_flags(0)) } else { Ok(None) };
    if tracked {
        // SAFETY: buffers made while it was off are the caller's to keep, as promised.
        unsafe { context.enable_event_tracking() };
    }
    worked?;
    let graph = graph.map_err(CudaError::from)?;
    graph.ok_or_else(|| CudaError::Call("nothing was recorded".to_owned()).into())
}
