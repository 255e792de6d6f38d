//! Engine files, checked before any library sees them: TensorRT trusts the content behind a good header.
//!
//! A plan of TensorRT-RTX starts with `vtrt`; at byte 16 stands the length of the file (`u64`), at byte 24 the version
//! (three bytes). A plan of TensorRT starts with `ftrt`. Where `calib build` left a sidecar, the hash decides.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{EngineSidecar, Flavour, TensorRtError, sidecar_path};
use crate::artifact::{ContentHash, read_regular};

/// Bytes of the header that are looked at; TensorRT-RTX reads 64.
const HEADER: usize = 64;

/// Why an engine cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum EngineFault {
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(std::io::Error),
    /// The file has no bytes.
    #[error("the file is empty; build it again with `calib build`")]
    Empty,
    /// It is not an engine.
    #[error("the file starts with {start}, so it is not a TensorRT engine; `calib build` makes one from an ONNX model")]
    Foreign {
        /// The first bytes.
        start: String,
    },
    /// Another program put something in front of the engine, as many bytes.
    #[error(
        "the engine begins behind {0} bytes of metadata, which Ultralytics' export writes; take them off with \
         `tail -c +{first} FILE > engine.plan`", first = .0 + 1
    )]
    Behind(usize),
    /// The file is shorter or longer than its header says.
    #[error(
        "the file is truncated or damaged: it has {found} bytes, and its header announces {announced}; copy or build it again"
    )]
    Truncated {
        /// Bytes in the file.
        found: u64,
        /// Bytes that the header announces.
        announced: u64,
    },
    /// The file is not the one its sidecar describes.
    #[error("the file is not the engine that {} describes (its hash is another); build it again", .0.display())]
    Changed(PathBuf),
    /// The engine is for the other flavour.
    #[error("it is an engine of {engine}, and this program was built for {program}; use `make build TENSORRT={make}`{older}", make = .engine.make_name(), older = older(*.engine))]
    Flavour {
        /// Flavour of the engine.
        engine: Flavour,
        /// Flavour of this program.
        program: Flavour,
    },
    /// The library has another version.
    #[error(
        "it was built by {flavour} {engine}, and the library here is {library}; build it again with this library, or use that one"
    )]
    Version {
        /// Flavour of both.
        flavour: Flavour,
        /// Version that built the engine.
        engine: String,
        /// Version that is to run it.
        library: String,
    },
    /// The GPU cannot run it.
    #[error("{0}")]
    Gpu(GpuMismatch),
    /// The driver is older than the engine needs.
    #[error("the NVIDIA driver is older than the engine needs; update the driver, or build the engine on this machine")]
    OldDriver,
    /// The weights do not fit.
    #[error(
        "the GPU has too little free memory for the engine's weights; end other programs on it (`nvidia-smi` lists them)"
    )]
    Memory,
    /// Anything else that the library said.
    #[error("{0}")]
    Refused(String),
}

/// The way to engines that no flavour loads; their plans begin as those of TensorRT 11 do.
pub(super) fn older(engine: Flavour) -> &'static str {
    match engine {
        Flavour::TensorRtRtx => "",
        Flavour::TensorRt => {
            "; engines of TensorRT 8.6 to 10 are run and timed by their own trtexec, as `deploy/deploy.sh` of `calib run` does: \
             compare what `trtexec --loadEngine=FILE --loadInputs=NAME:FILE.bin --exportOutput=outputs.json`, or \
             `polygraphy run --save-outputs outputs.json`, gives for the same inputs with --target saved:outputs.json"
        }
    }
}

/// An engine and a GPU that do not go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuMismatch {
    /// Which TensorRT.
    pub flavour: Flavour,
    /// Name of the GPU.
    pub gpu: String,
    /// Its compute capability.
    pub compute_capability: (u32, u32),
    /// Compute capabilities that the engine was built for, as far as known.
    pub built_for: Vec<String>,
    /// What the library said.
    pub reason: String,
}

/// Compute capabilities whose GPUs TensorRT-RTX runs on.
pub const RTX_CAPABILITIES: &str = "7.5, 8.0, 8.6, 8.9 and 12.x";

/// Whether TensorRT-RTX runs on a compute capability.
pub fn rtx_runs_on((major, minor): (u32, u32)) -> bool {
    matches!((major, minor), (7, 5) | (8, 0 | 6 | 9) | (12, _))
}

impl fmt::Display for GpuMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.compute_capability;
        write!(f, "{} does not run it on this {} (compute capability {major}.{minor})", self.flavour, self.gpu)?;
        if self.flavour == Flavour::TensorRtRtx && !rtx_runs_on(self.compute_capability) {
            write!(
                f,
                "; TensorRT-RTX runs on {RTX_CAPABILITIES}: take such a GPU, or TensorRT 11 on this one \
                 (`make build TENSORRT=11`, then `calib build` here)"
            )?;
        } else if self.built_for.is_empty() {
            write!(f, "; build the engine on this machine")?;
        } else if self.built_for.contains(&format!("{major}.{minor}")) {
            let built_for = self.built_for.join(", ");
            write!(
                f,
                "; it was built for {built_for}, so the library or the driver refuses it: update both, and build it again here"
            )?;
        } else {
            let hint = match self.flavour {
                Flavour::TensorRtRtx => format!("--compute-capability {major}.{minor}"),
                Flavour::TensorRt => "--hardware-compatible".to_owned(),
            };
            write!(f, "; it was built for {}: build it again with {hint}", self.built_for.join(", "))?;
        }
        if self.reason.is_empty() { Ok(()) } else { write!(f, " (the library says: {})", self.reason) }
    }
}

/// An engine file whose header, length and hash are what they should be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The file.
    pub path: PathBuf,
    /// All of it.
    pub bytes: Vec<u8>,
    /// What `calib build` wrote beside it.
    pub sidecar: Option<EngineSidecar>,
}

impl Plan {
    /// Reads an engine for a program of `flavour` and checks everything that can be checked without a library.
    pub fn read(path: &Path, flavour: Flavour) -> Result<Self, TensorRtError> {
        let fault = |fault| TensorRtError::Engine { engine: path.to_owned(), fault };
        let bytes = read_regular(path).map_err(|error| fault(EngineFault::Unreadable(error)))?;
        check_header(&bytes, flavour).map_err(fault)?;
        let sidecar = EngineSidecar::beside(path)?;
        if sidecar.as_ref().is_some_and(|sidecar| sidecar.engine_hash != ContentHash::of_bytes(&bytes)) {
            return Err(fault(EngineFault::Changed(sidecar_path(path))));
        }
        Ok(Self { path: path.to_owned(), bytes, sidecar })
    }

    /// Says when the library that is to run the engine is not the one that built it.
    pub fn check_version(&self, flavour: Flavour, library: &str) -> Result<(), TensorRtError> {
        // A header has the number alone, and not what a stand-in adds to it.
        let number = library.split(' ').next();
        let written = header_version(&self.bytes).filter(|written| Some(written.as_str()) != number);
        let engine = self.sidecar.as_ref().map(|sidecar| sidecar.tensorrt_version.clone()).or(written);
        let compatible = |engine: &str| {
            let version_compatible = self.sidecar.as_ref().is_some_and(|sidecar| sidecar.options.version_compatible);
            engine == library || (version_compatible && engine.split('.').next() == library.split('.').next())
        };
        match engine {
            Some(engine) if !compatible(&engine) => {
                let fault = EngineFault::Version { flavour, engine, library: library.to_owned() };
                Err(TensorRtError::Engine { engine: self.path.clone(), fault })
            }
            _ => Ok(()),
        }
    }
}

fn check_header(bytes: &[u8], program: Flavour) -> Result<(), EngineFault> {
    let found = bytes.len() as u64;
    let Some(magic) = bytes.first_chunk::<4>() else {
        return Err(if bytes.is_empty() {
            EngineFault::Empty
        } else {
            EngineFault::Foreign { start: start_of(bytes) }
        });
    };
    let engine = match magic {
        b"vtrt" => Flavour::TensorRtRtx,
        b"ftrt" => Flavour::TensorRt,
        length => {
            let engine = u32::from_le_bytes(*length) as usize + length.len();
            let is_behind = bytes[length.len()..].starts_with(b"{")
                && bytes.get(engine..).is_some_and(|rest| rest.starts_with(b"vtrt") || rest.starts_with(b"ftrt"));
            let start = start_of(bytes);
            return Err(if is_behind { EngineFault::Behind(engine) } else { EngineFault::Foreign { start } });
        }
    };
    if engine != program {
        return Err(EngineFault::Flavour { engine, program });
    }
    let announced = match engine {
        Flavour::TensorRtRtx => bytes.get(16..24).and_then(|field| field.try_into().ok()).map(u64::from_le_bytes),
        Flavour::TensorRt => Some(found),
    };
    let announced = announced.filter(|_| bytes.len() >= HEADER).unwrap_or(HEADER as u64);
    if announced == found { Ok(()) } else { Err(EngineFault::Truncated { found, announced }) }
}

/// The version in a header of TensorRT-RTX.
fn header_version(bytes: &[u8]) -> Option<String> {
    let version = bytes.get(24..27).filter(|_| bytes.starts_with(b"vtrt"))?;
    Some(format!("{}.{}.{}", version[0], version[1], version[2]))
}

fn start_of(bytes: &[u8]) -> String {
    format!("`{}`", bytes[..bytes.len().min(8)].escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        artifact::Tool,
        backend::tensorrt::{EngineOptions, SIDECAR_FORMAT_VERSION},
    };

    /// A header as TensorRT-RTX 1.7.1 writes it, of a plan of `length` bytes.
    fn plan(length: u64) -> Vec<u8> {
        let mut bytes = b"vtrt\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend([1, 7, 1, 0x74]);
        bytes.resize(length as usize, 0xaa);
        bytes
    }

    fn fault(bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.plan");
        std::fs::write(&path, bytes).unwrap();
        let error = Plan::read(&path, Flavour::TensorRtRtx).unwrap_err().to_string();
        assert!(error.contains("engine.plan"), "{error}");
        error
    }

    #[test]
    fn files_that_are_no_whole_engine_are_told_apart() {
        assert!(fault(b"").contains("is empty"));
        assert!(fault(b"vt").contains("starts with `vt`"));
        assert!(fault(b"\x08\x08\x12pytorch").contains(r"starts with `\x08\x08\x12pytor`"));
        let exported = fault(&[b"\x0e\0\0\0{\"stride\": 32}".to_vec(), plan(200)].concat());
        assert!(
            exported.contains("behind 18 bytes of metadata") && exported.contains("`tail -c +19 FILE"),
            "{exported}"
        );
        assert!(fault(b"\x02\0\0\0{}").contains("not a TensorRT engine"));
        assert!(fault(&plan(200)[..40]).contains("40 bytes, and its header announces 64"));
        assert!(fault(&plan(200)[..150]).contains("150 bytes, and its header announces 200"));
        assert!(fault(&[plan(200), vec![0]].concat()).contains("201 bytes"));
        let other = fault(b"ftrt and so on");
        assert!(other.contains("engine of TensorRT, and") && other.contains("TENSORRT=11"), "{other}");
        assert!(other.contains("--exportOutput=outputs.json") && other.contains("saved:outputs.json"), "{other}");
    }

    #[test]
    fn sidecar_and_version_must_fit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.plan");
        std::fs::write(&path, plan(200)).unwrap();
        let read = || Plan::read(&path, Flavour::TensorRtRtx);
        read().unwrap().check_version(Flavour::TensorRtRtx, "1.7.1").unwrap();
        let error = read().unwrap().check_version(Flavour::TensorRtRtx, "1.8.0").unwrap_err().to_string();
        assert!(error.contains("1.7.1") && error.contains("1.8.0"), "{error}");
        let mut sidecar = EngineSidecar {
            format_version: SIDECAR_FORMAT_VERSION,
            tool: Tool::current(),
            engine_hash: ContentHash::of_bytes(&plan(200)),
            flavour: Flavour::TensorRtRtx,
            tensorrt_version: "1.7.1".to_owned(),
            model: "model.onnx".into(),
            model_hash: ContentHash::of_bytes(b""),
            reference: None,
            data: None,
            labels: None,
            precision: None,
            random_data: false,
            inputs: Vec::new(),
            outputs: Vec::new(),
            options: EngineOptions { version_compatible: true, ..EngineOptions::default() },
            build_seconds: 1.0,
            warnings: Vec::new(),
            layers: Vec::new(),
        };
        sidecar.save(&path).unwrap();
        read().unwrap().check_version(Flavour::TensorRtRtx, "1.8.0").unwrap();
        assert!(read().unwrap().check_version(Flavour::TensorRtRtx, "2.0.0").is_err());
        sidecar.engine_hash = ContentHash::of_bytes(b"another");
        sidecar.save(&path).unwrap();
        let error = read().unwrap_err().to_string();
        assert!(error.contains("engine.plan.json") && error.contains("its hash is another"), "{error}");
        std::fs::write(sidecar_path(&path), "{").unwrap();
        assert!(read().unwrap_err().to_string().contains("engine.plan.json"));
    }

    #[test]
    fn a_gpu_that_the_engine_is_not_for() {
        let mut mismatch = GpuMismatch {
            flavour: Flavour::TensorRtRtx,
            gpu: "NVIDIA H200".to_owned(),
            compute_capability: (9, 0),
            built_for: vec!["8.6".to_owned()],
            reason: String::new(),
        };
        let text = mismatch.to_string();
        assert!(text.contains("9.0") && text.contains(RTX_CAPABILITIES) && text.contains("TENSORRT=11"), "{text}");
        mismatch.compute_capability = (8, 9);
        let text = mismatch.to_string();
        assert!(text.contains("built for 8.6") && text.ends_with("--compute-capability 8.9"), "{text}");
        mismatch.built_for.push("8.9".to_owned());
        let text = mismatch.to_string();
        assert!(text.contains("built for 8.6, 8.9, so") && !text.contains("--compute-capability"), "{text}");
        (mismatch.flavour, mismatch.built_for) = (Flavour::TensorRt, Vec::new());
        assert!(mismatch.to_string().contains("build the engine on this machine"));
        assert!([(7, 5), (8, 0), (8, 6), (8, 9), (12, 1)].into_iter().all(rtx_runs_on));
        assert!([(7, 0), (8, 7), (9, 0), (10, 0)].into_iter().all(|capability| !rtx_runs_on(capability)));
    }
}
