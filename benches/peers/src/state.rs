//! A sequence saved by llama.cpp, made longer by repeating its cells at fresh positions.
//!
//! Layout (`llama_kv_cache::state_write` of llama.cpp, sequence state, one stream; little-endian): magic, sequence and
//! number of streams, number of cells; for each cell position, number of sequences (1) and sequence; whether values are
//! transposed, number of layers, two rotation sizes; for each layer the keys' type, the bytes of a row, and the rows; for
//! each layer the values alike, or, transposed, their type, the bytes of an element, the number of rows, and rows of
//! one element a cell.

use anyhow::{Context, Result, ensure};

/// The saved sequence `state` of `from` cells as one of `to` cells: cell `i` is cell `i % from` at position `i`.
///
/// # Errors
/// When `state` is not laid out as above.
pub(crate) fn repeat(state: &[u8], from: usize, to: usize) -> Result<Vec<u8>> {
    ensure!(from > 0, "an empty sequence cannot be repeated");
    let mut copy = Copy { rest: state, out: Vec::with_capacity(state.len().div_ceil(from) * to), from, to };
    copy.bytes(8)?;
    let streams = copy.number()?;
    ensure!(streams == 1, "{streams} streams where one was expected");
    let cells = copy.take_number()?;
    ensure!(cells == from, "{cells} cells where {from} were expected");
    copy.out.extend_from_slice(&u32::try_from(to)?.to_le_bytes());
    copy.positions()?;
    let transposed = copy.number()?;
    let layers = copy.number()?;
    ensure!(transposed <= 1 && layers <= 1024, "{layers} layers, transposed {transposed}");
    copy.bytes(8)?;
    for _ in 0..layers {
        copy.rows()?;
    }
    for _ in 0..layers {
        if transposed == 1 { copy.columns()? } else { copy.rows()? }
    }
    ensure!(copy.rest.is_empty(), "{} bytes after the last layer", copy.rest.len());
    Ok(copy.out)
}

struct Copy<'a> {
    rest: &'a [u8],
    out: Vec<u8>,
    from: usize,
    to: usize,
}

impl<'a> Copy<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n).context("the saved sequence ends early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn take_number(&mut self) -> Result<usize> {
        let bytes: [u8; 4] = self.take(4)?.try_into()?;
        Ok(u32::from_le_bytes(bytes) as usize)
    }

    /// Copies `n` bytes as they are.
    fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        let bytes = self.take(n)?;
        self.out.extend_from_slice(bytes);
        Ok(bytes)
    }

    /// Copies a number of four bytes.
    fn number(&mut self) -> Result<usize> {
        let bytes: [u8; 4] = self.bytes(4)?.try_into()?;
        Ok(u32::from_le_bytes(bytes) as usize)
    }

    fn positions(&mut self) -> Result<()> {
        let mut sequence = [0; 4];
        for position in 0..self.from {
            let (found, sequences) = (self.take_number()?, self.take_number()?);
            ensure!(
                (found, sequences) == (position, 1),
                "cell {position} stands at {found} in {sequences} sequences"
            );
            sequence = self.take(4)?.try_into()?;
        }
        for position in 0..self.to {
            self.out.extend_from_slice(&u32::try_from(position)?.to_le_bytes());
            self.out.extend_from_slice(&1u32.to_le_bytes());
            self.out.extend_from_slice(&sequence);
        }
        Ok(())
    }

    /// One layer's rows, a row a cell.
    fn rows(&mut self) -> Result<()> {
        self.number()?;
        let row = usize::try_from(u64::from_le_bytes(self.bytes(8)?.try_into()?))?;
        self.cells(row)
    }

    /// One layer's transposed rows, an element a cell.
    fn columns(&mut self) -> Result<()> {
        self.number()?;
        let (element, rows) = (self.number()?, self.number()?);
        (0..rows).try_for_each(|_| self.cells(element))
    }

    /// `size` bytes for each cell, again and again.
    fn cells(&mut self, size: usize) -> Result<()> {
        let once = self.take(self.from.checked_mul(size).context("a row is too long")?)?;
        let bytes = self.to * size;
        let end = self.out.len() + bytes;
        while self.out.len() < end {
            let left = end - self.out.len();
            self.out.extend_from_slice(&once[..left.min(once.len())]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A saved sequence of two layers whose cell `i` holds bytes made from `i % period`.
    fn saved(cells: usize, period: usize, transposed: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let numbers = |out: &mut Vec<u8>, list: &[u32]| list.iter().for_each(|n| out.extend(n.to_le_bytes()));
        numbers(&mut out, &[0x6767_7371, 0, 1, cells as u32]);
        (0..cells as u32).for_each(|i| numbers(&mut out, &[i, 1, 0]));
        numbers(&mut out, &[transposed.into(), 2, 0, 0]);
        let rows = |out: &mut Vec<u8>, salt: usize| {
            numbers(out, &[1]);
            out.extend(6u64.to_le_bytes());
            (0..cells * 6).for_each(|i| out.push(((i / 6 % period) * 6 + i % 6 + salt) as u8));
        };
        (0..2).for_each(|layer| rows(&mut out, layer));
        for layer in 0..2 {
            if transposed {
                numbers(&mut out, &[1, 2, 3]);
                for row in 0..3 {
                    (0..cells).for_each(|i| out.extend([(i % period) as u8, (row + layer) as u8]));
                }
            } else {
                rows(&mut out, 100 + layer);
            }
        }
        out
    }

    #[test]
    fn a_repeated_sequence_is_what_a_longer_one_is_saved_as() {
        for transposed in [false, true] {
            for to in [3, 4, 7, 9] {
                let longer = repeat(&saved(3, 3, transposed), 3, to).unwrap();
                assert_eq!(longer, saved(to, 3, transposed), "to {to}, transposed: {transposed}");
            }
        }
    }

    #[test]
    fn another_layout_is_an_error() {
        let state = saved(3, 3, false);
        assert!(repeat(&state, 4, 8).is_err());
        assert!(repeat(&state[..state.len() - 1], 3, 8).is_err());
        assert!(repeat(&[&state[..], &[0]].concat(), 3, 8).is_err());
    }
}
