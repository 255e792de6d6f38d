//! Resizing of 8-bit RGB images, equal to Pillow's `Image.resize` to the last bit.
//!
//! A separable convolution with antialiasing: the filter is stretched by the reduction factor, its weights are
//! normalised and rounded to 22 fractional bits, the first pass is rounded to 8 bits before the second one starts,
//! and a pass that would not change its extent is left out. `nearest` samples without a filter.
//!
//! The horizontal pass comes first, unless the height shrinks by more than twice as many pixels as the width: that is
//! Pillow 13's order. Earlier versions never swap, so there pictures more than twice as high as wide can differ by a
//! level. A pixel depends on nothing but its own weights, so a window of the result is computed without the rest.

use std::{f64::consts::PI, ops::Range};

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
    /// Two pixels along each axis, without antialiasing: OpenCV's `INTER_LINEAR`.
    Opencv,
}

impl Interpolation {
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming | Self::Opencv => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        match self {
            Self::Nearest => 0.0,
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear | Self::Opencv => (1.0 - x.abs()).max(0.0),
            Self::Hamming => {
                let x = x.abs();
                if x == 0.0 {
                    1.0
                } else if x >= 1.0 {
                    0.0
                } else {
                    // The constants are single-precision in Pillow.
                    sinc(x) * (f64::from(0.54f32) + f64::from(0.46f32) * (x * PI).cos())
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

/// A rectangle of a picture, in pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) columns: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// Weights of one output position: they begin at input position `first`.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

fn taps(input: usize, output: usize, wanted: Range<usize>, filter: Interpolation) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let shrink = 1.0 / stretch;
    wanted
        .map(|position| {
            let centre = (position as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let last = ((centre + support + 0.5) as usize).min(input);
            let mut weights: Vec<f64> =
                (first..last).map(|x| filter.weight((x as f64 - centre + 0.5) * shrink)).collect();
            let total: f64 = weights.iter().sum();
            if total != 0.0 {
                for weight in &mut weights {
                    *weight /= total;
                }
            }
            let fixed = |weight: f64| (weight * f64::from(1 << PRECISION) + 0.5f64.copysign(weight)) as i32;
            Taps { first, weights: weights.into_iter().map(fixed).collect() }
        })
        .collect()
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The input positions that `taps` read.
fn span(taps: &[Taps]) -> Range<usize> {
    let start = taps.iter().map(|taps| taps.first).min().unwrap_or(0);
    start..taps.iter().map(|taps| taps.first + taps.weights.len()).max().unwrap_or(start)
}

/// Resizes to `width × height` pixels, both at least 1.
pub fn resize(image: &RgbImage, width: usize, height: usize, filter: Interpolation) -> RgbImage {
    resize_window(image, width, height, filter, &Window { columns: 0..width, rows: 0..height })
}

/// The part `window` of the image resized to `width × height` pixels, within which it must lie.
pub(super) fn resize_window(
    image: &RgbImage,
    width: usize,
    height: usize,
    filter: Interpolation,
    window: &Window,
) -> RgbImage {
    let (same_width, same_height) = (width == image.width, height == image.height);
    if filter == Interpolation::Nearest || (same_width && same_height) {
        return nearest(image, width, height, window);
    }
    if filter == Interpolation::Opencv {
        return super::opencv::resize_window(image, width, height, window);
    }
    let mut columns = taps(image.width, width, window.columns.clone(), filter);
    let mut rows = taps(image.height, height, window.rows.clone(), filter);
    if same_width {
        return vertical(image, window.columns.clone(), &rows);
    }
    if same_height {
        return horizontal(image, window.rows.clone(), &columns);
    }
    let narrowed = image.width as i128 - width as i128;
    let lowered = image.height as i128 - height as i128;
    if lowered > 0 && lowered > 2 * narrowed {
        let needed = span(&columns);
        for taps in &mut columns {
            taps.first -= needed.start;
        }
        return horizontal(&vertical(image, needed, &rows), 0..rows.len(), &columns);
    }
    let needed = span(&rows);
    for taps in &mut rows {
        taps.first -= needed.start;
    }
    vertical(&horizontal(image, needed, &columns), 0..columns.len(), &rows)
}

/// Weighted sums along the rows, for the rows `wanted`.
fn horizontal(image: &RgbImage, wanted: Range<usize>, taps: &[Taps]) -> RgbImage {
    let (pixels, _) = image.data.as_chunks::<3>();
    let mut data = Vec::with_capacity(wanted.len() * taps.len() * 3);
    for row in pixels[wanted.start * image.width..wanted.end * image.width].chunks_exact(image.width) {
        for Taps { first, weights } in taps {
            let mut sums = [1i32 << (PRECISION - 1); 3];
            for (rgb, &weight) in row[*first..].iter().zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(rgb) {
                    *sum += i32::from(value) * weight;
                }
            }
            data.extend_from_slice(&sums.map(clip));
        }
    }
    RgbImage { width: taps.len(), height: wanted.len(), data }
}

/// Weighted sums along the columns, for the columns `wanted`.
fn vertical(image: &RgbImage, wanted: Range<usize>, taps: &[Taps]) -> RgbImage {
    let stride = image.width * 3;
    let values = wanted.start * 3..wanted.end * 3;
    let mut data = Vec::with_capacity(taps.len() * values.len());
    let mut sums = vec![0i32; values.len()];
    for Taps { first, weights } in taps {
        sums.fill(1 << (PRECISION - 1));
        for (row, &weight) in image.data[first * stride..].chunks_exact(stride).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(&row[values.clone()]) {
                *sum += i32::from(value) * weight;
            }
        }
        data.extend(sums.iter().copied().map(clip));
    }
    RgbImage { width: wanted.len(), height: taps.len(), data }
}

fn nearest(image: &RgbImage, width: usize, height: usize, window: &Window) -> RgbImage {
    let (pixels, _) = image.data.as_chunks::<3>();
    let columns = nearest_positions(image.width, width, &window.columns);
    let rows = nearest_positions(image.height, height, &window.rows);
    let mut data = Vec::with_capacity(columns.len() * rows.len() * 3);
    for y in rows {
        let row = &pixels[y * image.width..];
        data.extend(columns.iter().flat_map(|&x| row[x]));
    }
    RgbImage { width: columns.len(), height: window.rows.len(), data }
}

/// Input position of the output positions `wanted`; the step is added up, as Pillow does, so that roundings agree.
fn nearest_positions(input: usize, output: usize, wanted: &Range<usize>) -> Vec<usize> {
    let step = input as f64 / output as f64;
    std::iter::successors(Some(step * 0.5), |position| Some(position + step))
        .take(wanted.end)
        .skip(wanted.start)
        .map(|position| (position as usize).min(input - 1))
        .collect()
}

/// Which pixel a centre crop starts at when the border is odd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CropRounding {
    /// Half the border, rounded half to even: torchvision.
    #[default]
    HalfEven,
    /// Half the border, rounded down; black is put around with the surplus left and above: Hugging Face.
    Floor,
}

impl CropRounding {
    /// First position of the middle `inner` of `outer` positions.
    pub(super) fn start(self, outer: usize, inner: usize) -> usize {
        let border = outer.saturating_sub(inner);
        border / 2 + usize::from(self == Self::HalfEven && border % 4 == 3)
    }

    /// Positions before `inner` ones in the middle of `outer`.
    pub(super) fn padding(self, outer: usize, inner: usize) -> usize {
        let border = outer.saturating_sub(inner);
        if self == Self::HalfEven { border / 2 } else { border.div_ceil(2) }
    }
}

/// Puts black around an image that is at most `width × height` pixels.
pub(super) fn pad(image: RgbImage, width: usize, height: usize, rounding: CropRounding) -> RgbImage {
    if (image.width, image.height) == (width, height) {
        return image;
    }
    let (left, above) = (rounding.padding(width, image.width), rounding.padding(height, image.height));
    let mut data = vec![0; width * height * 3];
    for (y, row) in image.data.chunks_exact(image.width * 3).enumerate() {
        let to = ((above + y) * width + left) * 3;
        data[to..to + row.len()].copy_from_slice(row);
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
    fn borders_round_as_torchvision_and_hugging_face_do() {
        let starts = |rounding: CropRounding| (0..8).map(|border| rounding.start(10 + border, 10)).collect::<Vec<_>>();
        assert_eq!(starts(CropRounding::HalfEven), [0, 0, 1, 2, 2, 2, 3, 4]);
        assert_eq!(starts(CropRounding::Floor), [0, 0, 1, 1, 2, 2, 3, 3]);
        let image = RgbImage { width: 2, height: 1, data: vec![1, 2, 3, 4, 5, 6] };
        let padded = pad(image.clone(), 3, 2, CropRounding::HalfEven);
        assert_eq!(padded.data, [1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let padded = pad(image, 3, 2, CropRounding::Floor);
        assert_eq!(padded.data, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_window_equals_the_crop_of_the_whole() {
        let pixels: Vec<u8> = (0..35u32 * 21 * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let source = RgbImage { width: 35, height: 21, data: pixels };
        for interpolation in
            [Interpolation::Nearest, Interpolation::Bilinear, Interpolation::Lanczos, Interpolation::Opencv]
        {
            for (width, height) in [(17, 10), (50, 60), (35, 10), (20, 21), (33, 9)] {
                let all = resize(&source, width, height, interpolation);
                let window = Window { columns: 3..width - 4, rows: 2..height - 1 };
                let part = resize_window(&source, width, height, interpolation, &window);
                for (row, y) in part.data.chunks_exact(part.width * 3).zip(window.rows) {
                    let start = (y * width + window.columns.start) * 3;
                    assert_eq!(row, &all.data[start..start + row.len()]);
                }
            }
        }
    }
}
