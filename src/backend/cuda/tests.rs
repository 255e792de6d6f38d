//! What can be tested without a GPU; `tests/gpu` has the rest.

use calib_test_support::Need;

use super::*;

#[test]
fn a_machine_without_a_gpu_gets_an_error_that_says_what_to_do() {
    let Err(error) = Device::open(0) else {
        return Need::NoGpu.skip("there is a GPU");
    };
    let hints = ["install", "check", "unset"];
    assert!(hints.iter().any(|hint| error.to_string().contains(hint)), "{error}");
    assert_eq!(device_count().unwrap_err(), error);
}

#[test]
fn errors_name_versions_and_indices() {
    let old = CudaError::OldDriver { found: 12_080 }.to_string();
    assert!(old.contains("offers CUDA 12.8, and 13.0 is needed"), "{old}");
    let missing = CudaError::NoSuchDevice { index: 3, count: 2 }.to_string();
    assert!(missing.contains("no GPU 3: 2 can be seen"), "{missing}");
}

#[test]
fn every_kernel_compiles_for_every_architecture() {
    if Need::Nvrtc.or_skip(load_compiler()).is_none() {
        return;
    }
    for source in [MAGNITUDES, PAIRS] {
        for architecture in [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)] {
            let ptx = compile(source, architecture).unwrap();
            let ptx = String::from_utf8_lossy(ptx.as_bytes().unwrap()).into_owned();
            let target = format!(".target sm_{}{}", architecture.0, architecture.1);
            assert!(ptx.contains(&target) && ptx.contains(".entry"), "{}: {target}", source.name);
        }
    }
    let error = compile(Source { name: "bad.cu", text: "int x = y;" }, (9, 0)).unwrap_err().to_string();
    assert!(error.contains("`bad.cu` do not compile") && error.contains("\"y\""), "{error}");
}
