//! What a session waited for: one stage after the other, so that their times add up to the wall time.

use std::time::Instant;

use crate::{backend::onnxruntime::sessions_built, dataset::samples_read, pass::passes_made, report::StageTime};

/// The stages of a session: those that are over, and the one that goes on.
#[derive(Debug)]
pub(super) struct Stages {
    /// In the order in which they began; a stage that is come back to goes on in its place.
    over: Vec<StageTime>,
    current: &'static str,
    since: Instant,
    /// The counts when it began.
    counts: [u64; 4],
}

/// Sessions built, passes made, samples read, hundredths of a second of processor time; by the whole process, for what a
/// session does has many hands.
fn counts() -> [u64; 4] {
    [sessions_built(), passes_made(), samples_read(), processor_ticks().unwrap_or_default()]
}

/// Processor time of this process in user and system mode, in hundredths of a second on every Linux.
fn processor_ticks() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in brackets, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(ticks()? + ticks()?)
}

impl Stages {
    pub(super) fn begin(first: &'static str) -> Self {
        Self { over: Vec::new(), current: first, since: Instant::now(), counts: counts() }
    }

    /// Ends the stage that goes on, and begins `next`.
    pub(super) fn turn_to(&mut self, next: &'static str) {
        let (now, counts) = (Instant::now(), counts());
        let ended = self.running(now, counts);
        add(&mut self.over, ended);
        (self.current, self.since, self.counts) = (next, now, counts);
    }

    /// All stages until now.
    pub(super) fn times(&self) -> Vec<StageTime> {
        let mut times = self.over.clone();
        add(&mut times, self.running(Instant::now(), counts()));
        times
    }

    fn running(&self, now: Instant, counts: [u64; 4]) -> StageTime {
        let [sessions, passes, samples_read, ticks] =
            std::array::from_fn(|index| counts[index].saturating_sub(self.counts[index]));
        let seconds = now.saturating_duration_since(self.since).as_secs_f64();
        let cpu_seconds = ticks as f64 / 100.0;
        StageTime { stage: self.current.to_owned(), seconds, cpu_seconds, sessions, passes, samples_read }
    }
}

fn add(times: &mut Vec<StageTime>, more: StageTime) {
    match times.iter_mut().find(|time| time.stage == more.stage) {
        Some(time) => {
            time.seconds += more.seconds;
            time.cpu_seconds += more.cpu_seconds;
            time.sessions += more.sessions;
            time.passes += more.passes;
            time.samples_read += more.samples_read;
        }
        None => times.push(more),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn processor_time_is_that_of_the_stage() {
        let mut stages = Stages::begin("idle");
        std::thread::sleep(Duration::from_millis(30));
        stages.turn_to("busy");
        let began = processor_ticks().unwrap();
        while processor_ticks().unwrap() < began + 4 {}
        let busy = &stages.times()[1];
        assert!(busy.stage == "busy" && busy.cpu_seconds >= 0.04, "{busy:?}");
    }

    #[test]
    fn stages_add_up_to_the_wall_time_and_each_is_told_once() {
        let began = Instant::now();
        let mut stages = Stages::begin("opening");
        for stage in ["comparing", "layers", "comparing"] {
            std::thread::sleep(Duration::from_millis(4));
            stages.turn_to(stage);
        }
        std::thread::sleep(Duration::from_millis(4));
        let times = stages.times();
        let wall = began.elapsed().as_secs_f64();
        assert_eq!(times.iter().map(|time| &*time.stage).collect::<Vec<_>>(), ["opening", "comparing", "layers"]);
        let [opening, comparing, layers] = [0, 1, 2].map(|index| times[index].seconds);
        assert!(opening >= 0.004 && layers >= 0.004 && comparing >= 0.008, "{times:?}");
        let sum = opening + comparing + layers;
        assert!(sum <= wall && wall - sum < 0.004, "{sum} of {wall}");
    }
}
