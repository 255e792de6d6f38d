//! The scripts of a `deploy/` folder, which build and measure every precision where TensorRT is and pack what they found.
//!
//! `deploy.sh` needs a POSIX shell, `sha256sum`, `tar` and NVIDIA's `trtexec` of TensorRT 8.6 to 11; `deploy_calib.sh` needs
//! `calib` instead of `trtexec`. A precision that fails does not keep the others from being measured.

use super::manifest::{DeployedModel, GivenInput, Manifest};
use crate::report::shell_word;

/// What both scripts begin with: the machine and the models, in its own words.
const HEAD: &str = r#"set -u
cd "$(dirname "$0")" || exit 2
rm -rf measured && mkdir -p engines measured || exit 2
{
  echo "date: $(date -u +%Y-%m-%dT%H:%M:%SZ)"
  echo "os: $(uname -s -r -m)"
  echo "host: $(uname -n)"
  if [ -r /proc/device-tree/model ]; then echo "board: $(tr -d '\000' < /proc/device-tree/model)"; fi
  if command -v nvidia-smi > /dev/null; then
    echo "gpu: $(nvidia-smi --query-gpu=name --format=csv,noheader 2> /dev/null | head -n 1)"
    echo "driver: $(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2> /dev/null | head -n 1)"
  fi
} > measured/machine.txt
find models -type f -exec sha256sum {} + > measured/sha256.txt || exit 2
failed=""
# Runs a command and keeps what it says: step PRECISION WHAT COMMAND...
step() {
  precision=$1 what=$2; shift 2
  echo "$precision: $what"
  if ! "$@" > "measured/$precision.$what.log" 2>&1; then
    echo "$precision: $what failed; the last lines of measured/$precision.$what.log:" >&2
    tail -n 5 "measured/$precision.$what.log" >&2
    failed="$failed $precision($what)"
    return 1
  fi
}
"#;

/// What both end with.
const TAIL: &str = r#"
find measured -type f -exec sha256sum {} + > files.txt && mv files.txt measured/ || exit 2
if [ -d expected ]; then with=expected; else with=""; fi
tar -cf deploy.tar deploy.json measured $with || exit 2
echo "packed $(pwd)/deploy.tar; take it to where the run is: calib report RUN --measured deploy.tar"
if [ -n "$failed" ]; then echo "failed:$failed" >&2; exit 1; fi
"#;

/// Finds trtexec, and asks its help for what this version knows.
const TRTEXEC: &str = r#"
trtexec=${TRTEXEC:-trtexec}
for place in /usr/src/tensorrt/bin/trtexec /usr/local/tensorrt/bin/trtexec; do
  if ! command -v "$trtexec" > /dev/null && [ -x "$place" ]; then trtexec=$place; fi
done
if ! command -v "$trtexec" > /dev/null; then
  echo "trtexec was not found: it comes with TensorRT; name it with TRTEXEC=/path/to/trtexec $0" >&2
  exit 2
fi
help=$("$trtexec" --help 2>&1)
knows() { case $help in *"$1"*) true ;; *) false ;; esac }
# The models carry their types: TensorRT 9 and newer are told to keep to them, older ones are given leave by flags.
typed() { if knows --stronglyTyped; then echo --stronglyTyped; elif [ -n "$1" ] && knows "$1"; then echo "$1"; fi; }
if knows --skipInference; then only_build=--skipInference; else only_build=--buildOnly; fi
"#;

/// `deploy.sh`.
pub fn trtexec(manifest: &Manifest) -> String {
    let mut text = format!("#!/bin/sh\n{}# Builds and measures every precision with trtexec.\n", written_by(manifest));
    text += HEAD;
    text += TRTEXEC;
    manifest.models.iter().for_each(|model| text += &trtexec_model(manifest, model));
    text + TAIL
}

fn trtexec_model(manifest: &Manifest, model: &DeployedModel) -> String {
    let DeployedModel { precision, file, .. } = model;
    let allow = match precision.as_str() {
        "int8" => "--int8",
        "fp16" => "--fp16",
        "bf16" => "--bf16",
        "fp8" => "--fp8",
        _ => "",
    };
    let shapes = |which: usize| {
        let shapes: Vec<_> = model.dynamic.iter().map(|(name, extents)| extent(name, &extents[which])).collect();
        shapes.join(",")
    };
    let flag = |name: &str, value: String| {
        if value.is_empty() { String::new() } else { format!(" {}", shell_word(&format!("--{name}={value}"))) }
    };
    let profile =
        [("minShapes", 0), ("optShapes", 0), ("maxShapes", 1)].map(|(name, which)| flag(name, shapes(which))).concat();
    let mut text = format!(
        "\n# {precision}\n\
         if step {precision} build \"$trtexec\" --onnx={file} --saveEngine=engines/{precision}.plan $(typed \"{allow}\") \\\n    \
         $only_build --noTF32 --profilingVerbosity=detailed --exportLayerInfo=measured/{precision}.layers.json{profile}; then\n  \
         step {precision} times \"$trtexec\" --loadEngine=engines/{precision}.plan{timed} --useSpinWait --warmUp=500 \\\n    \
         --duration=5 --separateProfileRun --exportTimes=measured/{precision}.times.json --exportProfile=measured/{precision}.profile.json\n",
        timed = flag("shapes", shapes(0)),
    );
    for call in 0..if manifest.inputs.is_empty() { 0 } else { manifest.calls } {
        let load: Vec<_> =
            manifest.inputs.iter().map(|input| format!("{}:{}", quoted(&input.name), input.files[call])).collect();
        text += &format!(
            "  step {precision} {outputs} \"$trtexec\" --loadEngine=engines/{precision}.plan{given} --warmUp=0 --duration=0 --iterations=1 \\\n    \
             {load} --exportOutput=measured/{precision}.{outputs}.json\n",
            outputs = outputs_of(call),
            given = flag("shapes", shapes(1)),
            load = shell_word(&format!("--loadInputs={}", load.join(","))),
        );
    }
    text + "fi\n"
}

/// `deploy_calib.sh`.
pub fn calib(manifest: &Manifest) -> String {
    let mut text = format!("#!/bin/sh\n{}# Builds and measures every precision with calib.\n", written_by(manifest));
    text += HEAD;
    text += "\ncalib=${CALIB:-calib}\n\
             if ! command -v \"$calib\" > /dev/null; then echo \"calib was not found; name it with CALIB=/path/to/calib $0\" >&2; exit 2; fi\n";
    manifest.models.iter().for_each(|model| text += &calib_model(manifest, model));
    text + TAIL
}

fn calib_model(manifest: &Manifest, model: &DeployedModel) -> String {
    let DeployedModel { precision, file, batch, .. } = model;
    let profile = |(name, [small, large]): (&String, &[Vec<usize>; 2])| {
        let value = format!("{name}={}:{}:{}", by(small), by(small), by(large));
        format!(" --profile {}", shell_word(&value))
    };
    let profiles: String = model.dynamic.iter().map(profile).collect();
    let mut text = format!(
        "\n# {precision}\n\
         if step {precision} build \"$calib\" build {file} --config none -o engines/{precision}.plan{profiles}; then\n  \
         # Not every builder lists layers; the engine's inspector does.\n  \
         \"$calib\" inspect --json engines/{precision}.plan > measured/{precision}.layers.json 2> measured/{precision}.layers.log \\\n    \
         || cp engines/{precision}.plan.json measured/{precision}.layers.json\n  \
         step {precision} times \"$calib\" bench trt:engines/{precision}.plan --config none --data inputs.npz --batch {batch} \\\n    \
         --export-times measured/{precision}.times.json --export-profile measured/{precision}.profile.json\n"
    );
    if let Some(expected) = &model.expected {
        text += &format!(
            "  step {precision} outputs \"$calib\" compare --ref saved:{expected} --target trt:engines/{precision}.plan --config none \\\n    \
             --data inputs.npz --batch {} --calibration-samples --save-target measured/{precision}.outputs.npz\n",
            manifest.samples / manifest.calls.max(1)
        );
    }
    text + "fi\n"
}

fn written_by(manifest: &Manifest) -> String {
    let (tool, hash) = (&manifest.tool, manifest.model_hash.short());
    format!(
        "# Written by {} {} for the model {hash}; figures that come back are tied to it by hash.\n",
        tool.name, tool.version
    )
}

/// `input:1x3x224x224`.
fn extent(name: &str, shape: &[usize]) -> String {
    let extents = if shape.is_empty() { "scalar".to_owned() } else { by(shape) };
    format!("{}:{extents}", quoted(name))
}

/// What the outputs of a call are called, from 0.
pub(super) fn outputs_of(call: usize) -> String {
    if call == 0 { "outputs".to_owned() } else { format!("outputs.{}", call + 1) }
}

fn by(shape: &[usize]) -> String {
    shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x")
}

/// trtexec takes the first colon of a name for the end of it, unless the name is quoted.
fn quoted(name: &str) -> String {
    if name.contains(':') { format!("'{name}'") } else { name.to_owned() }
}

impl GivenInput {
    /// Name of the file of an input's values in a call: names of tensors may hold anything.
    pub(super) fn file_name(call: usize, index: usize) -> String {
        format!("inputs/{call}.{index}.bin")
    }
}
