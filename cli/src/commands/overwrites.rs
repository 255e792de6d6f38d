//! No command writes over what it reads: one check for all of them, by the identity of files and not by their names.
//!
//! What is known of a command line is checked here, before anything is read: what it names, what these files name in turn,
//! and what is written beside what it names. Whatever else a command reads, it does not write over either: see
//! [`trtcalib::artifact::keep_inputs`].

use std::path::{Path, PathBuf};

use super::{report::report_of, settings::told};
use crate::args::{Command, ConfigArgs, DataArgs, ModelArgs};
use trtcalib::{
    artifact::{KnownFiles, check_stays, same_file, will_write},
    backend::tensorrt::sidecar_path,
    config::RunConfig,
    report::OVERLAYS,
    session::{Compared, Inputs, Target, is_result},
};

/// What a command line says of files.
#[derive(Default)]
struct Files {
    read: Inputs,
    written: Vec<PathBuf>,
}

/// Refuses a command line whose outputs are among its inputs, before anything is read.
pub(super) fn check(command: &Command) -> anyhow::Result<()> {
    let files = Files::of(command)?;
    files.check()?;
    // What else is read shows when it is opened.
    let weights = files.written.iter().map(|output| beside(output, ".data"));
    will_write(files.written.iter().cloned().chain(weights));
    Ok(())
}

impl Files {
    fn of(command: &Command) -> anyhow::Result<Self> {
        let mut files = Self::default();
        match command {
            Command::Run(args) => {
                let config = files.read_model(&args.model, &args.data);
                files.read([&args.table, &args.scheme.plan]);
                files.write(args.summary.iter().chain(&args.part));
                if let Some(out) = args.out.clone().or(config.out) {
                    files.refuse_results_in(&out)?;
                }
            }
            Command::Calibrate(args) => {
                files.read_model(&args.model, &args.data);
                files.read([&args.scheme.plan]);
                let histograms = args.output.with_file_name("histograms.calib");
                files.write(args.histograms.iter().chain(&args.cache).chain([&args.output, &histograms]));
            }
            Command::Merge(args) => {
                files.read_data(&args.config, &args.data);
                files.read.models.extend(args.model.clone());
                files.read([&args.scheme.plan]);
                files.read.others.extend(args.parts.iter().cloned());
                // Parts of a comparison make a report, not a table.
                if !args.parts.iter().any(|part| Compared::is_at(part)) {
                    files.write(args.merged.iter().chain([&args.output]));
                }
            }
            Command::Quantize(args) => {
                files.read.models.push(args.model.path());
                files.read([&args.table, &args.scheme.plan]);
                files.write(&args.output);
            }
            Command::Build(args) => {
                files.read_config(&args.config);
                files.read.models.extend(args.reference.iter().cloned().chain([args.model.path()]));
                files.read.data.extend(args.data.clone());
                files.read.labels.extend(args.labels.clone());
                files.write([&args.output, &sidecar_path(&args.output)]);
            }
            Command::Compare(args) => {
                files.read_data(&args.config, &args.data);
                files.read.models.extend(args.model.clone());
                files.read_specs(args.reference.iter().chain(&args.targets).chain(&args.specs));
                files.write(args.save_reference.iter().chain(&args.save_target).chain(&args.part));
            }
            Command::Bench(args) => {
                files.read_data(&args.config, &args.data);
                files.read.models.extend(args.model.clone());
                files.read_specs(&args.specs);
                files.write(args.export_times.iter().chain(&args.export_profile));
            }
            Command::Bisect(args) => {
                let config = files.read_model(&args.model, &args.data);
                files.read([&args.table, &args.scheme.plan, &config.plan]);
                files.read_specs(&args.target);
                files.write(args.out.clone().or(config.out).map(|out| out.join("plan.json")).iter());
            }
            Command::Report(args) => {
                let runs = args.runs.iter().chain(&args.baseline);
                files.read.others.extend(runs.map(|run| report_of(run)));
                files.read.others.extend(args.measured.measured.iter().chain(&args.measured.inputs).cloned());
                let given = args.measured.files().into_iter().flatten();
                files.read.others.extend(given.filter_map(|given| Some(given.split_once('=')?.1.into())));
                files.write(args.output.iter().chain(&args.model_explorer));
                files.written.extend(args.model_explorer.iter().flat_map(|path| overlays(path)));
                if let (Some(output), Some(path)) = (&args.output, &args.model_explorer)
                    && spelled(folder_of(output)) == spelled(folder_of(path))
                    && is_overlay(path, &name(output).to_string_lossy())
                {
                    two_results(output)?;
                }
                // Reports are rendered again under the name that a run gave to its own.
                if let Some(output) = args.output.as_deref().filter(|output| !output.ends_with("report.html")) {
                    refuse_result(output)?;
                }
            }
            Command::Inspect(args) if args.graph => {
                files.read.models.push(args.file.clone());
                files.read.models.extend(args.against.clone());
                files.read([&args.profile, &args.layers]);
                files.read.others.extend(args.report.iter().map(|run| report_of(run)));
                files.read.others.push(args.file.with_file_name("report.json"));
                files.write([&args.output]);
                refuse_result(&args.output)?;
            }
            Command::Inspect(_) | Command::Demo(_) | Command::Doctor | Command::Completions { .. } | Command::Man => {}
        }
        Ok(files)
    }

    fn read<'a>(&mut self, files: impl IntoIterator<Item = &'a Option<PathBuf>>) {
        self.read.others.extend(files.into_iter().flatten().cloned());
    }

    fn write<'a>(&mut self, files: impl IntoIterator<Item = &'a PathBuf>) {
        self.written.extend(files.into_iter().cloned());
    }

    fn read_config(&mut self, args: &ConfigArgs) -> RunConfig {
        self.read([&args.config]);
        let config = told(args.config.as_deref());
        self.read.add(&config);
        config
    }

    fn read_data(&mut self, config: &ConfigArgs, args: &DataArgs) -> RunConfig {
        self.read.data.extend(args.data.clone());
        self.read.labels.extend(args.labels.clone());
        self.read([&args.classes, &args.preprocessor]);
        self.read_config(config)
    }

    fn read_model(&mut self, args: &ModelArgs, data: &DataArgs) -> RunConfig {
        self.read.models.extend(args.positional.iter().chain(&args.model).cloned());
        self.read_data(&args.config, data)
    }

    fn read_specs<'a>(&mut self, specs: impl IntoIterator<Item = &'a String>) {
        for spec in specs.into_iter().filter_map(|spec| Target::parse(spec).ok()) {
            match spec {
                Target::Model(model, _) => self.read.models.extend(model),
                Target::Saved(file) => self.read.others.push(file),
                Target::Engine(engine) => self.read.add_engine(&engine),
            }
        }
    }

    /// Refuses to give a file the name of another that goes into the folder of a run.
    fn refuse_results_in(&self, out: &Path) -> anyhow::Result<()> {
        let in_it =
            |output: &&PathBuf| is_named_as_result(output) && spelled(output) == spelled(&out.join(name(output)));
        match self.written.iter().find(in_it) {
            Some(output) => two_results(output),
            None => Ok(()),
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        for (at, output) in self.written.iter().enumerate() {
            let is_it = |other: &PathBuf| spelled(other) == spelled(output) || same_file(other, output);
            if self.written[..at].iter().any(is_it) {
                return two_results(output);
            }
            for folder in self.read.given() {
                if is_sample_of(folder, output) {
                    keep(output);
                    anyhow::bail!(
                        "{} is one of the samples in {} and would be written over; choose another name for it",
                        output.display(),
                        folder.display()
                    );
                }
            }
        }
        let written = self.written.iter().flat_map(|output| [output.clone(), beside(output, ".data")]);
        let written: KnownFiles = written.collect();
        let mut lost = None;
        if !written.is_empty() {
            self.read.each(&mut |input| {
                if lost.is_none() && written.name_of(input).is_some() {
                    lost = Some(input.to_owned());
                }
            });
        }
        if let Some(input) = lost {
            keep(&input);
            anyhow::bail!("{} is an input and would be written over; choose another name for it", input.display());
        }
        Ok(())
    }
}

/// What is refused is not written over by what says so.
fn keep(input: &Path) {
    // No result is named yet, so that this only remembers it.
    let _ = check_stays(input);
}

fn two_results(output: &Path) -> anyhow::Result<()> {
    anyhow::bail!("{} is named for two results; give each a name of its own", output.display())
}

fn name(path: &Path) -> &std::ffi::OsStr {
    path.file_name().unwrap_or_default()
}

fn is_named_as_result(path: &Path) -> bool {
    is_result(&name(path).to_string_lossy())
}

/// Overlays that are there already: each has a name of its own before the ending.
fn overlays(path: &Path) -> Vec<PathBuf> {
    there(folder_of(path), |name| is_overlay(path, name))
}

fn is_overlay(path: &Path, name: &str) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let kind = name.strip_prefix(&*stem).and_then(|rest| rest.strip_prefix('.')?.split('.').next());
    kind.is_some_and(|kind| OVERLAYS.iter().any(|overlay| kind.starts_with(overlay)))
}

/// A file that lies beside another, by its name.
fn beside(path: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", path.display()))
}

/// Refuses a page or table in the place of a file that a run left beside its report.
fn refuse_result(output: &Path) -> anyhow::Result<()> {
    let folder = folder_of(output);
    let is_of_run = |file: PathBuf| is_named_as_result(&file) && same_file(&file, output);
    if folder.join("report.json").exists() && there(folder, is_result).into_iter().any(is_of_run) {
        keep(output);
        anyhow::bail!("{} is a result of the run and would be written over; choose another name", output.display());
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
    folder_of(path).canonicalize().map_or_else(|_| path.to_owned(), |folder| folder.join(name(path)))
}

/// The folder that a file lies in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
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
            "e.json",
            "mask.png",
            "plan.json",
            "preprocessor_config.json",
            "o.error.json",
        ] {
            std::fs::write(path(name), name).unwrap();
        }
        std::fs::create_dir_all(path("d/cat")).unwrap();
        for name in ["d/0.npz", "d/cat/1.PNG", "d/t.json"] {
            std::fs::write(path(name), name).unwrap();
        }
        for (name, text) in [
            ("c.toml", "model = \"m.onnx\"\ndata = \"list.txt\"\n"),
            ("list.txt", "d/cat/1.PNG\n"),
            ("data.yaml", "path: .\nval: d/cat\nnames: [cat]\n"),
            ("masks.csv", "file,mask\n1.PNG,mask.png\n"),
        ] {
            std::fs::write(path(name), text).unwrap();
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
            "build --model @m.onnx --labels @e.json -o @e",
            "build --model @e.json -o @e",
            "build --model @x.onnx --config @c.toml -o @m.onnx",
            "build --model @x.onnx --config @c.toml -o @d/cat/1.PNG",
            "build --model @x.onnx --data @list.txt -o @d/cat/1.PNG",
            "run --model @m.onnx --data @list.txt --summary @d/cat/1.PNG",
            "run --model @m.onnx --data @data.yaml --summary @d/cat/1.PNG",
            "run --config @c.toml --summary @d/cat/1.PNG",
            "run --model @m.onnx --data @d --labels @masks.csv --summary @mask.png",
            "run --model @m.onnx --data @d --summary @preprocessor_config.json",
            "compare ort @x.onnx --model @m.onnx --data @d --labels @masks.csv --save-reference @mask.png",
            "bisect @m.onnx --data @d --plan @plan.json --out @",
            "inspect @m.onnx --graph -o @report.json",
            "inspect @m.onnx --graph -o @layers.csv",
            "report @o.error.json --model-explorer @o.json -o @new.html",
        ] {
            assert!(check(line).unwrap_err().contains("would be written over"), "{line}");
        }
        for cache in ["@c", "@d/../c", "@c_link"] {
            let line = format!("calibrate --model @m.onnx --random-data --cache {cache} -o @c");
            assert!(check(&line).unwrap_err().contains("two results"), "{line}");
        }
        let error = check("run --model @m.onnx --data @d --out @ --summary @report.junit.xml").unwrap_err();
        assert!(error.contains("two results"), "{error}");
        let error = check("report @report.json -o @o.error.html --model-explorer @o.html").unwrap_err();
        assert!(error.contains("two results"), "{error}");
        // Parts of a comparison make no table.
        std::fs::write(path("e.part"), "{").unwrap();
        check("merge @e.part -o @e.part").unwrap();
        check("calibrate --model @m.onnx --random-data -o @new.json --cache @new.cache").unwrap();
        check("calibrate --model @m.onnx --data @d -o @d/t.json --histograms @d/new.npz").unwrap();
        check("quantize --model @m.onnx --table @t.json -o @new.onnx").unwrap();
        for output in ["@new.html", "@new.csv", "@report.html", "@d/layers.csv"] {
            check(&format!("report @report.json -o {output}")).unwrap();
        }
        check("inspect @m.onnx --graph -o @new.html").unwrap();
    }
}
