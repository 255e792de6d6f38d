//! The evaluation of a run in parts, by as many machines: each makes the models and counts over its part of the samples;
//! the run that joins them does all the rest.

use std::path::PathBuf;

use super::{Job, engines::Engine, variants::Variant};
use crate::{
    artifact::{ArtifactError, ContentHash, Tool},
    config::{RunConfig, UseTensorRt},
    session::{
        Control, PipelineError, Session, Shard,
        compared::{Compared, Compares, Comparing},
        evaluation::{EvaluateOptions, Evaluation, Outputs, count},
    },
};

impl Session {
    /// Makes the models of a run from its table and counts what they give on its evaluation samples, or on one part of
    /// them. Writes nothing; [`Session::run_joined`] makes the report of all parts.
    ///
    /// # Errors
    /// There is no table, the reference or a model cannot be run, or the host stopped it.
    pub fn evaluate_part(&mut self, shard: Option<&Shard>) -> Result<Compared, PipelineError> {
        ensure!(
            self.config.tensorrt != UseTensorRt::Require,
            "--tensorrt require: engines are not evaluated in parts; compare them by `calib compare --shard`"
        );
        let precisions = self.precisions();
        let (gates, mut split) = (self.config.gate.clone(), self.split());
        let names: Vec<&str> = precisions.iter().map(|precision| precision.name()).collect();
        self.check_run_gates(&gates, &names)?;
        self.check_gates(&gates, &split.evaluation)?;
        self.check_gated_outputs(&gates, &self.subject.outputs)?;
        let calibrated = self.config.table.as_deref().map(|path| self.given_ranges(path, &split)).transpose()?;
        ensure!(
            calibrated.is_some() || precisions.is_empty(),
            "the parts of an evaluation need the ranges that they share; make them with `calib calibrate`, in parts as well, and \
             give --table"
        );
        if let Some(calibrated) = &calibrated {
            self.leave_out_calibrated(&mut split, &calibrated.chosen.table, self.config.eval_samples);
        }
        self.host.stage("quantizing");
        let mut variants = self.variants(calibrated.as_ref(), None, &|_, _| Ok(None))?;
        self.host.stage("comparing");
        let options = self.evaluate_options(self.compared_at_once(split.evaluation.len()));
        let comparing = Comparing {
            random_data: self.config.random_data,
            context: self.run_context(&split.evaluation, &variants, &options)?,
            reference: self.subject.float_types.name().to_owned(),
            tensorrt: None,
            targets: running(&variants).map(|name| Compares { name, size_mb: None, gated: true }).collect(),
            gates,
            pairs: Vec::new(),
            tolerated: self.tolerated(),
        };
        let mine = &split.evaluation[shard.map_or(0..split.evaluation.len(), |s| s.range(split.evaluation.len()))];
        let host = self.host.clone();
        let work = host.begin("comparing", mine.len());
        let progress = |samples: usize| work.advance(samples);
        let mut runners: Vec<&mut dyn Outputs> = variants
            .iter_mut()
            .filter_map(|variant| variant.runner.as_mut())
            .map(|runner| runner as &mut dyn Outputs)
            .collect();
        let dataset = &*self.data.collection.dataset;
        let control = Control { threads: self.threads, stop: host.stop(), progress: &progress, checkpoints: None };
        let (counted, ran) = count(&mut *self.reference(), &mut runners, &[], dataset, mine, &options, control)?;
        drop(work);
        self.warn_halved("the comparison", ran.fitting_batch);
        Ok(Compared::new(comparing, shard, counted, ran.summary.skipped).of_run(self.config.absolute()))
    }

    /// Hash over all that the parts of an evaluation have in common with each other and with the run that joins them.
    fn run_context(
        &self,
        evaluation: &[usize],
        variants: &[Variant],
        options: &EvaluateOptions,
    ) -> Result<ContentHash, PipelineError> {
        let of_file = |path: &PathBuf| {
            ContentHash::of_file(path).map_err(|source| ArtifactError::Read { path: path.clone(), source })
        };
        let files = [&self.config.table, &self.config.plan].map(|file| file.as_ref().map(of_file).transpose());
        let [table, plan] = files;
        let (names, data): (Vec<String>, _) = (running(variants).collect(), self.content_hash(evaluation));
        let config = RunConfig { out: None, ..self.config.absolute() };
        let common = (Tool::current(), &self.subject.float.hash, data, table?, plan?, names, config, &options.compare);
        let common = serde_json::to_vec(&common).map_err(PipelineError::render)?;
        Ok(ContentHash::of_bytes(&common))
    }
}

/// Names of the precisions that run.
fn running(variants: &[Variant]) -> impl Iterator<Item = String> {
    variants.iter().filter(|variant| variant.runner.is_some()).map(|variant| variant.precision.name().to_owned())
}

impl Job<'_> {
    /// What the parts of the evaluation counted, in the stead of counting it here.
    pub(super) fn take_joined(
        &self,
        joined: Compared,
        variants: &[Variant],
        engines: &mut [Engine],
    ) -> Result<Evaluation, PipelineError> {
        let session = &self.session;
        let options = session.evaluate_options(session.batch);
        ensure!(
            joined.context() == &session.run_context(&self.split.evaluation, variants, &options)?,
            "the parts are of other samples or models than are found here now; evaluate them again, or give the table, plan and \
             data that they were made with"
        );
        for engine in engines.iter_mut().filter(|engine| engine.runner.is_some()) {
            engine.runner = None;
            let reason = "it was built, but not run: the samples were evaluated in parts, which run no engines; \
                          `calib compare --shard` compares them";
            engine.row.error = Some(reason.to_owned());
        }
        let dataset = session.dataset();
        Ok(joined.into_evaluation(self.split.evaluation.iter().map(|&index| dataset.id(index))))
    }
}
