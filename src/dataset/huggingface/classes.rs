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

/// Who cuts the middle out where a file asks for it with `do_center_crop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cuts {
    Both,
    /// The fast processor of the class; the slow one passes the key over.
    Fast,
    Neither,
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
    /// `None` where it keeps the shape of the picture, or the slow processor's is another than the fast one's.
    pub size: Option<Extent>,
    pub cuts: Cuts,
    /// `None` where the slow and the fast processor differ.
    pub center_crop: Option<bool>,
    pub crop: Option<usize>,
    pub crop_share: Option<f64>,
    /// `None` where releases 4 and 5 of `transformers` differ.
    pub resample: Option<Interpolation>,
    pub normalize: bool,
    /// `None` where neither the slow nor the fast processor normalizes.
    pub statistics: Option<Statistics>,
    /// Keys beyond those of every processor, and read as that processor does.
    pub keys: &'static [&'static str],
}

/// Resizes to a square, and cuts nothing; the fast processor does where it is asked to.
const fn square(name: &'static str, side: usize, resample: Interpolation, statistics: Statistics) -> Class {
    Class {
        name,
        resizing: Resizing::Square,
        size: Some(Extent::Exact([side, side])),
        cuts: Cuts::Fast,
        center_crop: Some(false),
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
        cuts: Cuts::Both,
        center_crop: Some(true),
        crop: Some(224),
        ..square(name, side, resample, statistics)
    }
}

/// A detector.
const fn boxes(name: &'static str) -> Class {
    Class {
        resizing: Resizing::Boxes,
        size: None,
        cuts: Cuts::Neither,
        ..square(name, 0, Interpolation::Bilinear, Statistics::ImageNet)
    }
}

/// Read from `transformers` 5.24, and from the slow and the fast processors of 4.57 what is `None` where they differ.
pub(super) const CLASSES: &[Class] = {
    use Interpolation::{Bicubic, Bilinear};
    use Statistics::{Clip, Half, ImageNet};
    &[
        Class { size: None, cuts: Cuts::Both, center_crop: None, crop: Some(224), ..square("Beit", 0, Bicubic, Half) },
        short("Bit", 224, Bicubic, Clip),
        square("Blip", 384, Bicubic, Clip),
        short("ChineseCLIP", 224, Bicubic, Clip),
        short("CLIP", 224, Bicubic, Clip),
        boxes("ConditionalDetr"),
        Class {
            resizing: Resizing::ConvNext,
            size: Some(Extent::One(384)),
            crop_share: Some(224.0 / 256.0),
            resample: None,
            keys: &["crop_pct"],
            ..square("ConvNext", 384, Bicubic, Half)
        },
        boxes("DeformableDetr"),
        Class { cuts: Cuts::Both, center_crop: Some(true), crop: Some(224), ..square("DeiT", 256, Bicubic, Half) },
        boxes("Detr"),
        Class { keys: &["ensure_multiple_of", "size_divisor"], ..square("DPT", 384, Bicubic, Half) },
        Class {
            cuts: Cuts::Both,
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
        Class { size: Some(Extent::Exact([640, 640])), normalize: false, ..boxes("RTDetr") },
        Class { cuts: Cuts::Neither, ..square("Segformer", 512, Bilinear, ImageNet) },
        Class { resizing: Resizing::Short, ..square("Siglip", 224, Bicubic, Half) },
        Class {
            resizing: Resizing::Short,
            size: Some(Extent::Exact([480, 640])),
            cuts: Cuts::Neither,
            normalize: false,
            statistics: None,
            ..square("SuperPoint", 480, Bilinear, Half)
        },
        square("ViT", 224, Bilinear, Half),
        boxes("Yolos"),
    ]
};
