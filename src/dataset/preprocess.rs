//! How a picture becomes a model's input: resize and centre crop, or a letterbox, then `(x · scale − mean) / std` on 8-bit values.
//!
//! The arithmetic of a value is done once for each of the 256 values of a channel: the product in double precision,
//! rounded to `float32`; difference and quotient in `float32`; then rounded to the input's element type. With a scale
//! of 1/255 that is bit for bit torchvision's `ToTensor` and `Normalize`, and NumPy's `(x / 255 - mean) / std`.

use half::f16;
use serde::{Deserialize, Serialize};

use super::{
    letterbox::{Letterbox, Place, Placement, SideRounding},
    resample::{CropRounding, Interpolation, RgbImage, Window, pad, resize_window},
};
use crate::tensor::{ElementType, Tensor, Values};

/// Largest `resize` and `crop`, and largest side of a model's input.
pub(super) const MAX_SIDE: usize = 16384;
/// Longest side of a resized image before its crop; thin images would grow without bound.
const MAX_EXTENT: usize = 1 << 24;
/// Most pixels of an image after its crop.
const MAX_RESULT: usize = 1 << 27;

/// One extent for both, or height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum Extent {
    /// For a resize: the shorter side; for a crop: both sides.
    One(usize),
    /// Exactly `[height, width]`.
    Exact([usize; 2]),
}

impl std::str::FromStr for Extent {
    type Err = String;

    /// `256`, or `224x320` for height and width.
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = |_| format!("`{text}` is not a size such as 256 or 224x320 (height x width)");
        match text.split_once('x') {
            Some((height, width)) => {
                Ok(Self::Exact([height.parse().map_err(invalid)?, width.parse().map_err(invalid)?]))
            }
            None => Ok(Self::One(text.parse().map_err(invalid)?)),
        }
    }
}

/// Order of the colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChannelOrder {
    /// Red first.
    #[default]
    Rgb,
    /// Blue first.
    Bgr,
}

/// Order of the axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Batch, channel, height, width.
    Nchw,
    /// Batch, height, width, channel.
    Nhwc,
}

/// Preprocessing of images; `[preprocess]` of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Preprocess {
    /// Resize before the crop; absent for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<Extent>,
    /// Filter of the resize.
    pub interpolation: Interpolation,
    /// Centre crop after the resize; absent for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<Extent>,
    /// The whole picture in a frame, instead of `resize` and `crop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub letterbox: Option<Letterbox>,
    /// Where a centre crop starts when the border is odd.
    pub crop_rounding: CropRounding,
    /// Factor on 8-bit values.
    pub scale: f64,
    /// Subtracted after scaling, by channel in the order red, green, blue.
    pub mean: [f64; 3],
    /// Divisor after that, by channel in the order red, green, blue.
    pub std: [f64; 3],
    /// Order of the channels in the tensor.
    pub channel_order: ChannelOrder,
    /// Order of the axes; absent: as the model's input looks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
}

impl Default for Preprocess {
    /// No resize, no crop, values from 0 to 1.
    fn default() -> Self {
        Self {
            resize: None,
            interpolation: Interpolation::Bilinear,
            crop: None,
            letterbox: None,
            crop_rounding: CropRounding::HalfEven,
            scale: 1.0 / 255.0,
            mean: [0.0; 3],
            std: [1.0; 3],
            channel_order: ChannelOrder::Rgb,
            layout: None,
        }
    }
}

/// Names of the presets, the most common first.
pub const PRESETS: [&str; 12] = [
    "imagenet",
    "imagenet-bicubic",
    "imagenet-lite",
    "imagenet-tf",
    "imagenet-caffe",
    "clip",
    "unit",
    "raw",
    "yolo",
    "yolox",
    "nanodet",
    "detr",
];

/// How many of [`PRESETS`] classifiers take.
pub const CLASSIFIER_PRESETS: usize = 8;

impl Preprocess {
    /// A preset for an input of `height × width` pixels; `None` for an unknown name.
    ///
    /// | name | resize, crop | values |
    /// |---|---|---|
    /// | `imagenet` | short side to crop / 0.875, bilinear, centre crop | (x/255 − mean) / std of ImageNet (torchvision) |
    /// | `imagenet-bicubic` | the same, bicubic | the same (timm) |
    /// | `imagenet-lite` | the same, bicubic | (x − 127) / 128 (EfficientNet-Lite) |
    /// | `imagenet-tf` | the same, bicubic | (x − 127.5) / 127.5 (Inception, MobileNet of TensorFlow) |
    /// | `imagenet-caffe` | the same, bilinear | BGR, x − (123.68, 116.779, 103.939) |
    /// | `clip` | short side to the input, bicubic, centre crop | (x/255 − mean) / std of CLIP |
    /// | `unit` | exactly the input, bilinear | x/255 |
    /// | `raw` | exactly the input, bilinear | x |
    /// | `yolo` | centred letterbox, padded with 114, OpenCV's bilinear | x/255 (Ultralytics, YOLOv5 to YOLO26) |
    /// | `yolox` | letterbox at the top left, padded with 114, OpenCV's bilinear | BGR, x |
    /// | `nanodet` | centred letterbox, padded with 0, OpenCV's bilinear | BGR, (x − mean) / std of ImageNet in 0–255 |
    /// | `detr` | exactly the input, bilinear | as `imagenet` (DETR, RF-DETR; RT-DETR and D-FINE take `unit`) |
    pub fn preset(name: &str, height: usize, width: usize) -> Option<Self> {
        let short = height.min(width);
        let enlarged = Some(Extent::One((short as f64 / 0.875).floor() as usize));
        let crop = Some(Extent::Exact([height, width]));
        let exact = Self { resize: crop, ..Self::default() };
        let imagenet =
            Self { resize: enlarged, crop, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], ..Self::default() };
        let letterbox = Letterbox { size: crop, ..Letterbox::default() };
        let framed =
            |letterbox| Self { letterbox: Some(letterbox), interpolation: Interpolation::Opencv, ..Self::default() };
        let corner = Letterbox { place: Place::TopLeft, rounding: SideRounding::Down, ..letterbox };
        let bicubic = Self { interpolation: Interpolation::Bicubic, ..imagenet.clone() };
        Some(match name {
            "imagenet" => imagenet,
            "imagenet-bicubic" => bicubic,
            "imagenet-lite" => Self { scale: 1.0, mean: [127.0; 3], std: [128.0; 3], ..bicubic },
            "imagenet-tf" => Self { scale: 1.0, mean: [127.5; 3], std: [127.5; 3], ..bicubic },
            "imagenet-caffe" => Self {
                scale: 1.0,
                mean: [123.68, 116.779, 103.939],
                std: [1.0; 3],
                channel_order: ChannelOrder::Bgr,
                ..imagenet
            },
            "clip" => Self {
                resize: Some(Extent::One(short)),
                mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
                std: [0.268_629_54, 0.261_302_58, 0.275_777_11],
                ..bicubic
            },
            "unit" => exact,
            "raw" => Self { scale: 1.0, ..exact },
            "yolo" => framed(letterbox),
            "yolox" => Self { scale: 1.0, channel_order: ChannelOrder::Bgr, ..framed(corner) },
            "nanodet" => Self {
                scale: 1.0,
                mean: [123.675, 116.28, 103.53],
                std: [58.395, 57.12, 57.375],
                channel_order: ChannelOrder::Bgr,
                ..framed(Letterbox { pad: 0, ..letterbox })
            },
            "detr" => Self { resize: exact.resize, crop: None, ..imagenet },
            _ => return None,
        })
    }

    /// Height and width that pictures get whatever the model's input, where that is fixed.
    pub fn frame(&self) -> Option<[usize; 2]> {
        let extent = self.letterbox.map_or_else(|| self.crop.or(self.resize), |letterbox| letterbox.size)?;
        match extent {
            Extent::Exact(sides) => Some(sides),
            Extent::One(side) => (self.letterbox.is_some() || self.crop.is_some()).then_some([side, side]),
        }
    }

    /// What cannot work, in words.
    pub fn check(&self) -> Result<(), String> {
        let zero = |extent: Option<Extent>| match extent {
            Some(Extent::One(n)) => n == 0,
            Some(Extent::Exact(extents)) => extents.contains(&0),
            None => false,
        };
        let large = |extent: Option<Extent>| match extent {
            Some(Extent::One(n)) => n > MAX_SIDE,
            Some(Extent::Exact(extents)) => extents.iter().any(|&n| n > MAX_SIDE),
            None => false,
        };
        if self.letterbox.is_some_and(|letterbox| letterbox.size.is_none()) {
            return Err("the letterbox needs a `size`, since the model's input has none of its own".to_owned());
        }
        let frame = self.letterbox.and_then(|letterbox| letterbox.size);
        if [self.resize, self.crop, frame].into_iter().any(|extent| zero(extent) || large(extent)) {
            return Err(format!("`resize`, `crop` and the letterbox's `size` must lie between 1 and {MAX_SIDE}"));
        }
        if self.letterbox.is_some() && (self.resize.is_some() || self.crop.is_some()) {
            return Err("`letterbox` takes the place of `resize` and `crop`: leave one or the other out".to_owned());
        }
        if self.std.contains(&0.0) {
            return Err("`std` must not be 0".to_owned());
        }
        if ![self.scale].iter().chain(&self.mean).chain(&self.std).all(|value| value.is_finite()) {
            return Err("`scale`, `mean` and `std` must be finite".to_owned());
        }
        Ok(())
    }

    /// In one line, for people.
    pub fn describe(&self) -> String {
        let extent = |extent: Extent| match extent {
            Extent::One(n) => n.to_string(),
            Extent::Exact([height, width]) => format!("{height}×{width}"),
        };
        let mut steps = Vec::new();
        match self.resize {
            Some(Extent::One(short)) => {
                steps.push(format!("short side to {short} ({:?})", self.interpolation).to_lowercase());
            }
            Some(exact) => steps.push(format!("resize to {} ({:?})", extent(exact), self.interpolation).to_lowercase()),
            None => {}
        }
        steps.extend(self.crop.map(|crop| format!("centre crop {}", extent(crop))));
        steps.extend(self.letterbox.map(|letterbox| {
            let [height, width] = letterbox.frame();
            let place = if letterbox.place == Place::Centre { "centred" } else { "top left" };
            let filter = format!("{:?}", self.interpolation).to_lowercase();
            format!("letterbox {height}×{width} ({filter}, {place}, padded with {})", letterbox.pad)
        }));
        steps.push(format!("(x · {} − {:?}) / {:?}", self.scale, self.mean, self.std));
        if self.channel_order == ChannelOrder::Bgr {
            steps.push("bgr".to_owned());
        }
        steps.join(", ")
    }

    /// Resizes and crops, computing only what the crop leaves; the error is a reason in words.
    pub fn shape_image(&self, image: &RgbImage) -> Result<RgbImage, String> {
        let ((width, height), (crop_width, crop_height)) = self.sides(image.width, image.height);
        if width.max(height) > MAX_EXTENT || crop_width.saturating_mul(crop_height) > MAX_RESULT {
            return Err(format!(
                "{}×{} pixels are too long and thin to be resized to {width}×{height}",
                image.width, image.height
            ));
        }
        if let Some(letterbox) = &self.letterbox {
            let window = Window { columns: 0..width, rows: 0..height };
            return Ok(letterbox.enclose(&resize_window(image, width, height, self.interpolation, &window)));
        }
        let taken = |outer: usize, inner: usize| {
            let start = self.crop_rounding.start(outer, inner);
            start..start + inner.min(outer)
        };
        let window = Window { columns: taken(width, crop_width), rows: taken(height, crop_height) };
        let part = resize_window(image, width, height, self.interpolation, &window);
        Ok(pad(part, crop_width, crop_height, self.crop_rounding))
    }

    /// Width and height of a picture after the resize, and after the crop or in its frame.
    fn sides(&self, width: usize, height: usize) -> ((usize, usize), (usize, usize)) {
        if let Some(letterbox) = &self.letterbox {
            let [frame_height, frame_width] = letterbox.frame();
            return (letterbox.resized(width, height), (frame_width, frame_height));
        }
        let resized = match self.resize {
            None => (width, height),
            Some(Extent::Exact([height, width])) => (width, height),
            Some(Extent::One(short)) => short_side(width, height, short),
        };
        let cropped = match self.crop {
            None => resized,
            Some(Extent::One(side)) => (side, side),
            Some(Extent::Exact([height, width])) => (width, height),
        };
        (resized, cropped)
    }

    /// Where a picture of `width × height` pixels lies in the model's input.
    pub fn placement(&self, width: usize, height: usize) -> Placement {
        if let Some(letterbox) = &self.letterbox {
            return letterbox.placement(width, height);
        }
        let (resized, input) = self.sides(width, height);
        let offset = |resized: usize, input: usize| {
            self.crop_rounding.padding(input, resized) as f64 - self.crop_rounding.start(resized, input) as f64
        };
        Placement {
            picture: [width, height],
            input: [input.0, input.1],
            scale: [resized.0 as f64 / width as f64, resized.1 as f64 / height as f64],
            offset: [offset(resized.0, input.0), offset(resized.1, input.1)],
        }
    }

    /// The tensor of a shaped image with a leading batch extent of 1, for an input of `channels` (1 or 3) channels; with
    /// one, the image must be gray.
    pub fn tensor(
        &self,
        image: &RgbImage,
        channels: usize,
        layout: Layout,
        element_type: ElementType,
    ) -> Option<Tensor> {
        let values = match element_type {
            ElementType::F32 => Values::F32(self.arrange(image, channels, layout, |value| value)),
            ElementType::F16 => Values::F16(self.arrange(image, channels, layout, f16::from_f32)),
            ElementType::Bf16 => Values::Bf16(self.arrange(image, channels, layout, half::bf16::from_f32)),
            ElementType::F64 => Values::F64(self.arrange(image, channels, layout, f64::from)),
            ElementType::U8 => Values::U8(self.arrange(image, channels, layout, |value| value.round_ties_even() as u8)),
            ElementType::I8 => Values::I8(self.arrange(image, channels, layout, |value| value.round_ties_even() as i8)),
            _ => return None,
        };
        let shape = match layout {
            Layout::Nchw => vec![1, channels, image.height, image.width],
            Layout::Nhwc => vec![1, image.height, image.width, channels],
        };
        Tensor::new(shape, values).ok()
    }

    fn arrange<T: Copy + Default>(
        &self,
        image: &RgbImage,
        channels: usize,
        layout: Layout,
        round: impl Fn(f32) -> T,
    ) -> Vec<T> {
        let table = |channel: usize| -> [T; 256] {
            let (mean, std) = (self.mean[channel] as f32, self.std[channel] as f32);
            std::array::from_fn(|x| round(((x as f64 * self.scale) as f32 - mean) / std))
        };
        let tables = [table(0), table(1), table(2)];
        let pixels = image.width * image.height;
        let mut values = vec![T::default(); pixels * channels];
        if channels == 1 {
            // The channels of a gray image are alike.
            for (value, rgb) in values.iter_mut().zip(image.data.chunks_exact(3)) {
                *value = tables[0][usize::from(rgb[0])];
            }
            return values;
        }
        let source = |channel: usize| match self.channel_order {
            ChannelOrder::Rgb => channel,
            ChannelOrder::Bgr => 2 - channel,
        };
        match layout {
            Layout::Nchw => {
                for (channel, plane) in values.chunks_exact_mut(pixels).enumerate() {
                    let from = source(channel);
                    for (value, rgb) in plane.iter_mut().zip(image.data.chunks_exact(3)) {
                        *value = tables[from][usize::from(rgb[from])];
                    }
                }
            }
            Layout::Nhwc => {
                for (pixel, rgb) in values.chunks_exact_mut(3).zip(image.data.chunks_exact(3)) {
                    for (channel, value) in pixel.iter_mut().enumerate() {
                        let from = source(channel);
                        *value = tables[from][usize::from(rgb[from])];
                    }
                }
            }
        }
        values
    }
}

/// The image in gray: luma of ITU-R 601-2 in 16-bit fixed point in every channel, as Pillow's `convert("L")`.
pub(super) fn gray(image: &RgbImage) -> RgbImage {
    let luma =
        |&[r, g, b]: &[u8; 3]| (u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16;
    let (pixels, _) = image.data.as_chunks::<3>();
    RgbImage { data: pixels.iter().flat_map(|rgb| [luma(rgb) as u8; 3]).collect(), ..*image }
}

/// Width and height when the shorter side becomes `short`; the longer is truncated, as torchvision does.
fn short_side(width: usize, height: usize, short: usize) -> (usize, usize) {
    let scaled = |long: usize, side: usize| ((short * long) as f64 / side as f64) as usize;
    if width <= height { (short, scaled(height, width).max(1)) } else { (scaled(width, height).max(1), short) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: usize, height: usize) -> RgbImage {
        RgbImage { width, height, data: (0..width * height * 3).map(|i| (i % 251) as u8).collect() }
    }

    #[test]
    fn the_short_side_decides_and_the_long_one_is_truncated() {
        assert_eq!(short_side(500, 375, 256), (341, 256));
        assert_eq!(short_side(375, 500, 256), (256, 341));
        assert_eq!(short_side(100, 100, 7), (7, 7));
    }

    #[test]
    fn values_follow_the_formula_in_both_layouts_and_orders() {
        let image = gradient(2, 2);
        let imagenet = Preprocess::preset("imagenet", 2, 2).unwrap();
        let nchw = imagenet.tensor(&image, 3, Layout::Nchw, ElementType::F32).unwrap();
        assert_eq!(nchw.shape(), [1, 3, 2, 2]);
        let expected = (4.0f32 / 255.0 - 0.456) / 0.224;
        assert_eq!(nchw.to_f32()[4 + 1], expected); // channel 1 of pixel 1 is the value 4
        let bgr = Preprocess { channel_order: ChannelOrder::Bgr, ..imagenet };
        let nhwc = bgr.tensor(&image, 3, Layout::Nhwc, ElementType::F32).unwrap();
        assert_eq!(nhwc.shape(), [1, 2, 2, 3]);
        assert_eq!(nhwc.to_f32()[3 + 1], expected);
        assert_eq!(nhwc.to_f32()[3], (5.0f32 / 255.0 - 0.406) / 0.225);
    }

    #[test]
    fn scaling_by_a_255th_equals_dividing_in_single_precision() {
        for value in 0..=255u8 {
            assert_eq!((f64::from(value) * (1.0 / 255.0)) as f32, f32::from(value) / 255.0);
        }
    }

    #[test]
    fn a_thin_image_is_refused_before_it_grows() {
        let thin = RgbImage { width: 1, height: 65_535, data: vec![0; 65_535 * 3] };
        let resized = Preprocess { resize: Some(Extent::One(2050)), ..Preprocess::default() };
        assert!(resized.shape_image(&thin).unwrap_err().contains("too long and thin"));
        let cropped = Preprocess { resize: Some(Extent::One(64)), crop: Some(Extent::One(64)), ..resized };
        assert_eq!(cropped.shape_image(&thin).unwrap().data.len(), 64 * 64 * 3);
    }

    #[test]
    fn uint8_inputs_keep_raw_values() {
        let raw = Preprocess::preset("raw", 2, 2).unwrap();
        let tensor = raw.tensor(&gradient(2, 2), 3, Layout::Nhwc, ElementType::U8).unwrap();
        assert_eq!(tensor.values(), &Values::U8((0..12).collect()));
    }

    #[test]
    fn a_crop_moves_the_picture() {
        let preset = Preprocess::preset("imagenet", 224, 224).unwrap();
        let placement = preset.placement(512, 256);
        assert_eq!((placement.scale, placement.offset), ([1.0, 1.0], [-144.0, -16.0]));
        let larger = Preprocess { crop: Some(Extent::One(300)), ..preset };
        assert_eq!(larger.placement(256, 256).offset, [22.0, 22.0]);
    }

    #[test]
    fn a_letterbox_excludes_a_crop() {
        let mut yolo = Preprocess::preset("yolo", 32, 48).unwrap();
        yolo.crop = Some(Extent::One(8));
        assert!(yolo.check().unwrap_err().contains("leave one or the other out"));
    }

    #[test]
    fn every_preset_exists_and_shapes_to_the_input() {
        for name in PRESETS {
            let preset = Preprocess::preset(name, 32, 48).unwrap();
            preset.check().unwrap();
            let shaped = preset.shape_image(&gradient(100, 70)).unwrap();
            assert_eq!((shaped.width, shaped.height), (48, 32), "{name}");
        }
        assert!(Preprocess::preset("imagnet", 1, 1).is_none());
    }
}
