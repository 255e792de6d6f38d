//! Where: every layer's error and range, the worst first, each with its histogram.

use std::collections::BTreeSet;

use super::{
    super::{Layer, charts, details::method_name, format, format::MISSING, table::Tone},
    Chart,
};
use crate::calibrate::Method;

/// Layers on a page; `layers.csv` has all.
const MAX_LAYERS: usize = 1000;

/// Layers with a drawn histogram, half as many where there are more layers than rows: a page of more could not be mailed.
const MAX_HISTOGRAMS: usize = 500;

/// Decibels that fill a bar.
const FULL_BAR_DB: f64 = 50.0;

/// The layers to show.
pub(super) struct Layers<'a> {
    pub rows: Vec<Row<'a>>,
    /// Layers in the report.
    pub total: usize,
    /// Values of the filters.
    pub op_types: Vec<&'a str>,
    pub precisions: Vec<&'a str>,
    /// The machines whose times stand in the table.
    pub timed_on: Vec<&'a str>,
    /// Which measure the order goes by: layerwise or else graphwise.
    pub by_layerwise: bool,
    /// SQNR of all layers in the order of execution.
    pub profile: Chart,
    /// The layers that `profile` numbers.
    pub lowest: Vec<(&'a str, String)>,
}

/// One layer.
pub(super) struct Row<'a> {
    /// Place in the order of execution, from 1.
    pub index: usize,
    pub layer: &'a Layer,
    pub op_token: usize,
    pub precision_token: usize,
    pub graphwise: Bar,
    pub layerwise: Bar,
    pub figures: Vec<Figure>,
    /// What else is known, for the opened row.
    pub more: Vec<(&'static str, String)>,
    pub histogram: String,
}

/// A number in a cell.
pub(super) struct Figure {
    pub text: String,
    pub sort: String,
}

/// SQNR as a number and a bar.
pub(super) struct Bar {
    pub text: String,
    pub sort: String,
    pub percent: u32,
    pub tone: Tone,
}

impl Bar {
    fn new(sqnr_db: Option<f64>) -> Self {
        let Some(db) = sqnr_db else {
            return Self { text: MISSING.to_owned(), sort: String::new(), percent: 0, tone: Tone::Dim };
        };
        let percent = (db / FULL_BAR_DB * 100.0).clamp(2.0, 100.0) as u32;
        Self { text: format!("{db:.1}"), sort: nine_digits(db), percent, tone: Tone::of_sqnr(db) }
    }
}

impl Figure {
    fn new(value: Option<f64>, show: impl Fn(f64) -> String) -> Self {
        Self { text: value.map_or(MISSING.to_owned(), show), sort: value.map_or(String::new(), nine_digits) }
    }
}

/// What a cell sorts and copies by: all that a 32-bit number tells; `layers.csv` has the rest.
fn nine_digits(value: f64) -> String {
    format!("{value:.8e}").parse().unwrap_or(value).to_string()
}

impl<'a> Layers<'a> {
    /// The layers, the worst first.
    pub fn new(layers: &'a [Layer]) -> Self {
        let unique = |of: fn(&Layer) -> &str| -> Vec<&str> {
            layers.iter().map(of).collect::<BTreeSet<_>>().into_iter().collect()
        };
        let op_types = unique(|layer| &layer.op_type);
        let precisions = unique(|layer| &layer.precision);
        let machines = layers.iter().flat_map(|layer| &layer.times).map(|time| time.machine.as_str());
        let timed_on = Vec::from_iter(machines.collect::<BTreeSet<_>>());
        let by_layerwise = layers.iter().any(|layer| layer.layerwise_sqnr_db.is_some());
        let measure = |l: &Layer| if by_layerwise { l.layerwise_sqnr_db } else { l.graphwise_sqnr_db };
        let mut order: Vec<usize> = (0..layers.len()).collect();
        order.sort_by(|&a, &b| {
            let key = |i: usize| measure(&layers[i]).unwrap_or(f64::INFINITY);
            key(a).total_cmp(&key(b))
        });
        let numbered = charts::lowest(&layers.iter().map(measure).collect::<Vec<_>>());
        let panel =
            |title, of: fn(&Layer) -> Option<f64>| charts::Panel { title, sqnr_db: layers.iter().map(of).collect() };
        let panels = [
            panel("layerwise SQNR (dB): only this layer quantized", |layer| layer.layerwise_sqnr_db),
            panel("graphwise SQNR (dB): the whole graph quantized", |layer| layer.graphwise_sqnr_db),
        ];
        let profile = Chart::new(380, |size| charts::profile(&panels, &numbered, size));
        let lowest = numbered.iter().filter_map(|&i| Some((&*layers[i].node, format::decibels(measure(&layers[i])?))));
        let lowest = lowest.collect();
        order.truncate(MAX_LAYERS);
        let drawn = if layers.len() > MAX_LAYERS { MAX_HISTOGRAMS / 2 } else { MAX_HISTOGRAMS };
        let row = |(place, &i): (usize, &usize)| {
            let layer = &layers[i];
            Row {
                index: i + 1,
                layer,
                op_token: op_types.iter().position(|op| *op == layer.op_type).unwrap_or(0),
                precision_token: precisions.iter().position(|p| *p == layer.precision).unwrap_or(0),
                graphwise: Bar::new(layer.graphwise_sqnr_db),
                layerwise: Bar::new(layer.layerwise_sqnr_db),
                figures: figures(layer, &timed_on),
                more: more(layer),
                histogram: match &layer.histogram {
                    Some(histogram) if place < drawn => charts::histogram(histogram, layer, (460, 210)),
                    _ => String::new(),
                },
            }
        };
        let rows = order.iter().enumerate().map(row).collect();
        Self { rows, total: layers.len(), op_types, precisions, timed_on, by_layerwise, profile, lowest }
    }
}

/// Cosine, amax, scale, times, clipped: the columns behind the bars.
fn figures(layer: &Layer, timed_on: &[&str]) -> Vec<Figure> {
    let short = |value: f64| format::significant(value, 3);
    let on = |machine: &&str| layer.times.iter().find(|time| time.machine == *machine).map(|time| time.ms);
    let times = timed_on.iter().map(|machine| Figure::new(on(machine), short));
    let mut figures = vec![
        Figure::new(layer.cosine, |c| format!("{c:.5}")),
        Figure::new(layer.amax.map(f64::from), short),
        Figure::new(layer.scale.map(f64::from), short),
    ];
    figures.extend(times);
    figures.push(Figure::new(layer.clipped, format::small_share));
    figures
}

fn more(layer: &Layer) -> Vec<(&'static str, String)> {
    let mut more = vec![("Tensor", layer.tensor.clone())];
    if !layer.operators.is_empty() {
        more.push(("Quantized in front of it", layer.operators.join(", ")));
    }
    if let (Some(min), Some(max)) = (layer.min, layer.max) {
        let short = |value: f32| format::significant(f64::from(value), 4);
        more.push(("Seen", format!("{} … {}", short(min), short(max))));
    }
    more.extend(layer.offset.map(|offset| ("Centre of the range", format::significant(f64::from(offset), 4))));
    more.extend(layer.method.map(|method| ("Method in force", method_name(method).to_owned())));
    more.extend(layer.weight_sqnr_db.map(|db| ("SQNR of the weights", format::decibels(db))));
    // Machines that made the same layer of it stand together.
    let mut engines: Vec<(&str, Vec<String>)> = Vec::new();
    for time in &layer.times {
        let share = format::percent(time.share, 0);
        let others = if time.nodes > 1 { format!(", {} nodes together", time.nodes) } else { String::new() };
        let there = format!("{share} on {}{others}", time.machine);
        match engines.iter_mut().find(|(name, _)| *name == time.engine_layer) {
            Some((_, all)) => all.push(there),
            None => engines.push((&time.engine_layer, vec![there])),
        }
    }
    more.extend(
        engines.into_iter().map(|(name, all)| ("In the engine", format!("{name}, {} of the time", all.join("; ")))),
    );
    let threshold = |(method, amax): (&Method, &f32)| {
        format!("{} {}", method_name(*method), format::significant(f64::from(*amax), 4))
    };
    let thresholds: Vec<String> = layer.candidates.iter().map(threshold).collect();
    if !thresholds.is_empty() {
        more.push(("amax by method", thresholds.join(", ")));
    }
    more
}
