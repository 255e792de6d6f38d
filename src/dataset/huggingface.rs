//! Preprocessing from a Hugging Face `preprocessor_config.json`.

use std::path::Path;

use serde_json::Value;

use super::{
    DatasetError,
    preprocess::{Extent, Preprocess},
    resample::Interpolation,
};

/// Reads the file. Understood: `do_resize`, `size` (a number, `shortest_edge`, or `height` and `width`), `resample`,
/// `do_center_crop`, `crop_size`, `crop_pct`, `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean`,
/// `image_std`. Anything else that changes pixels (padding, tiling) is refused.
pub fn load_preprocessor(path: &Path) -> Result<Preprocess, DatasetError> {
    let invalid = |reason: String| DatasetError::Format { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|source| DatasetError::Read { path: path.to_owned(), source })?;
    let json: Value = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    parse(&json).map_err(invalid)
}

fn parse(json: &Value) -> Result<Preprocess, String> {
    let flag = |key: &str, default: bool| json.get(key).and_then(Value::as_bool).unwrap_or(default);
    for key in ["do_pad", "do_image_splitting", "do_convert_annotations", "do_color_quantize"] {
        if flag(key, false) && key != "do_convert_annotations" {
            return Err(format!("`{key}` is not supported; describe the preprocessing with [preprocess] or pass .npz"));
        }
    }
    let mut crop = None;
    if flag("do_center_crop", json.get("crop_size").is_some_and(|size| !size.is_null())) {
        crop = Some(extent(json.get("crop_size").unwrap_or(&Value::Null), "crop_size")?);
        if let Some(Extent::One(side)) = crop {
            crop = Some(Extent::Exact([side, side]));
        }
    }
    let mut resize = None;
    if flag("do_resize", true) && json.get("size").is_some() {
        resize = Some(extent(&json["size"], "size")?);
        // ConvNeXt: below 384 pixels the short side is enlarged by crop_pct and the middle is cut out.
        if let (Some(Extent::One(short)), Some(share)) = (resize, json.get("crop_pct").and_then(Value::as_f64))
            && short < 384
        {
            resize = Some(Extent::One((short as f64 / share) as usize));
            crop = Some(Extent::Exact([short, short]));
        }
        // A plain number without a crop means both sides.
        if crop.is_none()
            && let (Some(Extent::One(side)), true) = (resize, json["size"].is_number())
        {
            resize = Some(Extent::Exact([side, side]));
        }
    }
    let rescale = flag("do_rescale", true);
    let factor = json.get("rescale_factor").and_then(Value::as_f64).unwrap_or(1.0 / 255.0);
    let normalize = flag("do_normalize", true);
    let preprocess = Preprocess {
        resize,
        crop,
        interpolation: interpolation(json.get("resample"))?,
        scale: if rescale { factor } else { 1.0 },
        mean: if normalize { triple(json, "image_mean")?.unwrap_or([0.0; 3]) } else { [0.0; 3] },
        std: if normalize { triple(json, "image_std")?.unwrap_or([1.0; 3]) } else { [1.0; 3] },
        ..Preprocess::default()
    };
    preprocess.check()?;
    Ok(preprocess)
}

fn extent(value: &Value, key: &str) -> Result<Extent, String> {
    let number = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    let side = |name: &str| value.get(name).and_then(number);
    number(value)
        .or_else(|| side("shortest_edge"))
        .map(Extent::One)
        .or_else(|| Some(Extent::Exact([side("height")?, side("width")?])))
        .ok_or_else(|| format!("`{key}` is {value}; a number, `shortest_edge`, or `height` and `width` is expected"))
}

/// Pillow's filter numbers.
fn interpolation(value: Option<&Value>) -> Result<Interpolation, String> {
    match value.and_then(Value::as_u64) {
        Some(0) => Ok(Interpolation::Nearest),
        Some(1) => Ok(Interpolation::Lanczos),
        None | Some(2) => Ok(Interpolation::Bilinear),
        Some(3) => Ok(Interpolation::Bicubic),
        Some(4) => Ok(Interpolation::Box),
        Some(5) => Ok(Interpolation::Hamming),
        Some(other) => Err(format!("`resample` is {other}; 0 to 5 are known")),
    }
}

fn triple(json: &Value, key: &str) -> Result<Option<[f64; 3]>, String> {
    let Some(value) = json.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let numbers: Option<Vec<f64>> = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
    match numbers.as_deref() {
        Some(&[one]) => Ok(Some([one; 3])),
        Some(&[r, g, b]) => Ok(Some([r, g, b])),
        _ => Err(format!("`{key}` is {value}; three numbers are expected")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn vit_clip_and_convnext() {
        let vit = parse(&json!({"do_resize": true, "size": {"height": 224, "width": 224}, "resample": 2,
            "do_rescale": true, "rescale_factor": 0.003_921_568_627_450_98, "do_normalize": true,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}))
        .unwrap();
        assert_eq!((vit.resize, vit.crop), (Some(Extent::Exact([224, 224])), None));
        assert_eq!(vit.mean, [0.5; 3]);
        let clip = parse(&json!({"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224},
            "do_center_crop": true, "resample": 3}))
        .unwrap();
        assert_eq!((clip.resize, clip.crop), (Some(Extent::One(224)), Some(Extent::Exact([224, 224]))));
        assert_eq!(clip.interpolation, Interpolation::Bicubic);
        let convnext = parse(&json!({"size": {"shortest_edge": 224}, "crop_pct": 0.875})).unwrap();
        assert_eq!((convnext.resize, convnext.crop), (Some(Extent::One(256)), Some(Extent::Exact([224, 224]))));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert!(parse(&json!({"size": "big"})).unwrap_err().contains("`size`"));
        assert!(parse(&json!({"do_pad": true})).unwrap_err().contains("do_pad"));
        assert!(parse(&json!({"image_std": [0, 0, 0], "image_mean": [0, 0, 0]})).is_err());
    }
}
