//! The CUDA layer against expected bytes.

use trtcalib::{
    backend::cuda::{CudaError, Device, Kernels, Source, Uploader, capture, device_count},
    tensor::{ElementType, TensorMap},
};

use super::values::{kind, tensor};

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn copies_between_pinned_host_and_device_keep_every_byte() {
    let device = Device::open(0).unwrap();
    assert!(device.info().compute_capability >= (7, 5) && device.info().memory_bytes > 0, "{:?}", device.info());
    let stream = device.stream().unwrap();
    let count = 1 << 20;
    let mut host = device.pinned::<u32>(count).unwrap();
    assert!(host.as_slice().unwrap().iter().all(|&x| x == 0));
    for (i, x) in host.as_mut_slice().unwrap().iter_mut().enumerate() {
        *x = (i as u32).wrapping_mul(2_654_435_761);
    }
    let mut on_device = stream.alloc_zeros::<u32>(count).unwrap();
    stream.memcpy_htod(&host, &mut on_device).unwrap();
    let other = device.stream().unwrap();
    let mut copy = other.alloc_zeros::<u32>(count).unwrap();
    other.memcpy_dtod(&on_device, &mut copy).unwrap();
    let mut back = device.pinned::<u32>(count).unwrap();
    other.memcpy_dtoh(&copy, &mut back).unwrap();
    assert_eq!(back.as_slice().unwrap(), host.as_slice().unwrap());
    assert!(device.pinned::<u8>(0).is_err());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn inputs_arrive_whole_in_memory_that_was_used_before() {
    let device = Device::open(0).unwrap();
    let (stream, uploader) = (device.stream().unwrap(), Uploader::new(&device).unwrap());
    // Rows of 2.8 MB end within pieces; a larger input needs memory of its own, a smaller one leaves some unused.
    let columns = 700_001;
    let mut used = None;
    for (seed, (rows, filled)) in
        [(3, Some(5)), (1, None), (5, None), (2, Some(4)), (6, None), (6, Some(2))].into_iter().enumerate()
    {
        let values = tensor(&kind("normal", rows * columns, seed as u64), &[rows, columns], ElementType::F32);
        let mut expected = values.view().values.bytes().to_vec();
        let last = expected[expected.len() - 4 * columns..].to_vec();
        (rows..filled.unwrap_or(rows)).for_each(|_| expected.extend(&last));
        let inputs = TensorMap::from([("x".to_owned(), values)]);
        let staged = uploader.upload(&inputs, filled, used.take()).unwrap();
        assert!(staged.is_like(&device, &inputs, filled) && !staged.is_like(&device, &inputs, Some(99)));
        let view = staged.tensors()[0].view(&stream).unwrap();
        assert_eq!(view.shape(), [filled.map_or(rows, |filled| filled.max(rows)), columns]);
        let mut found = vec![0_u8; 4 * view.len()];
        // SAFETY: as many bytes as the view has.
        unsafe { cudarc::driver::result::memcpy_dtoh_async(&mut found, view.address(), stream.cu_stream()) }.unwrap();
        stream.synchronize().unwrap();
        assert!(found == expected, "{rows} rows filled up to {filled:?}");
        used = Some(staged);
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn too_much_memory_is_its_own_error_and_the_device_goes_on() {
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    let everything = device.info().memory_bytes as usize + (1 << 30);
    assert_eq!(stream.alloc_zeros::<u8>(everything).map_err(CudaError::from).unwrap_err(), CudaError::OutOfMemory);
    let small = stream.clone_htod(&[1_u8, 2, 3]).unwrap();
    assert_eq!(stream.clone_dtoh(&small).unwrap(), [1, 2, 3]);
    let count = device_count().unwrap();
    assert_eq!(Device::open(count).unwrap_err(), CudaError::NoSuchDevice { index: count, count });
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_graph_repeats_what_was_recorded_and_a_failed_recording_leaves_the_stream_usable() {
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    let source = stream.clone_htod(&[7_u32; 256]).unwrap();
    let mut target = stream.alloc_zeros::<u32>(256).unwrap();
    // SAFETY: both buffers outlive the graph, and everything runs on one stream.
    let graph = unsafe { capture(&stream, || Ok::<_, CudaError>(stream.memcpy_dtod(&source, &mut target)?)) }.unwrap();
    assert_eq!(stream.clone_dtoh(&target).unwrap(), [0; 256], "recording runs nothing");
    for _ in 0..3 {
        stream.memset_zeros(&mut target).unwrap();
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&target).unwrap(), [7; 256]);
    }
    // SAFETY: nothing is recorded.
    let failed = unsafe { capture(&stream, || Err(CudaError::NoGpu)) };
    assert_eq!(failed.map(drop).unwrap_err(), CudaError::NoGpu);
    stream.memset_zeros(&mut target).unwrap();
    assert_eq!(stream.clone_dtoh(&target).unwrap(), [0; 256]);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_timer_measures_the_work_between_its_marks() {
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    let mut buffer = stream.alloc_zeros::<u8>(1 << 30).unwrap();
    let timer = device.timer().unwrap();
    let mut time = |times: usize| {
        timer.start(&stream).unwrap();
        (0..times).for_each(|_| stream.memset_zeros(&mut buffer).unwrap());
        timer.stop(&stream).unwrap();
        timer.elapsed_ms().unwrap()
    };
    time(1);
    let (one, twenty) = (time(1), time(20));
    // 1 GiB takes longer than 0.1 ms on any GPU, and twenty fills longer than five.
    assert!(one > 0.1 && twenty > 5.0 * one, "{one} and {twenty} ms");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn kernels_run_and_keep_denormal_numbers() {
    use cudarc::driver::{LaunchConfig, PushKernelArg};
    let text = "extern \"C\" __global__ void twice(float* x, unsigned n) {\n\
                unsigned i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) x[i] *= 2.0f; }";
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    let twice = Kernels::load(&device, Source { name: "twice.cu", text }).unwrap().function("twice").unwrap();
    let mut x = stream.clone_htod(&[1.5_f32, -2.0, 1e-45]).unwrap();
    let mut launch = stream.launch_builder(&twice);
    launch.arg(&mut x).arg(&3_u32);
    // SAFETY: the arguments are those of the kernel, which stays below `n`.
    unsafe { launch.launch(LaunchConfig::for_num_elems(3)) }.unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [3.0, -4.0, 3e-45]);
}
