//! The threads of a backend: started once, used by every call.

use super::CpuError;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A fixed set of threads. With one thread there is no pool and everything runs on the caller's.
#[derive(Debug)]
pub(crate) struct Pool {
    pool: Option<rayon::ThreadPool>,
    threads: usize,
}

impl Pool {
    pub(crate) fn new(threads: usize) -> Result<Self, CpuError> {
        let threads = threads.max(1);
        if threads == 1 {
            return Ok(Self { pool: None, threads });
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("reattention-{i}"))
            .build()
            .map_err(|source| CpuError::Threads { threads, source })?;
        Ok(Self { pool: Some(pool), threads })
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    pub(crate) fn install(&self, f: &mut (dyn FnMut() + Send)) {
        match &self.pool {
            Some(pool) => pool.install(f),
            None => f(),
        }
    }

    /// Calls `work(scratch, i)` for every `i` in `0..items`, in any order, each thread with a scratch of its own.
    ///
    /// `inline` keeps everything on the calling thread: right where waking a thread costs more than the work.
    pub(crate) fn each<T>(
        &self,
        items: usize,
        inline: bool,
        scratch: impl Fn() -> T + Sync,
        work: impl Fn(&mut T, usize) + Sync,
    ) {
        let pool = match &self.pool {
            Some(pool) if !inline && items > 1 => pool,
            _ => {
                let mut own = scratch();
                (0..items).for_each(|i| work(&mut own, i));
                return;
            }
        };
        // Items are handed out one by one: a thread that wakes late, or is taken away, then delays nobody.
        let next = AtomicUsize::new(0);
        let drain = || {
            let mut own = None;
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= items {
                    return;
                }
                work(own.get_or_insert_with(&scratch), i);
            }
        };
        let helpers = (self.threads - 1).min(items - 1);
        pool.install(|| {
            rayon::scope(|s| {
                (0..helpers).for_each(|_| s.spawn(|_| drain()));
                drain();
            });
        });
    }
}

/// A slice whose disjoint parts several threads write at once.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T, usize);

// SAFETY: only a pointer and a length; every use states why no two threads touch the same part.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len())
    }

    /// `len` elements from `start`.
    ///
    /// # Safety
    /// The slice this was made from is still borrowed, and no other part given out overlaps this one.
    #[allow(clippy::mut_from_ref, reason = "handing out disjoint parts is the purpose; the contract says so")]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.1, "part {start}+{len} of {}", self.1);
        // SAFETY: in bounds by the assertion, exclusive by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads).unwrap();
            for items in [0, 1, 2, 100] {
                let done: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                pool.each(
                    items,
                    false,
                    || (),
                    |(), i| {
                        done[i].fetch_add(1, Ordering::Relaxed);
                    },
                );
                assert!(
                    done.iter().all(|d| d.load(Ordering::Relaxed) == 1),
                    "{threads} threads, {items} items"
                );
            }
        }
    }
}
