//! Batches that do not fit into the GPU's memory.

use std::ops::Range;

/// Works on a batch of `samples` in parts of at most `most`, which it tells each time, and halves `most` where a part
/// does not fit: for this batch and, as the caller keeps it, for all after it.
///
/// # Errors
/// As `work`; that even one sample does not fit.
pub(super) fn in_parts<E>(
    most: &mut usize,
    samples: usize,
    does_not_fit: impl Fn(&E) -> bool,
    mut work: impl FnMut(Range<usize>, usize) -> Result<(), E>,
) -> Result<(), E> {
    let mut first = 0;
    while first < samples {
        let last = samples.min(first.saturating_add(*most));
        match work(first..last, *most) {
            Err(error) if does_not_fit(&error) && last - first > 1 => *most = (last - first) / 2,
            other => {
                other?;
                first = last;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_halved_until_it_fits_and_stays_so() {
        let (mut most, mut tried) = (usize::MAX, Vec::new());
        let mut work = |range: Range<usize>, _: usize| {
            tried.push(range.clone());
            if range.len() > 3 { Err("too large") } else { Ok(()) }
        };
        in_parts(&mut most, 13, |_| true, &mut work).unwrap();
        in_parts(&mut most, 4, |_| true, &mut work).unwrap();
        assert_eq!(tried, [0..13, 0..6, 0..3, 3..6, 6..9, 9..12, 12..13, 0..3, 3..4]);
        assert_eq!(most, 3);
    }

    #[test]
    fn other_errors_and_a_sample_that_does_not_fit_end_it() {
        let fail = |most: usize, fits: bool| in_parts(&mut { most }, 2, |_| fits, |_, _| Err("no"));
        assert_eq!((fail(9, false), fail(1, true), fail(9, true)), (Err("no"), Err("no"), Err("no")));
        assert_eq!(in_parts(&mut 0, 0, |(): &()| true, |_, _| Ok(())), Ok(()));
    }
}
