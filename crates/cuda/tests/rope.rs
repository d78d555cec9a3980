//! Frequency tables on an emulated device.

#[path = "../../kernels/tests/common/mod.rs"]
mod common;
mod views;

use common::AnyStore;
use reattention_cuda::driver::Block;
use reattention_cuda::testing::key_mass::key_mass;
use reattention_cuda::testing::paged::{Copied, copy_queries};
use reattention_cuda::testing::rope::Ropes;
use reattention_cuda::testing::segments::Views;
use reattention_kernels::{Band, KeySet, Position, Queries, RopeTable};
use std::sync::Arc;
use views::{device, part, rope};

/// Keys and queries are unit vectors, so that each product is one cosine or sine, and the logarithm of a mass is the product.
#[test]
fn positions_within_the_tables_and_beyond_turn_alike() {
    let Some(driver) = device(1) else { return };
    let (dim, pairs, n_heads) = (16, 8, 16);
    let unit = |i: usize| (0..dim).map(move |e| if e == i { 1.0f32 } else { 0.0 });
    // The key of token t is the t-th unit vector.
    let mut rows = (0..1024).flat_map(unit).chain((0..1024).flat_map(unit));
    let store = AnyStore::new(false, 1024, 1, dim, || rows.next().unwrap_or(0.0));
    let data: Vec<f32> = (0..n_heads).flat_map(unit).collect();
    let q = Queries { data: &data, n_heads, q_len: 1, head_dim: dim, first: 1023 };
    let (kv, ropes) = (Copied::new(&driver, &store.view()).unwrap(), Ropes::new(&driver));
    let rows = copy_queries(&driver, &q).unwrap();
    let lse = Block::of(&driver, &vec![0.0f32; n_heads]).unwrap();
    let table = rope(dim, 500_000.0, 1.1);
    assert_eq!(table.positions(), 4096);
    let still = Arc::new(RopeTable::new(vec![0.0; pairs], 1.0, 1));
    for p in [0, 1, 255, 256, 4095, 4096, 5000, 1_234_567, 16_777_216, 3_000_000_000, -1, -700] {
        let mut segment =
            part(KeySet::Range(0..pairs), Band::CAUSAL, Position::Constant(p), Position::Constant(0), &table);
        segment.query_rope = still.clone();
        let views = Views::of(&driver, &ropes, &[vec![segment]]).unwrap();
        let mass = key_mass(&driver, &rows, &kv.cached(), &views, 1.0, lse.span()).unwrap().read().unwrap();
        let (mut cosines, mut sines) = (vec![0.0; pairs], vec![0.0; pairs]);
        table.cos_sin(p, &mut cosines, &mut sines);
        for i in 0..pairs {
            let (cosine, sine) = (f64::from(mass[i][i]).ln(), f64::from(mass[i + pairs][i]).ln());
            let (off_cos, off_sin) = (cosine - f64::from(cosines[i]), sine - f64::from(sines[i]));
            assert!(
                off_cos.abs() < 1e-6 && off_sin.abs() < 1e-6,
                "pair {i} at {p}: {off_cos:e}, {off_sin:e}"
            );
        }
    }
}

#[test]
fn a_table_is_copied_once_and_not_taken_for_another() {
    let Some(driver) = device(1) else { return };
    let ropes = Ropes::new(&driver);
    let one = rope(32, 10_000.0, 1.0);
    let copy = ropes.get(&one).unwrap();
    assert!(Arc::ptr_eq(&copy, &ropes.get(&one).unwrap()));
    // Equal, and yet another: what is compared is the table itself.
    assert!(!Arc::ptr_eq(&copy, &ropes.get(&rope(32, 10_000.0, 1.0)).unwrap()));
    // As many tables as anyone makes: those not used for long are given up, and with them their memory.
    let before = driver.free_memory().unwrap();
    for i in 0..1000 {
        ropes.get(&rope(32, 10_000.0 + i as f32, 1.0)).unwrap();
        assert!(Arc::ptr_eq(&copy, &ropes.get(&one).unwrap()), "used all the time, and copied again");
    }
    assert!(before - driver.free_memory().unwrap() <= 130 * (copy.bytes() + 4096));
}
