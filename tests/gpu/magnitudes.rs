//! Counts of the GPU against those of the CPU, bit for bit.

use cudarc::driver::DevicePtr;
use trtcalib::{
    backend::cuda::{CudaSlice, CudaStream, Device, DeviceView, MagnitudeCounter, NonFinite},
    calibrate::histogram::Histogram,
    tensor::{ElementType, Tensor},
};

use super::values::{KINDS, TYPES, kind, on_device, tensor};

/// A view of what lies behind `offset` bytes.
fn view<'a>(buffer: &'a CudaSlice<u8>, stream: &CudaStream, tensor: &'a Tensor, offset: usize) -> DeviceView<'a> {
    let (address, _) = buffer.device_ptr(stream);
    // SAFETY: the buffer holds the tensor behind the offset and was written on `stream`.
    unsafe { DeviceView::from_raw(address + offset as u64, tensor.shape(), tensor.element_type()) }
}

/// What both make of batches of tensors; the first index of a batch is the tensor's number.
fn compare(batches: &[Vec<Tensor>], offset: usize) {
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    let tensors = batches[0].len();
    let mut counter = MagnitudeCounter::new(&device, &stream, tensors).unwrap();
    let mut expected = vec![Histogram::default(); tensors];
    for batch in batches {
        let buffers: Vec<_> = batch.iter().map(|tensor| on_device(&stream, tensor, offset)).collect();
        let views: Vec<_> =
            batch.iter().zip(&buffers).enumerate().map(|(i, (t, b))| (i, view(b, &stream, t, offset))).collect();
        assert_eq!(counter.count(&views).unwrap(), None);
        for (histogram, tensor) in expected.iter_mut().zip(batch) {
            histogram.observe(tensor.view()).unwrap();
        }
    }
    for (i, (found, expected)) in counter.finish().unwrap().into_iter().zip(expected).enumerate() {
        assert_eq!(
            (found.min.to_bits(), found.max.to_bits()),
            (expected.min().to_bits(), expected.max().to_bits()),
            "tensor {i}"
        );
        let found = Histogram::from_parts(found.counts, found.zeros, found.min, found.max).unwrap();
        assert!(found == expected, "tensor {i}: counts differ");
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn counts_are_those_of_the_cpu_for_every_kind_and_type() {
    let tensors = KINDS.iter().enumerate().flat_map(|(k, name)| {
        TYPES.map(|element_type| {
            // Not a multiple of anything, so that pieces and vectors end within.
            let count = 300_007 + k * 1001;
            tensor(&kind(name, count, k as u64), &[count], element_type)
        })
    });
    compare(&[tensors.collect()], 0);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn ranges_that_grow_from_batch_to_batch_and_differ_between_tensors_change_no_count() {
    let of = |batch: usize, index: usize, count: usize| {
        let scale = [1e-30_f32, 1.0, 1e-3, 700.0, 2e4][(batch + index) % 5];
        let values: Vec<f32> = kind("normal", count, (batch * 9 + index) as u64).iter().map(|x| x * scale).collect();
        tensor(&values, &[count], TYPES[index % 4])
    };
    let batches: Vec<Vec<Tensor>> =
        (0..6).map(|batch| (0..6).map(|index| of(batch, index, 10_001 * (index + 1))).collect()).collect();
    compare(&batches, 0);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn tiny_empty_and_unaligned_tensors_are_counted() {
    for element_type in TYPES {
        for count in [0, 1, 3, 7, 8, 9, 31, 257] {
            let batch =
                vec![tensor(&kind("normal", count, 5), &[count], element_type), tensor(&[1.0], &[1], element_type)];
            compare(&[batch.clone(), batch], 0);
        }
        compare(&[vec![tensor(&kind("clipped", 70_001, 6), &[70_001], element_type)]], element_type.size());
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_large_constant_tensor_overflows_no_counter() {
    let count = 150_000_000;
    compare(&[vec![tensor(&vec![6.0; count], &[count], ElementType::F32)]], 0);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn values_that_are_not_finite_are_found_counted_and_left_out() {
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    for element_type in TYPES {
        let mut values = kind("clipped", 500_000, 1);
        let clean = tensor(&values, &[500_000], element_type);
        for (index, bad) in [(399_999, f32::NAN), (123_456, f32::NEG_INFINITY), (400_000, f32::INFINITY)] {
            values[index] = bad;
        }
        let dirty = tensor(&values, &[500_000], element_type);
        let buffers = [&clean, &dirty].map(|tensor| on_device(&stream, tensor, 0));
        let mut counter = MagnitudeCounter::new(&device, &stream, 2).unwrap();
        let views = [(0, view(&buffers[0], &stream, &clean, 0)), (1, view(&buffers[1], &stream, &dirty, 0))];
        assert_eq!(counter.count(&views).unwrap(), Some(NonFinite { tensor: 1, index: 123_456, count: 3 }));
        let counted = counter.finish().unwrap();
        assert_eq!(counted[0].counts.iter().sum::<u64>(), 500_000);
        assert_eq!(counted[1].counts.iter().sum::<u64>(), 499_997);
        assert_eq!(counted[1].max, 6.0);
    }
    let integers = stream.clone_htod(&[1_u8; 8]).unwrap();
    let view = DeviceView::of_bytes(&integers, &stream, &[2], ElementType::I32).unwrap();
    let mut counter = MagnitudeCounter::new(&device, &stream, 1).unwrap();
    assert!(counter.count(&[(0, view)]).unwrap_err().to_string().contains("int32 cannot be counted"));
    let floats = DeviceView::of_bytes(&integers, &stream, &[2], ElementType::F32).unwrap();
    assert!(counter.count(&[(1, floats)]).is_err() && counter.count(&[]).unwrap().is_none());
    assert!(DeviceView::of_bytes(&integers, &stream, &[3], ElementType::F32).is_none());
}
