//! Work shared out among as many threads as the caller allows.

use std::sync::Mutex;

/// What `work` makes of each item, in order, on `threads` threads at most, the calling one among them.
pub(super) fn in_order<T: Send, R: Send>(
    items: Vec<T>,
    threads: usize,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let helpers = threads.min(items.len()).saturating_sub(1);
    if helpers == 0 {
        return items.into_iter().map(work).collect();
    }
    let n = items.len();
    let left = Mutex::new(items.into_iter().enumerate());
    let next = || left.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    let take = || {
        let mut done = Vec::new();
        while let Some((place, item)) = next() {
            done.push((place, work(item)));
        }
        done
    };
    let mut done = std::thread::scope(|scope| {
        let helpers: Vec<_> = (0..helpers).map(|_| scope.spawn(take)).collect();
        let mut done = take();
        for helper in helpers {
            match helper.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    debug_assert_eq!(done.len(), n, "each item is taken once");
    done.sort_unstable_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::thread::{ThreadId, current};

    #[test]
    fn no_more_threads_work_than_were_allowed_and_results_keep_their_order() {
        for threads in 0..5 {
            for n in [0, 1, 2, 700] {
                let results = in_order((0..n).collect(), threads, |i: usize| (i * i, current().id()));
                assert!(
                    results.iter().map(|r| r.0).eq((0..n).map(|i| i * i)),
                    "{n} items, {threads} threads"
                );
                let who: HashSet<ThreadId> = results.iter().map(|r| r.1).collect();
                assert!(who.len() <= threads.max(1), "{} threads worked, {threads} were allowed", who.len());
                if threads < 2 {
                    assert!(who.iter().all(|id| *id == current().id()), "the caller's thread alone");
                }
            }
        }
    }
}
