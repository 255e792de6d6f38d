//! `calib bisect`: which layers diverge and why, the first of them, and the smallest set worth saving.

pub(super) mod text;

use super::{
    ExitStatus, Printer, host,
    settings::{Apply, model_configuration, one_size},
};
use crate::args::{BisectArgs, GlobalArgs};
use trtcalib::{
    config::RunConfig,
    session::{BisectOptions, BisectOutcome, Session, Spec, fill_from_sidecar, set_findings_aside},
};

/// Does the job.
pub(super) fn bisect(printer: &Printer, global: &GlobalArgs, args: &BisectArgs) -> anyhow::Result<ExitStatus> {
    let config = configuration(printer, args)?;
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
    let opened = options
        .check(&config)
        .and_then(|_| Session::open(config.clone(), global.ort_library.as_deref(), &host(printer)));
    // What an earlier bisection found is not what this one finds.
    let session = match opened {
        Err(error) => {
            set_findings_aside(&config)?;
            return Err(error.into());
        }
        Ok(session) => session,
    };
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
    config.table = args.table.clone().or(config.table);
    if let Some(target) = args.target.as_deref().map(Spec::parse).transpose()? {
        fill_from_sidecar(&mut config, &target)?;
    }
    config.out = args.out.clone().or(config.out);
    config.tensorrt = args.tensorrt.unwrap_or(config.tensorrt);
    if !args.gate.is_empty() {
        config.gate.clone_from(&args.gate);
    }
    Ok(config)
}
