//! Sending ahead: while the GPU is at work on a batch, those behind it are read and sent to it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crossbeam_channel::bounded;

/// Batches that are sent or on their way, the one at work included.
const SENT: usize = 3;

/// Gives all of `batches` to `work`, in order, each with what `send` made of it on another thread while `work` was at
/// those before. `send` gets back what `work` is done with, to use it again. Once it gives nothing, or `work` gives nothing
/// back (both for want of memory), no more is sent: `work` has to do it itself, and finds out what fails. Returns how long
/// `work` waited.
///
/// # Errors
/// As `work`, which ends it.
pub(super) fn send_ahead<B: Send, S: Send, E>(
    batches: impl Iterator<Item = B> + Send,
    mut send: impl FnMut(&B, Option<S>) -> Option<S> + Send,
    mut work: impl FnMut(B, Option<S>) -> Result<Option<S>, E>,
) -> Result<Duration, E> {
    let (out, arriving) = bounded::<(B, Option<S>)>(SENT - 2);
    let (give_back, used) = bounded::<S>(SENT);
    let has_room = &AtomicBool::new(true);
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            for batch in batches {
                let used = used.try_recv().ok();
                let sent = if has_room.load(Ordering::Relaxed) { send(&batch, used) } else { None };
                if out.send((batch, sent)).is_err() {
                    // `work` has failed, and says why.
                    break;
                }
            }
        });
        let mut waited = Duration::ZERO;
        let worked = loop {
            let started = Instant::now();
            let Ok((batch, sent)) = arriving.recv() else { break Ok(waited) };
            waited += started.elapsed();
            match work(batch, sent) {
                // Nobody waits for memory at the end.
                Ok(Some(done)) => drop(give_back.try_send(done)),
                Ok(None) => has_room.store(false, Ordering::Relaxed),
                Err(error) => break Err(error),
            }
        };
        drop(arriving);
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        worked
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn batches_arrive_in_order_with_what_was_sent_and_memory_is_used_again() {
        let made = AtomicUsize::new(0);
        let send = |batch: &usize, used: Option<Vec<usize>>| {
            let mut memory = used.unwrap_or_else(|| {
                made.fetch_add(1, Ordering::Relaxed);
                Vec::new()
            });
            memory.push(*batch);
            Some(memory)
        };
        let mut seen = Vec::new();
        let work = |batch: usize, sent: Option<Vec<usize>>| {
            assert_eq!(sent.as_ref().and_then(|memory| memory.last()), Some(&batch));
            seen.push(batch);
            Ok::<_, ()>(sent)
        };
        send_ahead(0..100, send, work).unwrap();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        let made = made.load(Ordering::Relaxed);
        assert!((1..=SENT).contains(&made), "{made}");
    }

    #[test]
    fn without_room_nothing_more_is_sent_and_every_batch_arrives() {
        for (sender_fails, work_fails) in [(Some(5), None), (None, Some(5))] {
            let sent = AtomicUsize::new(0);
            let send = |batch: &usize, _: Option<()>| {
                sent.fetch_add(1, Ordering::Relaxed);
                (Some(*batch) != sender_fails).then_some(())
            };
            let mut seen = Vec::new();
            let work = |batch: usize, sent: Option<()>| {
                seen.push(batch);
                Ok::<_, ()>(sent.filter(|()| Some(batch) != work_fails))
            };
            send_ahead(0..100, send, work).unwrap();
            assert_eq!(seen, (0..100).collect::<Vec<_>>());
            // Those that were on their way already.
            let sent = sent.load(Ordering::Relaxed);
            assert!((6..6 + SENT).contains(&sent), "{sent}");
        }
    }

    #[test]
    fn sending_goes_on_during_work_but_not_far() {
        let sent = AtomicUsize::new(0);
        let send = |_: &usize, _| Some(sent.fetch_add(1, Ordering::SeqCst));
        let work = |batch: usize, given: Option<usize>| {
            let most = (batch + SENT).min(20);
            let started = Instant::now();
            // The next two are sent without waiting for this one, if there are as many.
            while sent.load(Ordering::SeqCst) < most && started.elapsed() < Duration::from_mins(1) {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(sent.load(Ordering::SeqCst), most);
            Ok::<_, ()>(given)
        };
        send_ahead(0..20, send, work).unwrap();
    }

    #[test]
    fn a_failure_ends_it_and_a_panic_of_the_sender_is_not_lost() {
        let send = |_: &usize, _: Option<()>| Some(());
        let mut worked = 0;
        let failed = send_ahead(0.., send, |batch, sent| {
            worked += 1;
            if batch == 3 { Err("no room") } else { Ok(sent) }
        });
        assert_eq!((failed.unwrap_err(), worked), ("no room", 4));
        let batches = (0..9).inspect(|&batch| assert!(batch < 2, "read too far"));
        let panicked = std::panic::catch_unwind(|| send_ahead(batches, send, |_, sent| Ok::<_, ()>(sent)));
        assert!(panicked.is_err());
    }
}
