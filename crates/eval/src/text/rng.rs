//! The generator's own random numbers.

use std::collections::HashMap;

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): a counter stepped
/// by the golden ratio and mixed by two multiplications.
///
/// Written out here, not taken from a crate, so that a seed means the same text for ever. Not for secrets.
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// A generator for `seed`; every seed is good, zero included.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A generator for one purpose, named by `stream`, under `seed`: drawing more from one stream leaves the others as
    /// they were.
    pub fn stream(seed: u64, stream: u64) -> Self {
        let mut names = Self::new(stream ^ 0x5EED_7E87_0F1A_C0DE);
        Self::new(seed.rotate_left(17) ^ names.next_u64())
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number in `0..bound`; 0 where `bound` is 0.
    ///
    /// The upper half of a 128-bit product: its bias is below `bound / 2^64`, and it needs no retry.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// A number in `0.0..1.0` with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True in `percent` of 100 draws.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// A number in `from..=to`, which must not be empty.
    pub fn between(&mut self, from: i64, to: i64) -> i64 {
        from + self.below(usize::try_from(to - from + 1).unwrap_or(0)) as i64
    }

    /// Puts `items` in random order, every order as likely as any other (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// `count` different numbers in `0..bound` in the order drawn, or all of them if there are fewer.
    pub fn sample(&mut self, bound: usize, count: usize) -> Vec<usize> {
        // The shuffle above from the front, with only the moved places kept: drawing 4 of a million takes 4 steps.
        let mut moved = HashMap::new();
        (0..count.min(bound))
            .map(|at| {
                let other = at + self.below(bound - at);
                let here = moved.get(&at).copied().unwrap_or(at);
                moved.insert(other, here).unwrap_or(other)
            })
            .collect()
    }

    /// One of `choices`.
    pub(super) fn pick(&mut self, choices: &[&'static str]) -> &'static str {
        // Word lists are constants and never empty, but an index out of bounds must not be possible from here.
        choices.get(self.below(choices.len())).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::Rng;

    #[test]
    fn the_stream_is_the_published_one() {
        // First outputs of the reference C implementation for seed 1234567.
        let mut rng = Rng::new(1_234_567);
        let drawn: Vec<u64> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn bounds_hold_and_every_value_comes_up() {
        let mut rng = Rng::new(0);
        let mut seen = [0usize; 7];
        for _ in 0..7_000 {
            seen[rng.below(7)] += 1;
            assert!((0.0..1.0).contains(&rng.unit()));
        }
        assert!(seen.iter().all(|&n| (850..1150).contains(&n)), "{seen:?}");
        assert_eq!(rng.below(0), 0);
    }

    #[test]
    fn samples_are_distinct_and_orders_even() {
        let mut rng = Rng::new(3);
        let mut first = [0usize; 5];
        for _ in 0..5_000 {
            let mut drawn = rng.sample(5, 3);
            first[drawn[0]] += 1;
            drawn.sort_unstable();
            drawn.dedup();
            assert_eq!(drawn.len(), 3);
        }
        assert!(first.iter().all(|&n| (850..1150).contains(&n)), "{first:?}");
        let mut all = rng.sample(4, 9);
        rng.shuffle(&mut all);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
        let drawn: Vec<i64> = (0..200).map(|_| rng.between(-1, 1)).collect();
        assert!([-1, 0, 1].iter().all(|n| drawn.contains(n)) && drawn.iter().all(|n| (-1..=1).contains(n)));
    }

    #[test]
    fn streams_of_a_seed_differ() {
        assert_ne!(Rng::stream(1, 0).next_u64(), Rng::stream(1, 1).next_u64());
        assert_ne!(Rng::stream(1, 0).next_u64(), Rng::stream(2, 0).next_u64());
    }
}
