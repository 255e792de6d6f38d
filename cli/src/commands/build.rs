//! `calib build`: a TensorRT engine and its sidecar.

use std::collections::BTreeMap;

use super::{ExitStatus, Printer, host, settings::configuration};
use crate::args::BuildArgs;
use crate::printer::size;
use trtcalib::{
    backend::tensorrt::{EngineLayers, EngineOptions, EngineSidecar},
    config::{ConfigError, parse_shape},
    session::{EngineOrder, check_folders},
};

/// Builds.
pub(super) fn build(printer: &Printer, args: &BuildArgs) -> anyhow::Result<ExitStatus> {
    let sidecar = engine(printer, args)?;
    let bytes = std::fs::metadata(&args.output).map_or(0, |file| file.len());
    let summary = (!sidecar.layers.is_empty()).then(|| EngineLayers { layers: sidecar.layers.clone() }.summary());
    let layers = summary.map_or_else(String::new, |summary| format!("\nlayers: {summary}"));
    printer.outcome(&sidecar, || {
        format!(
            "{}: {} in {:.1} s by {} {}{layers}",
            args.output.display(),
            size(bytes),
            sidecar.build_seconds,
            sidecar.flavour,
            sidecar.tensorrt_version
        )
    })?;
    Ok(ExitStatus::Passed)
}

/// Writes the engine and its sidecar, which is returned.
fn engine(printer: &Printer, args: &BuildArgs) -> anyhow::Result<EngineSidecar> {
    check_folders([&*args.output])?;
    let config = configuration(printer, &args.config)?;
    let order = EngineOrder::open(&args.model.path(), args.tensorrt_dir.as_deref())?;
    let mut bound = config.shape;
    for shape in &args.shape {
        let (name, extents) = parse_shape(shape)?;
        bound.insert(name, extents);
    }
    let profile = args.profile.iter().map(|text| parse_profile(text)).collect::<Result<BTreeMap<_, _>, _>>()?;
    let options = EngineOptions {
        workspace_bytes: args.workspace_mb.map(|megabytes| megabytes << 20),
        tf32: args.tf32,
        version_compatible: args.version_compatible,
        hardware_compatible: args.hardware_compatible,
        optimization_level: args.optimization_level,
        compute_capabilities: args.compute_capability.clone(),
        ..EngineOptions::default()
    };
    let reference = args.reference.clone().or(config.model);
    let (data, labels) = (args.data.clone().or(config.data), args.labels.clone().or(config.labels));
    let order = EngineOrder { reference, data, labels, options, ..order }.with_profiles(profile)?;
    let order = order.for_batch(args.batch, &bound)?;
    Ok(order.write(&host(printer), &args.output)?)
}

/// `input=1x3x224x224:8x3x224x224:32x3x224x224`.
fn parse_profile(text: &str) -> Result<(String, [Vec<i64>; 3]), ConfigError> {
    let invalid = |reason: &str| ConfigError::Value { key: "profile", reason: format!("`{text}` {reason}") };
    let form = "does not read like input=1x3x224x224:8x3x224x224:32x3x224x224 (min:opt:max)";
    let (name, shapes) = text.rsplit_once('=').ok_or_else(|| invalid(form))?;
    let shapes = shapes
        .split(':')
        .map(|shape| shape.split('x').map(str::parse).collect::<Result<Vec<i64>, _>>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| invalid(form))?;
    let shapes: [Vec<i64>; 3] = shapes.try_into().map_err(|_| invalid(form))?;
    let [min, opt, max] = &shapes;
    let ordered = min.len() == opt.len()
        && opt.len() == max.len()
        && min.iter().zip(opt).zip(max).all(|((min, opt), max)| min <= opt && opt <= max);
    if ordered { Ok((name.to_owned(), shapes)) } else { Err(invalid("is not in the order min ≤ opt ≤ max")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles() {
        let (name, [min, opt, max]) = parse_profile("in:0=1x3:4x3:8x3").unwrap();
        assert_eq!((name.as_str(), min, opt, max), ("in:0", vec![1, 3], vec![4, 3], vec![8, 3]));
        assert!(parse_profile("a=4x3:1x3:8x3").unwrap_err().to_string().contains("min ≤ opt"));
        assert!(parse_profile("a=1x3").is_err());
    }
}
