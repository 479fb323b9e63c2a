//! The measurements of crossmist: `crossmist WORKLOAD COUNT` prints seconds.

use std::time::Instant;

use crossmist::{Object, Receiver, Sender};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const LARGE: usize = 1 << 20;

#[crossmist::func]
fn send_numbers(mut orders: Receiver<u64>, mut out: Sender<u64>) {
    while let Ok(Some(count)) = orders.recv() {
        for number in 0..count {
            out.send(&number).unwrap();
        }
    }
}

#[crossmist::func]
fn send_large(mut orders: Receiver<u64>, mut out: Sender<Vec<u8>>) {
    let mut bytes = vec![0x5a; LARGE];
    while let Ok(Some(count)) = orders.recv() {
        for number in 0..count {
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            out.send(&bytes).unwrap();
        }
    }
}

#[crossmist::func]
fn send_back(mut into: Receiver<u64>, mut out: Sender<u64>) {
    while let Ok(Some(number)) = into.recv() {
        out.send(&number).unwrap();
    }
}

#[crossmist::func]
fn nothing() {}

fn timed(count: u64, mut work: impl FnMut(u64) -> Outcome<()>) -> Outcome<f64> {
    work(count / 10 + 1)?;
    let began = Instant::now();
    work(count)?;
    Ok(began.elapsed().as_secs_f64())
}

fn expect<T: PartialEq>(received: Option<T>, wanted: T) -> Outcome<()> {
    if received == Some(wanted) { Ok(()) } else { Err("a wrong message".into()) }
}

fn channel<T: Object>() -> Outcome<(Sender<T>, Receiver<T>)> {
    Ok(crossmist::channel()?)
}

fn measure(workload: &str, count: u64) -> Outcome<f64> {
    let (mut orders, their_orders) = channel()?;
    match workload {
        "u64" => {
            let (out, mut into) = channel()?;
            let _child = send_numbers.spawn(their_orders, out)?;
            timed(count, |count| {
                orders.send(&count)?;
                (0..count).try_for_each(|number| expect(into.recv()?, number))
            })
        }
        "large" => {
            let (out, mut into) = channel()?;
            let _child = send_large.spawn(their_orders, out)?;
            timed(count, |count| {
                orders.send(&count)?;
                (0..count).try_for_each(|number| {
                    let bytes: Option<Vec<u8>> = into.recv()?;
                    expect(
                        bytes.filter(|bytes| bytes.len() == LARGE).map(|b| b[..8].to_vec()),
                        number.to_le_bytes().to_vec(),
                    )
                })
            })
        }
        "round-trip" => {
            let (out, mut into) = channel()?;
            let _child = send_back.spawn(their_orders, out)?;
            timed(count, |count| {
                (0..count).try_for_each(|number| {
                    orders.send(&number)?;
                    expect(into.recv()?, number)
                })
            })
        }
        "start" => timed(count, |count| (0..count).try_for_each(|_| Ok(nothing.spawn()?.join()?))),
        _ => Err("no such workload".into()),
    }
}

#[crossmist::main]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seconds = match &arguments[..] {
        [workload, count] => measure(workload, count.parse().expect("a number")),
        _ => Err("crossmist WORKLOAD COUNT".into()),
    };
    match seconds {
        Ok(seconds) => println!("{seconds}"),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}
