//! Files that outlive a run: written whole or not at all, and always saying what made them.

use std::{
    cell::Cell,
    fmt,
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock},
};

use serde::{Deserialize, Serialize};

mod inputs;

pub use inputs::{
    KnownFiles, check_free, check_stays, is_input, keep_inputs, open_regular, remove_folder, renews, same_file,
    will_write,
};

/// The name and version of the program that wrote a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Tool {
    /// Always `calib`.
    pub name: String,
    /// Semantic version.
    pub version: String,
}

impl Tool {
    /// This program.
    pub fn current() -> Self {
        Self { name: "calib".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// BLAKE3 hash of some content, as 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct ContentHash(String);

impl ContentHash {
    /// Hash of bytes in memory.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).to_hex().to_string())
    }

    /// Hash of a regular file's content, read memory-mapped.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        open_regular(path)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_mmap(path)?;
        Ok(Self::from(hasher))
    }

    /// The hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, for people.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl From<blake3::Hasher> for ContentHash {
    fn from(hasher: blake3::Hasher) -> Self {
        Self(hasher.finalize().to_hex().to_string())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Reading failed.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Writing failed; nothing was left under the final name.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The content is not what the file should hold.
    #[error("{path} is not a valid {kind}: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What it should have been.
        kind: &'static str,
        /// What is wrong with it and what to do.
        reason: String,
    },
}

/// The content of a regular file.
///
/// # Errors
/// As [`open_regular`].
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let _reading = Reading::of(path);
    let mut content = Vec::new();
    open_regular(path)?.read_to_end(&mut content)?;
    Ok(content)
}

/// The content of a regular file of a kind whose files have at most `most` bytes.
///
/// # Errors
/// As [`open_regular`], and it is longer.
pub fn read_within(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let size = std::fs::metadata(path)?.len();
    if size > most {
        return Err(io::Error::other(format!("{size} bytes are more than the {most} that such a file may have")));
    }
    read_regular(path)
}

thread_local! {
    /// What this thread reads from. Kept without the heap, to be told when there is none left.
    static BEING_READ: Cell<Shown> = const { Cell::new(([0; SHOWN_BYTES], 0)) };
}

/// The end of a path, and its length.
type Shown = ([u8; SHOWN_BYTES], usize);

/// Bytes of a path that are told.
const SHOWN_BYTES: usize = 512;

/// What the whole work is about, for threads that read nothing: the first model.
static WORKED_ON: OnceLock<Shown> = OnceLock::new();

/// The largest file that was opened to be read, and its size: where memory runs out, it is the likely cause.
static LARGEST: Mutex<(Shown, u64)> = Mutex::new((([0; SHOWN_BYTES], 0), 0));

/// Says that a file of so many bytes was opened; of those in folders of our own nobody knows.
fn opened(path: &Path, size: u64) {
    let folder = path.parent().and_then(Path::file_name).unwrap_or_default();
    if folder.as_encoded_bytes().starts_with(b".tmp") {
        return;
    }
    if let Ok(mut largest) = LARGEST.lock()
        && size > largest.1
    {
        *largest = (shown(path), size);
    }
}

/// Says what the process works on, for [`being_read`] to tell where a thread reads nothing. The first word stays.
pub fn works_on(path: &Path) {
    WORKED_ON.get_or_init(|| shown(path));
}

/// The end of a path, which tells more than the beginning.
fn shown(path: &Path) -> Shown {
    let path = path.as_os_str().as_encoded_bytes();
    let path = &path[path.len().saturating_sub(SHOWN_BYTES)..];
    let mut shown = [0; SHOWN_BYTES];
    shown[..path.len()].copy_from_slice(path);
    (shown, path.len())
}

/// Says what this thread reads while it lives: see [`being_read`].
#[derive(Debug)]
pub struct Reading {
    before: Shown,
}

impl Reading {
    /// The thread begins to read `path`.
    pub fn of(path: &Path) -> Self {
        Self { before: BEING_READ.replace(shown(path)) }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        BEING_READ.set(self.before);
    }
}

/// Tells the path that this thread reads from, or that the process works on, and the largest file that was read where that is
/// another one. Takes no memory and waits for nobody: for the moment when there is none.
pub fn being_read(tell: &mut dyn FnMut(&[u8], Told)) {
    let (read, worked_on) = (BEING_READ.get(), WORKED_ON.get());
    let (subject, told) = match worked_on {
        Some(worked_on) if read.1 == 0 => (*worked_on, Told::WorkedOn),
        _ => (read, Told::Read),
    };
    let mut say = |(path, length): &Shown, told| {
        if *length > 0 {
            tell(&path[..*length], told);
        }
    };
    say(&subject, told);
    if let Ok(largest) = LARGEST.try_lock()
        && largest.0 != subject
    {
        say(&largest.0, Told::Largest);
    }
}

/// What a path is to the thread that asks: see [`being_read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The thread reads it.
    Read,
    /// The process works on it.
    WorkedOn,
    /// No larger file was read.
    Largest,
}

/// Ending of files that are being written.
const UNFINISHED: &str = ".calib.tmp";

/// Removes what a killed process was writing into `folder`. Nothing else may be writing there; without the folder there
/// is nothing to do.
pub fn remove_unfinished(folder: &Path) -> Result<(), ArtifactError> {
    let remove = || -> io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            if name.starts_with(b".") && name.ends_with(UNFINISHED.as_bytes()) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    match remove() {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ArtifactError::Write { path: folder.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Writes a file through `fill` so that `path` names either the old content or all of the new.
///
/// The bytes go to a temporary file in the same folder, are flushed to the disk and renamed. What is there and is not a file,
/// such as `/dev/null` or a named pipe, is written to.
pub fn write_atomic_with(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> Result<(), ArtifactError> {
    let write = || {
        inputs::writes(path)?;
        // Renaming over /dev/null or a pipe would take it away from everyone.
        if is_no_file(path) {
            let there = File::options().write(true).open(path)?;
            let mut writer = BufWriter::new(&there);
            fill(&mut writer)?;
            return writer.flush();
        }
        let temporary = unfinished(path)?;
        let mut writer = BufWriter::new(temporary.as_file());
        fill(&mut writer)?;
        writer.flush()?;
        drop(writer);
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|error| error.error)?;
        inputs::wrote(path);
        Ok(())
    };
    write().map_err(|source| ArtifactError::Write { path: path.to_owned(), source })
}

/// What is there and is neither a file nor a folder.
fn is_no_file(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir())
}

/// The file that is written before it takes the place of `path`.
fn unfinished(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(UNFINISHED);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any other new file: what the user's umask leaves.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

/// Whether a file can be written at `path`, for those who write it after long work: nothing is left there.
///
/// # Errors
/// What [`write_atomic_with`] would say, a full disk aside.
pub fn check_writable(path: &Path) -> Result<(), ArtifactError> {
    if is_no_file(path) {
        return Ok(());
    }
    check_free(path)
        .and_then(|()| unfinished(path))
        .map(drop)
        .map_err(|source| ArtifactError::Write { path: path.to_owned(), source })
}

/// [`write_atomic_with`] for bytes already in memory.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), ArtifactError> {
    write_atomic_with(path, |writer| writer.write_all(bytes))
}

/// Writes a value as indented JSON with a final newline.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), ArtifactError> {
    write_atomic_with(path, |writer| {
        serde_json::to_writer_pretty(&mut *writer, value)?;
        writer.write_all(b"\n")
    })
}

/// Values in a JSON file of ours, at most.
const MOST_VALUES: usize = 1 << 22;

/// Says so where `json` holds more than `most` values: some take many times the memory of their text.
pub fn too_many_values(json: &[u8], most: usize) -> Option<String> {
    let (mut values, mut quoted, mut escaped) = (1, false, false);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => values += 1,
            _ => {}
        }
    }
    (values > most).then(|| format!("it holds {values} values, and {most} are the most that such a file may have"))
}

#[derive(Deserialize)]
struct Version {
    format_version: Option<serde_json::Number>,
}

/// Reads a JSON file that carries a `format_version`, which must be `version`.
pub fn read_json<T: for<'de> Deserialize<'de>>(
    path: &Path,
    kind: &'static str,
    version: u32,
) -> Result<T, ArtifactError> {
    let _reading = Reading::of(path);
    let bytes = read_regular(path).map_err(|source| ArtifactError::Read { path: path.to_owned(), source })?;
    let invalid = |reason: String| ArtifactError::Format { path: path.to_owned(), kind, reason };
    if let Some(reason) = too_many_values(&bytes, MOST_VALUES) {
        return Err(invalid(reason));
    }
    // Straight into the types: a tree of any JSON takes many times the memory of its text.
    let found: Version = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    match found.format_version.as_ref().and_then(serde_json::Number::as_u64) {
        Some(found) if found == u64::from(version) => {}
        Some(found) => {
            return Err(invalid(format!(
                "its format version is {found}, this program reads {version}; make it again with this version"
            )));
        }
        None => return Err(invalid("it has no `format_version`".to_owned())),
    }
    serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_will_be_written_over_is_no_input_until_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let [result, link, new] = ["result", "link", "new"].map(|name| folder.path().join(name));
        std::fs::write(&result, "an input").unwrap();
        std::fs::hard_link(&result, &link).unwrap();
        will_write([result.clone(), new.clone()]);
        for input in [&result, &link] {
            let error = read_regular(input).unwrap_err().to_string();
            assert!(error.contains("is an input and would be written over"), "{error}");
        }
        for file in [&result, &new] {
            write_atomic(file, b"a result").unwrap();
            assert_eq!(read_regular(file).unwrap(), b"a result");
        }
        assert_eq!(read_regular(&link).unwrap(), b"an input");
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.json");
        write_atomic(&path, b"old").unwrap();
        let error = write_atomic_with(&path, |writer| {
            writer.write_all(b"half")?;
            Err(io::Error::other("disk full"))
        });
        assert!(matches!(error, Err(ArtifactError::Write { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_device_is_written_to_and_stays_one() {
        use std::os::unix::fs::FileTypeExt;
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let reader = {
            let pipe = pipe.clone();
            std::thread::spawn(move || std::fs::read(pipe).unwrap())
        };
        write_atomic(&pipe, b"through").unwrap();
        assert_eq!(reader.join().unwrap(), b"through");
        assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
    }

    #[cfg(unix)]
    #[test]
    fn a_new_file_has_the_permissions_of_any_other() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        File::create(folder.path().join("plain")).unwrap();
        write_atomic(&folder.path().join("ours"), b"").unwrap();
        assert_eq!(mode("ours"), mode("plain"));
        assert!(read_regular(folder.path()).unwrap_err().to_string().contains("not a regular file"));
    }

    #[test]
    fn values_are_counted_outside_of_strings() {
        for (json, values) in [(r#"[1, "a,\",", {"b,": [2, 3]}]"#, 4), ("{}", 1), (r#"["\\", 1]"#, 2)] {
            assert_eq!(too_many_values(json.as_bytes(), values), None, "{json}");
            let told = too_many_values(json.as_bytes(), values - 1).unwrap();
            assert!(told.starts_with(&format!("it holds {values} values")), "{told}");
        }
    }

    #[test]
    fn another_format_version_is_refused_by_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        write_atomic(&path, br#"{"format_version": 7}"#).unwrap();
        let error = read_json::<serde_json::Value>(&path, "report", 1).unwrap_err();
        assert!(error.to_string().contains("format version is 7"), "{error}");
    }
}
