//! Every file that a job reads, as far as it is known before anything is opened.

use std::path::{Path, PathBuf};

use super::data::BESIDE_MODEL;
use crate::{
    backend::tensorrt::{EngineSidecar, sidecar_path},
    config::RunConfig,
    dataset::each_named,
    onnx::external_files,
};

/// What a job was given to read.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// ONNX models.
    pub models: Vec<PathBuf>,
    /// Data sets.
    pub data: Vec<PathBuf>,
    /// Labels.
    pub labels: Vec<PathBuf>,
    /// Files that name no others.
    pub others: Vec<PathBuf>,
}

impl Inputs {
    /// Adds what a configuration names, but for the table and the plan, which commands may leave where they are.
    pub fn add(&mut self, config: &RunConfig) {
        self.models.extend(config.model.clone());
        self.data.extend(config.data.clone());
        self.labels.extend(config.labels.clone());
        self.others.extend([&config.classes, &config.preprocessor].into_iter().flatten().cloned());
    }

    /// Adds an engine with what it is to be compared with.
    pub fn add_engine(&mut self, engine: &Path) {
        self.others.extend([engine.to_owned(), sidecar_path(engine)]);
        if let Ok(Some(sidecar)) = EngineSidecar::beside(engine) {
            self.models.push(sidecar.model);
            self.models.extend(sidecar.reference);
            self.data.extend(sidecar.data);
            self.labels.extend(sidecar.labels);
        }
    }

    /// What was given itself.
    pub fn given(&self) -> impl Iterator<Item = &Path> {
        [&self.models, &self.data, &self.labels, &self.others].into_iter().flatten().map(PathBuf::as_path)
    }

    /// Tells every file: those that were given, those that they name in turn, and those that are taken from beside them. What
    /// cannot be read names nothing here: whoever needs it says so.
    pub fn each(&self, tell: &mut dyn FnMut(&Path)) {
        self.given().for_each(&mut *tell);
        for model in &self.models {
            tell(&model.with_file_name(BESIDE_MODEL));
            for ending in [".data", "_data"] {
                tell(Path::new(&format!("{}{ending}", model.display())));
            }
            external_files(model).unwrap_or_default().iter().for_each(|file| tell(file));
        }
        self.data.iter().for_each(|data| each_named(Some(data), None, tell));
        self.labels.iter().for_each(|labels| each_named(None, Some(labels), tell));
    }
}
