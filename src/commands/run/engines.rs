//! TensorRT engines of a run: built wherever a library is found, one a precision, each with its sidecar.

use anyhow::Context;

use super::{Job, Target, artifacts::file_facts};
use crate::{
    artifact::{ContentHash, Tool, write_atomic},
    backend::tensorrt::{
        EngineOptions, EngineSidecar, Flavour, Library, OptimizationProfile, SIDECAR_FORMAT_VERSION, TensorRtError,
        build_engine, compiled_flavour, find_library,
    },
    report::Precision,
};

/// Compute capabilities that engines are built for where there is no GPU to ask (TensorRT-RTX).
const WITHOUT_GPU: [&str; 3] = ["8.6", "8.9", "12.0"];

/// Why a built engine has no figures.
const NOT_RUN: &str = "the engine was built; running engines is not part of this version";

/// What `--tensorrt require` asks for is known before any work is done.
pub(super) fn check(when: &str) -> anyhow::Result<()> {
    if when == "require" {
        anyhow::ensure!(compiled_flavour().is_some(), TensorRtError::NotCompiled);
        anyhow::bail!(
            "--tensorrt require asks for engines that run, which is not part of this version; --tensorrt auto builds them"
        );
    }
    Ok(())
}

impl Job<'_> {
    /// Rows of engines that were built, or could not be and why.
    pub(super) fn engines(&mut self, targets: &[Target]) -> anyhow::Result<Vec<Precision>> {
        if self.session.config.tensorrt == "off" {
            return Ok(Vec::new());
        }
        let found = compiled_flavour().and_then(|flavour| find_library(flavour, None));
        let Some(library) = found.filter(|library| library.parser.is_some()) else {
            let why =
                if compiled_flavour().is_some() { "no library was found" } else { "this program was built without it" };
            self.notes.push(format!("TensorRT: {why}, so no engines were built; `calib doctor` tells more"));
            return Ok(Vec::new());
        };
        let mut models = vec![("fp32", self.session.subject.float.path.clone())];
        models.extend(targets.iter().filter_map(|target| {
            let artifact = target.artifact.as_ref()?;
            Some((target.precision.name(), Some(self.out.join(&artifact.path))))
        }));
        let folder = self.out.join("engines");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let mut rows = Vec::new();
        for (precision, model) in models {
            crate::commands::check_interrupt()?;
            let backend = library.flavour.to_string().to_lowercase();
            let mut row = Precision::new(precision, &backend);
            row.error = Some(NOT_RUN.to_owned());
            match model.context("the model has no file").and_then(|model| self.engine(&library, precision, &model)) {
                Ok(artifact) => row.artifact = Some(artifact),
                Err(error) => {
                    let reason = crate::commands::describe(&error);
                    self.printer.warn(&format!("{backend} could not build {precision}: {reason}"));
                    row.error = Some(reason);
                }
            }
            rows.push(row);
        }
        Ok(rows)
    }

    fn engine(
        &self,
        library: &Library,
        precision: &str,
        model: &std::path::Path,
    ) -> anyhow::Result<crate::report::ArtifactFile> {
        let session = &self.session;
        let inputs = &session.subject.inputs;
        let mut bound = session.config.shape.clone();
        if let Some(sample) = self.first_batch() {
            bound.extend(sample.into_iter().map(|(name, tensor)| (name, tensor.shape().to_vec())));
        }
        let options = EngineOptions {
            profile: OptimizationProfile::for_batch(inputs, session.batch, &bound)?,
            compute_capabilities: match library.flavour {
                Flavour::TensorRtRtx => WITHOUT_GPU.map(str::to_owned).into(),
                Flavour::TensorRt => Vec::new(),
            },
            ..EngineOptions::default()
        };
        let stop = || !crate::commands::INTERRUPTED.load(std::sync::atomic::Ordering::Relaxed);
        let engine = build_engine(library, model, &options, move |_| stop())?;
        let name = format!("engines/{precision}.plan");
        let path = self.out.join(&name);
        write_atomic(&path, &engine.bytes)?;
        let config = session.config.absolute();
        EngineSidecar {
            format_version: SIDECAR_FORMAT_VERSION,
            tool: Tool::current(),
            engine_hash: ContentHash::of_bytes(&engine.bytes),
            flavour: library.flavour,
            library_version: engine.library_version,
            model: std::path::absolute(model)?,
            model_hash: ContentHash::of_file(model)?,
            reference: config.model,
            data: config.data,
            labels: config.labels,
            precision: Some(precision.to_owned()),
            inputs: inputs.clone(),
            outputs: session.subject.outputs.clone(),
            options,
            build_seconds: engine.seconds,
            warnings: engine.warnings,
        }
        .save(&path)?;
        file_facts(&path, name)
    }
}
