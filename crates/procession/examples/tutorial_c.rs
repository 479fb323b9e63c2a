//! Tutorial c in Rust: processes, a pool, a lock, a manager.
//!
//!     cargo run --release --example tutorial_c                    # all programs, one after another
//!     cargo run --release --example tutorial_c -- c04_manager     # one of them

mod programs;

fn main() -> programs::Outcome {
    procession::init();
    programs::run(&[
        ("c01_process_info", c01_process_info::main),
        ("c02_pool_callback", c02_pool_callback::main),
        ("c03_lock", c03_lock::main),
        ("c04_manager", c04_manager::main),
    ])
}

mod c01_process_info {
    use crate::programs::Outcome;
    use procession::Process;
    use std::{os::unix::process::parent_id, process};

    fn info(title: &str) {
        println!("{title}");
        println!("module name: {}", module_path!());
        println!("parent process: {}", parent_id());
        println!("process id: {}", process::id());
    }

    fn f(name: String) {
        info("function f");
        println!("hello {name}");
    }

    pub fn main() -> Outcome {
        info("main line");
        let mut processes = Vec::new();
        for i in 0..5 {
            processes.push(Process::spawn(f, (format!("the {i}-th bob"),))?);
        }
        for process in processes {
            process.join()?;
        }
        Ok(())
    }
}

mod c02_pool_callback {
    use crate::programs::Outcome;
    use procession::Pool;
    use std::{thread::sleep, time::Duration};

    fn add_by_input(i: u32) -> u32 {
        sleep(Duration::from_secs(2));
        i + 100
    }

    pub fn main() -> Outcome {
        let pool = Pool::new(5)?;
        for i in 0..10 {
            // Callbacks run in this process, so they may capture whatever they like.
            let end_call = |sum: &u32| println!("end_call {sum}");
            pool.apply_async_with(add_by_input, (i,), end_call, |error| eprintln!("{error}"))?;
        }
        println!("end");
        pool.close();
        pool.join();
        Ok(())
    }
}

mod c03_lock {
    use crate::programs::Outcome;
    use procession::{Lock, Process};

    fn f(lock: Lock<()>, i: u32) {
        // Released at the end of the block, in whatever way it is left.
        let _held = lock.acquire().unwrap();
        println!("hello world {i}");
    }

    pub fn main() -> Outcome {
        let lock = Lock::new(())?;
        for number in 0..10 {
            // Those that nobody joins are waited for at the end of the program.
            Process::spawn(f, (lock.clone(), number))?;
        }
        Ok(())
    }
}

mod c04_manager {
    use crate::programs::Outcome;
    use procession::{
        Manager, Process,
        manager::{DictProxy, ListProxy},
    };
    use serde::{Deserialize, Serialize};

    // A dictionary has one type of keys and one of values. Python's is of many; in Rust, these have names.
    #[derive(Debug, Serialize, Deserialize)]
    enum Key {
        Int(i64),
        Text(String),
        Float(f64),
    }

    #[derive(Debug, Serialize, Deserialize)]
    enum Value {
        None,
        Int(i64),
        Text(String),
    }

    fn f(dict: DictProxy<Key, Value>, list: ListProxy<i32>) {
        dict.set(Key::Int(1), Value::Text("1".to_owned())).unwrap();
        dict.set(Key::Text("2".to_owned()), Value::Int(2)).unwrap();
        dict.set(Key::Float(0.25), Value::None).unwrap();
        list.reverse().unwrap();
    }

    pub fn main() -> Outcome {
        let manager = Manager::new()?;
        let dict = manager.dict([])?;
        let list = manager.list(0..10)?;
        let child = Process::spawn(f, (dict.clone(), list.clone()))?;
        child.join()?;
        println!("{:?}", dict.items()?);
        println!("{:?}", list.to_vec()?);
        Ok(())
    }
}
