//! TensorRT's calibration cache (TensorRT 10 and older): written for such engines, read to take over their ranges.
//!
//! The first line is `TRT-<version>-<algorithm>`; every other is a tensor's name, a colon, and the bits of its `float32`
//! scale (`amax / 127`) in hexadecimal. Names may contain colons.

use std::{collections::BTreeMap, path::Path};

use super::{CalibrationTable, Method, TABLE_FORMAT_VERSION, TensorRange};
use crate::{
    artifact::{self, ArtifactError, ContentHash, Tool},
    qparams::QuantType,
};

const KIND: &str = "TensorRT calibration cache";

/// A calibration cache.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibrationCache {
    /// TensorRT's version, as it stands in the file: `101300` for 10.13.
    pub version: String,
    /// Name of TensorRT's calibrator, such as `EntropyCalibration2`.
    pub algorithm: String,
    /// Scale by tensor name: finite and above zero.
    pub scales: BTreeMap<String, f32>,
}

impl CalibrationCache {
    /// The scales of a table, as an entropy calibrator of TensorRT 10.13 would have written them.
    pub fn from_table(table: &CalibrationTable) -> Self {
        let scale = |range: &TensorRange| QuantType::Int8.scale(range.amax);
        Self {
            version: "101300".to_owned(),
            algorithm: "EntropyCalibration2".to_owned(),
            scales: table.tensors.iter().map(|(name, range)| (name.clone(), scale(range))).collect(),
        }
    }

    /// A table with these scales for the model that `model_hash` names; the cache itself names none.
    ///
    /// The thresholds are what the cache tells; extremes are set to them and counts to zero, because it does not tell
    /// more.
    pub fn to_table(&self, model_hash: ContentHash) -> CalibrationTable {
        let method = match self.algorithm.as_str() {
            "MinMaxCalibration" => Method::MinMax,
            "LegacyCalibration" => Method::Percentile,
            _ => Method::Entropy,
        };
        let range = |scale: f32| {
            let amax = (scale * 127.0).min(f32::MAX);
            TensorRange {
                min: -amax,
                max: amax,
                count: 0,
                amax,
                method,
                candidates: [(method, amax)].into(),
                clipped: 0.0,
            }
        };
        CalibrationTable {
            format_version: TABLE_FORMAT_VERSION,
            tool: Tool::current(),
            model_hash,
            data_hash: ContentHash::of_bytes(self.to_text().as_bytes()),
            method: format!("TensorRT {} {}", self.version, self.algorithm),
            percentile: 100.0,
            samples: 0,
            random_data: false,
            tensors: self.scales.iter().map(|(name, &scale)| (name.clone(), range(scale))).collect(),
            bias_corrections: BTreeMap::new(),
            magnitudes: None,
            recovered: None,
        }
    }

    /// Writes the file; fails for a name that the format cannot hold.
    pub fn save(&self, path: &Path) -> Result<(), ArtifactError> {
        if let Some(name) = self.scales.keys().find(|name| name.is_empty() || name.contains('\n')) {
            return Err(invalid(path, format!("it cannot hold the tensor name {name:?}; rename the tensor")));
        }
        artifact::write_atomic(path, self.to_text().as_bytes())
    }

    fn to_text(&self) -> String {
        let lines = self.scales.iter().map(|(name, scale)| format!("{name}: {:08x}\n", scale.to_bits()));
        format!("TRT-{}-{}\n{}", self.version, self.algorithm, lines.collect::<String>())
    }

    /// Reads the file; the error names the line.
    pub fn load(path: &Path) -> Result<Self, ArtifactError> {
        let bytes = std::fs::read(path).map_err(|source| ArtifactError::Read { path: path.to_owned(), source })?;
        let text = String::from_utf8(bytes).map_err(|_| invalid(path, "it is not UTF-8 text".to_owned()))?;
        Self::parse(&text).map_err(|(line, reason)| invalid(path, format!("line {line}: {reason}")))
    }

    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut lines = text.split('\n').zip(1..);
        let header = lines.next().map_or("", |(line, _)| line.trim_end());
        let (version, algorithm) = header
            .strip_prefix("TRT-")
            .and_then(|rest| rest.split_once('-'))
            .ok_or_else(|| (1, "not `TRT-<version>-<algorithm>`".to_owned()))?;
        let mut scales = BTreeMap::new();
        for (line, number) in lines.filter(|(line, _)| !line.trim().is_empty()) {
            let (name, scale) = parse_line(line).map_err(|reason| (number, reason))?;
            if scales.insert(name.to_owned(), scale).is_some() {
                return Err((number, format!("tensor `{name}` is there twice")));
            }
        }
        Ok(Self { version: version.to_owned(), algorithm: algorithm.to_owned(), scales })
    }
}

fn parse_line(line: &str) -> Result<(&str, f32), String> {
    let (name, digits) = line.rsplit_once(':').filter(|(name, _)| !name.is_empty()).ok_or("not `tensor: scale`")?;
    let digits = digits.trim();
    let bits = Some(digits)
        .filter(|digits| digits.len() <= 8 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .ok_or_else(|| format!("`{digits}` is not the hexadecimal bits of a scale"))?;
    let scale = f32::from_bits(bits);
    if scale.is_finite() && scale > 0.0 {
        Ok((name, scale))
    } else {
        Err(format!("the scale of tensor `{name}` is {scale}; a scale is finite and above zero"))
    }
}

fn invalid(path: &Path, reason: String) -> ArtifactError {
    ArtifactError::Format { path: path.to_owned(), kind: KIND, reason }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_documented_line() {
        let cache =
            CalibrationCache::parse("TRT-101300-EntropyCalibration2\r\nblock:0/relu:0: 3c010a14\r\n\n").unwrap();
        assert_eq!((cache.version.as_str(), cache.algorithm.as_str()), ("101300", "EntropyCalibration2"));
        let table = cache.to_table(ContentHash::of_bytes(b"model"));
        assert!((table.amax("block:0/relu:0").unwrap() - 1.0002).abs() < 5e-5);
        assert_eq!(CalibrationCache::from_table(&table).scales.keys().collect::<Vec<_>>(), ["block:0/relu:0"]);
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, line, reason) in [
            ("calibration", 1, "TRT-<version>"),
            ("TRT-1-X\na: 3f800000\nnonsense", 3, "tensor: scale"),
            ("TRT-1-X\n: 3f800000", 2, "tensor: scale"),
            ("TRT-1-X\na: +f800000", 2, "hexadecimal"),
            ("TRT-1-X\na: 13f800000", 2, "hexadecimal"),
            ("TRT-1-X\na:", 2, "hexadecimal"),
            ("TRT-1-X\na: 7f800000", 2, "inf"),
            ("TRT-1-X\na: 7fc00000", 2, "NaN"),
            ("TRT-1-X\na: 00000000", 2, "above zero"),
            ("TRT-1-X\na: bf800000", 2, "above zero"),
            ("TRT-1-X\n\na: 3f800000\na: 3f800000", 4, "twice"),
        ] {
            let (found, message) = CalibrationCache::parse(text).unwrap_err();
            assert!(found == line && message.contains(reason), "{text:?}: line {found}: {message}");
        }
    }

    proptest! {
        #[test]
        fn reading_gives_back_what_was_written(
            scales in prop::collection::btree_map("[^\n]{1,12}", proptest::num::f32::POSITIVE | proptest::num::f32::SUBNORMAL, 0..9),
        ) {
            let scales = scales.into_iter().map(|(name, scale): (String, f32)| (name, scale.abs()));
            let cache = CalibrationCache {
                version: "8601".to_owned(),
                algorithm: "MinMaxCalibration".to_owned(),
                scales: scales.filter(|(_, scale)| scale.is_finite() && *scale > 0.0).collect(),
            };
            prop_assert_eq!(CalibrationCache::parse(&cache.to_text()).unwrap(), cache);
        }
    }

    #[test]
    fn a_name_with_a_line_break_is_refused() {
        let cache =
            CalibrationCache { version: "1".into(), algorithm: "X".into(), scales: [("a\nb".into(), 1.0)].into() };
        assert!(cache.save(Path::new("never-written")).unwrap_err().to_string().contains("a\\nb"));
    }
}
