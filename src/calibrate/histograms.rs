//! `histograms.calib`: everything that was counted, so that shards can be added up and thresholds chosen again.
//!
//! The file is `calibhst`, the format version (`u32`), the length of a JSON header and the header (who made it, from
//! what), then both parts, fitting and held-out: the number of tensors, and for each its name, extremes and counts.
//! The last 32 bytes are the BLAKE3 hash of all others. Integers are little-endian base-128 varints; a run of empty
//! bins is a 0 followed by how many more there are. Nothing read from a file is trusted for a length or a size.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    CalibrateError,
    histogram::{BINS, Histogram},
};
use crate::artifact::{self, ArtifactError, ContentHash, Tool};

const MAGIC: &[u8; 8] = b"calibhst";
const FORMAT_VERSION: u32 = 1;
const HASH_SIZE: usize = 32;

/// A file of few bytes may claim many empty histograms of 64 KiB each.
const MOST_TENSORS: u64 = 1 << 14;

/// Data sets are not split further than this.
const MOST_SHARDS: u32 = 1 << 12;

/// What ranges were made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Hash of the model.
    pub model_hash: ContentHash,
    /// Hash over the names of all samples (of all shards) and their preprocessing.
    pub data_hash: ContentHash,
    /// True when the data was random.
    pub random_data: bool,
    /// The part of the data that was observed.
    pub shards: Shards,
}

/// Which parts of the data are counted, of how many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shards {
    count: u32,
    present: BTreeSet<u32>,
    /// What the data hold, where that is known: those of other data are not of the same split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<ContentHash>,
}

impl Shards {
    /// Data that was not split.
    pub fn whole() -> Self {
        Self { count: 1, present: BTreeSet::from([0]), content: None }
    }

    /// Shard `index` (from 0) of `count`; `None` unless `index < count <= 4096`.
    pub fn one(index: u32, count: u32) -> Option<Self> {
        (index < count && count <= MOST_SHARDS).then(|| Self { count, present: BTreeSet::from([index]), content: None })
    }

    /// The same of data that hold this.
    #[must_use]
    pub fn of(self, content: ContentHash) -> Self {
        Self { content: Some(content), ..self }
    }

    /// Number of shards.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The first shard (from 0) that is not there.
    pub fn missing(&self) -> Option<u32> {
        (0..self.count).find(|index| !self.present.contains(index))
    }

    fn is_valid(&self) -> bool {
        (1..=MOST_SHARDS).contains(&self.count) && self.present.iter().all(|&index| index < self.count)
    }
}

/// Histograms of all calibrated tensors, over the samples to fit thresholds on and over those held out.
#[derive(Clone, Debug, PartialEq)]
pub struct Histograms {
    /// What was observed.
    pub provenance: Provenance,
    /// Samples in `fit`.
    pub fit_samples: usize,
    /// Samples in `held_out`.
    pub held_out_samples: usize,
    /// By tensor name, samples to fit on.
    pub fit: BTreeMap<String, Histogram>,
    /// By tensor name, samples that `auto` measures on.
    pub held_out: BTreeMap<String, Histogram>,
    /// The samples by name, with the beginning of a hash of each; empty where they are random.
    pub calibrated_on: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    tool: Tool,
    provenance: Provenance,
    fit_samples: usize,
    held_out_samples: usize,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    calibrated_on: BTreeMap<String, String>,
}

impl Histograms {
    /// Without any sample.
    pub fn new(provenance: Provenance) -> Self {
        Self {
            provenance,
            fit_samples: 0,
            held_out_samples: 0,
            fit: BTreeMap::new(),
            held_out: BTreeMap::new(),
            calibrated_on: BTreeMap::new(),
        }
    }

    /// Number of samples observed.
    pub fn samples(&self) -> usize {
        self.fit_samples.saturating_add(self.held_out_samples)
    }

    /// Adds another shard of the same data through the same model.
    ///
    /// When the last one is in, the result equals that of a single run. On an error nothing has changed.
    pub fn merge(&mut self, other: Self) -> Result<(), CalibrateError> {
        let (a, b) = (&self.provenance, &other.provenance);
        if a.model_hash != b.model_hash {
            return Err(CalibrateError::OtherModel { made_for: b.model_hash.clone(), model: a.model_hash.clone() });
        }
        let split =
            |of: &Provenance| (of.data_hash.clone(), of.random_data, of.shards.count, of.shards.content.clone());
        if split(a) != split(b) {
            let reason = "they are shards of different data, preprocessing or splits; make them with the same options";
            return Err(CalibrateError::Merge(reason.to_owned()));
        }
        if let Some(shard) = a.shards.present.intersection(&b.shards.present).next() {
            let reason = format!("shard {} of {} would be counted twice", shard + 1, a.shards.count);
            return Err(CalibrateError::Merge(reason));
        }
        let shards = &mut self.provenance.shards;
        shards.present.extend(other.provenance.shards.present.iter().copied());
        if shards.missing().is_none() {
            *shards = Shards::whole();
        }
        self.add(other);
        Ok(())
    }

    /// Adds what was counted over other samples of the same shard.
    pub fn add(&mut self, other: Self) {
        self.fit_samples = self.fit_samples.saturating_add(other.fit_samples);
        self.held_out_samples = self.held_out_samples.saturating_add(other.held_out_samples);
        self.calibrated_on.extend(other.calibrated_on);
        for (mine, theirs) in [(&mut self.fit, other.fit), (&mut self.held_out, other.held_out)] {
            for (name, histogram) in theirs {
                mine.entry(name).or_default().merge(&histogram);
            }
        }
    }

    /// Writes the file.
    pub fn save(&self, path: &Path) -> Result<(), ArtifactError> {
        let bytes =
            self.to_bytes().map_err(|source| ArtifactError::Write { path: path.to_owned(), source: source.into() })?;
        artifact::write_atomic(path, &bytes)
    }

    /// The content of the file.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let header = Header {
            tool: Tool::current(),
            provenance: self.provenance.clone(),
            fit_samples: self.fit_samples,
            held_out_samples: self.held_out_samples,
            calibrated_on: self.calibrated_on.clone(),
        };
        let header = serde_json::to_vec(&header)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT_VERSION.to_le_bytes());
        put_bytes(&mut bytes, &header);
        for part in [&self.fit, &self.held_out] {
            put(&mut bytes, part.len() as u64);
            for (name, histogram) in part {
                put_bytes(&mut bytes, name.as_bytes());
                put_histogram(&mut bytes, histogram);
            }
        }
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        Ok(bytes)
    }

    /// Reads the file.
    pub fn load(path: &Path) -> Result<Self, ArtifactError> {
        let _reading = artifact::Reading::of(path);
        let bytes =
            artifact::read_regular(path).map_err(|source| ArtifactError::Read { path: path.to_owned(), source })?;
        Self::from_bytes(&bytes).map_err(|reason| ArtifactError::Format {
            path: path.to_owned(),
            kind: "file of histograms",
            reason,
        })
    }

    /// Reads the content of a file; the error says what is wrong with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let rest = bytes.strip_prefix(MAGIC).ok_or("it does not begin as one")?;
        let (version, _) = rest.split_first_chunk().ok_or("it is cut off")?;
        let version = u32::from_le_bytes(*version);
        if version != FORMAT_VERSION {
            return Err(format!("its format version is {version}, this program reads {FORMAT_VERSION}; make it again"));
        }
        let (content, hash) = bytes.split_last_chunk::<HASH_SIZE>().ok_or("it is cut off")?;
        if blake3::hash(content) != *hash {
            return Err("it is damaged: its content does not match its hash".to_owned());
        }
        let mut reader = Reader(content.get(MAGIC.len() + size_of_val(&version)..).ok_or("it is cut off")?);
        let header: Header = serde_json::from_slice(reader.bytes()?).map_err(|error| error.to_string())?;
        if !header.provenance.shards.is_valid() {
            return Err("its shards are numbered wrongly".to_owned());
        }
        let (fit, held_out) = (reader.part()?, reader.part()?);
        if !reader.0.is_empty() {
            return Err("there is more in it than histograms".to_owned());
        }
        let Header { provenance, fit_samples, held_out_samples, calibrated_on, .. } = header;
        Ok(Self { provenance, fit_samples, held_out_samples, fit, held_out, calibrated_on })
    }
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn put_bytes(bytes: &mut Vec<u8>, content: &[u8]) {
    put(bytes, content.len() as u64);
    bytes.extend(content);
}

fn put_histogram(bytes: &mut Vec<u8>, histogram: &Histogram) {
    bytes.extend(histogram.min().to_le_bytes());
    bytes.extend(histogram.max().to_le_bytes());
    put(bytes, histogram.zeros());
    for run in histogram.counts().chunk_by(|a, b| *a == 0 && *b == 0) {
        put(bytes, run[0]);
        if run[0] == 0 {
            put(bytes, run.len() as u64 - 1);
        }
    }
}

/// The rest of a file.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (head, rest) = self.0.split_first_chunk().ok_or("it is cut off")?;
        self.0 = rest;
        Ok(*head)
    }

    fn integer(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let [byte] = self.fixed()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("it holds a number beyond 64 bits".to_owned())
    }

    fn bytes(&mut self) -> Result<&'a [u8], String> {
        let length = usize::try_from(self.integer()?).unwrap_or(usize::MAX);
        let (head, rest) = self.0.split_at_checked(length).ok_or("it is cut off")?;
        self.0 = rest;
        Ok(head)
    }

    fn part(&mut self) -> Result<BTreeMap<String, Histogram>, String> {
        let count = self.integer()?;
        if count > MOST_TENSORS {
            return Err(format!("it claims {count} tensors; {MOST_TENSORS} are possible"));
        }
        let mut part = BTreeMap::new();
        for _ in 0..count {
            let name = str::from_utf8(self.bytes()?).map_err(|_| "a tensor's name is not UTF-8")?;
            let histogram = self.histogram().map_err(|reason| format!("tensor `{name}`: {reason}"))?;
            if part.insert(name.to_owned(), histogram).is_some() {
                return Err(format!("tensor `{name}` is there twice"));
            }
        }
        Ok(part)
    }

    fn histogram(&mut self) -> Result<Histogram, String> {
        let (min, max) = (f32::from_le_bytes(self.fixed()?), f32::from_le_bytes(self.fixed()?));
        let zeros = self.integer()?;
        let mut counts = Vec::with_capacity(BINS);
        while counts.len() < BINS {
            let count = self.integer()?;
            let more = if count == 0 { self.integer()? } else { 0 };
            if more >= (BINS - counts.len()) as u64 {
                return Err("it has too many bins".to_owned());
            }
            counts.resize(counts.len() + 1 + more as usize, count);
        }
        Histogram::from_parts(counts, zeros, min, max)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::calibrate::samples::histogram;

    fn histograms(shards: Shards, fit: &[(String, Vec<f32>)]) -> Histograms {
        let provenance = Provenance {
            model_hash: ContentHash::of_bytes(b"model"),
            data_hash: ContentHash::of_bytes(b"data"),
            random_data: false,
            shards,
        };
        let mut histograms = Histograms::new(provenance);
        histograms.fit = fit.iter().map(|(name, values)| (name.clone(), histogram(values))).collect();
        histograms.held_out = fit.iter().map(|(name, _)| (name.clone(), histogram(&[0.0, -1.5]))).collect();
        (histograms.fit_samples, histograms.held_out_samples) = (7, 2);
        histograms
    }

    fn round_trip(histograms: &Histograms) -> (Vec<u8>, Histograms) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("histograms.calib");
        histograms.save(&path).unwrap();
        (std::fs::read(&path).unwrap(), Histograms::load(&path).unwrap())
    }

    /// The file with other content and a hash that fits it.
    fn rehashed(bytes: &[u8]) -> Vec<u8> {
        let content = &bytes[..bytes.len() - HASH_SIZE];
        [content, blake3::hash(content).as_bytes()].concat()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn reading_gives_back_what_was_written(
            tensors in prop::collection::vec((".{0,8}", prop::collection::vec(-1e3f32..1e3, 0..99)), 0..4),
        ) {
            let histograms = histograms(Shards::one(3, 5).unwrap(), &tensors);
            prop_assert_eq!(round_trip(&histograms).1, histograms);
        }
    }

    #[test]
    fn damage_is_found() {
        let (bytes, _) = round_trip(&histograms(Shards::whole(), &[("a".to_owned(), vec![1.0; 9])]));
        for i in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[i] ^= 4;
            assert!(Histograms::from_bytes(&damaged).is_err(), "byte {i}");
            assert!(Histograms::from_bytes(&bytes[..i]).is_err(), "length {i}");
        }
    }

    #[test]
    fn hostile_content_with_a_fitting_hash_never_panics() {
        let (bytes, _) = round_trip(&histograms(Shards::whole(), &[("a".to_owned(), vec![1.0, 0.0, -3.0])]));
        for i in 0..bytes.len() - HASH_SIZE {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut hostile = bytes.clone();
                hostile[i] = value;
                let _ = Histograms::from_bytes(&rehashed(&hostile));
            }
        }
        let mut long = bytes.clone();
        long.insert(bytes.len() - HASH_SIZE, 0);
        assert!(Histograms::from_bytes(&rehashed(&long)).unwrap_err().contains("more in it"));
    }

    #[test]
    fn only_shards_of_one_split_are_merged() {
        let tensors = [("a".to_owned(), vec![1.0, 2.0])];
        let shard = |index| histograms(Shards::one(index, 2).unwrap(), &tensors);
        let mut merged = shard(0);
        assert!(merged.merge(shard(0)).unwrap_err().to_string().contains("shard 1 of 2 would be counted twice"));
        let mut other = shard(1);
        other.provenance.model_hash = ContentHash::of_bytes(b"other");
        let message = merged.merge(other).unwrap_err().to_string();
        assert!(message.contains(ContentHash::of_bytes(b"other").as_str()), "{message}");
        let mut other = shard(1);
        other.provenance.data_hash = ContentHash::of_bytes(b"other");
        assert!(merged.merge(other).unwrap_err().to_string().contains("different data"));
        assert_eq!(merged, shard(0));
        merged.merge(shard(1)).unwrap();
        assert_eq!((merged.provenance.shards.clone(), merged.samples()), (Shards::whole(), 18));
        assert_eq!(merged.fit["a"].count(), 4);
    }
}
