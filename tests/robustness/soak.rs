//! Long runs: memory must not grow with the number of samples, nor listing with more than their number.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use image::{ImageEncoder, RgbImage, codecs::jpeg::JpegEncoder, codecs::png::PngEncoder};
use trtcalib::{
    dataset::{DataOptions, InputSpec, Preprocess, open},
    stats::SplitMix64,
    tensor::ElementType,
};

use super::{calib, root};

const IMAGES: usize = 20_000;
const FILES: usize = 50_000;

/// Draws picture `index`: a gradient with rectangles, from 24 to 120 pixels a side, PNG or JPEG.
fn draw(folder: &Path, index: usize) {
    let mut random = SplitMix64::new(index as u64);
    let (width, height) = (24 + random.below(97) as u32, 24 + random.below(97) as u32);
    let colour = random.next_u64();
    let mut picture = RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, colour as u8])
    });
    for _ in 0..random.below(4) {
        let (left, top) = (random.below(width as usize) as u32, random.below(height as usize) as u32);
        let fill = random.next_u64().to_le_bytes();
        for (x, y) in (left..width.min(left + 20)).flat_map(|x| (top..height.min(top + 20)).map(move |y| (x, y))) {
            picture.put_pixel(x, y, image::Rgb([fill[0], fill[1], fill[2]]));
        }
    }
    let (ending, mut bytes) = (if index.is_multiple_of(2) { "png" } else { "jpg" }, Vec::new());
    let kind = image::ExtendedColorType::Rgb8;
    if ending == "png" {
        PngEncoder::new(&mut bytes).write_image(&picture, width, height, kind).unwrap();
    } else {
        JpegEncoder::new_with_quality(&mut bytes, 80).write_image(&picture, width, height, kind).unwrap();
    }
    fs::write(folder.join(format!("{index:06}.{ending}")), bytes).unwrap();
}

/// Peak memory that `calib calibrate` tells after `samples` samples, in bytes.
fn peak(data: &Path, samples: usize) -> Option<u64> {
    let mut command = calib()?;
    let table = data.with_file_name("table.json");
    command.args(["calibrate", "--json", "--preset", "unit", "--method", "minmax", "--model"]);
    command.arg(root().join("calib_data/demo.onnx")).arg("--data").arg(data).arg("-o").arg(&table);
    let started = Instant::now();
    let output = command.args(["--calib-samples", &samples.to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(outcome["samples"].as_u64(), Some(samples as u64));
    let bytes = outcome["peak_rss_bytes"].as_u64().unwrap();
    println!("{samples} images: {:.1} s, peak {} MB", started.elapsed().as_secs_f64(), bytes / 1_000_000);
    Some(bytes)
}

#[test]
#[ignore = "minutes: run with `make soak`"]
fn soak_memory_stays_flat_over_20_000_images() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("images");
    fs::create_dir(&data).unwrap();
    (0..IMAGES).for_each(|index| draw(&data, index));
    let Some(few) = peak(&data, 1000) else { return };
    let all = peak(&data, IMAGES).unwrap();
    // Names and paths of all samples are known in both; pixels must come and go.
    assert!(all < few + few / 10, "{few} bytes after 1000 images, {all} after {IMAGES}");
}

#[test]
#[ignore = "minutes: run with `make soak`"]
fn soak_50_000_files_are_listed_in_seconds() {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..FILES {
        fs::write(folder.path().join(format!("{index:06}.png")), b"").unwrap();
    }
    let shape = vec![None, Some(3), Some(64), Some(64)];
    let inputs = [InputSpec { name: "input".to_owned(), element_type: Some(ElementType::F32), shape }];
    let (classes, preprocess) = (std::collections::BTreeMap::new(), Preprocess::preset("unit", 64, 64).unwrap());
    let options = DataOptions {
        path: folder.path(),
        labels: None,
        classes: &classes,
        category_ids: &[],
        key_points: None,
        inputs: &inputs,
        preprocess: Some(&preprocess),
    };
    let started = Instant::now();
    let collection = open(&options).unwrap();
    println!("{FILES} files listed in {:.2} s", started.elapsed().as_secs_f64());
    assert_eq!(collection.dataset.len(), FILES);
    assert!(started.elapsed() < Duration::from_secs(10));
}
