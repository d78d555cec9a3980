//! The arithmetic of `reattention`, behind one [`Backend`] trait.
//!
//! A backend knows nothing of methods, models or tokens. It multiplies matrices, finds the cached keys with the
//! largest scores, and attends over *segments* of cached keys (see [`Segment`]). Two implementations are here:
//!
//! * [`Reference`]: plain f32 loops, slow and easy to read. It is the oracle the others are tested against.
//! * [`Cpu`]: SIMD paths chosen at run time, on a persistent thread pool.
//!
//! Shapes are written outermost first, for instance `[q_len, n_heads, head_dim]`: one token's heads lie together.
#![deny(missing_docs)]

mod activation;
mod arena;
mod backend;
pub mod bench;
mod blocks;
mod buffer;
mod cold;
pub mod cpu;
mod device;
mod kv;
pub mod limits;
mod listed;
mod low_bit;
mod matrix;
pub mod profile;
mod reference;
mod rope;
mod segment;
mod signs;
mod top_k;

pub use activation::Activation;
pub use arena::{Arena, Slab};
pub use backend::{Backend, LogitRule, Queries};
pub use blocks::BlockType;
pub use buffer::Buffer;
pub use cold::{ColdError, ColdFile, Extent};
pub use cpu::Cpu;
pub use device::{
    CacheShape, Chosen, ChosenSegment, Device, DeviceCache, DeviceError, DeviceMatrix, DeviceQueries,
    DeviceType, DeviceView, KvRoom, Memory, Search, Tensor, VoteRule,
};
pub use half::{bf16, f16};
pub use kv::{Element, KvView, PAGE, Pages};
pub use listed::ListedRequest;
pub use low_bit::LowBitKeys;
pub use matrix::{Matrix, MatrixData, MatrixError};
pub use reference::Reference;
pub use rope::RopeTable;
pub use segment::{Band, KeySet, Position, Segment};
pub use signs::{SignGroup, SignRequest};
pub use top_k::{HeadPairing, TopK, TopKRequest, TopKRule};
