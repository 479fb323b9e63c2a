//! iceoryx2: publish and subscribe, waiting in either of its two ways.

use std::fmt::Debug;

use iceoryx2::{
    port::{listener::Listener, notifier::Notifier, publisher::Publisher, subscriber::Subscriber},
    prelude::{
        BackpressureStrategy, IceoryxSend, LogLevel, Node, NodeBuilder, ServiceName, SignalHandlingMode, ipc,
        set_log_level,
    },
};

use crate::{
    Outcome,
    channel::{Channel, Invitation, LARGE},
    peer::Orders,
};

type Service = ipc::Service;

/// How many messages may be on the way.
const ROOM: usize = 64;

/// How the receiver waits.
pub trait Waiting: Sized {
    fn new(node: &Node<Service>, out: &str, into: &str) -> Outcome<Self>;

    /// Called when a message was sent.
    fn sent(&self) -> Outcome<()>;

    /// Called when there was none.
    fn wait(&self) -> Outcome<()>;
}

/// It looks again and again, and keeps a core busy.
pub struct Polling;

impl Waiting for Polling {
    fn new(_: &Node<Service>, _: &str, _: &str) -> Outcome<Self> {
        Ok(Self)
    }

    fn sent(&self) -> Outcome<()> {
        Ok(())
    }

    fn wait(&self) -> Outcome<()> {
        std::hint::spin_loop();
        Ok(())
    }
}

/// It sleeps in a listener until the sender notifies it.
pub struct Events {
    notifier: Notifier<Service>,
    listener: Listener<Service>,
}

impl Waiting for Events {
    fn new(node: &Node<Service>, out: &str, into: &str) -> Outcome<Self> {
        let event = |name: &str| -> Outcome<_> {
            Ok(node.service_builder(&ServiceName::new(&format!("{name}/event"))?).event().open_or_create()?)
        };
        Ok(Self {
            notifier: event(out)?.notifier_builder().create()?,
            listener: event(into)?.listener_builder().create()?,
        })
    }

    fn sent(&self) -> Outcome<()> {
        self.notifier.notify()?;
        Ok(())
    }

    fn wait(&self) -> Outcome<()> {
        self.listener.blocking_wait(|_| {})?;
        Ok(())
    }
}

/// A publisher, and a subscriber for the other direction.
pub struct Ports<T: IceoryxSend + Debug + ?Sized + 'static, W> {
    waiting: W,
    publisher: Publisher<Service, T, ()>,
    subscriber: Subscriber<Service, T, ()>,
    _node: Node<Service>,
}

fn node() -> Outcome<Node<Service>> {
    set_log_level(LogLevel::Error);
    Ok(NodeBuilder::new().signal_handling_mode(SignalHandlingMode::Disabled).create::<Service>()?)
}

/// The name of both services without the direction.
fn name() -> String {
    format!("rivals/{}", std::process::id())
}

impl<W: Waiting> Ports<u64, W> {
    fn new(name: &str, out: &str, into: &str) -> Outcome<Self> {
        let node = node()?;
        let (out, into) = (format!("{name}/{out}"), format!("{name}/{into}"));
        let service = |name: &str| -> Outcome<_> {
            Ok(node
                .service_builder(&ServiceName::new(name)?)
                .publish_subscribe::<u64>()
                .enable_safe_overflow(false)
                .subscriber_max_buffer_size(ROOM)
                .open_or_create()?)
        };
        let strategy = BackpressureStrategy::RetryUntilDelivered;
        let publisher = service(&out)?.publisher_builder().backpressure_strategy(strategy).create()?;
        let subscriber = service(&into)?.subscriber_builder().buffer_size(ROOM).create()?;
        let waiting = W::new(&node, &out, &into)?;
        Ok(Self { waiting, publisher, subscriber, _node: node })
    }
}

impl<W: Waiting> Channel<u64> for Ports<u64, W> {
    type Pending = Self;

    fn open() -> Outcome<(Self, Invitation)> {
        let name = name();
        Ok((Self::new(&name, "there", "back")?, Invitation { argument: name, ..Invitation::default() }))
    }

    fn connect(pending: Self) -> Outcome<Self> {
        Ok(pending)
    }

    fn accept(orders: &mut Orders) -> Outcome<Self> {
        Self::new(&orders.argument, "back", "there")
    }

    fn send(&mut self, message: &u64) -> Outcome<()> {
        self.publisher.loan_uninit()?.write_payload(*message).send()?;
        self.waiting.sent()
    }

    fn receive(&mut self) -> Outcome<u64> {
        loop {
            if let Some(sample) = self.subscriber.receive()? {
                return Ok(*sample);
            }
            self.waiting.wait()?;
        }
    }
}

impl<W: Waiting> Ports<[u8], W> {
    fn new(name: &str, out: &str, into: &str) -> Outcome<Self> {
        let node = node()?;
        let (out, into) = (format!("{name}/{out}"), format!("{name}/{into}"));
        let service = |name: &str| -> Outcome<_> {
            Ok(node
                .service_builder(&ServiceName::new(name)?)
                .publish_subscribe::<[u8]>()
                .enable_safe_overflow(false)
                .subscriber_max_buffer_size(ROOM)
                .open_or_create()?)
        };
        let strategy = BackpressureStrategy::RetryUntilDelivered;
        let publisher =
            service(&out)?.publisher_builder().initial_max_slice_len(LARGE).backpressure_strategy(strategy).create()?;
        let subscriber = service(&into)?.subscriber_builder().buffer_size(ROOM).create()?;
        let waiting = W::new(&node, &out, &into)?;
        Ok(Self { waiting, publisher, subscriber, _node: node })
    }
}

/// As with all others, the sender has a vector and the receiver gets one; without that, nothing would be copied.
impl<W: Waiting> Channel<Vec<u8>> for Ports<[u8], W> {
    type Pending = Self;

    fn open() -> Outcome<(Self, Invitation)> {
        let name = name();
        Ok((Self::new(&name, "there", "back")?, Invitation { argument: name, ..Invitation::default() }))
    }

    fn connect(pending: Self) -> Outcome<Self> {
        Ok(pending)
    }

    fn accept(orders: &mut Orders) -> Outcome<Self> {
        Self::new(&orders.argument, "back", "there")
    }

    fn send(&mut self, message: &Vec<u8>) -> Outcome<()> {
        self.publisher.loan_slice_uninit(message.len())?.write_from_slice(message).send()?;
        self.waiting.sent()
    }

    fn receive(&mut self) -> Outcome<Vec<u8>> {
        loop {
            if let Some(sample) = self.subscriber.receive()? {
                return Ok(sample.to_vec());
            }
            self.waiting.wait()?;
        }
    }
}
