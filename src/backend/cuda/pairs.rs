//! Differences of tensors and best classes, computed in device memory.
//!
//! A pair of tensors is summed in pieces of [`PIECE`] values whose sums come back in order, so the figures depend on
//! neither batch nor device; the order within a piece is fixed as well.

use std::{cell::Cell, sync::Arc};

use cudarc::driver::{CudaFunction, CudaSlice, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg, ValidAsZeroBits};

use super::{CudaError, Device, DeviceView, Source, wait};

/// The kernels of this module.
pub const PAIRS: Source = Source { name: "pairs.cu", text: include_str!("pairs.cu") };

/// Values that are summed together.
pub const PIECE: usize = 1 << 18;

const THREADS: u32 = 256;

/// Two tensors of one shape.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// What is right.
    pub reference: DeviceView<'a>,
    /// What is compared with it.
    pub target: DeviceView<'a>,
    /// Magnitude from which reference values count as beyond; infinity for none.
    pub threshold: f32,
}

/// Sums over the pairs r, t of one piece, as the kernel writes them. Pairs that are not finite are only counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "the names say it, as in `compare::PairSums`")]
pub struct PieceSums {
    pub reference_squares: f64,
    pub target_squares: f64,
    pub error_squares: f64,
    pub error_sum: f64,
    pub error_max: f64,
    pub count: u64,
    pub beyond: u64,
    pub reference_nan: u64,
    pub reference_infinite: u64,
    pub target_nan: u64,
    pub target_infinite: u64,
    pub differing: u64,
}

// SAFETY: numbers in C's layout, the same as in the kernel.
unsafe impl DeviceRepr for PieceSums {}
// SAFETY: zeros are a valid number of each type.
unsafe impl ValidAsZeroBits for PieceSums {}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Piece {
    reference: u64,
    target: u64,
    count: u32,
    reference_type: u32,
    target_type: u32,
    threshold: f32,
}

// SAFETY: numbers in C's layout, the same as in the kernel.
unsafe impl DeviceRepr for Piece {}
// SAFETY: zeros are a valid number of each type.
unsafe impl ValidAsZeroBits for Piece {}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Row {
    address: u64,
    count: u32,
    element_type: u32,
}

// SAFETY: integers in C's layout, the same as in the kernel.
unsafe impl DeviceRepr for Row {}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Best {
    value: f64,
    index: u32,
    padding: u32,
}

// SAFETY: numbers in C's layout, the same as in the kernel.
unsafe impl DeviceRepr for Best {}
// SAFETY: zeros are a valid number of each type.
unsafe impl ValidAsZeroBits for Best {}

/// Compares tensors on one stream.
pub struct PairComparer {
    stream: Arc<CudaStream>,
    sum_pairs: CudaFunction,
    top_k: CudaFunction,
    /// Memory of the last call, to be used again: memory that is given back costs more than a comparison.
    scratch: Cell<Option<(CudaSlice<Piece>, CudaSlice<PieceSums>)>>,
}

impl PairComparer {
    /// A comparer that works on `stream`.
    pub fn new(device: &Device, stream: &Arc<CudaStream>) -> Result<Self, CudaError> {
        let kernels = device.kernels(PAIRS)?;
        Ok(Self {
            stream: stream.clone(),
            sum_pairs: kernels.function("sum_pairs")?,
            top_k: kernels.function("top_k")?,
            scratch: Cell::new(None),
        })
    }

    /// The sums of every pair, a list of pieces each, in order. Waits until they are there.
    ///
    /// # Errors
    /// Tensors of different lengths or of other than floating-point numbers, or a failure of the GPU.
    pub fn sum(&self, pairs: &[Pair<'_>]) -> Result<Vec<Vec<PieceSums>>, CudaError> {
        let mut pieces = Vec::new();
        for pair in pairs {
            let count = pair.reference.len();
            if count != pair.target.len() {
                return Err(CudaError::Call(format!("{count} values cannot be compared with {}", pair.target.len())));
            }
            let (reference_type, target_type) = (kernel_type(&pair.reference)?, kernel_type(&pair.target)?);
            for first in (0..count).step_by(PIECE) {
                pieces.push(Piece {
                    reference: pair.reference.address() + (first * pair.reference.element_type().size()) as u64,
                    target: pair.target.address() + (first * pair.target.element_type().size()) as u64,
                    count: PIECE.min(count - first) as u32,
                    reference_type,
                    target_type,
                    threshold: pair.threshold,
                });
            }
        }
        let mut sums = vec![PieceSums::default(); pieces.len()];
        if !pieces.is_empty() {
            let enough = |(arguments, _): &(CudaSlice<Piece>, _)| arguments.len() >= pieces.len();
            let (mut arguments, mut results) = match self.scratch.take().filter(enough) {
                Some(scratch) => scratch,
                None => (self.stream.alloc_zeros(pieces.len())?, self.stream.alloc_zeros(pieces.len())?),
            };
            self.stream.memcpy_htod(&pieces, &mut arguments)?;
            let mut launch = self.stream.launch_builder(&self.sum_pairs);
            launch.arg(&arguments).arg(&mut results);
            // SAFETY: the kernel's own arguments, one block for each piece and its result. Pieces lie within their
            // views, which live until the synchronization below.
            unsafe { launch.launch(blocks(pieces.len())) }?;
            let copied = self.stream.memcpy_dtoh(&results.slice(..pieces.len()), &mut sums);
            wait(&self.stream)?;
            copied?;
            self.scratch.set(Some((arguments, results)));
        }
        let mut rest = sums.as_slice();
        let split = pairs.iter().map(|pair| {
            let (mine, others) = rest.split_at(pair.reference.len().div_ceil(PIECE));
            rest = others;
            mine.to_vec()
        });
        Ok(split.collect())
    }

    /// The `k` largest values of each row with their indices, the best first; among equals the lowest index, NaN never, so
    /// that there may be fewer.
    pub fn top_k(&self, rows: &[DeviceView<'_>], k: usize) -> Result<Vec<Vec<(u32, f64)>>, CudaError> {
        if rows.is_empty() || k == 0 {
            return Ok(vec![Vec::new(); rows.len()]);
        }
        let row = |view: &DeviceView<'_>| {
            let count = u32::try_from(view.len()).ok().filter(|&count| count < u32::MAX);
            let count = count.ok_or_else(|| CudaError::Call(format!("{} classes are too many", view.len())))?;
            Ok(Row { address: view.address(), count, element_type: kernel_type(view)? })
        };
        let arguments = rows.iter().map(row).collect::<Result<Vec<_>, CudaError>>()?;
        let arguments = self.stream.clone_htod(&arguments)?;
        let mut best = self.stream.alloc_zeros::<Best>(rows.len() * k)?;
        let k_argument = k as u32;
        let mut launch = self.stream.launch_builder(&self.top_k);
        launch.arg(&arguments).arg(&k_argument).arg(&mut best);
        // SAFETY: the kernel's own arguments, one block for each row and its `k` results. The views live until the
        // synchronization below.
        unsafe { launch.launch(blocks(rows.len())) }?;
        let copied = self.stream.clone_dtoh(&best);
        wait(&self.stream)?;
        let of_row = |row: &[Best]| {
            row.iter().map(|best| (best.index, best.value)).take_while(|&(index, _)| index != u32::MAX).collect()
        };
        Ok(copied?.chunks(k).map(of_row).collect())
    }
}

fn kernel_type(view: &DeviceView<'_>) -> Result<u32, CudaError> {
    view.kernel_type().ok_or_else(|| CudaError::Call(format!("{} cannot be compared", view.element_type())))
}

fn blocks(count: usize) -> LaunchConfig {
    LaunchConfig { grid_dim: (count as u32, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}
