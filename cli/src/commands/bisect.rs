//! `calib bisect`: which layers diverge and why, the first of them, and the smallest set worth saving.

pub(super) mod text;

use super::{
    ExitStatus, Printer, host,
    settings::{Apply, apply_table, model_configuration, one_size, places},
};
use crate::args::{BisectArgs, GlobalArgs};
use trtcalib::{
    config::RunConfig,
    session::{BisectOptions, BisectOutcome, Session, Target, describe, fill_from_sidecar, set_findings_aside},
};

/// Does the job. What an earlier bisection found is not what one finds that fails.
pub(super) fn bisect(printer: &Printer, global: &GlobalArgs, args: &BisectArgs) -> anyhow::Result<ExitStatus> {
    let config = configuration(printer, args).inspect_err(|_| failed(printer, args))?;
    look(printer, global, args, config.clone()).inspect_err(|_| set_aside(printer, &config))
}

/// What follows where a bisection does not begin.
pub(super) fn failed(printer: &Printer, args: &BisectArgs) {
    let places = places(args.model.config.config.as_deref());
    let model = args.model.positional.clone().or_else(|| args.model.model.clone()).or(places.model);
    set_aside(printer, &RunConfig { model, out: args.out.clone().or(places.out), ..RunConfig::default() });
}

fn set_aside(printer: &Printer, config: &RunConfig) {
    if let Err(error) = set_findings_aside(config, true) {
        printer.warn(&format!("what an earlier bisection found is still there: {}", describe(&error)));
    }
}

fn look(printer: &Printer, global: &GlobalArgs, args: &BisectArgs, config: RunConfig) -> anyhow::Result<ExitStatus> {
    let options = BisectOptions {
        find: args.find.map(Into::into),
        precision: args.precision,
        lift: args.lift,
        strategy: args.strategy.into(),
        group_by: args.group_by.clone(),
        cost: args.cost.into(),
        max_trials: args.max_trials,
        samples: args.samples,
        target: args.target.clone(),
        probe_tensors: args.probe_tensors,
        threshold_db: args.threshold_db,
        exhaustive: args.exhaustive,
    };
    options.check(&config)?;
    let session = Session::open(config, global.ort_library.as_deref(), &host(printer))?;
    let BisectOutcome { findings, out, passed } = session.bisect(&options)?;
    printer.outcome(&findings, || text::describe(&findings))?;
    printer.note(&format!("wrote {} in {:.1} s", out.join("bisect.html").display(), findings.seconds));
    Ok(if passed { ExitStatus::Passed } else { ExitStatus::GateFailed })
}

fn configuration(printer: &Printer, args: &BisectArgs) -> anyhow::Result<RunConfig> {
    let mut config = model_configuration(printer, &args.model)?;
    one_size(&args.data, &args.runtime)?;
    args.data.apply(&mut config)?;
    args.method.apply(&mut config)?;
    args.scheme.apply(&mut config)?;
    args.runtime.apply(&mut config)?;
    args.outputs.apply(&mut config)?;
    apply_table(printer, args.table.as_ref(), &args.method, &mut config);
    if let Some(target) = args.target.as_deref().map(Target::parse).transpose()? {
        fill_from_sidecar(&mut config, &target)?;
    }
    config.out = args.out.clone().or(config.out);
    config.tensorrt = args.tensorrt.unwrap_or(config.tensorrt);
    if !args.gate.is_empty() {
        config.gate.clone_from(&args.gate);
    }
    Ok(config)
}
