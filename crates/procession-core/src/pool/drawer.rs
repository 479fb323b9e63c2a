//! The tasks the parent has taken back out of the ring, in the order in which workers are to get them. Nothing here waits or
//! reads a ring.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
    os::fd::OwnedFd,
};

use super::{
    engine::LADEN_SHARE,
    message::{Arrived, TaskHeader},
};
use crate::memory::{Claimed, Filled};

/// A task that waits in the parent.
#[derive(Debug)]
pub(super) struct Waiting {
    header: TaskHeader,
    /// Behind as many bytes as a header has.
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    blocks: Vec<Filled>,
}

impl Waiting {
    pub(super) fn new(header: TaskHeader, payload: &[&[u8]], descriptors: Vec<OwnedFd>, blocks: Vec<Filled>) -> Self {
        let mut bytes = vec![0; TaskHeader::LENGTH];
        for part in payload {
            bytes.extend_from_slice(part);
        }
        Self { header, bytes, descriptors, blocks }
    }

    /// As it came out of the ring; `None` if it is no task. To be called when it was taken out.
    pub(super) fn from_message(message: Arrived) -> Option<Self> {
        let header = TaskHeader::from_bytes(&message.bytes)?;
        // They are this process's, so they can be sent again.
        let blocks = message.blocks.into_iter().map(Claimed::send_again).collect::<Result<_, _>>().ok()?;
        Some(Self { header, bytes: message.bytes, descriptors: message.descriptors, blocks })
    }

    pub(super) fn header(&self) -> TaskHeader {
        self.header
    }

    pub(super) fn payload(&self) -> &[u8] {
        &self.bytes[TaskHeader::LENGTH..]
    }

    pub(super) fn descriptors(&self) -> &[OwnedFd] {
        &self.descriptors
    }

    pub(super) fn blocks(&self) -> &[Filled] {
        &self.blocks
    }

    fn length(&self) -> u64 {
        self.payload().len() as u64 + self.blocks.iter().map(Filled::len).sum::<u64>() / LADEN_SHARE
    }
}

/// Tasks of the same priority, the oldest first.
#[derive(Debug, Default)]
struct Class {
    tasks: VecDeque<Waiting>,
    bytes: u64,
}

/// Tasks that wait in the parent, by priority.
#[derive(Debug, Default)]
pub(super) struct Drawer {
    /// None of them is empty.
    classes: BTreeMap<Reverse<i32>, Class>,
    /// Of all of them: there may be as many as there are tasks.
    len: u64,
    bytes: u64,
}

impl Drawer {
    /// Adds a task behind all of its priority.
    pub(super) fn push(&mut self, priority: i32, task: Waiting) {
        self.class(priority, &task).tasks.push_back(task);
    }

    /// Adds a task before all of its priority.
    pub(super) fn put_back(&mut self, priority: i32, task: Waiting) {
        self.class(priority, &task).tasks.push_front(task);
    }

    /// The class of a task that is about to be added.
    fn class(&mut self, priority: i32, task: &Waiting) -> &mut Class {
        self.len += 1;
        self.bytes += task.length();
        let class = self.classes.entry(Reverse(priority)).or_default();
        class.bytes += task.length();
        class
    }

    /// Takes the next task out, and its priority.
    pub(super) fn pop(&mut self) -> Option<(i32, Waiting)> {
        let mut first = self.classes.first_entry()?;
        let Reverse(priority) = *first.key();
        let class = first.get_mut();
        let task = class.tasks.pop_front()?;
        class.bytes -= task.length();
        self.bytes -= task.length();
        self.len -= 1;
        if class.tasks.is_empty() {
            first.remove();
        }
        Some((priority, task))
    }

    /// Forgets the tasks that nobody wants.
    pub(super) fn retain(&mut self, wanted: impl Fn(&TaskHeader) -> bool) {
        self.classes.retain(|_, class| {
            class.tasks.retain(|task| wanted(&task.header));
            class.bytes = class.tasks.iter().map(Waiting::length).sum();
            !class.tasks.is_empty()
        });
        self.len = self.classes.values().map(|class| class.tasks.len() as u64).sum();
        self.bytes = self.classes.values().map(|class| class.bytes).sum();
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How many bytes of payload there are.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many bytes of payload come before a new task of this priority.
    pub(super) fn bytes_before(&self, priority: i32) -> u64 {
        self.classes.range(..=Reverse(priority)).map(|(_, class)| class.bytes).sum()
    }

    /// Whether the order is not simply that in which they came.
    pub(super) fn has_priorities(&self) -> bool {
        self.classes.keys().any(|Reverse(priority)| *priority != 0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::{super::message::TaskId, *};

    fn task(index: u64, length: usize) -> Waiting {
        let header = TaskHeader { id: TaskId { job: 1, index }, ..TaskHeader::STOP };
        Waiting::new(header, &[&vec![1; length]], Vec::new(), Vec::new())
    }

    #[test]
    fn what_is_put_back_comes_first_of_its_kind() {
        let mut drawer = Drawer::default();
        drawer.push(0, task(1, 10));
        drawer.push(2, task(2, 20));
        drawer.put_back(0, task(3, 30));
        drawer.push(-1, task(4, 40));
        assert!(drawer.has_priorities());
        assert_eq!([drawer.bytes_before(2), drawer.bytes_before(0), drawer.bytes_before(-5)], [20, 60, 100]);
        assert_eq!(drawer.bytes_before(3), 0);
        let order: Vec<_> =
            std::iter::from_fn(|| drawer.pop()).map(|(priority, task)| (priority, task.header().id.index)).collect();
        assert_eq!(order, [(2, 2), (0, 3), (0, 1), (-1, 4)]);
        assert!(drawer.len() == 0 && drawer.bytes() == 0);
    }

    #[test]
    fn what_nobody_wants_is_forgotten() {
        let mut drawer = Drawer::default();
        for (priority, index) in [(0, 1), (0, 2), (3, 3), (0, 4)] {
            drawer.push(priority, task(index, 10));
        }
        drawer.retain(|header| header.id.index % 2 == 0);
        assert_eq!((drawer.len(), drawer.bytes(), drawer.has_priorities()), (2, 20, false));
        assert_eq!(drawer.pop().map(|(_, task)| task.header().id.index), Some(2));
    }

    proptest! {
        #[test]
        fn larger_numbers_come_first_and_equals_in_their_order(priorities: Vec<i8>) {
            let mut drawer = Drawer::default();
            for (index, priority) in priorities.iter().enumerate() {
                drawer.push((*priority).into(), task(index as u64, index));
            }
            prop_assert_eq!(drawer.len(), priorities.len() as u64);
            let mut expected: Vec<_> = (0..priorities.len()).collect();
            expected.sort_by_key(|index| Reverse(priorities[*index]));
            for index in expected {
                let (priority, task) = drawer.pop().unwrap();
                prop_assert_eq!(priority, i32::from(priorities[index]));
                prop_assert_eq!(task.header().id.index, index as u64);
                prop_assert_eq!(task.payload().len(), index);
            }
            prop_assert_eq!(drawer.bytes(), 0);
        }
    }
}
