//! Histograms of magnitudes, counted in device memory: extremes, zeros, values that are not finite, and [`BINS`] counts
//! over [0, 2^e) for the smallest e that covers the largest magnitude.
//!
//! Every batch is read once: its values are counted in the range so far while the extremes are taken; then the range
//! widens where they demand it, and only tensors that it widened for are read again for the values beyond. What comes
//! back after a batch is a few numbers a tensor; the counts stay until the end.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg, ValidAsZeroBits};

use super::{CudaError, Device, DeviceView, Source, wait};

/// Bins of a histogram.
pub const BINS: usize = 8192;

/// The smallest range is 2^-113, as wide bins as the smallest normal `float32`.
pub const MIN_EXPONENT: i32 = -113;

/// The kernels of this module.
pub const MAGNITUDES: Source = Source { name: "magnitudes.cu", text: include_str!("magnitudes.cu") };

/// Threads of a block of the counting kernels.
const THREADS: u32 = 512;
/// Pieces are not cut smaller than this: writing a piece's counts out costs up to [`BINS`] additions.
const SMALLEST_PIECE: usize = 1 << 15;
/// Pieces that all multiprocessors work on at a time, and how often they get new ones on average.
const PIECES_AT_ONCE: usize = 3;
const ROUNDS: usize = 3;

/// A part of a tensor that one block counts, as the kernels see it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Piece {
    address: u64,
    first: u64,
    count: u32,
    tensor: u32,
    element_type: u32,
    padding: u32,
}

// SAFETY: integers in C's layout, the same as in the kernels.
unsafe impl DeviceRepr for Piece {}
// SAFETY: zeros are a valid number of each type.
unsafe impl ValidAsZeroBits for Piece {}

/// What is known of a tensor beside its counts, as the kernels see it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct State {
    exponent: i32,
    next: i32,
    min_key: i32,
    max_key: i32,
    zeros: u64,
    non_finite: u64,
    first_non_finite: u64,
}

// SAFETY: numbers in C's layout, the same as in the kernels.
unsafe impl DeviceRepr for State {}
// SAFETY: zeros are a valid number of each type.
unsafe impl ValidAsZeroBits for State {}

const EMPTY: State = State {
    exponent: MIN_EXPONENT,
    next: MIN_EXPONENT,
    min_key: i32::MAX,
    max_key: i32::MIN,
    zeros: 0,
    non_finite: 0,
    first_non_finite: u64::MAX,
};

/// What was counted of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Magnitudes {
    /// Bin i over [i, i + 1) / [`BINS`] · 2^e.
    pub counts: Vec<u64>,
    /// Values equal to zero; part of the first bin.
    pub zeros: u64,
    /// Smallest finite value; +infinity without any.
    pub min: f32,
    /// Largest finite value; -infinity without any.
    pub max: f32,
}

/// The first value of a tensor that is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonFinite {
    /// Which tensor.
    pub tensor: usize,
    /// Index in the batch's tensor, row-major.
    pub index: u64,
    /// How many there are.
    pub count: u64,
}

/// Counts the magnitudes of a fixed set of tensors over any number of batches.
pub struct MagnitudeCounter {
    stream: Arc<CudaStream>,
    count_values: CudaFunction,
    count_beyond: CudaFunction,
    rescale: CudaFunction,
    pieces: CudaSlice<Piece>,
    states: CudaSlice<State>,
    counts: CudaSlice<u64>,
    host: Vec<State>,
    resident: usize,
}

impl MagnitudeCounter {
    /// A counter of `tensors` tensors that works on `stream`.
    pub fn new(device: &Device, stream: &Arc<CudaStream>, tensors: usize) -> Result<Self, CudaError> {
        let kernels = device.kernels(MAGNITUDES)?;
        let tensors = tensors.max(1);
        let host = vec![EMPTY; tensors];
        Ok(Self {
            count_values: kernels.function("count_values")?,
            count_beyond: kernels.function("count_beyond")?,
            rescale: kernels.function("rescale")?,
            pieces: stream.alloc_zeros(1)?,
            states: stream.clone_htod(&host)?,
            counts: stream.alloc_zeros(tensors * BINS)?,
            stream: stream.clone(),
            host,
            resident: device.info().multiprocessors as usize * PIECES_AT_ONCE,
        })
    }

    /// Counts the values of a batch, each tensor under its number, and waits until that is done.
    ///
    /// Tells the lowest-numbered tensor with values that are not finite; they are not counted.
    ///
    /// # Errors
    /// A tensor that holds no floating-point numbers or has no such number, or a failure of the GPU.
    pub fn count(&mut self, batch: &[(usize, DeviceView<'_>)]) -> Result<Option<NonFinite>, CudaError> {
        let pieces = self.pieces(batch)?;
        if pieces.is_empty() {
            return Ok(None);
        }
        let counted = self.launch(&pieces);
        // The views must not be given up while kernels may read them.
        wait(&self.stream)?;
        counted?;
        let bad = self.host.iter().position(|state| state.non_finite > 0);
        Ok(bad.map(|tensor| {
            let State { first_non_finite: index, non_finite: count, .. } = self.host[tensor];
            NonFinite { tensor, index, count }
        }))
    }

    /// Puts the work on the stream, with the copy of the states behind it.
    fn launch(&mut self, pieces: &[Piece]) -> Result<(), CudaError> {
        let (blocks, tensors) = (pieces.len() as u32, self.host.len() as u32);
        // Memory that is given back costs more than a count.
        if self.pieces.len() < pieces.len() {
            self.pieces = self.stream.alloc_zeros(pieces.len())?;
        }
        self.stream.memcpy_htod(pieces, &mut self.pieces)?;
        let pieces = &self.pieces;
        let config =
            |grid, threads| LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        let mut launch = self.stream.launch_builder(&self.count_values);
        launch.arg(pieces).arg(&mut self.states).arg(&mut self.counts);
        // SAFETY: the kernel's own arguments. Pieces lie within their views, which live until the caller has waited for
        // the stream; tensor numbers were checked against the size of both arrays.
        unsafe { launch.launch(config(blocks, THREADS)) }?;
        let mut launch = self.stream.launch_builder(&self.rescale);
        launch.arg(&mut self.states).arg(&mut self.counts);
        // SAFETY: one block for each element of `states`, of which `counts` holds `BINS` numbers.
        unsafe { launch.launch(config(tensors, 1024)) }?;
        let mut launch = self.stream.launch_builder(&self.count_beyond);
        launch.arg(pieces).arg(&mut self.states).arg(&mut self.counts);
        // SAFETY: as for `count_values`.
        unsafe { launch.launch(config(blocks, THREADS)) }?;
        Ok(self.stream.memcpy_dtoh(&self.states, &mut self.host)?)
    }

    /// Cuts tensors into pieces of about equal size, the largest first so that blocks end together.
    fn pieces(&self, batch: &[(usize, DeviceView<'_>)]) -> Result<Vec<Piece>, CudaError> {
        let total: usize = batch.iter().map(|(_, view)| view.len()).sum();
        let size = total.div_ceil(self.resident * ROUNDS).clamp(SMALLEST_PIECE, 1 << 30).next_multiple_of(16);
        let mut pieces = Vec::new();
        for &(tensor, view) in batch {
            let Some(element_type) = view.kernel_type() else {
                return Err(CudaError::Call(format!("{} cannot be counted", view.element_type())));
            };
            if tensor >= self.host.len() {
                return Err(CudaError::Call(format!("tensor {tensor} of {} cannot be counted", self.host.len())));
            }
            for first in (0..view.len()).step_by(size) {
                pieces.push(Piece {
                    address: view.address() + (first * view.element_type().size()) as u64,
                    first: first as u64,
                    count: size.min(view.len() - first) as u32,
                    tensor: tensor as u32,
                    element_type,
                    padding: 0,
                });
            }
        }
        pieces.sort_by_key(|piece| std::cmp::Reverse(piece.count));
        Ok(pieces)
    }

    /// What was counted, by tensor number.
    pub fn finish(self) -> Result<Vec<Magnitudes>, CudaError> {
        let counts = self.stream.clone_dtoh(&self.counts)?;
        wait(&self.stream)?;
        let float = |key: i32| f32::from_bits((key ^ ((key >> 31) & i32::MAX)) as u32);
        let magnitudes = |(state, counts): (&State, &[u64])| {
            let seen = state.min_key <= state.max_key;
            Magnitudes {
                counts: counts.to_vec(),
                zeros: state.zeros,
                min: if seen { float(state.min_key) } else { f32::INFINITY },
                max: if seen { float(state.max_key) } else { f32::NEG_INFINITY },
            }
        };
        Ok(self.host.iter().zip(counts.chunks(BINS)).map(magnitudes).collect())
    }
}
