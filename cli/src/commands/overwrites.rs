//! No command writes over what it reads: one check for all of them, by the identity of files and not by their names.

use std::path::{Path, PathBuf};

use crate::args::{Command, DataArgs, ModelArgs};
use trtcalib::{
    artifact::{same_file, will_write},
    quantize::Precision,
    session::Spec,
};

/// Refuses a command line whose outputs are among its inputs, before anything is read.
pub(super) fn check(command: &Command) -> anyhow::Result<()> {
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    let mut read = |files: &[&Option<PathBuf>]| inputs.extend(files.iter().copied().flatten().cloned());
    let data = |data: &DataArgs| [&data.data, &data.labels, &data.classes, &data.preprocessor].map(Clone::clone);
    let model = |args: &ModelArgs| [&args.positional, &args.model, &args.config.config].map(Clone::clone);
    match command {
        Command::Run(args) => {
            read(&model(&args.model).each_ref());
            read(&[&args.table, &args.scheme.plan]);
            read(&data(&args.data).each_ref());
            outputs.extend(args.summary.iter().chain(&args.part).cloned());
        }
        Command::Calibrate(args) => {
            read(&model(&args.model).each_ref());
            read(&data(&args.data).each_ref());
            outputs.extend([&args.histograms, &args.cache].into_iter().flatten().cloned());
            outputs.extend([args.output.clone(), args.output.with_file_name("histograms.calib")]);
        }
        Command::Merge(args) => {
            read(&[&args.model, &args.config.config]);
            read(&data(&args.data).each_ref());
            inputs.extend(args.parts.iter().cloned());
            outputs.extend(args.merged.iter().cloned().chain([args.output.clone()]));
        }
        Command::Quantize(args) => {
            read(&[&Some(args.model.path()), &args.table, &args.scheme.plan]);
            outputs.extend(args.output.clone());
        }
        Command::Build(args) => {
            read(&[&Some(args.model.path()), &args.config.config, &args.reference, &args.data, &args.labels]);
            outputs.push(args.output.clone());
        }
        Command::Compare(args) => {
            read(&[&args.model, &args.config.config]);
            read(&data(&args.data).each_ref());
            let specs = args.reference.iter().chain(&args.targets).chain(&args.specs);
            inputs.extend(specs.filter_map(|spec| file(spec)));
            outputs.extend([&args.save_reference, &args.save_target, &args.part].into_iter().flatten().cloned());
        }
        Command::Bench(args) => {
            read(&[&args.model, &args.config.config]);
            read(&data(&args.data).each_ref());
            inputs.extend(args.specs.iter().filter_map(|spec| file(spec)));
            outputs.extend([&args.export_times, &args.export_profile].into_iter().flatten().cloned());
        }
        Command::Bisect(args) => {
            read(&model(&args.model).each_ref());
            read(&[&args.table, &args.scheme.plan]);
            read(&data(&args.data).each_ref());
        }
        Command::Report(args) => {
            inputs.extend(
                args.runs
                    .iter()
                    .chain(&args.baseline)
                    .map(|run| if run.is_dir() { run.join("report.json") } else { run.clone() }),
            );
            inputs.extend(args.measured.measured.iter().cloned());
            let files = args.measured.files().into_iter().flatten();
            inputs.extend(files.filter_map(|given| Some(given.split_once('=')?.1.into())));
            outputs.extend(args.output.iter().chain(&args.model_explorer).cloned());
            args.output.as_deref().map_or(Ok(()), refuse_result)?;
        }
        Command::Inspect(args) if args.graph => {
            let further = [&args.against, &args.report, &args.profile, &args.layers].into_iter().flatten();
            inputs.extend([&args.file].into_iter().chain(further).cloned());
            outputs.push(args.output.clone());
        }
        Command::Inspect(_) | Command::Demo(_) | Command::Doctor | Command::Completions { .. } | Command::Man => {}
    }
    refuse(&inputs, &outputs)?;
    // What else is read shows when it is opened: files that a list names, labels beside pictures, weights beside a model.
    let weights = outputs.iter().map(|output| beside(output, ".data"));
    will_write(outputs.iter().cloned().chain(weights).chain(derived(command)));
    Ok(())
}

/// Whether a file has the name that a run gives to a model, or to its weights.
fn is_model(name: &str) -> bool {
    let words = name.strip_prefix("model.").and_then(|name| name.split_once(".onnx"));
    words.is_some_and(|(precision, _)| precision.parse::<Precision>().is_ok())
}

/// Files that a command writes under names that it makes up itself.
fn derived(command: &Command) -> Vec<PathBuf> {
    match command {
        Command::Run(args) => args.out.iter().flat_map(|out| there(out, is_model)).collect(),
        Command::Report(args) => {
            let of = |path: &PathBuf| {
                let stem = format!("{}.", path.file_stem().unwrap_or_default().to_string_lossy());
                there(path.parent().unwrap_or(Path::new("")), |name| name.starts_with(&stem))
            };
            args.model_explorer.iter().flat_map(of).collect()
        }
        _ => Vec::new(),
    }
}

/// A file that lies beside another, by its name.
fn beside(path: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", path.display()))
}

fn file(spec: &str) -> Option<PathBuf> {
    match Spec::parse(spec).ok()? {
        Spec::OnnxRuntime(path, _) => path,
        Spec::Saved(path) | Spec::Engine(path) => Some(path),
    }
}

/// Refuses a page or table in the place of a file that a run left beside its report; `report.html` is for `report` to make.
fn refuse_result(output: &Path) -> anyhow::Result<()> {
    let folder = output.parent().unwrap_or(Path::new(""));
    let taken = ["layers.csv", "bisect.html"].iter().any(|name| same_file(output, &folder.join(name)));
    anyhow::ensure!(
        !taken || !folder.join("report.json").exists(),
        "{} is a result of the run and would be written over; choose another name",
        output.display()
    );
    Ok(())
}

fn refuse(inputs: &[PathBuf], outputs: &[PathBuf]) -> anyhow::Result<()> {
    for (at, output) in outputs.iter().enumerate() {
        for input in inputs {
            // The weights of a large model lie beside it.
            let weights = [beside(input, ".data"), beside(input, "_data")];
            let written = [output.clone(), beside(output, ".data")];
            let is_onnx = input.extension().is_some_and(|ending| ending == "onnx");
            let read = std::iter::once(input).chain(weights.iter().filter(|_| is_onnx));
            if let Some(file) = read.into_iter().find(|read| written.iter().any(|written| same_file(read, written))) {
                anyhow::bail!("{} is an input and would be written over; choose another name for it", file.display());
            }
            anyhow::ensure!(
                !is_sample_of(input, output),
                "{} is one of the samples in {} and would be written over; choose another name for it",
                output.display(),
                input.display()
            );
        }
        anyhow::ensure!(
            !outputs[..at].iter().any(|other| spelled(other) == spelled(output) || same_file(other, output)),
            "{} is named for two results; give each a name of its own",
            output.display()
        );
    }
    Ok(())
}

/// Whether a file is in a folder of samples or labels, and of their kind.
fn is_sample_of(folder: &Path, file: &Path) -> bool {
    const ENDINGS: [&str; 11] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "npz", "npy", "txt"];
    let (Ok(folder), Ok(file)) = (folder.canonicalize(), file.canonicalize()) else { return false };
    let ending = file.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
    folder.is_dir() && file.starts_with(folder) && ENDINGS.contains(&ending.as_str())
}

/// The same text for every spelling of a path to a file that may not be there yet.
fn spelled(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    folder.canonicalize().map_or_else(|_| path.to_owned(), |folder| folder.join(path.file_name().unwrap_or_default()))
}

/// Existing files of a folder whose names say that a command would write them anew.
fn there(folder: &Path, is_result: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.filter(|entry| is_result(&entry.file_name().to_string_lossy()));
    files.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn no_output_takes_the_place_of_an_input() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in [
            "layers.csv",
            "report.html",
            "m.onnx",
            "m.onnx.data",
            "x.onnx",
            "x.plan",
            "t.json",
            "l.csv",
            "h.calib",
            "report.json",
        ] {
            std::fs::write(path(name), name).unwrap();
        }
        std::fs::create_dir_all(path("d/cat")).unwrap();
        for name in ["d/0.npz", "d/cat/1.PNG", "d/t.json"] {
            std::fs::write(path(name), name).unwrap();
        }
        std::os::unix::fs::symlink(path("m.onnx"), path("link")).unwrap();
        std::fs::hard_link(path("m.onnx"), path("hard")).unwrap();
        std::fs::write(path("c"), "").unwrap();
        std::os::unix::fs::symlink(path("c"), path("c_link")).unwrap();
        let check = |line: &str| {
            let words = line.split(' ').map(|word| match word.split_once('@') {
                Some((before, name)) => format!("{before}{}", path(name)),
                None => word.to_owned(),
            });
            let cli = Cli::try_parse_from(std::iter::once("calib".to_owned()).chain(words)).unwrap();
            check(&cli.command).map_err(|error| error.to_string())
        };
        for line in [
            "calibrate --model @m.onnx --random-data -o @m.onnx",
            "calibrate --model @m.onnx --random-data -o @link",
            "calibrate @m.onnx --random-data -o @m.onnx",
            "calibrate @m.onnx --config @t.json -o @t.json",
            "calibrate --model @m.onnx --random-data --cache @hard",
            "calibrate --model @m.onnx --data @l.csv --histograms @l.csv",
            "calibrate --model @m.onnx --data @d --histograms @d/0.npz",
            "compare --ref ort --target @x.onnx --data @d --save-reference @d/cat/1.PNG",
            "merge @h.calib -o @h.calib",
            "inspect @m.onnx --graph -o @link",
            "inspect @m.onnx --graph --against @x.onnx -o @x.onnx",
            "report @d --times int8=@t.json --machine here -o @t.json",
            "quantize --model @m.onnx --table @t.json -o @t.json",
            "quantize --model @m.onnx --table @t.json -o @m.onnx",
            "quantize --model @m.onnx --table @t.json -o @m.onnx.data",
            "build --model @m.onnx -o @m.onnx",
            "compare --ref ort --target @x.plan --model @m.onnx --random-data --save-target @x.plan",
            "compare --ref ort:@x --target @x.onnx --model @m.onnx --random-data --save-reference @x.onnx",
            "bench @x.onnx --export-times @x.onnx",
            "run --model @m.onnx --labels @l.csv --summary @l.csv",
            "report @report.json -o @report.json",
            "report @report.json -o @layers.csv",
            "report @d -o @./layers.csv",
        ] {
            assert!(check(line).unwrap_err().contains("would be written over"), "{line}");
        }
        for cache in ["@c", "@d/../c", "@c_link"] {
            let line = format!("calibrate --model @m.onnx --random-data --cache {cache} -o @c");
            assert!(check(&line).unwrap_err().contains("two results"), "{line}");
        }
        check("calibrate --model @m.onnx --random-data -o @new.json --cache @new.cache").unwrap();
        check("calibrate --model @m.onnx --data @d -o @d/t.json --histograms @d/new.npz").unwrap();
        check("quantize --model @m.onnx --table @t.json -o @new.onnx").unwrap();
        for output in ["@new.html", "@new.csv", "@report.html", "@d/layers.csv"] {
            check(&format!("report @report.json -o {output}")).unwrap();
        }
        check("inspect @m.onnx --graph -o @new.html").unwrap();
    }
}
