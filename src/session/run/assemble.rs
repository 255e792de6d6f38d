//! From what the stages found to one report.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::SystemTime,
};

use base64::Engine;

use super::{Calibrated, Job, Variant, layers::Layers};
use crate::{
    artifact::{ContentHash, Tool},
    backend::tensorrt::RunnerOptions,
    bench::Measurement,
    calibrate::Histograms,
    compare::{ComparisonResult, Gate},
    dataset::{Preprocess, SampleError},
    onnx::{GraphView, file_bytes},
    quantize::{ModelGraph, Precision as NumberFormat, of_random_data},
    report::{
        Calibration, CandidateResult, DatasetInfo, Histogram, Labels, LatencyMs, Layer, ModelInfo, Precision,
        REPORT_FORMAT_VERSION, Recovery, Report, SkippedSample, SpeedAt, Speedup, Verdict, rfc3339,
    },
    session::{PipelineError, environment::environment, evaluation::Evaluation, ranges::sample_hash},
};

/// Longer side of a picture on which boxes are drawn.
const DRAWN_SIDE: usize = 640;
/// Thumbnails in a report, at most.
const MAX_THUMBNAILS: usize = 50;

/// What the stages found.
pub(super) struct Found<'a> {
    pub(super) calibrated: Option<Calibrated>,
    pub(super) variants: Vec<Variant>,
    pub(super) evaluation: Evaluation,
    pub(super) layers: Option<Layers>,
    pub(super) times: Option<Vec<Measurement>>,
    pub(super) engines: Vec<super::engines::Engine>,
    pub(super) gates: &'a [Gate],
    pub(super) created: SystemTime,
}

impl Job<'_> {
    pub(super) fn assemble(&self, found: Found<'_>) -> Result<Report, PipelineError> {
        let engines_run = found.engines.iter().any(|engine| engine.runner.is_some());
        let gpu = self.session.gpu().or(engines_run.then_some(RunnerOptions::default().device));
        let mut environment = environment(self.session.runtime, gpu);
        environment.libraries.extend(self.tensorrt.clone());
        let backend = self.backend();
        let mut gates = Vec::new();
        let mut reference =
            Precision::new(self.reference_name(), &backend).with_comparison(&found.evaluation.reference);
        reference.reference = true;
        (reference.agreement, reference.outputs, reference.tasks) = (None, Vec::new(), Vec::new());
        reference.classes = None;
        // Against itself a map says nothing, against label masks it does.
        if let Some(detection) = &mut reference.detection {
            detection.changed.clear();
        }
        reference.segmentation = reference.segmentation.filter(|map| map.label_mean_iou.is_some());
        if let Some(accuracy) = &mut reference.accuracy {
            accuracy.mcnemar_p = None;
        }
        self.add_times(&mut reference, found.times.as_deref());
        let mut precisions = vec![reference];
        for variant in &found.variants {
            let name = variant.precision.name();
            let mut row = Precision::new(name, &backend);
            row.artifact.clone_from(&variant.artifact);
            row.quantized_nodes = variant.quantized_nodes.filter(|_| variant.precision.is_quantized());
            row.halved.clone_from(&variant.halved);
            row.error.clone_from(&variant.error);
            match &variant.measured {
                Some(Ok(result)) => {
                    row = row.with_comparison(result);
                    self.add_times(&mut row, found.times.as_deref());
                }
                Some(Err(error)) => row.error = Some(error.clone()),
                None => row.error = row.error.or_else(|| Some("it was not run".to_owned())),
            }
            let nothing = ComparisonResult::default();
            gates.extend(row.judge(found.gates, variant.result().unwrap_or(&nothing)));
            precisions.push(row);
        }
        for engine in found.engines {
            // An engine that did not run says nothing about gates; its row tells why.
            if let Some(measured) = &engine.measured {
                gates.extend(engine.row.judge(found.gates, measured));
            }
            precisions.push(engine.row);
        }
        let mut skipped = found.calibrated.as_ref().map_or_else(Vec::new, |calibrated| calibrated.skipped.clone());
        skipped.extend(found.evaluation.summary.skipped);
        sort(&mut skipped);
        // What was passed over is told when the data are opened.
        if let Some(SampleError { sample, reason }) = skipped.first() {
            self.session.host.warn(&format!(
                "{} samples could not be used, which the report lists with their reasons; the first: {sample}: {reason}",
                skipped.len()
            ));
        }
        skipped.extend(self.session.data.collection.passed_over.iter().cloned());
        sort(&mut skipped);
        let layers = self.layer_rows(&found.variants, found.calibrated.as_ref(), found.layers.as_ref());
        if let Some(gate) = found.gates.iter().find(|_| gates.is_empty()) {
            bail!("gate {gate} was tested on nothing: no engine ran; name a precision that runs with --precisions");
        }
        let verdict = Verdict::new(gates, &precisions);
        // By the table or by the plan.
        let of_random_data = found.variants.iter().filter_map(|variant| variant.model.as_ref()).any(of_random_data);
        let layers_samples = found.layers.as_ref().filter(|_| !layers.is_empty()).map(|found| found.graphwise.samples);
        Ok(Report {
            format_version: REPORT_FORMAT_VERSION,
            tool: Tool::current(),
            created: rfc3339(found.created),
            command: self.command.clone(),
            config: self.session.config.to_toml().map_err(PipelineError::render)?,
            environment,
            model: self.model_info(),
            dataset: self.dataset_info(skipped, &found.evaluation.ids),
            calibration: found
                .calibrated
                .as_ref()
                .map(|calibrated| calibration(calibrated, self.session.config.percentile, of_random_data)),
            advice: self.advice(found.calibrated.as_ref(), found.layers.as_ref(), &verdict),
            verdict,
            recovery: (found.calibrated.as_ref())
                .and_then(|calibrated| calibrated.chosen.table.recovered.as_ref())
                .map(Recovery::new),
            recovery_fp8: (found.calibrated.as_ref())
                .and_then(|calibrated| calibrated.chosen.table.fp8.as_ref())
                .map(|fp8| Recovery::new(&fp8.recovered)),
            thumbnails: self.thumbnails(&precisions),
            layers_backend: layers_samples.map(|samples| self.session.analyst(samples).backend().to_owned()),
            layers_samples,
            graph: Some(self.graph(&found.variants)),
            layers,
            notes: self.session.host.notes(),
            timings: self.session.host.timings(),
            precisions,
        })
    }

    /// The graph with what was decided for the quantized model, or else for the first that was made.
    fn graph(&self, variants: &[Variant]) -> ModelGraph {
        let graph = ModelGraph::of(&self.session.subject.folded);
        let decided = variants.iter().filter(|variant| variant.placement.is_some());
        let variant = decided.clone().find(|variant| variant.precision.is_quantized()).or(decided.into_iter().next());
        match variant.and_then(|variant| variant.placement.as_ref()) {
            Some(placement) => graph.decided(placement),
            None => graph,
        }
    }

    fn backend(&self) -> String {
        self.session.provider.backend().to_owned()
    }

    /// The smallest batch size with the run's own threads is the row's latency; the others follow it.
    pub(super) fn add_times(&self, row: &mut Precision, times: Option<&[Measurement]>) {
        let against = format!("{} {}", self.reference_name(), row.backend);
        let own = times.unwrap_or_default().iter().filter(|measured| measured.times.name == row.precision);
        let mut own: Vec<&Measurement> = own.collect();
        own.sort_by_key(|measured| measured.times.mode.threads != self.session.threads);
        let mut speeds = own.into_iter().filter_map(|measured| {
            let latency_ms = LatencyMs {
                figures: measured.latency.clone()?,
                timing: measured.times.timing,
                mode: measured.times.mode.clone(),
                warnings: measured.warnings.clone(),
            };
            let speedup = measured.speed_up.map(|figures| Speedup { against: against.clone(), figures });
            Some(SpeedAt { latency_ms, throughput_fps: measured.throughput.clone(), speedup })
        });
        if let Some(SpeedAt { latency_ms, throughput_fps, speedup }) = speeds.next() {
            (row.latency_ms, row.throughput_fps, row.speedup) = (Some(latency_ms), throughput_fps, speedup);
        }
        row.speed_at = speeds.collect();
    }

    /// What the model is as it was given, among the precisions.
    pub(super) fn reference_name(&self) -> &'static str {
        self.session.subject.float_types.name()
    }

    fn model_info(&self) -> ModelInfo {
        let subject = &self.session.subject;
        let path = subject.float.path.clone().unwrap_or_default();
        let graph = subject.float.graph();
        let size = |dims: &[i64]| dims.iter().map(|&dim| u64::try_from(dim).unwrap_or(0)).product::<u64>();
        let producer = &subject.float.proto;
        let types = &subject.float_types;
        let quantized: Vec<String> = types.quantized.iter().map(ToString::to_string).collect();
        let mut weights: BTreeMap<String, u64> =
            types.weights.iter().map(|(kind, &count)| (kind.name().to_owned(), count)).collect();
        if types.codes > 0 {
            weights.insert(quantized.first().map_or("int8", String::as_str).to_owned(), types.codes);
        }
        ModelInfo {
            path: path.display().to_string(),
            hash: subject.float.hash.clone(),
            bytes: file_bytes(&path).unwrap_or(0),
            inputs: subject.inputs.clone(),
            outputs: subject.outputs.clone(),
            nodes: graph.node.len(),
            parameters: graph.initializer.iter().map(|tensor| size(&tensor.dims)).sum(),
            weights,
            arithmetic: types.arithmetic.iter().map(|kind| kind.name().to_owned()).chain(quantized).collect(),
            opset: subject.float.opset("").unwrap_or(0),
            producer: producer
                .producer_name
                .as_ref()
                .filter(|name| !name.is_empty())
                .map(|name| format!("{name} {}", producer.producer_version()).trim().to_owned()),
        }
    }

    fn dataset_info(&self, skipped: Vec<SampleError>, evaluated: &[String]) -> DatasetInfo {
        let data = &self.session.data;
        let dataset = &*data.collection.dataset;
        let bad: BTreeSet<&str> = skipped.iter().map(|error| error.sample.as_str()).collect();
        let calibration: Vec<String> = self
            .split
            .calibration
            .iter()
            .map(|&index| dataset.id(index))
            .filter(|id| !bad.contains(id))
            .map(str::to_owned)
            .collect();
        let labels = data.collection.label_source.as_ref().map(|source| Labels {
            source: source.clone(),
            labelled: self
                .split
                .evaluation
                .iter()
                .filter(|&&index| {
                    dataset.label(index).is_some() || dataset.mask_file(index).is_some() || dataset.has_boxes(index)
                })
                .count(),
            names: data.collection.names.clone(),
        });
        let without_a_path = if self.session.own_data { "given by the program" } else { "random" };
        DatasetInfo {
            path: self
                .session
                .config
                .data
                .as_deref()
                .map_or_else(|| without_a_path.to_owned(), |path| path.display().to_string()),
            hash: self.session.data_hash(&[&self.split.calibration[..], &self.split.evaluation[..]].concat()),
            calibration,
            evaluation: evaluated.to_vec(),
            evaluation_hash: self
                .hash_of_evaluated(evaluated, |index| Some((sample_hash(dataset, index)?, dataset.label(index)))),
            truth_hash: (self.split.evaluation.iter())
                .any(|&index| dataset.mask_file(index).is_some() || dataset.has_boxes(index))
                .then(|| self.hash_of_evaluated(evaluated, |index| Some(dataset.truth_hash(index))))
                .flatten(),
            overlapping: self.split.overlapping,
            skipped: skipped
                .into_iter()
                .map(|SampleError { sample, reason }| SkippedSample { sample, reason })
                .collect(),
            labels,
            preprocess: data.preprocess.as_ref().map(Preprocess::describe),
            random_data: self.session.config.random_data,
        }
    }

    /// Hash over something of all samples that were evaluated; names alone are the same for other data.
    fn hash_of_evaluated<T: Debug>(
        &self,
        evaluated: &[String],
        what: impl Fn(usize) -> Option<T>,
    ) -> Option<ContentHash> {
        if self.session.config.random_data {
            return None;
        }
        let dataset = &*self.session.data.collection.dataset;
        let evaluated: BTreeSet<&str> = evaluated.iter().map(String::as_str).collect();
        let indices = self.split.evaluation.iter().filter(|&&index| evaluated.contains(dataset.id(index)));
        let samples = indices.map(|&index| what(index)).collect::<Option<Vec<_>>>()?;
        Some(ContentHash::of_bytes(format!("{samples:?}").as_bytes()))
    }

    fn thumbnails(&self, precisions: &[Precision]) -> BTreeMap<String, String> {
        let dataset = &*self.session.data.collection.dataset;
        let by_id: BTreeMap<&str, usize> =
            self.split.evaluation.iter().map(|&index| (dataset.id(index), index)).collect();
        let mut thumbnails = BTreeMap::new();
        for flip in precisions.iter().flat_map(|precision| &precision.flips) {
            if thumbnails.len() >= MAX_THUMBNAILS || thumbnails.contains_key(&flip.sample) {
                continue;
            }
            let picture = by_id.get(flip.sample.as_str()).and_then(|&index| dataset.thumbnail(index));
            if let Some(bytes) = picture {
                thumbnails.insert(flip.sample.clone(), data_uri(&bytes));
            }
        }
        for changed in precisions.iter().filter_map(|precision| precision.detection.as_ref()).flat_map(|d| &d.changed) {
            if thumbnails.len() < MAX_THUMBNAILS && !thumbnails.contains_key(&changed.sample) {
                let index = by_id.get(changed.sample.as_str());
                let picture = index.and_then(|&index| dataset.picture(index, DRAWN_SIDE));
                thumbnails.extend(picture.map(|bytes| (changed.sample.clone(), data_uri(&bytes))));
            }
        }
        thumbnails
    }

    /// One row for each quantized tensor, each result of a quantized operator and each output, in the order of execution.
    fn layer_rows(&self, variants: &[Variant], calibrated: Option<&Calibrated>, layers: Option<&Layers>) -> Vec<Layer> {
        let (Some(calibrated), Some(layers)) = (calibrated, layers) else { return Vec::new() };
        let quantized = variants.iter().find(|variant| variant.precision.is_quantized() && variant.model.is_some());
        let precision = quantized.map_or(NumberFormat::Int8, |variant| variant.precision);
        let table = &calibrated.chosen.table;
        let histograms = calibrated.histograms.as_ref();
        let shifted = |tensor: &str| quantized.and_then(|variant| variant.shifted.get(tensor));
        // A tensor around another centre and its padded form are one with what they were in the model that was given.
        let given = |tensor: &str| shifted(tensor).map_or(tensor, |shifted| &shifted.tensor).to_owned();
        // The node, too: what shifts and pads is not a node of that model.
        let folded = GraphView::new(self.session.subject.folded.graph()).ok();
        let made_by = |tensor: &str| {
            let id = folded.as_ref()?.producer(tensor)?;
            let node = folded.as_ref()?.node(id);
            Some((node.label(id.0), node.op_type().to_owned()))
        };
        let graph = self.graph(variants);
        let decided: BTreeMap<&str, NumberFormat> =
            graph.nodes.iter().filter_map(|node| Some((node.name.as_str(), node.precision?))).collect();
        let mut seen = BTreeSet::new();
        (layers.graphwise.tensors.iter())
            .filter(|found| seen.insert(given(&found.site.tensor)))
            .map(|found| {
                let site = &found.site;
                let tensor = given(&site.tensor);
                let (node, op_type) = made_by(&tensor).unwrap_or_else(|| (site.node.clone(), site.op_type.clone()));
                // In the words of the picture.
                let own = decided.get(node.as_str()).copied().unwrap_or(precision);
                let mut row = Layer::new(&node, &op_type, &tensor, own.name());
                row.graphwise_sqnr_db = found.difference.sqnr_db;
                row.cosine = Some(found.difference.cosine);
                // An operator's own error is measured behind its activation: at the tensor that is quantized next.
                let own = layers.local.iter().filter(|local| local.tensor == site.tensor);
                row.operators = own.clone().map(|local| &local.node).filter(|name| **name != node).cloned().collect();
                if let Some(local) = own.into_iter().next() {
                    row.layerwise_sqnr_db = local.layerwise_sqnr_db;
                    row.weight_sqnr_db = local.weight_sqnr_db;
                }
                if let Some(range) = table.tensors.get(&tensor) {
                    row = row.with_range(range, quantized.and_then(|variant| variant.scales.get(&tensor).copied()));
                }
                let parts = histograms.map(|h| [h.fit.get(&tensor), h.held_out.get(&tensor)]);
                let whole = parts.into_iter().flatten().flatten().fold(None, |whole, part| match whole {
                    None => Some(part.clone()),
                    Some(mut whole) => {
                        crate::calibrate::histogram::Histogram::merge(&mut whole, part);
                        Some(whole)
                    }
                });
                let shift =
                    quantized.and_then(|variant| variant.shifted.values().find(|shifted| shifted.tensor == tensor));
                // One whose channels are equalized, and no more, is still around 0.
                let shift = shift.map(|shifted| shifted.shift).filter(|shift| shift.offset != 0.0);
                if let (Some(shift), Some(whole)) = (shift, &whole) {
                    let clipped = whole.beyond(shift.offset + shift.amax) as f64 / whole.count().max(1) as f64;
                    row = row.with_shift(shift, clipped);
                }
                row.histogram = whole.map(|whole| Histogram::coarse(whole.bin_width(), whole.counts()));
                row
            })
            .collect()
    }
}

fn calibration(calibrated: &Calibrated, percentile: f64, of_random_data: bool) -> Calibration {
    let chosen = &calibrated.chosen;
    let samples = calibrated.histograms.as_ref().map_or(chosen.table.samples, Histograms::samples);
    Calibration {
        method: chosen.choice.to_string(),
        percentile,
        samples,
        random_data: chosen.table.random_data || of_random_data,
        seconds: calibrated.all_seconds,
        images_per_second: if calibrated.seconds > 0.0 { samples as f64 / calibrated.seconds } else { 0.0 },
        peak_rss_bytes: calibrated.peak_rss_bytes,
        candidates: chosen
            .candidates
            .iter()
            .map(|candidate| CandidateResult {
                method: candidate.choice.to_string(),
                bias_correction: candidate.bias_correction,
                final_thresholds: candidate.final_thresholds,
                chosen: chosen.is_in_force(candidate),
                samples: chosen.measured_on,
                agreement: candidate.result.classification().and_then(|task| task.agreement.clone()),
                outputs: candidate.result.outputs.clone(),
                sqnr_db_interval: candidate.result.sqnr_db_interval(),
            })
            .collect(),
    }
}

fn data_uri(jpeg: &[u8]) -> String {
    format!("data:image/jpeg;base64,{}", base64::engine::general_purpose::STANDARD.encode(jpeg))
}

/// Each sample once, by name.
fn sort(skipped: &mut Vec<SampleError>) {
    skipped.sort_by(|a, b| a.sample.cmp(&b.sample));
    skipped.dedup();
}
