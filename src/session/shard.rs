//! Which part of the samples one of several machines takes.

use std::{fmt, ops::Range, str::FromStr};

use crate::{calibrate::Shards, config::ConfigError};

/// Part `index` (from 0) of `count` parts of the samples. Reads as `1/4`, counted from 1; as `auto`, from the environment of
/// a task of a Slurm array; as `auto/4`, from that of a task of a Slurm array or of a Kubernetes Indexed Job, which is not
/// told how many there are.
#[derive(Clone, Debug)]
pub struct Shard {
    /// Counted from 0.
    pub index: usize,
    /// Number of parts.
    pub count: usize,
    pub(super) shards: Shards,
}

impl Shard {
    /// The samples of this part, where each takes a stretch of `samples` in order.
    pub fn range(&self, samples: usize) -> Range<usize> {
        let start = |index: usize| samples * index / self.count;
        start(self.index)..start(self.index + 1)
    }

    /// Reads `text`, with the environment's variables by name.
    fn read(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let refused = |reason: String| ConfigError::Value { key: "shard", reason };
        let invalid = || refused(format!("`{text}` does not read like 2/8, auto or auto/8"));
        let number = |name: &str| {
            let given = variable(name);
            let wrong = |given: &String| refused(format!("the variable {name} is `{given}`, which is no number"));
            given.map(|given| given.trim().parse::<u32>().map_err(|_| wrong(&given))).transpose()
        };
        let (index, count) = match text.split_once('/') {
            Some((index, count)) if index != "auto" => {
                let index: u32 = index.parse().map_err(|_| invalid())?;
                (index.checked_sub(1).ok_or_else(invalid)?, count.parse().map_err(|_| invalid())?)
            }
            None if text != "auto" => return Err(invalid()),
            asked => {
                let asked = asked.map(|(_, count)| count.parse::<u32>().map_err(|_| invalid())).transpose()?;
                let (index, count) = if let Some(id) = number("SLURM_ARRAY_TASK_ID")? {
                    let first = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
                    let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
                    (id.saturating_sub(first) / step, number("SLURM_ARRAY_TASK_COUNT")?)
                } else if let Some(index) = number("JOB_COMPLETION_INDEX")? {
                    (index, None)
                } else {
                    return Err(refused(
                        "`auto` is for a task of a Slurm array or of a Kubernetes Indexed Job: neither SLURM_ARRAY_TASK_ID nor \
                         JOB_COMPLETION_INDEX is set; say which part it is, e.g. 2/8"
                            .to_owned(),
                    ));
                };
                let unknown = "how many parts there are is not known; write `auto/8` for eight".to_owned();
                (index, asked.or(count).ok_or_else(|| refused(unknown))?)
            }
        };
        let shards = Shards::one(index, count).ok_or_else(|| {
            refused(format!(
                "`{text}` is part {} of {count}; parts are 1 to {count}, of at most 4096",
                u64::from(index) + 1
            ))
        })?;
        Ok(Self { index: index as usize, count: count as usize, shards })
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.count)
    }
}

impl FromStr for Shard {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Self::read(text, &|name| std::env::var(name).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<(usize, usize), String> {
        let variable =
            |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Shard::read(text, &variable).map(|shard| (shard.index, shard.count)).map_err(|error| error.to_string())
    }

    #[test]
    fn shards_count_from_one() {
        assert_eq!(read("1/4", &[]), Ok((0, 4)));
        assert!(["0/4", "5/4", "1", "", "auto/x", "a/2", "1/0"].iter().all(|text| read(text, &[]).is_err()));
    }

    #[test]
    fn arrays_and_indexed_jobs_tell_which() {
        let slurm = [("SLURM_ARRAY_TASK_ID", "7"), ("SLURM_ARRAY_TASK_COUNT", "4"), ("SLURM_ARRAY_TASK_MIN", "5")];
        assert_eq!(read("auto", &slurm), Ok((2, 4)));
        let steps = [("SLURM_ARRAY_TASK_ID", "6"), ("SLURM_ARRAY_TASK_COUNT", "4"), ("SLURM_ARRAY_TASK_STEP", "2")];
        assert_eq!(read("auto", &steps), Ok((3, 4)));
        let job = [("JOB_COMPLETION_INDEX", "0")];
        assert_eq!(read("auto/8", &job), Ok((0, 8)));
        assert!(read("auto", &job).unwrap_err().contains("auto/8"));
        assert!(read("auto/8", &[("JOB_COMPLETION_INDEX", "8")]).unwrap_err().contains("part 9 of 8"));
        assert!(read("auto", &[]).unwrap_err().contains("SLURM_ARRAY_TASK_ID"));
        assert!(read("auto", &[("SLURM_ARRAY_TASK_ID", "x")]).unwrap_err().contains("no number"));
    }

    #[test]
    fn ranges_are_all_samples_once() {
        for samples in [0, 1, 5, 640] {
            let ranges = (1..=7).map(|index| format!("{index}/7").parse::<Shard>().unwrap().range(samples));
            assert!(ranges.flatten().eq(0..samples));
        }
    }
}
