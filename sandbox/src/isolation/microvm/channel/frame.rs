//! What crosses the channel: frames.
//!
//! ```text
//! kind[1] stream[4] length[4] payload[length]        integers are big endian
//! ```

use std::io::Read;

use super::{ChannelError, StreamId};

/// Most bytes of a message.
pub const MAX_MESSAGE: usize = 1 << 20;
/// Most bytes of a piece of a stream or of the log.
pub const MAX_PIECE: usize = 64 << 10;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message, as JSON.
    Message(Vec<u8>),
    /// Bytes of a stream.
    Data(StreamId, Vec<u8>),
    /// As many bytes more may be sent into a stream.
    Credit(StreamId, usize),
    /// No more bytes will come of a stream.
    End(StreamId),
    /// A piece of the log.
    Entry(Vec<u8>),
}

impl Frame {
    /// The frame as it crosses.
    ///
    /// # Errors
    ///
    /// [`ChannelError::Protocol`] when it is too long.
    pub fn bytes(&self) -> Result<Vec<u8>, ChannelError> {
        let (kind, stream, payload) = match self {
            Self::Message(json) => (0, 0, &json[..]),
            Self::Data(stream, bytes) => (1, *stream, &bytes[..]),
            Self::Credit(stream, more) => {
                let more = u32::try_from(*more).map_err(|_| TOO_LONG)?;
                return Ok(head(2, *stream, 4, &more.to_be_bytes()));
            }
            Self::End(stream) => (3, *stream, &[][..]),
            Self::Entry(bytes) => (4, 0, &bytes[..]),
        };
        let length = u32::try_from(payload.len()).map_err(|_| TOO_LONG)?;
        if payload.len() > most(kind) {
            return Err(TOO_LONG);
        }
        Ok(head(kind, stream, length, payload))
    }

    /// Reads one frame.
    ///
    /// # Errors
    ///
    /// [`ChannelError::Gone`] at the end, [`ChannelError::Protocol`] for what is no frame; no more than
    /// a frame's bytes are held then.
    pub fn read(reader: &mut impl Read) -> Result<Self, ChannelError> {
        let mut head = [0; 9];
        fill(reader, &mut head)?;
        let [kind, s0, s1, s2, s3, l0, l1, l2, l3] = head;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let length = usize::try_from(length).map_err(|_| TOO_LONG)?;
        if length > most(kind) {
            return Err(TOO_LONG);
        }
        let mut payload = vec![0; length];
        fill(reader, &mut payload)?;
        match kind {
            0 => Ok(Self::Message(payload)),
            1 => Ok(Self::Data(stream, payload)),
            2 => {
                let more: [u8; 4] = payload
                    .try_into()
                    .map_err(|_| ChannelError::Protocol("a credit of no number"))?;
                let more = usize::try_from(u32::from_be_bytes(more)).unwrap_or(usize::MAX);
                Ok(Self::Credit(stream, more))
            }
            3 => Ok(Self::End(stream)),
            4 => Ok(Self::Entry(payload)),
            _ => Err(ChannelError::Protocol("an unknown kind of frame")),
        }
    }
}

const TOO_LONG: ChannelError = ChannelError::Protocol("a frame is too long");

fn most(kind: u8) -> usize {
    match kind {
        0 => MAX_MESSAGE,
        1 | 4 => MAX_PIECE,
        2 => 4,
        _ => 0,
    }
}

fn head(kind: u8, stream: StreamId, length: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9 + payload.len());
    bytes.push(kind);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn fill(reader: &mut impl Read, into: &mut [u8]) -> Result<(), ChannelError> {
    reader.read_exact(into).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset => {
            ChannelError::Gone
        }
        _ => error.into(),
    })
}
