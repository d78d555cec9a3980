//! From the best keys of many queries and heads to spans of tokens, without a way through the host: vote, clip, expand.
//!
//! The rule is that of the ReAttention method (arXiv 2407.15176, section 3): each of the best keys of a query and head is a vote
//! for its token, the `clip` tokens with the heaviest votes stay (ties to the lower token), and each becomes a span that is
//! cut off at the ends of the middle.
//!
//! Weights of votes are single precision as on the host, but a token's are added up in steps of 2⁻³² rather than in double
//! precision, so that their order does not matter: a vote may count up to 2⁻³² less than it weighs, and never more than
//! 2⁶³ steps by the number of votes (8192 for 262,144 of them). A weight that is no number counts nothing.

use crate::driver::{Arg, Block, CudaError, Driver, Function, Launch, Module};
use crate::top_k::Found;
use bytemuck::{Pod, Zeroable};
use reattention_kernels::VoteRule;
use std::ops::Range;
use std::sync::Arc;

/// The kernels.
pub const MODULE: Module = Module { name: "select", text: include_str!("../kernels/select.cu") };

/// Its macros: nothing here looks at keys.
pub const DEFINES: [(&str, i64); 1] = [("ELEMENT", 0)];

/// Threads of a block; twin of the macro in `select.cu`.
const BLOCK: usize = 1024;

/// Up to so many votes and words of the bitmap one block does everything.
const ONE_BLOCK: (usize, usize) = (4096, 8 * BLOCK);

/// How votes become spans.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// What a vote weighs.
    pub vote: VoteRule,
    /// Turns scores into logits; not negative.
    pub scale: f32,
    /// The most tokens that become spans.
    pub clip: usize,
    /// Where a span begins, counted from its token: `-16` for 16 tokens before it.
    pub before: i64,
    /// Where a span ends, likewise: the first token no longer in it.
    pub after: i64,
    /// Tokens that can be voted for, and that spans may hold. Other votes do not count.
    pub middle: Range<usize>,
}

/// Tokens chosen, on the device.
#[derive(Debug)]
pub struct Selected {
    /// Token indices, u32, ascending and distinct.
    pub tokens: Arc<Block>,
    /// How many there are, u32 `[1]`.
    pub count: Arc<Block>,
    /// The most there can be: the length of `tokens`.
    pub capacity: usize,
    /// All are below this one.
    pub end: usize,
}

impl Selected {
    /// Copies the tokens to the host.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self) -> Result<Vec<u32>, CudaError> {
        let count: Vec<u32> = self.count.read(0, 1)?;
        self.tokens.read(0, count[0] as usize)
    }
}

/// Memory that selections use one after another, and the size of the largest of them.
#[derive(Debug)]
pub struct Tallies {
    driver: Arc<dyn Driver>,
    state: Block,
    /// Tokens of a middle that there is room for, and votes.
    room: (usize, usize),
    /// Whether a selection has begun and not ended: its votes are still there.
    dirty: bool,
    #[allow(dead_code, reason = "the state points to them")]
    blocks: Vec<Block>,
}

/// `Tallies` of `select.cu`.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
struct State {
    pointers: [u64; 6],
    heaviest: u64,
    not_lightest: u64,
    n_candidates: u32,
    most: u32,
}

impl Tallies {
    /// Without room; it comes with the first selection.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn new(driver: &Arc<dyn Driver>) -> Result<Self, CudaError> {
        let state = Block::of(driver, &[State::default()])?;
        Ok(Self { driver: Arc::clone(driver), state, room: (0, 0), dirty: false, blocks: Vec::new() })
    }

    /// Tokens of the largest selection so far.
    ///
    /// # Errors
    /// When the device fails.
    pub fn most(&self) -> Result<usize, CudaError> {
        let most: Vec<u32> = self.state.read(std::mem::offset_of!(State, most), 1)?;
        Ok(most[0] as usize)
    }

    /// Makes room for selections from a middle of `length` tokens by `votes`.
    fn grow(&mut self, length: usize, votes: usize) -> Result<(), CudaError> {
        if length <= self.room.0 && votes <= self.room.1 && !self.dirty {
            return Ok(());
        }
        // Every chunk has a longer middle than the one before: an eighth more than needed makes growth rare.
        let with_slack =
            |wanted: usize, has: usize| if wanted > has { wanted + wanted / 8 + 1024 } else { has };
        let (length, votes) = (with_slack(length, self.room.0), with_slack(votes, self.room.1));
        // What was there is clean, so nothing is copied, and it may go first.
        (self.room, self.blocks) = ((0, 0), Vec::new());
        let words = length.div_ceil(32);
        let blocks = [
            Block::zeroed(&self.driver, length * size_of::<u64>())?,
            Block::zeroed(&self.driver, words * size_of::<u32>())?,
            Block::zeroed(&self.driver, words * size_of::<u32>())?,
            Block::new(&self.driver, votes * size_of::<u32>())?,
            Block::new(&self.driver, votes * size_of::<u64>())?,
            Block::new(&self.driver, words.div_ceil(BLOCK) * size_of::<u32>())?,
        ];
        let state = State { pointers: blocks.each_ref().map(Block::at), ..State::default() };
        self.state.write(0, &bytemuck::bytes_of(&state)[..std::mem::offset_of!(State, most)])?;
        (self.room, self.blocks, self.dirty) = ((length, votes), Vec::from(blocks), false);
        Ok(())
    }
}

/// Chooses tokens by the votes of `found`. `tallies` is as it was before when the selection is done, but for
/// [`Tallies::most`].
///
/// # Errors
/// When the device has not enough memory, or fails.
///
/// # Panics
/// If `found` holds more than 2³¹ votes, or the middle as many tokens.
pub fn select(
    driver: &Arc<dyn Driver>,
    found: &Found,
    choice: &Choice,
    tallies: &mut Tallies,
) -> Result<Selected, CudaError> {
    if !tallies.state.is_of(driver) {
        return Err(CudaError::Foreign { what: "tallies", device: driver.facts().name.clone() });
    }
    let votes = found.q_len * found.n_heads * found.k;
    let Range { start, end } = choice.middle;
    let length = end.saturating_sub(start);
    assert!(
        votes <= i32::MAX as usize && end <= i32::MAX as usize,
        "{votes} votes for tokens {start}..{end}"
    );
    let span = usize::try_from(choice.after.saturating_sub(choice.before)).unwrap_or(0);
    let capacity = choice.clip.min(votes).saturating_mul(span).min(length);
    if capacity == 0 {
        let (tokens, count) = (Block::new(driver, 0)?, Block::zeroed(driver, 4)?);
        return Ok(Selected { tokens: Arc::new(tokens), count: Arc::new(count), capacity, end: 0 });
    }
    tallies.grow(length, votes)?;
    let selected = Selected {
        tokens: Arc::new(Block::new(driver, capacity * size_of::<u32>())?),
        count: Arc::new(Block::new(driver, size_of::<u32>())?),
        capacity,
        end,
    };

    let int = |x: usize| Arg::Int(x.min(i32::MAX as usize) as i32);
    // A span that begins or ends further away than the middle is long reaches its ends.
    let offset = |x: i64| Arg::Int(x.clamp(-(length as i64), length as i64) as i32);
    let rule = match choice.vote {
        VoteRule::Count => 0,
        VoteRule::Margin => 1,
        VoteRule::Softmax => 2,
    };
    // A power of two, so that all votes together stay below 2⁶³.
    let limit = (63 - votes.next_power_of_two().trailing_zeros()) as i32;
    let tally = [
        found.indices.span().arg(driver, votes, size_of::<u32>())?,
        found.scores.span().arg(driver, votes, size_of::<f32>())?,
        int(votes),
        int(found.k),
        Arg::Int(rule),
        Arg::Float(choice.scale),
        Arg::Float(2f32.powi(limit)),
        int(start),
        int(length),
    ];
    let choose = [int(choice.clip), offset(choice.before), offset(choice.after)];
    let (state, length_arg) = (tallies.state.arg(), int(length));
    let out = [selected.tokens.arg(), selected.count.arg()];
    let words = length.div_ceil(32);
    let kernel = |name| driver.function(&MODULE, &DEFINES, name);
    let launch = |function: Function, blocks: usize, threads: usize, args: &[Arg]| {
        let launch = Launch { grid: [blocks as u32, 1, 1], threads: threads as u32, shared: 0 };
        // SAFETY: arguments as the kernels declare them; they read the votes found, and write to the tallies, which have room for
        // all of them and the whole middle, and to as many tokens as there can be.
        unsafe { driver.launch(function, launch, args) }
    };
    tallies.dirty = true;
    if votes <= ONE_BLOCK.0 && words <= ONE_BLOCK.1 {
        let args = [&tally[..], &choose, &[state], &out].concat();
        launch(kernel("select_all")?, 1, BLOCK, &args)?;
        tallies.dirty = false;
        return Ok(selected);
    }
    let threads = 256;
    let most_blocks = 8 * driver.facts().multiprocessors.max(1);
    let blocks = votes.div_ceil(threads);
    launch(kernel("select_tally")?, blocks, threads, &[&tally[..], &[state]].concat())?;
    launch(kernel("select_weigh")?, blocks.min(most_blocks), threads, &[state])?;
    launch(kernel("select_choose")?, 1, BLOCK, &[&choose[..], &[length_arg, state]].concat())?;
    launch(kernel("select_count")?, words.div_ceil(BLOCK), BLOCK, &[length_arg, state])?;
    let args = [&[int(start), length_arg, state][..], &out].concat();
    launch(kernel("select_list")?, words.div_ceil(BLOCK), BLOCK, &args)?;
    tallies.dirty = false;
    Ok(selected)
}
