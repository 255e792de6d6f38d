//! Tensors that are hard on counting and comparing, in host and device memory.

use std::sync::Arc;

use half::{bf16, f16};
use trtcalib::{
    backend::cuda::{CudaSlice, CudaStream, Device},
    tensor::{ElementType, Tensor, Values},
};

/// The types that kernels read.
pub const TYPES: [ElementType; 4] = [ElementType::F32, ElementType::F16, ElementType::Bf16, ElementType::F64];

/// A stream of pseudo-random words (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Between 0 and 1.
    pub fn share(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// About normal, standard deviation 1.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.share()).sum::<f64>() - 6.0
    }
}

/// Kinds of activations, by name.
pub const KINDS: [&str; 8] =
    ["normal", "any finite bits", "constant", "zeros", "clipped", "denormal", "huge", "one outlier"];

/// `count` values of a kind; finite in `float32`.
pub fn kind(name: &str, count: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let value = |i: usize| match name {
        "normal" => random.normal() as f32,
        "any finite bits" => {
            let x = f32::from_bits(random.word() as u32);
            if x.is_finite() { x } else { 0.0 }
        }
        "constant" => 6.0,
        "zeros" => [0.0, -0.0][i % 2],
        "clipped" => (random.normal() * 4.0).clamp(0.0, 6.0) as f32,
        "denormal" => f32::from_bits(random.word() as u32 & 0x807f_ffff),
        "huge" => (random.normal() as f32).signum() * f32::MAX * random.share() as f32,
        "one outlier" => {
            if i == count / 3 {
                -3.0e4
            } else {
                random.share() as f32 * 1e-3
            }
        }
        other => panic!("{other}"),
    };
    (0..count).map(value).collect()
}

/// The values in an element type, rounded; what would be infinite there becomes the largest number.
pub fn tensor(values: &[f32], shape: &[usize], element_type: ElementType) -> Tensor {
    let values = match element_type {
        ElementType::F32 => Values::F32(values.to_vec()),
        ElementType::F16 => {
            let max = f16::MAX.to_f32();
            Values::F16(
                values.iter().map(|x| f16::from_f32(if x.is_finite() { x.clamp(-max, max) } else { *x })).collect(),
            )
        }
        ElementType::Bf16 => {
            let max = bf16::MAX.to_f32();
            Values::Bf16(
                values.iter().map(|x| bf16::from_f32(if x.is_finite() { x.clamp(-max, max) } else { *x })).collect(),
            )
        }
        ElementType::F64 => Values::F64(values.iter().map(|&x| f64::from(x)).collect()),
        other => panic!("{other}"),
    };
    Tensor::new(shape.to_vec(), values).unwrap()
}

/// A tensor's bytes in device memory, behind `offset` bytes of something else.
pub fn on_device(stream: &Arc<CudaStream>, tensor: &Tensor, offset: usize) -> CudaSlice<u8> {
    let bytes = [&vec![0xff; offset][..], tensor.view().values.bytes()].concat();
    stream.clone_htod(&bytes).unwrap()
}

/// Takes all but `left` bytes of the first GPU's memory until the result is dropped.
pub fn on_memory_left(left: usize) -> Vec<CudaSlice<u8>> {
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    std::iter::from_fn(|| {
        let free = device.free_memory().unwrap() as usize;
        (free > left + (64 << 20)).then(|| {
            let buffer = stream.alloc_zeros::<u8>((free - left).min(8 << 30)).unwrap();
            stream.synchronize().unwrap();
            buffer
        })
    })
    .collect()
}
