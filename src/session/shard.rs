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
        let unknown = || refused("how many parts there are is not known; write `auto/8` for eight".to_owned());
        let invalid = || refused(format!("`{text}` does not read like 2/8, auto or auto/8"));
        let number = |name: &str| {
            let given = variable(name);
            let wrong = |given: &String| refused(format!("the variable {name} is `{given}`, which is not a number"));
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
                if let Some(id) = number("SLURM_ARRAY_TASK_ID")? {
                    let count = asked.or(number("SLURM_ARRAY_TASK_COUNT")?).ok_or_else(unknown)?;
                    (task(id, count, &number)?, count)
                } else if let Some(index) = number("JOB_COMPLETION_INDEX")? {
                    (index, asked.ok_or_else(unknown)?)
                } else {
                    return Err(refused(
                        "`auto` is for a task of a Slurm array or of a Kubernetes Indexed Job: neither SLURM_ARRAY_TASK_ID nor \
                         JOB_COMPLETION_INDEX is set; say which part it is, e.g. 2/8"
                            .to_owned(),
                    ));
                }
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

fn refused(reason: String) -> ConfigError {
    ConfigError::Value { key: "shard", reason }
}

/// The part, from 0, of the task `id` of a Slurm array, with the variables that are numbers by name. Tasks of a whole array are
/// counted from its first. One of an array of fewer or more tasks than parts, as of one that was submitted again, is told by
/// `id`, which counts from 0 in an array that has a task 0, and from 1 in one whose last task is the number of parts.
fn task(id: u32, count: u32, number: &dyn Fn(&str) -> Result<Option<u32>, ConfigError>) -> Result<u32, ConfigError> {
    let first = number("SLURM_ARRAY_TASK_MIN")?;
    // Slurm always tells the first; variables that are set by hand count from 0.
    if first.is_none() || number("SLURM_ARRAY_TASK_COUNT")? == Some(count) {
        let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
        return Ok(id.saturating_sub(first.unwrap_or(0)) / step);
    }
    let last = number("SLURM_ARRAY_TASK_MAX")?.unwrap_or(id);
    if first == Some(0) || id > count {
        Ok(id)
    } else if last == count {
        Ok(id - 1)
    } else {
        Err(refused(format!(
            "which of {count} parts the task {id} does is not known: write `--shard {}/{count}` where the IDs of the whole array count \
             from 0, and `--shard {id}/{count}` where they count from 1",
            u64::from(id) + 1
        )))
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
        assert_eq!(read("auto/4", &slurm), Ok((2, 4)));
        let steps = [("ID", "6"), ("COUNT", "4"), ("STEP", "2"), ("MIN", "0")];
        let steps = steps.map(|(name, value)| (format!("SLURM_ARRAY_TASK_{name}"), value));
        assert_eq!(read("auto", &steps.each_ref().map(|(name, value)| (name.as_str(), *value))), Ok((3, 4)));
        let job = [("JOB_COMPLETION_INDEX", "0")];
        assert_eq!(read("auto/8", &job), Ok((0, 8)));
        assert!(read("auto", &job).unwrap_err().contains("auto/8"));
        assert!(read("auto/8", &[("JOB_COMPLETION_INDEX", "8")]).unwrap_err().contains("part 9 of 8"));
        assert!(read("auto", &[]).unwrap_err().contains("SLURM_ARRAY_TASK_ID"));
        assert!(read("auto", &[("SLURM_ARRAY_TASK_ID", "x")]).unwrap_err().contains("not a number"));
    }

    #[test]
    fn a_task_that_is_submitted_again_is_told_by_its_id() {
        let again = |id: &str, first: &str, last: &str| {
            let names = ["ID", "MIN", "MAX", "COUNT"].map(|name| format!("SLURM_ARRAY_TASK_{name}"));
            let values = [id, first, last, "1"];
            read("auto/8", &names.iter().map(String::as_str).zip(values).collect::<Vec<_>>())
        };
        assert_eq!(again("0", "0", "0"), Ok((0, 8)), "only an array from 0 has this");
        assert_eq!(again("5", "0", "5"), Ok((5, 8)), "as --array=0,5");
        assert_eq!(again("8", "8", "8"), Ok((7, 8)), "only an array from 1 has this");
        assert_eq!(again("2", "2", "8"), Ok((1, 8)), "as --array=2,8");
        let error = again("2", "2", "2").unwrap_err();
        assert!(
            error.contains("`--shard 3/8` where the IDs of the whole array count from 0, and `--shard 2/8` where"),
            "{error}"
        );
        assert!(again("9", "9", "9").unwrap_err().contains("part 10 of 8"));
        // Variables that are set by hand.
        let by_hand = |id| read("auto", &[("SLURM_ARRAY_TASK_ID", id), ("SLURM_ARRAY_TASK_COUNT", "2")]);
        assert_eq!([by_hand("0"), by_hand("1")], [Ok((0, 2)), Ok((1, 2))]);
        assert!(by_hand("2").unwrap_err().contains("part 3 of 2"));
    }

    #[test]
    fn ranges_are_all_samples_once() {
        for samples in [0, 1, 5, 640] {
            let ranges = (1..=7).map(|index| format!("{index}/7").parse::<Shard>().unwrap().range(samples));
            assert!(ranges.flatten().eq(0..samples));
        }
    }
}
