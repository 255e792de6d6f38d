//! Rounding of weights by what it does to the result: coordinate descent on `(w - s q)ᵀ H (w - s q)`.
//!
//! `H` holds the second moments of what the weights are multiplied with, as quantized. Each step moves one code by one
//! where that lowers the error, until none does; the codes start at the nearest ones.
//!
//! Where errors that reach the operator are to be taken back, what counts is `w x - s q x̂` in the place of `(w - s q) x̂`, whose
//! slope has `C w` more, where `C` holds the products of `x̂` with its errors `x - x̂`.

use rayon::prelude::*;

/// Numbers of a weight or of a matrix that are worth a thread.
pub(super) const CHUNK: usize = 1 << 14;
/// Passes over all codes of a channel, at most.
const SWEEPS: usize = 6;
/// Share of the mean diagonal that is added to every entry of it, so that few samples do not decide alone.
const DAMPING: f64 = 0.02;
/// What is left of the mean's own part: biases take back most of what shifts the mean.
const MEAN_PART: f64 = 0.1;
/// The furthest that a code may move from the nearest.
const REACH: i32 = 7;
/// Share of the errors that reach a weight which it takes back: all of what samples show of them does not hold elsewhere.
const TAKEN_BACK: f32 = 0.5;

/// What the codes of the weights of a group of channels follow from, in a unit of its own.
pub(super) struct Slopes {
    /// Second moments `H` of what the weights are multiplied with, damped.
    pub moments: Vec<f32>,
    /// The products `C` with its errors, where these are to be taken back.
    pub errors: Option<Vec<f32>>,
}

/// Second moments of rows of `width` numbers.
pub(super) struct Moments {
    width: usize,
    pub rows: usize,
    sums: Vec<f64>,
    products: Vec<f64>,
}

impl Moments {
    pub fn new(width: usize) -> Self {
        Self { width, rows: 0, sums: vec![0.0; width], products: vec![0.0; width * width] }
    }

    /// Adds rows divided by `size`; `products` is their `AᵀA`.
    pub fn add(&mut self, size: f64, rows: &[f32], products: &[f32]) {
        self.rows += rows.len() / self.width;
        for row in rows.chunks_exact(self.width) {
            self.sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += size * f64::from(value));
        }
        let square = size * size;
        let chunks = self.products.par_chunks_mut(CHUNK).zip(products.par_chunks(CHUNK));
        chunks.for_each(|(sums, new)| {
            for (sum, &value) in sums.iter_mut().zip(new) {
                *sum += square * f64::from(value);
            }
        });
    }

    fn means(&self) -> Vec<f64> {
        self.sums.iter().map(|sum| sum / self.rows.max(1) as f64).collect()
    }

    /// What to descend on, damped, with most of the mean taken out, and of a size that is of no account. `errors` are the rows of
    /// the errors, whose products are those with these rows.
    pub fn finish(self, errors: Option<Self>) -> Slopes {
        let (width, rows) = (self.width, self.rows.max(1) as f64);
        let means = self.means();
        let entry = |index: usize| {
            let (i, j) = (index / width, index % width);
            self.products[index] / rows - (1.0 - MEAN_PART) * means[i] * means[j]
        };
        let mut matrix: Vec<f64> = (0..width * width).into_par_iter().with_min_len(CHUNK).map(entry).collect();
        let trace: f64 = (0..width).map(|k| matrix[k * width + k].max(0.0)).sum();
        // Fewer rows than unknowns tell little about most directions: what they seem to tell does not hold elsewhere.
        let damping = (DAMPING + 2.0 * width as f64 / rows) * trace / width as f64;
        (0..width).for_each(|k| matrix[k * width + k] += damping);
        let size = power_of_two(trace);
        let moments = matrix.into_par_iter().with_min_len(CHUNK).map(|value| (value / size) as f32).collect();
        let errors = errors.map(|errors| {
            // Means are for biases to take back.
            let of_errors = errors.means();
            let entry = |index: usize| errors.products[index] / rows - means[index / width] * of_errors[index % width];
            let entries = (0..width * width).into_par_iter().with_min_len(CHUNK);
            entries.map(|index| (entry(index) / size) as f32).collect()
        });
        Slopes { moments, errors }
    }
}

/// The power of two at or below a positive number, else 1.
pub(super) fn power_of_two(number: f64) -> f64 {
    // What is left without its mantissa.
    if number.is_normal() && number > 0.0 { f64::from_bits(number.to_bits() & !((1 << 52) - 1)) } else { 1.0 }
}

/// `AᵀB` of narrow rows.
pub(super) fn products(a: &[f32], b: &[f32], width: usize) -> Vec<f32> {
    let mut products = vec![0.0f32; width * width];
    for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
        for (line, &a) in products.chunks_exact_mut(width).zip(a) {
            line.iter_mut().zip(b).for_each(|(sum, &b)| *sum += a * b);
        }
    }
    products
}

/// Moves the `codes` of one channel with the weights `weights` and the step `scale`; returns how many moved.
pub(super) fn descend(weights: &[f32], scale: f32, codes: &mut [i32], slopes: &Slopes) -> usize {
    let (width, matrix) = (weights.len(), &slopes.moments);
    let nearest = codes.to_vec();
    let row = |k: usize| &matrix[k * width..(k + 1) * width];
    let mut gradient = vec![0.0f32; width];
    if let Some(errors) = &slopes.errors {
        for (sum, row) in gradient.iter_mut().zip(errors.chunks_exact(width)) {
            *sum = TAKEN_BACK * row.iter().zip(weights).map(|(error, weight)| error * weight).sum::<f32>();
        }
    }
    for (k, (&weight, &code)) in weights.iter().zip(codes.iter()).enumerate() {
        let error = weight - scale * code as f32;
        gradient.iter_mut().zip(row(k)).for_each(|(sum, &h)| *sum += error * h);
    }
    for _ in 0..SWEEPS {
        let mut moved = false;
        for k in 0..width {
            let step = if gradient[k] > 0.0 { 1 } else { -1 };
            let (next, own) = (codes[k] + step, scale * matrix[k * width + k]);
            let lowers = 2.0 * gradient[k].abs() > own * 1.0001;
            if lowers && next.abs() <= 127 && (next - nearest[k]).abs() <= REACH {
                codes[k] = next;
                let change = scale * step as f32;
                gradient.iter_mut().zip(row(k)).for_each(|(sum, &h)| *sum -= change * h);
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    codes.iter().zip(&nearest).filter(|(a, b)| a != b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(width: usize, rows: &[f32]) -> Moments {
        let mut moments = Moments::new(width);
        moments.add(1.0, rows, &products(rows, rows, width));
        moments
    }

    #[test]
    fn errors_of_inputs_that_go_together_cancel() {
        // Both inputs are always equal, so only the sum of both weights matters: 0.4 + 0.4 is 1 step, not 0.
        let moments = moments(2, &[1.0, 1.0, -1.0, -1.0, 2.0, 2.0, -2.0, -2.0].repeat(100));
        let mut codes = [0, 0];
        assert_eq!(descend(&[0.4, 0.4], 1.0, &mut codes, &moments.finish(None)), 1);
        assert_eq!(codes.iter().sum::<i32>(), 1);
    }

    #[test]
    fn inputs_that_do_not_go_together_keep_the_nearest_codes() {
        let moments = moments(2, &[1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0, -1.0].repeat(100));
        let mut codes = [0, 127];
        assert_eq!(descend(&[0.4, 126.6], 1.0, &mut codes, &moments.finish(None)), 0);
    }

    #[test]
    fn errors_that_reach_a_weight_are_taken_back_in_part() {
        // What arrives is a fifth too small, so that the weight of 10 steps would have to be 12.5; half of that is left to others.
        let arrives = [0.8, -0.8].repeat(100);
        let errors: Vec<f32> = arrives.iter().map(|value| value / 0.8 - value).collect();
        let mut of_errors = Moments::new(1);
        of_errors.add(1.0, &errors, &products(&arrives, &errors, 1));
        let mut codes = [10];
        let slopes = moments(1, &arrives).finish(Some(of_errors));
        assert_eq!((descend(&[10.0], 1.0, &mut codes, &slopes), codes), (1, [11]));
    }

    #[test]
    fn a_power_of_two_is_all_that_is_taken_out() {
        assert_eq!([1e30, 5.0, 4.0, 0.75, 1e-30].map(power_of_two), [2f64.powi(99), 4.0, 4.0, 0.5, 2f64.powi(-100)]);
        assert_eq!([0.0, f64::NAN, f64::INFINITY].map(power_of_two), [1.0; 3]);
    }

    #[test]
    fn products_are_those_of_columns() {
        let rows: Vec<f32> = (0..12).map(|index| ((index * 7) % 5) as f32).collect();
        let product = |i: usize, j: usize| rows.chunks(3).map(|row| row[i] * row[j]).sum::<f32>();
        assert_eq!(products(&rows, &rows, 3), (0..9).map(|index| product(index / 3, index % 3)).collect::<Vec<_>>());
    }

    #[test]
    fn what_few_rows_tell_is_not_believed() {
        // The same rows pull two codes together when there are many.
        let moved = |repeated| {
            let rows = [1.0, 1.0, -1.0, -1.0].repeat(repeated);
            descend(&[0.3, 0.3], 1.0, &mut [0, 0], &moments(2, &rows).finish(None))
        };
        assert_eq!([moved(1), moved(100)], [0, 1]);
    }
}
