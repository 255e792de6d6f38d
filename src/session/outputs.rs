//! Outputs that are saved on their way.

use std::{path::Path, sync::Arc};

use super::PipelineError;
use crate::{
    backend::{Accelerator, BackendError, Inputs, Show},
    compare::OutputsWriter,
    pass::{Outputs, Part, Taking},
};

/// Passes outputs on and saves them.
pub struct Recorder {
    inner: Box<dyn Outputs>,
    writer: OutputsWriter,
}

impl Recorder {
    /// Records what `inner` gives; `made_by` names what runs an engine.
    pub fn new(inner: Box<dyn Outputs>, made_by: Option<String>) -> Result<Self, PipelineError> {
        let writer = OutputsWriter::new(&inner.names())?.by(made_by);
        Ok(Self { inner, writer })
    }

    /// Writes what was recorded.
    pub fn finish(self, path: &Path) -> Result<(), PipelineError> {
        Ok(self.writer.finish(path)?)
    }
}

impl Outputs for Recorder {
    fn names(&self) -> Vec<String> {
        self.inner.names()
    }

    fn give(&mut self, part: &Part<'_>, inputs: Inputs<'_>, show: &mut Show<'_>) -> Result<(), BackendError> {
        let Self { inner, writer } = self;
        let samples = part.ids.len();
        inner.give(part, inputs, &mut |given| {
            // What could not be taken comes again.
            show(given)?;
            given.outputs.cut(inputs.rows.unwrap_or(samples), samples, |outputs| {
                Ok(writer.push_part(part, &outputs.to_host()?)?)
            })
        })
    }

    fn taking(&self) -> Taking {
        self.inner.taking()
    }

    fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        self.inner.accelerator()
    }

    fn release(&mut self) {
        self.inner.release();
    }
}
