//! Speed of calibration: `cargo bench --bench calibrate`.
//!
//! Counting one image's activations on one thread, then choosing thresholds for 60 tensors by every method.
#![expect(clippy::print_stdout, reason = "a program of its own, whose result is this text")]

use std::{collections::BTreeMap, hint::black_box, time::Instant};

use trtcalib::{
    artifact::ContentHash,
    calibrate::{Choice, Histograms, Method, Provenance, Shards, histogram::Histogram, tables},
    tensor::{TensorView, ValuesView},
};

/// Values that the quantized tensors of EfficientNet-Lite0 hold for one image.
const VALUES: usize = 7_000_000;
const TENSORS: usize = 60;

/// The shortest of a few runs, in seconds.
fn shortest<T>(mut run: impl FnMut() -> T) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..9 {
        let start = Instant::now();
        black_box(run());
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// A sum of four uniform numbers, nearly normal, of standard deviation 1.
fn activations() -> Vec<f32> {
    let mut state = 1u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..VALUES).map(|_| (uniform() + uniform() + uniform() + uniform()) * 3f32.sqrt()).collect()
}

fn observe(values: &[f32]) -> Histogram {
    let mut histogram = Histogram::default();
    for tensor in values.chunks(VALUES / TENSORS) {
        let view = TensorView { shape: &[tensor.len()], values: ValuesView::F32(tensor) };
        histogram.observe(view).expect("values are finite");
    }
    histogram
}

fn main() {
    let linear = activations();
    let relu6: Vec<f32> = linear.iter().map(|x| (3.0 * x).clamp(0.0, 6.0)).collect();
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread can be started");
    for (name, values) in [("linear", &linear), ("ReLU6", &relu6)] {
        let seconds = one.install(|| shortest(|| observe(values)));
        println!("count, {name}, one thread: {:.2} ns/value", seconds * 1e9 / VALUES as f64);
    }

    let provenance = Provenance {
        model_hash: ContentHash::of_bytes(b""),
        data_hash: ContentHash::of_bytes(b""),
        random_data: false,
        shards: Shards::whole(),
    };
    let mut histograms = Histograms::new(provenance);
    let part: BTreeMap<_, _> = (0..TENSORS).map(|i| (i.to_string(), observe(&linear[..VALUES / (i + 1)]))).collect();
    (histograms.fit, histograms.held_out) = (part.clone(), part);
    for choice in [Choice::Auto].into_iter().chain(Method::ALL.map(Choice::Method)) {
        let seconds = shortest(|| tables(&histograms, 99.99, &[choice]));
        println!("thresholds of {TENSORS} tensors, {choice}: {:.0} ms", seconds * 1e3);
    }
}
