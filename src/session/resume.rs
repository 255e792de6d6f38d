//! Going on with a run that was stopped.

use std::{
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use super::{
    PipelineError, Session, Within,
    checkpoint::{Checkpoints, Found, INTERVAL},
};
use crate::{
    artifact::{ContentHash, Tool},
    compare::Gate,
};

/// Sets the seconds between two checkpoints of a stage.
const INTERVAL_VARIABLE: &str = "CALIB_CHECKPOINT_SECONDS";

impl Session {
    /// The checkpoints of `command` in its output folder: of an earlier run if that had the same model, data and
    /// options, otherwise empty ones.
    /// `None` for samples, or a metric, of a caller's own.
    pub(super) fn checkpoints(&self, out: &Path, command: &str) -> Result<Option<Checkpoints>, PipelineError> {
        if self.own_data || self.metric.is_some() {
            return Ok(None);
        }
        let folder = out.join(format!("checkpoints-{command}"));
        let interval = match std::env::var(INTERVAL_VARIABLE) {
            Ok(text) => {
                text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(|| {
                    PipelineError::Input(format!(
                        "the environment variable {INTERVAL_VARIABLE} holds `{text}`, which is not a number of seconds"
                    ))
                })?
            }
            Err(_) => INTERVAL,
        };
        let (checkpoints, found) = Checkpoints::open(&folder, self.context()?, interval)?;
        match found {
            Found::Nothing => {}
            Found::Same => self.host.info("going on with the run that was stopped"),
            Found::Other => self
                .host
                .info("starting over: the run that was stopped here had another model, other data or other options"),
        }
        Ok(Some(checkpoints))
    }

    /// Hash over everything that the results of stages depend on.
    pub(super) fn context(&self) -> Result<ContentHash, PipelineError> {
        let mut config = self.config.absolute();
        // These decide what becomes of results, not the results.
        (config.out, config.bench_seconds) = (None, 0.0);
        config.gate.retain(Gate::ends_recovery);
        let of_file = |path: &Path| ContentHash::of_file(path).within(|| format!("cannot read {}", path.display()));
        let hash = |file: &Option<PathBuf>| file.as_deref().map(of_file).transpose();
        let files = (hash(&self.config.plan)?, hash(&self.config.table)?);
        let data = &self.data;
        let runtime = (self.runtime.file(), self.runtime.build_info());
        let mut hasher = blake3::Hasher::new();
        let conditions =
            (Tool::current(), config, &self.subject.float.hash, files, &data.preprocess, &data.collection.names);
        serde_json::to_writer(&mut hasher, &conditions).map_err(PipelineError::render)?;
        serde_json::to_writer(&mut hasher, &(self.threads, self.batch, runtime)).map_err(PipelineError::render)?;
        if let Some(file) = self.config.data.as_deref().filter(|path| path.is_file()) {
            serde_json::to_writer(&mut hasher, &state_of(file)).map_err(PipelineError::render)?;
        }
        let dataset = &*data.collection.dataset;
        for index in 0..dataset.len() {
            let own = dataset.file(index);
            let files = [own.as_deref(), dataset.mask_file(index)].map(|file| file.map(state_of));
            serde_json::to_writer(&mut hasher, &(dataset.id(index), dataset.label(index), files))
                .map_err(PipelineError::render)?;
        }
        Ok(ContentHash::from(hasher))
    }
}

/// Size and time of change of a file, in bytes and nanoseconds; `None` when it cannot be told.
fn state_of(file: &Path) -> Option<(u64, u128)> {
    let metadata = std::fs::metadata(file).ok()?;
    let changed = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((metadata.len(), changed.as_nanos()))
}
