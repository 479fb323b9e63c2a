//! Pools of worker processes.

use procession::Pool;

procession::test_support!();

fn add(a: u32, b: u32) -> u32 {
    a + b
}

#[test]
fn calls_are_done() {
    let pool = Pool::new(2).unwrap();
    assert_eq!(pool.apply(add, (1, 2)).unwrap(), 3);
    assert_eq!(pool.map(|n: u32| n * n, 0..100).unwrap(), (0..100).map(|n| n * n).collect::<Vec<_>>());
}
