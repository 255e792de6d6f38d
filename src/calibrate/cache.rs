//! TensorRT's calibration cache (TensorRT 10 and older): written for such engines, read to take over their ranges.
//!
//! The first line is `TRT-<version>-<algorithm>`; every other is a tensor's name, a colon, and the bits of its `float32`
//! scale (`amax / 127`) in hexadecimal. Names may contain colons. Read are also files with a byte order mark, without the
//! first line, and in the text form that onnxruntime writes (`tensor amax`).

use std::{collections::BTreeMap, path::Path};

use super::{CalibrationTable, Method, TABLE_FORMAT_VERSION, TensorRange};
use crate::{
    artifact::{self, ArtifactError, ContentHash, Tool},
    qparams::QuantType,
};

const KIND: &str = "TensorRT calibration cache";

/// Largest file that is read: each tensor takes many times the length of its line.
const MAX_BYTES: u64 = 16 << 20;

/// An entry that stands for no tensor: the ranges are of random numbers. TensorRT passes over names that it does not know.
const RANDOM_DATA: &str = "calib.random_data";

/// A calibration cache.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibrationCache {
    /// TensorRT's version, as it stands in the file: `101300` for 10.13; empty where the file has no header.
    pub version: String,
    /// Name of TensorRT's calibrator, such as `EntropyCalibration2`; empty where the file has no header.
    pub algorithm: String,
    /// Scale by tensor name. TensorRT 8 writes 0 for tensors of zeros; what is no scale at all (infinite, NaN, negative)
    /// matters only where that tensor is quantized, which is refused then.
    pub scales: BTreeMap<String, f32>,
    /// Whether the ranges are of random numbers.
    pub random_data: bool,
}

impl CalibrationCache {
    /// The scales of a table, as an entropy calibrator of TensorRT 10.13 would have written them.
    pub fn from_table(table: &CalibrationTable) -> Self {
        let scale = |range: &TensorRange| QuantType::Int8.scale(range.amax);
        Self {
            version: "101300".to_owned(),
            algorithm: "EntropyCalibration2".to_owned(),
            scales: table.tensors.iter().map(|(name, range)| (name.clone(), scale(range))).collect(),
            random_data: table.random_data,
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
            let amax = if scale.is_finite() { (scale * 127.0).clamp(f32::MIN, f32::MAX) } else { scale };
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
            method: match self.version.as_str() {
                "" => "a calibration cache".to_owned(),
                version => format!("TensorRT {version} {}", self.algorithm),
            },
            percentile: 100.0,
            samples: 0,
            random_data: self.random_data,
            tensors: self.scales.iter().map(|(name, &scale)| (name.clone(), range(scale))).collect(),
            bias_corrections: BTreeMap::new(),
            magnitudes: None,
            calibrated_on: BTreeMap::new(),
            recovered: None,
            fp8: None,
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
        let mark = self.random_data.then_some((RANDOM_DATA, 1.0));
        let lines = mark.into_iter().chain(self.scales.iter().map(|(name, &scale)| (name.as_str(), scale)));
        let lines = lines.map(|(name, scale)| format!("{name}: {:08x}\n", scale.to_bits()));
        format!("TRT-{}-{}\n{}", self.version, self.algorithm, lines.collect::<String>())
    }

    /// Whether a file that begins with `start` (of 64 bytes, or all of it) can be a cache: text that is not JSON, with or
    /// without a first line that tells of TensorRT.
    pub fn begins_with(start: &[u8]) -> bool {
        let text = start.strip_prefix("\u{feff}".as_bytes()).unwrap_or(start).trim_ascii_start();
        let is_text = |byte: &u8| !byte.is_ascii_control() || byte.is_ascii_whitespace();
        !text.is_empty() && !text.starts_with(b"{") && text.iter().all(is_text)
    }

    /// Reads the file; the error names the line.
    pub fn load(path: &Path) -> Result<Self, ArtifactError> {
        let _reading = artifact::Reading::of(path);
        let bytes = artifact::read_within(path, MAX_BYTES)
            .map_err(|source| ArtifactError::Read { path: path.to_owned(), source })?;
        let text = String::from_utf8(bytes).map_err(|_| invalid(path, "it is not UTF-8 text".to_owned()))?;
        Self::parse(&text).map_err(|(line, reason)| invalid(path, format!("line {line}: {reason}")))
    }

    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let text = text.trim_start_matches('\u{feff}');
        // Some editors end lines by a carriage return alone.
        let end = if text.contains('\n') { '\n' } else { '\r' };
        let mut lines = text.split(end).zip(1..).peekable();
        let first = lines.next_if(|(line, _)| line.starts_with("TRT-"));
        let [version, algorithm] = match first {
            Some((line, number)) => {
                let parts = line.trim_end().splitn(3, '-').collect::<Vec<_>>();
                let [_, version, algorithm] = parts[..] else {
                    return Err((number, "not `TRT-<version>-<algorithm>`".to_owned()));
                };
                [version, algorithm].map(str::to_owned)
            }
            None => [String::new(), String::new()],
        };
        let (mut scales, mut random_data) = (BTreeMap::new(), false);
        for (line, number) in lines.filter(|(line, _)| !line.trim().is_empty()) {
            let read = parse_line(line).or_else(|reason| {
                let plain = first.is_none().then(|| parse_plain(line)).flatten();
                plain.ok_or(reason)
            });
            let (name, scale) = read.map_err(|reason| (number, reason))?;
            if name == RANDOM_DATA {
                random_data = true;
            } else if scales.insert(name.to_owned(), scale).is_some() {
                return Err((number, format!("tensor `{name}` is there twice")));
            }
        }
        if scales.is_empty() && first.is_none() {
            return Err((1, "neither `TRT-<version>-<algorithm>` nor the scale of a tensor".to_owned()));
        }
        Ok(Self { version, algorithm, scales, random_data })
    }
}

fn parse_line(line: &str) -> Result<(&str, f32), String> {
    let (name, digits) = line.rsplit_once(':').filter(|(name, _)| !name.is_empty()).ok_or("not `tensor: scale`")?;
    let digits = digits.trim();
    let bits = Some(digits)
        .filter(|digits| digits.len() <= 8 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .ok_or_else(|| format!("`{digits}` is not the hexadecimal bits of a scale"))?;
    // A scale of so few is below 10⁻²⁸, which no tensor has.
    if bits != 0 && digits.len() < 8 {
        return Err(format!("`{digits}` has {} of the 8 digits of a scale: the line is cut off", digits.len()));
    }
    let scale = f32::from_bits(bits);
    // No negative zero.
    Ok((name, if scale == 0.0 { 0.0 } else { scale }))
}

/// A line as onnxruntime's `write_calibration_table` writes it: the tensor and its largest magnitude.
fn parse_plain(line: &str) -> Option<(&str, f32)> {
    let (name, range) = line.trim_end().rsplit_once(' ').filter(|(name, _)| !name.is_empty())?;
    Some((name, range.parse::<f32>().ok()? / 127.0))
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
    fn other_forms_are_read() {
        let scales = |text: &str| CalibrationCache::parse(text).unwrap().scales.into_iter().collect::<Vec<_>>();
        let one = |scale| vec![("a:0".to_owned(), scale)];
        assert_eq!(scales("\u{feff}TRT-8401-EntropyCalibration2\r\na:0: 3f800000\r\n"), one(1.0));
        assert_eq!(scales("TRT-8401-EntropyCalibration2\na:0: 0"), one(0.0));
        assert_eq!(scales("a:0: 3f800000\n"), one(1.0));
        assert_eq!(scales("a:0 254.0\n"), one(2.0));
        let cut_off = CalibrationCache::parse("TRT-8401-EntropyCalibration2\na:0: 3f800").unwrap_err();
        assert_eq!(cut_off, (2, "`3f800` has 5 of the 8 digits of a scale: the line is cut off".to_owned()));
    }

    #[test]
    fn what_is_no_scale_is_told_by_its_range() {
        let amax = |line: &str| {
            let cache = CalibrationCache::parse(&format!("a: 3f800000\n{line}\n")).unwrap();
            cache.to_table(ContentHash::of_bytes(b"")).amax("b").unwrap()
        };
        assert_eq!([amax("b: 7f800000"), amax("b inf")], [f32::INFINITY; 2]);
        assert!(amax("b: 7fc00000").is_nan() && amax("b nan").is_nan());
        assert_eq!([amax("b: bf800000"), amax("b -127")], [-127.0; 2]);
        assert_eq!(amax("b: 80000000").to_bits(), 0);
    }

    #[test]
    fn caches_are_recognized_by_their_beginning() {
        let head = "TRT-8401-EntropyCalibration2\n";
        for text in [head, "\u{feff}TRT-8401", "\u{feff}a:0: 3f800000", "a 254.0\r\n", "größe: 3f8"] {
            assert!(CalibrationCache::begins_with(text.as_bytes()), "{text:?}");
        }
        // Nothing, JSON, an ONNX model, histograms.
        for start in [&b""[..], b" \n", b" {\"a\"", b"\x08\x07\x12\x04onnx", b"calibhst\x01\0\0\0"] {
            assert!(!CalibrationCache::begins_with(start), "{start:?}");
        }
    }

    #[test]
    fn random_data_is_marked_and_the_mark_is_no_tensor() {
        let mut cache = CalibrationCache::parse("TRT-101300-EntropyCalibration2\na: 3f800000\n").unwrap();
        assert!(!cache.random_data && !cache.to_table(ContentHash::of_bytes(b"")).random_data);
        cache.random_data = true;
        let read = CalibrationCache::parse(&cache.to_text()).unwrap();
        assert_eq!(read, cache);
        assert!(read.to_table(ContentHash::of_bytes(b"")).random_data && read.scales.len() == 1);
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, line, reason) in [
            ("calibration", 1, "tensor: scale"),
            ("", 1, "TRT-<version>"),
            ("TRT-1", 1, "TRT-<version>"),
            ("TRT-1-X\na 1.5", 2, "tensor: scale"),
            ("a 1.5\nb x", 2, "tensor: scale"),
            ("TRT-1-X\na: 3f800000\nnonsense", 3, "tensor: scale"),
            ("TRT-1-X\n: 3f800000", 2, "tensor: scale"),
            ("TRT-1-X\na: +f800000", 2, "hexadecimal"),
            ("TRT-1-X\na: 13f800000", 2, "hexadecimal"),
            ("TRT-1-X\na:", 2, "hexadecimal"),
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
                random_data: false,
            };
            prop_assert_eq!(CalibrationCache::parse(&cache.to_text()).unwrap(), cache);
        }
    }

    #[test]
    fn a_name_with_a_line_break_is_refused() {
        let cache = CalibrationCache {
            version: "1".into(),
            algorithm: "X".into(),
            scales: [("a\nb".into(), 1.0)].into(),
            random_data: false,
        };
        assert!(cache.save(Path::new("never-written")).unwrap_err().to_string().contains("a\\nb"));
    }
}
