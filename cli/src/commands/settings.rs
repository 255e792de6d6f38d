//! From flags and a configuration file to one [`RunConfig`].

use crate::args::{DataArgs, MethodArgs, OutputArgs, OutputKindArgs, RuntimeArgs, SchemeArgs};
use trtcalib::{
    config::{ConfigError, RunConfig, parse_output_kind, parse_shape, parse_share},
    dataset::Interpolation,
};

/// Replaces `target` when a flag was given.
fn set<T: Clone>(target: &mut T, flag: Option<&T>) {
    if let Some(value) = flag {
        *target = value.clone();
    }
}

fn set_some<T: Clone>(target: &mut Option<T>, flag: Option<&T>) {
    if flag.is_some() {
        *target = flag.cloned();
    }
}

fn set_list<T: Clone>(target: &mut Vec<T>, flags: &[T]) {
    if !flags.is_empty() {
        *target = flags.to_vec();
    }
}

/// Groups of flags that win over the configuration.
pub(super) trait Apply {
    /// Puts the flags that were given into `config`.
    fn apply(&self, config: &mut RunConfig) -> Result<(), ConfigError>;
}

impl Apply for DataArgs {
    fn apply(&self, config: &mut RunConfig) -> Result<(), ConfigError> {
        set_some(&mut config.data, self.data.as_ref());
        set_some(&mut config.labels, self.labels.as_ref());
        set_some(&mut config.classes, self.classes.as_ref());
        if self.preset.is_some() || self.preprocessor.is_some() {
            // A preset on the command line replaces whatever the file says about preprocessing.
            (config.preprocess, config.preset, config.preprocessor) = (None, None, None);
        }
        set_some(&mut config.preset, self.preset.as_ref());
        set_some(&mut config.preprocessor, self.preprocessor.as_ref());
        if let Some(head) = &self.head {
            let head = head.parse().map_err(|reason| ConfigError::Value { key: "head", reason })?;
            config.detection.head = Some(head);
        }
        if let Some(place) = &self.letterbox {
            let place = place.parse().map_err(|reason| ConfigError::Value { key: "letterbox", reason })?;
            let preprocess = config.preprocess.get_or_insert_default();
            (preprocess.resize, preprocess.crop, preprocess.interpolation) = (None, None, Interpolation::Opencv);
            let letterbox = preprocess.letterbox.get_or_insert_default();
            letterbox.place = place;
            set(&mut letterbox.pad, self.pad.as_ref());
        }
        set_some(&mut config.batch, self.batch.iter().max());
        if let [_, _, ..] = self.batch[..] {
            config.bench_batch.clone_from(&self.batch);
        }
        set(&mut config.seed, self.seed.as_ref());
        if let Some(share) = &self.max_bad {
            config.max_bad = parse_share(share)?;
        }
        config.strict |= self.strict;
        config.random_data |= self.random_data;
        for shape in &self.shape {
            let (name, extents) = parse_shape(shape)?;
            config.shape.insert(name, extents);
        }
        Ok(())
    }
}

impl Apply for OutputArgs {
    fn apply(&self, config: &mut RunConfig) -> Result<(), ConfigError> {
        set_list(&mut config.top_k, &self.top_k);
        set(&mut config.ignore_label, self.ignore_label.as_ref());
        self.kinds.apply(config)
    }
}

impl Apply for OutputKindArgs {
    fn apply(&self, config: &mut RunConfig) -> Result<(), ConfigError> {
        for text in &self.output_kind {
            let (name, kind) = parse_output_kind(text)?;
            config.output_kind.insert(name, kind);
        }
        Ok(())
    }
}

impl Apply for MethodArgs {
    fn apply(&self, config: &mut RunConfig) -> Result<(), ConfigError> {
        set(&mut config.calib_samples, self.calib_samples.as_ref());
        set(&mut config.method, self.method.as_ref());
        set(&mut config.percentile, self.percentile.as_ref());
        set(&mut config.bias_correction, self.bias_correction.as_ref());
        set(&mut config.effort, self.effort.as_ref());
        set(&mut config.deploy_to, self.deploy_to.as_ref());
        set_some(&mut config.shift, self.shift.as_ref());
        set(&mut config.lift_budget, self.lift_budget.as_ref());
        Ok(())
    }
}

impl Apply for SchemeArgs {
    fn apply(&self, config: &mut RunConfig) -> Result<(), ConfigError> {
        set_list(&mut config.nodes_to_exclude, &self.nodes_to_exclude);
        set_list(&mut config.nodes_to_include, &self.nodes_to_include);
        set_list(&mut config.op_types, &self.op_types);
        set_list(&mut config.op_types_to_exclude, &self.op_types_to_exclude);
        set(&mut config.high_precision, self.high_precision.as_ref());
        set_some(&mut config.plan, self.plan.as_ref());
        Ok(())
    }
}

impl Apply for RuntimeArgs {
    fn apply(&self, config: &mut RunConfig) -> Result<(), ConfigError> {
        set(&mut config.threads, self.threads.iter().max());
        if let [_, _, ..] = self.threads[..] {
            config.bench_threads.clone_from(&self.threads);
        }
        set(&mut config.provider, self.provider.as_ref());
        Ok(())
    }
}

/// Refuses several batch sizes and thread counts, for commands that measure no latency.
pub(super) fn one_size(data: &DataArgs, runtime: &RuntimeArgs) -> Result<(), ConfigError> {
    for (key, values) in [("batch", &data.batch), ("threads", &runtime.threads)] {
        if values.len() > 1 {
            let reason = "several values are for `run` and `bench`; give one".to_owned();
            return Err(ConfigError::Value { key, reason });
        }
    }
    Ok(())
}
