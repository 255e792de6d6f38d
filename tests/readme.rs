//! The commands in the README work as written, and those in `docs/` can be typed.

use std::{fs, path::PathBuf};

use calib_cli::args::Cli;
use calib_test_support::{Need, calib, root};
use clap::Parser;
use trtcalib::backend::tensorrt::{Flavour, compiled_flavour};

/// As many images as the commands of the README need.
const IMAGES: usize = 48;

/// Commands in `sh` blocks and in inline code, in the order of the page; those that are cut short (`...`) are left out.
fn commands(page: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut block = None;
    for line in page.lines() {
        if let Some(language) = line.strip_prefix("```") {
            block = if block.is_none() { Some(language) } else { None };
        } else if block == Some("sh") {
            found.push(line);
        } else if block.is_none() {
            found.extend(line.split('`').skip(1).step_by(2).filter(|code| code.split(' ').count() > 2));
        }
    }
    let complete = found.into_iter().filter(|code| code.starts_with("calib ") && !code.contains("..."));
    complete.map(|code| code.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect()).collect()
}

#[test]
fn every_command_in_the_pages_can_be_typed() {
    let mut pages: Vec<PathBuf> =
        fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.retain(|path| path.extension().is_some_and(|ending| ending == "md"));
    pages.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name)));
    for page in pages {
        for command in commands(&fs::read_to_string(&page).unwrap()) {
            let placeholder = command.iter().any(|word| word == "COMMAND");
            // `calib calibrate --method entropy` names an option, not a whole command.
            let parsed = Cli::try_parse_from(&command);
            let wrong = parsed.err().filter(|error| {
                use clap::error::ErrorKind::{DisplayHelp, DisplayVersion, MissingRequiredArgument};
                !matches!(error.kind(), DisplayHelp | DisplayVersion | MissingRequiredArgument)
            });
            assert!(wrong.is_none() || placeholder, "{}: {}\n{}", page.display(), command.join(" "), wrong.unwrap());
        }
    }
}

#[test]
fn the_commands_of_the_readme_work() {
    if calib().is_none() {
        return;
    }
    let page = fs::read_to_string(root().join("README.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let data = root().join("calib_data");
    fs::copy(data.join("demo.onnx"), here.join("model.onnx")).unwrap();
    fs::copy(data.join("labels.csv"), here.join("labels.csv")).unwrap();
    fs::create_dir(here.join("images")).unwrap();
    let mut images: Vec<PathBuf> = fs::read_dir(data.join("images")).unwrap().map(|e| e.unwrap().path()).collect();
    images.sort();
    for image in images.iter().step_by(images.len() / IMAGES) {
        fs::copy(image, here.join("images").join(image.file_name().unwrap())).unwrap();
    }
    let configuration = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    fs::write(here.join("calib.toml"), configuration).unwrap();

    let mut ran = 0;
    for command in commands(&page) {
        // Only TensorRT-RTX builds for a GPU that is not there.
        let buildable = compiled_flavour() == Some(Flavour::TensorRtRtx);
        if command[1] == "build" && !buildable {
            Need::TensorRt.skip(command.join(" "));
            continue;
        }
        if command.contains(&"COMMAND".to_owned()) {
            continue;
        }
        let output = calib().unwrap().args(&command[1..]).current_dir(here).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        // The model that comes with the repository does not pass the gates that a user would set in calib.toml.
        // A later run that is worse than the first in something is what comparing with a baseline tells by its status.
        let judges =
            ["run", "compare", "merge"].contains(&&*command[1]) || command.iter().any(|word| word == "--baseline");
        let done = output.status.success() || (judges && output.status.code() == Some(1));
        assert!(done, "{}: {}\n{message}", command.join(" "), output.status);
        // The first run is the earlier one of later comparisons.
        if command[1] == "run" && !here.join("old").exists() {
            fs::create_dir(here.join("old")).unwrap();
            fs::copy(here.join("out/report.json"), here.join("old/report.json")).unwrap();
        }
        ran += 1;
    }
    assert!(ran > 10, "only {ran} commands were found in the README");
    for file in ["out/report.html", "out/model.int8.onnx", "all.html", "review.html", "calibration.cache"] {
        assert!(here.join(file).is_file(), "{file}");
    }
}
