use std::{
    cell::RefCell,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, atomic::AtomicU32, mpsc},
    thread,
};

use proptest::prelude::*;

use super::*;
use crate::kills::KillTest;

struct Pair {
    client: Connection,
    asking: Asking,
    server: Arc<Server>,
}

struct Server {
    connection: Connection,
    serving: Serving,
}

impl Attended for Server {
    fn serving(&self) -> &Serving {
        &self.serving
    }

    fn connection(&self) -> Result<&Connection, ConnectionError> {
        Ok(&self.connection)
    }
}

fn pair() -> Pair {
    let (client, server) = UnixStream::pair().unwrap();
    let asking = Asking::create().unwrap();
    let serving = Serving::attach(asking.as_fd().try_clone_to_owned().unwrap()).unwrap();
    let connection = Connection::from(OwnedFd::from(server));
    Pair { client: OwnedFd::from(client).into(), asking, server: Arc::new(Server { connection, serving }) }
}

impl Pair {
    fn ask(&mut self, request: &[u8]) -> Result<Vec<u8>, ConnectionError> {
        let (mut reply, wait) = (Vec::new(), &mut Wait::forever());
        self.asking.send(&self.client, &[request], wait)?;
        self.asking.receive(&self.client, &mut reply, wait)?;
        Ok(reply)
    }
}

impl Server {
    /// Replies with each request's bytes backwards, until the end. Returns how often.
    fn serve(&self) -> (usize, ConnectionError) {
        let (mut request, mut times) = (Vec::new(), 0);
        loop {
            let wait = &mut Wait::forever();
            if let Err(error) = self.serving.receive(&self.connection, &mut request, wait) {
                return (times, error);
            }
            request.reverse();
            let (one, two) = request.split_at(request.len() / 3);
            if let Err(error) = self.serving.send(&self.connection, &[one, b"", two], wait) {
                return (times, error);
            }
            times += 1;
        }
    }
}

fn backwards(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().rev().copied().collect()
}

#[test]
fn requests_of_all_sizes_are_answered() {
    let mut pair = pair();
    let server = Arc::clone(&pair.server);
    let serving = thread::spawn(move || server.serve());
    let sizes = [0, 1, 7, FIRST, FIRST + 1, AREA - 1, AREA, AREA + 1, 3 * AREA, 1_000_003, 5];
    for size in sizes {
        let request: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        assert_eq!(pair.ask(&request).unwrap(), backwards(&request));
    }
    drop(pair);
    let (times, error) = serving.join().unwrap();
    assert!(matches!(error, ConnectionError::Ended), "{error}");
    assert_eq!(times, sizes.len());
}

#[test]
fn who_is_idle_sleeps_and_is_woken() {
    let mut pair = pair();
    let server = Arc::clone(&pair.server);
    let serving = thread::spawn(move || server.serve());
    for _ in 0..3 {
        while pair.words().server.0.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        assert_eq!(pair.ask(b"ab").unwrap(), b"ba");
    }
    drop(pair);
    serving.join().unwrap();
}

impl Pair {
    fn words(&self) -> &Words {
        self.server.serving.words()
    }
}

#[test]
fn a_request_need_not_be_waited_for() {
    let mut pair = pair();
    let server = Arc::clone(&pair.server);
    let serving = thread::spawn(move || server.serve());
    for _ in 0..10 {
        pair.asking.send(&pair.client, &[b"nobody reads the reply"], &mut Wait::forever()).unwrap();
    }
    assert_eq!(pair.ask(b"ab").unwrap(), b"ba");
    drop(pair);
    assert_eq!(serving.join().unwrap().0, 11);
}

#[test]
fn the_end_of_the_server_is_seen_while_waiting() {
    let mut pair = pair();
    let server = Arc::clone(&pair.server);
    let ending = thread::spawn(move || {
        server.serving.receive(&server.connection, &mut Vec::new(), &mut Wait::forever()).unwrap();
        server.connection.hang_up();
    });
    assert!(matches!(pair.ask(b"ab"), Err(ConnectionError::Ended)));
    ending.join().unwrap();
    // A request before which the server has ended already.
    assert!(matches!(pair.ask(b"ab"), Err(ConnectionError::Ended)));
}

#[test]
fn a_wait_ends_by_its_time_and_by_a_signal() {
    let mut pair = pair();
    pair.asking.send(&pair.client, &[b"x"], &mut Wait::forever()).unwrap();
    let mut wait = Wait::timeout(Duration::from_millis(20));
    let over = pair.asking.receive(&pair.client, &mut Vec::new(), &mut wait);
    assert!(matches!(over, Err(ConnectionError::Wait(WaitError::TimedOut))));
    let mut never = || false;
    let mut wait = Wait::timeout(Duration::from_secs(60)).on_signal(&mut never);
    let over = pair.asking.receive(&pair.client, &mut Vec::new(), &mut wait);
    assert!(matches!(over, Err(ConnectionError::Wait(WaitError::Interrupted))));
}

#[test]
fn what_makes_no_sense_is_an_error() {
    for word in [9, 0xff, u64::from(u32::MAX) << 32 | 1, (AREA as u64 + 1) << 32 | 1] {
        let mut pair = pair();
        pair.words().state.0.store(word, Ordering::Relaxed);
        let received = pair.server.serving.receive(&pair.server.connection, &mut Vec::new(), &mut Wait::forever());
        assert!(matches!(received, Err(ConnectionError::BadLength)));
        pair.asking.send(&pair.client, &[b"x"], &mut Wait::forever()).unwrap();
        pair.words().state.0.store(word, Ordering::Relaxed);
        let received = pair.asking.receive(&pair.client, &mut Vec::new(), &mut Wait::forever());
        assert!(matches!(received, Err(ConnectionError::BadLength)));
    }
}

#[test]
fn other_segments_are_refused() {
    let other = Segment::create("test", 4096, 4096).unwrap();
    assert!(Serving::attach(other.as_fd().try_clone_to_owned().unwrap()).is_err());
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(Serving::attach(file.into()).is_err());
    // The memory is sealed: nobody can take it away.
    let asking = Asking::create().unwrap();
    let fd = asking.as_fd().try_clone_to_owned().unwrap();
    assert!(rustix::fs::ftruncate(&fd, 0).is_err());
}

proptest! {
    #[test]
    fn every_state_comes_back(phase in 0_u64..=8, sequence in 0..=SEQUENCE, length in 0..=AREA) {
        let word = (length as u64) << 32 | u64::from(sequence) << 8 | phase;
        let state = State::from_word(word).unwrap();
        prop_assert_eq!(state.to_word(), word);
        prop_assert_eq!((state.sequence, state.length), (sequence, length));
        // It is nobody's turn only while a request is being done.
        prop_assert_eq!(state.phase.of_client() || state.phase.of_server(), state.phase != Phase::Taken);
        prop_assert!(!(state.phase.of_client() && state.phase.of_server()));
    }

    #[test]
    fn any_word_is_read_or_refused(word in any::<u64>()) {
        if let Some(state) = State::from_word(word) {
            prop_assert!(state.length <= AREA);
            prop_assert_eq!(state.to_word(), word);
        }
    }
}

// Attendants

struct Hall {
    attendance: Arc<Attendance<Server>>,
    done: Arc<AtomicU32>,
}

/// An attendant that does all requests but those that begin with `w`, and never ends.
fn hall() -> Hall {
    let hall = Hall { attendance: Arc::default(), done: Arc::default() };
    let (attendance, done) = (Arc::clone(&hall.attendance), Arc::clone(&hall.done));
    let (here, entered) = mpsc::channel();
    thread::spawn(move || {
        assert!(attendance.enter());
        here.send(()).unwrap();
        let (mut lines, mut request) = (Lines::default(), Vec::new());
        while attendance.wait(&mut lines, &mut Wait::forever()).is_ok() {
            for line in lines.iter() {
                let Some(pending) = Pending::of(&**line) else { continue };
                if !pending.take(&mut request) {
                    continue;
                }
                if request.first() == Some(&b'w') {
                    let _ = pending.refuse();
                } else {
                    done.fetch_add(1, Ordering::Relaxed);
                    request.reverse();
                    let _ = pending.answer(&[&request]);
                }
            }
        }
    });
    entered.recv().unwrap();
    assert!(!hall.attendance.enter(), "there is one already");
    hall
}

/// A line's own thread that leaves its line to the attendant as often as it can.
fn attended(hall: &Hall, server: Arc<Server>) -> thread::JoinHandle<usize> {
    let attendance = Arc::clone(&hall.attendance);
    thread::spawn(move || {
        let (mut request, mut times, mut pace) = (Vec::new(), 0, Pace::default());
        loop {
            attendance.leave(&server, &mut pace);
            let wait = &mut Wait::forever();
            if server.serving.receive(&server.connection, &mut request, wait).is_err() {
                return times;
            }
            times += 1;
            request.reverse();
            if server.serving.send(&server.connection, &[&request], wait).is_err() {
                return times;
            }
        }
    })
}

#[test]
fn busy_lines_are_left_to_the_attendant_and_nothing_is_lost() {
    let hall = hall();
    let clients: Vec<_> = (0..4_u8)
        .map(|number| {
            let mut pair = pair();
            let own = attended(&hall, Arc::clone(&pair.server));
            thread::spawn(move || {
                for round in 0..2000_u32 {
                    // Some wait, some are large on the way in, and their replies on the way out.
                    let request = match round % 500 {
                        499 => vec![number; AREA + 5],
                        250 => b"wait".to_vec(),
                        _ => [&round.to_le_bytes()[..], &[number]].concat(),
                    };
                    assert_eq!(pair.ask(&request).unwrap(), backwards(&request));
                    if round % 700 == 0 {
                        // So that the attendant goes to sleep at times.
                        thread::sleep(Duration::from_millis(3));
                    }
                }
                drop(pair);
                own.join().unwrap()
            })
        })
        .collect();
    let own: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    assert_eq!(own + hall.done.load(Ordering::Relaxed) as usize, 8000);
    assert!(hall.done.load(Ordering::Relaxed) > 0, "the attendant had nothing to do");
}

#[test]
fn an_attendant_that_does_not_come_is_done_without() {
    let mut pair = pair();
    let server = Arc::clone(&pair.server);
    server.serving.watch();
    let serving = thread::spawn(move || server.serve());
    // Nobody looks, whatever is said: the client rings when it is late.
    assert_eq!(pair.ask(b"ab").unwrap(), b"ba");
    assert!(!pair.server.serving.is_watched());
    drop(pair);
    serving.join().unwrap();
}

#[test]
fn an_attendant_leaves_a_line_whose_request_it_has_not_taken() {
    let mut pair = pair();
    let server = Arc::clone(&pair.server);
    server.serving.watch();
    pair.asking.send(&pair.client, &[b"ab"], &mut Wait::forever()).unwrap();
    server.leave();
    assert!(!server.serving.is_asked(), "the client is to hand it over again");
    let serving = thread::spawn(move || server.serve());
    let mut reply = Vec::new();
    pair.asking.receive(&pair.client, &mut reply, &mut Wait::forever()).unwrap();
    assert_eq!(reply, b"ba");
    drop(pair);
    serving.join().unwrap();
}

#[test]
fn a_large_reply_of_an_attendant_is_finished_by_the_lines_own_thread() {
    let mut pair = pair();
    let server = Arc::clone(&pair.server);
    server.serving.watch();
    pair.asking.send(&pair.client, &[b"x"], &mut Wait::forever()).unwrap();
    let large: Vec<u8> = (0..3 * AREA + 9).map(|at| (at % 241) as u8).collect();
    let pending = Pending::of(&*server).unwrap();
    assert!(pending.take(&mut Vec::new()));
    pending.answer(&[&large[..100], &large[100..]]).unwrap();
    let serving = thread::spawn(move || server.serve());
    let mut reply = Vec::new();
    pair.asking.receive(&pair.client, &mut reply, &mut Wait::forever()).unwrap();
    assert!(reply == large);
    assert_eq!(pair.ask(b"ab").unwrap(), b"ba");
    drop(pair);
    serving.join().unwrap();
}

// Deaths

/// Small ones, and one that goes in pieces both ways.
fn requests() -> [Vec<u8>; 3] {
    [b"ab".to_vec(), vec![7; 2 * AREA + 1], b"c".to_vec()]
}

#[test]
fn a_client_killed_anywhere_ends_its_line_and_nothing_else() {
    let begin = || {
        let pair = pair();
        let server = Arc::clone(&pair.server);
        let serving = thread::spawn(move || server.serve());
        (pair, serving)
    };
    let present = RefCell::new(Some(begin()));
    KillTest::new("a client of a line").at_every_point_in_the_end(
        || {
            let (mut pair, _) = present.borrow_mut().take().unwrap();
            for request in requests() {
                assert_eq!(pair.ask(&request).unwrap(), backwards(&request));
            }
        },
        |_, killed| {
            // This process had the client's end, too.
            let (pair, serving) = present.borrow_mut().take().unwrap();
            drop((pair.client, pair.asking));
            let (times, error) = serving.join().unwrap();
            assert!(matches!(error, ConnectionError::Ended), "{error}");
            assert!(times <= 3 && (killed || times == 3));
            *present.borrow_mut() = Some(begin());
        },
    );
    let (pair, serving) = present.take().unwrap();
    drop(pair);
    serving.join().unwrap();
}

#[test]
fn a_server_killed_anywhere_is_an_error_of_the_call_under_way() {
    let begin = || {
        let mut pair = pair();
        let server = Arc::clone(&pair.server);
        let asking = thread::spawn(move || {
            // One more than is served.
            for (times, request) in requests().into_iter().chain([Vec::new()]).enumerate() {
                match pair.ask(&request) {
                    Ok(reply) => assert_eq!(reply, backwards(&request)),
                    Err(error) => return (times, error),
                }
            }
            unreachable!("nobody serves so many");
        });
        (server, asking)
    };
    let present = RefCell::new(Some(begin()));
    KillTest::new("a server of a line").at_every_point_in_the_end(
        || {
            let (server, _) = present.borrow_mut().take().unwrap();
            let (mut request, wait) = (Vec::new(), &mut Wait::forever());
            for _ in requests() {
                server.serving.receive(&server.connection, &mut request, wait).unwrap();
                request.reverse();
                server.serving.send(&server.connection, &[&request], wait).unwrap();
            }
        },
        |_, killed| {
            // This process had the server's end, too.
            let (server, asking) = present.borrow_mut().take().unwrap();
            server.connection.hang_up();
            let (times, error) = asking.join().unwrap();
            assert!(matches!(error, ConnectionError::Ended), "{error}");
            assert!(times <= 3 && (killed || times == 3));
            *present.borrow_mut() = Some(begin());
        },
    );
    let (server, asking) = present.take().unwrap();
    server.connection.hang_up();
    asking.join().unwrap();
}
