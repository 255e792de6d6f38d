//! Packs the embedded example for `calib demo`: model, images, labels, and the configuration that runs on them.

use std::{env, fs, io, path::Path};

fn main() -> io::Result<()> {
    let root = Path::new("..");
    let folder = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("Cargo sets OUT_DIR"))?;
    let mut archive = tar::Builder::new(fs::File::create(Path::new(&folder).join("demo.tar"))?);
    // The same bytes wherever it is built.
    archive.mode(tar::HeaderMode::Deterministic);
    let data = ["demo.onnx", "labels.csv", "classes.txt", "README.md"].map(|name| format!("calib_data/{name}"));
    let images = fs::read_dir(root.join("calib_data/images"))?;
    let mut images = images
        .map(|image| Ok(format!("calib_data/images/{}", image?.file_name().to_string_lossy())))
        .collect::<io::Result<Vec<_>>>()?;
    images.sort();
    for name in ["configs/demo.toml".to_owned()].into_iter().chain(data).chain(images) {
        archive.append_path_with_name(root.join(&name), &name)?;
    }
    archive.finish()?;
    for changed in ["../calib_data", "../configs/demo.toml", "build.rs"] {
        println!("cargo::rerun-if-changed={changed}");
    }
    Ok(())
}
