//! Every call of the CUDA driver that fails, at any moment: an error of calib, whatever is under way then.

use super::{Engines, calib_command, error_of, faults::side_by_side, has_ended, real_driver};

/// What calib and TensorRT call while an engine runs.
const CALLS: [&str; 33] = [
    "cuInit",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuMemGetInfo_v2",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemGetAddressRange_v2",
    "cuPointerGetAttribute",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemsetD8Async",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime_v2",
    "cuLaunchHostFunc",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
];

#[test]
fn a_driver_that_fails_at_any_moment_is_an_error_and_no_crash() {
    if real_driver() {
        return;
    }
    let engines = Engines::build();
    let plan = engines.path("fp32.plan");
    // Twelve samples are batches of two shapes; a graph is recorded once and launched often.
    let compare = ["compare", "--ref", "ort", "--target", &plan, "--samples", "12"];
    let bench = ["bench", &plan, "--seconds", "0.005", "--cuda-graph"];
    let commands: [&[&str]; 2] = [&compare, &bench];
    let moments = [1, 2, 3, 7, 8];
    let ways = CALLS.iter().flat_map(|call| {
        moments.iter().flat_map(move |n| {
            [format!("fail={call}:{n}:700"), format!("fail={call}:{n}:2"), format!("vanish={call}:{n}")]
        })
    });
    let ways: Vec<String> = ways.collect();
    side_by_side(ways.len(), &|number| {
        let orders = &ways[number];
        // Either command alone for most of them, since each takes a tenth of a second.
        let command = commands[number / 3 % 2];
        let output = calib_command(orders, command).output().unwrap();
        let error = error_of(&output);
        // A moment that does not come, or an error of what only gives back, changes nothing.
        let code = output.status.code();
        assert!(has_ended(code, 0) || has_ended(code, 2), "{orders}: {:?}, {error}", output.status);
        assert!(
            !error.contains("stand-in: ") && !error.contains("panicked") && !error.contains("internal error"),
            "{orders}: {error}"
        );
        assert!(code == Some(0) || error.contains("error: "), "{orders}: {error}");
    });
}
