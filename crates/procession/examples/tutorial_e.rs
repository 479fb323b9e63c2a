//! Tutorial e in Rust: pools.
//!
//!     cargo run --release --example tutorial_e                    # all programs, one after another
//!     cargo run --release --example tutorial_e -- e04_pool_map    # one of them

mod programs;

fn main() -> programs::Outcome {
    procession::init();
    programs::run(&[
        ("e01_pool_apply_10000", e01_pool_apply_10000::main),
        ("e02_pool_callback", e02_pool_callback::main),
        ("e03_pool_apply_async_10000", e03_pool_apply_async_10000::main),
        ("e04_pool_map", e04_pool_map::main),
    ])
}

mod e01_pool_apply_10000 {
    use crate::programs::Outcome;
    use procession::Pool;
    use std::time::Instant;

    fn func(num: u32) -> u32 {
        num + 1
    }

    pub fn main() -> Outcome {
        let pool = Pool::new(5)?;
        let start = Instant::now();
        for i in 0..10_000 {
            // Waits for the result: one call after another, however many processes there are.
            println!("{}", pool.apply(func, (i,))?);
        }
        println!("{:?}", start.elapsed());
        Ok(())
    }
}

mod e02_pool_callback {
    use crate::programs::Outcome;
    use procession::Pool;

    fn func(i: u32) -> u32 {
        i + 1
    }

    pub fn main() -> Outcome {
        // As many processes as there are processors.
        let pool = Pool::builder().build()?;
        for i in 0..10 {
            let call_back = |result: &u32| println!("{}", result + 1);
            pool.apply_async_with(func, (i,), call_back, |error| eprintln!("{error}"))?;
        }
        pool.close();
        pool.join();
        Ok(())
    }
}

mod e03_pool_apply_async_10000 {
    use crate::programs::Outcome;
    use procession::Pool;
    use std::time::Instant;

    fn func(num: u32) -> u32 {
        num + 1
    }

    pub fn main() -> Outcome {
        let pool = Pool::new(5)?;
        let start = Instant::now();
        let mut results = Vec::new();
        for i in 0..10_000 {
            // Handed in, not waited for: all processes of the pool are at work at once.
            results.push(pool.apply_async(func, (i,))?);
        }
        pool.close();
        pool.join();
        for result in results {
            println!("{}", result.get()?);
        }
        println!("{:?}", start.elapsed());
        Ok(())
    }
}

mod e04_pool_map {
    use crate::programs::Outcome;
    use procession::Pool;

    fn func(num: u32) -> u32 {
        println!("{}", num + 1);
        num + 1
    }

    pub fn main() -> Outcome {
        let pool = Pool::new(5)?;
        let results: Vec<u32> = pool.map(func, 0..100)?;
        println!("主进程中map的返回值 {results:?}");
        Ok(())
    }
}
