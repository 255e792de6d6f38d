//! `deploy.tar`, taken apart with care: it comes from another machine.

use std::{
    fs, io,
    path::{Component, Path},
};

use tempfile::TempDir;

use super::DeployError;
use crate::artifact::open_regular;

/// Bytes of all files together, at most: outputs of a few samples and times, never models.
const MOST_BYTES: u64 = 2 << 30;

/// The regular files of an archive in a folder of their own, which goes when it is dropped. Links, devices and paths that
/// lead out of the archive are refused.
pub(super) fn unpack(archive: &Path) -> Result<TempDir, DeployError> {
    let file = open_regular(archive).map_err(DeployError::io("read", archive))?;
    let broken = |error: io::Error| DeployError::content(archive, format!("it is not a whole tar archive ({error})"));
    let folder = tempfile::tempdir().map_err(DeployError::io("unpack", archive))?;
    let mut entries = tar::Archive::new(io::BufReader::new(file));
    let mut left = MOST_BYTES;
    for entry in entries.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path().map_err(broken)?.into_owned();
        let kind = entry.header().entry_type();
        let inside = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if kind.is_dir() && inside {
            continue;
        }
        if !(kind.is_file() && inside) {
            let reason = format!("it holds `{}`, which is not a file of a deployment", path.display());
            return Err(DeployError::content(archive, reason));
        }
        left = left.checked_sub(entry.size()).ok_or_else(|| {
            DeployError::content(archive, format!("it unpacks to more than {} GiB", MOST_BYTES >> 30))
        })?;
        let to = folder.path().join(&path);
        let parent = to.parent().unwrap_or(folder.path());
        fs::create_dir_all(parent).map_err(DeployError::io("unpack", archive))?;
        let mut to = fs::File::create(&to).map_err(DeployError::io("unpack", archive))?;
        io::copy(&mut entry, &mut to).map_err(broken)?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(name: &str, kind: tar::EntryType) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut builder = tar::Builder::new(&file);
        let mut header = tar::Header::new_gnu();
        // The builder refuses such names; an attacker does not.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(2);
        header.set_cksum();
        builder.append(&header, &b"hi"[..]).unwrap();
        builder.finish().unwrap();
        drop(builder);
        file
    }

    #[test]
    fn files_come_out_and_nothing_else_does() {
        let good = archive("measured/a.txt", tar::EntryType::Regular);
        let folder = unpack(good.path()).unwrap();
        assert_eq!(fs::read(folder.path().join("measured/a.txt")).unwrap(), b"hi");
        for (name, kind) in [
            ("../a.txt", tar::EntryType::Regular),
            ("/a.txt", tar::EntryType::Regular),
            ("a", tar::EntryType::Symlink),
            ("a", tar::EntryType::Link),
        ] {
            let error = unpack(archive(name, kind).path()).unwrap_err();
            assert!(error.to_string().contains("not a file of a deployment"), "{name}: {error}");
        }
        // A pipe would be waited for.
        let error = unpack(Path::new("/dev/null")).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("not a regular file"), "{cause}");
        let none = tempfile::NamedTempFile::new().unwrap();
        fs::write(none.path(), vec![b'x'; 700]).unwrap();
        assert!(unpack(none.path()).unwrap_err().to_string().contains("not a whole tar archive"));
    }
}
