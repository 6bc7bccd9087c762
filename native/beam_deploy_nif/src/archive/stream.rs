//! The inflated bytes of a gzip file: made by one thread, read by another, counted and digested on the way.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::{Limits, CHUNK};
use crate::error::Unsafe;

pub struct Chunk {
    bytes: Vec<u8>,
    /// Compressed bytes read so far.
    consumed: u64,
}

struct Digesting<R> {
    source: R,
    sha256: Sha256,
    consumed: u64,
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.sha256.update(buffer.get(..count).unwrap_or_default());
        self.consumed += count as u64;
        Ok(count)
    }
}

/// `None` when nobody wanted the rest. Each further gzip member has to begin where the last one ended: anything
/// else behind it is an error of the decoder.
pub fn inflate<R: Read>(
    source: R,
    chunks: SyncSender<Chunk>,
    recycled: Receiver<Vec<u8>>,
) -> io::Result<Option<[u8; 32]>> {
    let digesting = Digesting {
        source,
        sha256: Sha256::new(),
        consumed: 0,
    };
    let mut gzip = MultiGzDecoder::new(BufReader::with_capacity(CHUNK, digesting));

    loop {
        let mut bytes = recycled.try_recv().unwrap_or_default();
        bytes.clear();
        bytes.reserve(CHUNK);
        (&mut gzip).take(CHUNK as u64).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            break;
        }
        let consumed = gzip.get_ref().get_ref().consumed;
        if chunks.send(Chunk { bytes, consumed }).is_err() {
            return Ok(None);
        }
    }

    let digest = gzip.into_inner().into_inner().sha256.finalize();
    Ok(Some(digest.into()))
}

/// The inflated bytes as they arrive, up to the limits.
pub struct Stream {
    chunks: Receiver<Chunk>,
    give_back: SyncSender<Vec<u8>>,
    bytes: Vec<u8>,
    offset: usize,
    pub total: u64,
    limits: Limits,
    /// Why reading was stopped. Beside the I/O error, since the tar reader rewords that.
    pub refused: Rc<Cell<Option<Unsafe>>>,
}

impl Stream {
    pub fn new(chunks: Receiver<Chunk>, give_back: SyncSender<Vec<u8>>, limits: Limits) -> Self {
        Stream {
            chunks,
            give_back,
            bytes: Vec::new(),
            offset: 0,
            total: 0,
            limits,
            refused: Rc::default(),
        }
    }

    /// False at the end of the stream.
    fn next_chunk(&mut self) -> io::Result<bool> {
        let Ok(chunk) = self.chunks.recv() else {
            return Ok(false);
        };
        let spent = std::mem::replace(&mut self.bytes, chunk.bytes);
        match self.give_back.try_send(spent) {
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
        self.offset = 0;
        self.total += self.bytes.len() as u64;

        let limits = &self.limits;
        let refused = if self.total > limits.max_bytes {
            Some(Unsafe::TooLarge)
        } else if self.total > limits.ratio_from
            && self.total / limits.max_ratio.max(1) > chunk.consumed
        {
            Some(Unsafe::Ratio)
        } else {
            None
        };
        match refused {
            None => Ok(true),
            Some(_) => {
                self.refused.set(refused);
                Err(io::Error::other("over the limits"))
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.offset >= self.bytes.len() && !self.next_chunk()? {
            return Ok(0);
        }
        let mut rest = self.bytes.get(self.offset..).unwrap_or_default();
        let count = rest.read(buffer)?;
        self.offset += count;
        Ok(count)
    }
}
