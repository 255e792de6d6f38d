//! Bilinear resizing of 8-bit RGB images, equal to OpenCV's `resize` with `INTER_LINEAR` to the last bit.
//!
//! Two pixels along each axis and no antialiasing. Weights have 11 fractional bits, rounded half to even; a row keeps
//! all of them, and loses 4 before two rows are added. Along a row, positions beyond the border take the border's
//! pixel alone; between rows both neighbours are the border, which can round otherwise. Exactly half of both extents
//! is the mean of four pixels. The same in OpenCV 4.12 and 5.0.

use super::resample::{RgbImage, Window};

/// One, as a weight.
const ONE: f32 = 2048.0;

/// A position between two input positions, with their weights.
struct Between {
    first: isize,
    fraction: f32,
}

impl Between {
    fn of(position: usize, input: usize, output: usize) -> Self {
        // OpenCV divides twice, which rounds otherwise than input / output.
        let scale = 1.0 / (output as f64 / input as f64);
        let at = ((position as f64 + 0.5) * scale - 0.5) as f32;
        Self { first: at.floor() as isize, fraction: at - at.floor() }
    }

    /// Both input positions, within the borders.
    fn inputs(&self, input: usize) -> [usize; 2] {
        [self.first, self.first + 1].map(|at| at.clamp(0, input as isize - 1) as usize)
    }

    fn weights(&self) -> [i32; 2] {
        [1.0 - self.fraction, self.fraction].map(|weight| (weight * ONE).round_ties_even() as i32)
    }
}

/// The part `window` of the image resized to `width × height` pixels, within which it must lie.
pub(super) fn resize_window(image: &RgbImage, width: usize, height: usize, window: &Window) -> RgbImage {
    if (image.width, image.height) == (2 * width, 2 * height) {
        return halved(image, window);
    }
    let columns: Vec<([usize; 2], [i32; 2])> = window
        .columns
        .clone()
        .map(|x| {
            let mut between = Between::of(x, image.width, width);
            if between.first < 0 || between.first >= image.width as isize - 1 {
                between.fraction = 0.0;
            }
            (between.inputs(image.width), between.weights())
        })
        .collect();
    let (pixels, _) = image.data.as_chunks::<3>();
    let along = |y: usize, sums: &mut Vec<[i32; 3]>| {
        let row = &pixels[y * image.width..(y + 1) * image.width];
        sums.clear();
        sums.extend(columns.iter().map(|&([a, b], [p, q])| {
            std::array::from_fn(|c| (i32::from(row[a][c]) * p + i32::from(row[b][c]) * q) >> 4)
        }));
    };
    let mut kept: [(usize, Vec<[i32; 3]>); 2] = std::array::from_fn(|_| (usize::MAX, Vec::new()));
    let mut data = Vec::with_capacity(columns.len() * window.rows.len() * 3);
    for y in window.rows.clone() {
        let between = Between::of(y, image.height, height);
        let (inputs, [p, q]) = (between.inputs(image.height), between.weights());
        if kept[1].0 == inputs[0] {
            kept.swap(0, 1);
        }
        for ((at, sums), input) in kept.iter_mut().zip(inputs) {
            if *at != input {
                along(input, sums);
                *at = input;
            }
        }
        for (a, b) in kept[0].1.iter().zip(&kept[1].1) {
            data.extend((0..3).map(|c| ((((a[c] * p) >> 16) + ((b[c] * q) >> 16) + 2) >> 2).clamp(0, 255) as u8));
        }
    }
    RgbImage { width: columns.len(), height: window.rows.len(), data }
}

fn halved(image: &RgbImage, window: &Window) -> RgbImage {
    let (pixels, _) = image.data.as_chunks::<3>();
    let at = |x: usize, y: usize, c: usize| u16::from(pixels[y * image.width + x][c]);
    let mean = |x: usize, y: usize, c: usize| {
        (at(2 * x, 2 * y, c) + at(2 * x + 1, 2 * y, c) + at(2 * x, 2 * y + 1, c) + at(2 * x + 1, 2 * y + 1, c) + 2) >> 2
    };
    let row = |y: usize| window.columns.clone().flat_map(move |x| (0..3).map(move |c| mean(x, y, c) as u8));
    let data = window.rows.clone().flat_map(row).collect();
    RgbImage { width: window.columns.len(), height: window.rows.len(), data }
}
