//! The image processors of `transformers` that are known: what their class says where a file says nothing.

use super::super::{preprocess::Extent, resample::Interpolation};

/// How a processor reads `size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resizing {
    /// A number means the shorter side.
    Short,
    /// A number means both sides.
    Square,
    /// The shorter side becomes 256/224 of the number.
    Levit,
    /// Below 384 the shorter side is enlarged by `crop_pct` and the middle cut out, else both sides become the number.
    ConvNext,
    /// The shorter side is enlarged by `crop_pct`.
    PoolFormer,
    /// A detector: pictures that keep their shape are padded, which is not supported; exact sizes are.
    Boxes,
}

/// Means and deviations that `transformers` has names for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Statistics {
    /// One half each.
    Half,
    ImageNet,
    Clip,
}

impl Statistics {
    pub fn mean(self) -> [f64; 3] {
        match self {
            Self::Half => [0.5; 3],
            Self::ImageNet => [0.485, 0.456, 0.406],
            Self::Clip => [0.481_454_66, 0.457_827_5, 0.408_210_73],
        }
    }

    pub fn std(self) -> [f64; 3] {
        match self {
            Self::Half => [0.5; 3],
            Self::ImageNet => [0.229, 0.224, 0.225],
            Self::Clip => [0.268_629_54, 0.261_302_58, 0.275_777_11],
        }
    }
}

/// A processor: the name without `ImageProcessor` or `FeatureExtractor`, and its defaults.
pub(super) struct Class {
    pub name: &'static str,
    pub resizing: Resizing,
    pub size: Option<Extent>,
    pub center_crop: bool,
    pub crop: Option<usize>,
    pub crop_share: Option<f64>,
    /// `None` where releases 4 and 5 of `transformers` differ.
    pub resample: Option<Interpolation>,
    pub normalize: bool,
    pub statistics: Option<Statistics>,
    /// Keys beyond those of every processor, and read as that processor does.
    pub keys: &'static [&'static str],
}

/// Resizes to a square, and cuts nothing.
const fn square(name: &'static str, side: usize, resample: Interpolation, statistics: Statistics) -> Class {
    Class {
        name,
        resizing: Resizing::Square,
        size: Some(Extent::Exact([side, side])),
        center_crop: false,
        crop: None,
        crop_share: None,
        resample: Some(resample),
        normalize: true,
        statistics: Some(statistics),
        keys: &[],
    }
}

/// Resizes the shorter side, and cuts 224 × 224 out of the middle.
const fn short(name: &'static str, side: usize, resample: Interpolation, statistics: Statistics) -> Class {
    Class {
        resizing: Resizing::Short,
        size: Some(Extent::One(side)),
        center_crop: true,
        crop: Some(224),
        ..square(name, side, resample, statistics)
    }
}

/// A detector.
const fn boxes(name: &'static str) -> Class {
    Class { resizing: Resizing::Boxes, size: None, ..square(name, 0, Interpolation::Bilinear, Statistics::ImageNet) }
}

/// Read from `transformers` 5.24, and `resample` from 4.57 too.
pub(super) const CLASSES: &[Class] = {
    use Interpolation::{Bicubic, Bilinear};
    use Statistics::{Clip, Half, ImageNet};
    &[
        Class { crop: Some(224), ..square("Beit", 224, Bicubic, Half) },
        short("Bit", 224, Bicubic, Clip),
        square("Blip", 384, Bicubic, Clip),
        short("ChineseCLIP", 224, Bicubic, Clip),
        short("CLIP", 224, Bicubic, Clip),
        boxes("ConditionalDetr"),
        Class {
            resizing: Resizing::ConvNext,
            center_crop: false,
            crop_share: Some(224.0 / 256.0),
            resample: None,
            keys: &["crop_pct"],
            ..short("ConvNext", 384, Bicubic, Half)
        },
        boxes("DeformableDetr"),
        Class { center_crop: true, crop: Some(224), ..square("DeiT", 256, Bicubic, Half) },
        boxes("Detr"),
        Class { keys: &["ensure_multiple_of", "size_divisor"], ..square("DPT", 384, Bicubic, Half) },
        Class {
            crop: Some(289),
            resample: None,
            keys: &["include_top", "rescale_offset"],
            ..square("EfficientNet", 346, Bicubic, Half)
        },
        Class { resizing: Resizing::Levit, ..short("Levit", 224, Bicubic, ImageNet) },
        short("MobileNetV1", 256, Bilinear, Half),
        short("MobileNetV2", 256, Bilinear, Half),
        Class {
            crop: Some(256),
            resample: None,
            normalize: false,
            statistics: None,
            keys: &["do_flip_channel_order"],
            ..short("MobileViT", 224, Bicubic, Half)
        },
        Class {
            resizing: Resizing::PoolFormer,
            crop_share: Some(0.9),
            keys: &["crop_pct"],
            ..short("PoolFormer", 224, Bicubic, ImageNet)
        },
        Class { resample: None, ..square("Pvt", 224, Bicubic, ImageNet) },
        Class { normalize: false, ..boxes("RTDetr") },
        square("Segformer", 512, Bilinear, ImageNet),
        Class { resizing: Resizing::Short, ..square("Siglip", 224, Bicubic, Half) },
        Class {
            resizing: Resizing::Short,
            size: Some(Extent::Exact([480, 640])),
            normalize: false,
            statistics: None,
            ..square("SuperPoint", 480, Bilinear, Half)
        },
        square("ViT", 224, Bilinear, Half),
        boxes("Yolos"),
    ]
};
