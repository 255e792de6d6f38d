//! What this process reads stays: no result takes the place of an input, by the identity of files and not by their names.

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{LazyLock, PoisonError, RwLock},
};

/// What tells a file from every other, whatever it is called.
#[cfg(unix)]
type Identity = (u64, u64);
#[cfg(not(unix))]
type Identity = PathBuf;

#[cfg(unix)]
fn identity(path: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(not(unix))]
fn identity(path: &Path) -> Option<Identity> {
    path.canonicalize().ok()
}

/// Whether two paths lead to one file, through links too.
pub fn same_file(a: &Path, b: &Path) -> bool {
    identity(a).is_some_and(|of_a| identity(b) == Some(of_a))
}

/// Files that are there, to be found by any of their names.
#[derive(Clone, Debug, Default)]
pub struct KnownFiles(HashMap<Identity, PathBuf>);

impl KnownFiles {
    /// The name under which a file was put in, if it was and is there still.
    pub fn name_of(&self, path: &Path) -> Option<&Path> {
        // Nothing is asked of the system where nothing is known.
        if self.0.is_empty() {
            return None;
        }
        let file = identity(path)?;
        // The number of a file that is gone may be given again.
        self.0.get(&file).map(PathBuf::as_path).filter(|known| identity(known).as_ref() == Some(&file))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Extend<PathBuf> for KnownFiles {
    /// Those of the paths that lead to anything.
    fn extend<T: IntoIterator<Item = PathBuf>>(&mut self, paths: T) {
        self.0.extend(paths.into_iter().filter_map(|path| Some((identity(&path)?, path))));
    }
}

impl FromIterator<PathBuf> for KnownFiles {
    fn from_iter<T: IntoIterator<Item = PathBuf>>(paths: T) -> Self {
        let mut files = Self::default();
        files.extend(paths);
        files
    }
}

/// What files are to this process.
#[derive(Default)]
struct Parts {
    /// They will be written over.
    results: KnownFiles,
    /// Whether what is read is remembered.
    remembers: bool,
    inputs: KnownFiles,
    /// It wrote them, or keeps them up to date.
    own: KnownFiles,
}

static PARTS: LazyLock<RwLock<Parts>> = LazyLock::new(RwLock::default);

fn change(change: impl FnOnce(&mut Parts)) {
    change(&mut PARTS.write().unwrap_or_else(PoisonError::into_inner));
}

/// Names files that this process will write. To read one that is there already is an error from now on, by whatever name,
/// until it has been written: it would be lost.
pub fn will_write(paths: impl IntoIterator<Item = PathBuf>) {
    change(|parts| parts.results.extend(paths));
}

/// From now on, what this process has read is not written over, moved or removed by it: for a program that does one job.
pub fn keep_inputs() {
    change(|parts| parts.remembers = true);
}

/// Says that a file is this process's to bring up to date, though it reads it, unless it was read as an input before.
pub fn renews(path: &Path) {
    change(|parts| {
        if parts.inputs.name_of(path).is_none() {
            parts.own.extend([path.to_owned()]);
        }
    });
}

/// Whether a file was read as an input: see [`keep_inputs`].
pub fn is_input(path: &Path) -> bool {
    PARTS.read().unwrap_or_else(PoisonError::into_inner).inputs.name_of(path).is_some()
}

/// Looks whether an input is not to be written over: see [`will_write`]. It is remembered as one: see [`keep_inputs`].
///
/// # Errors
/// It is.
pub fn check_stays(path: &Path) -> io::Result<()> {
    let parts = PARTS.read().unwrap_or_else(PoisonError::into_inner);
    let result = parts.results.name_of(path).map(Path::to_owned);
    let remembers = parts.remembers;
    drop(parts);
    if remembers {
        change(|parts| {
            if parts.own.name_of(path).is_none() {
                parts.inputs.extend([path.to_owned()]);
            }
        });
    }
    match result {
        Some(result) => {
            let result = result.display();
            Err(io::Error::other(format!(
                "it is an input and would be written over; choose another name than {result}"
            )))
        }
        None => Ok(()),
    }
}

/// Looks whether what lies at `path` may go: see [`keep_inputs`].
///
/// # Errors
/// It was read.
pub fn check_free(path: &Path) -> io::Result<()> {
    if is_input(path) {
        let reason = format!("{} is an input and would be written over; choose another name", path.display());
        return Err(io::Error::other(reason));
    }
    Ok(())
}

/// Removes a folder in which no input lies, but for further names of files that have others.
///
/// # Errors
/// One does, or it cannot be removed.
pub fn remove_folder(folder: &Path) -> io::Result<()> {
    check_folder_free(folder)?;
    std::fs::remove_dir_all(folder)
}

fn check_folder_free(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_symlink() || has_other_names(&path) {
            continue;
        }
        if path.is_dir() { check_folder_free(&path) } else { check_free(&path) }?;
    }
    Ok(())
}

/// Whether a file stays when this name of it goes.
fn has_other_names(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.nlink() > 1)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// What is being written at `path` is not an input until it is there.
pub(super) fn writes(path: &Path) -> io::Result<()> {
    check_free(path)?;
    change(|parts| parts.results.0.retain(|_, result| result != path));
    Ok(())
}

/// `path` has been written.
pub(super) fn wrote(path: &Path) {
    change(|parts| {
        let Some(file) = identity(path).filter(|_| parts.remembers) else { return };
        parts.inputs.0.remove(&file);
        parts.own.0.insert(file, path.to_owned());
    });
}

/// Opens a file to read it. Opening a pipe would wait for a writer for ever.
///
/// # Errors
/// It is not there, is not a regular file, cannot be read, or is to be written over: see [`will_write`].
pub fn open_regular(path: &Path) -> io::Result<File> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    check_stays(path)?;
    super::opened(path, metadata.len());
    File::open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_the_number_of_one_that_is_gone_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let [known, link, other] = ["known", "link", "other"].map(|name| folder.path().join(name));
        std::fs::write(&known, "").unwrap();
        std::fs::hard_link(&known, &link).unwrap();
        std::fs::write(&other, "").unwrap();
        let mut files = KnownFiles::from_iter([known.clone()]);
        assert_eq!((files.name_of(&link), files.name_of(&other)), (Some(&*known), None));
        files.0.insert(identity(&other).unwrap(), known);
        assert_eq!(files.name_of(&other), None);
    }
}
