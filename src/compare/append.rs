//! Comparisons that go on from each other: parts of the samples that were compared apart.

use super::{
    CompareError, Comparison, PartSums,
    driver::Output,
    segmentation::MapCounts,
    task::{Classification, Task},
};

impl Comparison {
    /// Takes over a comparison of the samples that come after these, with the same options. The figures are those of one
    /// comparison of all samples, to the bit.
    ///
    /// # Errors
    /// The other one is of other outputs, or took them for something else. This one is of no more use then.
    pub fn append(&mut self, later: Self) -> Result<(), CompareError> {
        let unlike =
            |output: &str, reason: &str| CompareError::Parts { output: output.to_owned(), reason: reason.to_owned() };
        let mut others = later.outputs.into_iter();
        for output in &mut self.outputs {
            let same = others.next().filter(|other| other.pair == output.pair);
            let name = output.pair.reference.clone();
            let other = same.ok_or_else(|| unlike(&name, "is not in both"))?;
            output.append(other, self.samples, self.options.max_flips).map_err(|reason| unlike(&name, reason))?;
        }
        if let Some(other) = others.next() {
            return Err(unlike(&other.pair.reference, "is not in both"));
        }
        match (&mut self.detections, later.detections) {
            (Some(mine), Some(other)) => mine.append(other),
            (None, None) => {}
            _ => return Err(unlike("of the detection head", "is not in both")),
        }
        self.samples += later.samples;
        Ok(())
    }
}

impl Output {
    /// `first` is the number of samples before.
    fn append(&mut self, later: Self, first: u64, max_flips: usize) -> Result<(), &'static str> {
        self.sums.append(&later.sums);
        self.spread.append(&later.spread);
        self.parts.append(&later.parts, PartSums::append);
        self.integers |= later.integers;
        match (&mut self.task, later.task) {
            (_, None) | (Some(Task::Generic), Some(Task::Generic)) => Ok(()),
            (Some(Task::Map(mine)), Some(Task::Map(other))) if mine.kind == other.kind => {
                mine.counts.append(&other.counts, MapCounts::append);
                Ok(())
            }
            (Some(Task::Classification(mine)), Some(Task::Classification(other))) if mine.classes == other.classes => {
                mine.append(*other, first, max_flips);
                Ok(())
            }
            (mine @ None, Some(mut other)) => {
                if let Task::Classification(task) = &mut other {
                    task.flips.positions.iter_mut().for_each(|position| *position += first);
                }
                *mine = Some(other);
                Ok(())
            }
            _ => Err("has other classes in one part than in another"),
        }
    }
}

impl Classification {
    fn append(&mut self, later: Self, first: u64, max_flips: usize) {
        self.counts.append(&later.counts);
        self.further.iter_mut().zip(&later.further).for_each(|(mine, other)| mine.append(other));
        self.right.append(later.right);
        self.flips.positions.extend(later.flips.positions.iter().map(|position| position + first));
        self.flips.details.extend(later.flips.details);
        self.flips.details.truncate(max_flips);
    }
}
