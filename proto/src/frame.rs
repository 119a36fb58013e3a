//! A gRPC message as the bytes it is. The data path reads what it needs from them and forwards the
//! rest untouched; the edges of the other services use generated messages.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// One encoded message. What is received is in one piece; what is sent may be in several, so that
/// records which many subscribers get are not copied together for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame(pub Bytes, Vec<Bytes>);

impl Frame {
    pub fn new(bytes: Bytes) -> Frame {
        Frame(bytes, Vec::new())
    }

    /// A message of which `rest` follows `first`.
    pub fn in_parts(first: Bytes, rest: Vec<Bytes>) -> Frame {
        Frame(first, rest)
    }

    /// Of the whole message.
    pub fn len(&self) -> usize {
        self.0.len() + self.1.iter().map(Bytes::len).sum::<usize>()
    }

    /// In one piece.
    pub fn to_bytes(&self) -> Bytes {
        let mut whole = BytesMut::with_capacity(self.len());
        whole.extend_from_slice(&self.0);
        for part in &self.1 {
            whole.extend_from_slice(part);
        }
        whole.freeze()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Passes frames through; each is copied once into the transport's buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameCodec;

/// Output collects in the transport until this many bytes are ready.
const YIELD_BYTES: usize = 256 * 1024;
const BUFFER_BYTES: usize = 64 * 1024;

impl Codec for FrameCodec {
    type Encode = Frame;
    type Decode = Frame;
    type Encoder = FrameCodec;
    type Decoder = FrameCodec;

    fn encoder(&mut self) -> Self::Encoder {
        *self
    }

    fn decoder(&mut self) -> Self::Decoder {
        *self
    }
}

impl Encoder for FrameCodec {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(frame.len());
        out.put(frame.0);
        for part in frame.1 {
            out.put(part);
        }
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Frame>, Status> {
        Ok(Some(Frame::new(input.copy_to_bytes(input.remaining()))))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}
