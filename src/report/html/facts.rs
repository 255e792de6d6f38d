//! What was run on what: model, data, calibration, machine.

use super::super::{Report, format};
use crate::backend::TensorInfo;

/// Facts about one thing.
pub(super) struct Group {
    pub name: &'static str,
    pub facts: Vec<Fact>,
}

/// A name and what is known under it.
pub(super) struct Fact {
    pub name: String,
    pub value: String,
}

/// Every group that the report has facts for.
pub(super) fn groups(report: &Report) -> Vec<Group> {
    let mut groups = vec![model(report), data(report)];
    groups.extend(calibration(report));
    groups.push(machine(report));
    groups
}

fn fact(name: impl Into<String>, value: impl Into<String>) -> Fact {
    Fact { name: name.into(), value: value.into() }
}

fn model(report: &Report) -> Group {
    let model = &report.model;
    let mut facts = vec![
        fact("File", &model.path),
        fact("Size", format!("{}, {} parameters", format::bytes(model.bytes), format::count(model.parameters))),
        fact("Graph", format!("{} nodes, opset {}", format::count(model.nodes as u64), model.opset)),
    ];
    facts.extend(model.inputs.iter().map(|input| fact("Input", tensor(input))));
    facts.extend(model.outputs.iter().take(8).map(|output| fact("Output", tensor(output))));
    facts.extend(model.producer.as_ref().map(|producer| fact("Made by", producer)));
    facts.push(fact("Hash", model.hash.short()));
    Group { name: "Model", facts }
}

/// `image float32 ? × 3 × 224 × 224`.
fn tensor(info: &TensorInfo) -> String {
    let extents = info.shape.iter().map(|d| d.map_or("?".to_owned(), |d| d.to_string()));
    let element_type = info.element_type.map_or("other", |t| t.name());
    format!("{} {element_type} {}", info.name, extents.collect::<Vec<_>>().join("\u{a0}×\u{a0}"))
}

fn data(report: &Report) -> Group {
    let data = &report.dataset;
    let samples = |n: usize| format!("{} samples", format::count(n as u64));
    let mut facts = vec![fact("From", &data.path)];
    if data.random_data {
        facts.push(fact("Content", "RANDOM NUMBERS"));
    }
    facts.push(fact("Calibration", samples(data.calibration.len())));
    facts.push(fact("Evaluation", samples(data.evaluation.len())));
    facts.push(match data.overlapping {
        0 => fact("In both", "none"),
        n => fact("In both", format!("{} (too little data to keep them apart)", samples(n))),
    });
    facts.push(match &data.labels {
        Some(labels) => fact("Labels", format!("{} from {}", format::count(labels.labelled as u64), labels.source)),
        None => fact("Labels", "none: accuracy is unknown, agreement is not"),
    });
    facts.extend(data.preprocess.as_ref().map(|line| fact("Preprocessing", line)));
    facts.push(fact("Hash", data.hash.short()));
    Group { name: "Data", facts }
}

fn calibration(report: &Report) -> Option<Group> {
    let calibration = report.calibration.as_ref()?;
    let method = match calibration.method.as_str() {
        "percentile" => format!("percentile {}", calibration.percentile),
        other => other.to_owned(),
    };
    let facts = vec![
        fact("Method", method),
        fact("Samples", format::count(calibration.samples as u64)),
        fact("Time", format::seconds(calibration.seconds)),
        fact("Observed at", format!("{} samples/s", format::significant(calibration.images_per_second, 3))),
        fact("Peak memory", format::bytes(calibration.peak_rss_bytes)),
    ];
    Some(Group { name: "Calibration", facts })
}

fn machine(report: &Report) -> Group {
    let machine = &report.environment;
    let mut facts = vec![
        fact("System", &machine.os),
        fact("CPU", format!("{}, {} cores", machine.cpu_model, machine.cores)),
        fact("CPU clock", clock(machine.cpu_mhz, machine.cpu_temperature_c)),
        fact("Memory", format::bytes(machine.memory_bytes)),
    ];
    match &machine.gpu {
        Some(gpu) => {
            facts.push(fact("GPU", format!("{} ({})", gpu.name, gpu.compute_capability)));
            facts.push(fact("Driver", &gpu.driver));
            facts.push(fact("GPU clock", clock(gpu.clock_mhz, gpu.temperature_c)));
        }
        None => facts.push(fact("GPU", "none used")),
    }
    facts.extend(machine.libraries.iter().map(|(name, version)| fact(name, version)));
    Group { name: "Machine", facts }
}

/// `2600 MHz, 58 °C`; what the machine does not tell is said to be unknown.
fn clock(mhz: Option<u32>, celsius: Option<u32>) -> String {
    let clock = mhz.map_or_else(|| "unknown".to_owned(), |mhz| format!("{mhz}\u{a0}MHz"));
    let heat = celsius.map_or_else(|| "temperature unknown".to_owned(), |celsius| format!("{celsius}\u{a0}°C"));
    format!("{clock}, {heat}")
}
