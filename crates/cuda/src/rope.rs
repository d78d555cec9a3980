//! Frequency tables on the device, copied once.

use crate::driver::{Address, Block, CudaError, Driver};
use bytemuck::{Pod, Zeroable};
use reattention_kernels::RopeTable;
use std::sync::{Arc, Mutex, PoisonError};

/// Tables kept at most. One model uses few; methods that scale positions by head (Ms-PoE) use one a ratio.
const MOST_TABLES: usize = 128;

/// What was copied to one device so far.
#[derive(Debug)]
pub struct Ropes {
    driver: Arc<dyn Driver>,
    /// Least recently used first. A table is known by its address, which holding it keeps from being another's.
    held: Mutex<Vec<(Arc<RopeTable>, Arc<DeviceRope>)>>,
}

impl Ropes {
    /// None yet.
    pub fn new(driver: &Arc<dyn Driver>) -> Self {
        Self { driver: Arc::clone(driver), held: Mutex::default() }
    }

    /// The copy of `table`, made at the first call.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn get(&self, table: &Arc<RopeTable>) -> Result<Arc<DeviceRope>, CudaError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match held.iter().position(|(of, _)| Arc::ptr_eq(of, table)) {
            Some(at) => held.remove(at),
            None => (Arc::clone(table), Arc::new(DeviceRope::new(&self.driver, table)?)),
        };
        let rope = Arc::clone(&found.1);
        held.push(found);
        if held.len() > MOST_TABLES {
            held.remove(0);
        }
        Ok(rope)
    }
}

/// A [`RopeTable`] on the device.
#[derive(Debug)]
pub struct DeviceRope {
    block: Block,
    pairs: usize,
    positions: usize,
    multiplier: f32,
}

impl DeviceRope {
    /// Copies `table`.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn new(driver: &Arc<dyn Driver>, table: &RopeTable) -> Result<Self, CudaError> {
        let (fine, coarse) = table.tables();
        let all = [table.inv_freq(), fine, coarse].concat();
        // Kernels count positions within the tables in 32 bits.
        let positions = table.positions().min(i32::MAX as usize);
        Ok(Self {
            block: Block::of(driver, &all)?,
            pairs: table.inv_freq().len(),
            positions,
            multiplier: table.multiplier(),
        })
    }

    /// Pairs of elements that are turned: half the length of a row.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Whether it is a table of this device.
    pub(crate) fn is_of(&self, driver: &Arc<dyn Driver>) -> bool {
        self.block.is_of(driver)
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.block.bytes()
    }

    pub(crate) fn entry(&self) -> RopeEntry {
        let at = |floats: usize| self.block.at() + 4 * floats as Address;
        RopeEntry {
            coarse: at(self.pairs + RopeTable::FINE * 2 * self.pairs),
            fine: at(self.pairs),
            inv_freq: at(0),
            positions: self.positions as i64,
            multiplier: self.multiplier,
            unused: 0,
        }
    }
}

/// `Rope` of kernels/segments.cuh.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RopeEntry {
    /// `[n, 2, pairs]`, times the multiplier, for every 256th position.
    coarse: Address,
    /// `[256, 2, pairs]`.
    fine: Address,
    /// `[pairs]`.
    inv_freq: Address,
    /// Positions that the tables cover.
    positions: i64,
    multiplier: f32,
    unused: i32,
}
