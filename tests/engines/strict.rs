//! The stand-ins themselves: each breach of the interfaces' rules ends with its sentence.

use std::{os::unix::process::ExitStatusExt, process::Command};

use super::{Engines, FLAVOUR, error_of, real_driver, stand_in, with_stand_in};

#[test]
fn every_breach_of_a_rule_ends_with_a_sentence() {
    if real_driver() {
        return;
    }
    let engines = Engines::build();
    let cases = [
        ("never-allocated", "nothing was ever allocated there"),
        ("too-small", "8 bytes do not fit, since the memory ends after 4"),
        ("freed", "that memory was freed"),
        ("freed-twice", "which was freed before"),
        ("wrong-side", "page-locked host memory where device memory is needed"),
        ("touched-by-host", "the program itself touched device memory"),
        ("read-too-early", "before it had waited for the stream"),
        ("freed-too-early", "while a stream that was not waited for works on it"),
        ("open-capture", "with a capture left open"),
        ("driver-in-host-function", "a host function called cuMemAlloc_v2"),
        ("no-context", "no CUDA context is current"),
        ("no-shape", "before every input had a shape"),
        ("shape-outside", "before every input had a shape"),
        ("values-outside", "shape input `to` holds 9, and the profile allows 1 to 8"),
        ("other-context", "before every input had a shape"),
        ("no-address", "tensor `input` has no address"),
        ("small-tensor", "needs 49152 bytes, and the memory there has 49148"),
        ("host-tensor", "lies in no device memory"),
        ("unknown-tensor", "`other`, which the engine has not"),
        ("runtime-gone", "on an engine whose runtime is gone"),
        ("engine-gone", "on a context whose engine is gone"),
        ("context-in-flight", "before its work was waited for"),
        ("not-stood-in-for", "VCudaEngine::isRefittable was called"),
    ];
    let misuse = |case: &str, orders: &str| {
        let mut command = Command::new(stand_in().join(FLAVOUR).join("misuse"));
        with_stand_in(&mut command, orders);
        let plan = if case == "values-outside" { "reshaped.plan" } else { "fp32.plan" };
        command.args([case, &engines.path(plan)]).output().unwrap()
    };
    let fine = misuse("nothing", "");
    assert_eq!(fine.status.code(), Some(0), "{}", error_of(&fine));
    // A shape input that holds what the profile does not.
    super::models::save_kinds(engines.folder.path());
    let build = ["build", "--model", &engines.path("reshaped.onnx"), "-o", &engines.path("reshaped.plan")];
    super::succeeds(&[&build[..], &["--profile", "to=1x2:8x4:8x4"]].concat());
    let unknown = ("nothing", "orders `fualt=relu`, which is unknown");
    for (case, sentence) in cases.into_iter().chain([unknown]) {
        let output = misuse(case, if case == "nothing" { "slow=0;fualt=relu" } else { "" });
        let error = error_of(&output);
        assert_eq!(output.status.signal(), Some(6), "{case}: {error}");
        assert!(error.contains("stand-in: ") && error.contains(sentence), "{case}: {error}");
    }
}
