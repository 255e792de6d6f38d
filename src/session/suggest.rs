//! Commands to recommend: complete, so that they work when pasted into a shell.

use std::path::Path;

use crate::{
    analyse::advice::Commands, compare::Gate, config::RunConfig, quantize::Precision, report::shell_word as word,
};

/// What the commands are about.
pub(super) struct Suggest<'a> {
    /// The configuration in force.
    pub(super) config: &'a RunConfig,
    /// The file in the output folder that repeats what was done.
    pub(super) repeats: &'a str,
    /// The output folder.
    pub(super) out: &'a Path,
    /// The calibration table.
    pub(super) table: &'a Path,
    /// What nodes are lifted to.
    pub(super) lift: Precision,
    /// What nodes are lifted from.
    pub(super) precision: Precision,
    /// The gate to recommend where the configuration has none.
    pub(super) gate: &'a str,
}

impl Suggest<'_> {
    /// The beginnings of the commands.
    pub(super) fn commands(&self) -> Commands {
        let Self { config, repeats, out, table, lift, precision, gate } = self;
        let file = |name: &str| word(&out.join(name).display().to_string());
        let table = word(&table.display().to_string());
        let gate = config.gate.first().map_or_else(|| (*gate).to_owned(), Gate::to_string);
        let repeated = file(repeats);
        let wider = word(&format!("{}-minmax", out.display()));
        let model = config.model.as_ref().map_or_else(String::new, |path| word(&path.display().to_string()));
        let mut quantize = format!(
            "calib quantize --model {model} --table {table} --plan {} -o {}",
            file("plan.json"),
            file("model.plan.onnx")
        );
        for (flag, values) in [
            ("--nodes-to-exclude", &config.nodes_to_exclude),
            ("--nodes-to-include", &config.nodes_to_include),
            ("--op-types", &config.op_types),
            ("--op-types-to-exclude", &config.op_types_to_exclude),
        ] {
            quantize.extend(values.iter().map(|value| format!(" {flag} {}", word(value))));
        }
        if config.per_tensor_weights {
            quantize.push_str(" --per-tensor-weights");
        }
        if config.high_precision != Precision::Fp32 {
            quantize.push_str(&format!(" --high-precision {}", config.high_precision));
        }
        // INT8 is what the commands do without being told.
        let (mut precisions, mut flag) = (String::new(), String::new());
        if *precision != Precision::Int8 {
            (precisions, flag) = (format!(" --precisions {precision}"), format!(" --precision {precision}"));
        }
        quantize.push_str(&flag);
        Commands {
            run: format!("calib run --config {repeated} --method minmax{precisions} --out {wider}"),
            bisect: format!(
                "calib bisect --config {repeated} --table {table} --gate {gate} --lift {lift}{flag} --out {}",
                word(&out.display().to_string())
            ),
            quantize,
        }
    }
}
