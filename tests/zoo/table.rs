//! The table of `docs/zoo.md`.

use std::{collections::BTreeMap, fmt::Write, path::Path};

use serde::Deserialize;

use crate::job::Outcome;

/// What `scripts/zoo_peer.py` found about a model.
#[derive(Clone, Debug, Default, Deserialize)]
struct Peer {
    sqnr_db: Option<f64>,
}

const PRECISIONS: [&str; 3] = ["fp32", "int8", "fp16"];

/// Errors, and engines of the quantized model that fail though the float model's does not.
pub fn fails(outcome: &Outcome) -> bool {
    let built = |precision: &str| outcome.engines.get(precision).is_none_or(Result::is_ok);
    outcome.error.is_some() || (built("fp32") && !(built("int8") && built("fp16")))
}

/// One row a model and a line of sums. Where onnxruntime.quantization is nearer to the float model, its figure is bold.
pub fn render(outcomes: &[(String, Outcome)], peer: &Path) -> String {
    let peers: BTreeMap<String, Peer> =
        std::fs::read(peer).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let mut text = String::from(
        "| model | nodes | quantized | engines | FP16 | INT8, min-max | INT8, auto | method | INT8, recovered | lifted | onnxruntime |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let (mut at_least, mut compared, mut gains, mut apart) = (0, 0, Vec::new(), Vec::new());
    for (key, outcome) in outcomes {
        let Outcome { nodes, quantized, method, sqnr_db, .. } = outcome;
        let theirs = peers.get(key).map(|peer| peer.sqnr_db);
        let mut peer =
            theirs.map_or(String::new(), |sqnr| sqnr.map_or("fails".to_owned(), |sqnr| format!("{sqnr:.1}")));
        if let (Some(Some(theirs)), None) = (theirs, &outcome.error) {
            let ahead = sqnr_db.is_none_or(|ours| ours >= theirs);
            compared += 1;
            at_least += usize::from(ahead);
            if !ahead {
                peer = format!("**{peer}**");
            }
        }
        let engines = engines(outcome);
        let row = if let Some(error) = &outcome.error {
            format!("| {key} | {nodes} | {quantized} | {engines} | {error} |||||| {peer} |")
        } else {
            let figures = [outcome.fp16_sqnr_db, outcome.minmax_sqnr_db, outcome.method_sqnr_db];
            let (figures, recovered) = (figures.map(decibels).join(" | "), decibels(*sqnr_db));
            gains.extend(sqnr_db.zip(outcome.method_sqnr_db).map(|(recovered, method)| recovered - method));
            apart.extend(sqnr_db.zip(outcome.integer_sqnr_db).map(|(analysed, integer)| (analysed - integer).abs()));
            let method = if outcome.bias_correction { format!("{method}, biases") } else { method.clone() };
            format!(
                "| {key} | {nodes} | {quantized} | {engines} | {figures} | {method} | {recovered} | {} | {peer} |",
                outcome.lifted
            )
        };
        writeln!(text, "{row}").unwrap();
    }
    let failed = outcomes.iter().filter(|(_, outcome)| fails(outcome)).count();
    let [fp32, int8, fp16] = PRECISIONS
        .map(|precision| outcomes.iter().filter(|(_, o)| matches!(o.engines.get(precision), Some(Ok(_)))).count());
    gains.sort_by(f64::total_cmp);
    apart.sort_by(f64::total_cmp);
    writeln!(
        text,
        "\n{} models, {failed} fail; engines: {fp32} FP32, {int8} INT8, {fp16} FP16; SQNR at least that of \
         onnxruntime.quantization: {at_least} of {compared}; gain of recovery: {:.1} dB in the median, {:.1} at least; integer \
         kernels give {:.2} dB more or less in the median, {:.2} at most",
        outcomes.len(),
        gains.get(gains.len() / 2).unwrap_or(&0.0),
        gains.first().unwrap_or(&0.0),
        apart.get(apart.len() / 2).unwrap_or(&0.0),
        apart.last().unwrap_or(&0.0),
    )
    .unwrap();
    text
}

fn decibels(sqnr: Option<f64>) -> String {
    sqnr.map_or("equal".to_owned(), |sqnr| format!("{sqnr:.1}"))
}

/// The precisions whose engines were built, and those that were refused.
fn engines(outcome: &Outcome) -> String {
    let built = PRECISIONS.into_iter().filter_map(|precision| {
        let built = outcome.engines.get(precision)?;
        Some(if built.is_ok() { precision.to_owned() } else { format!("**no {precision}**") })
    });
    built.collect::<Vec<_>>().join(" ")
}
