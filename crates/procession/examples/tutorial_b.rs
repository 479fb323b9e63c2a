//! Tutorial b in Rust: processes, a lock, pools, queues, a manager.
//!
//!     cargo run --release --example tutorial_b                        # all programs, one after another
//!     cargo run --release --example tutorial_b -- b05_lock_tickets    # one of them

mod programs;

fn main() -> programs::Outcome {
    procession::init();
    programs::run(&[
        ("b01_process_simple", b01_process_simple::main),
        ("b02_process_args", b02_process_args::main),
        ("b03_process_daemon", b03_process_daemon::main),
        ("b04_process_subclass", b04_process_subclass::main),
        ("b05_lock_tickets", b05_lock_tickets::main),
        ("b06_pool_apply", b06_pool_apply::main),
        ("b07_pool_apply_async", b07_pool_apply_async::main),
        ("b08_pool_callback", b08_pool_callback::main),
        ("b09_queue_basics", b09_queue_basics::main),
        ("b10_queue_blocking", b10_queue_blocking::main),
        ("b11_queue_nonblocking", b11_queue_nonblocking::main),
        ("b12_joinable_queue", b12_joinable_queue::main),
        ("b13_manager_dict", b13_manager_dict::main),
    ])
}

/// A first process.
mod b01_process_simple {
    use crate::programs::Outcome;
    use procession::Process;
    use std::{os::unix::process::parent_id, process, thread::sleep, time::Duration};

    fn demo_one() {
        println!("start");
        sleep(Duration::from_secs(10));
        println!("{} {}", process::id(), parent_id());
        println!("end");
    }

    pub fn main() -> Outcome {
        // Any function can be run in another process as it is; it needs no mark.
        let _child = Process::spawn(demo_one, ())?;
        println!("mian");
        // It is waited for at the end of the program, as it was not joined before.
        Ok(())
    }
}

/// Arguments, and several processes.
mod b02_process_args {
    use crate::programs::Outcome;
    use procession::Process;
    use std::{os::unix::process::parent_id, process, thread::sleep, time::Duration};

    fn demo_one(num: u32) {
        println!("start{num}");
        sleep(Duration::from_secs(1));
        println!("{} {} {num}", process::id(), parent_id());
        println!("end{num}");
    }

    pub fn main() -> Outcome {
        let mut children = Vec::new();
        for i in 0..5 {
            // The arguments are a tuple; (i,) is one of a single value.
            children.push(Process::spawn(demo_one, (i,))?);
        }
        // Joined after all have been started. Joined in the loop above, one would begin when the other has ended.
        for child in children {
            child.join()?;
        }
        println!("mian");
        Ok(())
    }
}

/// A daemonic process ends with its parent, done or not.
mod b03_process_daemon {
    use crate::programs::Outcome;
    use procession::Process;
    use std::{thread::sleep, time::Duration};

    fn demo_one() {
        println!("start");
        sleep(Duration::from_secs(3));
        println!("end");
    }

    pub fn main() -> Outcome {
        // What is more than function and arguments goes through the builder.
        let _child = Process::builder().daemon(true).spawn(demo_one, ())?;
        println!("main");
        Ok(())
    }
}

/// A process with a state of its own. Python derives a class from Process and overrides `run()`; Rust sends a value, and
/// names the method that is to be run on it.
mod b04_process_subclass {
    use crate::programs::Outcome;
    use procession::{Process, current_process};
    use serde::{Deserialize, Serialize};
    use std::{thread::sleep, time::Duration};

    // What is sent to another process is serialized.
    #[derive(Serialize, Deserialize)]
    struct MyProcess {
        pause: Duration,
    }

    impl MyProcess {
        fn run(self) {
            println!("必须重写进程类的run方法");
            println!("调用start方法时,会执行这个重写的run方法");
            println!("{} {:?}", current_process().pid(), current_process());
            sleep(self.pause);
        }
    }

    pub fn main() -> Outcome {
        let mut children = Vec::new();
        for _ in 0..20 {
            let process = MyProcess { pause: Duration::from_secs(1) };
            let child = Process::spawn(MyProcess::run, (process,))?;
            if child.is_alive() {
                child.terminate()?;
                sleep(Duration::from_millis(500));
                println!("{}", child.is_alive());
            }
            children.push(child);
        }
        for child in children {
            // It was ended by a signal, so there is no result: the error says which signal it was.
            let ended = child.join().unwrap_err();
            eprintln!("{ended}");
        }
        Ok(())
    }
}

/// A lock. Each process has memory of its own; where several change the same data, only one may at a time.
mod b05_lock_tickets {
    use crate::programs::Outcome;
    use procession::{Lock, Process};
    use std::{fs, process, time::SystemTime};

    /// How many tickets are left?
    fn demo_one() -> u32 {
        fs::read_to_string("data.txt").unwrap().parse().unwrap_or(0)
    }

    /// Buys one.
    fn demo_two(lock: &Lock<()>) {
        let n = demo_one();
        println!("{} end,结束查询余票:{n}\n", process::id());
        // Acquired until `_held` goes out of scope. Were a process killed while it holds the lock, the next one would
        // get it in an `Err` that says so, hence the `unwrap`.
        let _held = lock.acquire().unwrap();
        if n > 0 {
            fs::write("data.txt", "0").unwrap();
            println!("{} 购票成功\n", process::id());
        } else {
            println!("{} 失败\n", process::id());
        }
    }

    fn buy(lock: Lock<()>, start: SystemTime) {
        demo_two(&lock);
        println!("end time {}!!!!!!!!!!!!!!!", start.elapsed().unwrap().as_secs());
    }

    pub fn main() -> Outcome {
        let start = SystemTime::now();
        // A lock owns the data that it guards. Here that is a file, so it has none.
        let lock = Lock::new(())?;
        let mut children = Vec::new();
        for _ in 0..30 {
            // A clone is another handle to the same lock.
            children.push(Process::spawn(buy, (lock.clone(), start))?);
        }
        println!("main----------------------------");
        for child in children {
            child.join()?;
        }
        Ok(())
    }
}

/// `Pool::apply`: one call, waited for.
mod b06_pool_apply {
    use crate::programs::Outcome;
    use procession::Pool;
    use std::{process, thread::sleep, time::Duration};

    fn work(n: u32) -> u32 {
        println!("{} run", process::id());
        sleep(Duration::from_secs(1));
        n.pow(2)
    }

    pub fn main() -> Outcome {
        // Three processes, which do all of the work.
        let pool = Pool::new(3)?;
        let mut results = Vec::new();
        for i in 0..10 {
            // Each call waits for its result, so only one of the processes is at work at a time.
            results.push(pool.apply(work, (i,))?);
        }
        println!("{results:?}");
        Ok(())
    }
}

/// `Pool::apply_async`: calls that are not waited for.
mod b07_pool_apply_async {
    use crate::programs::Outcome;
    use procession::Pool;
    use std::{process, thread::sleep, time::Duration};

    fn work(n: u32) -> u32 {
        println!("{} run", process::id());
        sleep(Duration::from_secs(1));
        n.pow(2)
    }

    pub fn main() -> Outcome {
        let pool = Pool::new(3)?;
        let mut results = Vec::new();
        for i in 0..10 {
            // Whichever of the three processes is free takes the next one.
            results.push(pool.apply_async(work, (i,))?);
        }
        // No more tasks; and wait until all are done.
        pool.close();
        pool.join();
        for result in results {
            println!("执行结果输出: {}", result.get()?);
        }
        Ok(())
    }
}

/// A callback is called with the result of a task, in the process that owns the pool.
mod b08_pool_callback {
    use crate::programs::Outcome;
    use procession::Pool;
    use std::{
        process,
        thread::sleep,
        time::{Duration, SystemTime, UNIX_EPOCH},
    };

    fn work() -> f64 {
        sleep(Duration::from_secs(1));
        println!("{} 进程 work", process::id());
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
    }

    pub fn main() -> Outcome {
        let pool = Pool::new(2)?;
        for _ in 0..5 {
            // One of the two is called, whatever becomes of the call.
            let print = |time: &f64| println!("处理回调结果:{time}");
            pool.apply_async_with(work, (), print, |error| eprintln!("{error}"))?;
        }
        pool.close();
        pool.join();
        println!("main end");
        Ok(())
    }
}

/// A bounded queue.
mod b09_queue_basics {
    use crate::programs::Outcome;
    use procession::Queue;

    pub fn main() -> Outcome {
        let queue = Queue::bounded(3)?;
        println!("{}", queue.is_empty());
        println!("{}", queue.is_full());
        for letter in ['a', 'b', 'c', 'd', 'e', 'f', 'g'] {
            if queue.is_full() {
                println!("队列已满");
                // First in, first out.
                let data = queue.get()?;
                println!("取走了一个 {data}, 还有{} 个", queue.len());
            } else {
                // Waits while the queue is full; try_put does not wait.
                queue.put(letter)?;
                println!("加入一个");
                println!("当前队列数量: {}", queue.len());
            }
        }
        Ok(())
    }
}

/// A queue between two processes.
mod b10_queue_blocking {
    use crate::programs::Outcome;
    use procession::{Process, Queue};
    use std::{process, time::SystemTime};

    // What goes through the queue: a text, or None at the end.
    type Texts = Queue<Option<String>>;

    fn add_queue(queue: Texts) {
        for _ in 0..10 {
            queue.put(Some(format!("{} -- {:?}", process::id(), SystemTime::now()))).unwrap();
            println!("已生产 {}  ,添加到队列", process::id());
        }
        queue.put(None).unwrap();
    }

    fn delete_queue(queue: Texts) {
        // Waits for the next one; ends at the None.
        while let Some(_text) = queue.get().unwrap() {
            println!("{}已消费", process::id());
        }
    }

    pub fn main() -> Outcome {
        let queue = Texts::new()?;
        let producer = Process::spawn(add_queue, (queue.clone(),))?;
        let consumer = Process::spawn(delete_queue, (queue,))?;
        producer.join()?;
        consumer.join()?;
        Ok(())
    }
}

/// Put and get that don't wait: a full or empty queue is an error that can be told from others.
mod b11_queue_nonblocking {
    use crate::programs::Outcome;
    use procession::{
        Process, Queue,
        queue::{TryGetError, TryPutError},
    };
    use std::{fs, process, time::SystemTime};

    fn enter(queue: Queue<String>) {
        match queue.try_put(format!("{} -- {:?}", process::id(), SystemTime::now())) {
            Ok(()) => println!("用户 {} 进来要抽奖了 ,添加到队列", process::id()),
            // The error holds what could not be put.
            Err(TryPutError::Full(_user)) => println!("队列已满, {}", process::id()),
            Err(error) => panic!("{error}"),
        }
    }

    fn draw(queue: Queue<String>) {
        let user = match queue.try_get() {
            Ok(user) => user,
            Err(TryGetError::Empty) => return println!("队列已空"),
            Err(error) => panic!("{error}"),
        };
        let number: u32 = fs::read_to_string("data.txt").unwrap().parse().unwrap_or(0);
        if number > 0 {
            fs::write("data.txt", (number - 1).to_string()).unwrap();
            println!("{}用户 '{user}' 已抽奖,抽奖前库存:{number},抽奖后库存:{}", process::id(), number - 1);
        } else {
            println!("{}无库存了", process::id());
        }
    }

    pub fn main() -> Outcome {
        let queue = Queue::bounded(2)?;
        let mut children = Vec::new();
        for _ in 0..10 {
            children.push(Process::spawn(enter, (queue.clone(),))?);
        }
        for _ in 0..100 {
            children.push(Process::spawn(draw, (queue.clone(),))?);
        }
        for child in children {
            child.join()?;
        }
        Ok(())
    }
}

/// A queue that knows whether what was taken has also been dealt with.
mod b12_joinable_queue {
    use crate::programs::Outcome;
    use procession::{JoinableQueue, Process};
    use std::{process, time::SystemTime};

    fn add_queue(queue: JoinableQueue<String>, name: String) {
        for _ in 0..10 {
            queue.put(format!("{name}{} -- {:?}", process::id(), SystemTime::now())).unwrap();
            println!("{name}已生产 {}  ,添加到队列, ", process::id());
        }
        // Waits until task_done() was called for each that was put.
        queue.join();
        println!("已全部消费完了---------{}", process::id());
    }

    fn delete_queue(queue: JoinableQueue<String>) {
        loop {
            let _text = queue.get().unwrap();
            queue.task_done().unwrap();
            println!("{}已消费", process::id());
        }
    }

    pub fn main() -> Outcome {
        let queue = JoinableQueue::new()?;
        let mut producers = Vec::new();
        for name in ["猪蹄子", "涮羊肉", "羊蝎子"] {
            producers.push(Process::spawn(add_queue, (queue.clone(), name.to_owned()))?);
        }
        // They never end by themselves, but with this process.
        let mut consumers = Vec::new();
        for _ in 0..2 {
            consumers.push(Process::builder().daemon(true).spawn(delete_queue, (queue.clone(),))?);
        }
        for producer in producers {
            producer.join()?;
        }
        Ok(())
    }
}

/// A dictionary that lives in a process of its own, and that all others share.
mod b13_manager_dict {
    use crate::programs::Outcome;
    use procession::{Lock, Manager, Process, manager::DictProxy};
    use std::collections::BTreeMap;

    fn work(lock: Lock<()>, data: DictProxy<String, i32>) {
        // Get and set are two requests: without the lock, others could come between.
        let _held = lock.acquire().unwrap();
        let count = data.get("count").unwrap().unwrap();
        data.set("count".to_owned(), count - 1).unwrap();
    }

    pub fn main() -> Outcome {
        let lock = Lock::new(())?;
        let manager = Manager::new()?;
        let dict = manager.dict([])?;
        dict.set("count".to_owned(), 100)?;
        let mut children = Vec::new();
        for _ in 0..100 {
            children.push(Process::spawn(work, (lock.clone(), dict.clone()))?);
        }
        for child in children {
            child.join()?;
        }
        println!("{:?}", BTreeMap::from_iter(dict.items()?));
        Ok(())
    }
}
