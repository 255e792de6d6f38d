//! Partial results on disk, so that a run that was stopped goes on where it was.
//!
//! Each stage has one file: `calibckp`, the format version (`u32`, little-endian), the length of a JSON header (`u64`),
//! the header (what made it, for what, and the stage's state), bytes of the stage's own, and the BLAKE3 hash of
//! everything before. All files of a folder belong to one context: the hash over all that a result depends on.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::artifact::{ArtifactError, ContentHash, Tool, remove_folder, remove_unfinished, write_atomic};

const MAGIC: &[u8; 8] = b"calibckp";
const FORMAT_VERSION: u32 = 1;
/// Time between two writes of one stage.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// Writing takes at most this share of the time.
const SHARE: u32 = 20;
/// File that says what the others belong to.
const CONTEXT: &str = "context";

/// What [`Checkpoints::open`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No earlier run.
    Nothing,
    /// An earlier run under the same conditions, which goes on.
    Same,
    /// An earlier run under other conditions, whose partial results were removed.
    Other,
}

/// A folder of partial results.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    context: ContentHash,
    interval: Duration,
    next: Mutex<Instant>,
}

#[derive(Serialize)]
struct Header<'a, T> {
    tool: Tool,
    context: &'a ContentHash,
    state: &'a T,
}

#[derive(Deserialize)]
struct OwnedHeader<T> {
    context: ContentHash,
    state: T,
}

impl Checkpoints {
    /// Opens `folder`, which nothing else may write to, for results that depend on `context` and nothing else.
    pub fn open(folder: &Path, context: ContentHash, interval: Duration) -> Result<(Self, Found), ArtifactError> {
        let failed = |source| ArtifactError::Write { path: folder.to_owned(), source };
        let named = folder.join(CONTEXT);
        let found = match std::fs::read(&named) {
            Ok(bytes) if bytes == context.as_str().as_bytes() => Found::Same,
            Ok(_) => Found::Other,
            Err(_) => Found::Nothing,
        };
        if found != Found::Same {
            // The results go before the name of what they belong to changes.
            if folder.exists() {
                remove_folder(folder).map_err(failed)?;
            }
            std::fs::create_dir_all(folder).map_err(failed)?;
            write_atomic(&named, context.as_str().as_bytes())?;
        }
        remove_unfinished(folder)?;
        let next = Mutex::new(Instant::now() + interval);
        Ok((Self { folder: folder.to_owned(), context, interval, next }, found))
    }

    /// The state of a stage and its bytes, if it was ever saved.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn load<T: DeserializeOwned>(&self, stage: &str) -> Result<Option<(T, Vec<u8>)>, ArtifactError> {
        let path = self.file(stage);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ArtifactError::Read { path, source }),
        };
        let (header, own): (OwnedHeader<T>, _) = decode(&bytes).map_err(|reason| {
            let reason = format!("{reason}; remove the folder {} to start over", self.folder.display());
            ArtifactError::Format { path, kind: "checkpoint", reason }
        })?;
        Ok((header.context == self.context).then_some((header.state, own)))
    }

    /// Saves the state of a stage; what it was before is replaced.
    pub fn save<T: Serialize>(&self, stage: &str, state: &T, own: &[u8]) -> Result<(), ArtifactError> {
        let started = Instant::now();
        let path = self.file(stage);
        let header = serde_json::to_vec(&Header { tool: Tool::current(), context: &self.context, state })
            .map_err(|error| ArtifactError::Write { path: path.clone(), source: error.into() })?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT_VERSION.to_le_bytes());
        bytes.extend((header.len() as u64).to_le_bytes());
        bytes.extend(header);
        bytes.extend(own);
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        write_atomic(&path, &bytes)?;
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) =
            Instant::now() + self.interval.max(started.elapsed() * SHARE);
        Ok(())
    }

    /// True when the last write is long enough ago.
    pub fn is_due(&self) -> bool {
        Instant::now() >= *self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The result of a stage that is short enough to be done in one go: the saved one, or what `make` gives.
    pub fn once<T, E>(&self, stage: &str, make: impl FnOnce() -> Result<T, E>) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        E: From<ArtifactError>,
    {
        if let Some((result, _)) = self.load(stage)? {
            return Ok(result);
        }
        let result = make()?;
        self.save(stage, &result, &[])?;
        Ok(result)
    }

    /// Removes everything: the run is complete.
    pub fn finish(self) -> Result<(), ArtifactError> {
        let failed = |source| ArtifactError::Write { path: self.folder.clone(), source };
        remove_folder(&self.folder).map_err(failed)
    }

    fn file(&self, stage: &str) -> PathBuf {
        self.folder.join(format!("{stage}.checkpoint"))
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<(OwnedHeader<T>, Vec<u8>), String> {
    const CUT_OFF: &str = "it is cut off";
    let (content, hash) = bytes.split_last_chunk::<{ blake3::OUT_LEN }>().ok_or(CUT_OFF)?;
    let rest = content.strip_prefix(MAGIC).ok_or("it does not begin as one")?;
    let (version, rest) = rest.split_first_chunk().ok_or(CUT_OFF)?;
    let version = u32::from_le_bytes(*version);
    if version != FORMAT_VERSION {
        return Err(format!("its format version is {version}, this program reads {FORMAT_VERSION}"));
    }
    if blake3::hash(content) != *hash {
        return Err("it is damaged: its content does not match its hash".to_owned());
    }
    let (length, rest) = rest.split_first_chunk().ok_or(CUT_OFF)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (header, own) = rest.split_at_checked(length).ok_or(CUT_OFF)?;
    Ok((serde_json::from_slice(header).map_err(|error| error.to_string())?, own.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path, context: &str) -> (Checkpoints, Found) {
        Checkpoints::open(folder, ContentHash::of_bytes(context.as_bytes()), INTERVAL).unwrap()
    }

    #[test]
    fn what_was_saved_comes_back_under_the_same_conditions_only() {
        let folder = tempfile::tempdir().unwrap();
        let folder = &folder.path().join("checkpoints");
        let (checkpoints, found) = open(folder, "a");
        assert_eq!((found, checkpoints.load::<u32>("stage").unwrap()), (Found::Nothing, None));
        checkpoints.save("stage", &7u32, b"own").unwrap();
        let (checkpoints, found) = open(folder, "a");
        assert_eq!((found, checkpoints.load("stage").unwrap()), (Found::Same, Some((7u32, b"own".to_vec()))));
        let (checkpoints, found) = open(folder, "b");
        assert_eq!((found, checkpoints.load::<u32>("stage").unwrap()), (Found::Other, None));
        checkpoints.finish().unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn a_result_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let (checkpoints, _) = open(folder.path(), "a");
        let make = |value: u32| checkpoints.once("stage", || Ok::<_, ArtifactError>(value)).unwrap();
        assert_eq!((make(1), make(2)), (1, 1));
    }

    #[test]
    fn damage_is_an_error_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let (checkpoints, _) = open(folder.path(), "a");
        checkpoints.save("stage", &7u32, b"own").unwrap();
        let path = checkpoints.file("stage");
        let whole = std::fs::read(&path).unwrap();
        for index in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[index] ^= 4;
            for bytes in [&damaged[..], &whole[..index]] {
                std::fs::write(&path, bytes).unwrap();
                let error = checkpoints.load::<u32>("stage").unwrap_err().to_string();
                assert!(error.contains("to start over"), "{error}");
            }
        }
    }
}
