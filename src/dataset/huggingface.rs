//! Preprocessing from a Hugging Face `preprocessor_config.json`.
//!
//! The same key means other things to other processors, and what a file leaves out the processor's class knows: so the
//! class decides. A key that changes pixels in a way that is not known of the class is refused, never passed over.

mod classes;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::{Map, Value};

use self::classes::{CLASSES, Class, Cuts, Resizing, Statistics};
use super::{
    DatasetError,
    preprocess::{ChannelOrder, Extent, Layout, Preprocess},
    resample::{CropRounding, Interpolation},
};
use crate::artifact::read_within;

/// The cure that every refusal names.
const CURE: &str = "describe the preprocessing with [preprocess] of the configuration, or pass the samples as .npz";
/// Keys that every processor has.
const COMMON: &[&str] = &[
    "crop_size",
    "data_format",
    "do_center_crop",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "resample",
    "rescale_factor",
    "size",
];
/// Keys that change no pixel: names, labels, and where arrays go.
const HARMLESS: &[&str] = &[
    "_commit_hash",
    "_valid_processor_keys",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_convert_annotations",
    "do_convert_rgb",
    "do_reduce_labels",
    "feature_extractor_type",
    "format",
    "image_processor_type",
    "input_data_format",
    "model_input_names",
    "name_or_path",
    "processor_class",
    "reduce_labels",
    "return_tensors",
    "transformers_version",
];

/// Characters of a value that errors show.
const SHOWN: usize = 80;
/// Files of this kind have some kilobytes.
const MAX_BYTES: u64 = 1 << 20;

/// Reads the file and does as the processor that it names does. Files without sizes resize to `model`, the height and
/// width of the model's input where they are known.
///
/// # Errors
/// A processor that is not known, and keys that are not known of the processor and say something.
pub fn load_preprocessor(path: &Path, model: Option<[usize; 2]>) -> Result<Preprocess, DatasetError> {
    let invalid = |reason: String| DatasetError::Format { path: path.to_owned(), reason };
    let read = |source| DatasetError::Read { path: path.to_owned(), source };
    let bytes = read_within(path, MAX_BYTES).map_err(read)?;
    let json: Value = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    parse(&json, model).map_err(invalid)
}

fn parse(json: &Value, model: Option<[usize; 2]>) -> Result<Preprocess, String> {
    let keys = json.as_object().ok_or("a JSON object is expected")?;
    let file = File { keys, class: class(keys)? };
    file.refuse_unknown()?;
    file.class.map_or(Ok(()), |class| file.refuse_foreign(class))?;
    let flag = |key: &str, default: bool| file.flag(key, default);
    let mut preprocess = Preprocess { crop_rounding: CropRounding::Floor, ..Preprocess::default() };
    preprocess.crop = file.crop()?;
    if flag("do_resize", true)? {
        file.resize(&mut preprocess, model)?;
    }
    preprocess.interpolation = match (file.given("resample"), file.class) {
        (Some(value), _) => interpolation(value)?,
        (None, Some(class)) if preprocess.resize.is_some() => class.resample.ok_or_else(|| {
            let name = class.name;
            format!(
                "`resample` is missing, which {name} takes otherwise in `transformers` 4 than in 5; add the filter that the \
                 model was trained with to the file: 2 is bilinear, 3 bicubic"
            )
        })?,
        (None, _) => Interpolation::Bilinear,
    };
    // Channels first is what files say whatever the model: that is left to the model's input.
    preprocess.layout = match file.given("data_format").map(|value| (value, value.as_str())) {
        None | Some((_, Some("channels_first"))) => None,
        Some((_, Some("channels_last"))) => Some(Layout::Nhwc),
        Some((value, _)) => {
            return Err(format!("`data_format` is {}; channels_first or channels_last is expected", shown(value)));
        }
    };
    let rescales = flag("do_rescale", true)?;
    preprocess.scale = match file.given("rescale_factor") {
        _ if !rescales => 1.0,
        None => 1.0 / 255.0,
        Some(value) => {
            value.as_f64().ok_or_else(|| format!("`rescale_factor` is {}; a number is expected", shown(value)))?
        }
    };
    let statistics = file.class.and_then(|class| class.statistics);
    let normalizes = file.class.map_or(file.given("image_mean").is_some(), |class| class.normalize);
    let mean = file.triple("image_mean", statistics.map(Statistics::mean))?;
    let std = file.triple("image_std", statistics.map(Statistics::std))?;
    if flag("do_normalize", normalizes)? {
        preprocess.mean = mean.ok_or_else(|| format!("`do_normalize` is set and `image_mean` is missing; {CURE}"))?;
        preprocess.std = std.ok_or_else(|| format!("`do_normalize` is set and `image_std` is missing; {CURE}"))?;
    }
    // EfficientNet: values from −1 on, and a second division for models with their classifier.
    if file.knows("rescale_offset") && rescales && flag("rescale_offset", false)? {
        preprocess.mean = preprocess.mean.map(|mean| mean + 1.0);
    }
    if file.knows("include_top") && flag("include_top", true)? {
        let again = std.ok_or_else(|| format!("`include_top` is set and `image_std` is missing; {CURE}"))?;
        preprocess.std = std::array::from_fn(|channel| preprocess.std[channel] * again[channel]);
    }
    if file.knows("do_flip_channel_order") && flag("do_flip_channel_order", true)? {
        preprocess.channel_order = ChannelOrder::Bgr;
    }
    preprocess.check()?;
    Ok(preprocess)
}

/// The beginning of a value, for errors.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The class that a file names; `None` for files without a name.
fn class(keys: &Map<String, Value>) -> Result<Option<&'static Class>, String> {
    let mut named = ["image_processor_type", "feature_extractor_type"].into_iter();
    let Some((key, named)) = named.find_map(|key| Some((key, keys.get(key).filter(|named| !named.is_null())?))) else {
        return Ok(None);
    };
    let named = named.as_str().ok_or_else(|| format!("`{key}` is {}; a name is expected", shown(named)))?;
    let stem = ["ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor"]
        .iter()
        .find_map(|suffix| named.strip_suffix(suffix))
        .unwrap_or(named);
    CLASSES.iter().find(|class| class.name.eq_ignore_ascii_case(stem)).map(Some).ok_or_else(|| {
        let known: Vec<&str> = CLASSES.iter().map(|class| class.name).collect();
        format!("the processor `{named}` is not known (known are {}); {CURE}", known.join(", "))
    })
}

/// What a file says, and the class that reads it.
struct File<'f> {
    keys: &'f Map<String, Value>,
    class: Option<&'static Class>,
}

impl File<'_> {
    /// The value of a key, where it is there and not null.
    fn given(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    /// A switch, or what it is without a word. Where that is on, null says nothing.
    fn flag(&self, key: &str, default: bool) -> Result<bool, String> {
        match self.keys.get(key) {
            None => Ok(default),
            Some(Value::Null) if default => Err(self.null(key, "write true or false")),
            Some(Value::Null) => Ok(false),
            Some(value) => boolean(value, key),
        }
    }

    /// The class, in the words of an error.
    fn whose(&self) -> &'static str {
        self.class.map_or("files that name no processor", |class| class.name)
    }

    /// Why null is refused.
    fn null(&self, key: &str, cure: &str) -> String {
        format!(
            "`{key}` is null, which the slow image processors of `transformers` take for off and the fast ones for their \
             default, here for {}; {cure}, as the model was trained",
            self.whose()
        )
    }

    /// Why a value must be given.
    fn differs(&self, key: &str) -> String {
        format!(
            "`{key}` is missing, which the slow and the fast image processor of {} in `transformers` take differently; add \
             what the model was trained with to the file",
            self.whose()
        )
    }

    fn unsupported(&self, key: &str, value: &Value) -> String {
        format!("`{key}` is {}, which is not supported for {}; {CURE}", shown(value), self.whose())
    }

    /// Whether the class reads a key of its own.
    fn knows(&self, key: &str) -> bool {
        self.class.is_some_and(|class| class.keys.contains(&key))
    }

    fn refuse_unknown(&self) -> Result<(), String> {
        for (key, value) in self.keys {
            let known = COMMON.contains(&key.as_str()) || HARMLESS.contains(&key.as_str()) || self.knows(key);
            // Whatever it is, it is not done.
            let nothing = value.is_null() || value == &Value::Bool(false);
            // Pictures of one size are padded to that size.
            let padded = key == "do_pad" && self.class.is_some_and(|class| class.resizing == Resizing::Boxes);
            if !known && !nothing && !padded {
                return Err(self.unsupported(key, value));
            }
        }
        if self.given("ensure_multiple_of").is_some_and(|value| value.as_u64() != Some(1)) {
            return Err(format!("`ensure_multiple_of` is not supported; {CURE}"));
        }
        if let Some(value) = self.given("input_data_format").filter(|value| *value != "channels_first") {
            return Err(self.fast_only("input_data_format", value));
        }
        Ok(())
    }

    /// Refuses keys of every processor that this one does not have, and those that only its fast one has. What a switch
    /// that is off belongs to does nothing.
    fn refuse_foreign(&self, class: &Class) -> Result<(), String> {
        let says = |key: &str| self.given(key).filter(|value| **value != false);
        let foreign = [
            (class.cuts == Cuts::Neither, ["do_center_crop", "crop_size"].as_slice()),
            (class.statistics.is_none(), &["do_normalize", "image_mean", "image_std"]),
        ];
        for (_, keys) in foreign.into_iter().filter(|(is_foreign, _)| *is_foreign) {
            let off = self.keys.contains_key(keys[0]) && says(keys[0]).is_none();
            if let Some((key, value)) = keys.iter().find_map(|key| Some((key, says(key)?))).filter(|_| !off) {
                return Err(self.unsupported(key, value));
            }
        }
        match says("do_center_crop").filter(|_| class.cuts == Cuts::Fast) {
            Some(value) => Err(self.fast_only("do_center_crop", value)),
            None => Ok(()),
        }
    }

    /// Why a key is refused that the slow processor passes over.
    fn fast_only(&self, key: &str, value: &Value) -> String {
        format!(
            "`{key}` is {}, which the fast image processor of {} in `transformers` follows and the slow one does not; {CURE}",
            shown(value),
            self.whose()
        )
    }

    /// The centre that is cut out.
    fn crop(&self) -> Result<Option<Extent>, String> {
        let key = "do_center_crop";
        let default = self.class.map_or(Some(self.given("crop_size").is_some()), |class| class.center_crop);
        if default.is_none() && !self.keys.contains_key(key) {
            return Err(self.differs(key));
        }
        if !self.flag(key, default.unwrap_or(false))? {
            return Ok(None);
        }
        let crop = match (self.given("crop_size"), self.class.and_then(|class| class.crop)) {
            (Some(value), _) => extent(value, "crop_size", false)?,
            (None, Some(side)) => Extent::One(side),
            (None, None) => return Err(format!("`do_center_crop` is set and `crop_size` is missing; {CURE}")),
        };
        Ok(Some(exact(crop)))
    }

    /// Sets the resize, and the crop where it belongs to it.
    fn resize(&self, preprocess: &mut Preprocess, model: Option<[usize; 2]>) -> Result<(), String> {
        let default = self.class.and_then(|class| class.size);
        let resizing = self.class.map(|class| class.resizing);
        let size = match (self.given("size"), default, resizing) {
            (Some(value), ..) => extent(value, "size", true)?,
            (None, Some(size), _) => size,
            (None, None, Some(Resizing::Boxes)) => {
                return Err(format!(
                    "`size` is missing, and {} then makes the shorter side 800 pixels and the longer 1333 at most, which is \
                     not supported; {CURE}",
                    self.whose()
                ));
            }
            (None, None, Some(_)) => return Err(self.differs("size")),
            // Sizes that neither says are left to the model.
            (None, None, None) => {
                preprocess.resize = model.filter(|_| preprocess.crop.is_none()).map(Extent::Exact);
                return Ok(());
            }
        };
        let numeric = self.given("size").is_some_and(Value::is_number);
        let square = resizing == Some(Resizing::Square);
        if let Some(value) = self.given("default_to_square").filter(|value| numeric && **value != square) {
            return Err(self.fast_only("default_to_square", value));
        }
        let share = match self.keys.get("crop_pct") {
            Some(Value::Null) if resizing == Some(Resizing::PoolFormer) => {
                return Err(self.null("crop_pct", "write a number or leave the key out"));
            }
            None | Some(Value::Null) => self.class.and_then(|class| class.crop_share),
            Some(value) if value.as_f64().is_some_and(|share| share > 0.0) => value.as_f64(),
            Some(value) => return Err(format!("`crop_pct` is {}; a number above 0 is expected", shown(value))),
        };
        let enlarged = |short: usize| share.map_or(short, |share| (short as f64 / share) as usize);
        preprocess.resize = Some(match (size, resizing) {
            (Extent::One(_), None) if numeric => {
                return Err(format!("`size` is a number, which means other things to other processors; {CURE}"));
            }
            (Extent::One(side), Some(Resizing::Square)) if numeric => Extent::Exact([side, side]),
            (Extent::One(_), Some(Resizing::Boxes)) => {
                return Err(format!("`size` of a detector that keeps the shape of the picture; {CURE}"));
            }
            (Extent::One(short), Some(Resizing::Levit)) => Extent::One((256.0 / 224.0 * short as f64) as usize),
            // Below 384 pixels the short side is enlarged and the middle cut out, from there on the picture is warped.
            (Extent::One(short), Some(Resizing::ConvNext)) if short < 384 => {
                preprocess.crop = Some(Extent::Exact([short, short]));
                Extent::One(enlarged(short))
            }
            (Extent::One(short), Some(Resizing::ConvNext)) => Extent::Exact([short, short]),
            (Extent::Exact(_), Some(Resizing::ConvNext)) => {
                return Err(format!("`size` of ConvNext is its `shortest_edge`; {CURE}"));
            }
            (Extent::One(short), Some(Resizing::PoolFormer)) => Extent::One(enlarged(short)),
            (Extent::Exact([height, width]), Some(Resizing::PoolFormer)) if share.is_some() => {
                if height == width {
                    Extent::One(enlarged(height))
                } else {
                    Extent::Exact([enlarged(height), enlarged(width)])
                }
            }
            (size, _) => size,
        });
        Ok(())
    }

    fn triple(&self, key: &str, default: Option<[f64; 3]>) -> Result<Option<[f64; 3]>, String> {
        let Some(value) = self.given(key) else { return Ok(default) };
        let numbers: Option<Vec<f64>> = match value {
            Value::Array(list) => list.iter().map(Value::as_f64).collect(),
            number => number.as_f64().map(|number| vec![number]),
        };
        match numbers.as_deref() {
            Some(&[one]) => Ok(Some([one; 3])),
            Some(&[r, g, b]) => Ok(Some([r, g, b])),
            _ => Err(format!("`{key}` is {}; three numbers are expected", shown(value))),
        }
    }
}

fn boolean(value: &Value, key: &str) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("`{key}` is {}; true or false is expected", shown(value)))
}

fn exact(extent: Extent) -> Extent {
    match extent {
        Extent::One(side) => Extent::Exact([side, side]),
        Extent::Exact(_) => extent,
    }
}

/// A number, `{"shortest_edge": N}` where that is allowed, or `{"height": N, "width": N}`.
fn extent(value: &Value, key: &str, shortest: bool) -> Result<Extent, String> {
    let number = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    let expected = if shortest {
        "a number, `shortest_edge`, or `height` and `width`"
    } else {
        "a number, or `height` and `width`"
    };
    let parts: Vec<(&str, &Value)> = value
        .as_object()
        .map(|parts| {
            parts.iter().filter(|(_, part)| !part.is_null()).map(|(name, part)| (name.as_str(), part)).collect()
        })
        .unwrap_or_default();
    let found = match parts[..] {
        [] => number(value).map(Extent::One),
        [("shortest_edge", short)] if shortest => number(short).map(Extent::One),
        [("height", height), ("width", width)] => number(height).zip(number(width)).map(|(h, w)| Extent::Exact([h, w])),
        _ => None,
    };
    found.ok_or_else(|| format!("`{key}` is {}; {expected} is supported: {CURE}", shown(value)))
}

/// Pillow's filter numbers.
fn interpolation(value: &Value) -> Result<Interpolation, String> {
    match value.as_u64() {
        Some(0) => Ok(Interpolation::Nearest),
        Some(1) => Ok(Interpolation::Lanczos),
        Some(2) => Ok(Interpolation::Bilinear),
        Some(3) => Ok(Interpolation::Bicubic),
        Some(4) => Ok(Interpolation::Box),
        Some(5) => Ok(Interpolation::Hamming),
        _ => Err(format!("`resample` is {}; 0 to 5 are known", shown(value))),
    }
}
