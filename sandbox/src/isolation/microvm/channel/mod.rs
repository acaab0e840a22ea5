//! The one channel between a guest and its host: messages, and byte streams beside them.
//!
//! It runs over a port of virtio-serial, which is the same under TCG, KVM, SEV-SNP and TDX. Each side
//! bounds what the other can make it hold: a stream has a window, and nobody sends beyond it.

mod frame;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

pub use frame::{Frame, MAX_MESSAGE, MAX_PIECE};

/// Bytes that may be under way in one stream.
const WINDOW: usize = 256 << 10;
/// Most streams at once.
const MAX_STREAMS: usize = 64;

/// Names a byte stream; what each is for is agreed between the ends.
pub type StreamId = u32;

/// Why the channel cannot be used any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The other end is gone.
    #[error("the other end of the channel is gone")]
    Gone,
    /// The channel itself failed.
    #[error("the channel failed")]
    Io(#[from] io::Error),
    /// What came is not of the protocol.
    #[error("the other end does not follow the protocol: {0}")]
    Protocol(&'static str),
    /// A message cannot be encoded.
    #[error("a message cannot be encoded")]
    Encode(#[source] serde_json::Error),
}

/// What [`Link::receive`] does not deal with by itself.
#[derive(Debug)]
pub enum Incoming {
    /// A message, as JSON.
    Message(Vec<u8>),
    /// A piece of the log, to be kept and answered: see [`Link::entry`].
    Entry(Vec<u8>),
    /// Something that was for a stream.
    Stream,
}

/// One end of a channel. Shared by whoever speaks; one thread calls [`Link::receive`].
pub struct Link {
    writer: Mutex<Box<dyn Write + Send>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    streams: BTreeMap<StreamId, Stream>,
    broken: bool,
}

struct Stream {
    /// How much more may be sent.
    credit: usize,
    /// How much more the other end may send.
    window: usize,
    arrived: VecDeque<u8>,
    /// The other end sends no more.
    ended: bool,
    /// Nobody here reads any more: what comes is dropped.
    deaf: bool,
    /// Nobody here knows it any more.
    closing: bool,
}

impl Link {
    /// Makes an end that sends into `writer`.
    pub fn new(writer: impl Write + Send + 'static) -> Arc<Self> {
        Arc::new(Self {
            writer: Mutex::new(Box::new(writer)),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Makes a stream known, before the other end may use it.
    ///
    /// # Errors
    ///
    /// [`ChannelError::Protocol`] when there are too many, or it is open already.
    pub fn open(self: &Arc<Self>, id: StreamId) -> Result<Inlet, ChannelError> {
        let mut state = self.state();
        if state.streams.len() >= MAX_STREAMS {
            return Err(ChannelError::Protocol("too many streams"));
        }
        let new = Stream {
            credit: WINDOW,
            window: WINDOW,
            arrived: VecDeque::new(),
            ended: false,
            deaf: false,
            closing: false,
        };
        if state.streams.insert(id, new).is_some() {
            return Err(ChannelError::Protocol("a stream was opened twice"));
        }
        drop(state);
        Ok(Inlet {
            link: Arc::clone(self),
            id,
        })
    }

    /// Sends a message.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]; it did not arrive.
    pub fn send(&self, message: &impl Serialize) -> Result<(), ChannelError> {
        let json = serde_json::to_vec(message).map_err(ChannelError::Encode)?;
        self.put(&Frame::Message(json))
    }

    /// Sends a piece of the log. There is no window: whoever sends it waits for the answer.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]; it did not arrive.
    pub fn entry(&self, bytes: Vec<u8>) -> Result<(), ChannelError> {
        self.put(&Frame::Entry(bytes))
    }

    /// Sends bytes into a stream; waits for room at the other end.
    ///
    /// # Errors
    ///
    /// [`ChannelError::Gone`] when the channel is broken or the stream closed.
    pub fn write(&self, id: StreamId, mut bytes: &[u8]) -> Result<(), ChannelError> {
        while !bytes.is_empty() {
            let mut state = self.state();
            let room = loop {
                if state.broken {
                    return Err(ChannelError::Gone);
                }
                let stream = state.streams.get_mut(&id).ok_or(ChannelError::Gone)?;
                if stream.credit > 0 {
                    let room = stream.credit.min(bytes.len()).min(MAX_PIECE);
                    stream.credit -= room;
                    break room;
                }
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            let (piece, rest) = bytes.split_at(room);
            self.put(&Frame::Data(id, piece.to_vec()))?;
            bytes = rest;
        }
        Ok(())
    }

    /// Says that nothing more will be sent into a stream.
    ///
    /// # Errors
    ///
    /// [`ChannelError`] when the channel is broken.
    pub fn end(&self, id: StreamId) -> Result<(), ChannelError> {
        self.put(&Frame::End(id))
    }

    /// Forgets a stream, once the other end has said that nothing more comes: until then what comes is
    /// dropped, and after that it is a fault.
    pub fn close(&self, id: StreamId) {
        let mut state = self.state();
        match state.streams.get_mut(&id) {
            Some(stream) if !stream.ended => (stream.deaf, stream.closing) = (true, true),
            _ => drop(state.streams.remove(&id)),
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Receives one frame, and deals with it if it is a stream's.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]; the link is broken then, and everybody who waits for it is woken.
    pub fn receive(&self, reader: &mut impl Read) -> Result<Incoming, ChannelError> {
        let received = self.take(reader);
        if received.is_err() {
            self.break_off();
        }
        received
    }

    /// Wakes whoever waits for this link: nothing comes any more.
    pub fn break_off(&self) {
        self.state().broken = true;
        self.changed.notify_all();
    }

    fn take(&self, reader: &mut impl Read) -> Result<Incoming, ChannelError> {
        match Frame::read(reader)? {
            Frame::Message(json) => return Ok(Incoming::Message(json)),
            Frame::Entry(bytes) => return Ok(Incoming::Entry(bytes)),
            Frame::Data(id, bytes) => {
                let mut state = self.state();
                let stream = known(&mut state, id)?;
                if stream.ended || bytes.len() > stream.window {
                    return Err(ChannelError::Protocol(
                        "more was sent than there is room for",
                    ));
                }
                if stream.deaf {
                    drop(state);
                    self.put(&Frame::Credit(id, bytes.len()))?;
                    return Ok(Incoming::Stream);
                }
                stream.window -= bytes.len();
                stream.arrived.extend(bytes);
            }
            Frame::Credit(id, more) => {
                let mut state = self.state();
                // The stream may have been closed here while this was under way.
                if let Some(stream) = state.streams.get_mut(&id) {
                    stream.credit = stream.credit.saturating_add(more).min(WINDOW);
                }
            }
            Frame::End(id) => {
                let mut state = self.state();
                match state.streams.get_mut(&id) {
                    Some(stream) if stream.closing => drop(state.streams.remove(&id)),
                    Some(stream) => stream.ended = true,
                    None => {}
                }
            }
        }
        self.changed.notify_all();
        Ok(Incoming::Stream)
    }

    fn put(&self, frame: &Frame) -> Result<(), ChannelError> {
        let bytes = frame.bytes()?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer
            .write_all(&bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ChannelError::Gone,
                _ => error.into(),
            })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was not opened, or was closed, by this end gets nothing.
fn known(state: &mut State, id: StreamId) -> Result<&mut Stream, ChannelError> {
    let unknown = ChannelError::Protocol("bytes for a stream that is not open");
    state.streams.get_mut(&id).ok_or(unknown)
}

/// Where a stream's bytes are read. Reading makes room for more; dropping it lets the rest go.
pub struct Inlet {
    link: Arc<Link>,
    id: StreamId,
}

impl Read for Inlet {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut state = self.link.state();
        loop {
            let broken = state.broken;
            let Some(stream) = state.streams.get_mut(&self.id) else {
                return Ok(0);
            };
            if !stream.arrived.is_empty() {
                let read = stream.arrived.read(into)?;
                stream.window += read;
                drop(state);
                self.link
                    .put(&Frame::Credit(self.id, read))
                    .map_err(io::Error::other)?;
                return Ok(read);
            }
            if stream.ended {
                return Ok(0);
            }
            if broken {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            state = self
                .link
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        let mut state = self.link.state();
        let Some(stream) = state.streams.get_mut(&self.id) else {
            return;
        };
        stream.deaf = true;
        let dropped = stream.arrived.len();
        stream.arrived = VecDeque::new();
        stream.window += dropped;
        drop(state);
        if dropped > 0 {
            // If that fails, the link's reader learns of it too.
            let _ = self.link.put(&Frame::Credit(self.id, dropped));
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
