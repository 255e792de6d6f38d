//! Where this program is installed: the only `.runtime/` whose libraries are loaded without being named.
//!
//! Never the working folder nor the model's: who unpacks an archive and works in it must not run its code.

use std::path::{Path, PathBuf};

/// `.runtime/` beside the executable, beside its `bin/`, or beside the `target/` of the project that built it; only
/// where nobody but the user, the executable's owner or root can have put something in.
pub(super) fn runtime_folders() -> Vec<PathBuf> {
    std::env::current_exe().map_or_else(|_| Vec::new(), |executable| folders_of(&executable))
}

fn folders_of(executable: &Path) -> Vec<PathBuf> {
    let own = executable.parent();
    let prefix = own.filter(|folder| folder.ends_with("bin")).and_then(Path::parent);
    let built = executable.ancestors().skip(1).take(5).find(|folder| folder.ends_with("target"));
    let project = built.and_then(Path::parent).filter(|folder| folder.join("Cargo.toml").is_file());
    let folders = [own, prefix, project].into_iter().flatten().map(|folder| folder.join(".runtime"));
    folders.filter(|folder| is_trusted(folder, executable)).collect()
}

#[cfg(unix)]
fn is_trusted(folder: &Path, executable: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let owner = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.uid());
    let Ok(metadata) = std::fs::metadata(folder) else { return false };
    let owners = [owner(executable).ok(), owner(Path::new("/proc/self")).ok(), Some(0)];
    metadata.is_dir() && owners.contains(&Some(metadata.uid())) && metadata.mode() & 0o002 == 0
}

#[cfg(not(unix))]
fn is_trusted(folder: &Path, _: &Path) -> bool {
    folder.is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_installation_is_searched() {
        let root = tempfile::tempdir().unwrap();
        let folders = |executable: &str| {
            let executable = root.path().join(executable);
            std::fs::create_dir_all(executable.parent().unwrap()).unwrap();
            std::fs::write(&executable, b"").unwrap();
            folders_of(&executable)
        };
        std::fs::create_dir(root.path().join(".runtime")).unwrap();
        let found = [root.path().join(".runtime")];
        // Somewhere above is not enough; a project is known by its manifest.
        assert!(folders("a/b/c/calib").is_empty() && folders("target/release/calib").is_empty());
        assert_eq!(folders("calib"), found);
        assert_eq!(folders("bin/calib"), found);
        std::fs::write(root.path().join("Cargo.toml"), b"").unwrap();
        assert_eq!(folders("target/release/deps/calib"), found);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&found[0], std::fs::Permissions::from_mode(0o777)).unwrap();
            assert!(folders("calib").is_empty(), "anyone could have put a library there");
        }
    }
}
