//! Writing a `deploy/` folder.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{
    DeployError, DeployedModel, GivenInput, MANIFEST_FORMAT_VERSION, Manifest,
    manifest::MANIFEST,
    script::{calib, trtexec},
};
use crate::{
    artifact::{ContentHash, Tool, remove_folder, write_atomic},
    npz::write_npz,
    onnx::Model,
    tensor::{TensorMap, stacked},
};

/// What is written into a `deploy/` folder.
pub struct ToDeploy<'a> {
    /// Hash of the float model.
    pub model_hash: &'a ContentHash,
    /// The models, the float model first.
    pub models: Vec<Given<'a>>,
    /// Inputs to give them, by name, for each call; none where no samples of one shape are there.
    pub inputs: &'a [TensorMap],
    /// Samples in the inputs of a call.
    pub samples: usize,
    /// Whether these, or those that gave the ranges, are random numbers.
    pub random_data: bool,
}

/// A model to deploy.
pub struct Given<'a> {
    /// Its precision.
    pub precision: &'a str,
    /// Its file.
    pub file: PathBuf,
    /// Names of its inputs whose shapes are not fixed.
    pub dynamic: Vec<String>,
    /// Whether the first of the dynamic extents counts samples, so that a single one can be timed.
    pub batches: bool,
    /// What it gives for the inputs of all calls in ONNX Runtime, one behind the other.
    pub expected: Option<TensorMap>,
}

/// Name of the folder while it is being made.
const MAKING: &str = ".deploy.new";

/// Refuses a folder that is there and no deployment: it would be replaced.
///
/// # Errors
/// There is one, with something in it.
pub fn check_free(folder: &Path) -> Result<(), DeployError> {
    let taken = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some() && !folder.join(MANIFEST).is_file(),
        Err(_) => fs::symlink_metadata(folder).is_ok(),
    };
    if !taken {
        return Ok(());
    }
    let reason = "a run leaves its deployment there, and this is none; move it, or name another folder with --out";
    Err(DeployError::content(folder, reason))
}

/// Writes the folder anew; a former one stays until the new one is whole.
///
/// # Errors
/// What is there is no deployment; a file cannot be linked, copied, read or written.
pub fn write(folder: &Path, what: &ToDeploy<'_>) -> Result<Manifest, DeployError> {
    check_free(folder)?;
    let making = folder.with_file_name(MAKING);
    remove(&making)?;
    let manifest = fill(&making, what)?;
    remove(folder)?;
    fs::rename(&making, folder).map_err(DeployError::io("make", folder))?;
    Ok(manifest)
}

fn remove(folder: &Path) -> Result<(), DeployError> {
    match remove_folder(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DeployError::io("replace", folder)(error)),
        _ => Ok(()),
    }
}

fn fill(folder: &Path, what: &ToDeploy<'_>) -> Result<Manifest, DeployError> {
    for part in ["models", "inputs", "expected"] {
        let path = folder.join(part);
        fs::create_dir_all(&path).map_err(DeployError::io("make", &path))?;
    }
    let mut inputs: Vec<GivenInput> = Vec::new();
    for (call, given) in what.inputs.iter().enumerate() {
        for (index, (name, tensor)) in given.iter().enumerate() {
            let file = GivenInput::file_name(call, index);
            write_atomic(&folder.join(&file), tensor.values().view().bytes())?;
            if call == 0 {
                let (shape, element_type) = (tensor.shape().to_vec(), tensor.element_type());
                inputs.push(GivenInput { name: name.clone(), files: Vec::new(), shape, element_type });
            }
            inputs[index].files.push(file);
        }
    }
    if !inputs.is_empty() {
        write_npz(&folder.join("inputs.npz"), &stacked(what.inputs.iter().cloned()))?;
    }
    let models = what.models.iter().map(|model| deploy(folder, model, what)).collect::<Result<Vec<_>, _>>()?;
    let manifest = Manifest {
        format_version: MANIFEST_FORMAT_VERSION,
        tool: Tool::current(),
        model_hash: what.model_hash.clone(),
        reference: what.models.first().map(|model| model.precision.to_owned()).unwrap_or_default(),
        samples: if inputs.is_empty() { 0 } else { what.samples * what.inputs.len() },
        calls: what.inputs.len(),
        inputs,
        models,
        random_data: what.random_data,
    };
    manifest.write(folder)?;
    for (name, text) in [("deploy.sh", trtexec(&manifest)), ("deploy_calib.sh", calib(&manifest))] {
        let path = folder.join(name);
        write_atomic(&path, text.as_bytes())?;
        runnable(&path).map_err(DeployError::io("make runnable", &path))?;
    }
    Ok(manifest)
}

fn deploy(folder: &Path, model: &Given<'_>, what: &ToDeploy<'_>) -> Result<DeployedModel, DeployError> {
    let name = model.file.file_name().unwrap_or_default().to_string_lossy();
    // Names of models come from elsewhere; what a script holds must need no quotes. External weights keep theirs.
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let taken = what.models.iter().filter(|other| other.file.file_name() == model.file.file_name()).count() > 1;
    let file = if name.chars().all(plain) && !taken && !name.starts_with('-') {
        format!("models/{name}")
    } else {
        format!("models/given.{}.onnx", model.precision)
    };
    let path = folder.join(&file);
    link(&model.file, &path)?;
    let mut data = model.file.clone().into_os_string();
    data.push(".data");
    let mut hash_with_data = None;
    if Path::new(&data).is_file() {
        link(Path::new(&data), &folder.join(format!("models/{name}.data")))?;
        let whole = Model::load(&path).map_err(|error| DeployError::content(&path, error.to_string()))?;
        hash_with_data = Some(whole.hash);
    }
    let hash = ContentHash::of_file(&path).map_err(DeployError::io("read", &path))?;
    let expected = model.expected.as_ref().map(|_| format!("expected/{}.npz", model.precision));
    if let (Some(tensors), Some(file)) = (&model.expected, &expected) {
        write_npz(&folder.join(file), tensors)?;
    }
    let extents = |name: &String| {
        let shape = what.inputs.first()?.get(name)?.shape();
        let mut small = shape.to_vec();
        if let (true, Some(first)) = (model.batches, small.first_mut()) {
            *first = 1;
        }
        Some((name.clone(), [small, shape.to_vec()]))
    };
    let dynamic: BTreeMap<_, _> = model.dynamic.iter().filter_map(extents).collect();
    let batch = if model.batches && !dynamic.is_empty() { 1 } else { what.samples.max(1) };
    Ok(DeployedModel {
        precision: model.precision.to_owned(),
        file,
        hash,
        hash_with_data,
        sha256: sha256(&path)?,
        batch,
        dynamic,
        expected,
    })
}

/// A second name of the same file, which costs no room; a copy where the file system gives none.
fn link(from: &Path, to: &Path) -> Result<(), DeployError> {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).map_err(DeployError::io("copy", from))?;
    }
    Ok(())
}

/// SHA-256 of a file in hexadecimal digits.
pub(super) fn sha256(path: &Path) -> Result<String, DeployError> {
    let mut hasher = Sha256::new();
    let mut file = fs::File::open(path).map_err(DeployError::io("read", path))?;
    io::copy(&mut file, &mut hasher).map_err(DeployError::io("read", path))?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(unix)]
fn runnable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut permissions = fs::metadata(path)?.permissions();
    permissions.set_mode(permissions.mode() | (permissions.mode() & 0o444) >> 2);
    fs::set_permissions(path, permissions)
}

#[cfg(not(unix))]
fn runnable(_path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_deployment_stays_as_it_is() {
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("deploy");
        let hash = ContentHash::of_bytes(b"model");
        let what = ToDeploy { model_hash: &hash, models: Vec::new(), inputs: &[], samples: 0, random_data: true };
        write(&folder, &what).unwrap();
        fs::write(folder.join("models/old.onnx"), b"old").unwrap();
        write(&folder, &what).unwrap();
        assert!(
            folder.join(MANIFEST).is_file() && !folder.join("models/old.onnx").exists(),
            "a former one is replaced"
        );
        assert!(!out.path().join(MAKING).exists());
        // Someone's own folder, or a file, of that name.
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        check_free(&folder).unwrap();
        fs::write(folder.join("deploy.yaml"), b"mine").unwrap();
        let error = write(&folder, &what).unwrap_err().to_string();
        assert!(error.contains("deploy: ") && error.contains("--out"), "{error}");
        assert_eq!(fs::read(folder.join("deploy.yaml")).unwrap(), b"mine");
        fs::remove_dir_all(&folder).unwrap();
        fs::write(&folder, b"mine").unwrap();
        assert!(check_free(&folder).is_err());
    }
}
