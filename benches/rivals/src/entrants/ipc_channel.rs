//! ipc-channel: typed channels, and channels of bytes.

use ipc_channel::ipc::{self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcReceiver, IpcSender};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Outcome,
    channel::{Channel, Invitation},
    peer::Orders,
};

/// What the peer sends through the one-shot server: the ends that we keep.
type Ends<S, R> = (S, R);
type Server<S, R> = IpcOneShotServer<Ends<S, R>>;

fn open<S, R>() -> Outcome<(Server<S, R>, Invitation)>
where
    Ends<S, R>: Serialize + DeserializeOwned,
{
    let (server, argument) = IpcOneShotServer::new()?;
    Ok((server, Invitation { argument, ..Invitation::default() }))
}

fn connect<S, R>(server: Server<S, R>) -> Outcome<Ends<S, R>>
where
    Ends<S, R>: Serialize + DeserializeOwned,
{
    Ok(server.accept()?.1)
}

fn send_ends<S, R>(orders: &Orders, ends: Ends<S, R>) -> Outcome<()>
where
    Ends<S, R>: Serialize + DeserializeOwned,
{
    Ok(IpcSender::connect(orders.argument.clone())?.send(ends)?)
}

/// `IpcSender<M>` and `IpcReceiver<M>`.
pub struct Typed<M> {
    out: IpcSender<M>,
    into: IpcReceiver<M>,
}

impl<M: Clone + Serialize + DeserializeOwned> Channel<M> for Typed<M> {
    type Pending = Server<IpcSender<M>, IpcReceiver<M>>;

    fn open() -> Outcome<(Self::Pending, Invitation)> {
        open()
    }

    fn connect(server: Self::Pending) -> Outcome<Self> {
        let (out, into) = connect(server)?;
        Ok(Self { out, into })
    }

    fn accept(orders: &mut Orders) -> Outcome<Self> {
        let (out, their_into) = ipc::channel()?;
        let (their_out, into) = ipc::channel()?;
        send_ends(orders, (their_out, their_into))?;
        Ok(Self { out, into })
    }

    fn send(&mut self, message: &M) -> Outcome<()> {
        // It wants to own what it sends. The copy takes a thirtieth of the time that a large message takes.
        Ok(self.out.send(message.clone())?)
    }

    fn receive(&mut self) -> Outcome<M> {
        Ok(self.into.recv()?)
    }
}

/// `IpcBytesSender` and `IpcBytesReceiver`.
pub struct Bytes {
    out: IpcBytesSender,
    into: IpcBytesReceiver,
}

impl Channel<Vec<u8>> for Bytes {
    type Pending = Server<IpcBytesSender, IpcBytesReceiver>;

    fn open() -> Outcome<(Self::Pending, Invitation)> {
        open()
    }

    fn connect(server: Self::Pending) -> Outcome<Self> {
        let (out, into) = connect(server)?;
        Ok(Self { out, into })
    }

    fn accept(orders: &mut Orders) -> Outcome<Self> {
        let (out, their_into) = ipc::bytes_channel()?;
        let (their_out, into) = ipc::bytes_channel()?;
        send_ends(orders, (their_out, their_into))?;
        Ok(Self { out, into })
    }

    fn send(&mut self, message: &Vec<u8>) -> Outcome<()> {
        Ok(self.out.send(message)?)
    }

    fn receive(&mut self) -> Outcome<Vec<u8>> {
        Ok(self.into.recv()?)
    }
}
