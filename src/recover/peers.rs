//! Processes that recover the same model on the same samples at the same time, and share the candidates between them.

use std::{fmt, sync::Arc};

use super::RecoverError;

type Exchange = dyn Fn(Vec<f64>) -> Result<Vec<Vec<f64>>, String> + Send + Sync;

/// One of several processes that do the same, all in the same order: of candidates each tries its part, and all learn what
/// every candidate is worth. What they decide is what one process decides.
#[derive(Clone)]
pub struct Peers {
    index: usize,
    count: usize,
    exchange: Arc<Exchange>,
}

impl Peers {
    /// Number `index` (from 0) of `count` processes. `exchange` gives what this one has found to the others, and waits for
    /// what each of them has found, in their order; it gives a reason where that does not come.
    pub fn new(
        index: usize,
        count: usize,
        exchange: impl Fn(Vec<f64>) -> Result<Vec<Vec<f64>>, String> + Send + Sync + 'static,
    ) -> Self {
        Self { index, count, exchange: Arc::new(exchange) }
    }

    /// The numbers that `of` gives for `candidates` candidates, of which it is asked for some by their places.
    pub(super) fn share(
        &self,
        candidates: usize,
        of: impl FnOnce(Vec<usize>) -> Result<Vec<f64>, RecoverError>,
    ) -> Result<Vec<f64>, RecoverError> {
        if self.count < 2 || candidates < 2 {
            return of((0..candidates).collect());
        }
        let mut found = vec![candidates as f64];
        found.extend(of((self.index..candidates).step_by(self.count).collect())?);
        let all = (self.exchange)(found).map_err(RecoverError::Peers)?;
        // Who has decided otherwise before has other candidates now.
        let fits = |(index, found): (usize, &Vec<f64>)| {
            found.first() == Some(&(candidates as f64)) && found.len() > (index..candidates).step_by(self.count).len()
        };
        if all.len() != self.count || !all.iter().enumerate().all(fits) {
            let reason =
                "the processes do not compute alike; give them processors of one kind, or recover in one process";
            return Err(RecoverError::Peers(reason.to_owned()));
        }
        Ok((0..candidates).map(|place| all[place % self.count][1 + place / self.count]).collect())
    }
}

impl Default for Peers {
    /// A process on its own.
    fn default() -> Self {
        Self::new(0, 1, |found| Ok(vec![found]))
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peers({} of {})", self.index + 1, self.count)
    }
}
