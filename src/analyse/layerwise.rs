//! The error that each quantized operator makes by itself, from float inputs, and why.
//!
//! One pass over the samples through the graph of `twins` gives, for every operator, the noise that
//! quantization adds to its result: all of it, the part of the weights and the part of the activations; and for
//! every quantized activation how much of its noise is saturation. [`output_noise`] then quantizes single operators
//! to see what reaches the model's outputs.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    operators::{OperatorError, Pair, Side},
    twins::{self, ActivationFigure, Figure, Twin},
};
use crate::{
    backend::{Backend, BackendError, BuildOptions, ExecutionProvider, OptimizationLevel, threads_or_cores},
    compare::{CompareError, Objective, Parts, SavedError},
    dataset::PassError,
    onnx::{GraphError, Model},
    pass::{Part, Ran},
    quantize::QuantizeError,
    tensor::TensorMap,
};

pub use crate::pass::Samples;

/// Why an analysis could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AnalysisError {
    /// The models do not belong together.
    #[error(transparent)]
    Operators(#[from] OperatorError),
    /// A model could not be built or run.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Too many samples cannot be read, or the user stopped.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// A graph is malformed.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Outputs cannot be compared.
    #[error(transparent)]
    Compare(#[from] CompareError),
    /// Saved outputs cannot be used.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// A plan cannot be put into the model.
    #[error(transparent)]
    Quantize(#[from] QuantizeError),
    /// Other processes that were to count samples did not.
    #[error("{0}")]
    Elsewhere(String),
    /// There is nothing to measure on.
    #[error("no samples to measure on; give at least one")]
    NoSamples,
}

/// Options of [`layerwise`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LayerwiseOptions {
    /// Operators measured in one pass: more take fewer passes and more memory.
    pub operators_per_pass: usize,
    /// Threads inside an operator; 0 for all cores.
    pub threads: usize,
    /// Where operators and their twins execute.
    pub provider: ExecutionProvider,
}

impl Default for LayerwiseOptions {
    fn default() -> Self {
        Self { operators_per_pass: 128, threads: 0, provider: ExecutionProvider::Cpu }
    }
}

/// What quantization does to one operator when its inputs are exact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LayerError {
    /// The operator's node.
    pub node: String,
    /// Its operator type.
    pub op_type: String,
    /// Where the error was measured: its result, behind the fused activation.
    pub tensor: String,
    /// SQNR of the result; absent without error, or where values are not finite.
    pub layerwise_sqnr_db: Option<f64>,
    /// The same with only the weights quantized.
    pub weight_sqnr_db: Option<f64>,
    /// The same with only the activations quantized.
    pub activation_sqnr_db: Option<f64>,
    /// Noise power over signal power of the result: what ranks operators.
    pub relative_noise: Option<f64>,
    /// The channel of the result that carries the most noise; absent where there are no channels or no noise.
    pub worst_channel: Option<WorstChannel>,
    /// Channels of the result that are zero in every sample.
    pub dead_channels: Vec<usize>,
    /// The quantized activations it reads.
    pub activations: Vec<ActivationError>,
}

/// The channel of a result that carries the most noise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct WorstChannel {
    /// Its index.
    pub channel: usize,
    /// Number of channels.
    pub of: usize,
    /// Its share of the noise power, between 0 and 1.
    pub noise_share: f64,
    /// Its own SQNR; absent when it is not finite.
    pub sqnr_db: Option<f64>,
}

/// What quantization does to an activation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ActivationError {
    /// The tensor.
    pub tensor: String,
    /// Operator type of the node that makes it; absent for an input of the model.
    pub producer: Option<String>,
    /// Σ(x - x')² over all samples; absent where values are not finite.
    pub noise: Option<f64>,
    /// Share of the values that lie beyond the range, between 0 and 1.
    pub saturated: f64,
    /// Share of the noise power that these make, between 0 and 1; the rest is rounding.
    pub saturation_noise: f64,
    /// The channel with the largest magnitude against the others; absent without channels.
    pub outlier: Option<OutlierChannel>,
    /// Channels that are zero in every sample.
    pub dead_channels: Vec<usize>,
}

/// The channel with the largest magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct OutlierChannel {
    /// Its index.
    pub channel: usize,
    /// Its largest magnitude.
    pub amax: f64,
    /// The median of the channels' largest magnitudes.
    pub median_amax: f64,
}

/// Measures every quantized operator of `pair`, in the order of execution. Batches that do not fit into a GPU's memory are
/// halved; also tells to which size, if that was so.
///
/// # Errors
/// The backend refuses the measuring graph or a run fails; a sample cannot be read; there are no samples.
pub fn layerwise(
    backend: &dyn Backend,
    pair: &Pair<'_>,
    samples: Samples<'_>,
    options: LayerwiseOptions,
) -> Result<(Vec<LayerError>, Option<usize>), AnalysisError> {
    let step = options.operators_per_pass.max(1);
    let mut fitting_batch = None;
    let mut layers = Vec::with_capacity(pair.operators.len());
    for start in (0..pair.operators.len()).step_by(step) {
        let operators = start..(start + step).min(pair.operators.len());
        let twins::Measure { model, figures } = twins::measure(pair, operators.clone());
        let mut runner = backend.build(&model, &plain(options.threads, options.provider))?;
        let mut totals = Totals::default();
        let ran = some(samples.each_sum(&mut *runner, |part, outputs| {
            outputs.on_host(|outputs| {
                for (name, view) in outputs {
                    if let Some(figure) = figures.get(*name) {
                        totals.add(figure, &view.to_f32(), part);
                    }
                }
                Ok::<_, AnalysisError>(())
            })
        })?)?;
        layers.extend(operators.map(|index| layer(pair, index, &totals, ran.samples)));
        fitting_batch = fitting_batch.into_iter().chain(ran.fitting_batch).min();
    }
    Ok((layers, fitting_batch))
}

/// A pass that had samples.
pub(crate) fn some(ran: Ran) -> Result<Ran, AnalysisError> {
    if ran.samples == 0 { Err(AnalysisError::NoSamples) } else { Ok(ran) }
}

/// Threads that gain something by sharing the operators of single samples: with more they wait for each other.
pub(crate) const SHARING: usize = 8;

/// Fake quantization as it stands in the graph. On the CPU convolutions take three times as long without fusions and
/// layouts of their own; on a GPU those would only make other last bits.
pub(super) fn plain(threads: usize, provider: ExecutionProvider) -> BuildOptions {
    let optimization = if provider.gpu().is_some() { OptimizationLevel::Basic } else { OptimizationLevel::All };
    let threads = threads_or_cores(threads).min(SHARING);
    BuildOptions { threads, provider, optimization, ..BuildOptions::default() }
}

/// Figures over all samples.
#[derive(Default)]
struct Totals(BTreeMap<Figure, Vec<f64>>);

impl Totals {
    /// Adds the figures of a part: sums over all rows that ran, means over them, and peaks.
    fn add(&mut self, figure: &Figure, values: &[f32], part: &Part<'_>) {
        let peak = matches!(figure, Figure::Activation { figure: ActivationFigure::Peak, .. });
        let share = matches!(figure, Figure::Activation { figure: ActivationFigure::Saturated, .. });
        let weight = if share { part.ids.len() as f64 } else { 1.0 / part.copies as f64 };
        let total = match self.0.get_mut(figure) {
            Some(total) => total,
            None => self.0.entry(figure.clone()).or_default(),
        };
        total.resize(total.len().max(values.len()), 0.0);
        for (total, &value) in total.iter_mut().zip(values) {
            let value = f64::from(value);
            *total = if peak { total.max(value) } else { *total + weight * value };
        }
    }

    fn get(&self, figure: &Figure) -> &[f64] {
        self.0.get(figure).map_or(&[], Vec::as_slice)
    }

    fn sum(&self, figure: &Figure) -> f64 {
        self.get(figure).iter().sum()
    }
}

fn layer(pair: &Pair<'_>, index: usize, totals: &Totals, samples: usize) -> LayerError {
    let operator = &pair.operators[index];
    let signal = totals.get(&Figure::Signal { operator: index });
    let total_signal: f64 = signal.iter().sum();
    let noise_of = |twin| Figure::Noise { operator: index, twin };
    let noise = totals.get(&noise_of(Twin::All));
    let sqnr = |twin| sqnr_db(total_signal, totals.sum(&noise_of(twin)));
    let only = |side| operator.inputs.iter().all(|input| input.side == side);
    let part = |side, twin| if only(side) { sqnr(Twin::All) } else { sqnr(twin) };
    let activations = (operator.inputs.iter())
        .filter(|input| input.side == Side::Activation)
        .filter_map(|input| activation(pair, &input.float, &twins::quantizer(pair, input)?, totals, samples))
        .collect();
    LayerError {
        node: operator.node.clone(),
        op_type: operator.op_type.clone(),
        tensor: operator.tensor.clone(),
        layerwise_sqnr_db: sqnr(Twin::All),
        weight_sqnr_db: (!only(Side::Activation)).then(|| part(Side::Weight, Twin::Weights)).flatten(),
        activation_sqnr_db: (!only(Side::Weight)).then(|| part(Side::Activation, Twin::Activations)).flatten(),
        relative_noise: finite(noise.iter().sum::<f64>() / total_signal.max(f64::MIN_POSITIVE)),
        worst_channel: worst_channel(signal, noise),
        dead_channels: if signal.len() > 1 { zeros(signal) } else { Vec::new() },
        activations,
    }
}

fn activation(
    pair: &Pair<'_>,
    tensor: &str,
    quantizer: &str,
    totals: &Totals,
    samples: usize,
) -> Option<ActivationError> {
    let figure = |figure| Figure::Activation { quantizer: quantizer.to_owned(), figure };
    let &noise = totals.get(&figure(ActivationFigure::Noise)).first()?;
    let saturation = totals.sum(&figure(ActivationFigure::SaturationNoise));
    let peaks = totals.get(&figure(ActivationFigure::Peak));
    let outlier = (peaks.len() > 1).then(|| {
        let channel = largest(peaks);
        let mut sorted = peaks.to_vec();
        sorted.sort_by(f64::total_cmp);
        OutlierChannel { channel, amax: peaks[channel], median_amax: sorted[sorted.len() / 2] }
    });
    Some(ActivationError {
        tensor: tensor.to_owned(),
        producer: pair.float.producer(tensor).map(|id| pair.float.node(id).op_type().to_owned()),
        noise: finite(noise),
        saturated: totals.sum(&figure(ActivationFigure::Saturated)) / samples as f64,
        saturation_noise: if noise > 0.0 { (saturation / noise).clamp(0.0, 1.0) } else { 0.0 },
        outlier: outlier.filter(|o| o.amax.is_finite() && o.median_amax.is_finite()),
        dead_channels: if peaks.len() > 1 { zeros(peaks) } else { Vec::new() },
    })
}

fn worst_channel(signal: &[f64], noise: &[f64]) -> Option<WorstChannel> {
    let total: f64 = noise.iter().sum();
    if noise.len() < 2 || signal.len() != noise.len() || !(total > 0.0 && total.is_finite()) {
        return None;
    }
    let channel = largest(noise);
    let sqnr_db = sqnr_db(signal[channel], noise[channel]);
    Some(WorstChannel { channel, of: noise.len(), noise_share: noise[channel] / total, sqnr_db })
}

/// Index of the largest, the first of equals.
fn largest(values: &[f64]) -> usize {
    (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or_default()
}

fn zeros(values: &[f64]) -> Vec<usize> {
    (0..values.len()).filter(|&index| values[index] == 0.0).collect()
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// 10·log₁₀(signal / noise); absent without noise, or where either is not finite.
pub(super) fn sqnr_db(signal: f64, noise: f64) -> Option<f64> {
    (noise > 0.0).then(|| 10.0 * (signal / noise).log10()).and_then(finite)
}

/// Nodes of the layers that add most noise of their own, the worst first; those without a finite figure lead.
pub fn worst(layers: &[LayerError], count: usize) -> Vec<String> {
    let noise = |layer: &LayerError| layer.relative_noise.unwrap_or(f64::INFINITY);
    let mut ranked: Vec<&LayerError> = layers.iter().collect();
    ranked.sort_by(|a, b| noise(b).total_cmp(&noise(a)));
    ranked.into_iter().take(count).map(|layer| layer.node.clone()).collect()
}

/// What reaches the model's outputs when one operator alone is quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct OutputNoise {
    /// The operator's node.
    pub node: String,
    /// Noise power over signal power of the worst part of the worst float output, the mean over its positions (see
    /// [`Objective`]); absent where values are not finite.
    pub relative_noise: Option<f64>,
    /// The same as an SQNR; absent without noise.
    pub sqnr_db: Option<f64>,
}

/// Options of [`output_noise`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputNoiseOptions {
    /// Threads inside an operator; 0 for all cores.
    pub threads: usize,
    /// Where the models execute.
    pub provider: ExecutionProvider,
    /// Outputs that do not count.
    pub ignored: Vec<String>,
    /// The parts of outputs whose values mean unlike things; of others they follow from the size of the values.
    pub parts: Parts,
}

/// Quantizes each of `nodes` alone and compares the model's outputs with the float model's. Nothing comes of a node where no
/// output can be compared, since their shapes depend on the data.
///
/// # Errors
/// As [`layerwise`].
pub fn output_noise(
    backend: &dyn Backend,
    pair: &Pair<'_>,
    nodes: &[String],
    samples: Samples<'_>,
    options: &OutputNoiseOptions,
) -> Result<Vec<OutputNoise>, AnalysisError> {
    // Few samples: their inputs and outputs stay in memory.
    let build = plain(options.threads, options.provider);
    let mut reference = backend.build(pair.model, &build)?;
    let mut expected = Vec::new();
    some(samples.each(&mut *reference, |_, outputs| {
        let mut outputs = outputs.to_host()?;
        outputs.retain(|name, _| !options.ignored.contains(name));
        expected.push(outputs);
        Ok::<_, AnalysisError>(())
    })?)?;
    drop(reference);
    // Few samples, one at a time, would leave most cores idle: operators run side by side, each on one thread.
    let build = BuildOptions { threads: 1, ..build };
    let measure = |node: &String| -> Result<Option<OutputNoise>, AnalysisError> {
        let model = pair.graft(&BTreeSet::from([node.clone()]));
        let noise = relative_noise(backend, &model, &build, samples, &expected, &options.parts)?;
        let found = |noise| {
            let relative_noise = finite(noise);
            let sqnr_db = relative_noise.and_then(|relative| sqnr_db(1.0, relative));
            OutputNoise { node: node.clone(), relative_noise, sqnr_db }
        };
        Ok(noise.map(found))
    };
    let mut found = Vec::with_capacity(nodes.len());
    for nodes in nodes.chunks(at_once(pair.model, options.provider)) {
        found.extend(nodes.par_iter().map(measure).collect::<Result<Vec<_>, AnalysisError>>()?.into_iter().flatten());
    }
    Ok(found)
}

/// Sessions of a model that may be there at once: their weights take a gigabyte at most, more than one would.
fn at_once(model: &Model, provider: ExecutionProvider) -> usize {
    let most = if provider.gpu().is_some() { 4 } else { 64 };
    ((1 << 30) / model.proto.encoded_len().max(1)).clamp(1, most)
}

/// `None` where there is nothing to compare.
fn relative_noise(
    backend: &dyn Backend,
    model: &Model,
    build: &BuildOptions,
    samples: Samples<'_>,
    expected: &[TensorMap],
    parts: &Parts,
) -> Result<Option<f64>, AnalysisError> {
    let mut runner = backend.build(model, build)?;
    let mut objective = Objective::new(parts.clone());
    let mut unlike = BTreeSet::new();
    let mut expected = expected.iter();
    samples.each(&mut *runner, |_, outputs| {
        let Some(expected) = expected.next() else { return Ok(()) };
        outputs.on_host(|outputs| {
            for (name, view) in outputs {
                if let Some(reference) = expected.get(*name)
                    && let Err(error) = objective.add(name, reference.view(), *view)
                {
                    unlike.insert(error.output);
                }
            }
            Ok::<_, AnalysisError>(())
        })
    })?;
    for output in &unlike {
        objective.leave_out(output);
    }
    Ok(objective.noise())
}

#[cfg(test)]
mod tests;
