//! Runs each program of the tutorial examples, and checks what it prints, how it ends, and that it leaves no process
//! behind. What is expected of its Python twin is expected here.

use std::{
    env, fs,
    io::Read,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use regex::Regex;

/// What the output of a program has to be.
enum Expected {
    /// This text is in it.
    Has(&'static str),
    /// And this is not.
    Lacks(&'static str),
    /// The pattern is found so many times.
    Found(&'static str, usize),
    /// It consists of these words.
    Words(&'static str),
    /// The lines that are an integer are the numbers up to that one, from the first, in any order or (`true`) in theirs.
    Numbers(u32, u32, bool),
}

use Expected::{Found, Has, Lacks, Numbers, Words};

impl Expected {
    fn check(&self, output: &str) -> Result<(), String> {
        match *self {
            Has(text) => output.contains(text).then_some(()).ok_or(format!("{text:?} is not in the output")),
            Lacks(text) => (!output.contains(text)).then_some(()).ok_or(format!("{text:?} is in the output")),
            Found(pattern, count) => {
                let found = Regex::new(pattern).unwrap().find_iter(output).count();
                (found == count).then_some(()).ok_or(format!("{pattern:?} is found {found} times, not {count}"))
            }
            Words(text) => {
                let equal = output.split_whitespace().eq(text.split_whitespace());
                equal.then_some(()).ok_or(format!("the output is not {text:?}"))
            }
            Numbers(first, last, ordered) => {
                let mut numbers: Vec<u32> = output.lines().filter_map(|line| line.trim().parse().ok()).collect();
                if !ordered {
                    numbers.sort_unstable();
                }
                let right = numbers.iter().copied().eq(first..=last);
                right.then_some(()).ok_or(format!("the {} numbers printed are not {first} to {last}", numbers.len()))
            }
        }
    }
}

/// A program that has not ended after that time hangs.
const LIMIT: Duration = Duration::from_secs(90);

/// Runs the program, and checks its output.
fn run(name: &str, expected: &[Expected]) {
    let example = examples().join(format!("tutorial_{}", &name[..1]));
    assert!(example.exists(), "{} is not built: cargo build --examples", example.display());
    let mut program = Command::new(example)
        .arg(name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let group = program.id();
    let (output, errors) = (read(program.stdout.take()), read(program.stderr.take()));
    let status = wait(&mut program, LIMIT);
    // Their pipes are at an end when the last of them has ended.
    let left = status.and_then(|_| wait_for_group(group, Duration::from_secs(10)));
    if left.is_none() {
        kill_group(group);
    }
    let (output, errors) = (output.recv().unwrap(), errors.recv().unwrap());
    let told = || format!("{name}\n--- stdout\n{output}\n--- stderr\n{errors}");
    let status = status.unwrap_or_else(|| panic!("hangs: no end in {LIMIT:?}: {}", told()));
    assert!(status, "it failed: {}", told());
    assert!(left.is_some(), "it left processes behind: {}", told());
    for expectation in expected {
        if let Err(fault) = expectation.check(&output) {
            panic!("{fault}: {}", told());
        }
    }
}

/// Beside the folder of this test program, cargo has the one of the examples.
fn examples() -> PathBuf {
    env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples")
}

/// All that comes, read by a thread, so that the program never waits for us.
fn read(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let mut pipe = pipe.unwrap();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        sender.send(String::from_utf8_lossy(&bytes).into_owned()).unwrap();
    });
    receiver
}

/// Whether it succeeded; none if it did not end in time.
fn wait(program: &mut Child, limit: Duration) -> Option<bool> {
    until(limit, || program.try_wait().unwrap().map(|status| status.success()))
}

/// None if there are still processes of the group after that time.
fn wait_for_group(group: u32, limit: Duration) -> Option<()> {
    until(limit, || members(group).is_empty().then_some(()))
}

/// The living ones.
fn members(group: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let in_group = |pid: &u32| {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        // After the name, which may hold anything: state, parent, group.
        let mut fields = stat[stat.rfind(')').unwrap() + 1..].split_whitespace();
        fields.next() != Some("Z") && fields.nth(1).and_then(|field| field.parse().ok()) == Some(group)
    };
    processes.filter(in_group).collect()
}

fn kill_group(group: u32) {
    let group = rustix::process::Pid::from_raw(group.cast_signed()).unwrap();
    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
}

fn until<R>(limit: Duration, mut look: impl FnMut() -> Option<R>) -> Option<R> {
    let begin = Instant::now();
    loop {
        let seen = look();
        if seen.is_some() || begin.elapsed() > limit {
            return seen;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

macro_rules! tutorials {
    ($($name:ident, [$($expected:expr),* $(,)?];)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name), &[$($expected),*]);
            }
        )*
    };
}

tutorials! {
    a01_pool_100_tasks, [Found(r"threading number:\d+ \d+", 100)];
    b01_process_simple, [Has("mian"), Found("start", 1), Found("end", 1)];
    b02_process_args, [Found(r"start\d", 5), Found(r"end\d", 5), Found("mian", 1)];
    b03_process_daemon, [Has("main"), Lacks("end")];
    b04_process_subclass, [Found("(?m)^false$", 20)];
    b05_lock_tickets, [Found(r"end time \d+!+", 30), Found(r"\d+ (购票成功|失败)", 30)];
    b06_pool_apply, [Has("[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]"), Found(r"\d+ run", 10)];
    b07_pool_apply_async, [Found(r"执行结果输出: \d+", 10), Has("执行结果输出: 81")];
    b08_pool_callback, [Found(r"\d+ 进程 work", 5), Found(r"处理回调结果:[\d.]+", 5), Has("main end")];
    b09_queue_basics, [Words(
        "true false 加入一个 当前队列数量: 1 加入一个 当前队列数量: 2 加入一个 当前队列数量: 3 队列已满 取走了一个 a, 还有2 个 \
         加入一个 当前队列数量: 3 队列已满 取走了一个 b, 还有2 个 加入一个 当前队列数量: 3",
    )];
    b10_queue_blocking, [Found(r"已生产 \d+  ,添加到队列", 10), Found(r"\d+已消费", 10)];
    b11_queue_nonblocking, [Found(r"用户 \d+ 进来要抽奖了 ,添加到队列|队列已满, \d+", 10)];
    b12_joinable_queue, [
        Found(r"(猪蹄子|涮羊肉|羊蝎子)已生产 \d+  ,添加到队列,", 30),
        Found(r"已全部消费完了-+\d+", 3),
    ];
    b13_manager_dict, [Has(r#"{"count": 0}"#)];
    c01_process_info, [Found(r"hello the \d-th bob", 5), Found("function f", 5)];
    c02_pool_callback, [Found(r"end_call 10\d", 10), Found(r"end\b", 1)];
    c03_lock, [Found(r"hello world \d", 10)];
    c04_manager, [
        Has(r#"[(Int(1), Text("1")), (Text("2"), Int(2)), (Float(0.25), None)]"#),
        Has("[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]"),
    ];
    d01_process, [Words("This is a worker. Done.")];
    d02_process_subclass, [Words("This is a worker. Done.")];
    d03_queue, [Words("Receive data: hello Done.")];
    d04_pipe, [Words("Receive data: hello Done.")];
    d05_os_fork, [Words("This is a worker. Done.")];
    e01_pool_apply_10000, [Numbers(1, 10_000, true)];
    e02_pool_callback, [Numbers(2, 11, false)];
    e03_pool_apply_async_10000, [Numbers(1, 10_000, true)];
    e04_pool_map, [
        Numbers(1, 100, false),
        Found(r"主进程中map的返回值 \[1, 2, 3, .*, 98, 99, 100\]", 1),
    ];
}
