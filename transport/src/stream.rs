//! Frames over one QUIC stream. A peer that breaks the framing ends the connection, and is told why.

use prost::Message;
use protocol::frame::{self, FrameError, Head};
use quinn::{ReadError, RecvStream, SendStream, WriteError};

use crate::close::{CloseCode, Closed};
use crate::connection::Connection;

/// Buffers up to this many bytes are kept between frames; larger ones are given back: ten thousand sessions wait
/// most of the time.
const KEPT: usize = 256;

/// The sending half.
#[derive(Debug)]
pub struct FrameWriter {
    stream: SendStream,
    connection: Connection,
    limit: usize,
    /// Encoded frames, of which `sent` bytes are gone.
    pending: Vec<u8>,
    sent: usize,
}

impl FrameWriter {
    pub(crate) fn new(stream: SendStream, connection: Connection, limit: usize) -> Self {
        Self { stream, connection, limit, pending: Vec::new(), sent: 0 }
    }

    /// Sends one message; waits while the peer reads more slowly than this side writes.
    ///
    /// Cancel-safe in that no frame is ever torn: the rest of a frame begun goes out before the next one.
    ///
    /// # Errors
    /// [`StreamError::Frame`] when the message is over the limit; nothing is then sent. Otherwise why the stream ended.
    pub async fn send<M: Message>(&mut self, message: &M) -> Result<(), StreamError> {
        frame::encode(message, self.limit, &mut self.pending)?;
        self.flush().await
    }

    /// Sends several messages with one write.
    ///
    /// # Errors
    /// As [`FrameWriter::send`]; when one message is over the limit, none is sent.
    pub async fn send_all<M: Message>(&mut self, messages: &[M]) -> Result<(), StreamError> {
        let before = self.pending.len();
        for message in messages {
            if let Err(error) = frame::encode(message, self.limit, &mut self.pending) {
                self.pending.truncate(before);
                return Err(error.into());
            }
        }
        self.flush().await
    }

    /// Ends the stream after what was sent.
    ///
    /// # Errors
    /// Why the stream ended before.
    pub async fn finish(&mut self) -> Result<(), StreamError> {
        self.flush().await?;
        self.stream.finish().map_err(|_| StreamError::Finished)
    }

    /// Waits until the peer's QUIC has all of a finished stream; then closing the connection loses none of it.
    ///
    /// # Errors
    /// Why the stream or the connection ended before.
    pub async fn delivered(&mut self) -> Result<(), StreamError> {
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(StreamError::Stopped),
            Err(quinn::StoppedError::ConnectionLost(error)) => Err(self.connection.ended(&error).into()),
            Err(quinn::StoppedError::ZeroRttRejected) => Err(StreamError::Finished),
        }
    }

    /// Streams with a higher number are served first; a new stream has 0. A finished stream has none to set.
    pub fn set_priority(&self, priority: i32) {
        // A stream that is finished or gone has nothing left to put first.
        let _ = self.stream.set_priority(priority);
    }

    async fn flush(&mut self) -> Result<(), StreamError> {
        while self.sent < self.pending.len() {
            let written = self.stream.write(&self.pending[self.sent..]).await;
            self.sent += written.map_err(|error| self.ended(error))?;
        }
        self.sent = 0;
        recycle(&mut self.pending);
        Ok(())
    }

    fn ended(&self, error: WriteError) -> StreamError {
        match error {
            WriteError::ConnectionLost(error) => self.connection.ended(&error).into(),
            WriteError::Stopped(_) => StreamError::Stopped,
            WriteError::ClosedStream | WriteError::ZeroRttRejected => StreamError::Finished,
        }
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct FrameReader {
    stream: RecvStream,
    connection: Connection,
    limit: usize,
    /// Received and not yet given out: whole frames, and perhaps part of one.
    buffer: Vec<u8>,
    start: usize,
}

impl FrameReader {
    pub(crate) fn new(stream: RecvStream, connection: Connection, limit: usize) -> Self {
        Self { stream, connection, limit, buffer: Vec::new(), start: 0 }
    }

    /// The next message; `None` when the peer ended the stream after a whole frame. Cancel-safe.
    ///
    /// # Errors
    /// [`StreamError::Frame`] or [`StreamError::Torn`] when the peer broke the framing: the connection is then closed
    /// and the peer told. Otherwise why the stream ended.
    pub async fn recv<M: Message + Default>(&mut self) -> Result<Option<M>, StreamError> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(Some(message));
            }
            match self.stream.read_chunk(self.limit, true).await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk.bytes),
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                Ok(None) => {
                    self.connection.close(CloseCode::Malformed, &StreamError::Torn.to_string());
                    return Err(StreamError::Torn);
                }
                Err(ReadError::ConnectionLost(error)) => return Err(self.connection.ended(&error).into()),
                Err(ReadError::Reset(_)) => return Err(StreamError::Reset),
                Err(ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected) => {
                    return Err(StreamError::Finished);
                }
            }
        }
    }

    fn buffered<M: Message + Default>(&mut self) -> Result<Option<M>, StreamError> {
        let taken = take(&self.buffer[self.start..], self.limit).map_err(|error| {
            let code = if matches!(error, FrameError::TooLarge { .. }) {
                CloseCode::FrameTooLarge
            } else {
                CloseCode::Malformed
            };
            self.connection.close(code, &error.to_string());
            error
        })?;
        let Some((message, length)) = taken else {
            self.buffer.drain(..self.start);
            self.start = 0;
            return Ok(None);
        };
        self.start += length;
        if self.start == self.buffer.len() {
            self.start = 0;
            recycle(&mut self.buffer);
        }
        Ok(Some(message))
    }
}

/// The message at the start of `buffer` and its frame's length, or `None` when the frame is not whole.
fn take<M: Message + Default>(buffer: &[u8], limit: usize) -> Result<Option<(M, usize)>, FrameError> {
    let Head::Frame { start, length } = frame::head(buffer, limit)? else { return Ok(None) };
    let Some(payload) = buffer.get(start..start + length) else { return Ok(None) };
    Ok(Some((frame::decode(payload)?, start + length)))
}

fn recycle(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > KEPT {
        *buffer = Vec::new();
    }
}

/// A stream that gives or takes no more.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A frame breaks the contract. When the peer sent it, the connection is closed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer ended the stream within a frame; the connection is closed.
    #[error("the stream ended within a frame")]
    Torn,
    /// The peer gave the stream up.
    #[error("the peer gave the stream up")]
    Reset,
    /// The peer reads no more of it.
    #[error("the peer reads no more of the stream")]
    Stopped,
    /// This side has ended it.
    #[error("the stream is finished")]
    Finished,
    /// The connection ended.
    #[error(transparent)]
    Closed(#[from] Closed),
}
