//! TensorRT-RTX's runtime cache: kernels that it compiled for this GPU, kept in a file, so that the next process need not
//! compile them again.
//!
//! TensorRT trusts what it is given, so the file has a head of our own: `calibrtc`, then the BLAKE3 hash over the library's
//! version and the cache. One that is empty, damaged or of another version is made anew. A file whose beginning is nothing
//! like that head is not ours and is never overwritten.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use super::{Engine, TensorRtError, log::Turn, require_library};
use crate::artifact::{check_writable, read_regular, renews, write_atomic};

const MAGIC: &[u8; 8] = b"calibrtc";
const HASH: usize = blake3::OUT_LEN;

/// Kernels that were compiled, and the file that keeps them.
pub(super) struct Kernels {
    cache: Arc<trtx::runtime::RuntimeCache>,
    file: RuntimeCacheFile,
}

impl Kernels {
    /// A context that compiles no kernel that the file at `path` holds.
    pub(super) fn context(
        engine: &mut Engine,
        path: &Path,
        turn: &Turn,
    ) -> Result<(trtx::ExecutionContext<'static>, Option<Self>), TensorRtError> {
        let flavour = engine.flavour;
        let failed = |error: trtx::Error| TensorRtError::Runtime { flavour, reason: turn.reason(&error.to_string()) };
        let (file, kept) = RuntimeCacheFile::open(path, engine.version.clone())?;
        let mut config = engine.inner.create_runtime_config().map_err(failed)?;
        let cache = Arc::new(config.create_runtime_cache().map_err(failed)?);
        if let Some(kept) = kept {
            cache.deserialize(&kept).map_err(failed)?;
        }
        config.set_runtime_cache(Arc::clone(&cache)).map_err(failed)?;
        let context = engine.inner.create_execution_context_with_config(Rc::new(config)).map_err(failed)?;
        Ok((context, Some(Self { cache, file })))
    }

    /// Writes what was compiled since.
    pub(super) fn keep(&mut self, engine: &Engine, turn: &Turn) -> Result<(), TensorRtError> {
        let kernels = self.cache.serialize().map_err(|error| TensorRtError::Runtime {
            flavour: engine.flavour,
            reason: turn.reason(&error.to_string()),
        })?;
        self.file.save(&kernels)
    }
}

/// Says when a cache holds nothing that can be used; an error where it cannot be kept.
pub(super) fn warning(path: &Path) -> Result<Option<String>, TensorRtError> {
    check_writable(path)?;
    let (_, kept) = RuntimeCacheFile::open(path, require_library(None)?.version()?)?;
    let anew = || {
        let path = path.display();
        format!(
            "the runtime cache {path} holds no kernels that can be used (it is empty, damaged, or of another version of \
             TensorRT-RTX), so they are compiled again and it is made anew"
        )
    };
    Ok((kept.is_none() && path.exists()).then(anew))
}

/// A runtime cache's file.
struct RuntimeCacheFile {
    path: PathBuf,
    version: String,
    /// Hash of what the file holds.
    written: Option<blake3::Hash>,
}

impl RuntimeCacheFile {
    /// The file at `path`, and the cache in it if there is one that the library of `version` made.
    fn open(path: &Path, version: String) -> Result<(Self, Option<Vec<u8>>), TensorRtError> {
        let failed = |why: &str| TensorRtError::Option(format!("--runtime-cache {}: {why}", path.display()));
        let mut file = Self { path: path.to_owned(), version, written: None };
        renews(path);
        let bytes = match read_regular(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((file, None)),
            Err(error) => return Err(failed(&error.to_string())),
        };
        let foreign = || failed("the file is not a runtime cache of calib; name another file, or remove this one");
        // Damage in the head leaves most of it.
        let right = bytes.iter().zip(MAGIC).filter(|(found, right)| found == right).count();
        if 2 * right < MAGIC.len().min(bytes.len()) {
            return Err(foreign());
        }
        let cache = bytes.strip_prefix(MAGIC).and_then(|rest| rest.split_at_checked(HASH));
        let cache = cache.filter(|(hash, cache)| file.hash(cache).as_bytes() == hash);
        let Some((_, cache)) = cache else {
            return Ok((file, None));
        };
        file.written = Some(file.hash(cache));
        Ok((file, Some(cache.to_vec())))
    }

    /// Writes the cache, if the file does not hold it.
    fn save(&mut self, cache: &[u8]) -> Result<(), TensorRtError> {
        let hash = self.hash(cache);
        if self.written != Some(hash) {
            write_atomic(&self.path, &[&MAGIC[..], hash.as_bytes(), cache].concat())?;
            self.written = Some(hash);
        }
        Ok(())
    }

    fn hash(&self, cache: &[u8]) -> blake3::Hash {
        blake3::Hasher::new().update(self.version.as_bytes()).update(b"\0").update(cache).finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_comes_back_to_the_library_that_made_it_and_to_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runtime.cache");
        let open = |version: &str| RuntimeCacheFile::open(&path, version.to_owned());
        let (mut file, none) = open("1.7.1").unwrap();
        assert_eq!(none, None);
        file.save(b"kernels").unwrap();
        assert_eq!(open("1.7.1").unwrap().1.as_deref(), Some(&b"kernels"[..]));
        assert_eq!(open("1.8.0").unwrap().1, None, "another version");
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 1, 8, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(open("1.7.1").unwrap().1, None, "{length} bytes are left");
        }
        for at in [0, 7, 8, 45] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            let (mut file, none) = open("1.7.1").unwrap();
            assert_eq!(none, None, "byte {at} is damaged");
            file.save(b"kernels").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole, "made anew");
        }
        // What is known to be in the file is not written again.
        std::fs::remove_file(&path).unwrap();
        file.save(b"kernels").unwrap();
        assert!(!path.exists());
        file.save(b"more kernels").unwrap();
        assert_eq!(open("1.7.1").unwrap().1.as_deref(), Some(&b"more kernels"[..]));
    }

    #[test]
    fn a_file_that_is_no_cache_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.csv");
        std::fs::write(&path, "file,label").unwrap();
        let error = RuntimeCacheFile::open(&path, "1.7.1".to_owned()).err().unwrap().to_string();
        assert!(error.contains("labels.csv") && error.contains("not a runtime cache"), "{error}");
        assert!(RuntimeCacheFile::open(folder.path(), String::new()).is_err(), "a folder");
    }
}
