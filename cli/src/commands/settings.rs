//! From flags and a configuration file to one [`RunConfig`].

use std::path::{Path, PathBuf};

use crate::{
    args::{
        ConfigArgs, DataArgs, MethodArgs, ModelArgs, OutputArgs, OutputKindArgs, RecoveryArgs, RuntimeArgs, SchemeArgs,
    },
    printer::Printer,
};
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

/// Takes the table that is given. One that the configuration file names gives way to flags by which ranges are made anew.
pub(super) fn apply_table(printer: &Printer, given: Option<&PathBuf>, method: &MethodArgs, config: &mut RunConfig) {
    if method.makes_ranges()
        && let Some(table) = config.table.take()
    {
        let table = table.display();
        printer.note(&format!("calibrating anew, as the flags say how: {table} of the configuration file is left out"));
    }
    set_some(&mut config.table, given);
}

/// Read from the working folder where no configuration is named.
const USUAL_NAME: &str = "calib.toml";

/// What `--config` names; without it `calib.toml` in the working folder, if it is there. `none` leaves both out.
pub(super) fn configuration(printer: &Printer, args: &ConfigArgs) -> Result<RunConfig, ConfigError> {
    let usual = Path::new(USUAL_NAME);
    match args.config.as_deref() {
        Some(path) if path.as_os_str() == "none" => Ok(RunConfig::default()),
        Some(path) => RunConfig::load(path),
        None if usual.is_file() => {
            printer.note(&format!("reading {USUAL_NAME} of the working folder; --config none leaves it out"));
            RunConfig::load(usual)
        }
        None => Ok(RunConfig::default()),
    }
}

/// Model and output folder that a configuration tells, which otherwise may be unusable.
pub(super) fn places(config: Option<&Path>) -> RunConfig {
    let path = config.unwrap_or(Path::new(USUAL_NAME));
    if path.as_os_str() == "none" { RunConfig::default() } else { RunConfig::places(path) }
}

/// What a configuration says, as far as it can be used, for those who look at files before anything is read.
pub(super) fn told(config: Option<&Path>) -> RunConfig {
    let path = config.unwrap_or(Path::new(USUAL_NAME));
    let config = (path.as_os_str() != "none" && path.is_file()).then(|| RunConfig::load(path).ok()).flatten();
    config.unwrap_or_default()
}

/// The same, with the model that was named.
pub(super) fn model_configuration(printer: &Printer, args: &ModelArgs) -> Result<RunConfig, ConfigError> {
    let mut config = configuration(printer, &args.config)?;
    set_some(&mut config.model, args.positional.as_ref().or(args.model.as_ref()));
    Ok(config)
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
        apply_preprocessing(self, config)?;
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

/// Puts the flags that are keys of `[preprocess]` there.
fn apply_preprocessing(args: &DataArgs, config: &mut RunConfig) -> Result<(), ConfigError> {
    let invalid = |key| move |reason| ConfigError::Value { key, reason };
    let mut preprocess = config.preprocess.clone().unwrap_or_default();
    let before = preprocess.clone();
    for (key, text, extent) in
        [("resize", &args.resize, &mut preprocess.resize), ("crop", &args.crop, &mut preprocess.crop)]
    {
        if let Some(text) = text {
            *extent = Some(text.parse().map_err(invalid(key))?);
        }
    }
    for (key, values, channels) in [("mean", &args.mean, &mut preprocess.mean), ("std", &args.std, &mut preprocess.std)]
    {
        match values[..] {
            [] => {}
            [one] => *channels = [one; 3],
            [red, green, blue] => *channels = [red, green, blue],
            _ => {
                return Err(invalid(key)(format!(
                    "{} values were given; give one, or one for each of three channels",
                    values.len()
                )));
            }
        }
    }
    if let Some(name) = &args.interpolation {
        preprocess.interpolation = named(name).map_err(invalid("interpolation"))?;
    }
    if let Some(name) = &args.channel_order {
        preprocess.channel_order = named(name).map_err(invalid("channel_order"))?;
    }
    if let Some(name) = &args.layout {
        preprocess.layout = Some(named(name).map_err(invalid("layout"))?);
    }
    set(&mut preprocess.scale, args.scale.as_ref());
    let given = args.resize.is_some()
        || args.crop.is_some()
        || args.interpolation.is_some()
        || args.scale.is_some()
        || args.channel_order.is_some()
        || args.layout.is_some()
        || !args.mean.is_empty()
        || !args.std.is_empty();
    if !given && preprocess == before {
        return Ok(());
    }
    if let Some(other) = config.preset.as_deref().or(config.preprocessor.as_deref().and_then(Path::to_str)) {
        let reason =
            format!("flags on preprocessing were given, and the configuration names `{other}` as well; leave out one");
        return Err(ConfigError::Value { key: "preprocess", reason });
    }
    config.preprocess = Some(preprocess);
    Ok(())
}

/// A value by the name that it has in a configuration file.
fn named<T: serde::de::DeserializeOwned>(name: &str) -> Result<T, String> {
    let value = serde_json::Value::String(name.to_owned());
    serde_json::from_value(value).map_err(|error| error.to_string())
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
        set_some(&mut config.effort, self.effort.as_ref());
        set_list(&mut config.recovery_steps, &self.recovery_steps);
        set(&mut config.deploy_to, self.deploy_to.as_ref());
        set_some(&mut config.shift, self.shift.as_ref());
        set(&mut config.lift_budget, self.lift_budget.as_ref());
        set_some(&mut config.lift_nodes, self.lift_nodes.as_ref());
        Ok(())
    }
}

impl Apply for RecoveryArgs {
    fn apply(&self, config: &mut RunConfig) -> Result<(), ConfigError> {
        set_list(&mut config.precisions, &self.precisions);
        set_list(&mut config.gate, &self.gate);
        Ok(())
    }
}

impl Apply for SchemeArgs {
    fn apply(&self, config: &mut RunConfig) -> Result<(), ConfigError> {
        set_list(&mut config.nodes_to_exclude, &self.nodes_to_exclude);
        set_list(&mut config.nodes_to_include, &self.nodes_to_include);
        set_list(&mut config.op_types, &self.op_types);
        set_list(&mut config.op_types_to_exclude, &self.op_types_to_exclude);
        config.per_tensor_weights |= self.per_tensor_weights;
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
