//! Where time goes: a backend that charges every moment to one part of a step.
//!
//! At any moment exactly one part runs, so the parts add up to the time that passed. The layers above say what they turn to
//! with [`Backend::mark`]; calls whose part is plain from the call, such as [`Backend::top_k`], are charged to it
//! whatever was marked. Work done between the calls belongs to the part marked last.

use crate::cpu::visible;
use crate::{
    Activation, Backend, DeviceError, KvView, ListedRequest, LogitRule, LowBitKeys, Matrix, Pages, Queries,
    Segment, SignRequest, TopK, TopKRequest,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What time is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Linear layers around attention: query, key, value and output projections.
    Projections,
    /// Linear layers of the MLP.
    Mlp,
    /// The linear layer that gives logits.
    Head,
    /// Keeping the index that a search follows, where the method has one.
    Index,
    /// Searching the best keys.
    Scoring,
    /// The method's own work: votes, spans, segments.
    Selection,
    /// Fetching and rotating the keys and values that are attended to.
    Gather,
    /// Attention proper: logits, softmax, weighted sums.
    Attention,
    /// Appending keys and values to the store.
    Append,
    /// Norms, activations and sums.
    Elementwise,
    /// All the rest: embedding, sampling, the driver.
    Other,
}

impl Part {
    /// All parts, in the order they are shown.
    pub const ALL: [Self; 11] = [
        Self::Projections,
        Self::Mlp,
        Self::Head,
        Self::Index,
        Self::Scoring,
        Self::Selection,
        Self::Gather,
        Self::Attention,
        Self::Append,
        Self::Elementwise,
        Self::Other,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Projections => "linear, attention",
            Self::Mlp => "linear, MLP",
            Self::Head => "linear, head",
            Self::Index => "index",
            Self::Scoring => "scoring",
            Self::Selection => "selection",
            Self::Gather => "gather",
            Self::Attention => "attention",
            Self::Append => "append",
            Self::Elementwise => "elementwise",
            Self::Other => "other",
        }
    }
}

/// What one part took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Time.
    pub time: Duration,
    /// Times the part was turned to.
    pub calls: u64,
    /// Floating-point operations, a multiply-add being two; 0 where they are not what counts, and for products that do
    /// not pass through the backend (few rows of quantised blocks).
    pub flops: f64,
    /// Bytes of weights, keys and values that have to be read at least once a call; 0 as for `flops`.
    pub bytes: f64,
}

/// What each part took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Profile([Spent; Part::ALL.len()]);

impl Profile {
    /// Parts and what they took, in the order of [`Part::ALL`].
    pub fn parts(&self) -> impl Iterator<Item = (Part, &Spent)> {
        Part::ALL.into_iter().zip(&self.0)
    }

    /// All parts together.
    pub fn total(&self) -> Duration {
        self.0.iter().map(|s| s.time).sum()
    }

    fn of(&mut self, part: Part) -> &mut Spent {
        &mut self.0[part as usize]
    }
}

impl std::ops::AddAssign for Profile {
    fn add_assign(&mut self, other: Self) {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            a.time += b.time;
            a.calls += b.calls;
            a.flops += b.flops;
            a.bytes += b.bytes;
        }
    }
}

/// Thread time of attention, added up by all threads of a [`crate::Cpu`] that was given one.
#[derive(Debug, Default)]
pub struct AttendClock {
    gather: AtomicU64,
    all: AtomicU64,
}

impl AttendClock {
    /// Adds thread time: `gather` of it, out of `all`, went into fetching and rotating.
    pub(crate) fn add(&self, gather: Duration, all: Duration) {
        self.gather.fetch_add(gather.as_nanos() as u64, Ordering::Relaxed);
        self.all.fetch_add(all.as_nanos() as u64, Ordering::Relaxed);
    }

    /// The share that fetching and rotating had since the last call, 0 to 1.
    fn take_share(&self) -> f64 {
        let (gather, all) = (self.gather.swap(0, Ordering::Relaxed), self.all.swap(0, Ordering::Relaxed));
        if all == 0 { 0.0 } else { gather as f64 / all as f64 }
    }
}

/// A backend that passes everything on to another one and measures it.
#[derive(Debug)]
pub struct Profiler {
    inner: Arc<dyn Backend>,
    clock: Option<Arc<AttendClock>>,
    watch: Mutex<Watch>,
}

#[derive(Debug)]
struct Watch {
    part: Part,
    since: Instant,
    spent: Profile,
}

impl Watch {
    fn turn_to(&mut self, part: Part) {
        let now = Instant::now();
        self.spent.of(self.part).time += now - self.since;
        (self.part, self.since) = (part, now);
    }
}

impl Profiler {
    /// Measures `inner`. `clock` is the one `inner` was given, if any; without it [`Part::Gather`] counts as attention.
    pub fn new(inner: Arc<dyn Backend>, clock: Option<Arc<AttendClock>>) -> Self {
        let watch = Watch { part: Part::Other, since: Instant::now(), spent: Profile::default() };
        Self { inner, clock, watch: Mutex::new(watch) }
    }

    /// What was spent since the last call (or since the profiler was made), down to this moment.
    pub fn take(&self) -> Profile {
        let mut watch = self.watch();
        watch.turn_to(Part::Other);
        let mut profile = std::mem::take(&mut watch.spent);
        drop(watch);
        if let Some(clock) = &self.clock {
            // Threads share the kernel's wall time as they share its thread time.
            let attention = *profile.of(Part::Attention);
            let gathered = attention.time.mul_f64(clock.take_share());
            profile.of(Part::Attention).time -= gathered;
            profile.of(Part::Attention).bytes = 0.0;
            *profile.of(Part::Gather) = Spent { time: gathered, flops: 0.0, ..attention };
        }
        profile
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Charges `call` to `part`, and what follows to the part that ran before.
    fn charge<R>(&self, part: Part, (flops, bytes): (f64, f64), call: impl FnOnce() -> R) -> R {
        let mut watch = self.watch();
        let before = watch.part;
        watch.turn_to(part);
        let spent = watch.spent.of(part);
        spent.calls += 1;
        spent.flops += flops;
        spent.bytes += bytes;
        drop(watch);
        let result = call();
        self.watch().turn_to(before);
        result
    }
}

impl Backend for Profiler {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn threads(&self) -> usize {
        self.inner.threads()
    }

    fn install(&self, f: &mut (dyn FnMut() + Send)) {
        self.inner.install(f);
    }

    fn each(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        // Several threads charge each other's moments; what ran before goes on after them.
        let before = self.watch().part;
        self.inner.each(n, work);
        self.watch().turn_to(before);
    }

    fn mark(&self, part: Part) {
        let mut watch = self.watch();
        watch.turn_to(part);
        watch.spent.of(part).calls += 1;
    }

    fn linear(&self, x: &[f32], rows: usize, w: &Matrix, bias: Option<&[f32]>, y: &mut [f32]) {
        self.inner.linear(x, rows, w, bias, y);
        // Which layer this is, only the mark tells.
        let mut watch = self.watch();
        let part = watch.part;
        let spent = watch.spent.of(part);
        spent.flops += 2.0 * rows as f64 * w.rows() as f64 * w.cols() as f64;
        spent.bytes += w.bytes() as f64;
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        self.charge(Part::Elementwise, (0.0, 0.0), || self.inner.rms_norm(x, weight, eps, y));
    }

    fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        self.charge(Part::Elementwise, (0.0, 0.0), || self.inner.silu_mul(gate, up));
    }

    fn gate(&self, activation: Activation, gate: &mut [f32], up: &[f32]) {
        self.charge(Part::Elementwise, (0.0, 0.0), || self.inner.gate(activation, gate, up));
    }

    fn top_k(&self, q: &Queries, kv: &KvView, request: &TopKRequest) -> Result<TopK, DeviceError> {
        let scores = (q.q_len * q.n_heads * request.keys.len() * q.head_dim) as f64;
        let bytes = (request.keys.len() * kv.n_kv_heads) as f64 * row_bytes(kv);
        self.charge(Part::Scoring, (2.0 * scores, bytes), || self.inner.top_k(q, kv, request))
    }

    fn top_k_listed(&self, q: &Queries, kv: &KvView, request: &ListedRequest) -> TopK {
        self.charge(Part::Scoring, (0.0, 0.0), || self.inner.top_k_listed(q, kv, request))
    }

    fn top_k_low_bit(&self, q: &Queries, keys: &LowBitKeys, k: usize) -> TopK {
        self.charge(Part::Scoring, (0.0, 0.0), || self.inner.top_k_low_bit(q, keys, k))
    }

    fn top_k_signs(&self, q: &Queries, request: &SignRequest) -> TopK {
        self.charge(Part::Scoring, (0.0, 0.0), || self.inner.top_k_signs(q, request))
    }

    fn attend(
        &self,
        q: &Queries,
        kv: &KvView,
        views: &[Vec<Segment>],
        rule: LogitRule,
        out: &mut [f32],
        lse: Option<&mut [f32]>,
    ) -> Result<(), DeviceError> {
        let work = attend_work(q, kv, views);
        self.charge(Part::Attention, work, || self.inner.attend(q, kv, views, rule, out, lse))
    }

    fn key_mass(
        &self,
        q: &Queries,
        kv: &KvView,
        views: &[Vec<Segment>],
        rule: LogitRule,
        lse: &[f32],
    ) -> Result<Vec<Vec<f32>>, DeviceError> {
        // The logits once more, without the sums of values.
        let (flops, bytes) = attend_work(q, kv, views);
        let work = (flops / 2.0, bytes / 2.0);
        self.charge(Part::Attention, work, || self.inner.key_mass(q, kv, views, rule, lse))
    }
}

/// Bytes of one key or value of one KV head.
fn row_bytes(kv: &KvView) -> f64 {
    let element = match kv.pages {
        Pages::F32 { .. } => 4,
        Pages::Bf16 { .. } => 2,
    };
    (kv.head_dim * element) as f64
}

/// Floating-point operations of an attention, and the bytes of the keys and values it attends to.
fn attend_work(q: &Queries, kv: &KvView, views: &[Vec<Segment>]) -> (f64, f64) {
    let (mut pairs, mut keys) = (0.0, 0.0);
    if let Some(last) = q.q_len.checked_sub(1) {
        for s in views.iter().flatten() {
            let of = |token: usize| visible(&s.keys, s.band, q.first + token);
            let (first, last) = (of(0), of(last));
            // What a query sees grows or shrinks evenly from the first to the last; exact but for gathered keys
            // that lie within the step.
            pairs += q.q_len as f64 * (first.len() + last.len()) as f64 / 2.0;
            keys += last.end.saturating_sub(first.start) as f64;
        }
    }
    // Each of several views serves one KV head.
    let share = 1.0 / views.len().max(1) as f64;
    let flops = 4.0 * pairs * (q.n_heads * q.head_dim) as f64 * share;
    (flops, 2.0 * keys * kv.n_kv_heads as f64 * row_bytes(kv) * share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reference;

    #[test]
    fn every_moment_is_charged_once_and_to_the_part_that_ran() {
        let before = Instant::now();
        let profiler = Profiler::new(Arc::new(Reference), None);
        let begun = Instant::now();
        let busy = |ms| {
            let until = Instant::now() + Duration::from_millis(ms);
            while Instant::now() < until {}
        };
        busy(2);
        profiler.mark(Part::Mlp);
        busy(4);
        let mut y = vec![0.0; 1 << 16];
        profiler.rms_norm(&vec![1.0; 1 << 16], &vec![1.0; 1 << 16], 1e-6, &mut y);
        busy(4);
        profiler.mark(Part::Selection);
        busy(6);
        let ending = Instant::now();
        let profile = profiler.take();
        let ended = Instant::now();
        let of = |part: Part| profile.parts().find(|(p, _)| *p == part).unwrap().1.time.as_secs_f64();
        // However long a busy machine keeps it waiting between any two of these lines.
        assert!((ending - begun..=ended - before).contains(&profile.total()), "{profile:?}");
        // Norms are charged to themselves, and the part marked before goes on after them.
        assert!(of(Part::Mlp) >= 0.008 && of(Part::Selection) >= 0.006 && of(Part::Elementwise) > 0.0);
        assert!(of(Part::Other) >= 0.002 && of(Part::Scoring) == 0.0);
        assert!(profiler.take().total() <= ending.elapsed(), "what was taken is not counted again");
    }
}
