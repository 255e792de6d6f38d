//! Resizing of 8-bit RGB images, equal to Pillow's `Image.resize` to the last bit.
//!
//! A separable convolution with antialiasing: the filter is stretched by the reduction factor, its weights are
//! normalised and rounded to 22 fractional bits, the horizontal pass is rounded to 8 bits before the vertical one
//! starts, and a pass that would not change its extent is left out. `nearest` samples without a filter.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// Fractional bits of a weight: 32 less 8 for the pixel and 2 for overshoot.
const PRECISION: u32 = 32 - 8 - 2;

/// An 8-bit RGB image, row-major, channels interleaved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height × width × 3` values.
    pub data: Vec<u8>,
}

/// Filter of a resize.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// The nearest pixel.
    Nearest,
    /// Mean of the covered pixels.
    Box,
    /// Triangle.
    #[default]
    Bilinear,
    /// Hamming-windowed sinc of one lobe.
    Hamming,
    /// Cubic with a = -0.5.
    Bicubic,
    /// Sinc windowed by sinc, three lobes.
    Lanczos,
}

impl Interpolation {
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        match self {
            Self::Nearest => 0.0,
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Hamming => {
                let x = x.abs();
                if x == 0.0 {
                    1.0
                } else if x >= 1.0 {
                    0.0
                } else {
                    sinc(x) * (0.54 + 0.46 * (x * PI).cos())
                }
            }
            Self::Bicubic => {
                let (a, x) = (-0.5, x.abs());
                if x < 1.0 {
                    ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * a
                } else {
                    0.0
                }
            }
            Self::Lanczos => {
                if (-3.0..3.0).contains(&x) {
                    sinc(x) * sinc(x / 3.0)
                } else {
                    0.0
                }
            }
        }
    }
}

/// Weights of one output position: they begin at input position `first`.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

fn windows(input: usize, output: usize, filter: Interpolation) -> Vec<Window> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let shrink = 1.0 / stretch;
    (0..output)
        .map(|position| {
            let centre = (position as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let last = ((centre + support + 0.5) as usize).min(input);
            let mut weights: Vec<f64> =
                (first..last).map(|x| filter.weight((x as f64 - centre + 0.5) * shrink)).collect();
            let total: f64 = weights.iter().sum();
            if total != 0.0 {
                weights.iter_mut().for_each(|weight| *weight /= total);
            }
            let fixed = |weight: f64| (weight * f64::from(1 << PRECISION) + 0.5f64.copysign(weight)) as i32;
            Window { first, weights: weights.into_iter().map(fixed).collect() }
        })
        .collect()
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Resizes to `width × height` pixels, both at least 1.
pub fn resize(image: &RgbImage, width: usize, height: usize, filter: Interpolation) -> RgbImage {
    if width == image.width && height == image.height {
        return image.clone();
    }
    if filter == Interpolation::Nearest {
        return nearest(image, width, height);
    }
    let widened = if width == image.width { None } else { Some(horizontal(image, width, filter)) };
    let image = widened.as_ref().unwrap_or(image);
    if height == image.height { image.clone() } else { vertical(image, height, filter) }
}

fn horizontal(image: &RgbImage, width: usize, filter: Interpolation) -> RgbImage {
    let windows = windows(image.width, width, filter);
    let mut data = vec![0; width * image.height * 3];
    for (source, target) in image.data.chunks_exact(image.width * 3).zip(data.chunks_exact_mut(width * 3)) {
        for (window, pixel) in windows.iter().zip(target.chunks_exact_mut(3)) {
            let mut sums = [1i32 << (PRECISION - 1); 3];
            let covered = &source[window.first * 3..(window.first + window.weights.len()) * 3];
            for (&weight, rgb) in window.weights.iter().zip(covered.chunks_exact(3)) {
                sums[0] += i32::from(rgb[0]) * weight;
                sums[1] += i32::from(rgb[1]) * weight;
                sums[2] += i32::from(rgb[2]) * weight;
            }
            pixel.copy_from_slice(&sums.map(clip));
        }
    }
    RgbImage { width, height: image.height, data }
}

fn vertical(image: &RgbImage, height: usize, filter: Interpolation) -> RgbImage {
    let row = image.width * 3;
    let windows = windows(image.height, height, filter);
    let mut data = vec![0; row * height];
    let mut sums = vec![0i32; row];
    for (window, target) in windows.iter().zip(data.chunks_exact_mut(row)) {
        sums.fill(1 << (PRECISION - 1));
        for (&weight, source) in window.weights.iter().zip(image.data[window.first * row..].chunks_exact(row)) {
            for (sum, &value) in sums.iter_mut().zip(source) {
                *sum += i32::from(value) * weight;
            }
        }
        for (value, &sum) in target.iter_mut().zip(&sums) {
            *value = clip(sum);
        }
    }
    RgbImage { width: image.width, height, data }
}

fn nearest(image: &RgbImage, width: usize, height: usize) -> RgbImage {
    let xs = nearest_positions(image.width, width);
    let ys = nearest_positions(image.height, height);
    let mut data = Vec::with_capacity(width * height * 3);
    for y in ys {
        for &x in &xs {
            let at = (y * image.width + x) * 3;
            data.extend_from_slice(&image.data[at..at + 3]);
        }
    }
    RgbImage { width, height, data }
}

/// Input position of every output position; the step is added up, as Pillow does, so that roundings agree.
fn nearest_positions(input: usize, output: usize) -> Vec<usize> {
    let step = input as f64 / output as f64;
    let mut position = step * 0.5;
    (0..output)
        .map(|_| {
            let at = (position as usize).min(input - 1);
            position += step;
            at
        })
        .collect()
}

/// Cuts `width × height` pixels out of the middle; where the image is smaller, black is put around it first.
///
/// Offsets round half to even, the surplus pixel of an odd border goes right and below: torchvision's `CenterCrop`.
pub fn centre_crop(image: &RgbImage, width: usize, height: usize) -> RgbImage {
    let offset = |outer: usize, inner: usize| ((outer - inner) as f64 / 2.0).round_ties_even() as usize;
    let (pad_x, pad_y) = (width.saturating_sub(image.width) / 2, height.saturating_sub(image.height) / 2);
    let cut_x = if image.width > width { offset(image.width, width) } else { 0 };
    let cut_y = if image.height > height { offset(image.height, height) } else { 0 };
    let (columns, rows) = (width.min(image.width), height.min(image.height));
    let mut data = vec![0; width * height * 3];
    for y in 0..rows {
        let from = ((y + cut_y) * image.width + cut_x) * 3;
        let to = ((y + pad_y) * width + pad_x) * 3;
        data[to..to + columns * 3].copy_from_slice(&image.data[from..from + columns * 3]);
    }
    RgbImage { width, height, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_images_stay_constant() {
        let image = RgbImage { width: 7, height: 5, data: vec![200; 7 * 5 * 3] };
        for filter in [
            Interpolation::Nearest,
            Interpolation::Box,
            Interpolation::Bilinear,
            Interpolation::Hamming,
            Interpolation::Bicubic,
            Interpolation::Lanczos,
        ] {
            for (width, height) in [(3, 3), (1, 1), (20, 11), (7, 2)] {
                let resized = resize(&image, width, height, filter);
                assert_eq!((resized.width, resized.height), (width, height));
                assert!(resized.data.iter().all(|&value| value == 200), "{filter:?} {width}x{height}");
            }
        }
    }

    #[test]
    fn a_small_image_is_padded_and_a_large_one_cut() {
        let image = RgbImage { width: 2, height: 1, data: vec![1, 2, 3, 4, 5, 6] };
        let padded = centre_crop(&image, 3, 2);
        assert_eq!(padded.data, [1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        // (7 - 4) / 2 = 1.5 rounds to 2, as Python's round does.
        let wide = RgbImage { width: 7, height: 1, data: (0..21).collect() };
        assert_eq!(centre_crop(&wide, 4, 1).data[0], 6);
    }
}
