//! The device itself, on which comparing and counting run: what the driver and its kernels refuse there.

use std::{collections::BTreeMap, sync::Arc};

use calib_test_support::Need;
use trtcalib::{
    backend::{
        Accelerator,
        cuda::{CudaStream, Device, DeviceView, Gpu, Pair, Staged, load_compiler},
    },
    tensor::{Tensor, TensorMap},
};

use super::{inside, real_driver};

#[test]
fn tensors_go_to_the_device_and_come_back() {
    inside("device::sent_compared_and_fetched", "");
    if real_driver() {
        return;
    }
    for (test, orders) in [
        ("device::a_launch_that_fails", "kernel-fails"),
        ("device::memory_that_is_used_up", "memory=100000"),
        ("device::a_gpu_that_is_too_old", "capability=6.1"),
        ("device::a_gpu_that_vanishes", "vanish=cuMemcpyDtoHAsync_v2:1"),
        ("device::without_pools", "no-pools"),
    ] {
        inside(test, orders);
    }
}

fn inputs(count: usize) -> TensorMap {
    let values = (0..count * 4).map(|i| i as f32 - 7.0).collect();
    BTreeMap::from([("x".to_owned(), Tensor::from_f32(vec![count, 4], values).unwrap())])
}

/// Views are made for the stream on which the device works: they wait for the copy on the other one.
fn gpu() -> (Device, Arc<CudaStream>, Gpu) {
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    let gpu = Gpu::new(&device, &stream).unwrap();
    (device, stream, gpu)
}

/// The error of sending `count` rows and asking for sums over them.
fn refused(count: usize) -> String {
    let (_device, stream, gpu) = gpu();
    let work = || {
        let staged = gpu.uploader.upload(&inputs(count), None, None)?;
        let view = staged.tensors()[0].view(&stream)?;
        gpu.sums(&[Pair { reference: view, target: view, threshold: f32::INFINITY }])
    };
    work().unwrap_err().to_string()
}

#[test]
#[ignore = "run by another test, with the stand-ins"]
fn sent_compared_and_fetched() {
    if Need::Nvrtc.or_skip(load_compiler()).is_none() {
        return;
    }
    let (device, stream, gpu) = gpu();
    assert_eq!(gpu.index(), 0);
    assert!(device.free_memory().unwrap() > 0 && device.info().memory_bytes > 0);
    let sent = inputs(3);
    // Filled up to four rows with the last one, into the buffers of before.
    let mut used: Option<Staged> = None;
    for rows in [None, Some(4), Some(4)] {
        let staged = gpu.uploader.upload(&sent, rows, used.take()).unwrap();
        assert!(staged.is_like(&device, &sent, rows) && !staged.is_like(&device, &inputs(5), rows));
        let view = staged.tensors()[0].view(&stream).unwrap();
        let found = gpu.to_host(&[("x", view)]).unwrap();
        let mut expected = sent["x"].to_f32();
        if rows.is_some() {
            expected.extend_from_within(8..);
        }
        assert_eq!(found["x"].to_f32(), expected);
        let sums = gpu.sums(&[Pair { reference: view, target: view, threshold: f32::INFINITY }]).unwrap();
        assert_eq!(sums.len(), 1);
        let rows_of: Vec<DeviceView<'_>> = (0..3).filter_map(|row| view.row(row, expected.len() / 4)).collect();
        let best = gpu.top_k(&rows_of, 2).unwrap();
        assert_eq!(best[2], [(3, 4.0), (2, 3.0)]);
        let mut counter = gpu.counter(1).unwrap();
        assert!(counter.count(&[(0, view)]).unwrap().is_none());
        let counted = counter.finish().unwrap();
        assert_eq!((counted[0].min, counted[0].max), (-7.0, 4.0));
        used = Some(staged);
    }
}

#[test]
#[ignore = "run by another test, with the stand-ins"]
fn a_launch_that_fails() {
    assert!(refused(3).contains("unspecified launch failure"), "{}", refused(3));
}

#[test]
#[ignore = "run by another test, with the stand-ins"]
fn memory_that_is_used_up() {
    let error = refused(10_000);
    assert!(error.contains("the GPU is out of memory"), "{error}");
}

#[test]
#[ignore = "run by another test, with the stand-ins"]
fn a_gpu_that_is_too_old() {
    let error = refused(3);
    assert!(error.contains("has compute capability 6.1, and CUDA 13 needs 7.5"), "{error}");
    let error = Device::open(1).unwrap_err().to_string();
    assert!(error.contains("there is no GPU 1: 1 can be seen"), "{error}");
}

#[test]
#[ignore = "run by another test, with the stand-ins"]
fn a_gpu_that_vanishes() {
    let (_device, stream, gpu) = gpu();
    let staged = gpu.uploader.upload(&inputs(3), None, None).unwrap();
    let view = staged.tensors()[0].view(&stream).unwrap();
    let error = gpu.to_host(&[("x", view)]).unwrap_err().to_string();
    assert!(error.contains("unknown error"), "{error}");
    std::mem::forget((staged, gpu)); // nothing can be given back any more
}

/// Where the driver has no memory pools, memory is allocated without them.
#[test]
#[ignore = "run by another test, with the stand-ins"]
fn without_pools() {
    let (_device, stream, gpu) = gpu();
    let staged = gpu.uploader.upload(&inputs(5), None, None).unwrap();
    let view = staged.tensors()[0].view(&stream).unwrap();
    assert_eq!(gpu.to_host(&[("x", view)]).unwrap()["x"], inputs(5)["x"]);
}
