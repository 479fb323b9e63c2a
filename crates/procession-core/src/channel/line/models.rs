//! Models of who sleeps and who rings: under every order of events nobody sleeps while it is his turn.

use loom::{
    sync::{Arc, Condvar, Mutex},
    thread,
};

use super::*;

/// A socket between two threads: how often each side was rung for.
#[derive(Default)]
struct Sockets([(Mutex<u32>, Condvar); 2]);

struct End {
    sockets: Arc<Sockets>,
    mine: usize,
}

impl Bell for End {
    fn ring(&self) -> Result<(), ConnectionError> {
        let (rung, changed) = &self.sockets.0[1 - self.mine];
        *rung.lock().unwrap() += 1;
        changed.notify_one();
        Ok(())
    }

    fn sleep(&self, _until: Option<Instant>, _wait: &mut Wait<'_>) -> Result<(), ConnectionError> {
        let (rung, changed) = &self.sockets.0[self.mine];
        let mut rung = rung.lock().unwrap();
        while *rung == 0 {
            rung = changed.wait(rung).unwrap();
        }
        *rung = 0;
        Ok(())
    }
}

fn ends() -> (End, End) {
    let sockets = Arc::new(Sockets::default());
    (End { sockets: sockets.clone(), mine: 0 }, End { sockets, mine: 1 })
}

/// What both sides do: sleep until it is their turn.
fn wait_for(words: &Words, mine: &Apart<AtomicU32>, ours: impl Fn(Phase) -> bool, bell: &End) -> State {
    loop {
        let state = words.state().unwrap();
        if ours(state.phase) {
            return state;
        }
        if words.falls_asleep(mine, |phase| !ours(phase)).unwrap() {
            bell.sleep(None, &mut Wait::forever()).unwrap();
        }
        Words::wakes_up(mine);
    }
}

fn state(phase: Phase, sequence: u32) -> State {
    State { phase, sequence, length: 0 }
}

/// A lost ring is a deadlock of the model.
#[test]
fn no_ring_is_lost() {
    crate::loom::check(3, || {
        let words = Arc::new(Words::default());
        let (client, server) = ends();
        let serving = {
            let words = words.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    let asked = wait_for(&words, &words.server, Phase::of_server, &server);
                    words.hand_over(state(Phase::Answered, asked.sequence), &words.client, &server).unwrap();
                }
            })
        };
        for sequence in 1..=2 {
            words.hand_over(state(Phase::Asked, sequence), &words.server, &client).unwrap();
            let answered = wait_for(&words, &words.client, Phase::of_client, &client);
            assert_eq!(answered, state(Phase::Answered, sequence));
        }
        serving.join().unwrap();
    });
}

/// "Nobody looks any more": an attendant leaves at any moment, and the request gets to the line's own thread, once.
#[test]
fn a_line_that_is_left_is_served_by_its_own_thread() {
    crate::loom::check(3, || {
        let words = Arc::new(Words::default());
        let (client, server) = ends();
        let sockets = server.sockets.clone();
        // Held by the attendant while it leaves.
        let at_work = Arc::new(Mutex::new(true));
        let attendant = {
            let (words, at_work) = (words.clone(), at_work.clone());
            thread::spawn(move || {
                let bell = End { sockets, mine: 1 };
                let mut watched = at_work.lock().unwrap();
                if std::mem::replace(&mut *watched, false)
                    && !words.falls_asleep(&words.server, |phase| phase != Phase::Asked).unwrap()
                {
                    words.hand_over(state(Phase::AskAgain, 1), &words.client, &bell).unwrap();
                }
            })
        };
        let own = {
            let words = words.clone();
            thread::spawn(move || {
                // Asleep while the line is watched; whatever wakes it, it takes the line back.
                server.sleep(None, &mut Wait::forever()).unwrap();
                *at_work.lock().unwrap() = false;
                Words::wakes_up(&words.server);
                let asked = wait_for(&words, &words.server, Phase::of_server, &server);
                words.hand_over(state(Phase::Answered, asked.sequence), &words.client, &server).unwrap();
            })
        };
        words.hand_over(state(Phase::Asked, 1), &words.server, &client).unwrap();
        loop {
            let turn = wait_for(&words, &words.client, Phase::of_client, &client);
            if turn.phase == Phase::Answered {
                break;
            }
            assert_eq!(turn.phase, Phase::AskAgain);
            words.hand_over(state(Phase::Asked, 1), &words.server, &client).unwrap();
        }
        attendant.join().unwrap();
        own.join().unwrap();
    });
}
